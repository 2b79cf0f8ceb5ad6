"""Several records of one face: what each leaves open, the others tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from attacks.preimage import Preimage
from bench.leaks import Leak
from bench.registry import ATTACKS
from bench.threats import Attacker, Threat


@ATTACKS.register("multi-record")
@dataclass
class MultiRecord(Preimage):
    """The mean of what several records of a probe are read as, and then a face that has it.

    The probe's photo was enrolled several times: each record has randomness of its own, and a key
    of its own where the scheme gives every record one (`key = "subject"` or `"leaked"`: several
    applications). Each is read as `preimage` and `gradient` do it; noise that is drawn anew for
    each record cancels in the mean, and what one key loses another keeps. Against a defense that
    makes the same record of a photo every time it gains nothing.

    Args:
        components: Principal components, at most the number of attacker images less one.
        steps: Optimiser steps of the search for a face.
        rate: Learning rate of that search, in deviations of a component.
        prior: Weight of the mean squared component, in deviations.
        shift: Largest shift in pixels, in both directions.
        restarts: Searches for each face; all but the first start a deviation beside the usual.
        starts: Own templates that the search for a template starts at.
        usual: Weight of the mean squared deviation from own templates, over all directions.
        records: Records that leaked of each probe.
    """

    leaks = frozenset({Leak.FEATURES, Leak.TEMPLATE})
    threats = frozenset({Threat.ADAPTIVE, Threat.INSIDER})

    records: Annotated[int, Field(ge=1, le=64)] = 4

    @property
    def enrolments(self) -> int:
        """As many as records."""
        return self.records

    def fit(self, attacker: Attacker) -> None:
        """Learn what `preimage` learns."""
        super().fit(attacker)
        self.encode = None  # a face is searched for their mean, not for each record

    def target(self, records: Tensor) -> Tensor:
        """Return the mean (N, D) of the embeddings that records (N, records, ...) are read as."""
        parts = records.unbind(1) if self.records > 1 else [records]
        found = [functional.normalize(super(MultiRecord, self).target(x), dim=1) for x in parts]
        return torch.stack(found).mean(0)
