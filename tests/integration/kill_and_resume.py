"""Kill a run at random moments, each time starting the same run again.

Forked children do the runs, so that a start costs milliseconds. Usage: python FILE FOLDER KILLS
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import tomllib
from pathlib import Path

from bench.plan import Suite, parse_suite
from bench.registry import load_plugin
from bench.run import run_suite
from bench.store import Store


def main(folder: Path, wanted: int) -> None:
    """Write finished runs into numbered folders, and print how many kills they survived."""
    suite = parse_suite(
        tomllib.loads(load_plugin(Path(__file__).with_name("tiny.py")).SUITE), "tiny.py"
    )
    chance = random.Random(0)
    kills = runs = 0
    run(suite, folder / "first")  # What it loads, its children need not load again.
    whole = run_and_kill(suite, folder / "0", after=float("inf"))[1]
    while kills < wanted:
        killed, _ = run_and_kill(suite, folder / str(runs + 1), after=chance.uniform(0, whole / 4))
        kills += killed
        runs += not killed
    run_and_kill(suite, folder / str(runs + 1), after=float("inf"))
    print(kills, "kills,", runs + 1, "runs")


def run(suite: Suite, folder: Path) -> None:
    """Run the suite in a folder."""
    run_suite(suite, folder / "out", Store(folder / "store"), device="cpu", quiet=True)


def run_and_kill(suite: Suite, folder: Path, after: float) -> tuple[bool, float]:
    """Run in a child; return whether it was killed, and how long it took."""
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        run(suite, folder)
        os._exit(0)
    while time.monotonic() < started + after:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False, time.monotonic() - started
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True, time.monotonic() - started


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
