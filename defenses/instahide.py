"""InstaHide: images mixed with others, with random signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.adapted import Adapted
from defenses.base import draw_like


@DEFENSES.register("instahide")
@dataclass
class InstaHide(Adapted):
    """InstaHide (Huang et al., ICML 2020): a mixture of k images, then a random sign per pixel.

    Leaks: image. A record is the sum of the image and k - 1 images of the defender's, all in
    [-1, 1], with random shares of which none is above a limit, times random signs. Secrets: the
    images mixed in, and per record the shares and signs. The server reads magnitudes, since the
    signs are noise to it. Known weakness: magnitudes give the mixture away, and images mixed in
    again and again can be solved for (Carlini et al., S&P 2021).

    Args:
        images: k, the images in a mixture; 2 in the comparisons of the PPFR papers.
        largest: Largest share; .65 in the authors' code.
    """

    leaks = frozenset({Leak.IMAGE})

    images: Annotated[int, Field(ge=2, le=6)] = 2
    largest: Annotated[float, Field(gt=0.5, le=1)] = 0.65

    @property
    def plain_probes(self) -> bool:
        """A record has the shape of an image, so what is compared is always a record."""
        return False

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return (N, 3, 112, 112) mixtures in [-1, 1]."""
        pool = self._world.images
        shares = self._shares(len(x), generator).to(x.device)
        mixture = shares[:, 0] * (2 * x - 1)
        for number in range(1, self.images):
            others = torch.randint(len(pool), (len(x),), generator=generator)
            mixture = mixture + shares[:, number] * (2 * pool[others] - 1)
        return mixture * draw_like(x, generator, "sign")

    def server_input(self, records: Tensor) -> Tensor:
        """Return the magnitudes."""
        return records.abs()

    def _shares(self, count: int, generator: torch.Generator) -> Tensor:
        """Return (count, k, 1, 1, 1) shares of sum 1, the largest cut and the rest scaled up."""
        shares = torch.rand((count, self.images), generator=generator)
        shares = shares / shares.sum(1, keepdim=True)
        top = shares.amax(1, keepdim=True)
        rest = shares * ((1 - self.largest) / (1 - top))
        cut = torch.where(shares == top, torch.full_like(shares, self.largest), rest)
        return torch.where(top > self.largest, cut, shares)[:, :, None, None, None]
