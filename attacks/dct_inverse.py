"""Inversion of block-DCT records by least squares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from attacks.base import Attack
from attacks.channel_order import ChannelOrder
from bench.leaks import Leak
from bench.registry import ATTACKS
from bench.threats import Attacker, Threat
from defenses.frequency import block_dct

DOUBT = 0.5
"""Unexplained share of a record above which no known order of its channels is believed."""


@ATTACKS.register("dct-inverse")
@dataclass
class DCTInverse(Attack):
    """Least squares: the block DCT is linear and over-complete, so its inverse needs no training.

    Knows which channels a record may hold, and in which orders; the right ones leave the smallest
    residual. Where none of them explains a record the order is secret, and is read off the
    channels' energies. Noise mostly falls where no image reaches, and few steps keep out the rest.
    Channel 0 is lost with every defense of the family, and with it the mean of a color:
    the attack takes the darkest pixel to be as dark as it is in the median of its own images.

    Args:
        iterations: Steps of conjugate gradients where channels beside DC are missing; few of them
            keep noise out, many resolve what noise spares.
        trial: Steps that tell the hypotheses about a record's channels apart.
    """

    leaks = frozenset({Leak.IMAGE})
    threats = frozenset({Threat.ADAPTIVE, Threat.INSIDER})

    iterations: Annotated[int, Field(ge=1)] = 300
    trial: Annotated[int, Field(ge=1)] = 10

    def fit(self, attacker: Attacker) -> None:
        """Learn the hypotheses, and how dark the darkest pixel of a color usually is."""
        if attacker.threat is Threat.INSIDER:
            instances = [attacker.deployed_instance]
        else:
            instances = attacker.fresh_instances[:1]
        self.hypotheses = [channels for one in instances for channels in _hypotheses(one)]
        self.order = ChannelOrder(attacker.images, sorted(self.hypotheses[0]))
        self.darkest = attacker.images.amin((2, 3)).median()

    def reconstruct(self, records: Tensor) -> Tensor:
        """Return the inverse at the usual brightness, clamped to [0, 1]."""
        # Coefficients only: what follows them, as a mask, goes unread.
        records = records[:, : 3 * len(self.hypotheses[0])]
        choice, hypotheses = self._likeliest(records)
        images = records.new_zeros(len(records), 3, block_dct.SIDE, block_dct.SIDE)
        for number, channels in enumerate(hypotheses):
            rows = (choice == number).nonzero().flatten()
            if len(rows):
                images[rows] = self._inverse(records[rows], channels, self.iterations)
        above = images - images.amin((2, 3), keepdim=True)
        return (above + self.darkest).clamp(0, 1)

    def _likeliest(self, records: Tensor) -> tuple[Tensor, list[list[int]]]:
        """Return which hypothesis (N,) leaves the smallest residual of each record, and all."""
        residuals = torch.stack([self._residual(records, one) for one in self.hypotheses])
        doubtful = residuals.amin(0) > DOUBT
        if not doubtful.any():
            return residuals.argmin(0), self.hypotheses
        # The channels stand in an order that no instance of the attacker's own has.
        guess = self.order.guess(records[doubtful][:, : len(self.hypotheses[0])])
        residuals = torch.cat([residuals, self._residual(records, guess)[None]])
        return residuals.argmin(0), [*self.hypotheses, guess]

    def _residual(self, records: Tensor, channels: list[int]) -> Tensor:
        """Return the share (N,) of records' energy that no image explains in these channels."""
        parts = []
        for part in records.split(block_dct.CHUNK):
            made = block_dct.forward(self._inverse(part, channels, self.trial), channels)
            left = (made - part).square().sum((1, 2, 3))
            parts.append(left / part.square().sum((1, 2, 3)).clamp_min(1e-12))
        return torch.cat(parts)

    def _inverse(self, records: Tensor, channels: list[int], iterations: int) -> Tensor:
        if sorted(channels) == list(block_dct.WITHOUT_DC):
            usual = torch.tensor(channels, device=records.device).argsort()
            return block_dct.inverse_without_dc(
                records.unflatten(1, (3, -1))[:, :, usual].flatten(1, 2)
            )
        return block_dct.least_squares(records, channels, iterations)


def _hypotheses(defense: object) -> list[list[int]]:
    """Return the selections of channels that a defense may make of an image.

    Raises:
        ValueError: Its records are no selection of block-DCT channels.
    """
    if not isinstance(defense, block_dct.ChannelSelection):
        name = type(defense).__name__
        # Attacks refuse defenses that they cannot read as they refuse other values.
        raise ValueError(f"records of {name} are no selection of DCT channels")  # noqa: TRY004
    return defense.hypotheses()
