"""Searching a face by answers alone: what the attacks without weights share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from attacks.base import Attack
from bench.subspace import FaceSubspace
from bench.threats import Attacker, Threat

AT_ONCE = 32
"""Images asked at once, so that the answers fit in memory."""

Likeness = Callable[[Tensor, Tensor], Tensor]
"""From rows (M,) of the leaked records and coordinates (M, K) of faces to likeness (M,)."""


@dataclass
class Blind(Attack):
    """A search among faces that is told only how well each candidate matches.

    Under `score` the answer is the match score; under `query` it is the cosine between the leaked
    record and that of the candidate. A candidate's likeness is its answer less the prior. The
    search starts at the mean of the own images that match best.

    Args:
        calls: Calls for each leaked record, the first half of them at most for own images; under
            `query` the records of own images are asked for once.
        components: Principal components that span the faces searched.
        prior: Weight of the mean squared component, in deviations.
    """

    calls: Annotated[int, Field(ge=2)] = 1000
    components: Annotated[int, Field(ge=1)] = 60
    prior: Annotated[float, Field(ge=0)] = 0.02

    def fit(self, attacker: Attacker) -> None:
        """Learn the subspace, and under `query` the records of own images."""
        self.attacker = attacker
        self.space = FaceSubspace(attacker.images, self.components)
        count = min(len(attacker.images), self.calls // 2)
        self.own = attacker.images[torch.randperm(len(attacker.images))[:count]]
        if attacker.threat is Threat.QUERY:
            records = self._asked(lambda images: attacker.query(images).flatten(1), self.own)
            self.mean = records.mean(0)
            self.records = self._centered(records)

    def reconstruct(self, records: Tensor) -> Tensor:
        """Return the faces found."""
        answers = self._own_answers(records)
        best = answers.topk(min(5, len(self.own)), dim=1).indices
        start = self.space.coordinates(self.own)[best].mean(1)

        def likeness(rows: Tensor, z: Tensor) -> Tensor:
            answer = self._answers(records[rows], self.space.faces(z))
            return answer - self.prior * z.square().mean(1)

        return self.space.faces(self.search(start, likeness, self.calls - len(self.own)))

    @abstractmethod
    def search(self, start: Tensor, likeness: Likeness, calls: int) -> Tensor:
        """Return the coordinates (N, K) found.

        Args:
            start: (N, K) coordinates to start at.
            likeness: What to maximise.
            calls: Calls for each record.
        """

    def _own_answers(self, records: Tensor) -> Tensor:
        """Return how well every own image matches every leaked record, (N, own)."""
        if self.attacker.threat is Threat.QUERY:
            return self._centered(records.flatten(1).to(self.mean)) @ self.records.T
        rows = [self._answers(record.expand(len(self.own)), self.own) for record in records]
        return torch.stack(rows)

    def _answers(self, records: Tensor, images: Tensor) -> Tensor:
        """Return how well each image matches the record, or handle, of its row."""
        if self.attacker.threat is Threat.SCORE:
            return self._asked(self.attacker.score, records, images)
        made = self._asked(lambda part: self.attacker.query(part).flatten(1), images)
        wanted = self._centered(records.flatten(1).to(self.mean))
        return (self._centered(made) * wanted).sum(1)

    def _centered(self, records: Tensor) -> Tensor:
        return functional.normalize(records.to(self.mean) - self.mean, dim=1)

    def _asked(self, function: Callable[..., Tensor], *columns: Tensor) -> Tensor:
        parts = zip(*(column.split(AT_ONCE) for column in columns), strict=True)
        return torch.cat([function(*part).to(self.attacker.device) for part in parts])
