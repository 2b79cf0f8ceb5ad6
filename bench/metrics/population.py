"""The images of an all-pairs comparison: sorted by person, with exact scores of single pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.errors import MetricError
from bench.metrics.arrays import TIE, Doubles, Integers, Numbers, as_floats, as_labels

if TYPE_CHECKING:
    from collections.abc import Iterator

Rows: TypeAlias = npt.NDArray[np.int32]

_PAIRS_PER_CHUNK = 256  # both chunks in float64 fit a core's cache at d = 512
_PAIRS_PER_DEVICE_CHUNK = 1 << 18
_ROWS_PER_CHUNK = 4096


class Population:
    """Embeddings in the order of their identities.

    Sorting puts each person's images side by side: the impostor pairs of row i, each counted once,
    are the columns from `end[i]` on, and the genuine ones the columns from i + 1 to there.

    Args:
        embeddings: (N, d) of any norm; a tensor stays on its device.
        identities: (N,) integers or strings.

    Attributes:
        count: N.
        dimension: d.
        people: (K,) the distinct identities, ascending.
        person: (N,) place in `people` of each of the caller's rows.
        images: (K,) images of each person.
        order: (N,) the caller's row of each sorted row.
        end: (N,) where the images of each sorted row's person end.
        genuine: Number of pairs of one person.
        impostors: Number of pairs of two people.

    Raises:
        MetricError: Wrong shapes, rows that are zero or not finite, no genuine or no impostor pair.
    """

    def __init__(self, embeddings: Numbers, identities: Numbers) -> None:
        self._embeddings = _as_matrix(embeddings)
        self._host = self._embeddings.numpy() if self.device.type == "cpu" else None
        self.count, self.dimension = self._embeddings.shape
        labels = as_labels(identities, "identities", self.count)
        self.people, self.person = np.unique(labels, return_inverse=True)
        self.images: Integers = np.bincount(self.person)
        self.order: Integers = np.argsort(self.person, kind="stable")
        self.end: Integers = np.cumsum(self.images)[self.person[self.order]]
        self.genuine = int((self.images * (self.images - 1) // 2).sum())
        self.impostors = self.count * (self.count - 1) // 2 - self.genuine
        if not self.genuine:
            raise MetricError("no identity has two embeddings, so there is no genuine pair")
        if not self.impostors:
            raise MetricError("all embeddings have one identity, so there is no impostor pair")
        self._norms = self._lengths()

    @property
    def device(self) -> torch.device:
        """Where the embeddings are."""
        return self._embeddings.device

    def unit_rows(self, rows: Integers) -> Tensor:
        """Return embeddings (by sorted row), L2-normalised in float64, rounded to float32."""
        norms = torch.from_numpy(self._norms[rows]).to(self.device)
        return (self._take(rows) / norms[:, None]).float()

    def all_unit_rows(self) -> Tensor:
        """Return `unit_rows` of everything: (N, d)."""
        units = torch.empty(self.count, self.dimension, device=self.device)
        for span in _spans(self.count, _ROWS_PER_CHUNK):
            units[span] = self.unit_rows(np.arange(self.count)[span])
        return units

    def genuine_pairs(self) -> tuple[Rows, Rows]:
        """Return both sorted rows of every pair of one person."""
        rows = np.arange(self.count)
        partners = self.end - rows - 1
        left = np.repeat(rows, partners)
        first = np.cumsum(partners) - partners
        right = left + 1 + np.arange(self.genuine) - first[left]
        return left.astype(np.int32), right.astype(np.int32)

    def scores(self, left: Rows, right: Rows) -> Doubles:
        """Return the cosines of pairs of sorted rows in float64, rounded to multiples of 2**-40.

        A score depends on its two rows alone, not on the company in which it is computed, so it is
        the same for every block size. The rounding makes ties of scores that differ by no more than
        the rounding of their sums.
        """
        products = np.empty(len(left))
        size = _PAIRS_PER_CHUNK if self.device.type == "cpu" else _PAIRS_PER_DEVICE_CHUNK
        for span in _spans(len(left), size):
            products[span] = _row_products(self._take(left[span]), self._take(right[span]))
        products /= self._norms[left] * self._norms[right]
        return np.rint(products / TIE) * TIE

    def _take(self, rows: npt.NDArray[np.signedinteger]) -> Tensor:
        places = self.order[rows]
        if self._host is None:
            return self._embeddings[torch.from_numpy(places).to(self.device)].double()
        return torch.from_numpy(self._host.take(places, axis=0).astype(np.float64, copy=False))

    def _lengths(self) -> Doubles:
        lengths = np.empty(self.count)
        for span in _spans(self.count, _ROWS_PER_CHUNK):
            rows = self._take(np.arange(self.count)[span])
            lengths[span] = np.sqrt(_row_products(rows, rows))
        broken = ~(lengths > 0) | np.isinf(lengths)
        if broken.any():
            row = self.order[np.argmax(broken)]
            raise MetricError(f"row {row} of embeddings is zero or not finite: it has no direction")
        return lengths


def _as_matrix(embeddings: Numbers) -> Tensor:
    """Return (N, d) in float32 or float64 on its own device."""
    if isinstance(embeddings, Tensor) and embeddings.device.type != "cpu":
        if embeddings.ndim != 2 or not embeddings.is_floating_point():
            raise MetricError(f"embeddings must be a matrix of real numbers, not {embeddings.shape}")
        embeddings = embeddings.detach()
        return embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    return torch.from_numpy(np.ascontiguousarray(as_floats(embeddings, "embeddings", 2)))


def _row_products(left: Tensor, right: Tensor) -> Doubles:
    """Return the inner product of each row of `left` with the same row of `right`."""
    if left.device.type == "cpu":
        return np.vecdot(left.numpy(), right.numpy())
    return (left * right).sum(dim=1).cpu().numpy()


def _spans(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
