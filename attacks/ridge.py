"""Ridge regression as a function of tensors, for the attacks that map one vector to another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Doubles = NDArray[np.float64]

PENALTIES = np.logspace(-3, 3, 13)
FOLDS = 5


class Ridge:
    """A fitted ridge regression; each output has the penalty that predicts it best for new people.

    Photos of one person are alike, so a row left out by itself would be predicted from the others
    of that person; and what nothing predicts must not shrink the outputs that something does.

    Args:
        x: (N, D) inputs, N of two at least.
        y: (N, K) outputs.
        people: (N,) names of whom the rows show. If they all show one, rows count as people.
    """

    def __init__(self, x: Tensor, y: Tensor, people: NDArray[np.str_]) -> None:
        inputs, outputs = x.cpu().double().numpy(), y.cpu().double().numpy()
        penalties = _penalties(inputs, outputs, people)
        axes, sizes, shares = _decomposed(inputs, outputs)
        weights = axes @ (shares * _shrinkage(sizes[:, None], penalties))
        bias = outputs.mean(0) - inputs.mean(0) @ weights
        self._weights = torch.from_numpy(weights).float().to(x.device)
        self._bias = torch.from_numpy(bias).float().to(x.device)

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, D) to (N, K)."""
        return x @ self._weights + self._bias


def _penalties(x: Doubles, y: Doubles, people: NDArray[np.str_]) -> Doubles:
    """Return the penalty of each output that predicts it best for people held out."""
    from sklearn.model_selection import GroupKFold  # A second, which a rerun need not spend.

    groups = np.unique(people, return_inverse=True)[1]
    if groups.max() == 0:
        groups = np.arange(len(people))
    errors = np.zeros((len(PENALTIES), y.shape[1]))
    folds = GroupKFold(min(FOLDS, groups.max() + 1))
    for known, unknown in folds.split(x, groups=groups):
        axes, sizes, shares = _decomposed(x[known], y[known])
        seen = (x[unknown] - x[known].mean(0)) @ axes
        wanted = y[unknown] - y[known].mean(0)
        for row, penalty in zip(errors, PENALTIES, strict=True):
            row += np.square(seen * _shrinkage(sizes, penalty) @ shares - wanted).sum(0)
    return PENALTIES[errors.argmin(0)]


def _decomposed(x: Doubles, y: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Return the axes (D, R) of centered x, their sizes (R,), and what y shares with each (R, K).

    Every ridge regression follows: its weights are axes @ (shares * shrinkage of the sizes).
    """
    left, sizes, axes = np.linalg.svd(x - x.mean(0), full_matrices=False)
    return axes.T, sizes, left.T @ (y - y.mean(0))


def _shrinkage(sizes: Doubles, penalty: Doubles | float) -> Doubles:
    shrinkage: Doubles = sizes / (np.square(sizes) + penalty)
    return shrinkage
