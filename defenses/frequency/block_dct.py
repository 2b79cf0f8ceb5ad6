"""The block-DCT front end that frequency-domain defenses share, and its least-squares inverse.

Recipe: upsample 8 times (bilinear, corners aligned), JPEG YCbCr, orthonormal 8x8 block DCT; every
pixel becomes 64 numbers per color. Both upsampling and DCT are linear and separable, so one
896x112 matrix B per axis does them: C = B X B^T. Channel k = 8 i + j of a color, i vertical; colors
one after the other (facts: Tencent TFace, recognition/tasks; formulas as matrices are ours).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

SIDE, BLOCK = 112, 8

ALL = tuple(range(BLOCK**2))
"""All channels of a color; channel 0 is its DC."""

WITHOUT_DC = ALL[1:]

CHUNK = 4
"""Images transformed at once: each has 9.6 MB of coefficients."""

_YCBCR = torch.tensor(
    [
        [0.299, 0.587, 0.114],
        [-0.168735892, -0.331264108, 0.5],
        [0.5, -0.418687589, -0.081312411],
    ],
    dtype=torch.float64,
)


@runtime_checkable
class ChannelSelection(Protocol):
    """A defense whose records begin with some of an image's coefficients, color by color.

    What follows them in a record, as DuetFace's mask does, is no coefficient.
    """

    def hypotheses(self) -> list[list[int]]:
        """Return the channels of a color that a record may hold, each possibility in its order."""


@cache
def _axis_matrix(side: int = SIDE) -> Tensor:
    """Return B as (8, side, side): frequency, position, pixel."""
    position = torch.linspace(0, side - 1, side * BLOCK, dtype=torch.float64)
    upsample = _interpolation(position, side).reshape(side, BLOCK, side)
    return torch.einsum("fk,pkx->fpx", _dct_matrix(), upsample)


def _interpolation(positions: Tensor, size: int) -> Tensor:
    """Return the (P, size) matrix that samples a line of pixels at positions, linearly."""
    left = positions.floor().clamp(max=size - 2).long()
    weight = positions - left
    matrix = torch.zeros(len(positions), size, dtype=torch.float64)
    rows = torch.arange(len(positions))
    matrix[rows, left] = 1 - weight
    matrix[rows, left + 1] += weight
    return matrix


def _dct_matrix() -> Tensor:
    """Return the orthonormal DCT as (8, 8): frequency, position."""
    angle = torch.pi / BLOCK * (torch.arange(BLOCK, dtype=torch.float64) + 0.5)
    dct = torch.cos(angle * torch.arange(BLOCK, dtype=torch.float64)[:, None]) * (2 / BLOCK) ** 0.5
    dct[0] /= 2**0.5
    return dct


def forward(images: Tensor, channels: Sequence[int] = ALL) -> Tensor:
    """Return the coefficients of images.

    Args:
        images: (N, 3, 112, 112) in [0, 1].
        channels: Which of the 64 channels of every color to keep, in the order wanted.

    Returns:
        (N, 3 K, 112, 112), color by color, for K channels; magnitude up to 1024;
        single precision is within 1e-3 of double. No gradients.
    """
    kept = torch.tensor(channels, device=images.device)
    axis = _axis_matrix().to(images.device, images.dtype)
    # JPEG's offset of 128 on luma is subtracted; chroma is centered already.
    colors = to_ycbcr(images) * 255
    colors[:, 0] -= 128
    made = images.new_empty(len(images), 3, len(kept), SIDE, SIDE)
    across = axis[kept % BLOCK].mT
    for color, place in zip(colors.flatten(0, 1), made.flatten(0, 1), strict=True):
        # Written in place: each coefficient is touched once, which is most of the time it takes.
        torch.bmm((axis @ color)[kept // BLOCK], across, out=place)
    return made.flatten(1, 2)


def decode(coefficients: Tensor) -> Tensor:
    """Return the images (N, 3, 112, 112) of all 192 channels, as the papers do it; not clamped.

    Inverse DCT at 896x112 times 8, then bilinear sampling down by 8 with aligned corners. It is no
    inverse of `forward`, but near one.
    """
    axis = _decoder_matrix().to(coefficients.device, coefficients.dtype)
    blocks = coefficients.unflatten(1, (3, BLOCK, BLOCK))
    by_row = torch.einsum("ncijpq,jyq->ncipy", blocks, axis)
    return _to_rgb_of_jpeg(torch.einsum("ixp,ncipy->ncxy", axis, by_row))


@cache
def _decoder_matrix() -> Tensor:
    """Return the inverse DCT and the down-sampling of one axis as (8, 112, 112)."""
    dct = _dct_matrix()
    large = SIDE * BLOCK
    position = torch.linspace(0, large - 1, SIDE, dtype=torch.float64)
    sample = _interpolation(position, large).reshape(SIDE, SIDE, BLOCK)
    return torch.einsum("xpk,fk->fxp", sample, dct)


def least_squares(coefficients: Tensor, channels: Sequence[int], iterations: int) -> Tensor:
    """Return images whose coefficients in some channels come nearest to the given ones.

    Conjugate gradients on the normal equations in double precision. In the pixels of one color they
    read sum over kept (i, j) of G_i X G_j, with G_i the 112x112 Gram matrix of frequency i, so that
    no coefficient is ever made. Few iterations regularise: noise enters last.

    Args:
        coefficients: (N, 3 K, 112, 112), color by color.
        channels: The K channels of every color, in the order of the coefficients.
        iterations: Steps at most.

    Returns:
        (N, 3, 112, 112) images, not clamped. Without channel 0 their mean is mid-gray.
    """
    kept = torch.tensor(channels, device=coefficients.device)
    axis = _axis_matrix().to(coefficients.device)
    grams = axis.mT @ axis
    # The right-hand factors of every row frequency, summed over the channels that are kept.
    right = torch.zeros_like(grams).index_add_(0, kept // BLOCK, grams[kept % BLOCK])

    def normal(x: Tensor) -> Tensor:
        return torch.einsum("iax,ncxy,iyb->ncab", grams, x, right)

    target = torch.cat([_adjoint(part, kept) for part in coefficients.split(CHUNK)])
    colors = _conjugate_gradients(normal, target, iterations)
    if 0 not in channels:
        colors = colors - colors.mean((2, 3), keepdim=True)
    return _to_rgb_of_jpeg(colors).to(coefficients.dtype)


def _adjoint(coefficients: Tensor, channels: Tensor) -> Tensor:
    axis = _axis_matrix().to(coefficients.device, coefficients.dtype)
    blocks = coefficients.unflatten(1, (3, -1))
    rows, columns = axis[channels // BLOCK], axis[channels % BLOCK]
    return (rows.mT @ blocks @ columns).double().sum(2)


def _conjugate_gradients(
    normal: Callable[[Tensor], Tensor], target: Tensor, iterations: int
) -> Tensor:
    """Solve normal(x) = target for every color of every image on its own."""

    def inner(left: Tensor, right: Tensor) -> Tensor:
        return (left * right).sum((2, 3), keepdim=True)

    found, residual, direction = torch.zeros_like(target), target, target
    size = inner(residual, residual)
    enough = 1e-24 * size
    for _ in range(iterations):
        moving = size > enough
        if not moving.any():
            break
        change = normal(direction)
        step = torch.where(moving, size / inner(direction, change), 0)
        found = found + step * direction
        residual = residual - step * change
        before, size = size, inner(residual, residual)
        direction = residual + torch.where(moving, size / before, 0) * direction
    return found


def inverse_without_dc(coefficients: Tensor) -> Tensor:
    """Return the images of least squared error to all coefficients but the DC channels.

    The map is linear and over-complete, so the normal equations A X A - D X D = R have one solution
    but for the mean (A and D are the Gram matrices of all frequencies and of DC alone, per axis). A
    basis V that turns A into the identity and D into a diagonal solves them in closed form.

    Args:
        coefficients: (N, 189, 112, 112), channels 1 to 63 of a color, color by color.

    Returns:
        (N, 3, 112, 112) images, not clamped. Their mean is lost. What is set to mid-gray, 128 of
        255, is the mean of the upsampled image, in which pixels at the border count half; the plain
        mean of the pixels is near it (within .005 on the faces tried).
    """
    return torch.cat([_inverse_without_dc(part) for part in coefficients.split(CHUNK)])


def _inverse_without_dc(coefficients: Tensor) -> Tensor:
    analysis, synthesis, weight = (part.to(coefficients.device) for part in _solution())
    full = coefficients.new_zeros((len(coefficients), 3, BLOCK**2, SIDE, SIDE))
    full[:, :, 1:] = coefficients.unflatten(1, (3, BLOCK**2 - 1))
    by_row = torch.einsum(
        "ncijpq,jqb->ncipb", full.unflatten(2, (BLOCK, BLOCK)), analysis.to(full.dtype)
    )
    # The rest is small and runs in double precision: low frequencies hold little energy but in DC.
    solved = torch.einsum("ipa,ncipb->ncab", analysis, by_row.double()) * weight
    return _to_rgb_of_jpeg(synthesis @ solved @ synthesis.T).to(coefficients.dtype)


@cache
def _solution() -> tuple[Tensor, Tensor, Tensor]:
    """Return B V by frequency (8, 112, 112), V (112, 112), and the inverse eigenvalues."""
    axis = _axis_matrix()
    grams = axis.transpose(1, 2) @ axis
    root = torch.linalg.cholesky(grams.sum(0))
    half = torch.linalg.solve_triangular(root, grams[0], upper=False)
    share, turn = torch.linalg.eigh(torch.linalg.solve_triangular(root, half.T, upper=False))
    basis = torch.linalg.solve_triangular(root.T, turn, upper=True)
    left = 1 - share[:, None] * share[None, :]
    weight = torch.where(left > 1e-9, 1 / left, torch.zeros_like(left))
    return axis @ basis, basis, weight


def to_ycbcr(images: Tensor) -> Tensor:
    """Return JPEG's brightness and centered colors of RGB (N, 3, H, W), in the same units."""
    return torch.einsum("oc,ncxy->noxy", _YCBCR.to(images.device, images.dtype), images)


def _to_rgb_of_jpeg(colors: Tensor) -> Tensor:
    """Return RGB of centered JPEG colors in 0..255 (N, 3, H, W), in [0, 1] where they are valid."""
    back = torch.linalg.inv(_YCBCR).to(colors.device, colors.dtype)
    offset = torch.tensor([128.0, 0, 0], device=colors.device, dtype=colors.dtype)
    return torch.einsum("oc,ncxy->noxy", back, colors + offset[:, None, None]) / 255
