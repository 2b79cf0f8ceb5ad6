"""No defense: the clean object is stored as it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.base import Defense


@DEFENSES.register("none")
@dataclass
class NoDefense(Defense):
    """No protection: what every defense is compared with.

    Leaks: any. Secrets: none. Weakness: everything.
    """

    leaks = frozenset({Leak.IMAGE, Leak.FEATURES, Leak.TEMPLATE})

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return the object itself."""
        return x
