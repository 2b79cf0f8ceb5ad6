"""Crafter: each map is changed until its inversion looks like any face."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bench.leaks import Leak
from bench.registry import DEFENSES
from bench.subspace import FaceSubspace
from defenses.adversarial_noise import AdversarialNoise
from defenses.base import Defender

RIDGE = 1e-3
"""Weight of the prior in the inversion, against a mean square over the map in deviations."""

RELAXED = 0.5
"""Share of each of Newton's steps: away from the mean face the Hessian may be twice as large."""


@DEFENSES.register("crafter")
@dataclass
class Crafter(AdversarialNoise):
    """Maps crafted against an inversion with a prior (Wang et al., NDSS 2024, arXiv 2401.07205).

    The attacker is taken to search the face G(z*) whose map is nearest to the record, among the
    faces G(z) of a prior. The record is the map at which the distribution of that face is nearest
    to the prior, less `beta` times how far the map has moved. The gradient of z* with respect to
    the record is implicit: the inverse of the inversion's Hessian times the Jacobian of the head.

    Leaks: features. Secrets: none but the faces of the prior. Known weakness: the paper's own three
    adaptive attackers; whoever has crafted maps of own people trains a decoder on them, as against
    AdvFace. Source: the paper's abstract and facts of its repository (MIT). There G is a WGAN and
    its critic measures the distance, z* is found by 600 steps, the inverse takes 120 terms of a
    Neumann series, and Adam moves the map for 450 epochs. Here G is the span of eigenfaces of the
    defender's images with a normal prior, to which a single face has the squared Wasserstein
    distance |z|^2 but for a constant; the inverse is that at the mean face, and makes both searches
    Newton's, so that a few steps do; face and map are refined together.

    Args:
        beta: Weight of the mean squared change of the map, in deviations of its channels, against
            the mean squared coordinate of the face; less protects more.
        components: Eigenfaces, at most the number of the defender's images less one.
        steps: Refinements of face and map; each takes a forward and a backward pass of the head,
            and two forward passes along the change.
    """

    leaks = frozenset({Leak.FEATURES})
    weakest: ClassVar[Mapping[str, Any]] = {"beta": 1e9}

    beta: Annotated[float, Field(gt=0)] = 0.1
    components: Annotated[int, Field(ge=1)] = 100
    steps: Annotated[int, Field(ge=0)] = 8

    def learn(self, world: Defender, maps: Tensor) -> None:
        """Find the eigenfaces, and the Hessian of the inversion at the mean face."""
        self.space = FaceSubspace(world.images, self.components)
        alive = self.deviation > 0.01 * self.deviation.mean()
        weight = torch.where(alive, self.deviation, torch.inf).square().reciprocal()
        self.weight = weight.reshape(-1, 1, 1) / maps[0].numel()
        count = len(self.space)
        eye = torch.eye(count, device=maps.device)
        with torch.no_grad():
            moved = torch.cat(
                [
                    (self._along(torch.zeros_like(part), part) * self.weight.sqrt()).flatten(1)
                    for part in eye.split(32)
                ]
            )
        gram = moved @ moved.T
        self.inverse = torch.linalg.inv(gram + RIDGE * eye)
        # How the map's change answers to the face that it makes, were the head linear.
        answer = self.inverse @ self.inverse @ gram / (self.beta * count)
        self.damping = torch.linalg.inv(eye + answer)

    def noise(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the change of the maps, (N, C, H, W)."""
        # The layout of the head's maps: sums of tensors of two layouts take several times as long.
        x = x.contiguous(memory_format=torch.channels_last)
        face = torch.zeros(len(x), len(self.space), device=x.device)
        change, noise = torch.zeros_like(face), torch.zeros_like(x)
        for _ in range(self.steps):
            slope = self._inversion(face, x + noise)
            face = face - RELAXED * slope @ self.inverse
            wanted = face @ self.inverse / (self.beta * len(self.space))
            change = change + RELAXED * (wanted - change) @ self.damping
            noise = -self._along(face, change) * (self.weight > 0)
        return noise

    def _inversion(self, face: Tensor, maps: Tensor) -> Tensor:
        """Return the slope of the inversion's loss at faces (N, K)."""
        with torch.enable_grad():
            at = face.detach().requires_grad_()
            made = self.recognizer.head(self.space.faces(at))
            pull = self.weight * (made.detach() - maps)
            return torch.autograd.grad(made, at, pull)[0] + RIDGE * face

    def _along(self, face: Tensor, direction: Tensor) -> Tensor:
        """Return the Jacobian's product (N, C, H, W) with (N, K), from a difference of two maps."""
        length = direction.norm(dim=1, keepdim=True)
        step = direction / length.clamp_min(1e-12)
        ahead, here = (self.recognizer.head(self.space.faces(z)) for z in (face + step, face))
        return (ahead - here) * length.reshape(-1, 1, 1, 1)
