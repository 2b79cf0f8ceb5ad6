"""The loss that recognisers learn from, on faces with names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ArcFace(nn.Module):
    """ArcFace (Deng et al., CVPR 2019): softmax over classes, a margin added to the right angle.

    Args:
        classes: Number of identities.
        size: Length of an embedding.
        scale: Factor of the cosines.
        margin: Added to the angle between an embedding and its identity, in radians.
    """

    def __init__(self, classes: int, size: int, scale: float, margin: float) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.randn(classes, size) * 0.01)
        self.scale, self.margin = scale, margin

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of embeddings (N, D) of any length and labels (N,)."""
        cosines = functional.normalize(embeddings, dim=1) @ functional.normalize(self.centers).T
        right = cosines.gather(1, labels[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
        with_margin = torch.cos(right.acos() + self.margin)
        logits = cosines.scatter(1, labels[:, None], with_margin)
        return functional.cross_entropy(self.scale * logits, labels)
