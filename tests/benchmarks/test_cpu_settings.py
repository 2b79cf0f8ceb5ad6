"""What the settings of "CPU settings" in bench/README.md bring, each as a ratio in one run."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest
import torch
from timing import ratio, told
from torch import Tensor, nn

from bench.networks import MapDecoder
from bench.recognizers.base import best_cpu_precision
from bench.recognizers.sface import SFace
from bench.world import BATCH

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

native = pytest.mark.skipif(
    best_cpu_precision() != "bfloat16", reason="the processor has no native bfloat16"
)


@native
def test_bfloat16_against_float32(benchmark: BenchmarkFixture) -> None:
    images = torch.rand(BATCH, 3, 112, 112)
    half, full = SFace(precision="bfloat16"), SFace(precision="float32")
    with torch.no_grad():
        embed = ratio(lambda: half.embed(images), lambda: full.embed(images))
    network, maps = decoder()
    step = ratio(lambda: train_step(network, maps, half=True), lambda: train_step(network, maps))
    told(benchmark, embed=embed, train=step)
    assert embed < 1
    assert step < 1


def test_channels_last_against_channels_first(benchmark: BenchmarkFixture) -> None:
    half = best_cpu_precision() == "bfloat16"
    layers = SFace().head_blocks
    copied: Any = copy.deepcopy(layers)
    first = copied.to(memory_format=torch.contiguous_format)
    images = torch.rand(BATCH, 3, 112, 112)
    last = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        head = ratio(lambda: layers(last), lambda: first(images))
    told(benchmark, head=head)
    assert head < 1.1


def decoder() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    maps = torch.randn(BATCH, 64, 56, 56)
    return MapDecoder(maps.shape[1:], 24, torch.zeros(64), torch.ones(64)), maps


def train_step(network: nn.Module, maps: Tensor, *, half: bool = False) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        made = network(maps)
    made.square().mean().backward()
    network.zero_grad()


PASSES = """
import sys
from time import perf_counter
import torch
from bench.memory import keep_freed_memory
from bench.recognizers.sface import SFace
if sys.argv[1] == "keep":
    keep_freed_memory()
recognizer, images = SFace(), torch.rand(32, 3, 112, 112)
passes = recognizer.embed if sys.argv[2] == "embed" else recognizer.head
with torch.no_grad():
    passes(images)
    print("ready", flush=True)
    input()
    started = perf_counter()
    for _ in range(8):
        passes(images)
    print(perf_counter() - started)
"""


def passes(workers: int, memory: str, what: str, **environment: str) -> float:
    """Return the seconds of the slowest of some workers, which do the same at the same time."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PASSES, memory, what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
            text=True,
        )
        for _ in range(workers)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return max(float(process.communicate()[0]) for process in started)


@pytest.mark.parametrize("what", ["embed", "head"])
def test_freed_memory_that_is_kept_against_the_default(
    what: str, benchmark: BenchmarkFixture
) -> None:
    rounds = [
        passes(1, "keep", what, OMP_NUM_THREADS="1")
        / passes(1, "default", what, OMP_NUM_THREADS="1")
        for _ in range(3)
    ]
    told(benchmark, ratio=median(rounds))
    assert median(rounds) < 1


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
def test_threads_of_workers_that_share_the_cores(benchmark: BenchmarkFixture) -> None:
    """Each worker with one thread; with all cores, waiting passively; and spinning."""
    cores = len(os.sched_getaffinity(0))
    one = passes(cores, "keep", "embed", OMP_NUM_THREADS="1")
    passive, active = (
        passes(cores, "keep", "embed", OMP_NUM_THREADS=str(cores), OMP_WAIT_POLICY=policy)
        for policy in ("passive", "active")
    )
    told(benchmark, passive=passive / one, active=active / one)
    assert active > one
