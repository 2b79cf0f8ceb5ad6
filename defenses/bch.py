"""Binary BCH codes on whole batches of words: encoding by a matrix, decoding by Berlekamp-Massey.

Own code because the libraries at hand decode one word at a time (milliseconds each), and a matcher
decodes as many words as there are pairs of probe and record.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]
Field = NDArray[np.int64]

PRIMITIVE = {6: 0b1000011, 7: 0b10001001, 8: 0b100011101, 9: 0b1000010001}
"""Primitive polynomials of GF(2^m)."""

CHUNK = 4096
"""Words decoded at once."""


class BCH:
    """The primitive narrow-sense code of length 2^m - 1 that corrects a number of errors.

    Args:
        length: 63, 127, 255 or 511.
        errors: Errors that are corrected (t).

    Raises:
        ValueError: No such code, or it holds no message.
    """

    def __init__(self, length: int, errors: int) -> None:
        degree = (length + 1).bit_length() - 1
        if degree not in PRIMITIVE or length != 2**degree - 1:
            raise ValueError(f"a BCH code has the length 63, 127, 255 or 511, not {length}")
        self.length, self.errors = length, errors
        powers = [1]
        for _ in range(length - 1):
            value = powers[-1] << 1
            powers.append(value ^ PRIMITIVE[degree] if value > length else value)
        # Twice around, so that sums of two logarithms need no modulo.
        self._power: Field = np.array(powers * 2)
        self._log: Field = np.zeros(length + 1, np.int64)
        self._log[powers] = np.arange(length)
        roots = {r * 2**i % length for r in range(1, 2 * errors + 1) for i in range(degree)}
        if len(roots) >= length:
            raise ValueError(f"a BCH code of length {length} cannot correct {errors} errors")
        self._roots = sorted(roots)
        self.message = length - len(roots)

    @cached_property
    def _generator(self) -> Bits:
        """The (message, length) matrix whose rows are shifts of the generator polynomial."""
        polynomial = np.ones(1, np.int64)
        for root in self._roots:
            shifted = np.append(polynomial, 0)
            shifted[1:] ^= self._times(polynomial, np.int64(self._power[root]))
            polynomial = shifted
        rows = np.zeros((self.message, self.length), np.uint8)
        for row in range(self.message):
            rows[row, row : row + len(polynomial)] = polynomial
        return rows

    def encode(self, messages: Bits) -> Bits:
        """Return the codewords (N, length) of messages (N, message)."""
        return (messages.astype(np.int64) @ self._generator % 2).astype(np.uint8)

    def decode(self, words: Bits) -> tuple[Bits, NDArray[np.bool_]]:
        """Return the codewords (N, length) within `errors` of words, and whether there is one."""
        parts = [
            self._decode(words[start : start + CHUNK]) for start in range(0, len(words), CHUNK)
        ]
        return np.concatenate([word for word, _ in parts]), np.concatenate([ok for _, ok in parts])

    def _decode(self, words: Bits) -> tuple[Bits, NDArray[np.bool_]]:
        locator, degree = self._locator(self._syndromes(words))
        plausible = np.flatnonzero(degree <= self.errors)
        found = self._roots_of(locator[plausible])
        right = found.sum(1) == degree[plausible]
        corrected, decoded = words.copy(), np.zeros(len(words), np.bool_)
        rows = plausible[right]
        corrected[rows] ^= found[right].astype(np.uint8)
        decoded[rows] = True
        return corrected, decoded

    def _syndromes(self, words: Bits) -> Field:
        """Return the values (N, 2 errors) of words at the powers 1, 2, ... of the root."""
        exponent = np.arange(self.length - 1, -1, -1)
        syndromes = np.zeros((len(words), 2 * self.errors), np.int64)
        for order in range(1, 2 * self.errors + 1):
            terms = self._power[exponent * order % self.length] * words
            syndromes[:, order - 1] = np.bitwise_xor.reduce(terms, axis=1)
        return syndromes

    def _locator(self, syndromes: Field) -> tuple[Field, Field]:
        """Return error locators (N, 2 errors + 1), lowest power first, and their degrees (N,)."""
        count, steps = syndromes.shape
        locator, former = (np.zeros((count, steps + 1), np.int64) for _ in range(2))
        locator[:, 0] = former[:, 0] = 1
        degree, scale = np.zeros(count, np.int64), np.ones(count, np.int64)
        for step in range(steps):
            window = syndromes[:, step::-1]
            products = self._times(locator[:, : step + 1], window)
            gap = np.bitwise_xor.reduce(products, axis=1)
            former = np.roll(former, 1, axis=1)
            former[:, 0] = 0
            change = self._times(former, self._times(gap, self._inverse(scale))[:, None])
            longer = (gap != 0) & (2 * degree <= step)
            former[longer], scale[longer] = locator[longer], gap[longer]
            degree[longer] = step + 1 - degree[longer]
            locator = locator ^ change
        return locator, degree

    def _roots_of(self, locator: Field) -> NDArray[np.bool_]:
        """Return at which positions (N, length) the locator says that a bit is wrong."""
        position = np.arange(self.length - 1, -1, -1)
        value = np.zeros((len(locator), self.length), np.int64)
        for power in range(self.errors + 1):
            at = self._power[-position * power % self.length]
            value ^= self._times(locator[:, power : power + 1], at)
        return value == 0

    def _times(self, a: Field, b: Field | np.int64) -> Field:
        product: Field = self._power[self._log[a] + self._log[b]]
        return np.where((a != 0) & (b != 0), product, 0)

    def _inverse(self, a: Field) -> Field:
        inverse: Field = self._power[(self.length - self._log[a]) % self.length]
        return inverse
