"""Products of whole blocks of embeddings, in low precision but under a proven bound.

A screen tells of every pair in a tile how far its cosine can be from the product, so that most
pairs are accepted or dismissed for certain and only the few in between need an exact score.

- float32: a sum of d products of unit vectors, in any order, is off by less than (d + 8) 2**-24.
- int8: x = a q + r and y = b p + t with int8 codes q and p. The product a b (q . p) is exact in
  int32 and, by Cauchy-Schwarz, off by at most |r| + |t| + |r| |t|; the residuals are measured.
  Pairs that this leaves in doubt are multiplied in float32 first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from bench.metrics.arrays import row_products
from bench.metrics.population import on_host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from bench.metrics.arrays import Doubles, Floats, Integers
    from bench.metrics.population import Rows

_LARGEST_CODE = 127
_VECTORS_PER_CHUNK = 4096


@dataclass(frozen=True)
class Products:
    """Some pairs of places with what is known of their cosines.

    Attributes:
        left: (pairs,) place of one embedding.
        right: (pairs,) place of the other.
        values: (pairs,) products.
        errors: (pairs,) bound on the distance of each from the exact cosine.
    """

    left: Rows
    right: Rows
    values: Floats
    errors: Doubles

    def possibly_above(self, level: float) -> Products:
        """Return the pairs that hold all with a cosine above `level`."""
        possible = self.values > level - self.errors
        return Products(
            self.left[possible], self.right[possible], self.values[possible], self.errors[possible]
        )

    def distance(self, better: Floats, errors: Doubles | float = 0.0) -> float:
        """Return the largest distance from better products, themselves off by at most `errors`.

        Raises:
            ArithmeticError: One is further off than its bound.
        """
        distances = np.abs(self.values - better)
        if (distances > self.errors + errors).any():
            raise ArithmeticError("products on this machine break the error bound of their type")
        return float(distances.max(initial=0))


@dataclass(frozen=True)
class Tile:
    """Products of a block of places with another.

    Attributes:
        values: (rows, columns) float32 or int32; pairs that do not count have the lowest value.
        first_row: Place of the first row.
        first_column: Place of the first column.
        row_unit: (rows,) a pair's product is value * row_unit * column_unit.
        column_unit: (columns,).
        error: (rows,) bound on the distance of a row's products from the exact cosines.
        masks: Two buffers of the shape of `values`.
        units: (N, d) float32 unit vectors by place.
    """

    values: Tensor
    first_row: int
    first_column: int
    row_unit: Doubles
    column_unit: Doubles
    error: Doubles
    masks: Tensor
    units: Tensor

    def possibly_above(self, level: float) -> Tensor:
        """Return a mask of pairs that holds all with a cosine above `level`."""
        lowest = level - self.error
        column_unit = np.where(lowest > 0, self.column_unit.max(), self.column_unit.min())
        limits = lowest / (self.row_unit * column_unit)
        if self.values.is_floating_point():
            return self._above(np.nextafter(limits.astype(np.float32), np.float32(-np.inf)), 0)
        return self._above(_as_int32(np.floor(limits)), 0)

    def surely_above(self, level: float) -> Tensor:
        """Return a mask of pairs that all have a cosine above `level`."""
        highest = level + self.error
        column_unit = np.where(highest > 0, self.column_unit.min(), self.column_unit.max())
        limits = highest / (self.row_unit * column_unit)
        if self.values.is_floating_point():
            return self._above(np.nextafter(limits.astype(np.float32), np.float32(np.inf)), 1)
        return self._above(_as_int32(np.ceil(limits)), 1)

    def pick(self, mask: Tensor) -> Products:
        """Return the pairs under a mask."""
        if on_host(mask):
            chosen = np.flatnonzero(mask.numpy())
            values = self.values.numpy().ravel()[chosen]
        else:
            on_device = mask.flatten().nonzero()[:, 0]
            chosen = on_device.cpu().numpy()
            values = self.values.flatten()[on_device].cpu().numpy()
        rows = chosen // mask.shape[1]
        columns = chosen - rows * mask.shape[1]
        return Products(
            (rows + self.first_row).astype(np.int32),
            (columns + self.first_column).astype(np.int32),
            values * self.row_unit[rows] * self.column_unit[columns],
            self.error[rows],
        )

    def refined(self, coarse: Products) -> Products | None:
        """Return pairs with float32 products, or None if they have them already."""
        if self.values.is_floating_point():
            return None
        units = self.units.numpy()
        values = row_products(units, coarse.left, coarse.right, np.float32)
        error = np.full(len(values), float32_error(units.shape[1]))
        return Products(coarse.left, coarse.right, values, error)

    def _above(self, limits: npt.NDArray[np.generic], buffer: int) -> Tensor:
        out = self.masks[buffer]
        if on_host(out):  # several times faster than torch.gt
            np.greater(self.values.numpy(), limits[:, None], out=out.numpy())
        else:
            torch.gt(self.values, torch.from_numpy(limits[:, None]).to(out.device), out=out)
        return out


def count(mask: Tensor) -> int:
    """Return how many entries are true."""
    return int(np.count_nonzero(mask.numpy()) if on_host(mask) else mask.count_nonzero())


def without(mask: Tensor, part: Tensor) -> Tensor:
    """Take `part`, a subset of `mask`, out of it in place."""
    if not on_host(mask):
        return mask.logical_xor_(part)
    np.not_equal(mask.numpy(), part.numpy(), out=mask.numpy())
    return mask


@dataclass(frozen=True)
class Workspace:
    """Memory for one tile at a time.

    Attributes:
        values: (pairs,) for the products.
        masks: (2, pairs) for comparisons.
    """

    values: Tensor
    masks: Tensor


class Screen(ABC):
    """Products of impostor pairs, tile by tile.

    Args:
        units: (N, d) float32 unit vectors by place.
        genuine: Both places of every genuine pair, the lower first.
        rows: Rows of a tile.
        columns: Columns of a tile.
    """

    name: ClassVar[str]
    dtype: ClassVar[torch.dtype]
    lowest: ClassVar[float]

    def __init__(self, units: Tensor, genuine: tuple[Rows, Rows], rows: int, columns: int) -> None:
        self._units = units
        self._count = len(units)
        self._device = units.device
        self._rows, self._columns = rows, columns
        self._hidden = _ByTile(genuine, rows, columns, self._count)

    def workspace(self) -> Workspace:
        """Return memory for a tile."""
        size = min(self._rows, self._count) * min(self._columns, self._count)
        return Workspace(
            torch.empty(size, dtype=self.dtype, device=self._device),
            torch.empty(2, size, dtype=torch.bool, device=self._device),
        )

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Yield rows and columns of tiles that hold every pair once, row before column."""
        for row in range(0, self._count, self._rows):
            for column in range(row, self._count, self._columns):
                columns = slice(column, min(column + self._columns, self._count))
                yield slice(row, min(row + self._rows, columns.stop)), columns

    def tile(self, rows: slice, columns: slice, space: Workspace) -> Tile:
        """Return the tile of a block; it lasts until its workspace is used again."""
        shape = rows.stop - rows.start, columns.stop - columns.start
        size = shape[0] * shape[1]
        values = space.values[:size].view(shape)
        self._multiply(rows, columns, values)
        if columns.start < rows.stop:
            height = rows.stop - columns.start
            row, column = torch.tril_indices(height, shape[1], device=self._device)
            values[-height:][row, column] = self.lowest
        row, column = self._hidden.pairs(rows, columns)
        hidden = torch.from_numpy((row - rows.start) * shape[1] + column - columns.start)
        values.view(-1)[hidden.to(self._device)] = self.lowest
        return Tile(
            values,
            rows.start,
            columns.start,
            self._unit(rows),
            self._unit(columns),
            self._error(rows, columns),
            space.masks[:, :size].view(2, *shape),
            self._units,
        )

    @abstractmethod
    def _multiply(self, rows: slice, columns: slice, out: Tensor) -> None:
        """Write the products into `out`."""

    @abstractmethod
    def _unit(self, places: slice) -> Doubles:
        """Return what one unit of each vector's codes is worth."""

    @abstractmethod
    def _error(self, rows: slice, columns: slice) -> Doubles:
        """Return a bound for each row on the error of its products."""


