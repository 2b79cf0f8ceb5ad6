"""Every LaTeX table compiles where a TeX is installed, whatever plug-ins are called."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from made_results import Maker, started
from run_folder import HOSTILE

from bench import result_file
from bench.leaks import Leak
from bench.threats import Threat
from reports.leaderboard import write_site
from reports.report import write_report

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENT = r"""\documentclass{{article}}
\usepackage{{booktabs}}
\begin{{document}}
\tiny
{inputs}
\end{{document}}
"""


def test_the_tables_of_a_report_and_of_a_site_compile(synthetic: Path, tmp_path: Path) -> None:
    compiler = next((path for x in ("pdflatex", "lualatex") if (path := shutil.which(x))), None)
    if compiler is None:
        pytest.skip("no TeX: neither pdflatex nor lualatex is on the path")
    about = {"leak": Leak.FEATURES, "defense": HOSTILE, "defense_params": "{}"}
    maker = Maker().references().utility(0.02, **about)
    maker.attack(0.5, attack="worst-case", **about, threat=Threat.ADAPTIVE)
    (tmp_path / "results").mkdir()
    result_file.write(started(maker.file(), "2026-01-01"), tmp_path / "results" / "r.json")
    write_site(tmp_path / "results", tmp_path / "site")
    tables = write_report(synthetic).with_name("tables")
    found = [*sorted(tables.glob("*.tex")), *sorted((tmp_path / "site").glob("*.tex"))]
    assert len(found) == 4
    for place, path in enumerate(found):
        shutil.copyfile(path, tmp_path / f"t{place}.tex")
    inputs = "\n\n".join(rf"\input{{t{place}}}" for place in range(len(found)))
    (tmp_path / "all.tex").write_text(DOCUMENT.format(inputs=inputs))
    command = [compiler, "-halt-on-error", "-interaction=nonstopmode", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    assert (tmp_path / "all.pdf").stat().st_size > 10_000
