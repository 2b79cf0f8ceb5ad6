"""Run a suite: every cell, utility, references and the worst case, written as the design names."""

from __future__ import annotations

import csv
import errno
import json
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import results
from bench.cell import GUESSED, Cells
from bench.curves import MORE_BUDGET_HELPS
from bench.datasets.base import Indices
from bench.errors import UserError
from bench.executors import (
    Executor,
    ProcessExecutor,
    RayExecutor,
    SerialExecutor,
    Settings,
    slots,
)
from bench.jobs import (
    Failures,
    Reference,
    Step,
    Utility,
    Workbench,
    cell_jobs,
    failure,
    scene_jobs,
)
from bench.keys import digest
from bench.leaks import Leak
from bench.linkage import LINKAGE, Pairs, linkability
from bench.plan import Cell, Spec, Suite, best_of, cells, protected
from bench.profile import profile
from bench.registry import REFERENCES
from bench.results import Row, Score, parameters_text
from bench.scoring import LOWER_IS_CLOSER, Values, protection, utility, worst_case
from bench.store import Artifact, Store, StoreError, atomic_path
from bench.threats import WEAKER, Threat
from bench.world import Progress as Say
from bench.world import World

RUN_FILE = "run.json"


@dataclass
class Outcome:
    """What a run has gathered so far.

    Attributes:
        rows: Result rows.
        failed: Steps that ended in an error: cells, a defense's utility, a reference.
        refusal: Why the store could not be written, if it could not.
        changed: Whether the folder holds other results than before.
    """

    rows: list[Row] = field(default_factory=list)
    failed: int = 0
    refusal: StoreError | None = None
    changed: bool = True


@dataclass(frozen=True)
class Workers:
    """How the jobs of a run are done. None of it changes a result.

    Attributes:
        executor: Serial, processes of this machine, or Ray.
        count: Processes; None for one per GPU, or per core.
        plugins: Files of plug-ins, which other processes load too.
        time_limit: Seconds that a cell may take; None for any.
        ray_address: Address of a Ray cluster; None for one on this machine.
    """

    executor: Literal["serial", "process", "ray"] = "serial"
    count: int | None = None
    plugins: tuple[Path, ...] = ()
    time_limit: float | None = None
    ray_address: str | None = None


def run_suite(
    suite: Suite,
    out: Path,
    store: Store,
    *,
    device: str = "auto",
    data_root: Path | None = None,
    quiet: bool = False,
    workers: Workers | None = None,
) -> Outcome:
    """Run every cell of a suite and write the results.

    First all jobs are done, which leaves their results in the store; then rows are made from what
    is there, whoever made it.

    Args:
        suite: The suite.
        out: Folder for results; made if absent.
        store: Where artifacts are kept; what is there is not computed again.
        device: "auto", "cpu", "cuda" or another torch device.
        data_root: Folder of a dataset that is not shipped.
        quiet: Whether to show no progress.
        workers: How the jobs are done; by default in this process, one after the other.

    Returns:
        The rows, also written to `results.parquet` and `results.csv`.

    Raises:
        UserError: Something is wrong before or beside a cell; a failing cell is a row instead.
    """
    began, clock = datetime.now(UTC), time.perf_counter()
    how = workers or Workers()
    planned = cells(suite)
    _check_folder(out)  # before hours of work whose results it could not hold
    phases = scene_jobs(suite), cell_jobs(suite)
    settings = Settings(
        suite.model_dump_json(), store.where, device, data_root, how.plugins, how.time_limit
    )
    bench = settings.workbench(store)
    outcome = Outcome()
    failures: Failures = {}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, disable=quiet, transient=True) as progress:
        total = sum(len(job.steps) for jobs in phases for job in jobs)
        task = progress.add_task("starting", total=total)

        def say(text: str) -> None:
            progress.update(task, description=text)

        bench.progress = say
        with _executor(how, settings, bench, say, quiet=quiet) as executor:
            profile.processes = executor.processes
            for jobs in phases:
                for done in executor.run(jobs):
                    failures |= done.failures
                    profile.add(done.seconds)
                    outcome.refusal = outcome.refusal or done.refusal
                    progress.advance(task, len(done.job.steps))
        store.close(outcome.refusal)
        for seed in suite.seeds:
            runner = bench.cells(seed)
            writer = _Writer(runner.world, out)
            _write_probes(runner.world, out)
            mine = [cell for cell in planned if cell.seed == seed]
            with profile.span("rows"):
                _add_rows(writer, runner, mine, outcome, failures)
    with profile.span("rows"):
        outcome.rows = flag_weaker(outcome.rows)
        other_rows = results.write(outcome.rows, out)
        facts = _facts(suite, runner.world, store, began, time.perf_counter() - clock)
        outcome.changed = other_rows or _tells_more(facts, out / RUN_FILE)
        if outcome.changed:
            with atomic_path(out / RUN_FILE) as path:
                path.write_text(json.dumps(facts, indent=1, default=str))
    return outcome


