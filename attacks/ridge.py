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
    """A fitted ridge regression, of the penalty that predicts best what it has not seen.

    Args:
        x: (N, D) inputs.
        y: (N, K) outputs.
        people: (N,) names of whom the rows show. With two at least, each output has the penalty
            that predicts it best for people held out: what nothing predicts must not shrink the
            others. Else one penalty has the least leave-one-out error over all outputs.
    """

    def __init__(self, x: Tensor, y: Tensor, people: NDArray[np.str_] | None = None) -> None:
        # Importing it takes a second, which a run that finds everything stored need not spend.
        from sklearn import linear_model

        inputs, outputs = x.cpu().double().numpy(), y.cpu().double().numpy()
        if people is None or len(np.unique(people)) == 1:
            model = linear_model.RidgeCV(alphas=PENALTIES)
        else:
            model = linear_model.Ridge(alpha=_penalties(inputs, outputs, people))
        model.fit(inputs, outputs)
        self._weights = torch.from_numpy(np.atleast_2d(model.coef_)).float().to(x.device)
        self._bias = torch.from_numpy(np.atleast_1d(model.intercept_)).float().to(x.device)

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, D) to (N, K)."""
        return x @ self._weights.T + self._bias


def _penalties(x: Doubles, y: Doubles, people: NDArray[np.str_]) -> Doubles:
    """Return the penalty of each output that predicts it best for people held out."""
    from sklearn.linear_model import Ridge as Regression
    from sklearn.model_selection import GroupKFold

    errors = np.zeros((len(PENALTIES), y.shape[1]))
    folds = GroupKFold(min(FOLDS, len(np.unique(people))))
    for known, unknown in folds.split(x, groups=people):
        for row, penalty in zip(errors, PENALTIES, strict=True):
            made = Regression(alpha=penalty).fit(x[known], y[known]).predict(x[unknown])
            row += np.square(made.reshape(-1, y.shape[1]) - y[unknown]).sum(0)
    return PENALTIES[errors.argmin(0)]
