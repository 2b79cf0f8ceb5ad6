"""SigFeat: the largest and smallest numbers of a template hide a codeword."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.base import Defender
from defenses.bch import BCH, Bits
from defenses.fuzzy_commitment import HASH_BYTES, FuzzyCommitment


@DEFENSES.register("sigfeat")
@dataclass
class SigFeat(FuzzyCommitment):
    """A fuzzy commitment with significant features (Mohan, CVPR Workshops 2019).

    The largest half of `length` numbers of a template become 1, the smallest half 0, and the bits
    are added to a random codeword of a BCH code. The record is where the numbers lie, the sum, and
    the sha256 of the codeword. A probe gives bits at the same places, is decoded, and is accepted
    if the hash agrees.

    Leaks: template. Secret: the codeword, which nobody keeps. Score: 1 if accepted, else 0: there
    is one operating point. Known weakness: where the numbers lie is public, and the codeword holds
    only as many bits as the code's message; whoever guesses it has the signs of the template. With
    templates hardly longer than the code, no number is left out and insignificant ones err.
    Source: facts of Cryptology-Algorithm-Lab/HashBTP (127, 255 or 512 bits; 10, 2, 21 or 59
    errors); a probe's bits are the upper half of its numbers at those places, which is our reading.

    Args:
        length: Bits of a codeword, at most the length of the template.
        errors: Bits that may differ; more of them leave a shorter message to guess.
    """

    leaks = frozenset({Leak.TEMPLATE})

    length: Literal[63, 127, 255, 511] = 127
    errors: Annotated[int, Field(ge=1)] = 10

    def fit(self, world: Defender) -> None:
        """Make the code; there is nothing to learn."""
        self.size = world.recognizer.embedding_size
        if self.length > self.size:
            raise ValueError(f"sigfeat needs length <= {self.size}, the length of the template")
        self.code = BCH(self.length, self.errors)

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return (N, D + 32): 0 or 1 where the sum has a bit, -1 elsewhere, then the hash."""
        messages = torch.randint(2, (len(x), self.code.message), generator=generator)
        codewords = self.code.encode(messages.numpy().astype(np.uint8))
        order = x.argsort(dim=1, descending=True)
        ones = (self.length + 1) // 2
        outer = torch.cat([order[:, :ones], order[:, len(order[0]) - self.length + ones :]], 1)
        places = outer.sort(1).values
        bits = self._bits(x.gather(1, places)) ^ codewords
        record = torch.full((len(x), self.size), -1.0, device=x.device)
        record.scatter_(1, places, torch.from_numpy(bits).float().to(x.device))
        return self.commit(record, [word.tobytes() for word in codewords])

    def decode(self, probes: Tensor, helper: Tensor) -> Sequence[bytes | None]:
        """Return the codewords near the probes' bits with the helper's (D,) taken off."""
        places = torch.nonzero(helper >= 0)[:, 0]
        stored = helper[places].byte().cpu().numpy()
        words, decoded = self.code.decode(self._bits(probes[:, places]) ^ stored)
        return [
            word.tobytes() if right else None for word, right in zip(words, decoded, strict=True)
        ]

    def linkage(self, records: Tensor, others: Tensor) -> Tensor:
        """Return the share of numbers that are significant in both records or in neither.

        The stronger known linker is not run: where two records have the same places, their sums
        differ by a codeword plus the bits that differ, and decode if these are few.
        """
        mine, theirs = ((part[:, : self.size] >= 0).float() for part in (records, others))
        both = mine @ theirs.T + (1 - mine) @ (1 - theirs).T
        return both / self.size

    def bytes_per_record(self, shape: torch.Size) -> float:
        """Return a bit per number of the template, one per bit of the code, and the hash."""
        return (shape.numel() - HASH_BYTES + self.length) / 8 + HASH_BYTES

    def _bits(self, chosen: Tensor) -> Bits:
        """Return 1 for the larger half of each row (N, length), else 0."""
        largest = chosen.topk((self.length + 1) // 2, dim=1).indices
        bits: Bits = torch.zeros_like(chosen).scatter(1, largest, 1).byte().cpu().numpy()
        return bits
