"""AdvFace: adversarial noise on the stored feature map."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from bench.leaks import Leak
from bench.metrics import verification_accuracy
from bench.networks import MapDecoder, ResidualDecoder, half_precision
from bench.registry import DEFENSES
from bench.threats import Pairs
from bench.training import train
from defenses.adversarial_noise import AdversarialNoise
from defenses.base import Defender, draw_like

Shadow = MapDecoder | ResidualDecoder

SHADOWS: dict[str, tuple[type[Shadow], ...]] = {
    "unet": (MapDecoder,),
    "residual": (ResidualDecoder,),
    "both": (MapDecoder, ResidualDecoder),
}


@DEFENSES.register("advface")
@dataclass
class AdvFace(AdversarialNoise):
    """Adversarial latent noise against a shadow decoder (Wang et al., CVPR 2023, arXiv 2305.05391).

    The server trains a shadow model that turns maps into images, as an attacker would, and stores
    each map with the noise, inside a ball, that spoils the shadow's image most. The recogniser is
    unchanged; a fresh probe carries no noise.

    Leaks: features. Secrets: the shadow model and the random start. There is no public code and the
    text leaves the objective open, so three readings are offered; eps, steps and step size are not
    the paper's (it gives none that could be checked). Known weaknesses: an attacker that trains on
    records of shadows of its own undoes the noise (SSIM .48 -> .95 on LFW); what still matches can
    be inverted through the recogniser's own tail; and the image whose own map is nearest to the
    record shows the face, to an attacker that neither trains nor knows of the noise.

    Args:
        eps: Size of the noise, in deviations of its channel over the defender's images: of every
            number ("linf"), or root mean square over a record ("l2").
        norm: The ball that holds the noise.
        reading: "direct" maximises |S(z + d) - S(z)|; "shadow-feature" (the paper's Figure 2, taken
            literally) maximises |S(F(S(z)) + d) - S(z)| and stores z + d; "cyclic" (MinusFace's
            words) maximises |S(F(S(z + d))) - S(z)|. S is the shadow, F the recogniser's head.
        random_start: Whether the noise starts as random noise of a tenth of its size. Without it
            the noise is a function of the map; "direct" has no gradient at zero noise and needs it.
        steps: Steps, each of 2.5 eps / steps: along the gradient's signs ("linf"), or along the
            gradient ("l2").
        shadow: Architecture of the shadow model: a small U-Net, a residual network that keeps the
            map's resolution, or both, whose distances are then added. Noise meets an attack network
            that it was not made for wherever the attack's architecture is another.
        shadow_width: Channels of the shadow model.
        shadow_steps: Training steps of the shadow model, 32 images each.
        accuracy_drop: If given, eps is not used: the largest eps is searched at which verification
            accuracy on the defender's own images, over as many pairs of one person as of two,
            falls by no more than this. Utility rows carry it as a flag.
    """

    leaks = frozenset({Leak.FEATURES})
    weakest: ClassVar[Mapping[str, Any]] = {"eps": 0}
    strongest: ClassVar[Mapping[str, Any]] = {"eps": 1e3}

    eps: Annotated[float, Field(ge=0)] = 0.6
    norm: Literal["linf", "l2"] = "linf"
    reading: Literal["direct", "shadow-feature", "cyclic"] = "direct"
    random_start: bool = True
    steps: Annotated[int, Field(ge=1)] = 10
    shadow: Literal["unet", "residual", "both"] = "unet"
    shadow_width: Annotated[int, Field(ge=4)] = 16
    shadow_steps: Annotated[int, Field(ge=1)] = 150
    accuracy_drop: Annotated[float, Field(gt=0, lt=1)] | None = None

    def learn(self, world: Defender, maps: Tensor) -> None:
        """Train the shadow models on the defender's images, and find eps if a drop is wanted."""
        if self.reading == "direct" and not self.random_start:
            raise ValueError('advface needs random_start = true for the reading "direct"')
        self.device = world.device
        self.shadows = [
            train(
                kind(maps.shape[1:], self.shadow_width, self.mean, self.deviation),
                [Pairs(maps, world.images, world.identities)],
                steps=self.shadow_steps,
                rate=2e-3,
                device=world.device,
            )
            for kind in SHADOWS[self.shadow]
        ]
        self.settled = self.eps
        if self.accuracy_drop is not None:
            self.settled = self._calibrated(world, maps, self.accuracy_drop)

    def fresh(self) -> Self:
        """Return an instance without shadows, with the eps that was found."""
        return dataclasses.replace(self, eps=self.settled, accuracy_drop=None)

    @property
    def found(self) -> dict[str, float]:
        """The eps that calibration found."""
        return {} if self.accuracy_drop is None else {"eps": self.settled}

    def noise(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the noise that spoils the shadows' images most, (N, C, H, W)."""
        return self._noise(x, self.settled, generator)

    def _noise(self, x: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        """Search the noise in deviations of its channel: all numbers are alike there."""
        # The layout of gradients: sums of tensors of two layouts take several times as long.
        x = x.contiguous(memory_format=torch.channels_last)
        noise = torch.zeros_like(x)
        if self.random_start:
            noise.copy_(draw_like(x, generator, "uniform").mul_(0.2 * eps).sub_(0.1 * eps))
        objectives = [self._objective(x, shadow) for shadow in self.shadows]
        for _ in range(self.steps):
            noise = noise.detach().requires_grad_()
            with torch.enable_grad():
                distances = [
                    functional.l1_loss(spoiled(noise), target, reduction="sum")
                    for spoiled, target in objectives
                ]
                distance = torch.stack(distances).sum()
                (gradient,) = torch.autograd.grad(distance, noise)
            noise = self._step(noise.detach(), gradient, eps)
        return noise.mul_(self.deviation.reshape(-1, 1, 1))

    def _step(self, noise: Tensor, gradient: Tensor, eps: float) -> Tensor:
        """Go one step along the gradient and back into the ball; both are used up."""
        size = 2.5 * eps / self.steps
        if self.norm == "linf":
            return noise.add_(gradient.sign_(), alpha=size).clamp_(-eps, eps)
        noise.addcmul_(gradient, size / _rms(gradient).clamp_min(1e-30))
        return noise.mul_((eps / _rms(noise).clamp_min(1e-12)).clamp(max=1))

    def _objective(self, z: Tensor, shadow: Shadow) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Return a shadow's image as a function of the noise, and the image to depart from.

        The noise joins the map where the shadow has divided it by the same deviations.
        """
        # 1, but 0 in channels that are the same everywhere: no noise is stored there.
        share = self.deviation.reshape(-1, 1, 1) / shadow.standardize.deviation

        def image(standard: Tensor) -> Tensor:
            with half_precision(self.device):
                return shadow.decode(standard)

        def spoiled(noise: Tensor) -> Tensor:
            made = image(torch.addcmul(start, noise, share))
            if self.reading == "cyclic":
                made = image(shadow.standardize(self.recognizer.head(made)))
            return made

        with torch.no_grad():
            start = shadow.standardize(z)
            target = image(start)
            if self.reading == "shadow-feature":
                start = shadow.standardize(self.recognizer.head(target))
        return spoiled, target

    def _calibrated(self, world: Defender, maps: Tensor, drop: float) -> float:
        """Return the largest eps, to 1/64, whose accuracy stays within the wanted drop."""
        clean = self._accuracy(world, maps, 0)
        low, high = 0.0, 4.0
        while high - low > 1 / 64:
            middle = (low + high) / 2
            if self._accuracy(world, maps, middle) >= clean - drop:
                low = middle
            else:
                high = middle
        return low

    def _accuracy(self, world: Defender, maps: Tensor, eps: float) -> float:
        """Return the accuracy of stored maps against fresh ones."""
        generator = world.generator()
        records = torch.cat([z + self._noise(z, eps, generator) for z in maps.split(32)])
        with torch.no_grad():
            stored = torch.cat([self.recognizer.tail(z) for z in records.split(32)])
            fresh = torch.cat([self.recognizer.tail(z) for z in maps.split(32)])
        left, right, same = balanced_pairs(world.identities, world.seed)
        scores = (stored @ fresh.T).cpu().numpy()[left, right]
        folds = np.arange(len(scores)) % 10
        return float(verification_accuracy(scores, same, folds).mean)


def balanced_pairs(
    identities: NDArray[np.str_], seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
    """Return pairs of photos by place, and whether they show one person: half of them do.

    As in the official pairs of LFW. Of all pairs of hundreds of photos so few show one person that
    whoever accepts nobody is right in 99 of 100 cases.

    Args:
        identities: (N,) whom the photos show.
        seed: Draws among the pairs of which there are too many.

    Raises:
        ValueError: There are no pairs of one person, or none of two.
    """
    left, right = np.triu_indices(len(identities), k=1)
    same = identities[left] == identities[right]
    kinds = [np.flatnonzero(kind) for kind in (same, ~same)]
    count = min(len(kind) for kind in kinds)
    if count == 0:
        raise ValueError("accuracy_drop needs two photos of one person, and photos of two people")
    random = np.random.default_rng(seed)
    chosen = [random.choice(kind, count, replace=False) for kind in kinds]
    kept = np.sort(np.concatenate(chosen))
    return left[kept], right[kept], same[kept]


def _rms(maps: Tensor) -> Tensor:
    """Return the root mean square (N, 1, 1, 1) of maps."""
    rows = maps.permute(0, 2, 3, 1).flatten(1)  # a view: channels come last in memory
    return (torch.linalg.vector_norm(rows, dim=1) / rows.shape[1] ** 0.5).reshape(-1, 1, 1, 1)
