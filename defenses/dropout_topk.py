"""Sparse storage: most numbers are not stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench.leaks import Leak
from bench.networks import channel_statistics
from bench.registry import DEFENSES
from defenses.base import Defender, Defense, draw_like


@DEFENSES.register("dropout-topk")
@dataclass
class DropoutTopK(Defense):
    """Some numbers are kept, the others become the mean of their channel.

    Leaks: features, template. Secret: which numbers a random choice keeps; the choice can be read
    off the record. Known weakness: maps are redundant, and what is missing is filled in by a
    decoder trained on such records; the largest numbers hold the edges of a face.

    Args:
        keep: Share of numbers kept; 1 keeps all.
        choice: "top" keeps those furthest from the mean of their channel, in its deviations over
            the defender's images; "random" keeps others in every record.
    """

    leaks = frozenset({Leak.FEATURES, Leak.TEMPLATE})
    weakest: ClassVar[Mapping[str, Any]] = {"keep": 1}
    strongest: ClassVar[Mapping[str, Any]] = {"keep": 1e-9}

    keep: Annotated[float, Field(gt=0, le=1)] = 0.1
    choice: Literal["top", "random"] = "random"

    def fit(self, world: Defender) -> None:
        """Measure mean and deviation of every channel; they are no secret."""
        clean = world.recognizer.leaking(world.leak, world.images)
        self.mean, self.deviation = channel_statistics(clean)

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return x with the mean of the channel where a number is dropped."""
        shape = (-1, *[1] * (x.ndim - 2))
        mean = self.mean.reshape(shape)
        if self.choice == "top":
            rank = (x - mean).abs() / self.deviation.reshape(shape).clamp_min(1e-12)
        else:
            rank = draw_like(x, generator, "uniform")
        flat = rank.flatten(1)
        count = max(1, round(self.keep * flat.shape[1]))
        chosen = torch.zeros_like(flat).scatter(1, flat.topk(count, dim=1).indices, 1)
        return torch.where(chosen.reshape(x.shape) > 0, x, mean)

    def bytes_per_record(self, shape: torch.Size) -> float:
        """Return float32 of each kept number, and one bit per number that says whether it is."""
        return (4 * self.keep + 1 / 8) * shape.numel()
