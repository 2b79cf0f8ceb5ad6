"""Maps protected templates to clean ones, then inverts those."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from attacks.ridge import Ridge
from attacks.through_embedding import ThroughEmbedding
from bench.leaks import Leak
from bench.networks import half_precision
from bench.recognizers.base import BATCH
from bench.registry import ATTACKS
from bench.threats import Attacker, Pairs, Threat
from bench.training import train
from defenses.base import Defense


class RadialLayer(nn.Module):
    """A layer of a Kolmogorov-Arnold network: a learned function on every edge.

    Each function is a sum of Gaussians on a fixed grid over [-2, 2], beside a SiLU as in Liu et al.
    (2024); with Gaussians in place of splines it is two matrix products (Li, 2024).

    Args:
        inputs: Length of an input.
        outputs: Length of an output.
        centers: Gaussians of a function.
    """

    centers: Tensor

    def __init__(self, inputs: int, outputs: int, centers: int = 8) -> None:
        super().__init__()
        self.register_buffer("centers", torch.linspace(-2, 2, centers))
        self.scale = nn.BatchNorm1d(inputs)
        self.base = nn.Linear(inputs, outputs)
        self.edges = nn.Linear(inputs * centers, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs) to (N, outputs)."""
        x = self.scale(x)
        spacing = self.centers[1] - self.centers[0]
        bumps = (-((x[..., None] - self.centers) / spacing).square()).exp()
        mapped: Tensor = self.base(functional.silu(x)) + self.edges(bumps.flatten(1))
        return mapped


def _mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm1d(inputs, affine=False),
        nn.Linear(inputs, width),
        nn.BatchNorm1d(width),
        nn.GELU(),
        nn.Linear(width, width),
        nn.BatchNorm1d(width),
        nn.GELU(),
        nn.Linear(width, outputs),
    )


def _kan(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(RadialLayer(inputs, width), RadialLayer(width, outputs))


NETWORKS: dict[str, Callable[[int, int, int], nn.Sequential]] = {"mlp": _mlp, "kan": _kan}


def cosine_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean of 1 - cosine."""
    return 1 - functional.cosine_similarity(made.float(), wanted).mean()


@ATTACKS.register("map-embedding")
@dataclass
class MapEmbedding(ThroughEmbedding):
    """A regression from protected to clean templates, then any inverter of clean templates.

    What FEM does before its diffusion model (Han et al., AAAI 2026). Whoever can run the defense
    is not short of pairs: it also protects embeddings that are nobody's, scattered around those of
    its own people. Under `adaptive` it maps in expectation over keys that it does not know; with
    the key, or where there is none, it undoes what can be regressed.

    Args:
        inverter: Name of the attack on clean templates: any that runs under `transfer`.
        inverter_steps: Its steps, if it has such a parameter; all else is at its defaults.
        mapping: "ridge" in closed form, "mlp" of three layers, or "kan", two layers of learned
            functions on edges.
        scattered: Embeddings that are nobody's, for each instance of the defense.
        width: Hidden numbers of the two networks.
        steps: Their training steps of 128 records.
        rate: Their largest learning rate.
    """

    leaks = frozenset({Leak.TEMPLATE})
    threats = frozenset({Threat.ADAPTIVE, Threat.INSIDER})

    mapping: Literal["ridge", "mlp", "kan"] = "ridge"
    scattered: Annotated[int, Field(ge=0)] = 4000
    width: Annotated[int, Field(ge=8)] = 256
    steps: Annotated[int, Field(ge=1)] = 400
    rate: Annotated[float, Field(gt=0)] = 2e-3

    def fit_estimate(self, attacker: Attacker, embeddings: Tensor) -> None:
        """Fit the regression on the records of all instances."""
        self._device = attacker.device
        insider = attacker.threat is Threat.INSIDER
        instances = [attacker.deployed_instance] if insider else attacker.fresh_instances
        pools = [
            self._with_scattered(replace(pair, images=embeddings), instance, attacker.seed)
            for pair, instance in zip(attacker.pairs(), instances, strict=True)
        ]
        self._map: Callable[[Tensor], Tensor]
        if self.mapping == "ridge":
            records, wanted = (
                torch.cat(side).to(attacker.device)
                for side in ([p.records for p in pools], [p.images for p in pools])
            )
            people = np.concatenate([pool.identities for pool in pools])
            self._map = Ridge(records, wanted, people)
            return
        inputs, outputs = pools[0].records.shape[1], embeddings.shape[1]
        self._map = train(
            NETWORKS[self.mapping](inputs, self.width, outputs),
            pools,
            steps=self.steps,
            rate=self.rate,
            loss=cosine_loss,
            batch=128,
            device=attacker.device,
        )

    def _with_scattered(self, own: Pairs, instance: Defense, seed: int) -> Pairs:
        """Return (records, embeddings) with those of nobody beside them.

        An embedding is that of an own person plus noise of the same length, so that it points
        anywhere, and more often where faces are. It counts as a photo of that person.
        """
        near = torch.randint(len(own.images), (self.scattered,))
        base = own.images[near.to(own.images.device)]
        noise = torch.randn(base.shape).to(base) / base.shape[1] ** 0.5
        made = functional.normalize(base + noise, dim=1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            parts = [instance.protect(part, generator=generator) for part in made.split(BATCH)]
        return Pairs(
            torch.cat([own.records, *(part.to(own.records) for part in parts)]),
            torch.cat([own.images, made]),
            np.concatenate([own.identities, own.identities[near.numpy()]]),
        )

    def estimate(self, records: Tensor) -> Tensor:
        """Return the mapped records."""
        with half_precision(self._device):
            return self._map(records.to(self._device)).float()
