"""PolyProtect: a template becomes values of secret polynomials."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.keyed import Key, Keyed


@DEFENSES.register("polyprotect")
@dataclass
class PolyProtect(Keyed):
    """Sums of coefficients times powers over windows of a template (arXiv 2110.00434).

    Krivokuca Hahn and Marcel, 2021: number k of a record is the sum over i = 1..m of
    c_i v_(j+i)^(e_i), where windows of m numbers overlap and the last is filled up with zeros. The
    exponents are a permutation of 1..m, the coefficients distinct integers but 0. In the paper
    every subject has its own: `key = "subject"`.

    Leaks: template. Secrets: coefficients and exponents. Score: cosine. Known weaknesses: with the
    key every number is one equation in m unknowns, and at a high overlap there are as many as
    unknowns: a numerical solver with the key finds the template. The numbers of an embedding are
    small, so that the linear term outweighs the others: where it has the same place under two keys,
    which is so for one of m pairs of keys, codes of one face are the same but for size and sign
    (D_sys .92 to 1 in 12 of 60 pairs of keys on LFW, below .3 in 45 of the other 48). And where its
    coefficient is small, people are told apart less well: at 3 or less (4 of 40 keys) accuracy on
    LFW's 6,000 pairs fell by 3.7 to 14.7 points, with other keys by 2.6 to 4.6. Source: the paper;
    the embedding is normalised first (arXiv 2605.03857).

    Args:
        terms: Numbers in a window (m), and the largest exponent.
        largest: Coefficients lie in [-largest, largest].
        overlap: Numbers that neighbouring windows share, less than terms.
    """

    leaks = frozenset({Leak.TEMPLATE})

    terms: Annotated[int, Field(ge=2, le=20)] = 5
    largest: Annotated[int, Field(ge=1)] = 50
    overlap: Annotated[int, Field(ge=0)] = 2

    def draw_key(self, size: int, generator: torch.Generator) -> Key:
        """Draw coefficients (terms,) and exponents (terms,)."""
        if self.overlap >= self.terms:
            raise ValueError(f"polyprotect needs overlap < terms = {self.terms}")
        if self.terms > min(size, 2 * self.largest):
            raise ValueError(
                f"polyprotect needs terms <= {min(size, 2 * self.largest)}: the length of the "
                "template, and the number of coefficients to choose from"
            )
        choice = torch.randperm(2 * self.largest, generator=generator)[: self.terms]
        values = choice - self.largest
        coefficients = values + (values >= 0).long()  # 0 is left out
        return coefficients.float(), torch.randperm(self.terms, generator=generator) + 1

    def encode(self, x: Tensor, key: Key) -> Tensor:
        """Return (N, windows) values of the polynomials."""
        coefficients, exponents = key
        step = self.terms - self.overlap
        windows = math.ceil((x.shape[1] - self.terms) / step) + 1
        missing = (windows - 1) * step + self.terms - x.shape[1]
        filled = functional.pad(functional.normalize(x, dim=1), (0, missing))
        terms = filled.unfold(1, self.terms, step) ** exponents
        return terms @ coefficients
