"""The images of an all-pairs comparison, and exact scores of single pairs of them."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.errors import MetricError
from bench.metrics.arrays import (
    TIE,
    Doubles,
    Floats,
    Integers,
    Numbers,
    as_floats,
    as_labels,
    row_products,
)

Rows: TypeAlias = npt.NDArray[np.int32]

_PAIRS_ON_DEVICE = 1 << 18
_LONGEST = 1e30  # beyond, float32 cannot normalise


class Population:
    """Embeddings in the order of their largest components, whatever their identities.

    So neighbours have nearly the same scale when they are coded in 8 bits, and one limit serves a
    whole block of them (`bench.metrics.screening`). Places are positions in this order.

    Args:
        embeddings: (N, d) of any norm; a tensor stays on its device.
        identities: (N,) integers or strings.

    Attributes:
        count: N.
        people: (K,) the distinct identities, ascending.
        person: (N,) index in `people` of each of the caller's rows.
        images: (K,) images of each person.
        order: (N,) the caller's row at each place.
        genuine: Number of pairs of one person.
        impostors: Number of pairs of two people.

    Raises:
        MetricError: Wrong shapes, rows that are zero or not finite, no genuine or no impostor pair.
    """

    def __init__(self, embeddings: Numbers, identities: Numbers) -> None:
        self._embeddings = _as_matrix(embeddings)
        self.count = len(self._embeddings)
        labels = as_labels(identities, "identities", self.count)
        self.people, self.person = np.unique(labels, return_inverse=True)
        self.images: Integers = np.bincount(self.person)
        self.genuine = int((self.images * (self.images - 1) // 2).sum())
        self.impostors = self.count * (self.count - 1) // 2 - self.genuine
        if not self.genuine:
            raise MetricError("no identity has two embeddings, so there is no genuine pair")
        if not self.impostors:
            raise MetricError("all embeddings have one identity, so there is no impostor pair")
        self._norms = self._lengths()
        peaks = torch.linalg.vector_norm(self._embeddings, torch.inf, dim=1).cpu().numpy()
        self.order: Integers = np.argsort(peaks / self._norms, kind="stable")

    @property
    def on_host(self) -> bool:
        """Whether the embeddings are in the memory of the processor."""
        return on_host(self._embeddings)

    def units(self) -> Tensor:
        """Return the L2-normalised embeddings in float32 by place: (N, d)."""
        units = self._embeddings[torch.from_numpy(self.order).to(self._embeddings.device)]
        norms = torch.from_numpy(self._norms[self.order]).to(units.device, units.dtype)
        return units.div_(norms[:, None]).float()

    def genuine_pairs(self) -> tuple[Rows, Rows]:
        """Return both places of every pair of one person, the lower first."""
        by_person = np.argsort(self.person[self.order], kind="stable")  # places, person by person
        end = np.cumsum(self.images)[self.person[self.order[by_person]]]
        rows = np.arange(self.count)
        partners = end - rows - 1
        left = np.repeat(rows, partners)
        first = np.cumsum(partners) - partners
        right = left + 1 + np.arange(self.genuine) - first[left]
        return by_person[left].astype(np.int32), by_person[right].astype(np.int32)

    def scores(self, left: Rows, right: Rows) -> Doubles:
        """Return the cosines of pairs of places in float64, rounded to multiples of 2**-40.

        A score depends on its two embeddings alone, not on the company in which it is computed, so
        it is the same for every block size. The rounding makes ties of scores that differ by no
        more than the rounding of their sums.
        """
        rows = self.order[left], self.order[right]
        scores = self._products(*rows)
        scores /= self._norms[rows[0]] * self._norms[rows[1]]
        return np.rint(scores / TIE) * TIE

    def _lengths(self) -> Doubles:
        rows = np.arange(self.count)
        lengths = np.sqrt(self._products(rows, rows))
        usable = (lengths > 1 / _LONGEST) & (lengths < _LONGEST)
        if not usable.all():
            row = int(np.argmin(usable))
            raise MetricError(f"row {row} of embeddings is zero or not finite: it has no direction")
        return lengths

    def _products(self, left: Integers, right: Integers) -> Floats:
        """Return the float64 inner products of pairs of the caller's rows."""
        if self.on_host:
            return row_products(self._embeddings.numpy(), left, right)
        return _row_products_on_device(self._embeddings, left, right)


def on_host(tensor: Tensor) -> bool:
    """Return whether NumPy can reach the tensor: it is faster than torch at what is done here."""
    return tensor.is_cpu


def _as_matrix(embeddings: Numbers) -> Tensor:
    """Return (N, d) in float32 or float64 on its own device."""
    if isinstance(embeddings, Tensor) and not on_host(embeddings):
        if embeddings.ndim != 2 or not embeddings.is_floating_point():
            raise MetricError(f"embeddings must be a real matrix, not {tuple(embeddings.shape)}")
        embeddings = embeddings.detach()
        return embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    return torch.from_numpy(np.ascontiguousarray(as_floats(embeddings, "embeddings", 2)))


def _row_products_on_device(rows: Tensor, left: Integers, right: Integers) -> Doubles:
    products = np.empty(len(left))
    for start in range(0, len(left), _PAIRS_ON_DEVICE):
        span = slice(start, start + _PAIRS_ON_DEVICE)
        pair = [rows[torch.from_numpy(p[span]).to(rows.device)].double() for p in (left, right)]
        products[span] = (pair[0] * pair[1]).sum(dim=1).cpu().numpy()
    return products
