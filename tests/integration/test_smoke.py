"""Small runs of the whole: determinism, plug-ins from outside, and input that cannot be used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from command_line import veilbench
from pretended_device import pretended_device
from typer.testing import CliRunner

from bench.cli import app
from bench.plan import Suite, load_suite, narrowed
from bench.result_file import pack
from bench.results import Row, read
from bench.run import run_suite
from bench.store import Store

SMOKE = ["run", "smoke", "--quiet", "--device", "cpu", "--out", "out", "--store"]


@pytest.fixture(scope="module")
def first_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("first")


@pytest.fixture(scope="module")
def began() -> datetime:
    """When the first run began, or a moment before."""
    return datetime.now(UTC).replace(microsecond=0)


@pytest.fixture(scope="module")
def first(began: datetime, first_folder: Path) -> list[Row]:
    done = veilbench(*SMOKE, "store", folder=first_folder)
    assert done.returncode == 0, done.stderr
    return read(first_folder / "out")


@pytest.fixture(scope="module")
def warm(first: list[Row], first_folder: Path) -> Path:
    """A store that holds what plug-ins have in common with the suite: they add only their own."""
    assert first
    return first_folder / "store"


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registries: None
) -> Callable[..., str]:
    """Return a function that runs a command in an empty folder of this process."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        return done.output

    return run


def timeless(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.metric != "ms-per-record"]


def test_the_same_seed_gives_the_same_rows_bit_for_bit(first: list[Row], tmp_path: Path) -> None:
    assert timeless(in_this_process(load_suite("smoke"), tmp_path, threads=1)) == timeless(first)


def test_a_run_says_when_it_started_and_how_long_it_took(
    began: datetime, first: list[Row], first_folder: Path
) -> None:
    assert first
    facts = json.loads((first_folder / "out" / "run.json").read_text())
    started, taken = datetime.fromisoformat(facts["started"]), timedelta(seconds=facts["seconds"])
    assert began <= started
    written = (first_folder / "out" / "run.json").stat().st_mtime
    assert started + taken <= datetime.fromtimestamp(written, UTC) + timedelta(seconds=1)


def test_what_was_trained_leaves_its_learning_curve(first: list[Row], first_folder: Path) -> None:
    run = pack(first_folder / "out")
    attacks = {row.cell: row.attack for row in run.rows if row.status == "ok"}
    curves = {attacks[key]: cell.curves for key, cell in run.cells.items()}
    assert [curve.network for curve in curves["unet"]] == ["MapDecoder"]
    assert curves["unet"][0].training[-1] < curves["unet"][0].training[0]
    assert curves["mean-face"] == []


def test_two_threads_change_no_privacy_number_by_more_than_the_stated_tolerance(
    first: list[Row], tmp_path: Path
) -> None:
    suite = narrowed(load_suite("smoke"), ["sign-noise"], ["unet"], None)
    other = {cell_of(row): row for row in in_this_process(suite, tmp_path, threads=2)}
    seen = 0
    for one in first:
        two = other.get(cell_of(one))
        if two is not None and one.metric in {"ssim", "similarity"}:
            assert one.value == pytest.approx(two.value, abs=0.02)
            seen += one.attack == "unet"
    assert seen >= 6


def test_a_device_gives_what_the_cpu_gives(first: list[Row], tmp_path: Path) -> None:
    """Trained, scored and written, on a device that is none: what a run on a GPU needs of us."""
    suite = narrowed(load_suite("smoke"), ["biohash"], ["linear"], None)
    with pretended_device() as device:
        there = run_suite(suite, tmp_path / "out", Store(tmp_path / "store"), device=device)
    assert there.failed == 0
    here = {cell_of(row): row.value for row in first}
    compared = [row for row in there.rows if row.metric == "ssim"]
    assert {row.attack for row in compared} > {"linear", "mean-face"}
    for row in compared:  # Of single precision there, and of half here.
        assert row.value == pytest.approx(here[cell_of(row)], abs=0.01)


BARE = """
name = "bare"
title = "What two defenses cost"
dataset = "orl"
recognizer = { name = "sface" }
[split]
victims = 6
probes = 6
attacker_images = 20
defender_images = 20
gallery_people = 2
[[group]]
leak = "template"
defenses = [{ name = "none" }, { name = "biohash" }]
"""


