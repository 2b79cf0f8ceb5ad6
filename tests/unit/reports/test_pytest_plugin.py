"""The plug-in, as a product's own test suite uses it."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

import pytest
from made_results import small

from bench import result_file

pytest_plugins = ["pytester"]

GATE = """
[[guarantee]]
name = "identities"
defense = "advface"
leak = "features"
threat = "{threat}"
metric = "rank-1"
judge = "dlib"
direction = "below"
limit = 0.3
"""
TESTS = """
import pytest

def test_fixture_holds(privacy_guarantee):
    assert privacy_guarantee("transfer.toml", "run.json").exit_code == 0

def test_fixture_fails(privacy_guarantee):
    privacy_guarantee("adaptive.toml", "run.json")

@pytest.mark.privacy_guarantee("transfer.toml", run="run.json")
def test_marker_holds():
    pass

@pytest.mark.privacy_guarantee("adaptive.toml", run="run.json")
def test_marker_fails():
    pass

@pytest.mark.privacy_guarantee("gone.toml", run="run.json")
def test_marker_names_no_gate():
    pass
"""


def test_the_entry_point_names_the_plugin() -> None:
    project = tomllib.loads(Path(__file__).parents[3].joinpath("pyproject.toml").read_text())
    (target,) = project["project"]["entry-points"]["pytest11"].values()
    assert importlib.util.find_spec(target) is not None
    assert target == "reports.pytest_plugin"


def test_marker_and_fixture_hold_the_gate(pytester: pytest.Pytester) -> None:
    for threat in ("transfer", "adaptive"):
        pytester.path.joinpath(f"{threat}.toml").write_text(GATE.format(threat=threat))
    pytester.makepyfile(TESTS)
    pytester.makeini("[pytest]\naddopts = --strict-markers")
    result_file.write(small().file(), pytester.path / "run.json")
    # Blocked under the name of its entry point, so that it loads once, installed or not.
    done = pytester.runpytest_inprocess("-p", "no:veilbench", "-p", "reports.pytest_plugin")
    done.assert_outcomes(passed=2, failed=3)
    done.stdout.fnmatch_lines(
        ["broken * identities: 0.9, guaranteed below 0.3 *", "*gone.toml cannot be read*"]
    )
