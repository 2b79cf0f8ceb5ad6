"""Block DCT without its DC channels: black to the eye, open to least squares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.base import Defense
from defenses.frequency import block_dct


@DEFENSES.register("dct-drop-dc")
@dataclass
class DCTDropDC(Defense):
    """The frequency tensor of DCTDP (Ji et al., ECCV 2022) without its noise: 189 channels, no DC.

    Leaks: image. Secrets: none. The server inverts the linear map in closed form before it
    recognises, as any attacker can. Known weakness, and the reason it is here: the map is 8 times
    over-complete, so without noise only the mean brightness is lost.
    """

    leaks = frozenset({Leak.IMAGE})

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return (N, 189, 112, 112) coefficients, color by color."""
        return block_dct.forward(x, block_dct.WITHOUT_DC)

    def comparable(self, records: Tensor) -> Tensor:
        """Invert, with mid-gray for the lost mean, and embed; images are embedded as they are."""
        if records.shape[1] == 189:
            records = block_dct.inverse_without_dc(records).clamp(0, 1)
        return self.recognizer.embed(records)

    def hypotheses(self) -> list[list[int]]:
        """Return the channels of a color that a record may hold, in order."""
        return [list(block_dct.WITHOUT_DC)]