def _executor(
    how: Workers, settings: Settings, bench: Workbench, say: Say, *, quiet: bool
) -> Executor:
    match how.executor:
        case "serial":
            return SerialExecutor(bench)
        case "process":
            return ProcessExecutor(settings, slots(bench.device, how.count), say)
        case "ray":
            return RayExecutor(settings, how.ray_address, how.count, quiet=quiet)


def flag_weaker(rows: Sequence[Row]) -> list[Row]:
    """Flag rows whose attack does worse than the same attack with fewer rights.

    Whoever has more rights can ignore them, so such a row shows an attack that is too weak: the
    whole interval lies on the worse side of the value under the weaker threat.
    """
    values = {_twin(row, row.threat): row.value for row in rows if row.threat and row.attack}

    def weaker(row: Row) -> bool:
        if row.threat is None or row.ci_low is None or row.ci_high is None:
            return False
        others = [values.get(_twin(row, threat)) for threat in WEAKER[row.threat]]
        known = [value for value in others if value is not None]
        if row.metric in LOWER_IS_CLOSER:
            return any(row.ci_low > value for value in known)
        return any(row.ci_high < value for value in known)

    return [
        row.model_copy(update={"flags": f"{row.flags} weaker-than-fewer-rights".strip()})
        if weaker(row)
        else row
        for row in rows
    ]


def _twin(row: Row, threat: Threat | None) -> tuple[object, ...]:
    """Return what a row has in common with the same attack under another threat."""
    defense = (row.leak, row.defense, row.defense_params)
    attack = (row.attack, row.attack_params, threat)
    return (row.dataset, row.recognizer, *defense, *attack, row.seed, row.judge, row.metric)


def _add_rows(
    writer: _Writer,
    runner: Cells,
    planned: Sequence[Cell],
    outcome: Outcome,
    failures: Failures,
) -> None:
    """Add the rows of references, then of each defense's utility and attacks."""

    def rows(step: Step, make: Callable[[], list[Row]]) -> list[Row]:
        reason = failures.get(step)
        if reason is None:
            try:
                return make()
            except Exception as error:
                reason = str(error) if isinstance(error, StoreError) else failure(error)
        outcome.failed += 1
        return [writer.error(step, reason)]

    seed = runner.world.seed
    for name in REFERENCES.names():
        outcome.rows += rows(Reference(seed, name), partial(_reference_rows, writer, runner, name))
    for count in best_of(planned):
        last = Reference(seed, GUESSED, count - 1)
        outcome.rows += rows(last, partial(writer.guesses, runner, count))
    attacked: dict[tuple[Leak, Spec], list[Cell]] = defaultdict(list)
    for cell in planned:
        attacked[cell.leak, cell.defense].append(cell)
    for leak, defense in protected(runner.world.suite):
        outcome.rows += rows(
            Utility(seed, leak, defense), partial(_utility_rows, writer, leak, defense)
        )
        finished: dict[Cell, Values] = {}
        for cell in attacked[leak, defense]:
            outcome.rows += rows(cell, partial(_cell_rows, writer, runner, cell, finished))
        outcome.rows += writer.worst_cases(runner, leak, defense, finished)


def _reference_rows(writer: _Writer, runner: Cells, name: str) -> list[Row]:
    return writer.reference(runner, name, *runner.reference(name))


def _utility_rows(writer: _Writer, leak: Leak, defense: Spec) -> list[Row]:
    rows = writer.utility(leak, defense, utility(writer.world, defense, leak))
    linked = protection(writer.world, defense, leak)
    return rows if linked is None else [*rows, *writer.linkage(leak, defense, *linked)]


def _cell_rows(
    writer: _Writer, runner: Cells, cell: Cell, finished: dict[Cell, Values]
) -> list[Row]:
    made, values = runner.values(cell)
    rows = writer.cell(runner, cell, made, values)
    finished[cell] = values
    return rows


