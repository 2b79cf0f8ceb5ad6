"""The command line in a process of its own, on one thread."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def veilbench(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, whatever comes of it."""
    return subprocess.run(
        [sys.executable, "-m", "bench.cli", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
