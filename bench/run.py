"""Run a suite: every cell, utility, references and the worst case, written as the design names."""

from __future__ import annotations

import csv
import json
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import results
from bench.cell import Cells
from bench.errors import UserError
from bench.keys import digest
from bench.leaks import Leak
from bench.plan import Cell, Spec, Suite, cells
from bench.registry import REFERENCES
from bench.results import Row, parameters_text
from bench.scoring import LOWER_IS_CLOSER, Score, Values, utility, worst_case
from bench.store import Artifact, Store, atomic_path
from bench.threats import Threat
from bench.world import World

WEAKER: dict[Threat, frozenset[Threat]] = {
    Threat.TRANSFER: frozenset(),
    Threat.ADAPTIVE: frozenset({Threat.TRANSFER}),
    Threat.INSIDER: frozenset({Threat.TRANSFER, Threat.ADAPTIVE}),
    Threat.QUERY: frozenset(),
    Threat.SCORE: frozenset(),
}
"""Whoever has the rights of a threat can also run the attacks of these."""


def choose_device(wanted: str) -> str:
    """Return the torch device for "auto" (CUDA where there is one) or a device's name.

    Raises:
        UserError: The device is unknown or absent.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"The device {wanted!r} cannot be used ({str(error).splitlines()[0]}): "
            "give --device cpu, cuda or auto."
        ) from error
    return wanted


@dataclass
class Outcome:
    """What a run has gathered so far.

    Attributes:
        rows: Result rows.
        failed: Cells that ended in an error.
    """

    rows: list[Row] = field(default_factory=list)
    failed: int = 0


def run_suite(
    suite: Suite,
    out: Path,
    store: Store,
    *,
    device: str = "auto",
    data_root: Path | None = None,
    quiet: bool = False,
) -> Outcome:
    """Run every cell of a suite and write the results.

    Args:
        suite: The suite.
        out: Folder for results; made if absent.
        store: Where artifacts are kept; what is there is not computed again.
        device: "auto", "cpu", "cuda" or another torch device.
        data_root: Folder of a dataset that is not shipped.
        quiet: Whether to show no progress.

    Returns:
        The rows, also written to `results.parquet` and `results.csv`.

    Raises:
        UserError: Something is wrong before or beside a cell; a failing cell is a row instead.
    """
    started = time.perf_counter()
    planned = cells(suite)
    device = choose_device(device)
    outcome = Outcome()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, disable=quiet, transient=True) as progress:
        task = progress.add_task("starting", total=_steps(suite, planned))

        def say(text: str) -> None:
            progress.update(task, description=text)

        for seed in suite.seeds:
            world = World(suite, seed, store, device, data_root, say)
            writer = _Writer(world, out)
            _write_probes(world, out)
            mine = [cell for cell in planned if cell.seed == seed]
            for _ in _run_world(writer, mine, outcome):
                progress.advance(task)
    outcome.rows = flag_weaker(outcome.rows)
    results.write(outcome.rows, out)
    _write_run(suite, out, device, world, time.perf_counter() - started)
    return outcome


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


def _steps(suite: Suite, planned: Sequence[Cell]) -> int:
    defenses = {(cell.seed, cell.leak, cell.defense) for cell in planned}
    return len(planned) + len(defenses) + len(suite.seeds) * len(REFERENCES.names())


def _run_world(writer: _Writer, planned: Sequence[Cell], outcome: Outcome) -> Iterable[None]:
    """Run references, then each defense's utility and attacks; yield after every step."""
    world = writer.world
    runner = Cells(world)
    for name in REFERENCES.names():
        made, values = runner.reference(name)
        outcome.rows += writer.reference(runner, name, made, values)
        yield
    groups: dict[tuple[Leak, Spec], list[Cell]] = defaultdict(list)
    for cell in planned:
        groups[cell.leak, cell.defense].append(cell)
    for (leak, defense), members in groups.items():
        outcome.rows += _utility_rows(writer, leak, defense, outcome)
        yield
        finished: dict[Cell, Values] = {}
        for cell in members:
            world.progress(str(cell))
            outcome.rows += _cell_rows(writer, runner, cell, finished, outcome)
            yield
        outcome.rows += writer.worst_cases(runner, leak, defense, finished)


