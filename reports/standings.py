"""Who stands where: the rows of many result files as one table per dataset, leak and threat."""

from __future__ import annotations

import json
import tomllib
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, ValidationError

from bench import result_file
from bench.errors import UserError, first_fault
from bench.leaks import Leak
from bench.threats import Threat
from reports.numbers import interval, number
from reports.ranking import ranks
from reports.run import (
    UNDEFENDED,
    Line,
    Protection,
    Run,
    RunInfo,
    distinct_names,
    floors,
    group_lines,
)
from reports.samples import Sample, estimate, sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bench.result_file import ResultFile
    from bench.results import Row

HEADLINE = "rank-1"
SETTINGS = "leaderboard.toml"
"""Optional file of the folder: what results cannot say about defenses."""

FLAGS = {
    "undefended": "the leaked object as it is: no defense",
    "re-implementation": "not stated to be the authors' own code",
    "random": "records of one face differ from call to call: an attacker may average them",
    "one judge": "scored by the recogniser under attack alone, which an attack may have aimed at",
    "unsaturated budget": "an attack was still learning when its training ended, or a larger "
    "budget of the strongest was not tried or still gained",
    "one seed": "one split, one set of secrets, one training run of each attack",
    "failed attack": "an attack under this threat failed: the worst case may be worse",
    "indicative-fmr": "too few impostor pairs for the false match rate: its threshold is a guess",
    "weaker-than-fewer-rights": "an attack with more rights did worse than one with fewer",
}
"""What a flag means."""

BUDGETS = frozenset({"steps", "iterations", "epochs", "queries"})
"""Parameters of attacks that are budgets."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class About(_Table):
    """What a leaderboard knows of a defense: a `[[defense]]` table.

    Attributes:
        name: Name of the defense.
        title: Of the paper.
        url: Of the paper or code.
        implementation: Whose code was run.
        bibtex: The paper's entry.
    """

    name: str
    title: str = ""
    url: HttpUrl | None = None
    implementation: Literal["official", "re-implementation"] = "re-implementation"
    bibtex: str = ""


class External(_Table):
    """An adaptive attack that somebody published on a defense: an `[[external]]` table.

    Attributes:
        dataset: As in result rows.
        leak: As in result rows.
        threat: The threat that its setting amounts to.
        defense: Name of the defense.
        value: What share of people it identified first, in [0, 1].
        source: Who found it, in a few words.
        url: Where it says so.
    """

    dataset: str
    leak: Leak
    threat: Threat
    defense: str
    value: float = Field(ge=0, le=1)
    source: str
    url: HttpUrl


class Settings(_Table):
    """The folder's `leaderboard.toml`.

    Attributes:
        title: Of the site.
        defense: What is known of defenses.
        external: Attacks by others.
    """

    title: str = "Faces recovered from what recognisers store"
    defense: tuple[About, ...] = ()
    external: tuple[External, ...] = ()

    def about(self, name: str) -> About:
        """Return what is known of a defense."""
        return next((item for item in self.defense if item.name == name), About(name=name))


@dataclass(frozen=True)
class Source:
    """One result file.

    Attributes:
        name: Its file name.
        file: Its content.
        run: The same, grouped into lines.
    """

    name: str
    file: ResultFile
    run: Run

    @property
    def date(self) -> str:
        """When the run started."""
        return self.run.info.started


class Contest(NamedTuple):
    """What results must have in common to stand in one table."""

    dataset: str
    recognizer: str
    leak: Leak
    threat: Threat
    judge: str
    setting: str

    @property
    def title(self) -> str:
        """Heading of the table."""
        return f"{self.dataset} · {self.leak} · {self.threat}"

    @property
    def detail(self) -> str:
        """What else its rows have in common."""
        judge = self.judge or "no judge"
        return f"Recogniser {self.recognizer}, judged by {judge}, {self.setting}"


@dataclass(frozen=True)
class Standing:
    """A defense in one contest, from one file.

    Attributes:
        source: The file.
        protections: What was attacked, one per seed.
        name: Name of the defense, with the parameters that tell it from others.
        worst: The worst case over attacks; None where nothing could be scored.
        ssim: SSIM of the worst case.
        accuracy: Accuracy that is left.
        attacks: Headline by attack.
        flags: Keys of `FLAGS`.
        external: The best attack by others, if it is better than all here.
        trials: Headline of the worst case per probe; None without a worst case.
        rank: 1 + how many defenses are better beyond doubt; None without a worst case.
    """

    source: Source
    protections: tuple[Protection, ...]
    name: str
    worst: Row | None
    ssim: Row | None
    accuracy: Row | None
    attacks: Mapping[str, Row]
    flags: tuple[str, ...]
    external: External | None = None
    trials: Sample | None = None
    rank: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What tells defenses apart: name and parameters."""
        return self.protections[0].defense, self.protections[0].parameters

    @property
    def undefended(self) -> bool:
        """Whether there is no defense."""
        return self.protections[0].undefended


