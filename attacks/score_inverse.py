"""Reading a face off the match scores of other faces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from attacks.base import Attack
from attacks.ridge import Ridge
from bench.leaks import Leak
from bench.registry import ATTACKS
from bench.subspace import FaceSubspace
from bench.threats import Attacker, Threat

AT_ONCE = 32
"""Scores asked at once."""


@ATTACKS.register("score-inverse")
@dataclass
class ScoreInverse(Attack):
    """Own faces are scored against a stored record, once, and the scores inverted in closed form.

    "Scores tell everything about Bob" (S&P 2024) asks for the scores of nearly orthogonal faces and
    multiplies them with a pseudo-inverse; it chooses and decodes the faces with a network of its
    own, which nobody under `score` has. Here the faces are the attacker's as they come, and a ridge
    regression gives the direction in the subspace of faces along which scores rise. The face shown
    lies on it, as far from the mean as faces are.

    Args:
        calls: Calls for each stored record.
        components: Principal components that span the faces.
    """

    leaks = frozenset({Leak.FEATURES, Leak.TEMPLATE})
    threats = frozenset({Threat.SCORE})

    calls: Annotated[int, Field(ge=2)] = 1000
    components: Annotated[int, Field(ge=1)] = 60

    def fit(self, attacker: Attacker) -> None:
        """Learn the subspace, and choose the faces to ask about."""
        self.attacker = attacker
        self.space = FaceSubspace(attacker.images, self.components)
        chosen = torch.randperm(len(attacker.images))[: self.calls]
        self.asked = attacker.images[chosen]
        self.people = attacker.identities[chosen.numpy()]
        self.coordinates = self.space.coordinates(self.asked)

    def reconstruct(self, records: Tensor) -> Tensor:
        """Return the faces whose match scores would be highest."""
        scores = torch.stack([self._scores(handle) for handle in records], 1)
        origin = torch.zeros(1, len(self.space), device=scores.device)
        rising = Ridge(self.coordinates, scores, self.people)
        slopes = rising(torch.eye(len(self.space), device=scores.device)) - rising(origin)
        usual = self.coordinates.norm(dim=1).median()
        direction = slopes.T / slopes.T.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return self.space.faces(usual * direction)

    def _scores(self, handle: Tensor) -> Tensor:
        parts = self.asked.split(AT_ONCE)
        found = [self.attacker.score(handle.expand(len(part)), part) for part in parts]
        return torch.cat(found).to(self.attacker.device)
