"""Ridge regression as a function of tensors, for the attacks that map one vector to another."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Ridge:
    """A fitted ridge regression whose penalties have the least leave-one-out error.

    Each output has a penalty of its own: those that nothing predicts must not shrink the others.

    Args:
        x: (N, D) inputs.
        y: (N, K) outputs.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        # Importing it takes a second, which a run that finds everything stored need not spend.
        from sklearn.linear_model import RidgeCV

        model = RidgeCV(alphas=np.logspace(-3, 3, 13), alpha_per_target=True)
        model.fit(x.cpu().double().numpy(), y.cpu().double().numpy())
        self._weights = torch.from_numpy(np.atleast_2d(model.coef_)).float().to(x.device)
        self._bias = torch.from_numpy(np.atleast_1d(model.intercept_)).float().to(x.device)

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, D) to (N, K)."""
        return x @ self._weights.T + self._bias
