"""Which channel is which: the order of block-DCT channels, read off the channels themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from defenses.frequency import block_dct

IMAGES = 24
"""Own images whose channels are measured."""

SPREAD = (0.3, 0.05, 0.05)
"""What counts as a deviation in a channel's log energy, and in its two correlations."""

ROUNDS = 6


class ChannelOrder:
    """How the luma channels of faces usually are: their energy, and how alike neighbours are.

    Blocks of an image upsampled 8 times hold little but slopes and kinks, so the energies of the
    channels of one kind (odd, even or zero frequency, each way) have ratios that hardly depend on
    the image; how much there is of each kind does, and is estimated along with the order.

    Args:
        images: (N, 3, 112, 112) in [0, 1].
        channels: The channels of a color in their usual order.
    """

    def __init__(self, images: Tensor, channels: Sequence[int]) -> None:
        self._channels = torch.tensor(channels)
        chosen = images[:: max(1, len(images) // IMAGES)][:IMAGES].split(block_dct.CHUNK)
        made = (block_dct.forward(part, channels)[:, : len(channels)] for part in chosen)
        self._usual = torch.cat([_profile(part) for part in made]).mean(0)
        down, across = self._channels // block_dct.BLOCK, self._channels % block_dct.BLOCK
        kinds = torch.stack([down % 2, across % 2, down == 0, across == 0]).T
        self._kind = kinds.unique(dim=0, return_inverse=True)[1].to(images.device)

    def guess(self, luma: Tensor) -> list[int]:
        """Return the channels, in the one order that records share.

        Args:
            luma: (N, K, 112, 112) luma coefficients, K as many as channels.
        """
        found = torch.cat([_profile(part) for part in luma.split(block_dct.CHUNK)]).mean(0)
        spread = torch.tensor(SPREAD, device=luma.device)
        level = torch.zeros_like(found[:, 0])  # of each usual channel's kind, in log energy
        place = torch.arange(len(level))
        for _ in range(ROUNDS):
            expected = self._usual + torch.stack([level, 0 * level, 0 * level], 1)
            cost = ((found[:, None] - expected) / spread).square().sum(2)
            place = torch.from_numpy(linear_sum_assignment(cost.cpu().numpy())[1]).to(level.device)
            excess = torch.empty_like(level)
            excess[place] = found[:, 0] - self._usual[place, 0]
            count = torch.bincount(self._kind)
            level = (torch.bincount(self._kind, excess) / count)[self._kind]
        channels: list[int] = self._channels[place.cpu()].tolist()
        return channels


def _profile(luma: Tensor) -> Tensor:
    """Return log energy and correlation with the neighbour, both ways, of channels, (N, K, 3)."""
    energy = luma.square().mean((2, 3)).clamp_min(1e-9)
    across = (luma[..., 1:] * luma[..., :-1]).mean((2, 3)) / energy
    down = (luma[..., 1:, :] * luma[..., :-1, :]).mean((2, 3)) / energy
    return torch.stack([energy.log(), across, down], 2)
