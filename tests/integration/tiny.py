"""A plug-in for tests: a recogniser of one small matrix, and an attack that can misbehave."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from attacks.base import Attack
from bench.leaks import Leak
from bench.recognizers.base import Recognizer
from bench.registry import ATTACKS, RECOGNIZERS
from bench.threats import Attacker, Threat

SUITE = """
name = "tiny"
title = "Cells that cost next to nothing"
dataset = "orl"
recognizer = { name = "tiny" }
[split]
victims = 4
probes = 4
attacker_images = 12
defender_images = 12
gallery_people = 2
[[group]]
leak = "image"
defenses = [{ name = "none" }, { name = "pixelate" }]
attacks = [{ name = "retrieval", threats = ["adaptive"] }]
[[group]]
leak = "template"
defenses = [{ name = "none" }, { name = "biohash" }]
attacks = [{ name = "retrieval", threats = ["adaptive", "insider"] }]
"""


@RECOGNIZERS.register("tiny")
class Tiny(Recognizer):
    """Projects the image, shrunk to 14x14, onto 128 random directions."""

    name = "tiny"
    asset = "sface"
    weights_sha256 = "0" * 64
    feature_shape = (3, 14, 14)
    embedding_size = 128
    precision = "float32"

    def __init__(self) -> None:
        super().__init__()
        directions = torch.randn(588, 128, generator=torch.Generator().manual_seed(0))
        self.directions = torch.nn.Parameter(directions, requires_grad=False)

    def head(self, images: Tensor) -> Tensor:
        """Shrink."""
        return functional.avg_pool2d(images, 8)

    def tail(self, features: Tensor) -> Tensor:
        """Project."""
        return functional.normalize((features.flatten(1) - 0.5) @ self.directions, dim=1)


@ATTACKS.register("misbehaves")
@dataclass
class Misbehaves(Attack):
    """Does not return from `fit` as it should.

    Attributes:
        how: "raises", "hangs", "hangs-deaf" to the alarm, or "dies" as when memory runs out.
    """

    leaks = frozenset({Leak.IMAGE, Leak.TEMPLATE})
    threats = frozenset({Threat.ADAPTIVE})

    how: str = "raises"

    def fit(self, attacker: Attacker) -> None:
        """Misbehave."""
        match self.how:
            case "raises":
                raise OSError("boom")
            case "hangs":
                time.sleep(1e6)
            case "hangs-deaf":
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
                time.sleep(1e6)
            case "dies":
                os.kill(os.getpid(), signal.SIGKILL)

    def reconstruct(self, records: Tensor) -> Tensor:
        """Return gray images."""
        return torch.full((len(records), 3, 112, 112), 0.5)
