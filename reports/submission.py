"""What a leaderboard accepts: a run packed into one file, whose every number can be recomputed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from bench import result_file
from bench.cost import costs
from bench.curves import MORE_BUDGET_HELPS
from bench.datasets.base import check_disjoint
from bench.errors import MetricError, UserError
from bench.metrics import Estimate
from bench.metrics.definitions import definition, definitions
from bench.result_file import CellValues, ResultFile
from bench.results import Row, Score
from reports.run import CEILING, FLOORS, WORST_CASE, visible
from reports.samples import estimate, linked, sample

ROLES = ("defender", "attacker", "victims")
"""Who must not share a person or a photo."""

CLOSE = {"rel_tol": 1e-6, "abs_tol": 1e-9}
"""How near a recomputed number must be: the rest is the order of floating-point sums."""

ONCE_WITHOUT_INTERVAL = {"eer", "d-sys", "bytes-per-record", "storage-factor"}
"""Definitions of which older result files hold no interval: their rows may still have none."""

SHOWN = 5
"""Faults of one kind that are told in full."""


def write(run: Path, target: Path) -> str:
    """Pack a finished run into one file; return what to tell, the file's sha256 included.

    Raises:
        UserError: The run is not sound, or a file cannot be read or written.
    """
    packed = result_file.pack(run)
    if found := faults(packed):
        raise UserError(f"The run {run} cannot be submitted ({found[0]}): run the suite again.")
    result_file.write(packed, target)
    return f"Wrote {target}\nsha256 {result_file.file_sha256(target)}"


def faults(file: ResultFile) -> list[str]:
    """Return what is wrong with a result file, in sentences on one line each."""
    return [visible(fault) for _, find in CHECKS for fault in find(file)]


def check(path: Path) -> tuple[str, bool]:
    """Validate a result file.

    Args:
        path: The file.

    Returns:
        A line per check with its faults, and whether there are none.

    Raises:
        UserError: The file cannot be read, or does not follow the schema.
    """
    packed = result_file.read(path)
    lines = [f"ok    schema, version {packed.version}"]
    sound = True
    for title, find in CHECKS:
        found = [visible(fault) for fault in find(packed)]
        lines.append(f"{'FAIL' if found else 'ok  '}  {title}")
        lines += [f"        {fault}" for fault in found[:SHOWN]]
        lines += [f"        and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        sound &= not found
    return "\n".join(lines), sound


def _hash(file: ResultFile) -> Iterable[str]:
    content = file.content()
    if content != file.sha256:
        yield f"the content has the sha256 {content}, the file names {file.sha256}"


def _overlap(file: ResultFile) -> Iterable[str]:
    for number, seed in file.seeds.items():
        missing = [role for role in ROLES if not seed.roles.get(role)]
        if missing:
            yield f"seed {number} names no {' and no '.join(missing)}"
        try:
            check_disjoint(
                {
                    role: [(member.identity, member.sha256) for member in members]
                    for role, members in seed.roles.items()
                }
            )
        except UserError as error:
            yield f"seed {number}: {error}"
        victims = {(member.photo, member.identity) for member in seed.roles.get("victims", [])}
        strangers = [x.photo for x in seed.probes if (x.photo, x.identity) not in victims]
        if strangers:
            yield f"seed {number}: the probe {strangers[0]} is no victim"


def _floors(file: ResultFile) -> Iterable[str]:
    for seed in dict.fromkeys(row.seed for row in file.rows):
        scored = {
            row.attack
            for row in file.rows
            if row.seed == seed and row.defense is None and row.value is not None
        }
        for name in (*FLOORS, CEILING):
            if name not in scored:
                yield f"seed {seed} has no row of {name}"


def _numbers(file: ResultFile) -> Iterable[str]:
    for row in file.rows:
        fault = _fault(file, row)
        if fault:
            where = (row.leak, row.defense, row.attack, row.threat, row.metric, row.judge)
            yield f"{' / '.join(str(part) for part in where if part)}: {fault}"


def _fault(file: ResultFile, row: Row) -> str:
    """Return what is wrong with a row's numbers, empty if nothing is."""
    if row.status == "error":
        return "" if row.value is None else "a failed cell has a value"
    try:
        if definition(row.definition).kind in {"cost", "protection"}:
            return _recorded_fault(file, row)
        found = sample(file, [row])
        if not len(found.values):
            return "" if row.value is None else "it has a value, but no probe has"
        again = estimate(found, 0.95)
    except (MetricError, IndexError, KeyError) as error:
        return str(error)
    if row.n != again.n:
        return f"n is {row.n}, recomputed {again.n}"
    helps = any(curve.more_budget_helps for curve in file.cells[row.cell].curves)
    if helps is not (MORE_BUDGET_HELPS in row.flags.split()):
        return f"its flag {MORE_BUDGET_HELPS} does not follow from the learning curves"
    return _numbers_differ(row, again)


