"""Image similarity with one exact definition per id: SSIM, PSNR, MSE.

Five libraries give five SSIM values for the same two images; here the definition is part of the
call and of the result row. Computation is in the float type of the images (integers in float64), on
their device, and differentiable; a batch gives what its images give one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.errors import MetricError
from bench.metrics.definitions import unknown
from bench.precision import full_float32

Images = TypeVar("Images", NDArray[Any], Tensor)

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what Matlab's rgb2gray gave the authors of SSIM
_BAND = 13  # outputs per banded product: a dense matrix would multiply mostly zeros
_CPU_CHUNK, _GPU_CHUNK = 1 << 16, 1 << 25  # samples per step: stay in the cache, or in memory


@dataclass(frozen=True)
class Window:
    """What distinguishes one SSIM from another.

    Attributes:
        taps: One-dimensional window, summing to 1; the window is its outer product.
        covariance: Factor on the variances: 1 for the population, n / (n - 1) for the sample.
        luma: Compare the luma of RGB images instead of averaging over the channels.
    """

    taps: tuple[float, ...]
    covariance: float
    luma: bool


def _gaussian(radius: int, sigma: float) -> tuple[float, ...]:
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return tuple((taps / taps.sum()).tolist())


DEFINITIONS = {
    "wang11-valid-rgb": Window(_gaussian(5, 1.5), covariance=1.0, luma=False),
    "wang11-valid-luma": Window(_gaussian(5, 1.5), covariance=1.0, luma=True),
    "uniform7-sample-rgb": Window((1 / 7,) * 7, covariance=49 / 48, luma=False),
}


def ssim(
    a: Images, b: Images, *, definition: str = "wang11-valid-rgb", data_range: float
) -> Images:
    """Return the mean structural similarity of each pair of images.

    Args:
        a: Images (N, C, H, W) or one image (C, H, W), values in [0, data_range].
        b: Images of the same shape and type as `a`.
        definition: "wang11-valid-rgb" is the paper's: 11-tap Gaussian window, sigma 1.5, population
            covariance, no padding, mean over the channels; "wang11-valid-luma" the same on BT.601
            luma; "uniform7-sample-rgb" is scikit-image's default.
        data_range: Largest possible value L: 255 for 8-bit images, 1 for images in [0, 1].

    Returns:
        SSIM in [-1, 1] per pair, shape (N,) or (), in the float type of the images (float64 for
        integers); an array for arrays, a differentiable tensor for tensors.

    Raises:
        MetricError: Unknown definition; shapes or types differ; values are not finite or outside
            the range; an image is smaller than the window.

    Reference: Wang et al., "Image quality assessment: from error visibility to structural
    similarity", IEEE TIP 2004 (K1 = 0.01, K2 = 0.03).
    """
    if definition not in DEFINITIONS:
        raise unknown("SSIM definition", definition, DEFINITIONS)
    window = DEFINITIONS[definition]
    x, y = _pair(a, b, data_range)
    channels, height, width = x.shape[1:]
    if min(height, width) < len(window.taps):
        raise MetricError(
            f"Images of {height}x{width} are smaller than the window of {len(window.taps)} pixels "
            f"of {definition}: give larger images."
        )
    if window.luma and channels not in (1, 3):
        raise MetricError(f"{definition} needs 3 channels (RGB) or 1 (luma), not {channels}.")
    chunk = _CPU_CHUNK if x.device.type == "cpu" else _GPU_CHUNK
    step = max(1, chunk // (channels * height * width))
    pairs = zip(torch.split(x, step), torch.split(y, step), strict=True)
    values = [_ssim(u, v, window, data_range) for u, v in pairs]
    return _like(a, torch.cat(values))


def psnr(a: Images, b: Images, *, data_range: float) -> Images:
    """Return the peak signal-to-noise ratio 10 log10(L² / MSE) of each pair of images.

    Average over images, never over their errors; `bench.metrics.intervals.clustered_mean` does.

    Args:
        a: Images (N, C, H, W) or one image (C, H, W), values in [0, data_range].
        b: Images of the same shape and type as `a`.
        data_range: Largest possible value L: 255 for 8-bit images, 1 for images in [0, 1].

    Returns:
        Decibels per pair, shape (N,) or (); infinite for identical images.

    Raises:
        MetricError: Shapes or types differ; values are not finite or outside the range.
    """
    return _like(a, 10 * torch.log10(data_range**2 / _squared_error(*_pair(a, b, data_range))))


def mse(a: Images, b: Images, *, data_range: float = 255) -> Images:
    """Return the mean squared difference of each pair of images, in squared units of the values.

    Args:
        a: Images (N, C, H, W) or one image (C, H, W), values in [0, data_range].
        b: Images of the same shape and type as `a`.
        data_range: Largest possible value; it bounds the values and does not scale the result.

    Returns:
        Mean over channels and pixels per pair, shape (N,) or ().

    Raises:
        MetricError: Shapes or types differ; values are not finite or outside the range.
    """
    return _like(a, _squared_error(*_pair(a, b, data_range)))


def _squared_error(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().mean(dim=(1, 2, 3))


def _ssim(x: Tensor, y: Tensor, window: Window, data_range: float) -> Tensor:
    """Return the SSIM of batches (N, C, H, W), from the moments of their sum and difference.

    With s = x + y and d = x - y, 2 x y = (s² - d²) / 2 and x² + y² = (s² + d²) / 2, for the means
    and for the variances alike: four filtered maps suffice and equal images give exactly 1. Taking
    s about its mid-range removes most of the cancellation of E[s²] - E[s]² in float32.
    """
    if window.luma and x.shape[1] == 3:
        weights = x.new_tensor(_LUMA)
        x, y = (torch.einsum("nchw,c->nhw", image, weights)[:, None] for image in (x, y))
    x, y = x.movedim(-2, 0), y.movedim(-2, 0)
    both = torch.stack((x + y - data_range, x - y), dim=1)
    mean_sum, mean_difference = _filter(both, window.taps).unbind(1)
    square_sum, square_difference = _filter(both * both, window.taps).unbind(1)
    c1 = 2 * (0.01 * data_range) ** 2
    c2 = 2 * (0.03 * data_range) ** 2 / window.covariance
    luminance = (mean_sum + data_range).square() + c1
    apart = mean_difference.square()
    contrast = square_sum - mean_sum.square() + c2
    noise = square_difference - apart
    similar = (luminance - apart) * (contrast - noise)
    index: Tensor = similar / ((luminance + apart) * (contrast + noise))
    return index.mean(dim=(0, 2, 3))


@full_float32()
def _filter(maps: Tensor, taps: tuple[float, ...]) -> Tensor:
    """Filter rows and columns with the separable window, without padding, as matrix products.

    Args:
        maps: (H, ..., W). With the filtered axis first, a band is one product for all maps.
        taps: The window along one axis.

    Returns:
        (W - taps + 1, ..., H - taps + 1).
    """
    return _filter_first(_filter_first(maps, taps).transpose(0, -1), taps)


def _filter_first(maps: Tensor, taps: tuple[float, ...]) -> Tensor:
    size = maps.shape[0]
    flat = maps.reshape(size, -1)
    bands = _bands(size, taps, maps.dtype, maps.device)
    filtered = torch.cat([band @ flat[start:stop] for start, stop, band in bands])
    return filtered.view(-1, *maps.shape[1:])


@cache
@torch.inference_mode(mode=False)  # kept, so it must also serve calls with gradients
def _bands(
    size: int, taps: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> list[tuple[int, int, Tensor]]:
    """Cut the (size - taps + 1, size) convolution matrix into blocks of rows.

    Returns:
        For each block: first and last (exclusive) input it reads, and the dense block.
    """
    outputs = size - len(taps) + 1
    matrix = torch.zeros(outputs, size, dtype=dtype)
    for offset, tap in enumerate(_rounded(taps, dtype)):
        matrix.diagonal(offset)[:] = tap
    blocks = []
    for rows in torch.arange(outputs).tensor_split(-(-outputs // _BAND)):
        start, stop = int(rows[0]), int(rows[-1]) + len(taps)
        blocks.append((start, stop, matrix[rows, start:stop].to(device)))
    return blocks


def _rounded(taps: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """Return the taps in a float type, the middle one such that their sum is still 1.

    Rounded one by one, float32 taps sum to 1 + 1e-7, which biases variances of bright or dark areas
    and SSIM by 1e-5.
    """
    rounded = torch.tensor(taps, dtype=torch.float64).to(dtype)
    rounded[len(taps) // 2] += 1 - rounded.sum(dtype=torch.float64)
    return rounded


def _pair(a: Images, b: Images, data_range: float) -> tuple[Tensor, Tensor]:
    """Return both inputs as float tensors (N, C, H, W), or explain why that cannot be."""
    x, y = as_tensor(a), as_tensor(b)
    if x.shape != y.shape:
        raise MetricError(
            f"The images differ in shape, {tuple(x.shape)} and {tuple(y.shape)}: pair them first."
        )
    if x.dtype != y.dtype or x.device != y.device:
        raise MetricError(
            f"The images differ in type or device, {x.dtype} on {x.device} and {y.dtype} on "
            f"{y.device}: convert them to one."
        )
    if x.ndim not in (3, 4) or 0 in x.shape:
        raise MetricError(
            f"Images must have the shape (N, C, H, W) or (C, H, W), not {tuple(x.shape)}."
        )
    if x.is_complex() or x.dtype == torch.bool:
        raise MetricError(f"Images must be real numbers, not {x.dtype}.")
    integers = not x.is_floating_point()
    # Half precision cannot hold 255²; integers lose nothing in float64.
    dtype = torch.float64 if integers else torch.promote_types(x.dtype, torch.float32)
    x, y = x.to(dtype), y.to(dtype)
    largest = max(_largest(x, data_range), _largest(y, data_range))
    if not integers and 0 < largest <= data_range / 255:
        raise MetricError(
            f"No value exceeds {largest:g} although data_range is {data_range:g}: the images look "
            f"as if they were in [0, 1], so give data_range=1."
        )
    return (x, y) if x.ndim == 4 else (x[None], y[None])


def as_tensor(images: NDArray[Any] | Tensor) -> Tensor:
    """Return images as a tensor over the same numbers, if they are an array or tensor of numbers.

    Raises:
        MetricError: They are anything else, such as a list.
    """
    if isinstance(images, Tensor):
        return images
    if not isinstance(images, np.ndarray) or images.dtype.kind not in "biufc":
        raise MetricError("Images must be a tensor or an array of numbers: convert them.")
    return torch.from_numpy(np.require(images, requirements=["C", "W"]))  # copies only if it must


def _largest(images: Tensor, data_range: float) -> float:
    """Return the largest value, after checking that all are within [0, data_range]."""
    if not 0 < data_range < float("inf"):
        raise MetricError(f"data_range must be positive and finite, not {data_range}.")
    smallest, largest = (float(value) for value in images.detach().aminmax())
    if not (smallest > -float("inf") and largest < float("inf")):
        raise MetricError("The images contain NaN or infinite values: mend them first.")
    if smallest < 0 or largest > data_range:
        raise MetricError(
            f"The images have values from {smallest:g} to {largest:g}, outside "
            f"[0, {data_range:g}]: shift or clip them, or mend data_range."
        )
    return largest


def _like(images: Images, values: Tensor) -> Images:
    """Return per-image values as the type of the input, one number for one image."""
    values = values if images.ndim == 4 else values[0]
    return values if isinstance(images, Tensor) else values.numpy()