def _utility_rows(writer: _Writer, leak: Leak, defense: Spec, outcome: Outcome) -> list[Row]:
    try:
        return writer.utility(leak, defense, utility(writer.world, defense, leak))
    except UserError:
        raise
    except Exception as error:
        outcome.failed += 1
        return [writer.error(leak, defense, None, "accuracy.stored-vs-stored", error)]


def _cell_rows(
    writer: _Writer, runner: Cells, cell: Cell, finished: dict[Cell, Values], outcome: Outcome
) -> list[Row]:
    try:
        made, values = runner.values(cell)
    except UserError:
        raise
    except Exception as error:
        outcome.failed += 1
        return [writer.error(cell.leak, cell.defense, cell, "rank-1", error)]
    finished[cell] = values
    return writer.cell(runner, cell, made, values)


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

    def utility(self, leak: Leak, defense: Spec, scores: list[Score]) -> list[Row]:
        """Write a defense's pair scores; return the rows of its utility and cost."""
        about = self._about(leak, defense)
        scored = self.world.pair_scores(defense, leak)
        folder = self._cell_folder(scored.key, {"kind": "utility", **about}, scored.facts)
        _write_pairs(folder / "values.csv", self.world, scored)
        return [self._row(score, **about, cell=scored.key) for score in scores]

    def cell(self, runner: Cells, cell: Cell, made: Artifact, values: Values) -> list[Row]:
        """Write one attack on one defense."""
        about = self._about(cell.leak, cell.defense) | self._attack(cell)
        self._folder(made.key, {"kind": "attack", **about}, values, made)
        return [self._row(s, **about, cell=made.key) for s in runner.scorer.scores(values)]

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
            key = digest([about, [str(cell) for cell in chosen], self.world.scene])
            self._folder(key, {"kind": "worst-case", **about}, values, None)
            rows += [self._row(s, **about, cell=key) for s in runner.scorer.scores(values)]
        return rows

    def error(
        self, leak: Leak, defense: Spec, cell: Cell | None, metric: str, error: Exception
    ) -> Row:
        """Return the row of a failure."""
        return Row(
            **self._common(),
            **self._about(leak, defense),
            **(self._attack(cell) if cell else {}),
            metric=metric,
            definition="",
            value=None,
            status="error",
            reason=f"{type(error).__name__}: {error}",
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


def _write_pairs(target: Path, world: World, scored: Artifact) -> None:
    """Write the score of every verification pair, and what `scoring.utility` needs beside it."""
    pairs = world.split.pairs
    photos = [[world.dataset.photos[i].key for i in side] for side in (pairs.left, pairs.right)]
    people = [world.identities(side).tolist() for side in (pairs.left, pairs.right)]
    same = pairs.same.astype(int).tolist()
    # As text of the shortest form that reads back to the same float32.
    ways = [column.numpy().astype(np.float32).astype(str) for column in scored.tensors.values()]
    header = ["left", "right", "left_identity", "right_identity", "same", "fold"]
    with atomic_path(target) as path, path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*header, *scored.tensors])
        writer.writerows(zip(*photos, *people, same, pairs.folds.tolist(), *ways, strict=True))


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


def _write_run(suite: Suite, out: Path, device: str, world: World, seconds: float) -> None:
    packages = ("veilbench", "torch", "numpy", "opencv-python-headless", "lpips", "scikit-image")
    facts = {
        "suite": suite.model_dump(mode="json"),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        "command": ["veilbench", *sys.argv[1:]],
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "precision": world.recognizer.precision,
        "thresholds": {name: vars(world.operating_point(name)) for name in world.judges},
        "credits": world.credits(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
    }
    with atomic_path(out / "run.json") as path:
        path.write_text(json.dumps(facts, indent=1, default=str))


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be made ({error.strerror}): give another with --out."
        ) from error
    return folder


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
