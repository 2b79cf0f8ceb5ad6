"""Tables of a run: which lines and columns there are, and what stands in each cell.

A column holds one metric of one judge under one definition; a second definition is refused. HTML,
Markdown and LaTeX are templates over these objects; CSV is written here, with the raw numbers.
"""

from __future__ import annotations

import csv
import itertools
import string
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from bench.metrics.definitions import Definition, definition, definitions
from reports.numbers import NULL, Shown, show, unit
from reports.run import (
    CEILING,
    FLOORS,
    GUESSES,
    WORST_CASE,
    Line,
    ReportError,
    Run,
    parameters_phrase,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from bench.results import Row

PRIVACY_METRICS = ("rank-1", "sar-1", "sar-2", "similarity", "ssim", "lpips", "st-lpips", "psnr")
"""Columns of the page, in order; others follow in the CSV file."""

PAPER_METRICS = ("rank-1", "sar-1", "ssim", "lpips", "st-lpips", "psnr")
"""Columns that fit on a page of paper."""

TARGET_JUDGE = "target-judge"
"""Flag of scores by the recogniser under attack."""

WAYS = {
    "stored-vs-fresh": "Stored against fresh",
    "stored-vs-stored": "Stored against stored",
}
"""What is compared when the protected system recognises someone."""

LINKING, COST = "Linking two applications", "Cost"
"""Headings over what else a defense does."""

FLAGS = {
    "gallery": "number of people among whom a reconstruction is searched",
    "folds": "number of folds of the verification pairs",
    "indicative-fmr": "too few impostor pairs for the false match rate: its threshold is a guess",
    "weaker-than-fewer-rights": "an attack with more rights did worse than one with fewer: "
    "it was not trained to its limit",
    "more-budget-helps": "the loss on people that an attack was not trained on was still falling "
    "when its training ended",
}
"""What flags of rows mean, by what stands before "="."""


class Key(NamedTuple):
    """What a column holds, before its rows are looked at."""

    group: str
    metric: str
    judge: str | None


@dataclass(frozen=True)
class Column:
    """One column of numbers.

    Attributes:
        group: Heading over several columns: the judge, or the way of matching.
        metric: Name of the metric in rows.
        judge: Name of the judge, if there is one.
        definition: The one definition of all its numbers.
        n: Number of probes, pairs or records behind most of its values.
        flags: Flags that all its values carry, but for what the group says already.
    """

    group: str
    metric: str
    judge: str | None
    definition: Definition
    n: int
    flags: tuple[str, ...]

    @property
    def label(self) -> str:
        """Heading of the column, without the unit."""
        rate = self.metric.partition("far=")[2].removesuffix(f".{way_of(self.metric)}")
        return f"{self.definition.name}={rate}" if rate else self.definition.name

    @property
    def unit(self) -> str:
        """Unit of the shown numbers, empty for an index."""
        return unit(self.definition)

    @property
    def key(self) -> str:
        """Name of the column in CSV files."""
        return self.metric if self.judge is None else f"{self.judge}/{self.metric}"

    @property
    def remarks(self) -> list[str]:
        """What holds for every number of the column: n and flags."""
        return [f"n\N{NO-BREAK SPACE}{self.n}", *(flag.replace("=", " ") for flag in self.flags)]


@dataclass(frozen=True)
class Number:
    """One number in a table.

    Attributes:
        row: The result row.
        shown: Its text.
        n: n, where it differs from that of the column.
        marks: Letters of notes below the table.
        title: Everything about the number in one sentence.
    """

    row: Row
    shown: Shown
    n: int | None
    marks: str
    title: str


@dataclass(frozen=True)
class TableLine:
    """One line of a table.

    Attributes:
        line: Its rows.
        name: Heading of the line.
        detail: What stands beside the heading: the threat, or the role of a reference.
        kind: "reference", "worst", "attack", "utility" or "failed".
        numbers: One per column, None where there is no value.
    """

    line: Line
    name: str
    detail: str
    kind: str
    numbers: tuple[Number | None, ...]


@dataclass(frozen=True)
class Section:
    """Lines under one heading, such as the attacks on one defense."""

    title: str
    detail: str
    lines: tuple[TableLine, ...]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Name of its files.
        caption: One sentence or two.
        heading: Heading of the first column.
        columns: Columns of numbers.
        sections: Lines.
        notes: (mark or flag, what it means).
    """

    name: str
    caption: str
    heading: str
    columns: tuple[Column, ...]
    sections: tuple[Section, ...]
    notes: tuple[tuple[str, str], ...]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Headings over the columns and how many columns each spans."""
        return list(Counter(column.group for column in self.columns).items())

    def only(self, metrics: Sequence[str]) -> Table:
        """Return the table with the columns of these metrics."""
        kept = [i for i, column in enumerate(self.columns) if column.metric in metrics]

        def narrow(line: TableLine) -> TableLine:
            return replace(line, numbers=tuple(line.numbers[i] for i in kept))

        sections = tuple(
            replace(section, lines=tuple(narrow(line) for line in section.lines))
            for section in self.sections
        )
        return replace(self, columns=tuple(self.columns[i] for i in kept), sections=sections)


class _Heading(NamedTuple):
    """A line of a table before its numbers are looked up."""

    line: Line
    name: str
    detail: str
    kind: str


_Outline = list[tuple[str, str, list[_Heading]]]
"""Sections of a table as (title, detail, lines)."""


def privacy_table(run: Run) -> Table:
    """Return every attack on every defense under every threat, beside floors and ceilings.

    Raises:
        ReportError: A column would mix two definitions.
    """
    sections: _Outline = [_references(run)]
    for protection in run.protections:
        headings = [
            _attack_heading(run, line)
            for threat in run.threats(protection)
            for line in (run.worst(protection, threat), *run.attacks(protection, threat))
            if line is not None
        ]
        detail = parameters_phrase(protection.parameters)
        sections.append((run.title(protection), detail, headings))
    return _table(
        "privacy",
        "What each attack recovers, per leaked object, defense and threat. Attacks are ordered by "
        "rank-1, then SSIM; worst case takes the best attack for each probe, those of weaker "
        "threats included.",
        "Attack",
        _privacy_keys(run),
        sections,
    )


def worst_case_table(run: Run) -> Table:
    """Return the worst case per defense and threat, beside floors and ceilings: a paper's table.

    Raises:
        ReportError: A column would mix two definitions.
    """
    sections: _Outline = [_references(run)]
    for leak in dict.fromkeys(protection.leak for protection in run.protections):
        headings = [
            _Heading(line, run.defense_name(protection), threat, "worst")
            for protection in run.protections
            for threat in run.threats(protection)
            if protection.leak is leak and (line := run.worst(protection, threat)) is not None
        ]
        sections.append((leak.capitalize(), "", headings))
    caption = "Worst case over attacks, per leaked object, defense and threat."
    return _table("worst-case", caption, "Defense", _privacy_keys(run), sections)


def utility_table(run: Run) -> Table:
    """Return what each defense costs in recognition, time and space.

    Raises:
        ReportError: A column would mix two definitions.
    """
    sections: _Outline = []
    for leak in dict.fromkeys(protection.leak for protection in run.protections):
        headings = [
            _Heading(line, run.defense_name(protection), "", _kind(line, "utility"))
            for protection in run.protections
            if protection.leak is leak and (line := run.utility(protection)) is not None
        ]
        sections.append((leak.capitalize(), "", headings))
    lines = [heading.line for _, _, headings in sections for heading in headings]
    groups = [*WAYS.values(), LINKING, COST]
    keys = dict.fromkeys(
        Key(_utility_group(row), row.metric, None) for line in lines for row in line.rows
    )
    chance = " Beside D_sys is what chance gives: mean to 95th percentile."
    linked = any(key.group == LINKING for key in keys)
    return _table(
        "utility",
        "What each defense leaves of recognition, and what it costs. Stored records are matched "
        "with fresh, unprotected probes where the defense allows it, and with each other."
        f"{chance if linked else ''} Time is one measurement of all records together: its spread "
        "is not known.",
        "Defense",
        sorted(keys, key=lambda key: groups.index(key.group)),
        sections,
    )


def _utility_group(row: Row) -> str:
    """Return the heading over a metric of a defense."""
    if way := way_of(row.metric):
        return WAYS[way]
    known = definitions().get(row.definition)
    return LINKING if known is not None and known.kind == "protection" else COST


def way_of(metric: str) -> str:
    """Return what a utility metric compares, the end of its name; empty for costs."""
    return next((way for way in WAYS if metric.endswith(f".{way}")), "")


def write_csv(table: Table, path: Path) -> None:
    """Write a table with raw numbers, their intervals and n."""
    about = ["leak", "defense", "defense_params", "attack", "attack_params", "threat", "seed"]
    measures = [
        f"{column.key}{part}" for column in table.columns for part in ("", ".low", ".high", ".n")
    ]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([*about, *measures, "failure", "cell"])
        for section in table.sections:
            for line in section.lines:
                end = [line.line.failure, line.line.cell]
                writer.writerow([*_about(line.line), *_raw(line), *end])


def _about(line: Line) -> list[object]:
    item = line.protection
    protection = ("", "", "") if item is None else (item.leak, item.defense, item.parameters)
    return [*protection, line.attack, line.attack_parameters, line.threat, line.seed]


def _raw(line: TableLine) -> Iterable[object]:
    for number in line.numbers:
        row = None if number is None else number.row
        yield from [None] * 4 if row is None else [row.value, row.ci_low, row.ci_high, row.n]


def _references(run: Run) -> tuple[str, str, list[_Heading]]:
    headings = []
    for line in run.references:
        role = "floor" if line.attack in {*FLOORS, GUESSES} else "reference"
        role = "ceiling" if line.attack == CEILING else role
        seed = f", seed {line.seed}" if run.several_seeds else ""
        headings.append(_Heading(line, run.attack_name(line), role + seed, "reference"))
    return "References", "what a number means: no record was read for these", headings


def _attack_heading(run: Run, line: Line) -> _Heading:
    threat = str(line.threat)
    if line.attack == WORST_CASE:
        return _Heading(line, "worst case", threat, "worst")
    return _Heading(line, run.attack_name(line), threat, _kind(line, "attack"))


def _kind(line: Line, usual: str) -> str:
    return "failed" if line.failure else usual


def _privacy_keys(run: Run) -> list[Key]:
    """Return columns by judge, independent ones first, then the metrics of the image itself."""
    judges = [*run.judges, None]
    found = {
        (row.metric, row.judge)
        for line in run.lines
        for row in line.rows
        if line.attack is not None and row.status == "ok"
    }
    known = {metric: place for place, metric in enumerate(PRIVACY_METRICS)}
    order = sorted(
        found, key=lambda item: (judges.index(item[1]), known.get(item[0], len(known)), item[0])
    )
    return [Key(_judge_heading(run, judge), metric, judge) for metric, judge in order]


def _judge_heading(run: Run, judge: str | None) -> str:
    if judge is None:
        return "Image"
    return f"{judge} ({'recogniser under attack' if run.is_target(judge) else 'independent'})"


def _table(name: str, caption: str, heading: str, keys: Iterable[Key], sections: _Outline) -> Table:
    headings = [heading for _, _, members in sections for heading in members]
    columns = tuple(
        column for key in keys if (column := _column(key, name, [x.line for x in headings]))
    )
    flags = dict.fromkeys(
        flag
        for column in columns
        for heading_ in headings
        if (row := heading_.line.row(column.metric, column.judge))
        for flag in _flags(row)
        if flag not in column.flags
    )
    marks = dict(zip(flags, _marks(), strict=False))
    return Table(
        name,
        caption,
        heading,
        columns,
        tuple(
            Section(title, detail, tuple(_line(heading, columns, marks) for heading in members))
            for title, detail, members in sections
            if members
        ),
        tuple(_notes(columns, marks)),
    )


def _marks() -> Iterator[str]:
    """Yield a to z, aa to zz, and so on."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_lowercase, repeat=length))


def _flags(row: Row) -> list[str]:
    """Return a row's flags, but for what the heading of its columns or the number shows."""
    shown = (TARGET_JUDGE, *NULL)
    return [flag for flag in row.flags.split() if flag.partition("=")[0] not in shown]


def _column(key: Key, table: str, lines: Sequence[Line]) -> Column | None:
    """Return the column of a key, None if no line has a value for it."""
    rows = [row for line in lines if (row := line.row(key.metric, key.judge))]
    if not rows:
        return None
    ids = sorted({row.definition for row in rows})
    if len(ids) > 1:
        raise ReportError(
            f"The column {key.metric!r} of the table {table!r} would mix the definitions "
            f"{' and '.join(ids)}: report on runs of one version of the metric."
        )
    usual = Counter(row.n for row in rows).most_common(1)[0][0]
    shared = set.intersection(*(set(_flags(row)) for row in rows))
    return Column(*key, definition(ids[0]), usual, tuple(sorted(shared)))


def _line(heading: _Heading, columns: Sequence[Column], marks: dict[str, str]) -> TableLine:
    numbers = (_number(heading.line, column, marks) for column in columns)
    return TableLine(*heading, tuple(numbers))


def _number(line: Line, column: Column, marks: dict[str, str]) -> Number | None:
    row = line.row(column.metric, column.judge)
    if row is None:
        return None
    shown = show(row)
    flags = _flags(row)
    judge = f" by {row.judge}" if row.judge else ""
    remarks = ", ".join([f"n = {row.n}", column.definition.id, *flags])
    return Number(
        row,
        shown,
        row.n if row.n != column.n else None,
        " ".join(marks[flag] for flag in flags if flag not in column.flags),
        f"{column.label}{judge}: {shown}; {remarks}",
    )


def _notes(columns: Sequence[Column], marks: dict[str, str]) -> Iterable[tuple[str, str]]:
    for flag, mark in marks.items():
        yield mark, f"{flag}: {_meaning(flag)}"
    for flag in dict.fromkeys(flag for column in columns for flag in column.flags):
        yield flag.replace("=", " "), _meaning(flag)


def _meaning(flag: str) -> str:
    return FLAGS.get(flag.partition("=")[0], "see the documentation of whatever set it")
