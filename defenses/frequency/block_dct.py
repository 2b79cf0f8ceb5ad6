"""The block-DCT front end that frequency-domain defenses share, and its least-squares inverse.

Recipe: upsample 8 times (bilinear, corners aligned), JPEG YCbCr, orthonormal 8x8 block DCT; every
pixel becomes 64 numbers per color. Both upsampling and DCT are linear and separable, so one
896x112 matrix B per axis does them: C = B X B^T. Channel k = 8 i + j of a color, i vertical; colors
one after the other (facts: Tencent TFace, recognition/tasks; formulas as matrices are ours).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

SIDE, BLOCK = 112, 8

_YCBCR = torch.tensor(
    [
        [0.299, 0.587, 0.114],
        [-0.168735892, -0.331264108, 0.5],
        [0.5, -0.418687589, -0.081312411],
    ],
    dtype=torch.float64,
)


@cache
def _axis_matrix() -> Tensor:
    """Return B as (8, 112, 112): frequency, position, pixel."""
    position = torch.linspace(0, SIDE - 1, SIDE * BLOCK, dtype=torch.float64)
    left = position.floor().clamp(max=SIDE - 2).long()
    weight = position - left
    upsample = torch.zeros(SIDE * BLOCK, SIDE, dtype=torch.float64)
    rows = torch.arange(SIDE * BLOCK)
    upsample[rows, left] = 1 - weight
    upsample[rows, left + 1] += weight
    angle = torch.pi / BLOCK * (torch.arange(BLOCK, dtype=torch.float64) + 0.5)
    dct = torch.cos(angle * torch.arange(BLOCK, dtype=torch.float64)[:, None]) * (2 / BLOCK) ** 0.5
    dct[0] /= 2**0.5
    return torch.einsum("fk,pkx->fpx", dct, upsample.reshape(SIDE, BLOCK, SIDE))


def forward(images: Tensor) -> Tensor:
    """Return the (N, 192, 112, 112) coefficients of images (N, 3, 112, 112) in [0, 1]."""
    axis = _axis_matrix().to(images.device, images.dtype)
    # JPEG's offset of 128 on luma is subtracted; chroma is centered already.
    colors = _to_ycbcr(images) * 255
    colors[:, 0] -= 128
    made = torch.einsum("ipx,ncxy,jqy->ncijpq", axis, colors, axis)
    return made.flatten(1, 3)


def inverse(
    coefficients: Tensor, kept: Tensor, *, iterations: int = 60
) -> Tensor:
    """Return the images of least squared error to some of the coefficients.

    The normal equations are solved by conjugate gradients in pixel space, where each step costs a
    few products of 112x112 matrices: B is folded into P_i = B_i^T B_i for every frequency i.
    What the kept coefficients do not determine (the mean, where no DC is kept) comes out as mid-gray.

    Args:
        coefficients: (N, 3 K, 112, 112), the kept channels in ascending order, color by color.
        kept: (K,) indices of the kept channels of a color, 0 to 63.
        iterations: Steps of conjugate gradients.

    Returns:
        (N, 3, 112, 112) images, not clamped.
    """
    axis = _axis_matrix().to(coefficients.device)
    grams = axis.transpose(1, 2) @ axis
    mask = torch.zeros(BLOCK * BLOCK, dtype=torch.float64, device=axis.device)
    mask[kept] = 1
    # Frequencies with the same partners share one product; sums over partners come first.
    partners = torch.einsum("ij,jxy->ixy", mask.reshape(BLOCK, BLOCK), grams)

    def normal(x: Tensor) -> Tensor:
        return torch.einsum("iab,ncbd,ide->ncae", grams, x, partners)

    full = coefficients.new_zeros(
        (len(coefficients), 3, BLOCK * BLOCK, SIDE, SIDE), dtype=torch.float64
    )
    full[:, :, kept] = coefficients.double().unflatten(1, (3, len(kept)))
    right = torch.einsum(
        "ipx,ncijpq,jqy->ncxy", axis, full.unflatten(2, (BLOCK, BLOCK)), axis
    )
    colors = _conjugate_gradients(normal, right, iterations)
    colors[:, 0] += 128
    return _to_rgb(colors / 255).to(coefficients.dtype)


def _conjugate_gradients(normal, right: Tensor, iterations: int) -> Tensor:  # type: ignore[no-untyped-def]
    """Solve normal(x) = right for every channel of a batch, from zero."""

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((-2, -1), keepdim=True)

    x = torch.zeros_like(right)
    residual = right.clone()
    direction = residual
    size = inner(residual, residual)
    for _ in range(iterations):
        moved = normal(direction)
        step = size / inner(direction, moved).clamp_min(1e-300)
        x = x + step * direction
        residual = residual - step * moved
        new_size = inner(residual, residual)
        direction = residual + new_size / size.clamp_min(1e-300) * direction
        size = new_size
    return x


def _to_ycbcr(images: Tensor) -> Tensor:
    return torch.einsum("oc,ncxy->noxy", _YCBCR.to(images.device, images.dtype), images)


def _to_rgb(colors: Tensor) -> Tensor:
    back = torch.linalg.inv(_YCBCR).to(colors.device, colors.dtype)
    return torch.einsum("oc,ncxy->noxy", back, colors)
