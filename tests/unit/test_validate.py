"""The checks of `validate` hold for attacks that bite, and fail for one that does not."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import CliRunner

import bench.validate
from attacks.base import Attack
from bench.cli import app
from bench.leaks import Leak
from bench.registry import ATTACKS
from bench.store import Store
from bench.threats import Attacker, Threat
from bench.validate import Check, decided, table, validate

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


def test_what_stops_at_a_planted_defense_fails_and_what_bites_holds(
    tmp_path: Path, registries: None
) -> None:
    @ATTACKS.register("faint-hearted")
    @dataclass
    class FaintHearted(Attack):
        """Shows the record itself, unless that is no image."""

        leaks = frozenset({Leak.IMAGE})
        threats = frozenset({Threat.ADAPTIVE})

        def fit(self, attacker: Attacker) -> None:
            """Keep a mean."""
            self.mean = attacker.images.mean(0)

        def reconstruct(self, records: Tensor) -> Tensor:
            """Return the record where it is an image, else the mean face."""
            if records.shape[1:] == self.mean.shape:
                return records.clamp(0, 1)
            return self.mean.expand(len(records), -1, -1, -1)

    checks = validate(Store(tmp_path), ["dct-inverse", "faint-hearted"], quick=True)
    # What follows trains attacks; the command does it, a unit test need not.
    found = list(islice(checks, 8))
    assert [check.holds for check in found if check.kind == "floor"] == [True] * 6
    planted = {check.subject.split()[0]: check for check in found if check.kind == "planted"}
    assert planted["dct-inverse"].holds
    assert planted["dct-inverse"].value > 0.95
    assert planted["faint-hearted"].holds is False
    assert planted["faint-hearted"].value < 0.05


@pytest.mark.parametrize(
    ("margins", "holds"),
    [
        ([0.1, 0.2, -0.1, 0.1], True),
        ([0.0] * 4, True),
        ([-0.1, -0.2, 0.1, -0.1], None),
        ([-0.1, -0.12, -0.08, -0.1], False),
    ],
)
def test_a_check_fails_only_where_chance_cannot_explain_it(
    margins: list[float], holds: bool | None
) -> None:
    assert decided(np.array(margins)) is holds


@pytest.mark.parametrize(("holds", "code"), [(True, 0), (None, 0), (False, 1)])
def test_the_command_exits_with_1_where_a_check_fails(
    holds: bool | None, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [Check("floor", "x", 0.5, ">= 0", True), Check("planted", "y", 0.1, ">= 1", holds)]
    monkeypatch.setattr(bench.validate, "validate", lambda *_, **__: iter(checks))
    result = CliRunner().invoke(app, ["validate", "--store", str(tmp_path), "--device", "cpu"])
    assert result.exit_code == code
    assert result.stdout == table(checks) + "\n"
