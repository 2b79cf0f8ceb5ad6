"""A leaderboard of 500 defenses and 30 attacks, opened in a browser."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import open_browser

from bench.leaks import Leak
from bench.results import Row
from bench.threats import Threat
from reports.leaderboard import write_pages
from reports.run import Protection, Run, RunInfo
from reports.standings import Board, Contest, Settings, Source, Standing

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SECONDS = 2.0


def board(defenses: int, attacks: int) -> Board:
    """Return a table of that size."""
    info = RunInfo.model_construct(started="2026-01-01")
    source = Source.__new__(Source)
    object.__setattr__(source, "name", "r.json")
    object.__setattr__(source, "run", Run(Path(), info, ()))

    def row(level: float) -> Row:
        fields: dict[str, Any] = {"metric": "rank-1", "definition": "rank-1", "n": 600}
        about: dict[str, Any] = {"suite": "s", "dataset": "d", "recognizer": "r", "seed": 0}
        return Row(**about, **fields, value=level, ci_low=level * 0.9, ci_high=level)

    standings = tuple(
        Standing(
            source,
            (Protection(Leak.FEATURES, f"defense-{n}", "{}", 0),),
            f"defense-{n}",
            row(n / defenses),
            row(n / defenses),
            row(0.99),
            {f"attack-{m:02d}": row((n + m) / (defenses + attacks)) for m in range(attacks)},
            ("re-implementation", "one seed"),
            rank=n + 1,
        )
        for n in range(defenses)
    )
    contest = Contest("d", "r", Leak.FEATURES, Threat.ADAPTIVE, "dlib", "a gallery of 30")
    return Board(contest, standings, (), ())


def seconds_to_open(browser: Browser, folder: Path) -> float:
    """Return the shortest of three times until the table can be used."""
    address = next(folder.glob("table-*.html")).as_uri()
    times = []
    for _ in range(3):
        page = browser.new_page()
        started = time.perf_counter()
        page.goto(address)
        page.wait_for_selector("html[data-ready]")
        times.append(time.perf_counter() - started)
        page.close()
    return min(times)


@pytest.fixture
def opened(tmp_path: Path) -> dict[tuple[int, int], float]:
    found = {}
    with open_browser() as browser:
        for size in ((1, 1), (500, 30)):
            folder = tmp_path / f"{size[0]}"
            (folder).mkdir()
            write_pages([board(*size)], [], Settings(), folder)
            found[size] = seconds_to_open(browser, folder)
    return found


def test_500_defenses_and_30_attacks_open_in_two_seconds(
    opened: dict[tuple[int, int], float],
) -> None:
    small, large = opened[1, 1], opened[500, 30]
    print(f"1 x 1: {small:.2f} s, 500 x 30: {large:.2f} s, ratio {large / small:.2f}")
    assert large < SECONDS
    assert large < 5 * small
