"""A student of the recogniser that reads protected records, then an inverter of its embeddings."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from attacks.map_embedding import cosine_loss
from attacks.through_embedding import ThroughEmbedding
from bench.leaks import Leak
from bench.networks import Standardize, channel_statistics, half_precision
from bench.recognizers.base import Recognizer
from bench.registry import ATTACKS
from bench.threats import Attacker, Pairs, Threat
from bench.training import train

KERNEL = 3
"""Side of the adapter's neighborhoods."""

REGRESSED = 64
"""Records behind the closed-form start of the adapter."""

POSITIONS = 400
"""Places of each of them."""


class Student(nn.Module):
    """A copy of a recogniser behind a convolution that turns records into what it can read.

    Args:
        recognizer: The recogniser; its copy learns too, its normalisation excepted.
        leak: What the adapter restores: images or features.
        records: (N, C, H, W) records to standardise by.
        clean: (N, C', H', W') what they were made from.
    """

    def __init__(self, recognizer: Recognizer, leak: Leak, records: Tensor, clean: Tensor) -> None:
        super().__init__()
        mean, deviation = channel_statistics(records)
        self.standardize = Standardize(mean, deviation.clamp_min(1e-4 * float(deviation.max())))
        self.adapter = nn.Conv2d(len(mean), clean.shape[1], KERNEL, padding=KERNEL // 2)
        self._size = tuple(clean.shape[2:])
        self.body = copy.deepcopy(recognizer).requires_grad_(True)
        self._read = self.body.embed if leak is Leak.IMAGE else self.body.tail

    def forward(self, records: Tensor) -> Tensor:
        """Map records (N, C, H, W) to embeddings (N, D)."""
        return self._read(self.adapter(self.prepared(records)).float())

    def prepared(self, records: Tensor) -> Tensor:
        """Return standardised records at the size of what they were made from."""
        x = self.standardize(records)
        if tuple(x.shape[2:]) != self._size:
            x = functional.interpolate(x, self._size, mode="bilinear")
        return x

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the copy's normalisation keeps the statistics that it came with."""
        super().train(mode)
        self.body.eval()
        return self

    @torch.no_grad()
    def regress_adapter(self, pools: list[Pairs]) -> None:
        """Set the adapter to the ridge regression of the clean object on neighborhoods of records.

        The whole of a transform near a linear one is undone before anything is trained.
        """
        x, y = zip(*(self._sampled(pool, REGRESSED // len(pools)) for pool in pools), strict=True)
        left, right = torch.cat(x).double(), torch.cat(y).double()
        left = functional.pad(left, [0, 1], value=1.0)
        gram = left.T @ left
        gram.diagonal().add_(1e-3 * float(gram.diagonal().mean()))
        weights = torch.linalg.solve(gram, left.T @ right).T.float()
        self.adapter.weight.copy_(weights[:, :-1].reshape(self.adapter.weight.shape))
        self.adapter.get_parameter("bias").copy_(weights[:, -1])

    def _sampled(self, pool: Pairs, count: int) -> tuple[Tensor, Tensor]:
        """Return neighborhoods of records at random places, and the clean values there."""
        device = self.adapter.weight.device
        chosen = torch.linspace(0, len(pool.records) - 1, count + 1)[:-1].long()
        x = functional.pad(self.prepared(pool.records[chosen].to(device)), [KERNEL // 2] * 4)
        neighborhoods = x.unfold(2, KERNEL, 1).unfold(3, KERNEL, 1)
        clean = pool.images[chosen.to(pool.images.device)].to(device)
        down, right = (torch.randint(side, (POSITIONS,)).to(device) for side in self._size)
        near = neighborhoods[:, :, down, right].movedim(2, 1)
        return near.flatten(2).flatten(0, 1), clean[:, :, down, right].movedim(2, 1).flatten(0, 1)


@ATTACKS.register("distill")
@dataclass
class Distill(ThroughEmbedding):
    """A student that imitates the clean embedding from protected records, then any inverter.

    FaceLinkGen (arXiv 2602.02914): what a protected image or map still says about the person is
    read by a network that was trained to recognise people, rather than by one that paints. The
    student starts as the recogniser itself behind a convolution in closed form.

    Args:
        inverter: Name of the attack on clean templates: any that runs under `transfer`.
        inverter_steps: Its steps, if it has such a parameter; all else is at its defaults.
        steps: Training steps of the student.
        batch: Records of a step, each of which passes through the recogniser.
        rate: Largest learning rate.
    """

    leaks = frozenset({Leak.IMAGE, Leak.FEATURES})
    threats = frozenset({Threat.ADAPTIVE, Threat.INSIDER})

    steps: Annotated[int, Field(ge=1)] = 60
    batch: Annotated[int, Field(ge=2)] = 16
    rate: Annotated[float, Field(gt=0)] = 2e-4

    def fit_estimate(self, attacker: Attacker, embeddings: Tensor) -> None:
        """Train the student on the records of all instances."""
        self._device = attacker.device
        pools = attacker.pairs()
        clean = attacker.clean(attacker.images)
        student = Student(attacker.recognizer, attacker.leak, pools[0].records, clean)
        student = student.to(attacker.device)
        student.regress_adapter([replace(pool, images=clean) for pool in pools])
        self._student = train(
            student,
            [replace(pool, images=embeddings) for pool in pools],
            steps=self.steps,
            rate=self.rate,
            loss=cosine_loss,
            batch=self.batch,
            device=attacker.device,
        )

    def estimate(self, records: Tensor) -> Tensor:
        """Return the student's embeddings."""
        with half_precision(self._device):
            parts = [self._student(part.to(self._device)) for part in records.split(32)]
        return torch.cat(parts).float()
