"""What papers claim, and what runs say about it.

A claim is a `[[claim]]` table of a TOML file: a number with a limit, an order between two numbers,
a figure to set beside ours, or a reason why nothing here can test it. It is *confirmed* where the
whole 95 % interval (for an order: of the paired difference on the same probes) lies on the side
that it names, *refuted* where it lies on the other, and *undecided* otherwise.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.errors import MetricError, UserError
from bench.metrics.definitions import definition
from reports.numbers import Shown, interval, show
from reports.places import Place, UntestedError, rows_of
from reports.run import parameters_phrase
from reports.samples import difference, estimate, sample

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.metrics import Estimate
    from bench.result_file import ResultFile
    from bench.results import Row
    from reports.samples import Sample
    from reports.standings import Source

CONFIDENCE = 0.95


class Answer(StrEnum):
    """What a run says about a claim."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    UNDECIDED = "undecided"
    BESIDE = "figure only"
    UNTESTED = "cannot be tested"
    ABSENT = "not in this run"


class Claim(BaseModel):
    """One claim of a paper: a `[[claim]]` table.

    Attributes:
        paper: Who claims it, and where.
        statement: What is claimed, in our words.
        figure: The paper's own number and its setting.
        differs: What differs here, and so how far the two can be compared.
        of: The number that it is about.
        direction: On which side of the limit, or of the other number, it should lie.
        limit: The limit, in the unit of the rows: rates in [0, 1]. With `than` the least
            difference, 0 if left out.
        than: What tells the other number of an order from the first.
        untestable: Why nothing here can test it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    paper: str = Field(min_length=1)
    statement: str = Field(min_length=1)
    figure: str = ""
    differs: str = ""
    of: Place | None = None
    direction: Literal["below", "above"] | None = None
    limit: float | None = Field(default=None, allow_inf_nan=False)
    than: dict[str, Any] = {}
    untestable: str = ""

    @model_validator(mode="after")
    def _says_how_to_test(self) -> Self:
        if (self.of is None) is (not self.untestable):
            raise ValueError("give either the number it is about (of) or why not (untestable)")
        if (self.direction is None) is not (self.limit is None and not self.than):
            raise ValueError("a direction goes with a limit or than, and these with a direction")
        if self.than and self.of is None:
            raise ValueError("than needs the number it is compared with (of)")
        _ = self.other
        return self

    @property
    def other(self) -> Place | None:
        """The second number of an order."""
        if not self.than or self.of is None:
            return None
        same = self.of.model_dump()
        if "defense" in self.than:
            del same["defense_parameters"]
        if "attack" in self.than:
            del same["attack_parameters"]
        return Place.model_validate({**same, **self.than})

    @property
    def test(self) -> str:
        """What is measured and what it is compared with, in words; empty if nothing is."""
        if self.of is None:
            return ""
        if self.direction is None:
            return self.of.phrase
        limit = "" if self.limit is None else f"{self.limit:g}"
        if self.than:
            limit = f"the same with {self._changes}{' by ' if limit else ''}{limit}"
        return f"{self.of.phrase}, {self.direction} {limit}"

    @property
    def _changes(self) -> str:
        """What tells the other number from the first, in words: "defense none, eps 0.3"."""
        first = {} if self.of is None else self.of.defense_parameters
        names = {name: value for name, value in self.than.items() if isinstance(value, str)}
        parameters = {
            name: value
            for name, value in self.than.get("defense_parameters", {}).items()
            if "defense" in self.than or first.get(name) != value
        }
        return parameters_phrase(json.dumps(names | parameters))


class Claims(BaseModel):
    """A file of claims."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    claim: tuple[Claim, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Finding:
    """The answer to one claim.

    Attributes:
        claim: The claim.
        dataset: Where it was tested; empty if it was not.
        answer: The answer.
        found: What was found, or why there is no answer.
    """

    claim: Claim
    dataset: str
    answer: Answer
    found: str


def load_claims(path: Path) -> tuple[Claim, ...]:
    """Read a file of claims.

    Raises:
        UserError: It is missing, no TOML, or against the schema.
    """
    try:
        return Claims.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).claim
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"The claims {path} cannot be used ({field}: {first['msg']}): correct that field."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"The claims {path} cannot be read ({error}): give a TOML file.") from error


def answers(claim: Claim, sources: Sequence[Source]) -> list[Finding]:
    """Return what each run that can test a claim says about it; one finding says why none can."""
    if claim.untestable:
        return [Finding(claim, "", Answer.UNTESTED, claim.untestable)]
    found, reasons = [], []
    for source in sources:
        try:
            found.append(_answer(claim, source))
        except (UntestedError, MetricError) as error:
            reasons.append(str(error))
    return found or [Finding(claim, "", Answer.ABSENT, reasons[0])]


def _answer(claim: Claim, source: Source) -> Finding:
    first, values = _number(claim.of, source.file)
    dataset, found = source.run.info.suite.dataset, _phrase(first)
    if claim.direction is None:
        return Finding(claim, dataset, Answer.BESIDE, found)
    if claim.other is None:
        return Finding(claim, dataset, _decided(claim, *interval(first)), found)
    second, others = _number(claim.other, source.file)
    if values is None or others is None:
        raise UntestedError(f"{first.metric} has no raw values: compare it with a limit.")
    if first.definition != second.definition:
        raise UntestedError("The two numbers are defined differently.")
    if values.trials != others.trials:
        raise UntestedError("The two numbers are not of the same probes or pairs.")
    gap = difference(values, others, CONFIDENCE)
    found += f" against {_phrase(second)}: difference {points(gap, first)}"
    return Finding(claim, dataset, _decided(claim, gap.low, gap.high), found)


def points(gap: Estimate, row: Row) -> Shown:
    """Return a difference of two numbers of a row's kind as text; of rates in points."""
    shown = show(with_estimate(row, gap))
    return replace(shown, unit="points") if shown.unit == "%" else shown


def with_estimate(row: Row, found: Estimate) -> Row:
    """Return a row with another value, interval and n."""
    numbers = {"value": found.value, "ci_low": found.low, "ci_high": found.high, "n": found.n}
    return row.model_copy(update=numbers)


def _number(place: Place | None, file: ResultFile) -> tuple[Row, Sample | None]:
    """Return one row for all seeds and its raw values; costs and linkage have none."""
    if place is None:
        raise UntestedError("The claim names no number.")
    first, *others = rows = rows_of(place, file)
    if definition(first.definition).kind in {"cost", "protection"} and not others:
        return first, None
    found = sample(file, rows)
    return with_estimate(first, estimate(found, CONFIDENCE)), found


def _phrase(row: Row) -> str:
    return f"{show(row)}, n {row.n}"


def _decided(claim: Claim, low: float, high: float) -> Answer:
    above, below = low > (claim.limit or 0.0), high < (claim.limit or 0.0)
    if not above and not below:
        return Answer.UNDECIDED
    return Answer.CONFIRMED if above is (claim.direction == "above") else Answer.REFUTED
