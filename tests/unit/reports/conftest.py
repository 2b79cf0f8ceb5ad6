from __future__ import annotations

from pathlib import Path

import pytest
from run_folder import build


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic run that tests read and do not change."""
    return build(tmp_path_factory.mktemp("synthetic"))
