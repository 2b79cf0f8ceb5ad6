"""pytest plug-in: a product's own tests hold a privacy guarantee.

    @pytest.mark.privacy_guarantee("gate.toml", "veilbench-runs/product")
    def test_templates_stay_private(): ...

or, where the run is made by the test itself, the fixture of the same name:

    def test_templates_stay_private(privacy_guarantee, run_folder):
        privacy_guarantee("gate.toml", run_folder)

Either fails if a guarantee is broken, and if one is inconclusive. Nothing of veilbench is imported
before a test asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

if TYPE_CHECKING:
    from reports.gate import Verdict

Hold: TypeAlias = "Callable[[str | Path, str | Path], Verdict]"


def pytest_configure(config: pytest.Config) -> None:
    """Announce the marker."""
    config.addinivalue_line(
        "markers",
        "privacy_guarantee(gate, run): fail unless the run proves every guarantee of the gate; "
        "both are paths, relative ones from the root directory of pytest.",
    )


@pytest.fixture
def privacy_guarantee(pytestconfig: pytest.Config) -> Hold:
    """Return a function of (gate, run) that fails the test unless every guarantee holds."""
    return lambda gate, run: _hold(pytestconfig.rootpath, gate, run)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Hold the guarantees that a test is marked with before its body runs."""
    for marker in item.iter_markers("privacy_guarantee"):
        _hold(item.config.rootpath, *marker.args, **marker.kwargs)


def _hold(root: Path, gate: str | Path, run: str | Path) -> Verdict:
    from bench.errors import UserError
    from reports.gate import Answer, check
    from reports.gate_report import plain

    try:
        verdict = check(root / gate, root / run)
    except UserError as error:
        pytest.fail(str(error), pytrace=False)
    if verdict.answer is not Answer.HOLDS:
        pytest.fail(plain(verdict), pytrace=False)
    return verdict
