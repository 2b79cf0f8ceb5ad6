"""The image decoders that attackers and defenders share.

A defender's shadow model and an attacker's inverter are the same kind of thing; they differ in
width, seed and data. This module is part of the fingerprint of every plug-in that uses it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.recognizers.base import best_cpu_precision


class Standardize(nn.Module):
    """Subtracts the mean of every channel and divides by its deviation.

    Args:
        mean: (C,) means.
        deviation: (C,) deviations; 0 counts as 1e-6.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.reshape(-1, 1, 1).clone())
        self.register_buffer("deviation", deviation.reshape(-1, 1, 1).clamp_min(1e-6).clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return (x - self.mean) / self.deviation

    def undo(self, x: Tensor) -> Tensor:
        """Map standardised values back."""
        return x * self.deviation + self.mean


class MapDecoder(nn.Module):
    """A small U-Net from an image-like record (C, H, W) to an image.

    All convolutions run at 56x56 and below; the last one makes the four sub-pixels of every pair of
    rows and columns, which is several times faster than convolving at 112x112.

    Args:
        shape: Shape (C, H, W) of a record; any H and W.
        width: Channels at 56x56.
        mean: (C,) mean of the records, subtracted first.
        deviation: (C,) deviation of the records, divided by.
    """

    def __init__(self, shape: Sequence[int], width: int, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        channels, height, width_in = shape
        self.standardize = Standardize(mean, deviation)
        self._fold = 2 if height == width_in == 112 else 1
        self.stem = _conv(channels * self._fold**2, width)
        self.same = nn.Sequential(_conv(width, width), _conv(width, width))
        self.down = _conv(width, 2 * width, stride=2)
        self.low = nn.Sequential(_conv(2 * width, 2 * width), _conv(2 * width, 4 * width))
        self.up = nn.PixelShuffle(2)
        self.join = _conv(2 * width, width)
        self.paint = nn.Sequential(nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, records: Tensor) -> Tensor:
        """Map records (N, C, H, W) to images (N, 3, 112, 112) in [0, 1]."""
        x = self.standardize(records)
        if self._fold == 2:
            x = functional.pixel_unshuffle(x, 2)
        elif x.shape[-2:] != (56, 56):
            x = functional.interpolate(x, (56, 56), mode="bilinear")
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        x = x + self.same(x)
        low = self.up(self.low(self.down(x)))
        return torch.sigmoid(self.paint(self.join(torch.cat([x, low], 1))).float())


class ResidualDecoder(nn.Module):
    """Residual blocks from a map (C, H, W) to an image: another architecture than `MapDecoder`.

    The map's resolution is kept throughout, so nothing is pooled and nothing skips over a stage.

    Args:
        shape: Shape (C, H, W) of a record; any H and W.
        width: Channels.
        mean: (C,) mean of the records, subtracted first.
        deviation: (C,) deviation of the records, divided by.
    """

    def __init__(self, shape: Sequence[int], width: int, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.standardize = Standardize(mean, deviation)
        self.stem = _conv(shape[0], width)
        self.blocks = nn.ModuleList(
            nn.Sequential(_conv(width, width), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(3)
        )
        self.paint = nn.Sequential(nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, records: Tensor) -> Tensor:
        """Map records (N, C, H, W) to images (N, 3, 112, 112) in [0, 1]."""
        x = self.standardize(records)
        if x.shape[-2:] != (56, 56):
            x = functional.interpolate(x, (56, 56), mode="bilinear")
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = x + block(x)
        return torch.sigmoid(self.paint(x).float())


class TemplateDecoder(nn.Module):
    """Transposed convolutions from a template (D,) to an image.

    Args:
        size: Length D of a template.
        width: Channels at 14x14; 7x7 has twice as many.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.grow = nn.Linear(size, 4 * width * 49)
        self.blocks = nn.Sequential(
            nn.BatchNorm2d(4 * width),
            nn.ReLU(),
            _transposed(4 * width, 2 * width),
            _conv(2 * width, 2 * width),
            _transposed(2 * width, width),
            _conv(width, width),
            _transposed(width, width // 2),
            _conv(width // 2, width // 2),
            nn.Conv2d(width // 2, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, templates: Tensor) -> Tensor:
        """Map templates (N, D) to images (N, 3, 112, 112) in [0, 1]."""
        x = self.grow(templates).unflatten(1, (-1, 7, 7))
        images: Tensor = torch.sigmoid(self.blocks(x).float())
        return images


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.LeakyReLU(0.1))


def _transposed(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def channel_statistics(records: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and deviation (C,) of every channel of records (N, C, ...)."""
    others = [axis for axis in range(records.ndim) if axis != 1]
    deviation, mean = torch.std_mean(records.float(), dim=others)
    return mean, deviation


def half_precision(device: str) -> torch.autocast:
    """Return a context of bfloat16 arithmetic where the device has it natively."""
    kind = torch.device(device).type
    native = kind == "cuda" or best_cpu_precision() == "bfloat16"
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=native)
