"""White-box inversion in the latent space of a generator of faces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from attacks.gradient import Gradient
from attacks.losses import mixture
from bench.leaks import Leak
from bench.networks import TemplateDecoder, half_precision
from bench.registry import ATTACKS
from bench.subspace import FaceSubspace
from bench.threats import Attacker, Pairs, Threat
from bench.training import train


@ATTACKS.register("latent")
@dataclass
class Latent(Gradient):
    """Gradient descent through the recogniser, in the latent space of a generator of faces.

    The generator is trained on the attacker's own images: a decoder of clean embeddings with pixel
    and SSIM losses, and the principal components of what it leaves out of those images. The search
    starts at the face that the decoder paints of the target, where `gradient` starts at that of a
    ridge regression, and leaves this likeness only as far as the recogniser asks for.

    Args:
        components: Principal components beside the generator.
        steps: Optimiser steps; each is one forward and one backward pass of the recogniser.
        rate: Learning rate, in deviations of a coordinate; it falls to 0 along a cosine.
        prior: Weight of the mean squared way from the start, in deviations.
        shift: Largest shift in pixels, in both directions.
        restarts: Searches for each record; all but the first start a deviation beside the usual.
        generator_width: Channels of the decoder at 28x28.
        generator_steps: Its training steps of 32 images each.
    """

    leaks = frozenset({Leak.FEATURES, Leak.TEMPLATE})
    threats = frozenset({Threat.TRANSFER, Threat.ADAPTIVE, Threat.INSIDER})

    generator_width: Annotated[int, Field(ge=8)] = 32
    generator_steps: Annotated[int, Field(ge=1)] = 400

    def fit(self, attacker: Attacker) -> None:
        """Train the generator, then learn what `gradient` learns."""
        embeddings = attacker.recognizer.leaking(Leak.TEMPLATE, attacker.images)
        embeddings = functional.normalize(embeddings, dim=1)
        deviation, self._mean = torch.std_mean(embeddings, dim=0)
        self._deviation = deviation.mean()
        latents = self._latents(embeddings)
        self._generator = train(
            TemplateDecoder(latents.shape[1], self.generator_width),
            [Pairs(latents, attacker.images, attacker.identities)],
            steps=self.generator_steps,
            rate=2e-3,
            loss=mixture({"pixel": 1.0, "ssim": 1.0}, attacker),
            device=attacker.device,
        )
        super().fit(attacker)

    def fit_faces(self, images: Tensor) -> None:
        """Learn the components of what the generator leaves out."""
        self.space = FaceSubspace(images - self._painted_like(images), self.components)

    def faces(self, z: Tensor) -> Tensor:
        """Return the faces (N, 3, 112, 112) in [0, 1] at coordinates (N, D + K)."""
        latents, beside = z.tensor_split([len(self._mean)], dim=1)
        left_out = (self.space.mean + beside @ self.space.basis).unflatten(1, (3, 112, 112))
        return (self._painted(latents) + left_out).clamp(0, 1)

    def coordinates(self, images: Tensor) -> Tensor:
        """Return coordinates (N, D + K) of faces near images."""
        beside = self.space.coordinates(images - self._painted_like(images))
        return torch.cat([self._latents_of(images), beside], 1)

    def _painted_like(self, images: Tensor) -> Tensor:
        """Return what the generator paints of the embeddings of images."""
        with torch.no_grad():
            parts = [self._painted(part) for part in self._latents_of(images).split(64)]
        return torch.cat(parts)

    def _painted(self, latents: Tensor) -> Tensor:
        with half_precision(latents.device.type):
            images: Tensor = self._generator(latents)
        return images

    def _latents_of(self, images: Tensor) -> Tensor:
        embeddings = self.recognizer.leaking(Leak.TEMPLATE, images)
        return self._latents(functional.normalize(embeddings, dim=1))

    def _latents(self, embeddings: Tensor) -> Tensor:
        """Return embeddings (N, D), of unit length, as numbers of about unit deviation."""
        return (embeddings - self._mean) / self._deviation
