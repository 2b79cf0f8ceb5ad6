"""White-box inversion: search a face whose embedding is the leaked one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from attacks.base import Attack
from attacks.reading import Reading, Regression, clarity, held_out_clarity, straight_through
from attacks.ridge import Ridge
from bench.leaks import Leak
from bench.recognizers.base import BATCH, Recognizer
from bench.registry import ATTACKS
from bench.subspace import FaceSubspace
from bench.threats import Attacker, Right, Threat


@ATTACKS.register("gradient")
@dataclass
class Gradient(Attack):
    """Gradient descent through the recogniser, among faces, towards the leaked embedding.

    A template is its own target. A feature map is first sent through the recogniser's own tail:
    noise on the map that leaves recognition working leaves this target usable, whatever a decoder
    of the map makes of it (`transfer` is enough).

    An attacker that knows the defense has three ways to read a record: as it is; as the clean
    embedding that a ridge regression on its own records predicts; or as what a candidate's
    embedding must become in an instance of its own, which draws anew in every step and passes the
    gradient straight through. It takes the way in which its own people, held out, stand out most
    among each other: whoever knows more can always do what an attacker under `transfer` does.

    Faces are mean + sum of principal components of the attacker's images; loss 1 - cosine, with a
    pull towards the start, the likeness that a ridge regression reads from the embedding; Adam;
    random mirror images and shifts, over which a face must hold, so that it convinces other
    networks too. Recognisers that the suite calls public add 1 - cosine each: what they would make
    of the person is read from the leaked embedding by another ridge regression. Of several restarts
    the one that ends nearest counts. All probes of a batch are searched at once and do not
    influence each other.

    Args:
        components: Principal components, at most the number of attacker images less one.
        steps: Optimiser steps; each is one forward and one backward pass of the recogniser.
        rate: Learning rate, in deviations of a component; it falls to 0 along a cosine.
        prior: Weight of the mean squared way from the start, in deviations.
        shift: Largest shift in pixels, in both directions.
        restarts: Searches for each record; all but the first start a deviation beside the usual.
    """

    leaks = frozenset({Leak.FEATURES, Leak.TEMPLATE})
    threats = frozenset({Threat.TRANSFER, Threat.ADAPTIVE, Threat.INSIDER})

    components: Annotated[int, Field(ge=1)] = 600
    steps: Annotated[int, Field(ge=0)] = 60
    rate: Annotated[float, Field(gt=0)] = 0.15
    prior: Annotated[float, Field(ge=0)] = 1.5
    shift: Annotated[int, Field(ge=0, le=16)] = 2
    restarts: Annotated[int, Field(ge=1)] = 1

    def fit(self, attacker: Attacker) -> None:
        """Learn the faces, a starting point from embeddings, and how to undo the defense."""
        self.device = attacker.device
        self.recognizer = attacker.recognizer
        self.leak = attacker.leak
        self.fit_faces(attacker.images)
        embeddings = self.recognizer.leaking(Leak.TEMPLATE, attacker.images)
        self.start = Ridge(embeddings, self.coordinates(attacker.images), attacker.identities)
        self.others = [OtherView(one, attacker, embeddings) for one in attacker.public]
        self.repair: Reading | None = None
        self.encode: Reading | None = None
        if attacker.threat is not Threat.TRANSFER:
            self._learn_to_read(attacker, embeddings)

    def _learn_to_read(self, attacker: Attacker, clean: Tensor) -> None:
        """Choose how to read records, by how far held-out people of the attacker's stand out."""
        seen = [self._observed(pair.records) for pair in attacker.pairs()]
        people = attacker.identities
        alike = seen[0].shape == clean.shape
        change = self.leak is Leak.FEATURES
        regression = Regression(seen, clean, people, change=change)
        if len(set(people.tolist())) == 1 or not alike:
            self.repair = regression
            return
        plain = sum(clarity(part, clean, people) for part in seen) / len(seen)
        repaired = held_out_clarity(seen, clean, people, change=change)
        if repaired > plain:
            self.repair = regression
        # A gradient goes straight through only where records are near their embeddings; and what
        # two instances make alike is no secret.
        inside = attacker.may(Right.DEPLOYED_INSTANCE)
        if self.leak is Leak.TEMPLATE and 2 * plain > repaired and (inside or len(seen) > 1):
            own = attacker.deployed_instance if inside else attacker.fresh_instances[-1]
            encode = partial(straight_through, own)
            if clarity(seen[0], encode(clean), people) > max(plain, repaired):
                self.encode = encode

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
        target = functional.normalize(self.target(records), dim=1)
        start = self.start(target).clamp(-3, 3)
        wanted = target if self.encode is None else self._observed(records)
        expected = [other.expected(target) for other in self.others]
        best, least = start, torch.full((len(start),), torch.inf, device=start.device)
        for number in range(self.restarts):
            beside = start + torch.randn_like(start) if number else start
            found, distance = self._search(beside, start, wanted, expected)
            nearer = distance < least
            best = torch.where(nearer[:, None], found, best)
            least = torch.where(nearer, distance, least)
        with torch.no_grad():
            return self.faces(best)

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

    def _search(
        self, start: Tensor, near: Tensor, wanted: Tensor, expected: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the coordinates (N, K) found, and their last losses (N,).

        Args:
            start: (N, K) coordinates to start at.
            near: (N, K) coordinates that the prior pulls to.
            wanted: (N, D) what the faces' embeddings must be, or become.
            expected: What other recognisers must make of them, each (N, E).
        """
        z = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([z], lr=self.rate)
        losses = torch.zeros(len(z), device=z.device)
        aims = list(zip(*(each.split(BATCH) for each in (near, wanted, *expected)), strict=True))
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = self.rate * falling(step / self.steps)
            optimizer.zero_grad()
            move = random_move(self.shift)
            parts = []
            # Batches that fit in the processor's cache are faster than all probes at once.
            with torch.enable_grad():
                for part, (usual, aim, *views) in zip(z.split(BATCH), aims, strict=True):
                    faces = move(self.faces(part))
                    found = self.recognizer.embed(faces)
                    if self.encode is not None:
                        found = self.encode(found)
                    distance = 1 - functional.cosine_similarity(found, aim)
                    loss = distance + self.prior * (part - usual).square().mean(1)
                    for other, view in zip(self.others, views, strict=True):
                        loss = loss + other.distance(faces, view)
                    # A sum over probes: each has its own gradient, whatever else is in the batch.
                    loss.sum().backward()
                    parts.append(loss.detach())
            losses = torch.cat(parts)
            optimizer.step()
        return z.detach(), losses

    def _observed(self, records: Tensor) -> Tensor:
        """Return what the attacker reads a record as: an embedding, or a code."""
        if self.leak is Leak.TEMPLATE:
            return records.to(self.device)
        with torch.no_grad():
            parts = [part.to(self.device) for part in records.split(32)]
            return torch.cat([self.recognizer.tail(part) for part in parts])


class OtherView:
    """Another recogniser, and what it would make of the person that an embedding shows.

    Args:
        recognizer: The other recogniser.
        attacker: Whose own people show how the two go together.
        embeddings: (N, D) embeddings of the attacker's images under the first recogniser.
    """

    def __init__(self, recognizer: Recognizer, attacker: Attacker, embeddings: Tensor) -> None:
        self._recognizer = recognizer
        own = recognizer.leaking(Leak.TEMPLATE, attacker.images)
        self._mean = own.mean(0)
        self.expected = Ridge(embeddings, own - self._mean, attacker.identities)

    def distance(self, images: Tensor, expected: Tensor) -> Tensor:
        """Return 1 - cosine (N,) between what it makes of images and what is expected."""
        found = self._recognizer.embed(images) - self._mean
        return 1 - functional.cosine_similarity(found, expected)


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
