"""The image decoders that attackers and defenders share.

A defender's shadow model and an attacker's inverter are the same kind of thing; they differ in
width, seed and data. This module is part of the fingerprint of every plug-in that uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.recognizers.base import CROP, best_cpu_precision
from bench.subspace import FaceSubspace


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
        self.standardize = Standardize(mean, deviation)
        self.stem = _conv(_channels_at_56(shape), width)
        self.same = nn.Sequential(_conv(width, width), _conv(width, width))
        self.down = _conv(width, 2 * width, stride=2)
        self.low = nn.Sequential(_conv(2 * width, 2 * width), _conv(2 * width, 4 * width))
        self.up = nn.PixelShuffle(2)
        self.join = _conv(2 * width, width)
        self.paint = nn.Sequential(nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, records: Tensor) -> Tensor:
        """Map records (N, C, H, W) to images (N, 3, 112, 112) in [0, 1]."""
        return self.decode(self.standardize(records))

    def decode(self, standard: Tensor) -> Tensor:
        """Map standardised records (N, C, H, W) to images (N, 3, 112, 112) in [0, 1]."""
        x = self.stem(_at_56(standard))
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
        self.stem = _conv(_channels_at_56(shape), width)
        self.blocks = nn.ModuleList(
            nn.Sequential(_conv(width, width), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(3)
        )
        self.paint = nn.Sequential(nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, records: Tensor) -> Tensor:
        """Map records (N, C, H, W) to images (N, 3, 112, 112) in [0, 1]."""
        return self.decode(self.standardize(records))

    def decode(self, standard: Tensor) -> Tensor:
        """Map standardised records (N, C, H, W) to images (N, 3, 112, 112) in [0, 1]."""
        x = self.stem(_at_56(standard))
        for block in self.blocks:
            x = x + block(x)
        return torch.sigmoid(self.paint(x).float())


class FullUNet(nn.Module):
    """A U-Net of five scales, 112x112 down to 7x7, with a skip at each (Ronneberger et al., 2015).

    The size of the inverters in the papers on transmitted images: with 64 channels it has 31
    million weights, and wants a GPU.

    Args:
        shape: Shape (C, H, W) of a record; any H and W.
        width: Channels at 112x112; they double at every scale.
        mean: (C,) mean of the records, subtracted first.
        deviation: (C,) deviation of the records, divided by.
    """

    def __init__(self, shape: Sequence[int], width: int, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        widths = [width << scale for scale in range(5)]
        self.standardize = Standardize(mean, deviation)
        self.stem = _twice(shape[0], width)
        steps = list(pairwise(widths))
        self.down = nn.ModuleList(_twice(fine, coarse) for fine, coarse in steps)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in reversed(steps)
        )
        self.join = nn.ModuleList(_twice(2 * fine, fine) for fine, _ in reversed(steps))
        self.paint = nn.Conv2d(width, 3, 1)

    def forward(self, records: Tensor) -> Tensor:
        """Map records (N, C, H, W) to images (N, 3, 112, 112) in [0, 1]."""
        x = self.standardize(records)
        if x.shape[-2:] != (112, 112):
            x = functional.interpolate(x, (112, 112), mode="bilinear")
        scales = [self.stem(x.contiguous(memory_format=torch.channels_last))]
        for down in self.down:
            scales.append(down(functional.max_pool2d(scales[-1], 2)))
        x = scales.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([scales.pop(), up(x)], 1))
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


class EigenfaceDecoder(nn.Module):
    """An affine map from a template (D,) to the principal components of faces, and so to an image.

    It starts as the ridge regression of the components on the templates. Trained on, its mean image
    and weights give way to what the loss wants, its components stay. It has few weights to fit:
    where the attacker has thousands of photos and not millions, it errs less on other people than
    convolutions do.

    Args:
        templates: (N, D) templates of the images, or (I, N, D), those of several instances.
        images: (N, 3, 112, 112) in [0, 1].
        components: Largest number of components.
    """

    deviation: Tensor
    center: Tensor
    basis: Tensor

    def __init__(self, templates: Tensor, images: Tensor, components: int) -> None:
        super().__init__()
        space = FaceSubspace(images, components)
        flat = templates.flatten(0, -2).float()
        deviation, center = torch.std_mean(flat, dim=0)
        self.register_buffer("deviation", deviation.mean().clamp_min(1e-6))
        self.register_buffer("center", center)
        self.register_buffer("basis", space.basis)
        self.mean = nn.Parameter(space.mean.clone())
        x = (flat - center) / self.deviation
        wanted = space.coordinates(images).repeat(len(x) // len(images), 1)
        gram = (x.T @ x).double()
        gram.diagonal().add_(0.3 * float(gram.diagonal().mean()))
        weights = torch.linalg.solve(gram, (x.T @ wanted).double())
        self.weights = nn.Parameter(weights.float())

    def forward(self, templates: Tensor) -> Tensor:
        """Map templates (N, D) to images (N, 3, 112, 112) in [0, 1]."""
        x = (templates.float() - self.center) / self.deviation
        made = self.mean + (x @ self.weights @ self.basis).float()
        return made.clamp(0, 1).unflatten(1, CROP)


MAP_NETWORKS: dict[str, type[MapDecoder | ResidualDecoder | FullUNet]] = {
    "small": MapDecoder,
    "residual": ResidualDecoder,
    "full": FullUNet,
}
"""Networks from maps to images by the name that parameters give them."""


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.LeakyReLU(0.1))


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_normalized(inputs, outputs), _normalized(outputs, outputs))


def _normalized(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def _channels_at_56(shape: Sequence[int]) -> int:
    """Return the channels of what `_at_56` makes of records of a shape."""
    return shape[0] * (4 if tuple(shape[1:]) == (112, 112) else 1)


def _at_56(x: Tensor) -> Tensor:
    """Bring records (N, C, H, W) to 56x56; of 112x112, every channel becomes four."""
    if x.shape[-2:] == (112, 112):
        if torch.is_autocast_enabled(x.device.type):
            # As the convolution that follows would: a batch of frequency tensors is 300 MB.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        x = functional.pixel_unshuffle(x, 2)
    elif x.shape[-2:] != (56, 56):
        x = functional.interpolate(x, (56, 56), mode="bilinear")
    return x.contiguous(memory_format=torch.channels_last)


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
