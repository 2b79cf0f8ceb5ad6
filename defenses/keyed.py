"""Templates protected under a key: who holds which key, once for every scheme.

A key is drawn from a secret number of the instance and the number of the key. Two questions settle
how keys are handled: is the secret kept or published, and has every record a key of its own?

| key | secret | number of the key | who can make it |
|---|---|---|---|
| application | drawn at `fit` | 0 | whoever has the instance (`insider`) |
| subject | drawn at `fit` | one per record, stored in it | whoever has the instance |
| shared | 0, published | 0 | everybody who knows the scheme (`adaptive`) |
| leaked | 0, published | one per record, stored in it | everybody who holds the record |
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from bench.keys import derived_seed
from bench.leaks import Leak
from defenses.base import Defender, Defense

Key = tuple[Tensor, ...]
"""What a scheme draws: matrices, permutations, coefficients."""

Handling = Literal["application", "subject", "shared", "leaked"]

NUMBERS = 2**24
"""Keys of their own that records can have; every number is exact in float32."""


@dataclass
class Keyed(Defense):
    """A template scheme whose secret is a key.

    Args:
        key: "application": one key for all records of this instance. "subject": a key for every
            record, which the subject's token brings back. "shared": one key for all applications,
            known to everybody. "leaked": a key for every record, stored in the open beside it.
    """

    leaks = frozenset({Leak.TEMPLATE})

    key: Handling = "application"

    @abstractmethod
    def draw_key(self, size: int, generator: torch.Generator) -> Key:
        """Draw a key for templates of a length, on the CPU.

        Raises:
            ValueError: The parameters do not fit templates of this length.
        """

    @abstractmethod
    def encode(self, x: Tensor, key: Key) -> Tensor:
        """Turn templates (N, D) of unit length into codes (N, K) under one key."""

    def contest(self, x: Tensor, key: Key) -> Tensor | None:
        """Return what competes for each number of a code (N, K, C), if the code is who wins.

        Number k of a code is the place of the largest of its C competitors. Unlike the code they
        have a gradient, which a search for a pre-image follows (Paik et al., BMVC 2023). None where
        codes are real numbers and have a gradient of their own.
        """
        return None

    def similarity(self, probes: Tensor, references: Tensor) -> Tensor:
        """Return the (P, R) similarity of codes under one key. Default: cosine."""
        return super().score(probes, references)

    def match(self, probes: Tensor, codes: Tensor, key: Key) -> Tensor:
        """Return the (P, R) similarity of plain templates and codes under one key."""
        return self.similarity(self.encode(probes, key), codes)

    def undo(self, codes: Tensor, key: Key) -> Tensor | None:
        """Return templates (N, D) near those that made the codes, if a closed form is known."""
        return None

    @property
    def own_keys(self) -> bool:
        """Whether every record has a key of its own."""
        return self.key in {"subject", "leaked"}

    @property
    def plain_probes(self) -> bool:
        """Only the matcher can protect a probe, once it knows whose key to take."""
        return self.own_keys

    @property
    def mutual(self) -> bool:
        """Two records under one key can be compared."""
        return not self.own_keys

    @property
    def renewable(self) -> bool:
        """A key that is not the same for all can be drawn anew."""
        return self.key != "shared"

    def fit(self, world: Defender) -> None:
        """Draw the secret, and the key of the application."""
        self.size = world.recognizer.embedding_size
        self.device = world.device
        self._draw_secret(world.generator())

    def renewed(self, generator: torch.Generator) -> Self:
        """Return this instance with another secret, or the same where it is published."""
        other = copy.copy(self)
        other._draw_secret(generator)
        return other

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return codes (N, K), after the number of the key (N, 1) where every record has one."""
        if not self.own_keys:
            return self.encode(x, self._application_key)
        numbers = torch.randint(NUMBERS, (len(x),), generator=generator)
        rows = zip(x.split(1), numbers.tolist(), strict=True)
        codes = torch.cat([self.encode(row, self._numbered_key(number)) for row, number in rows])
        return torch.cat([numbers[:, None].to(codes), codes], 1)

    def key_of(self, record: Tensor) -> Key:
        """Return the key of one record (K,): what a thief of record and secret works with."""
        return self._numbered_key(int(record[0])) if self.own_keys else self._application_key

    def codes(self, records: Tensor) -> Tensor:
        """Return records (N, ...) without the numbers of their keys."""
        return records[:, 1:] if self.own_keys else records

    def score(self, probes: Tensor, references: Tensor) -> Tensor:
        """Return the (P, R) similarity: codes with codes, or plain probes under each key."""
        if not self.own_keys:
            return self.similarity(probes, references)
        columns = [
            self.match(probes, self.codes(record[None]), self.key_of(record))
            for record in references
        ]
        return torch.cat(columns, 1)

    def linkage(self, records: Tensor, others: Tensor) -> Tensor:
        """Return the similarity of codes, or of what keys in the open give back of the templates.

        The codes' own similarity where keys are secret or no closed form undoes the scheme.
        """
        if self.key == "leaked":
            undone = self._undone(records), self._undone(others)
            if undone[0] is not None and undone[1] is not None:
                return super().score(undone[0], undone[1])
        return self.similarity(self.codes(records), self.codes(others))

    def code_bytes(self, size: int) -> float:
        """Return the bytes that a code of so many numbers takes. Default: float32."""
        return 4.0 * size

    def bytes_per_record(self, shape: torch.Size) -> float:
        """Return the bytes of a packed code, and three of the number of its key."""
        size = shape.numel() - self.own_keys
        return self.code_bytes(size) + 3 * self.own_keys

    def _draw_secret(self, generator: torch.Generator) -> None:
        kept = self.key in {"application", "subject"}
        self.secret = torch.zeros(1, dtype=torch.int64)
        if kept:
            self.secret = torch.randint(2**62, (1,), generator=generator)
        self._application_key = self._numbered_key(0)

    def _undone(self, records: Tensor) -> Tensor | None:
        found = [self.undo(self.codes(record[None]), self.key_of(record)) for record in records]
        known = [templates for templates in found if templates is not None]
        return torch.cat(known) if len(known) == len(found) else None

    def _numbered_key(self, number: int) -> Key:
        seed = derived_seed([int(self.secret), number])
        drawn = self.draw_key(self.size, torch.Generator().manual_seed(seed))
        return tuple(part.to(self.device) for part in drawn)


def share_of_equal(probes: Tensor, references: Tensor) -> Tensor:
    """Return the (P, R) share of equal entries of codes (P, K) and (R, K)."""
    # A block of rows at a time: all pairs of long codes at once would not fit in memory.
    block = max(1, 2**24 // references.numel())
    parts = [(part[:, None] == references[None]).float().mean(2) for part in probes.split(block)]
    return torch.cat(parts)