class Float32Screen(Screen):
    """Plain float32 products."""

    name = "float32"
    dtype = torch.float32
    lowest = -np.inf

    def _multiply(self, rows: slice, columns: slice, out: Tensor) -> None:
        torch.mm(self._units[rows], self._units[columns].T, out=out)

    def _unit(self, places: slice) -> Doubles:
        return np.ones(places.stop - places.start)

    def _error(self, rows: slice, columns: slice) -> Doubles:
        return np.full(rows.stop - rows.start, float32_error(self._units.shape[1]))


class Int8Screen(Screen):
    """Integer products of 8-bit codes, each vector with its own scale."""

    name = "int8"
    dtype = torch.int32
    lowest = torch.iinfo(torch.int32).min

    def __init__(self, units: Tensor, genuine: tuple[Rows, Rows], rows: int, columns: int) -> None:
        super().__init__(units, genuine, rows, columns)
        self._codes = EightBit.of(units)

    def _multiply(self, rows: slice, columns: slice, out: Tensor) -> None:
        torch._int_mm(self._codes.codes[rows], self._codes.codes[columns].T, out=out)

    def _unit(self, places: slice) -> Doubles:
        return self._codes.scale[places]

    def _error(self, rows: slice, columns: slice) -> Doubles:
        residual = self._codes.residual
        return int8_error(residual[rows], residual[columns].max())


