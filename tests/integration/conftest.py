"""Data and runs that integration tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def lfw_root() -> Path:
    """Return the folder with lfw.tar and pairs.txt, or skip."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    root = Path(os.environ.get("VEILBENCH_LFW", beside))
    if not (root / "lfw.tar").is_file() or not (root / "pairs.txt").is_file():
        pytest.skip(
            "LFW is not here: put lfw.tar and pairs.txt into a folder, name it VEILBENCH_LFW"
        )
    return root
