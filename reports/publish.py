"""The results page of finished runs, for a repository: matrices, utility, and papers' claims.

One folder per page: `README.md`, and each run as the result file that it was made from, so that
`veilbench publish FOLDER/*.json.gz --out FOLDER` writes the same page without running anything.
"""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from bench import result_file
from bench.errors import MetricError, UserError
from bench.threats import Threat
from reports.literature import CONFIDENCE, Answer, answers, load_claims, points
from reports.numbers import show
from reports.report import MARKDOWN, RESPONSIBLE_USE, slug, writing_into
from reports.run import CEILING, FLOORS, GUESSES, UNDEFENDED, Protection, distinct_names
from reports.samples import difference, sample
from reports.standings import Source, combined, read_source
from reports.submission import faults

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from bench.leaks import Leak
    from bench.results import Row
    from reports.literature import Claim
    from reports.run import Line

PAGE = "README.md"
WORST = "worst case"
LINKAGE = ("d-sys", "linkage-auc", "renewed-linked")
COSTS = ("bytes-per-record", "ms-per-record")


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Attributes:
        caption: What its numbers are.
        columns: Headings of the columns of numbers.
        lines: (name, one text per column).
    """

    caption: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, tuple[str, ...]], ...]


class _Group(NamedTuple):
    """A defense of a leak with one setting of its parameters, over all seeds."""

    name: str
    protections: list[Protection]


def publish(runs: Sequence[Path], folder: Path, claims: Sequence[Path]) -> Path:
    """Write the results page of finished runs.

    Args:
        runs: Folders of runs, or result files of `veilbench submit`.
        folder: Where the page and a result file per run go.
        claims: TOML files of claims, see `reports.literature`.

    Returns:
        The page.

    Raises:
        UserError: A run is not sound, two runs are of one suite and dataset, a file of claims
            cannot be used, or the folder cannot be written.
    """
    told = [claim for path in claims for claim in load_claims(path)]
    sources = [read_source(path) for path in runs]
    for path, source in zip(runs, sources, strict=True):
        if found := faults(source.file):
            raise UserError(f"{path} cannot be published ({found[0]}): run the suite again.")
    names = [_file_name(source) for source in sources]
    if len(set(names)) < len(names):
        raise UserError("Two runs are of the same suite and dataset: publish them apart.")
    page = render(sources, names, told)
    with writing_into(folder) as write:
        for name, source in zip(names, sources, strict=True):
            result_file.write(source.file, folder / name)
        write(PAGE, page)
    return folder / PAGE


def render(sources: Sequence[Source], names: Sequence[str], claims: Sequence[Claim]) -> str:
    """Return the page as Markdown."""
    findings = [finding for claim in claims for finding in answers(claim, sources)]
    counts = Counter(finding.answer for finding in findings)
    return MARKDOWN.get_template("published.md.j2").render(
        runs=[
            {
                "file": name,
                "info": source.run.info,
                "command": shlex.join(source.run.info.command),
                "setting": _setting(source),
                "matrices": {
                    leak: list(_matrices(source, groups))
                    for leak, groups in _groups(source).items()
                },
                "utility": [
                    _utility(source, leak, groups) for leak, groups in _groups(source).items()
                ],
            }
            for name, source in zip(names, sources, strict=True)
        ],
        attacked=any(source.run.attacked for source in sources),
        findings=findings,
        several=len(sources) > 1,
        counts=[f"{counts[answer]} {answer}" for answer in Answer if counts[answer]],
        responsible_use=RESPONSIBLE_USE,
    )


def _file_name(source: Source) -> str:
    suite = source.run.info.suite
    return f"{slug(suite.name)}-{slug(suite.dataset)}.json.gz"


def _setting(source: Source) -> str:
    run = source.run
    seeds = source.file.seeds
    probes = [probe for seed in seeds.values() for probe in seed.probes]
    people = len({probe.identity for probe in probes})
    sizes = {
        flag.partition("=")[2]
        for row in source.file.rows
        for flag in row.flags.split()
        if flag.startswith("gallery=")
    }
    judges = ", ".join(_judge(source, judge) for judge in run.judges) or "none"
    setting = (
        f"Dataset {run.info.suite.dataset}, recogniser {run.info.suite.recognizer.shown}, "
        f"{len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}, device {run.info.device}."
    )
    if not run.attacked:
        return f"{setting} Nothing was attacked."
    return (
        f"{setting} Judges: {judges}; reconstructions of {len(probes)} probes of {people} people "
        f"are searched in a gallery of {' or '.join(sorted(sizes)) or 'no'} people that holds "
        "another photo of everybody."
    )


def _judge(source: Source, judge: str) -> str:
    target = source.run.is_target(judge)
    return f"{judge} ({'the recogniser under attack' if target else 'independent'})"


def _groups(source: Source) -> dict[Leak, list[_Group]]:
    """Return defenses by leak, the undefended object first."""
    run = source.run
    names = distinct_names((item.defense, item.parameters) for item in run.protections)
    found: dict[tuple[Leak, str, str], list[Protection]] = defaultdict(list)
    for item in run.protections:
        found[item.leak, item.defense, item.parameters].append(item)
    leaks: dict[Leak, list[_Group]] = defaultdict(list)
    for (leak, defense, parameters), items in found.items():
        leaks[leak].append(_Group(names[defense, parameters], items))
    return leaks


def _matrices(source: Source, groups: Sequence[_Group]) -> Iterable[Table]:
    """Return a matrix of attacks and defenses per threat and measure, identity first."""
    run = source.run
    judges = sorted(run.judges, key=run.is_target, reverse=True)
    measures = [*(("rank-1", judge) for judge in judges), ("ssim", None)]
    for threat in Threat:
        lines = {group.name: _attacks(source, group, threat) for group in groups}
        if any(lines.values()):
            for metric, judge in measures:
                yield _matrix(source, threat, metric, judge, lines)


def _attacks(source: Source, group: _Group, threat: Threat) -> dict[str, list[Line]]:
    """Return the attacks on a defense under a threat by name, one line per seed."""
    run = source.run
    found: dict[str, list[Line]] = defaultdict(list)
    for item in group.protections:
        worst = run.worst(item, threat)
        for line in (worst, *run.attacks(item, threat)):
            if line is not None:
                found[WORST if line is worst else run.attack_name(line)].append(line)
    return found


def _references(source: Source) -> dict[str, dict[str, list[Line]]]:
    """Return floors and ceilings, which are the same for every attack, as if each were one."""
    run = source.run
    roles = {CEILING: "ceiling", **dict.fromkeys((*FLOORS, GUESSES), "floor")}
    found: dict[str, dict[str, list[Line]]] = defaultdict(lambda: {WORST: []})
    for line in run.references:
        name = f"{run.attack_name(line)} ({roles.get(line.attack or '', 'reference')})"
        found[name][WORST].append(line)
    return found


def _matrix(
    source: Source,
    threat: Threat,
    metric: str,
    judge: str | None,
    defenses: dict[str, dict[str, list[Line]]],
) -> Table:
    """Return one measure of every attack on every defense, floors and ceilings below."""
    lines = {name: found for name, found in defenses.items() if found} | _references(source)
    attacks = (WORST, *sorted({name for found in lines.values() for name in found} - {WORST}))
    rows = {
        name: {attack: combined(source, found[attack], metric, judge) for attack in found}
        for name, found in lines.items()
    }
    usual = Counter(row.n for found in rows.values() for row in found.values() if row)
    n = usual.most_common(1)[0][0] if usual else 0
    by = f" by {_judge(source, judge)}" if judge else ""
    return Table(
        f"{threat}: {metric}{by}, n {n}",
        attacks,
        tuple(
            (name, tuple(_cell(found[x], n) if x in found else "" for x in attacks))
            for name, found in rows.items()
        ),
    )


def _cell(row: Row | None, n: int) -> str:
    """Return a number with its interval; n only where it differs from the table's."""
    if row is None:
        return "no value"
    return str(show(row)) if row.n == n else f"{show(row)}, n {row.n}"


