"""How an attacker that knows the defense reads records: which way lets its own people stand out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from attacks.ridge import Ridge

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from defenses.base import Defense

Reading = Callable[[Tensor], Tensor]
"""From what records show (N, D) to embeddings, or from embeddings to what records show."""

FOLDS = 4


class Regression:
    """A ridge regression from what records show to clean embeddings.

    Where both are of one kind only the change is regressed: with few own images the rest of the
    record is then kept as it is.

    Args:
        seen: What the records of each instance of the defense show, each (N, D).
        clean: (N, E) embeddings of the same images.
        identities: (N,) names of the people.
        change: Whether to regress the change; D must be E.
    """

    def __init__(
        self, seen: Sequence[Tensor], clean: Tensor, identities: NDArray[np.str_], *, change: bool
    ) -> None:
        x, y = torch.cat(list(seen)), clean.repeat(len(seen), 1)
        self._change = change
        people = np.tile(identities, len(seen))
        self._ridge = Ridge(x, y - x if change else y, people)

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, D) to (N, E)."""
        return x + self._ridge(x) if self._change else self._ridge(x)


def held_out_clarity(
    seen: Sequence[Tensor], clean: Tensor, identities: NDArray[np.str_], *, change: bool
) -> float:
    """Return how far people stand out after a regression that has not seen them.

    Args:
        seen: What the records of each instance of the defense show, each (N, D).
        clean: (N, E) embeddings of the same images.
        identities: (N,) names of two people at least.
        change: As for `Regression`.
    """
    from sklearn.model_selection import GroupKFold  # Imported late, as in `Ridge`.

    found = [torch.empty_like(clean) for _ in seen]
    folds = GroupKFold(min(FOLDS, len(set(identities.tolist()))))
    for known, unknown in folds.split(identities, groups=identities):
        parts = [part[known] for part in seen]
        regression = Regression(parts, clean[known], identities[known], change=change)
        for part, read in zip(seen, found, strict=True):
            read[unknown] = regression(part[unknown])
    return sum(clarity(read, clean, identities) for read in found) / len(found)


def clarity(found: Tensor, wanted: Tensor, identities: NDArray[np.str_]) -> float:
    """Return how far vectors (N, D) stand out as their own: the mean over rows.

    The cosine with the same row of `wanted`, less that with other people's rows on average, in
    deviations of the latter: what a search in a gallery sees, whatever the scale.
    """
    cosines = functional.normalize(found, dim=1) @ functional.normalize(wanted, dim=1).T
    others = torch.from_numpy(identities[:, None] != identities[None]).to(cosines.device)
    count = others.sum(1)
    mean = (cosines * others).sum(1) / count
    variance = ((cosines - mean[:, None]).square() * others).sum(1) / count
    return float(((cosines.diagonal() - mean) / variance.sqrt().clamp_min(1e-12)).mean())


def straight_through(defense: Defense, embeddings: Tensor) -> Tensor:
    """Return records (N, D) of embeddings (N, D), drawn anew, with the gradient of the identity.

    So that a search sees through rounding, dropping and drawing (Athalye et al., ICML 2018).
    """
    with torch.no_grad():
        seed = int(torch.randint(2**62, ()))
        records = defense.protect(embeddings, generator=torch.Generator().manual_seed(seed))
        change = records.to(embeddings) - embeddings
    return embeddings + change
