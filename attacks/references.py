"""Floors and ceilings: what a number means, since a mean face alone scores SSIM above .4."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.base import Reference, Victims
from bench.registry import REFERENCES


@REFERENCES.register("mean-face")
@dataclass
class MeanFace(Reference):
    """Floor: the mean of the attacker's images, the same guess for every probe."""

    def images(self, victims: Victims, attacker_images: Tensor, seed: int) -> Tensor:
        """Return the mean face once per probe."""
        return attacker_images.mean(0).expand(len(victims.originals), -1, -1, -1)


@REFERENCES.register("other-person")
@dataclass
class OtherPerson(Reference):
    """Floor: a photo of one of the attacker's people, drawn at random for every probe."""

    def images(self, victims: Victims, attacker_images: Tensor, seed: int) -> Tensor:
        """Return random photos of people who are no victims."""
        generator = torch.Generator().manual_seed(seed)
        count = len(victims.originals)
        return attacker_images[torch.randint(len(attacker_images), (count,), generator=generator)]


@REFERENCES.register("same-person-other-photo")
@dataclass
class SamePersonOtherPhoto(Reference):
    """Another photo of the same person: right identity, wrong pixels."""

    shows_mates = True

    def images(self, victims: Victims, attacker_images: Tensor, seed: int) -> Tensor:
        """Return the other photos."""
        return victims.mates


@REFERENCES.register("original")
@dataclass
class Original(Reference):
    """Ceiling: the leaked image itself, as 8-bit pixels."""

    def images(self, victims: Victims, attacker_images: Tensor, seed: int) -> Tensor:
        """Return the originals."""
        return victims.originals