@dataclass(frozen=True)
class Board:
    """One table of the leaderboard.

    Attributes:
        contest: What it is about.
        standings: The newest of every defense, best first.
        older: Earlier ones, newest first.
        floors: (name, headline) of what shows nobody in particular.
    """

    contest: Contest
    standings: tuple[Standing, ...]
    older: tuple[Standing, ...]
    floors: tuple[tuple[str, Row], ...]

    @cached_property
    def attacks(self) -> list[str]:
        """Every attack of the table."""
        return sorted({name for standing in self.standings for name in standing.attacks})


def read_folder(folder: Path) -> tuple[list[Source], Settings]:
    """Read every result file of a folder, by name, and its settings.

    Raises:
        UserError: There is none, or one cannot be read.
    """
    paths = sorted(path for path in folder.glob("*") if path.name.endswith((".json", ".json.gz")))
    if not paths:
        raise UserError(f"{folder} holds no result files: write one with veilbench submit.")
    return [read_source(path) for path in paths], _settings(folder / SETTINGS)


def boards(sources: Sequence[Source], settings: Settings) -> list[Board]:
    """Return every table, the strongest claims first: adaptive before transfer."""
    names = distinct_names(
        (item.defense, item.parameters) for source in sources for item in source.run.protections
    )
    contests: dict[Contest, list[Standing]] = defaultdict(list)
    chance: dict[Contest, dict[str, Row]] = defaultdict(dict)
    for source in sources:
        for contest, standing in _standings(source, settings, names):
            contests[contest].append(standing)
            for name, row in _floors(standing, contest).items():
                known = chance[contest].get(name, row)
                chance[contest][name] = max(known, row, key=number)
    order = (Threat.ADAPTIVE, Threat.INSIDER, Threat.QUERY, Threat.SCORE, Threat.TRANSFER)
    return [
        _board(contest, contests[contest], tuple(chance[contest].items()))
        for contest in sorted(
            contests, key=lambda x: (x.dataset, x.leak, order.index(x.threat), x[4:])
        )
    ]


def read_source(path: Path) -> Source:
    """Read a result file, or the folder of a finished run.

    Raises:
        UserError: It cannot be used.
    """
    file = result_file.read(path)
    try:
        info = RunInfo.model_validate(file.run)
    except ValidationError as error:
        raise UserError(
            f"{path} has a run that cannot be used ({first_fault(error)}): submit it again."
        ) from error
    return Source(path.name, file, Run(path.parent, info, tuple(group_lines(file.rows))))


def _settings(path: Path) -> Settings:
    if not path.is_file():
        return Settings()
    try:
        return Settings.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise UserError(f"{path} cannot be used ({first_fault(error)}): correct it.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): give a TOML file.") from error


