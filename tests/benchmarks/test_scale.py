"""What the harness adds to the networks it runs, as ratios within one run, and its memory.

Run with `pytest tests/benchmarks/test_scale.py`; the ratios are in the report's extra info.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import pytest
import torch
from command_line import veilbench
from timing import ratio, seconds, told

from bench.cell import Cells
from bench.leaks import Leak
from bench.plan import Cell, Spec, parse_suite
from bench.store import Store
from bench.threats import Threat
from bench.world import BATCH, World, draws, protect

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

SUITE = """
name = "scale"
title = "Cells of a second or two"
dataset = "orl"
recognizer = { name = "sface" }
[split]
victims = 10
probes = 20
attacker_images = 100
defender_images = 60
gallery_people = 3
[[group]]
leak = "features"
defenses = [{ name = "none" }]
attacks = [{ name = "unet", steps = 30, threats = ["transfer"] }]
[[group]]
leak = "features"
defenses = [{ name = "sign-noise" }, { name = "gaussian-noise" }, { name = "quantize" }]
attacks = [{ name = "unet", steps = 30, threats = ["adaptive"] }]
"""


def command(*arguments: str, folder: Path) -> float:
    """Run the command line in a folder; return its seconds."""
    return seconds(lambda: veilbench(*arguments, folder=folder).check_returncode())


def run(suite: str, folder: Path, *more: str) -> float:
    """Run a suite into a folder, its store included; return the seconds."""
    fixed = ["run", suite, "--quiet", "--device", "cpu", "--out", "out", "--store", "store"]
    folder.mkdir(exist_ok=True)
    return command(*fixed, *more, folder=folder)


def test_a_cached_rerun_takes_a_small_share_of_the_first_run(
    benchmark: BenchmarkFixture, tmp_path: Path
) -> None:
    """Python and torch start in two or three seconds: the bound is for runs of minutes."""
    first, again = run("demo", tmp_path), run("demo", tmp_path)
    told(benchmark, first=first, again=again, share=again / first)
    assert again <= 0.03 * first


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
def test_two_processes_against_one(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """In turns, each time from an empty store; the suite is over in less than a minute."""
    suite = tmp_path / "scale.toml"
    suite.write_text(SUITE)
    found = []
    for number in range(3):
        one = run(str(suite), tmp_path / f"one-{number}")
        workers = ["--executor", "process", "--workers", "2"]
        found.append(one / run(str(suite), tmp_path / f"two-{number}", *workers))
    told(benchmark, ratio=median(found), lowest=min(found), highest=max(found))
    assert median(found) > 1


def test_help_starts_at_once(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    start = median(command("--help", folder=tmp_path) for _ in range(9))
    told(benchmark, seconds=start)
    assert start <= 0.3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    suite = parse_suite(tomllib.loads(SUITE), "here")
    return World(suite, 0, Store(tmp_path_factory.mktemp("store")), "cpu", None)


def test_records_protected_against_the_bare_pass(benchmark: BenchmarkFixture, world: World) -> None:
    """Embedding the same photos with nothing around it is the bare pass."""
    images = world.images(world.split.attacker)[: 2 * BATCH]
    defense = world.deployed(Spec("defense", "sign-noise", ()), Leak.FEATURES)

    def bare() -> None:
        with torch.no_grad():
            for part in images.split(BATCH):
                defense.protect(world.recognizer.head(part), generator=draws(0))

    left = ratio(bare, lambda: protect(defense, images, draws(0)))
    told(benchmark, ratio=left)
    assert left > 0.5


def test_probes_inverted_against_the_bare_pass(benchmark: BenchmarkFixture, world: World) -> None:
    """The attack alone, trained and applied by hand, is the bare pass."""
    spec = Spec("attack", "unet", (("steps", 30),))
    none = Spec("defense", "none", ())
    cell = Cell(Leak.FEATURES, none, spec, Threat.TRANSFER, 0)
    records = world.victim_records(none, Leak.FEATURES).tensors["records"]

    def bare() -> None:
        attack = spec.create()
        attack.fit(Cells(world)._attacker(cell, records))
        attack.reconstruct(records)

    def ours() -> None:
        Cells(world)._attack(cell)

    left = ratio(bare, ours, rounds=3)
    told(benchmark, ratio=left)
    assert left > 0.5


MEMORY = """
import resource, sys, tomllib
from pathlib import Path
import numpy as np
from bench.datasets.base import Photo
from bench.datasets.orl import ORL
from bench.leaks import Leak
from bench.plan import Spec, parse_suite
from bench.registry import DATASETS
from bench.store import Store
from bench.world import World

@DATASETS.register("many-orl")
class ManyORL(ORL):
    def _check(self):
        self.photos = [
            Photo(f"{copy}/{photo.key}", f"{copy}/{photo.identity}")
            for copy in range(int(sys.argv[1])) for photo in self.photos
        ]
    def read(self, photo):
        copy, _, key = photo.key.partition("/")
        file = bytearray(super().read(Photo(key, "")))
        file[-1 - int(copy)] ^= 1
        return bytes(file)

World._check_roles = lambda self: None  # Copies show the same people.
suite = parse_suite(tomllib.loads(sys.argv[2]), "here")
world = World(suite, 0, Store(Path(sys.argv[3])), "cpu", None)
world.embeddings("sface", world.split.probes)
world.pair_scores(Spec("defense", "none", ()), Leak.FEATURES)
print(len(world._used), 1e3 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_grows_by_little_more_than_the_crops(
    benchmark: BenchmarkFixture, tmp_path: Path
) -> None:
    """Aligning, embedding and the utility of maps hold 8-bit crops, and one batch of all else."""
    found = []
    for copies in (2, 12):
        wanted = {"victims = 10": f"victims = {36 * copies}", "orl": "many-orl"}
        text = SUITE
        for old, new in wanted.items():
            text = text.replace(old, new, 1)
        script = [sys.executable, "-c", MEMORY, str(copies), text, str(tmp_path / str(copies))]
        done = subprocess.run(script, capture_output=True, text=True, check=True)
        found.append([float(word) for word in done.stdout.split()])
    (few, small), (many, large) = found
    growth = (large - small) / (many - few)
    crop = 3 * 112 * 112
    told(benchmark, photos=many, bytes=large, growth=growth, crops=growth / crop)
    assert growth < 4 * crop
    assert large + (13_233 - many) * growth < 2.5e9
