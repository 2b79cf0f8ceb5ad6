"""One number of a run, named by what it is about: how gates and claims of papers point at it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from bench.leaks import Leak
from bench.threats import Threat
from reports.run import CEILING, FLOORS, WORST_CASE, parameters_phrase, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.result_file import ResultFile
    from bench.results import Row


class UntestedError(Exception):
    """The run says nothing about a number; the message says why."""


class Place(BaseModel):
    """Which number is meant.

    Attributes:
        defense: Name of the defense.
        defense_parameters: Those that tell it from others of that name; false for one not set.
        leak: The leaked object.
        attack: Name of an attack or reference, or "worst" for the best attack per probe; unused for
            utility. References, such as "mean-face", are the same for every defense.
        attack_parameters: Those that tell it from others of that name.
        threat: The threat; left out for utility.
        metric: Metric of the result rows, such as "rank-1" or "accuracy.stored-vs-fresh".
        judge: Who scored; left out for metrics of pixels and for utility.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    defense: str
    defense_parameters: dict[str, Any] = {}
    leak: Leak
    attack: str = "worst"
    attack_parameters: dict[str, Any] = {}
    threat: Threat | None = None
    metric: str
    judge: str | None = None

    @property
    def row_attack(self) -> str | None:
        """The attack that rows name: None for utility, which is under no threat."""
        if self.threat is None:
            return None
        return WORST_CASE if self.attack == "worst" else self.attack

    @property
    def phrase(self) -> str:
        """What is meant, in words."""
        by = f" by {self.judge}" if self.judge else ""
        measure = f"{self.metric}{by}"
        if self.attack in {*FLOORS, CEILING}:
            return visible(f"{self.attack} / {measure}")
        parts = [self.leak.value, _with(self.defense, self.defense_parameters)]
        if self.threat is not None:
            attack = self.row_attack or ""
            parts += [_with(attack, self.attack_parameters), self.threat.value]
        return visible(" / ".join([*parts, measure]))


def rows_of(place: Place, run: ResultFile) -> Sequence[Row]:
    """Return the rows, one per seed, that a place names.

    Raises:
        UntestedError: There are none, there are several settings, or one failed.
    """
    attack = place.row_attack
    wanted = (attack, place.judge, place.metric)
    references = [
        row
        for row in run.rows
        if row.defense is None and (row.attack, row.judge, row.metric) == wanted
    ]
    if references:
        return references
    about = (place.defense, place.leak, place.threat)
    mine = [
        row
        for row in run.rows
        if (row.defense, row.leak, row.threat) == about
        and _has(row.defense_params, place.defense_parameters)
    ]
    for row in mine:
        # The attack that failed might have been the worst.
        if row.status == "error" and attack in {row.attack, WORST_CASE}:
            raise UntestedError(visible(f"{row.attack or 'The utility'} failed: {row.reason}"))
    found = [
        row
        for row in mine
        if (row.attack, row.judge, row.metric) == wanted
        and _has(row.attack_params, place.attack_parameters)
    ]
    if not found:
        raise UntestedError(_what_there_is(place, run))
    settings = {(row.defense_params, row.attack_params) for row in found}
    if len(settings) > 1:
        raise UntestedError(
            f"The run has {len(settings)} settings of it: name one with defense_parameters or "
            "attack_parameters."
        )
    return found


def _what_there_is(place: Place, run: ResultFile) -> str:
    """Return which field of a place names nothing in the run."""
    rows: list[Row] = [row for row in run.rows if row.defense is not None]
    for field, wanted in (
        ("leak", place.leak),
        ("defense", place.defense),
        ("threat", place.threat),
        ("metric", place.metric),
        ("attack", place.row_attack),
        ("judge", place.judge),
    ):
        known = dict.fromkeys(str(getattr(row, field) or "none") for row in rows)
        rows = [row for row in rows if getattr(row, field) == wanted]
        if not rows:
            names = ", ".join(known)
            return visible(f"The run has no such {field} as {wanted or 'none'}; it has {names}.")
    return f"The run has no such defense_parameters or attack_parameters of {place.defense}."


def _with(name: str, parameters: dict[str, Any]) -> str:
    given = {key: value for key, value in parameters.items() if value is not False}
    return f"{name} ({parameters_phrase(json.dumps(given))})" if given else name


def _has(text: str, wanted: dict[str, Any]) -> bool:
    """Say whether parameters, as rows carry them, have these values."""
    parameters = json.loads(text)
    return all(
        parameters.get(name) in (None, False) if value is False else parameters.get(name) == value
        for name, value in wanted.items()
    )