def _board(contest: Contest, found: list[Standing], floors: Any) -> Board:
    newest: dict[tuple[str, str], Standing] = {}
    older = []
    for standing in sorted(found, key=lambda x: x.source.date, reverse=True):
        if standing.key in newest:
            older.append(standing)
        newest.setdefault(standing.key, standing)
    current = list(newest.values())
    placed = [
        replace(standing, rank=rank)
        for standing, rank in zip(current, ranks([x.trials for x in current]), strict=True)
    ]
    return Board(contest, tuple(sorted(placed, key=_place)), tuple(older), floors)


def _place(standing: Standing) -> tuple[float, float, str]:
    """Return what orders a table: rank, then value; what could not be scored comes last."""
    if standing.worst is None or standing.rank is None:
        return (np.inf, np.inf, standing.name)
    return (standing.rank, number(standing.worst), standing.name)


def _standings(
    source: Source, settings: Settings, names: Mapping[tuple[str, str], str]
) -> Iterable[tuple[Contest, Standing]]:
    run = source.run
    groups: dict[tuple[Leak, str, str], list[Protection]] = defaultdict(list)
    for item in run.protections:
        groups[item.leak, item.defense, item.parameters].append(item)
    for (leak, defense, parameters), items in groups.items():
        for threat in run.threats(items[0]):
            lines = [run.worst(x, threat) for x in items]
            worst = combined(source, lines, HEADLINE, run.judge)
            contest = Contest(
                run.info.suite.dataset,
                run.lines[0].rows[0].recognizer,
                leak,
                threat,
                run.judge or "",
                _setting(run, worst),
            )
            standing = Standing(
                source,
                tuple(items),
                names[defense, parameters],
                worst,
                combined(source, lines, "ssim", None),
                _accuracy(source, items),
                _attacks(source, items, threat),
                (),
                _external(settings, contest, defense, worst),
                sample(source.file, _rows(lines, HEADLINE, run.judge)) if worst else None,
            )
            yield contest, replace(standing, flags=tuple(_flags(standing, threat, settings)))


def _setting(run: Run, worst: Row | None) -> str:
    """Return what else changes the meaning of a number: the size of the gallery."""
    sizes = [] if worst is None else [x for x in worst.flags.split() if x.startswith("gallery=")]
    people = f"a gallery of {sizes[0].partition('=')[2]}" if sizes else "an unknown gallery"
    return f"{people}, FMR {run.info.suite.fmr:g}"


def _rows(lines: Sequence[Line | None], metric: str, judge: str | None) -> list[Row]:
    """Return the rows of a metric, one per seed; none if a seed has no value."""
    rows = [None if line is None else line.row(metric, judge) for line in lines]
    known = [row for row in rows if row is not None]
    return known if len(known) == len(rows) else []


def combined(
    source: Source, lines: Sequence[Line | None], metric: str, judge: str | None
) -> Row | None:
    """Return one row for all seeds; None if a seed has no value."""
    rows = _rows(lines, metric, judge)
    if len(rows) < 2:
        return rows[0] if rows else None
    found = estimate(sample(source.file, rows), 0.95)
    numbers = {"value": found.value, "ci_low": found.low, "ci_high": found.high, "n": found.n}
    return rows[0].model_copy(update=numbers)


def _accuracy(source: Source, items: Sequence[Protection]) -> Row | None:
    lines = [source.run.utility(item) for item in items]
    fresh = combined(source, lines, "accuracy.stored-vs-fresh", None)
    return fresh or combined(source, lines, "accuracy.stored-vs-stored", None)


def _attacks(source: Source, items: Sequence[Protection], threat: Threat) -> dict[str, Row]:
    """Return the headline of every attack; a failed one is its error row."""
    run = source.run
    lines: dict[str, list[Line]] = defaultdict(list)
    for item in items:
        for line in run.attacks(item, threat):
            lines[run.attack_name(line)].append(line)
    found = {}
    for name, members in lines.items():
        row = combined(source, members, HEADLINE, run.judge)
        failed = [x for line in members for x in line.rows if x.status == "error"]
        if row is not None or failed:
            found[name] = failed[0] if failed or row is None else row
    return found