def _recorded_fault(file: ResultFile, row: Row) -> str:
    """Return what is wrong with a number of linkage or cost, which the cell as a whole gives."""
    cell = file.cells.get(row.cell)
    if cell is None:
        return f"there are no raw values behind {row.metric}"
    again = linked(file, cell) if cell.kind == "linkage" else _costs(cell)
    found = next((score for score in again if score.metric == row.metric), None)
    if found is None:
        return f"the raw values say nothing about {row.metric}: run the suite again"
    if row.n != found.estimate.n:
        return f"n is {row.n}, recomputed {found.estimate.n}"
    lost = [flag for flag in found.flags if flag not in row.flags.split()]
    return f"it is not flagged {lost[0]}" if lost else _numbers_differ(row, found.estimate)


def _costs(cell: CellValues) -> list[Score]:
    try:
        return costs(cell.facts)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise MetricError(f"its facts give no cost ({type(error).__name__}: {error})") from error


def _numbers_differ(row: Row, again: Estimate) -> str:
    pairs = [("value", row.value, again.value)]
    unbounded = row.ci_low is None and row.ci_high is None
    if not (unbounded and row.definition in ONCE_WITHOUT_INTERVAL):
        pairs += [("low", row.ci_low, again.low), ("high", row.ci_high, again.high)]
    return next((fault for pair in pairs if (fault := _differs(*pair))), "")


def _differs(name: str, stated: float | None, recomputed: float) -> str:
    if stated is None and math.isnan(recomputed):
        return ""
    if stated is not None and math.isclose(stated, recomputed, **CLOSE):
        return ""
    return f"the {name} is {stated}, recomputed {recomputed:.6g}"


def _worst_cases(file: ResultFile) -> Iterable[str]:
    """Compare every worst case with the attacks under its threat: none may be better."""
    ordered = sorted(file.rows, key=_protection)
    for key, rows in itertools.groupby(ordered, key=_protection):
        attacks = [row for row in rows if row.attack and row.cell in file.cells]
        cells = {row.cell: row.attack for row in attacks}
        worst = [cell for cell, attack in cells.items() if attack == WORST_CASE]
        known = [row for row in attacks if row.definition in definitions()]
        better = {_key(row): definition(row.definition).better for row in known}
        for cell, name in itertools.product(worst, better):
            values = [file.cells[x].array(name) for x in cells if name in file.cells[x].values]
            if len({len(column) for column in values}) > 1:
                yield f"{' / '.join(key)}: attacks have different numbers of probes"
                continue
            sign = 1 if better[name] == "lower" else -1
            bound = file.cells[cell].values.get(name)
            if bound is None or (sign * np.array(bound) < sign * np.array(values)).any():
                yield f"{' / '.join(key)}: an attack beats the worst case in {name}"


def _protection(row: Row) -> tuple[str, ...]:
    about = (row.leak, row.defense, row.defense_params, row.threat, row.seed)
    return tuple("" if part is None else str(part) for part in about)


def _key(row: Row) -> str:
    return row.metric if row.judge is None else f"{row.judge}/{row.metric}"


CHECKS: tuple[tuple[str, Callable[[ResultFile], Iterable[str]]], ...] = (
    ("sha256 of the content", _hash),
    ("attacker, defender and victims share no person and no photo", _overlap),
    ("floors and ceiling are there", _floors),
    ("every number follows from the raw values", _numbers),
    ("no attack beats the worst case", _worst_cases),
)
"""What `check` looks at, after the schema."""