def _utility(source: Source, leak: Leak, groups: Sequence[_Group]) -> Table:
    """Return what defenses of a leak leave of recognition, and cost."""
    run = source.run
    bare = next((x for x in groups if x.protections[0].defense == UNDEFENDED), None)
    present = dict.fromkeys(
        row.metric
        for group in groups
        if (line := run.utility(group.protections[0])) is not None
        for row in line.rows
        if row.value is not None
    )
    rates = [name for name in present if name.startswith("accuracy.")]
    for way in ("stored-vs-fresh", "stored-vs-stored"):
        # The strictest rate that the pairs support.
        rates += [x for x in present if x.startswith("tar@far=") and x.endswith(way)][-1:]
    others = [name for name in (*LINKAGE, *COSTS) if name in present]
    lines = []
    for group in groups:
        cells: list[str] = []
        for metric in rates:
            row = _combined(source, group, metric)
            cells += [_shown(row), _change(source, group, bare, metric)]
        cells += [_shown(_combined(source, group, metric)) for metric in others]
        lines.append((group.name, tuple(cells)))
    columns = [
        heading for metric in rates for heading in (_plain(metric), "minus undefended (points)")
    ]
    return Table(
        f"{leak}: what is left of recognition, and what it costs",
        (*columns, *others),
        tuple(lines),
    )


def _combined(source: Source, group: _Group, metric: str) -> Row | None:
    lines = [source.run.utility(item) for item in group.protections]
    try:
        return combined(source, lines, metric, None)
    except MetricError:
        return None  # costs and linkage of several seeds have no common interval


def _change(source: Source, group: _Group, bare: _Group | None, metric: str) -> str:
    """Return the paired difference of a rate from the undefended one."""
    if bare is None or bare is group:
        return ""
    rows = [
        [
            row
            for item in members.protections
            if (line := source.run.utility(item)) is not None
            and (row := line.row(metric)) is not None
        ]
        for members in (group, bare)
    ]
    if not all(rows):
        return "–"
    mine, theirs = (sample(source.file, members) for members in rows)
    if mine.trials != theirs.trials:
        return "–"
    gap = points(difference(mine, theirs, CONFIDENCE), rows[0][0])
    return f"{gap.value} {gap.interval}"


def _shown(row: Row | None) -> str:
    if row is None:
        return "–"
    return f"{show(row)}, n {row.n}"


def _plain(metric: str) -> str:
    name, _, way = metric.rpartition(".")
    return f"{name}, {way.replace('-', ' ')}"