def _external(
    settings: Settings, contest: Contest, defense: str, worst: Row | None
) -> External | None:
    """Return the best attack of others, where it beats every attack here."""
    wanted = (contest.dataset, contest.leak, contest.threat, defense)
    found = [x for x in settings.external if (x.dataset, x.leak, x.threat, x.defense) == wanted]
    best = max(found, key=lambda item: item.value, default=None)
    known = -np.inf if worst is None else number(worst)
    return best if best is not None and best.value > known else None


def _flags(standing: Standing, threat: Threat, settings: Settings) -> Iterable[str]:
    source, (first, *others) = standing.source, standing.protections
    run = source.run
    if first.defense == UNDEFENDED:
        yield "undefended"
    elif settings.about(first.defense).implementation != "official":
        yield "re-implementation"
    utility = run.utility(first)
    cell = source.file.cells.get(utility.cell) if utility else None
    if cell and cell.facts.get("random"):
        yield "random"
    if all(run.is_target(judge) for judge in run.judges):
        yield "one judge"
    if not _saturated(source, standing.protections, threat):
        yield "unsaturated budget"
    if not others:
        yield "one seed"
    if any(row.status == "error" for row in standing.attacks.values()):
        yield "failed attack"
    worst = run.worst(first, threat)
    told = {flag for row in worst.rows for flag in row.flags.split()} if worst else set()
    yield from (flag for flag in FLAGS if flag in told)


def _saturated(source: Source, items: Sequence[Protection], threat: Threat) -> bool:
    """Say whether no attack was still learning, and the strongest had all the budget it could use.

    What the strongest attack trained tells by its loss on people held out. Where nobody was, or
    nothing was trained, a smaller budget that did as well tells; an attack without a budget has
    none to raise.
    """
    found = [line for item in items for line in source.run.attacks(item, threat)]
    finished = [line for line in found if not line.failure]
    if not finished:
        return True
    told = {line: _more_budget_helps(source, line) for line in finished}
    strongest = max(finished, key=source.run.strength)
    if True in told.values():
        return False
    return told[strongest] is False or _raised_in_vain(source.run, strongest, finished)


def _more_budget_helps(source: Source, line: Line) -> bool | None:
    """Say whether an attack was still learning when its training ended; None if nothing tells."""
    cell = source.file.cells.get(line.cell)
    helps = {curve.more_budget_helps for curve in cell.curves} if cell else set()
    return True if True in helps else False if helps == {False} else None


def _raised_in_vain(run: Run, best: Line, others: Sequence[Line]) -> bool:
    """Say whether an attack has no budget, or did as well with a smaller one."""
    parameters = json.loads(best.attack_parameters)
    budgets = BUDGETS & parameters.keys()
    if not budgets:
        return True
    for line in others:
        other = json.loads(line.attack_parameters)
        changed = {name for name in parameters if other.get(name) != parameters[name]}
        if line.attack == best.attack and changed and changed <= budgets:
            mine, weaker = best.row(HEADLINE, run.judge), line.row(HEADLINE, run.judge)
            if mine and weaker and interval(weaker)[1] >= number(mine):
                return True
    return False


def _floors(standing: Standing, contest: Contest) -> dict[str, Row]:
    """Return what chance scores in the place of a standing's worst case, by name."""
    run = standing.source.run
    lines: dict[str, list[Line]] = defaultdict(list)
    for item in standing.protections:
        for line in floors(run.lines, item, contest.threat):
            lines[run.attack_name(line)].append(line)
    found = {
        name: combined(standing.source, members, HEADLINE, contest.judge or None)
        for name, members in lines.items()
    }
    return {name: row for name, row in found.items() if row is not None}
