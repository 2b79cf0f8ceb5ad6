"""Products of whole blocks of embeddings, in low precision but under a proven bound.

A screen tells of every pair in a tile how far its cosine can be from the product, so that most
pairs are accepted or dismissed for certain and only the few in between need an exact score.

- float32: a sum of d products of unit vectors, in any order, is off by less than (d + 8) 2**-24.
- int8: row = a q + r and column = c p + t with int8 codes q and p. The product a c (q . p) is exact
  in int32 and, by Cauchy-Schwarz, off by at most |r| + |t| + |r| |t|; the residuals are measured.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from bench.metrics.arrays import Doubles, Integers
    from bench.metrics.population import Rows

# Where the common scale of the columns saturates, in root mean squares of a component: the least
# squared error for eight bits and normal components.
_SATURATION = 3.9
_LARGEST_CODE = 127
_VECTORS_PER_CHUNK = 4096


@dataclass(frozen=True)
class Tile:
    """Products of a block of rows with a block of columns.

    Attributes:
        values: (rows, columns) float32 or int32; pairs that do not count have the lowest value.
        first_row: Sorted row of the first row.
        first_column: Sorted row of the first column.
        unit: (rows, 1) cosine per unit of `values`.
        error: (rows, 1) bound on the distance of `values * unit` from the exact cosine.
        masks: Two buffers of the shape of `values`.
    """

    values: Tensor
    first_row: int
    first_column: int
    unit: Doubles
    error: Doubles
    masks: Tensor

    def possibly_above(self, level: float) -> Tensor:
        """Return a mask of pairs that holds all with a cosine above `level`."""
        limits = (level - self.error) / self.unit
        if self.values.is_floating_point():
            limits = np.nextafter(limits.astype(np.float32), np.float32(-np.inf))
        else:
            limits = _as_int32(np.floor(limits))
        return self._above(limits, self.masks[0])

    def surely_above(self, level: float) -> Tensor:
        """Return a mask of pairs that all have a cosine above `level`."""
        limits = (level + self.error) / self.unit
        if self.values.is_floating_point():
            limits = np.nextafter(limits.astype(np.float32), np.float32(np.inf))
        else:
            limits = _as_int32(np.ceil(limits))
        return self._above(limits, self.masks[1])

    def pick(self, mask: Tensor) -> tuple[Rows, Rows, Doubles, Doubles]:
        """Return sorted rows, columns, approximate cosines and their error bounds under a mask."""
        if mask.is_cpu:
            places = np.flatnonzero(mask.numpy())
            values = self.values.numpy().ravel()[places]
        else:
            on_device = mask.flatten().nonzero()[:, 0]
            places = on_device.cpu().numpy()
            values = self.values.flatten()[on_device].cpu().numpy()
        rows = places // mask.shape[1]
        columns = places - rows * mask.shape[1]
        return (
            (rows + self.first_row).astype(np.int32),
            (columns + self.first_column).astype(np.int32),
            values * self.unit[rows, 0],
            self.error[rows, 0],
        )

    def _above(self, limits: npt.NDArray[np.generic], out: Tensor) -> Tensor:
        if out.is_cpu:  # several times faster than torch.gt
            np.greater(self.values.numpy(), limits, out=out.numpy())
        else:
            torch.gt(self.values, torch.from_numpy(limits).to(out.device), out=out)
        return out


def count(mask: Tensor) -> int:
    """Return how many entries are true."""
    return int(np.count_nonzero(mask.numpy()) if mask.is_cpu else mask.count_nonzero())


def without(mask: Tensor, part: Tensor) -> Tensor:
    """Take `part`, a subset of `mask`, out of it in place."""
    if not mask.is_cpu:
        return mask.logical_xor_(part)
    np.not_equal(mask.numpy(), part.numpy(), out=mask.numpy())
    return mask


class Screen(ABC):
    """Products of sorted rows with sorted columns, one tile after another in the same buffer.

    Args:
        units: (N, d) float32 unit vectors, sorted by person.
        end: (N,) the first column that is another person's, for each row.
        rows: Most rows in a tile.
        columns: Most columns in a tile.
    """

    name: ClassVar[str]
    dtype: ClassVar[torch.dtype]
    lowest: ClassVar[float]

    def __init__(self, units: Tensor, end: Integers, rows: int, columns: int) -> None:
        self._end = torch.from_numpy(end).to(units.device)
        self._buffer = torch.empty(rows * columns, dtype=self.dtype, device=units.device)
        self._masks = torch.empty(2, rows * columns, dtype=torch.bool, device=units.device)

    def tile(self, rows: slice, columns: slice) -> Tile:
        """Return the products of impostor pairs; the tile is valid until the next call."""
        shape = rows.stop - rows.start, columns.stop - columns.start
        size = shape[0] * shape[1]
        values = self._buffer[:size].view(shape)
        self._multiply(rows, columns, values)
        width = int(self._end[rows.stop - 1]) - columns.start
        if width > 0:
            places = torch.arange(columns.start, columns.start + width, device=values.device)
            corner = values[:, :width]
            corner.masked_fill_(places[: corner.shape[1]] < self._end[rows, None], self.lowest)
        unit, error = self._scale(rows, columns)
        masks = self._masks[:, :size].view(2, *shape)
        return Tile(values, rows.start, columns.start, unit, error, masks)

    @abstractmethod
    def _multiply(self, rows: slice, columns: slice, out: Tensor) -> None:
        """Write the products into `out`."""

    @abstractmethod
    def _scale(self, rows: slice, columns: slice) -> tuple[Doubles, Doubles]:
        """Return the unit and the error of each row, both (rows, 1)."""


class Float32Screen(Screen):
    """Plain float32 products."""

    name = "float32"
    dtype = torch.float32
    lowest = -np.inf

    def __init__(self, units: Tensor, end: Integers, rows: int, columns: int) -> None:
        super().__init__(units, end, rows, columns)
        self._units = units
        self._error = float32_error(units.shape[1])

    def _multiply(self, rows: slice, columns: slice, out: Tensor) -> None:
        torch.mm(self._units[rows], self._units[columns].T, out=out)

    def _scale(self, rows: slice, columns: slice) -> tuple[Doubles, Doubles]:
        shape = (rows.stop - rows.start, 1)
        return np.ones(shape), np.full(shape, self._error)


class Int8Screen(Screen):
    """Integer products of 8-bit codes: a scale per row, a common scale for all columns."""

    name = "int8"
    dtype = torch.int32
    lowest = torch.iinfo(torch.int32).min

    def __init__(self, units: Tensor, end: Integers, rows: int, columns: int) -> None:
        super().__init__(units, end, rows, columns)
        self._codes = EightBit.of(units)

    def _multiply(self, rows: slice, columns: slice, out: Tensor) -> None:
        torch._int_mm(self._codes.rows[rows], self._codes.columns[columns].T, out=out)

    def _scale(self, rows: slice, columns: slice) -> tuple[Doubles, Doubles]:
        unit = self._codes.row_scale[rows, None] * self._codes.column_scale
        row_residual = self._codes.row_residual[rows, None]
        return unit, int8_error(row_residual, self._codes.column_residual[columns].max())


@dataclass(frozen=True)
class EightBit:
    """Codes of n unit vectors, once with a scale per vector and once with a common scale.

    Attributes:
        rows: (n, d) int8 codes for the scale of each vector.
        row_scale: (n,) the vector's step from one code to the next.
        row_residual: (n,) norm of what the codes miss.
        columns: (n, d) int8 codes for the common scale.
        column_scale: The common step.
        column_residual: (n,) norm of what those codes miss.
    """

    rows: Tensor
    row_scale: Doubles
    row_residual: Doubles
    columns: Tensor
    column_scale: float
    column_residual: Doubles

    @classmethod
    def of(cls, units: Tensor) -> EightBit:
        """Encode (n, d) float32 unit vectors."""
        count, dimension = units.shape
        row_scale = units.abs().amax(dim=1, keepdim=True) / _LARGEST_CODE
        # The components of unit vectors have mean square 1 / d.
        column_scale = torch.tensor(_SATURATION / _LARGEST_CODE / dimension**0.5)
        rows, columns = torch.empty((2, count, dimension), dtype=torch.int8)
        row_residual, column_residual = np.empty((2, count))
        for start in range(0, count, _VECTORS_PER_CHUNK):
            chunk = slice(start, start + _VECTORS_PER_CHUNK)
            rows[chunk], row_residual[chunk] = _encode(units[chunk], row_scale[chunk])
            columns[chunk], column_residual[chunk] = _encode(units[chunk], column_scale)
        return cls(
            rows,
            row_scale[:, 0].double().numpy(),
            row_residual,
            columns,
            column_scale.item(),
            column_residual,
        )


def float32_error(dimension: int) -> float:
    """Return the bound for unit vectors rounded to float32 and summed in any order (Higham).

    Three roundings of each vector (to float32, of its norm, of the division), d of products and
    sums, one for the second-order terms and one to spare.
    """
    return (dimension + 8) * 2.0**-24


def int8_error(row_residual: Doubles, column_residual: Doubles) -> Doubles:
    """Return the bound for codes that miss residuals of these norms.

    The last terms are the rounding of the vectors and of the measured norms to float32.
    """
    exact = row_residual + column_residual + row_residual * column_residual
    return exact * (1 + 1e-4) + 2.0**-21


def _encode(units: Tensor, scale: Tensor) -> tuple[Tensor, Doubles]:
    codes = (units / scale).round_().clamp_(-_LARGEST_CODE, _LARGEST_CODE)
    residual = (units - codes * scale).norm(dim=1).double().numpy()
    return codes.to(torch.int8), residual


def _as_int32(limits: Doubles) -> npt.NDArray[np.int32]:
    info = np.iinfo(np.int32)
    return np.clip(limits, info.min, info.max).astype(np.int32)
