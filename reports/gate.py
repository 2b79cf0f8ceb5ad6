"""The privacy gate: does a finished run prove what a product guarantees?

A guarantee is a bound on one number, or "not worse than the pinned baseline by more than a
tolerance". It *holds* if the one-sided confidence interval of the number lies on the good side of
the limit, is *broken* if the opposite one lies on the bad side, and is *inconclusive* otherwise:
few probes prove nothing in either direction. A worst case is the best of several attacks: where as
many blind guesses reach the limit, the answer says so. Over all guarantees the level is shared by
Holm's step-down, so that a gate of many guarantees raises a false alarm no more often than one of
one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench import result_file
from bench.errors import MetricError, UserError, first_fault
from bench.leaks import Leak
from bench.metrics import Estimate
from bench.metrics.definitions import definition
from bench.result_file import ResultFile
from bench.results import Row
from bench.threats import Threat
from reports.places import Place, UntestedError, rows_of
from reports.ratios import Ratio, ratio_estimate
from reports.run import WORST_CASE, Protection, distinct_names, floors, group_lines, visible
from reports.samples import Sample, difference, estimator, sample

Alpha = Annotated[float, Field(gt=0, lt=0.5)]


class Answer(StrEnum):
    """What a run says about a guarantee."""

    HOLDS = "holds"
    BROKEN = "broken"
    INCONCLUSIVE = "inconclusive"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Guarantee(Place):
    """A bound on one number: a `[[guarantee]]` table.

    Attributes:
        name: What reports call it.
        direction: On which side of the limit the true value is guaranteed to lie.
        limit: The limit, in the unit of the rows: rates in [0, 1].
        alpha: Chance of a wrong answer in each direction.
        min_n: With fewer probes or pairs the answer is inconclusive.
    """

    name: str = Field(min_length=1)
    direction: Literal["below", "above"]
    limit: float = Field(allow_inf_nan=False)
    alpha: Alpha = 0.05
    min_n: int = Field(default=30, ge=1)


class Baseline(_Table):
    """The pinned result file that runs are compared with: the `[baseline]` table.

    Attributes:
        file: A file of `veilbench submit`, relative to the gate's own.
        sha256: Of its bytes. The gate never moves it.
        tolerances: By metric: the largest loss that is tolerated, in the unit of the rows. Every
            worst case and every utility of the baseline that has the metric is compared.
        alpha: As in a guarantee.
        min_n: As in a guarantee.
    """

    file: Path
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    tolerances: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(min_length=1)
    alpha: Alpha = 0.05
    min_n: int = Field(default=30, ge=1)


class Gate(_Table):
    """A gate's file.

    Attributes:
        guarantee: Bounds.
        ratio: Bounds on ratios of times that pytest-benchmark measured.
        baseline: What to compare with, if anything.
    """

    guarantee: tuple[Guarantee, ...] = ()
    ratio: tuple[Ratio, ...] = ()
    baseline: Baseline | None = None


@dataclass(frozen=True)
class Claim:
    """One statement to prove or refute.

    Attributes:
        name: What reports call it.
        about: What is measured, in words.
        direction: On which side of the limit the number should lie.
        limit: The limit.
        alpha: Chance of a wrong answer in each direction.
        min_n: Fewer trials prove nothing.
        estimate: The number with its two-sided interval, by confidence; None if there is none.
        reason: Why there is none.
        chance: What as many blind guesses reach, where the number is a worst case.
    """

    name: str
    about: str
    direction: Literal["below", "above"]
    limit: float
    alpha: float
    min_n: int
    estimate: Callable[[float], Estimate] | None
    reason: str = ""
    chance: float | None = None


@dataclass(frozen=True)
class Finding:
    """The answer to one claim.

    Attributes:
        claim: The claim.
        answer: The answer.
        sentence: The answer with its numbers, or the reason why there is none.
    """

    claim: Claim
    answer: Answer
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """The answers of a gate."""

    findings: tuple[Finding, ...]

    @property
    def answer(self) -> Answer:
        """Broken if one guarantee is; holds if all do."""
        answers = {finding.answer for finding in self.findings}
        order = (Answer.BROKEN, Answer.INCONCLUSIVE, Answer.HOLDS)
        return next(answer for answer in order if answer in answers)

    @property
    def exit_code(self) -> int:
        """0 if all hold, 1 if one is broken, else 2."""
        return {Answer.HOLDS: 0, Answer.BROKEN: 1, Answer.INCONCLUSIVE: 2}[self.answer]

    @property
    def sentence(self) -> str:
        """How many guarantees hold, are broken, and are inconclusive."""
        counts = [sum(x.answer is answer for x in self.findings) for answer in Answer]
        return ", ".join(
            f"{n} {name}"
            for n, name in zip(counts, ("hold", "broken", "inconclusive"), strict=True)
        )


def load_gate(path: Path) -> Gate:
    """Read a gate's file.

    Raises:
        UserError: It is missing, no TOML, against the schema, or guarantees nothing.
    """
    try:
        gate = Gate.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"The gate {path} cannot be read ({error}): give a TOML file.") from error
    except ValidationError as error:
        raise UserError(
            f"The gate {path} cannot be used ({first_fault(error)}): correct that field."
        ) from error
    if not (gate.guarantee or gate.ratio or gate.baseline):
        raise UserError(f"The gate {path} guarantees nothing: add a [[guarantee]] table.")
    return gate


def check(gate_path: Path, run: Path) -> Verdict:
    """Answer every guarantee of a gate from a finished run.

    Args:
        gate_path: The gate's TOML file.
        run: The folder of a run, or a file that `veilbench submit` wrote.

    Raises:
        UserError: The gate, the run or the baseline cannot be used.
    """
    gate = load_gate(gate_path)
    found = result_file.read(run)
    claims = [_bound(guarantee, found) for guarantee in gate.guarantee]
    claims += [_ratio(ratio, gate_path.parent) for ratio in gate.ratio]
    if gate.baseline is not None:
        pinned = result_file.read(gate_path.parent / gate.baseline.file, gate.baseline.sha256)
        claims += comparisons(gate.baseline, pinned, found)
    return judge(claims)


def judge(claims: Sequence[Claim]) -> Verdict:
    """Answer claims, the level shared by Holm's step-down among the answers of each kind.

    Raises:
        UserError: There is nothing to answer.
    """
    if not claims:
        raise UserError("The gate compares nothing: the baseline has none of its metrics.")
    holds, broken = _rejected(claims, _is_good), _rejected(claims, _is_bad)
    return Verdict(
        tuple(_finding(claim, i in holds, i in broken) for i, claim in enumerate(claims))
    )


def comparisons(baseline: Baseline, pinned: ResultFile, run: ResultFile) -> list[Claim]:
    """Return a claim for every worst case and utility of the baseline: no worse than it was."""
    lines = dict.fromkeys(
        _line_of(row)
        for row in pinned.rows
        if row.metric in baseline.tolerances and row.attack in {None, WORST_CASE} and row.defense
    )
    names = distinct_names((line.defense, line.parameters) for line in lines)
    return [
        _comparison(baseline, line, names[line.defense, line.parameters], pinned, run)
        for line in lines
    ]


Decision = Callable[[Claim, Estimate], bool]


def _rejected(claims: Sequence[Claim], decide: Decision) -> set[int]:
    """Return the claims on which a one-sided test decides, by Holm's step-down.

    All that pass at alpha over the number of claims left are decided; then those left, of which
    there are fewer, are tried again.
    """
    left, decided = set(range(len(claims))), set[int]()
    while left:
        level = {i: claims[i].alpha / len(left) for i in left}
        new = {i for i in left if _decides(claims[i], level[i], decide)}
        if not new:
            break
        decided |= new
        left -= new
    return decided


def _decides(claim: Claim, alpha: float, decide: Decision) -> bool:
    if claim.estimate is None:
        return False
    found = claim.estimate(1 - 2 * alpha)
    return found.n >= claim.min_n and decide(claim, found)


def _is_good(claim: Claim, found: Estimate) -> bool:
    return found.high < claim.limit if claim.direction == "below" else found.low > claim.limit


def _is_bad(claim: Claim, found: Estimate) -> bool:
    return found.low > claim.limit if claim.direction == "below" else found.high < claim.limit


def _finding(claim: Claim, holds: bool, broken: bool) -> Finding:
    answer = Answer.HOLDS if holds else Answer.BROKEN if broken else Answer.INCONCLUSIVE
    if claim.estimate is None:
        return Finding(claim, answer, claim.reason)
    found = claim.estimate(1 - 2 * claim.alpha)
    low, high = f"{found.low:.4g}", f"{found.high:.4g}"
    bounds = f"one-sided {1 - claim.alpha:.0%} bounds {low} and {high}, n {found.n}"
    sentence = f"{found.value:.4g}, guaranteed {claim.direction} {claim.limit:.4g} ({bounds})"
    if found.n < claim.min_n:
        sentence += f": fewer than {claim.min_n}"
    elif answer is Answer.INCONCLUSIVE and (_is_good(claim, found) or _is_bad(claim, found)):
        sentence += ": not at the level that it shares with the other guarantees"
    elif answer is Answer.INCONCLUSIVE:
        sentence += ": the interval reaches the limit, more probes would tell"
    if claim.chance is not None and claim.chance >= claim.limit:
        sentence += f"; blind guesses reach {claim.chance:.4g}: no defense keeps this limit"
    return Finding(claim, answer, sentence)


# --- claims ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """What rows of several seeds and of several runs have in common."""

    leak: Leak
    defense: str
    parameters: str
    attack: str | None
    threat: Threat | None
    judge: str | None
    metric: str

    def phrase(self, defense: str) -> str:
        """Return what is measured, with the name that tells the defense from others."""
        against = [self.attack, self.threat] if self.attack else []
        by = f" by {self.judge}" if self.judge else ""
        parts = (self.leak, defense, *against, f"{self.metric}{by}")
        return visible(" / ".join(str(part) for part in parts))


def _line_of(row: Row) -> _Line:
    if row.leak is None or row.defense is None:
        raise ValueError("a reference is no line of a defense")
    about = (row.leak, row.defense, row.defense_params, row.attack, row.threat)
    return _Line(*about, row.judge, row.metric)


def _bound(guarantee: Guarantee, run: ResultFile) -> Claim:
    """Return the claim of one guarantee."""
    common = (
        guarantee.name,
        f"{guarantee.leak} / {guarantee.defense} / {guarantee.metric}",
        guarantee.direction,
        guarantee.limit,
        guarantee.alpha,
        guarantee.min_n,
    )
    try:
        rows = rows_of(guarantee, run)
        found = estimator(run, rows)
    except (UntestedError, MetricError) as error:
        return Claim(*common, None, str(error))
    chance = _chance(rows, run) if guarantee.direction == "below" else None
    return Claim(*common, found, chance=chance)


def _chance(rows: Sequence[Row], run: ResultFile) -> float | None:
    """Return what as many blind guesses as there are attacks reach in the place of a worst case."""
    lines = group_lines(run.rows)
    found = [
        floor.value(row.metric, row.judge)
        for row in rows
        if row.attack == WORST_CASE and row.leak is not None and row.defense is not None
        for floor in floors(
            lines, Protection(row.leak, row.defense, row.defense_params, row.seed), row.threat
        )
    ]
    return max(found, default=None)


def _ratio(ratio: Ratio, folder: Path) -> Claim:
    about = f"{ratio.numerator} over {ratio.denominator}"
    bound = (ratio.direction, ratio.limit, ratio.alpha, ratio.min_n)
    return Claim(ratio.name, about, *bound, ratio_estimate(ratio, folder))


def _comparison(
    baseline: Baseline, line: _Line, defense: str, pinned: ResultFile, run: ResultFile
) -> Claim:
    """Return the claim that a number of the run is no worse than the baseline's."""
    tolerance = baseline.tolerances[line.metric]
    before = [row for row in pinned.rows if row.defense and _line_of(row) == line]
    after = [row for row in run.rows if row.defense and _line_of(row) == line]
    better = next((definition(row.definition).better for row in before if row.definition), "lower")
    name, about = f"baseline: {line.phrase(defense)}", "run minus baseline, on the same probes"
    limits = (baseline.alpha, baseline.min_n)
    if better == "higher":
        make = partial(Claim, name, about, "above", -tolerance, *limits)
    else:
        make = partial(Claim, name, about, "below", tolerance, *limits)
    try:
        pair = _pair(before, after, pinned, run)
    except (UntestedError, MetricError) as error:
        return make(None, str(error))
    return make(lambda confidence: difference(*pair, confidence))


def _pair(
    before: Sequence[Row], after: Sequence[Row], pinned: ResultFile, run: ResultFile
) -> tuple[Sample, Sample]:
    """Return the run's and the baseline's sample of the same trials."""
    if not after:
        raise UntestedError("The run lacks what the baseline has.")
    failed = [row for row in (*before, *after) if row.status == "error" or row.value is None]
    if failed:
        raise UntestedError(visible(f"There is no value: {failed[0].reason or 'nothing scored'}."))
    if len({row.definition for row in (*before, *after)}) > 1:
        raise UntestedError("The run and the baseline define the metric differently.")
    new, old = sample(run, after), sample(pinned, before)
    if new.trials != old.trials:
        raise UntestedError(
            "The run's probes are not the baseline's: take the same dataset, split and seeds."
        )
    return new, old
