"""SlerpFace: groups of a template are turned towards random keys and partly dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.keyed import Handling, Key, Keyed


@DEFENSES.register("slerpface")
@dataclass
class SlerpFace(Keyed):
    """Spherical interpolation towards noise, with dropout (Zhong et al., AAAI 2025, 2407.03043).

    A template is cut into groups. Each is scaled to unit length, turned towards a random unit
    vector k by the share t = alpha - a of the angle between them, some of its numbers are dropped,
    and it is scaled to length a: the group's attention. Matching turns the probe alike.

    Leaks: template. Secret: the numbers dropped, which nobody keeps. The key is stored in the open
    beside the record, as published (`key = "leaked"`). Score: 1 - arccos(s) / pi, where
    s sums the groups' inner products. Known weakness: with the key the interpolation is undone on
    the numbers that are kept, and a is the length of a stored group. Source: the paper and facts of
    Tencent TFace, recognition/tasks/slerpface. There a network makes 49 groups and their attention;
    here a group is some neighbouring numbers of the embedding, and its attention is its share of
    the squared length.

    Args:
        alpha: How far groups are turned: share of the angle for a group without attention.
        drop: Mean share of numbers drawn to be dropped; drawn with replacement, a quarter more in
            groups whose attention is below the median and a quarter less in the others.
        group: Numbers in a group; it divides the length of the template.
    """

    leaks = frozenset({Leak.TEMPLATE})

    key: Handling = "leaked"
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.9
    drop: Annotated[float, Field(ge=0, le=1)] = 0.5
    group: Annotated[int, Field(ge=2)] = 16

    def draw_key(self, size: int, generator: torch.Generator) -> Key:
        """Draw unit vectors (G, group) and the positions to drop (G, group), used in part."""
        if size % self.group:
            raise ValueError(f"slerpface needs a group that divides {size}, the template's length")
        shape = (size // self.group, self.group)
        direction = functional.normalize(torch.randn(shape, generator=generator), dim=1)
        return direction, torch.randint(self.group, shape, generator=generator)

    def encode(self, x: Tensor, key: Key) -> Tensor:
        """Return (N, D) with zeros where numbers are dropped."""
        turned, attention = self._turned(x, key[0])
        low = attention < attention.median(1, keepdim=True).values
        more, fewer = self._kept(key[1], 0.25), self._kept(key[1], -0.25)
        kept = torch.where(low[..., None], more, fewer)
        return (functional.normalize(turned * kept, dim=2) * attention[..., None]).flatten(1)

    def match(self, probes: Tensor, codes: Tensor, key: Key) -> Tensor:
        """Return (P, R): the probe is turned alike and dropped where the record is."""
        stored = codes.unflatten(1, (-1, self.group))
        turned, _ = self._turned(probes, key[0])
        columns = [
            (functional.normalize(turned * (record != 0), dim=2) * record).sum((1, 2))
            for record in stored
        ]
        return self._as_score(torch.stack(columns, 1))

    def similarity(self, probes: Tensor, references: Tensor) -> Tensor:
        """Return the score of codes under one key, each group of the probes at unit length."""
        groups = probes.unflatten(1, (-1, self.group))
        return self._as_score(functional.normalize(groups, dim=2).flatten(1) @ references.T)

    def undo(self, codes: Tensor, key: Key) -> Tensor:
        """Return the templates on what is kept, with a right angle to k where it is not known."""
        groups = codes.unflatten(1, (-1, self.group))
        attention = groups.norm(dim=2, keepdim=True)
        kept = groups != 0
        direction = key[0] * kept
        # The stored group is scaled to its attention after dropping; before it was about as long as
        # what is left of the direction it was turned to.
        turned = functional.normalize(groups, dim=2) * direction.norm(dim=2, keepdim=True)
        angle = (self.alpha - attention).clamp(0) * math.pi / 2
        freed = functional.normalize(turned - angle.sin() * direction, dim=2)
        return (freed * attention.sqrt()).flatten(1)

    def _turned(self, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Return interpolated unit groups (N, G, group) and their attention (N, G)."""
        groups = functional.normalize(x, dim=1).unflatten(1, (-1, self.group))
        attention = groups.square().sum(2)
        unit = functional.normalize(groups, dim=2)
        share = (self.alpha - attention[..., None]).clamp(0)
        angle = (unit * direction).sum(2, keepdim=True).clamp(-1 + 1e-6, 1 - 1e-6).acos()
        turned = ((1 - share) * angle).sin() * unit + (share * angle).sin() * direction
        return turned / angle.sin(), attention

    def _kept(self, drawn: Tensor, more: float) -> Tensor:
        """Return a (G, group) mask that is 0 at the first drawn positions of each group."""
        count = round(self.group * min(1, max(0, self.drop + more)))
        return torch.ones(drawn.shape, device=drawn.device).scatter(1, drawn[:, :count], 0)

    def _as_score(self, cosine: Tensor) -> Tensor:
        return 1 - cosine.clamp(-1, 1).acos() / math.pi
