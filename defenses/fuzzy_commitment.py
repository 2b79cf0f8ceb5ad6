"""Fuzzy commitments: a template hides a codeword, of which only the hash is stored."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from bench.leaks import Leak
from defenses.base import Defense

HASH_BYTES = 32


@dataclass
class FuzzyCommitment(Defense):
    """A record is helper data (N, H) and the 32 bytes of the sha256 of a random codeword.

    Helper and probe give a codeword; the probe is accepted if its hash is the stored one. There is
    no key: every record has a codeword of its own, which nobody keeps.
    """

    leaks = frozenset({Leak.TEMPLATE})

    @abstractmethod
    def decode(self, probes: Tensor, helper: Tensor) -> Sequence[bytes | None]:
        """Return the codeword that each plain probe (N, D) gives with helper data (H,), if any."""

    @property
    def mutual(self) -> bool:
        """Two records hold two codewords."""
        return False

    @property
    def renewable(self) -> bool:
        """Another codeword makes another record."""
        return True

    def renewed(self, generator: torch.Generator) -> Self:
        """Return this instance, whose records have secrets of their own."""
        return self

    def commit(self, helper: Tensor, codewords: Sequence[bytes]) -> Tensor:
        """Return records (N, H + 32) of helper data (N, H) and codewords."""
        hashes = [list(hashlib.sha256(codeword).digest()) for codeword in codewords]
        return torch.cat([helper, torch.tensor(hashes, device=helper.device).to(helper)], 1)

    def score(self, probes: Tensor, references: Tensor) -> Tensor:
        """Return (P, R) of 1 where a plain probe is accepted, else 0: one operating point."""
        columns = []
        for record in references:
            helper, stored = record[:-HASH_BYTES], bytes(record[-HASH_BYTES:].int().tolist())
            columns.append(
                [
                    codeword is not None and hashlib.sha256(codeword).digest() == stored
                    for codeword in self.decode(probes, helper)
                ]
            )
        return torch.tensor(columns, device=probes.device).T.float()
