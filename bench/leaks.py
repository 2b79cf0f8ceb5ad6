"""The objects an attacker can get hold of."""

from __future__ import annotations

from enum import StrEnum


class Leak(StrEnum):
    """What leaked, and so what a defense protects and what an attack reads.

    Attributes:
        IMAGE: What a client transmits: an image, or an image-like tensor made from it.
        FEATURES: An intermediate map at the recogniser's cut (AdvFace's stored object).
        TEMPLATE: The embedding, or the code made from it.
    """

    IMAGE = "image"
    FEATURES = "features"
    TEMPLATE = "template"
