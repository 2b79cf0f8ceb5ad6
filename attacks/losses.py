"""Losses between images made and images wanted, by name, and mixtures of them.

What a decoder is trained for decides what it gives away: with a pixel loss it looks like the
person's photo, with an identity loss it is accepted as the person (Otroshi Shahreza and Marcel,
ICIP 2022; Mai et al., TPAMI 2019). No loss looks through a judge that scores the attack.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Annotated, Literal

import torch
from annotated_types import MinLen
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from bench.metrics.image import ssim
from bench.threats import Attacker
from bench.training import Loss

Name = Literal["pixel", "ssim", "perceptual", "identity", "adversarial"]

Weights = Annotated[dict[Name, Annotated[float, Field(gt=0)]], MinLen(1)]
"""Weight of each loss in a mixture."""


def mixture(weights: Weights, attacker: Attacker) -> Loss:
    """Return a weighted sum of losses of (made, wanted) images (N, 3, 112, 112) in [0, 1].

    - pixel: mean absolute difference.
    - ssim: 1 - SSIM.
    - perceptual: mean absolute difference of the recogniser's maps, in deviations of a channel.
    - identity: 1 - cosine of the recogniser's embeddings.
    - adversarial: hinge loss of a critic that learns, one step at each call, to tell the images
      made from those wanted. Without gradients it is 0: it moves, so that it cannot compare
      weights of different times.

    Args:
        weights: Weight of each loss.
        attacker: Whose recogniser, the one under attack, to look through.

    Raises:
        ThreatViolation: A loss needs the recogniser, and the threat does not grant it.
    """
    terms = [(weight, _loss(name, attacker)) for name, weight in weights.items()]

    def loss(made: Tensor, wanted: Tensor) -> Tensor:
        return torch.stack([weight * term(made, wanted) for weight, term in terms]).sum()

    return loss


def _loss(name: Name, attacker: Attacker) -> Loss:
    match name:
        case "pixel":
            return functional.l1_loss
        case "ssim":
            return lambda made, wanted: 1 - ssim(made, wanted, data_range=1).mean()
        case "perceptual":
            return partial(_perceptual, attacker.recognizer.head)
        case "identity":
            return partial(_identity, attacker.recognizer.embed)
        case "adversarial":
            return Critic().to(attacker.device).loss


def _perceptual(head: Callable[[Tensor], Tensor], made: Tensor, wanted: Tensor) -> Tensor:
    with torch.no_grad():
        target = head(wanted)
        scale = target.std((0, 2, 3), keepdim=True).clamp_min(1e-6)
    return functional.l1_loss(head(made) / scale, target / scale)


def _identity(embed: Callable[[Tensor], Tensor], made: Tensor, wanted: Tensor) -> Tensor:
    with torch.no_grad():
        target = embed(wanted)
    return 1 - functional.cosine_similarity(embed(made), target).mean()


class Critic(nn.Module):
    """Strided convolutions from an image to how real it looks, of bounded slope."""

    def __init__(self, width: int = 16, rate: float = 4e-4) -> None:
        super().__init__()
        sizes = [3, width, 2 * width, 4 * width, 4 * width]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers.append(spectral_norm(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)))
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(sizes[-1], 1, 3, padding=1)))
        self._optimizer = torch.optim.Adam(self.parameters(), lr=rate, betas=(0.5, 0.9))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, 112, 112) to scores (N, 1, 7, 7) of their patches."""
        scores: Tensor = self.layers(2 * images - 1)
        return scores

    def loss(self, made: Tensor, wanted: Tensor) -> Tensor:
        """Learn one step, then return the loss of who made the images; 0 without gradients."""
        if not torch.is_grad_enabled():
            return made.new_zeros(())
        false = functional.relu(1 + self(made.detach())).mean()
        true = functional.relu(1 - self(wanted)).mean()
        self._optimizer.zero_grad()
        (false + true).backward()
        self._optimizer.step()
        return -self(made).mean()