class _Writer:
    """Turns scores into rows, and writes the folder of each cell."""

    def __init__(self, world: World, out: Path) -> None:
        self.world = world
        self._out = out

    def reference(self, runner: Cells, name: str, made: Artifact, values: Values) -> list[Row]:
        """Write a floor or ceiling."""
        about = {"kind": "reference", "attack": name, "seed": self.world.seed}
        self._folder(made.key, about, values, made)
        return [
            self._row(score, attack=name, cell=made.key) for score in runner.scorer.scores(values)
        ]

    def guesses(self, runner: Cells, count: int) -> list[Row]:
        """Write the floor of a worst case over some attacks."""
        key, values = runner.guesses(count)
        about = {"attack": "best-of-guesses", "attack_params": parameters_text({"guesses": count})}
        self._folder(key, {"kind": "reference", **about}, values, None)
        return [self._row(s, **about, cell=key) for s in runner.scorer.scores(values)]

    def utility(self, leak: Leak, defense: Spec, scores: list[Score]) -> list[Row]:
        """Write a defense's pair scores; return the rows of its utility and cost."""
        about = self._about(leak, defense)
        scored = self.world.pair_scores(defense, leak)
        folder = self._cell_folder(scored.key, {"kind": "utility", **about}, scored.facts)
        pairs = self.world.split.pairs
        _write_pairs(
            folder / "values.csv", self.world, pairs.left, pairs.right, pairs.folds, scored.tensors
        )
        return [self._row(score, **about, cell=scored.key) for score in scores]

    def linkage(
        self, leak: Leak, defense: Spec, pairs: Pairs, scores: NDArray[np.float64]
    ) -> list[Row]:
        """Write how alike the records of two applications are; return the rows that follow."""
        about = self._about(leak, defense)
        key = self.world.linkage_scores(defense, leak).key
        folder = self._cell_folder(key, {"kind": "linkage", **about}, {})
        photos = self.world.pair_photos
        tensors = {LINKAGE: torch.from_numpy(scores)}
        left, right = photos[pairs.left], photos[pairs.right]
        homes = pairs.homes[pairs.left]
        _write_pairs(folder / "values.csv", self.world, left, right, homes, tensors)
        return [self._row(score, **about, cell=key) for score in linkability(scores, pairs)]

    def cell(self, runner: Cells, cell: Cell, made: Artifact, values: Values) -> list[Row]:
        """Write one attack on one defense."""
        about = self._about(cell.leak, cell.defense) | self._attack(cell)
        self._folder(made.key, {"kind": "attack", **about}, values, made)
        helps = any(curve["more_budget_helps"] for curve in made.facts.get("training", []))
        flags = (MORE_BUDGET_HELPS,) if helps else ()
        return [
            self._row(replace(score, flags=(*score.flags, *flags)), **about, cell=made.key)
            for score in runner.scorer.scores(values)
        ]

    def worst_cases(
        self, runner: Cells, leak: Leak, defense: Spec, finished: dict[Cell, Values]
    ) -> list[Row]:
        """Write the best attack per probe, for each threat with those weaker than it."""
        rows = []
        for threat in dict.fromkeys(cell.threat for cell in finished):
            within = {threat, *WEAKER[threat]}
            chosen = {cell: v for cell, v in finished.items() if cell.threat in within}
            values = worst_case(chosen.values())
            about = self._about(leak, defense) | {"attack": "worst-case", "threat": threat}
            about["attack_params"] = self._budget()
            key = digest([about, [str(cell) for cell in chosen], self.world.scene])
            self._folder(key, {"kind": "worst-case", **about}, values, None)
            rows += [self._row(s, **about, cell=key) for s in runner.scorer.scores(values)]
        return rows

    def _budget(self) -> str:
        """Return the version and budget of the standard set of attacks, if it is what ran."""
        suite = self.world.suite
        if not suite.attack_set:
            return "{}"
        budgets = suite.model_dump(include={"fresh_instances", "query_budget", "score_budget"})
        return parameters_text({"set": suite.attack_set, **budgets})

    def error(self, step: Step, reason: str) -> Row:
        """Return the row of a failure."""
        match step:
            case Cell():
                about = self._about(step.leak, step.defense) | self._attack(step)
                metric = "rank-1"
            case Utility():
                about = self._about(step.leak, step.defense)
                metric = "accuracy.stored-vs-stored"
            case Reference():
                about, metric = {"attack": step.name}, "rank-1"
        return Row(
            **self._common(),
            **about,
            metric=metric,
            definition="",
            value=None,
            status="error",
            reason=reason,
        )

    def _row(self, score: Score, **about: Any) -> Row:
        estimate = score.estimate
        return Row(
            **self._common(),
            **{name: value for name, value in about.items() if name in Row.model_fields},
            judge=score.judge,
            metric=score.metric,
            definition=score.definition,
            value=_number(estimate.value),
            ci_low=_number(estimate.low),
            ci_high=_number(estimate.high),
            n=estimate.n,
            flags=" ".join(score.flags),
        )

    def _common(self) -> dict[str, Any]:
        suite = self.world.suite
        return {
            "suite": suite.name,
            "dataset": suite.dataset,
            "recognizer": suite.recognizer.label,
            "seed": self.world.seed,
        }

    def _about(self, leak: Leak, defense: Spec) -> dict[str, Any]:
        return {
            "leak": leak,
            "defense": defense.name,
            "defense_params": parameters_text(defense.parameters),
        }

    def _attack(self, cell: Cell) -> dict[str, Any]:
        return {
            "attack": cell.attack.name,
            "attack_params": parameters_text(cell.attack.parameters),
            "threat": cell.threat,
        }

    def _folder(
        self, key: str, about: dict[str, Any], values: Values, made: Artifact | None
    ) -> None:
        """Write cell.json, values.csv and the reconstructions of one cell."""
        folder = self._cell_folder(key, about, {} if made is None else made.facts)
        with atomic_path(folder / "values.csv") as path, path.open("w", newline="") as stream:
            _write_values(csv.writer(stream), self.world, values)
        if made is not None:
            _save_images(folder / "reconstructions.npy", made.tensors["images"])

    def _cell_folder(self, key: str, about: dict[str, Any], facts: dict[str, Any]) -> Path:
        """Make the folder of one cell, with cell.json; return it."""
        folder = _make_folder(self._out / "cells" / key)
        with atomic_path(folder / "cell.json") as path:
            about = {**about, "seed": self.world.seed, "facts": facts}
            path.write_text(json.dumps(about, indent=1, default=str))
        return folder


