"""Products of whole blocks of embeddings, in low precision but under a proven bound.

A screen tells of every pair in a tile how far its cosine can be from the product, so that most
pairs are accepted or dismissed for certain and only the few in between need an exact score.

- float32: a sum of d products of unit vectors, in any order, is off by less than (d + 4) 2**-24.
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

    from bench.metrics.arrays import Doubles
    from bench.metrics.population import Population

# Where the common scale of the columns saturates, in root mean squares of a component: the least
# squared error for eight bits and normal components.
_SATURATION = 3.9
_LARGEST_CODE = 127
_ROWS_PER_CHUNK = 4096


@dataclass(frozen=True)
class Tile:
    """Products of a block of rows with a block of columns.

    Attributes:
        values: (rows, columns) float32 or int32; pairs that do not count have the lowest value.
        first_row: Sorted row of the first row.
        first_column: Sorted row of the first column.
        unit: (rows, 1) cosine per unit of `values`.
        error: (rows, 1) bound on the distance of `values * unit` from the exact cosine.
    """

    values: Tensor
    first_row: int
    first_column: int
    unit: Doubles
    error: Doubles

    def possibly_above(self, level: float) -> npt.NDArray[np.generic]:
        """Return (rows, 1) limits that the value of every pair with a cosine > `level` exceeds."""
        limits = (level - self.error) / self.unit
        if self.values.is_floating_point():
            return np.nextafter(limits.astype(np.float32), np.float32(-np.inf))
        return _as_int32(np.floor(limits))

    def surely_above(self, level: float) -> npt.NDArray[np.generic]:
        """Return (rows, 1) limits; every pair whose value exceeds them has a cosine > `level`."""
        limits = (level + self.error) / self.unit
        if self.values.is_floating_point():
            return np.nextafter(limits.astype(np.float32), np.float32(np.inf))
        return _as_int32(np.ceil(limits))


class Screen(ABC):
    """Products of sorted rows with sorted columns, one tile after another in the same buffer.

    Args:
        population: Whose embeddings.
        rows: Most rows in a tile.
        columns: Most columns in a tile.
    """

    name: ClassVar[str]
    dtype: ClassVar[torch.dtype]
    lowest: ClassVar[float]

    def __init__(self, population: Population, rows: int, columns: int) -> None:
        self._end = torch.from_numpy(population.end).to(population.device)
        self._buffer = torch.empty(rows * columns, dtype=self.dtype, device=population.device)

    def tile(self, rows: slice, columns: slice) -> Tile:
        """Return the products of impostor pairs; the tile is valid until the next call."""
        shape = rows.stop - rows.start, columns.stop - columns.start
        values = self._buffer[: shape[0] * shape[1]].view(shape)
        self._multiply(rows, columns, values)
        if self._end[rows.stop - 1] > columns.start:
            places = torch.arange(columns.start, columns.stop, device=values.device)
            values.masked_fill_(places < self._end[rows, None], self.lowest)
        unit, error = self._scale(rows, columns)
        return Tile(values, rows.start, columns.start, unit, error)

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

    def __init__(self, population: Population, rows: int, columns: int) -> None:
        super().__init__(population, rows, columns)
        self._units = population.all_unit_rows()
        self._error = float32_error(population.dimension)

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

    def __init__(self, population: Population, rows: int, columns: int) -> None:
        super().__init__(population, rows, columns)
        count, dimension = population.count, population.dimension
        self._row_codes = torch.empty(count, dimension, dtype=torch.int8)
        self._column_codes = torch.empty_like(self._row_codes)
        self._row_scale, self._row_residual, self._column_residual = np.empty((3, count))
        for start in range(0, count, _ROWS_PER_CHUNK):
            span = slice(start, min(start + _ROWS_PER_CHUNK, count))
            codes = EightBit.of(population.unit_rows(np.arange(span.start, span.stop)))
            self._row_codes[span], self._column_codes[span] = codes.rows, codes.columns
            self._row_scale[span] = codes.row_scale
            self._row_residual[span] = codes.row_residual
            self._column_residual[span] = codes.column_residual
        self._column_scale = common_scale(dimension)

    def _multiply(self, rows: slice, columns: slice, out: Tensor) -> None:
        torch._int_mm(self._row_codes[rows], self._column_codes[columns].T, out=out)

    def _scale(self, rows: slice, columns: slice) -> tuple[Doubles, Doubles]:
        unit = self._row_scale[rows, None] * self._column_scale
        return unit, int8_error(
            self._row_residual[rows, None], self._column_residual[columns].max()
        )


@dataclass(frozen=True)
class EightBit:
    """Codes of n unit vectors, once with a scale per vector and once with the common scale.

    Attributes:
        rows: (n, d) int8 codes for the scale of each vector.
        row_scale: (n,) cosine units per code step.
        row_residual: (n,) norm of what the codes miss.
        columns: (n, d) int8 codes for `common_scale(d)`.
        column_residual: (n,) norm of what they miss.
    """

    rows: Tensor
    row_scale: Doubles
    row_residual: Doubles
    columns: Tensor
    column_residual: Doubles

    @classmethod
    def of(cls, units: Tensor) -> EightBit:
        """Encode float32 unit vectors, (n, d)."""
        row_scale = units.abs().amax(dim=1, keepdim=True) / _LARGEST_CODE
        rows, row_residual = _encode(units, row_scale)
        columns, column_residual = _encode(units, torch.tensor(common_scale(units.shape[1])))
        return cls(
            rows, row_scale[:, 0].double().numpy(), row_residual, columns, column_residual
        )


def common_scale(dimension: int) -> float:
    """Return the code step of the columns: components of unit vectors have mean square 1 / d."""
    return float(np.float32(_SATURATION / _LARGEST_CODE / np.sqrt(dimension)))


def float32_error(dimension: int) -> float:
    """Return the bound for unit vectors rounded to float32 and summed in any order (Higham).

    Two roundings of the vectors, d of products and sums, one for their second-order terms and one
    to spare.
    """
    return (dimension + 4) * 2.0**-24


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