def test_a_suite_without_attacks_says_what_defenses_cost(
    command: Callable[..., str], warm: Path, tmp_path: Path
) -> None:
    (tmp_path / "bare.toml").write_text(BARE)
    command("run", "bare.toml", *SMOKE[2:], str(warm))
    rows = read(tmp_path / "out")
    defended = {row.metric for row in rows if row.defense == "biohash"}
    assert {"accuracy.stored-vs-stored", "d-sys", "bytes-per-record"} <= defended
    assert {row.attack for row in rows if row.defense} == {None}
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "Nothing was attacked" in page
    assert re.findall(r'<h2 id="([a-z]+)"', page) == ["utility", "plots", "definitions", "run"]
    command("submit", "out", "--out", "bare.json.gz")
    command("publish", "bare.json.gz", "--out", "page")
    published = (tmp_path / "page" / "README.md").read_text()
    assert "what is left of recognition" in published
    assert "What attacks recover" not in published


def in_this_process(suite: Suite, folder: Path, threads: int) -> list[Row]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return run_suite(suite, folder / "out", Store(folder / "store"), quiet=True).rows
    finally:
        torch.set_num_threads(before)


def cell_of(row: Row) -> tuple[object, ...]:
    return row.leak, row.defense, row.attack, row.threat, row.judge, row.metric


@pytest.mark.parametrize(("kind", "attack"), [("defense", "unet"), ("attack", "mine-too")])
def test_a_plugin_of_one_file_runs_at_once_and_stands_in_the_report(
    kind: str, attack: str, command: Callable[..., str], warm: Path, tmp_path: Path
) -> None:
    command("new", kind, "mine-too")
    path = tmp_path / "mine_too.py"
    assert len(path.read_text().splitlines()) <= 40
    command(*SMOKE, str(warm), "--plugin", str(path), f"--{kind}", "mine-too")
    mine = [row for row in read(tmp_path / "out") if getattr(row, kind) == "mine-too"]
    assert mine
    failed = {(row.defense, row.threat) for row in mine if row.status == "error"}
    assert failed <= {("pixelate", "transfer")}, "only records of another shape stay unread"
    assert attack in {row.attack for row in mine}
    assert "mine-too" in (tmp_path / "out" / "report" / "index.html").read_text(encoding="utf-8")


def test_a_new_defense_keeps_its_contract(warm: Path, tmp_path: Path) -> None:
    written = veilbench("new", "defense", "mine-too", folder=tmp_path)
    assert written.stdout.splitlines()[-1] == "  pytest test_mine_too.py"
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "veilbench").symlink_to(warm)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine_too.py"],
        cwd=tmp_path,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout


def test_a_failing_plugin_is_a_row_and_the_others_finish(warm: Path, tmp_path: Path) -> None:
    veilbench("new", "attack", "breaks", folder=tmp_path)
    path = tmp_path / "breaks.py"
    path.write_text(
        path.read_text().replace(
            "return self.images", "raise OSError('boom')\n        return self.images"
        )
    )
    chosen = ["--plugin", str(path), "--attack", "breaks", "--attack", "retrieval"]
    done = veilbench(*SMOKE, str(warm), *chosen, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path / "out")
    broken = [row for row in rows if row.attack == "breaks"]
    assert broken
    assert {row.status for row in broken} == {"error"}
    assert all(row.value is None for row in broken)
    assert all("boom" in row.reason for row in broken if row.defense != "pixelate")
    assert any(row.attack == "retrieval" and row.status == "ok" for row in rows)


SUITE = """
name = "tiny"
title = "Input that cannot be used"
dataset = "lfw"
recognizer = { name = "sface" }
[split]
pairs_per_fold = 2
probes = 2
attacker_images = 2
defender_images = 2
gallery_people = 0
[[group]]
leak = "template"
defenses = [{ name = "none" }]
attacks = [{ name = "retrieval", threats = ["transfer"] }]
"""


def broken_lfw(folder: Path, image: bytes) -> None:
    people = {"A": 2, "B": 2, "C": 2, "D": 1, "E": 1}
    for name, count in people.items():
        (folder / "lfw" / name).mkdir(parents=True)
        for number in range(1, count + 1):
            (folder / "lfw" / name / f"{name}_{number:04d}.jpg").write_bytes(image)
    (folder / "pairs.txt").write_text("1\t1\nA\t1\t2\nA\t1\tB\t1\n")
    (folder / "tiny.toml").write_text(SUITE)


def test_a_broken_photo_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    broken_lfw(tmp_path, b"\xff\xd8\xff broken")
    before = sorted(tmp_path.rglob("*"))
    done = veilbench("run", "tiny.toml", "--data-root", ".", folder=tmp_path)
    assert done.returncode == 2
    assert "is not a usable image" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_altered_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "sface.onnx"
    weights.write_bytes(b"not these")
    monkeypatch.setenv("VEILBENCH_ASSET_SFACE", str(weights))
    done = veilbench("run", "smoke", "--quiet", "--store", "store", folder=tmp_path)
    assert done.returncode == 2
    assert "was altered" in done.stderr
