"""Checked NumPy arrays from what callers hand to a metric: arrays, tensors on any device, lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from bench.errors import MetricError

if TYPE_CHECKING:
    from torch import Tensor

Numbers: TypeAlias = "npt.ArrayLike | Tensor"
Floats: TypeAlias = npt.NDArray[np.floating]
Doubles: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Booleans: TypeAlias = npt.NDArray[np.bool_]

# Cosines closer than this are ties: equal embeddings may differ by the rounding of their products.
TIE = 2.0**-40

# More would not fit a core's cache; with fewer, threads wait for Python's lock.
_PAIRS_PER_CHUNK = 512


def to_numpy(values: Numbers) -> npt.NDArray[np.generic]:
    """Return an array over the same numbers; a tensor is detached and brought to the host."""
    if not hasattr(values, "detach"):
        return np.asarray(values)
    tensor: Tensor = values.detach().cpu()
    if tensor.is_floating_point() and tensor.element_size() < 4:
        tensor = tensor.float()  # NumPy has no bfloat16
    return np.asarray(tensor)


def as_floats(values: Numbers, name: str, ndim: int) -> Floats:
    """Return a floating-point array of `ndim` axes: float32 stays, all else becomes float64.

    Raises:
        MetricError: Not numbers, another number of axes, or no element.
    """
    array = to_numpy(values)
    if array.dtype.kind not in "fiub":
        raise MetricError(f"{name} must be real numbers, not {array.dtype}")
    if array.ndim != ndim or array.size == 0:
        raise MetricError(
            f"{name} must be a non-empty array of {ndim} axes; its shape is {array.shape}"
        )
    return array.astype(np.float32 if array.dtype == np.float32 else np.float64, copy=False)


def as_scores(values: Numbers, name: str) -> Floats:
    """Return a non-empty vector of finite scores.

    Raises:
        MetricError: Another shape, no score, NaN or infinity.
    """
    scores = as_floats(values, name, 1)
    # One pass each and no temporary: NaN propagates through both.
    if not (np.isfinite(scores.min()) and np.isfinite(scores.max())):
        raise MetricError(f"{name} holds NaN or infinite scores; leave out or repair those pairs")
    return scores


def as_labels(values: Numbers, name: str, count: int) -> npt.NDArray[np.generic]:
    """Return one label (integer or string) for each of `count` items.

    Raises:
        MetricError: Another length, or labels that cannot be compared.
    """
    labels = to_numpy(values)
    if labels.dtype == object:  # a column of a table
        labels = np.asarray(labels.tolist())
    if labels.shape != (count,):
        raise MetricError(f"{name} must hold {count} labels; its shape is {labels.shape}")
    if labels.dtype.kind not in "iubUS":
        raise MetricError(f"{name} must be integers or strings, not {labels.dtype}")
    return labels


def as_indices(values: Numbers, name: str, size: int) -> Integers:
    """Return a vector of row numbers below `size`.

    Raises:
        MetricError: Not a vector of integers, or a row that does not exist.
    """
    rows = to_numpy(values)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise MetricError(f"{name} must be a vector of row numbers, not {rows.dtype} {rows.shape}")
    if rows.size and not (rows.min() >= 0 and rows.max() < size):
        raise MetricError(f"{name} holds a row outside 0..{size - 1}")
    return rows.astype(np.int64, copy=False)


def unit_rows(values: Numbers, name: str, *, missing: bool = False) -> Doubles:
    """Return the rows of a matrix in float64, L2-normalised.

    Args:
        values: (rows, dimension) embeddings of any norm.
        name: How messages call the matrix.
        missing: Whether rows that contain NaN are allowed; they come back as NaN throughout.

    Raises:
        MetricError: Another shape, an infinite or zero row, or NaN where nothing may be missing.
    """
    rows = as_floats(values, name, 2).astype(np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    broken = ~(norms > 0) | np.isinf(norms)
    if missing:
        broken &= ~np.isnan(norms)
    if broken.any():
        raise MetricError(
            f"row {int(np.argmax(broken))} of {name} is zero or not finite, so it has no direction"
        )
    rows /= norms[:, None]
    return rows


def row_products(
    rows: Floats,
    left: npt.NDArray[np.signedinteger],
    right: npt.NDArray[np.signedinteger],
    dtype: type[np.floating] = np.float64,
) -> Floats:
    """Return the inner product of each pair of rows: (pairs,).

    Each depends on its two rows alone, to the last bit, not on the pairs beside it.

    Args:
        rows: (N, d).
        left: (pairs,) row numbers, in range.
        right: (pairs,) row numbers, in range.
        dtype: In which to multiply and add.
    """
    products = np.empty(len(left), dtype)
    size = min(len(left), _PAIRS_PER_CHUNK)
    picked = np.empty((2, size, rows.shape[1]), rows.dtype)
    cast = picked if rows.dtype == dtype else np.empty(picked.shape, dtype)
    for start in range(0, len(left), _PAIRS_PER_CHUNK):
        span = slice(start, min(start + _PAIRS_PER_CHUNK, len(left)))
        count = span.stop - start
        # mode="clip" lets NumPy write straight into `out`.
        np.take(rows, left[span], axis=0, out=picked[0, :count], mode="clip")
        np.take(rows, right[span], axis=0, out=picked[1, :count], mode="clip")
        if cast is not picked:
            np.copyto(cast, picked)
        np.vecdot(cast[0, :count], cast[1, :count], out=products[span])
    return products
