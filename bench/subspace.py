"""Faces as a mean and principal components: the prior of every search for a face."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.recognizers.base import CROP


class FaceSubspace:
    """Mean plus combinations of the principal components of images.

    Coordinates are in deviations: they have mean 0 and variance 1 over the images.

    Args:
        images: (N, 3, 112, 112) in [0, 1].
        components: Largest number K of components; fewer where the images span fewer.

    Attributes:
        mean: (D,) mean image, D = 3 * 112 * 112.
        basis: (K, D) components, each as long as its deviation.
    """

    def __init__(self, images: Tensor, components: int) -> None:
        flat = images.flatten(1)
        self.mean = flat.mean(0)
        centered = flat - self.mean
        # With fewer images than pixels the small Gram matrix has all there is to know.
        values, vectors = torch.linalg.eigh((centered @ centered.T).double())
        # Duplicate photos give directions without length, in which rounding is all there is.
        count = min(components, len(flat) - 1, int((values > 1e-6 * values[-1]).sum()))
        vectors = vectors[:, -count:].flip(1)
        self.basis = (vectors.T.float() @ centered) / (len(flat) - 1) ** 0.5
        self._inverse = self.basis.T / self.basis.square().sum(1)

    def __len__(self) -> int:
        return len(self.basis)

    def faces(self, z: Tensor) -> Tensor:
        """Return the images (N, 3, 112, 112) in [0, 1] at coordinates (N, K)."""
        return (self.mean + z @ self.basis).clamp(0, 1).unflatten(1, CROP)

    def coordinates(self, images: Tensor) -> Tensor:
        """Return the coordinates (N, K) of the nearest faces of the subspace."""
        return (images.flatten(1) - self.mean) @ self._inverse
