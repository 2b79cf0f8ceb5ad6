"""White-box inversion: search a face whose embedding is the leaked one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from attacks.base import Attack
from attacks.ridge import Ridge
from bench.leaks import Leak
from bench.recognizers.base import BATCH
from bench.registry import ATTACKS
from bench.subspace import FaceSubspace
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
    pull towards the mean face; Adam; random mirror images and shifts, over which a face must hold,
    so that it convinces other networks too. All probes of a batch are searched at once and do not
    influence each other.

    Args:
        components: Principal components, at most the number of attacker images less one.
        steps: Optimiser steps; each is one forward and one backward pass of the recogniser.
        rate: Learning rate, in deviations of a component; it falls to 0 along a cosine.
        prior: Weight of the mean squared component, in deviations.
        shift: Largest shift in pixels, in both directions.
    """

    leaks = frozenset({Leak.FEATURES, Leak.TEMPLATE})
    threats = frozenset({Threat.TRANSFER, Threat.ADAPTIVE, Threat.INSIDER})

    components: Annotated[int, Field(ge=1)] = 300
    steps: Annotated[int, Field(ge=0)] = 60
    rate: Annotated[float, Field(gt=0)] = 0.15
    prior: Annotated[float, Field(ge=0)] = 1.5
    shift: Annotated[int, Field(ge=0, le=16)] = 2

    def fit(self, attacker: Attacker) -> None:
        """Learn the faces, a starting point from embeddings, and how to undo the defense."""
        self.device = attacker.device
        self.recognizer = attacker.recognizer
        self.leak = attacker.leak
        self.fit_faces(attacker.images)
        embeddings = self.recognizer.leaking(Leak.TEMPLATE, attacker.images)
        self.start = Ridge(embeddings, self.coordinates(attacker.images))
        self.repair: Callable[[Tensor], Tensor] | None = None
        if attacker.threat is not Threat.TRANSFER:
            seen = [self._observed(pair.records) for pair in attacker.pairs()]
            observed, clean = torch.cat(seen), embeddings.repeat(len(seen), 1)
            # What a tail makes of a protected map is near the clean embedding already: with few own
            # images only the change is regressed, so that knowing the defense does not hurt.
            near = self.leak is Leak.FEATURES
            change = Ridge(observed, clean - observed if near else clean)
            self.repair = (lambda x: x + change(x)) if near else change

    def fit_faces(self, images: Tensor) -> None:
        """Learn the space of faces to search in."""
        self.space = FaceSubspace(images, self.components)

    def faces(self, z: Tensor) -> Tensor:
        """Return the faces (N, 3, 112, 112) in [0, 1] at coordinates (N, K)."""
        return self.space.faces(z)

    def coordinates(self, images: Tensor) -> Tensor:
        """Return coordinates (N, K), of about unit deviation, of faces near images."""
        return self.space.coordinates(images)

    def reconstruct(self, records: Tensor) -> Tensor:
        """Return the faces found."""
        return self._search(functional.normalize(self.target(records), dim=1))

    def target(self, records: Tensor) -> Tensor:
        """Return the embeddings (N, D) that the records are taken to be of.

        Raises:
            ValueError: The records are no embeddings, and nothing is known of the defense.
        """
        target = self._observed(records)
        if self.repair is not None:
            target = self.repair(target)
        if target.shape[1] != self.recognizer.embedding_size:
            raise ValueError(
                f"records of length {target.shape[1]} are no embeddings of "
                f"{self.recognizer.embedding_size} numbers, and nothing is known of the defense"
            )
        return target

    def _search(self, target: Tensor) -> Tensor:
        z = self.start(target).clamp(-3, 3).requires_grad_()
        optimizer = torch.optim.Adam([z], lr=self.rate)
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = self.rate * falling(step / self.steps)
            optimizer.zero_grad()
            move = random_move(self.shift)
            # Batches that fit in the processor's cache are faster than all probes at once.
            with torch.enable_grad():
                for part, wanted in zip(z.split(BATCH), target.split(BATCH), strict=True):
                    found = self.recognizer.embed(move(self.faces(part)))
                    distance = 1 - functional.cosine_similarity(found, wanted)
                    # A sum over probes: each has its own gradient, whatever else is in the batch.
                    (distance + self.prior * part.square().mean(1)).sum().backward()
            optimizer.step()
        with torch.no_grad():
            return self.faces(z)

    def _observed(self, records: Tensor) -> Tensor:
        """Return what the attacker reads a record as: an embedding, or a code."""
        if self.leak is Leak.TEMPLATE:
            return records.to(self.device)
        with torch.no_grad():
            parts = [part.to(self.device) for part in records.split(32)]
            return torch.cat([self.recognizer.tail(part) for part in parts])


def falling(progress: float) -> float:
    """Return a cosine from 1 at progress 0 to 0 at progress 1."""
    return (1 + math.cos(math.pi * progress)) / 2


def random_move(shift: int) -> Callable[[Tensor], Tensor]:
    """Return a function that shifts images by up to some pixels and perhaps mirrors them."""
    down, right = (int(torch.randint(-shift, shift + 1, ())) for _ in range(2))
    mirrored = bool(torch.rand(()) < 0.5)

    def move(images: Tensor) -> Tensor:
        images = images.roll((down, right), (2, 3))
        return images.flip(3) if mirrored else images

    return move