@dataclass(frozen=True)
class EightBit:
    """Codes of n unit vectors.

    Attributes:
        codes: (n, d) int8.
        scale: (n,) step from one code to the next.
        residual: (n,) norm of what the codes miss.
    """

    codes: Tensor
    scale: Doubles
    residual: Doubles

    @classmethod
    def of(cls, units: Tensor) -> EightBit:
        """Encode (n, d) float32 unit vectors."""
        codes = torch.empty(units.shape, dtype=torch.int8)
        scale, residual = torch.empty((2, len(units)))
        for start in range(0, len(units), _VECTORS_PER_CHUNK):
            chunk = slice(start, start + _VECTORS_PER_CHUNK)
            vectors = units[chunk]
            scale[chunk] = vectors.abs().amax(dim=1) / _LARGEST_CODE
            steps = (vectors / scale[chunk, None]).round_()
            codes[chunk] = steps
            residual[chunk] = (vectors - steps.mul_(scale[chunk, None])).norm(dim=1)
        return cls(codes, scale.double().numpy(), residual.double().numpy())


def int8_products_are_exact(count: int, dimension: int) -> bool:
    """Return whether torch multiplies (count, dimension) int8 codes without error on this machine.

    Without the instructions meant for it, sums of two products may saturate at 16 bits.
    """
    signs = np.random.default_rng(0).integers(0, 2, (count, dimension)) * 2 - 1
    codes = torch.from_numpy(signs.astype(np.int8)) * _LARGEST_CODE
    wide = codes.double()
    return torch.equal(torch._int_mm(codes, codes.T).double(), wide @ wide.T)


def float32_error(dimension: int) -> float:
    """Return the bound for unit vectors rounded to float32 and summed in any order (Higham).

    Three roundings of each vector (to float32, of its norm, of the division), d of products and
    sums, one for the second-order terms and one to spare.
    """
    return (dimension + 8) * 2.0**-24


def int8_error(left: Doubles, right: Doubles) -> Doubles:
    """Return the bound for codes that miss residuals of these norms.

    The last terms are the rounding of the vectors and of the measured norms to float32.
    """
    return (left + right + left * right) * (1 + 1e-4) + 2.0**-21


class _ByTile:
    """Pairs of places, to be found by the tile in which they are."""

    def __init__(self, pairs: tuple[Rows, Rows], rows: int, columns: int, count: int) -> None:
        self._rows, self._columns = rows, columns
        self._tiles_per_row = -(-count // columns)
        key = self._key(pairs[0], pairs[1])
        order = np.argsort(key, kind="stable")
        self._keys = key[order]
        self._left, self._right = pairs[0][order], pairs[1][order]

    def pairs(self, rows: slice, columns: slice) -> tuple[Integers, Integers]:
        """Return both places of the pairs in the tile that starts there."""
        key = self._key(np.array(rows.start), np.array(columns.start))
        found = slice(*np.searchsorted(self._keys, (key, key + 1)))
        return self._left[found].astype(np.int64), self._right[found].astype(np.int64)

    def _key(
        self, left: npt.NDArray[np.signedinteger], right: npt.NDArray[np.signedinteger]
    ) -> Integers:
        panel = left.astype(np.int64) // self._rows
        return panel * self._tiles_per_row + (right - panel * self._rows) // self._columns


def _as_int32(limits: Doubles) -> npt.NDArray[np.int32]:
    info = np.iinfo(np.int32)
    return np.clip(limits, info.min, info.max).astype(np.int32)
