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
    return torch.cat([_forward(part) for part in images.split(CHUNK)])


def forward_without_dc(images: Tensor) -> Tensor:
    """Return the (N, 189, 112, 112) coefficients without the DC channel of every color."""
    return torch.cat(
        [
            _forward(part).unflatten(1, (3, BLOCK**2))[:, :, 1:].flatten(1, 2)
            for part in images.split(CHUNK)
        ]
    )


def _forward(images: Tensor) -> Tensor:
    axis = _axis_matrix().to(images.device, images.dtype)
    # JPEG's offset of 128 on luma is subtracted; chroma is centered already.
    colors = _to_ycbcr(images) * 255
    colors[:, 0] -= 128
    made = torch.einsum("ipx,ncxy,jqy->ncijpq", axis, colors, axis)
    return made.flatten(1, 3)


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
    colors = synthesis @ solved @ synthesis.T
    colors[:, 0] += 128
    return _to_rgb(colors / 255).to(coefficients.dtype)


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


def _to_ycbcr(images: Tensor) -> Tensor:
    return torch.einsum("oc,ncxy->noxy", _YCBCR.to(images.device, images.dtype), images)


def _to_rgb(colors: Tensor) -> Tensor:
    back = torch.linalg.inv(_YCBCR).to(colors.device, colors.dtype)
    return torch.einsum("oc,ncxy->noxy", back, colors)