def _write_pairs(
    target: Path,
    world: World,
    left: Indices,
    right: Indices,
    folds: NDArray[np.int_],
    scores: Mapping[str, torch.Tensor],
) -> None:
    """Write the scores of pairs of photos, and what rows are made from beside them."""
    photos = [[world.dataset.photos[i].key for i in side] for side in (left, right)]
    people = [world.identities(side) for side in (left, right)]
    same = (people[0] == people[1]).astype(int).tolist()
    # As text of the shortest form that reads back to the same float32.
    ways = [column.numpy().astype(np.float32).astype(str) for column in scores.values()]
    header = ["left", "right", "left_identity", "right_identity", "same", "fold"]
    with atomic_path(target) as path, path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*header, *scores])
        writer.writerows(zip(*photos, *people, same, folds.tolist(), *ways, strict=True))


def _write_values(writer: Any, world: World, values: Values) -> None:
    probes = world.split.probes
    people = world.identities(probes)
    writer.writerow(["probe", "identity", *values])
    for row, probe in enumerate(probes):
        numbers = [repr(float(column[row])) for column in values.values()]
        writer.writerow([world.dataset.photos[probe].key, people[row], *numbers])


def _write_probes(world: World, out: Path) -> None:
    folder = _make_folder(out / "seeds" / str(world.seed))
    images = (world.images(world.split.probes) * 255).round().to(torch.uint8)
    _save_images(folder / "originals.npy", images)
    with atomic_path(folder / "probes.csv") as path, path.open("w", newline="") as stream:
        _write_values(csv.writer(stream), world, {})
    with atomic_path(folder / "people.csv") as path, path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["role", "photo", "identity", "sha256"])
        for role, members in world.members().items():
            writer.writerows([role, x.photo, x.identity, x.content] for x in members)


def _save_images(target: Path, images: torch.Tensor) -> None:
    with atomic_path(target) as path, path.open("wb") as stream:
        np.save(stream, images.permute(0, 2, 3, 1).contiguous().cpu().numpy())


def _facts(
    suite: Suite, world: World, store: Store, began: datetime, seconds: float
) -> dict[str, Any]:
    packages = ("veilbench", "torch", "numpy", "opencv-python-headless", "lpips", "scikit-image")
    return {
        "suite": suite.model_dump(mode="json"),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        "command": ["veilbench", *sys.argv[1:]],
        "device": torch.cuda.get_device_name() if world.device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "precision": world.recognizer.precision,
        "thresholds": {name: vars(world.operating_point(name)) for name in world.judges},
        "credits": world.credits(),
        "started": began.isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "artifacts": sorted(store.used),
    }


def _tells_more(facts: dict[str, Any], path: Path) -> bool:
    """Say whether facts hold what `run.json` does not, but for when and how a run was repeated.

    A run that computes nothing reads less of the store than the one that computed: it leaves that
    one's file as it is.
    """
    try:
        before = json.loads(path.read_text())
        known = set(before["artifacts"])
    except (OSError, ValueError, KeyError):
        return True
    now = json.loads(json.dumps(facts, default=str))
    settled = now.keys() - {"started", "seconds", "command", "artifacts"}
    return not known.issuperset(now["artifacts"]) or any(
        now[name] != before.get(name) for name in settled
    )


def _check_folder(folder: Path) -> None:
    """Refuse a folder that could not be made, without making it."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise _unusable(folder, os.strerror(errno.ENOTDIR))
    if not os.access(nearest, os.W_OK):
        raise _unusable(folder, os.strerror(errno.EACCES))


def _unusable(folder: Path, why: str | None) -> UserError:
    return UserError(f"The folder {folder} cannot be made ({why}): give another with --out.")


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error.strerror) from error
    return folder


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
