"""Where the time went: spans are counted once, and the share of models is of all the time."""

from __future__ import annotations

import pytest

from bench.profile import HARNESS, MODELS, Profile, table


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("bench.profile.time.perf_counter", lambda: now[0])
    return now


def test_a_span_is_counted_without_those_inside_it(clock: list[float]) -> None:
    profile = Profile()
    for _ in range(2):
        with profile.span("cell"):
            clock[0] += 1
            with profile.span("train", MODELS):
                clock[0] += 10
                with profile.span("read"):
                    clock[0] += 100
            clock[0] += 2
    assert profile.seconds == {
        (HARNESS, "cell"): 6.0,
        (MODELS, "train"): 20.0,
        (HARNESS, "read"): 200.0,
    }


def test_a_span_that_ends_in_an_error_is_counted(clock: list[float]) -> None:
    profile = Profile()
    with pytest.raises(KeyError), profile.span("outer"), profile.span("inner"):  # noqa: PT012
        clock[0] += 3
        raise KeyError
    assert profile.take() == {(HARNESS, "outer"): 0.0, (HARNESS, "inner"): 3.0}
    assert profile.take() == {}


def test_the_table_gives_the_share_of_models_in_the_time_of_all_processes() -> None:
    profile = Profile()
    profile.processes = 2
    profile.add({(MODELS, "train"): 90.0, (HARNESS, "rows"): 10.0})
    profile.add({(MODELS, "train"): 60.0})
    lines = [line.split() for line in table(profile, wall=100.0).splitlines()]
    assert lines[1] == ["150.0", "75.0%", "models", "train"]
    assert lines[2][:3] == ["40.0", "20.0%", "harness"]
    assert lines[3] == ["10.0", "5.0%", "harness", "rows"]
    assert lines[-1] == ["200.0", "100%", "of", "which", "models:", "75.0%"]
