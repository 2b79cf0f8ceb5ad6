"""Deep index-of-max hashing: the projections are learned, a permutation is the key."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.base import Defender
from defenses.keyed import Key, Keyed, share_of_equal


@DEFENSES.register("diom")
@dataclass
class DIoM(Keyed):
    """A network whose groups of outputs give one index each, under permutations (Analysis_LSH).

    The network is trained on the defender's templates, so that two of one person share indices and
    two of different people do not: the expected share of equal indices under softmax is driven to
    1 and to 0.

    Leaks: template. Secrets: the permutation of each group, and the trained network. Score: share
    of equal indices. Known weakness: with the key the network is differentiable and a pre-image
    search inverts it (Paik et al., BMVC 2023). Source: facts of Cryptology-Algorithm-Lab/
    Analysis_LSH (hidden layer 1024, m = 512, q = 30); the loss and the optimiser are ours. They
    need more people than small sets have: trained on 800 photos of LFW, accuracy on 300 pairs of
    others was .59 [.53, .65], where undefended templates have .99.

    Args:
        indices: Groups of outputs; one index is stored of each.
        choices: Outputs in a group.
        width: Hidden numbers.
        steps: Training steps of 64 templates each; 0 leaves the network random.
    """

    leaks = frozenset({Leak.TEMPLATE})

    indices: Annotated[int, Field(ge=1)] = 512
    choices: Annotated[int, Field(ge=2)] = 30
    width: Annotated[int, Field(ge=1)] = 1024
    steps: Annotated[int, Field(ge=0)] = 200

    def fit(self, world: Defender) -> None:
        """Train the network and draw the key."""
        super().fit(world)
        self.network = nn.Sequential(
            nn.Linear(self.size, self.width),
            nn.ReLU(),
            nn.Linear(self.width, self.indices * self.choices),
        ).to(world.device)
        templates = world.recognizer.leaking(Leak.TEMPLATE, world.images)
        labels = {name: number for number, name in enumerate(sorted(set(world.identities)))}
        people = torch.tensor([labels[name] for name in world.identities], device=world.device)
        optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)
        for _ in range(self.steps):
            rows = _some_people(people, 64)
            likely = self._grouped(templates[rows]).softmax(2).flatten(1)
            agreement = likely @ likely.T / self.indices
            same = (people[rows, None] == people[rows]).float()
            loss = _balanced_square(agreement - same, same)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.network.requires_grad_(False)

    def draw_key(self, size: int, generator: torch.Generator) -> Key:
        """Draw a permutation (indices, choices) for each group."""
        return (torch.rand(self.indices, self.choices, generator=generator).argsort(1),)

    def encode(self, x: Tensor, key: Key) -> Tensor:
        """Return (N, indices) permuted indices in [0, choices)."""
        largest = self._grouped(x).argmax(2)
        group = torch.arange(self.indices, device=x.device)
        return key[0][group, largest].float()

    def contest(self, x: Tensor, key: Key) -> Tensor:
        """Return the outputs (N, indices, choices) in the order of the key."""
        group = torch.arange(self.indices, device=x.device)[:, None]
        return self._grouped(x)[:, group, key[0].argsort(1)]

    def similarity(self, probes: Tensor, references: Tensor) -> Tensor:
        """Return the share of equal indices in [0, 1]."""
        return share_of_equal(probes, references)

    def code_bytes(self, size: int) -> float:
        """Return the bytes of packed indices."""
        return size * math.ceil(math.log2(self.choices)) / 8

    def _grouped(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.network(x)
        return outputs.unflatten(1, (self.indices, self.choices))


def _some_people(people: Tensor, count: int) -> Tensor:
    """Return rows in which people come more than once, if they have several photos at all."""
    chosen = people[torch.randint(len(people), (count // 4,)).to(people.device)]
    rows = [_drawn(torch.nonzero(people == person)[:, 0], 4) for person in chosen]
    return torch.cat(rows).unique()


def _drawn(rows: Tensor, count: int) -> Tensor:
    return rows[torch.randint(len(rows), (count,)).to(rows.device)]


def _balanced_square(error: Tensor, same: Tensor) -> Tensor:
    """Return the mean squared error of equal pairs plus that of others, the diagonal left out."""
    apart = 1 - torch.eye(len(error), device=error.device)
    square = error.square()
    return sum(
        ((square * kind).sum() / kind.sum().clamp_min(1) for kind in (same * apart, 1 - same)),
        torch.zeros((), device=error.device),
    )
