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
from time import perf_counter
from typing import TYPE_CHECKING

import pytest
import torch
from command_line import veilbench

from bench.cell import Cells
from bench.leaks import Leak
from bench.plan import Cell, Spec, parse_suite
from bench.store import Store
from bench.threats import Threat
from bench.world import BATCH, World, draws, protect

if TYPE_CHECKING:
    from collections.abc import Callable

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


def seconds(*arguments: str, folder: Path) -> float:
    """Run the command line in a folder; return its seconds."""
    started = perf_counter()
    veilbench(*arguments, folder=folder).check_returncode()
    return perf_counter() - started


def run(folder: Path, out: str, *more: str) -> float:
    (folder / "scale.toml").write_text(SUITE)
    fixed = ["run", "scale.toml", "--quiet", "--device", "cpu", "--out", out]
    return seconds(*fixed, *more, folder=folder)


def test_a_cached_rerun_takes_a_small_share_of_the_first_run(
    benchmark: BenchmarkFixture, tmp_path: Path
) -> None:
    """The share without the start of Python and torch, which both pay, stands beside it."""
    start = median(seconds("list", "metrics", folder=tmp_path) for _ in range(3))
    first = run(tmp_path, "out", "--store", "store")
    again = run(tmp_path, "out", "--store", "store")
    benchmark.extra_info.update(first=first, again=again, share=again / first, listing=start)
    benchmark.pedantic(lambda: None)
    # The report is written anew and Python starts anew: not shown yet for runs under minutes.
    assert again <= 0.03 * first


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
def test_two_processes_against_one(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    one = run(tmp_path, "one", "--store", "store-one")
    workers = ["--executor", "process", "--workers", "2"]
    two = run(tmp_path, "two", "--store", "store-two", *workers)
    benchmark.extra_info.update(serial=one, process=two, ratio=one / two)
    benchmark.pedantic(lambda: None)
    assert one / two > 1


def test_help_starts_at_once(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    start = median(seconds("--help", folder=tmp_path) for _ in range(9))
    benchmark.extra_info["seconds"] = start
    benchmark.pedantic(lambda: None)
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

    ratio = compared(bare, lambda: protect(defense, images, draws(0)))
    benchmark.extra_info["ratio"] = ratio
    benchmark.pedantic(lambda: None)
    assert ratio > 0.5


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

    ratio = compared(bare, ours, rounds=3)
    benchmark.extra_info["ratio"] = ratio
    benchmark.pedantic(lambda: None)
    assert ratio > 0.5


def compared(bare: Callable[[], None], ours: Callable[[], object], rounds: int = 5) -> float:
    """Return how much of the bare speed is left: the median over interleaved runs."""
    ratios = []
    ours()
    for _ in range(rounds):
        started = perf_counter()
        bare()
        middle = perf_counter()
        ours()
        ratios.append((middle - started) / (perf_counter() - middle))
    return median(ratios)


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
        command = [sys.executable, "-c", MEMORY, str(copies), text, str(tmp_path / str(copies))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append([float(word) for word in done.stdout.split()])
    (few, small), (many, large) = found
    growth = (large - small) / (many - few)
    crop = 3 * 112 * 112
    benchmark.extra_info.update(photos=many, bytes=large, growth=growth, crops=growth / crop)
    benchmark.pedantic(lambda: None)
    assert growth < 4 * crop
    assert large + (13_233 - many) * growth < 2.5e9
