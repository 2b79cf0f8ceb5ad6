"""White-box inversion: search a face whose embedding is the leaked one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from attacks.base import Attack
from attacks.ridge import Ridge
from bench.leaks import Leak
from bench.registry import ATTACKS
from bench.threats import Attacker, Threat


@ATTACKS.register("gradient")
@dataclass
class Gradient(Attack):
    """Gradient descent through the recogniser, among faces, towards the leaked embedding.

    A template is its own target. A feature map is first sent through the recogniser's own tail:
    noise on the map that leaves recognition working leaves this target usable, whatever a decoder
    of the map makes of it (`transfer` is enough). An attacker that knows the defense regresses the
    clean embedding from its own records first.

    Faces are mean + sum of principal components of the attacker's images; loss 1 - cosine, with a
    pull towards the mean face; Adam; random mirror images. All probes of a batch are searched at
    once and do not influence each other.

    Args:
        components: Principal components, at most the number of attacker images less one.
        steps: Optimiser steps; each is one forward and one backward pass of the recogniser.
        rate: Learning rate, in deviations of a component.
        prior: Weight of the mean squared component, in deviations.
    """

    leaks = frozenset({Leak.FEATURES, Leak.TEMPLATE})
    threats = frozenset({Threat.TRANSFER, Threat.ADAPTIVE, Threat.INSIDER})

    components: Annotated[int, Field(ge=1)] = 300
    steps: Annotated[int, Field(ge=0)] = 60
    rate: Annotated[float, Field(gt=0)] = 0.15
    prior: Annotated[float, Field(ge=0)] = 0.1

    def fit(self, attacker: Attacker) -> None:
        """Learn the subspace, a starting point from embeddings, and how to undo the defense."""
        self.device = attacker.device
        self.recognizer = attacker.recognizer
        self.leak = attacker.leak
        self.mean, self.basis = face_subspace(attacker.images, self.components)
        embeddings = self.recognizer.leaking(Leak.TEMPLATE, attacker.images)
        coefficients = (attacker.images.flatten(1) - self.mean) @ self._inverse_basis()
        self.start = Ridge(embeddings, coefficients)
        self.repair = None
        if attacker.threat is not Threat.TRANSFER:
            seen = [self._observed(pair.records) for pair in attacker.pairs()]
            self.repair = Ridge(torch.cat(seen), embeddings.repeat(len(seen), 1))

    def reconstruct(self, records: Tensor) -> Tensor:
        """Return the faces found."""
        target = self._observed(records)
        if self.repair is not None:
            target = self.repair(target)
        if target.shape[1] != self.recognizer.embedding_size:
            raise ValueError(
                f"records of length {target.shape[1]} are no embeddings of "
                f"{self.recognizer.embedding_size} numbers, and nothing is known of the defense"
            )
        return self._search(functional.normalize(target, dim=1))

    def _search(self, target: Tensor) -> Tensor:
        z = self.start(target).clamp(-3, 3).requires_grad_()
        optimizer = torch.optim.Adam([z], lr=self.rate)
        for _ in range(self.steps):
            with torch.enable_grad():
                faces = self._faces(z)
                if torch.rand(()) < 0.5:
                    faces = faces.flip(3)
                found = self.recognizer.embed(faces)
                distance = 1 - functional.cosine_similarity(found, target)
                # A sum over probes: each has its own gradient, whatever else is in the batch.
                loss = (distance + self.prior * z.square().mean(1)).sum()
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
        return self._faces(z.detach())

    def _faces(self, z: Tensor) -> Tensor:
        return (self.mean + z @ self.basis).clamp(0, 1).unflatten(1, (3, 112, 112))

    def _inverse_basis(self) -> Tensor:
        """Return the (pixels, components) matrix that takes centered images to components."""
        return self.basis.T / self.basis.square().sum(1)

    def _observed(self, records: Tensor) -> Tensor:
        """Return what the attacker reads a record as: an embedding, or a code."""
        if self.leak is Leak.TEMPLATE:
            return records.to(self.device)
        with torch.no_grad():
            parts = [part.to(self.device) for part in records.split(32)]
            return torch.cat([self.recognizer.tail(part) for part in parts])


def face_subspace(images: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Return the mean face (D,) and principal components (K, D), each of length its deviation.

    Args:
        images: (N, 3, 112, 112); D = 3 * 112 * 112.
        components: Largest K; at most N - 1.
    """
    flat = images.flatten(1)
    mean = flat.mean(0)
    centered = flat - mean
    # With fewer images than pixels the small Gram matrix has all there is to know.
    values, vectors = torch.linalg.eigh((centered @ centered.T).double())
    count = min(components, len(flat) - 1)
    values, vectors = values[-count:].flip(0), vectors[:, -count:].flip(1)
    basis = (vectors.T.float() @ centered) / (len(flat) - 1) ** 0.5
    return mean, basis
