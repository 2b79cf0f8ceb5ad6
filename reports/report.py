"""The report of one run: a self-contained page, Markdown, tables and figures.

Everything is escaped for the language it is printed in: names of plug-ins are other people's text.
"""

from __future__ import annotations

import base64
import math
import re
import shlex
import shutil
import tempfile
import unicodedata
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from bench.errors import UserError
from bench.metrics.definitions import Definition, definitions
from bench.store import atomic_path
from reports.figures import Scatter, grid_figure, save, scatters
from reports.findings import findings, scale, summary, untested
from reports.grids import QUANTILES, RULE, Grid, grids, overviews
from reports.numbers import unit
from reports.plots import Plot, plots
from reports.run import ReportError, Run, probes, read_run, visible
from reports.tables import (
    PAPER_METRICS,
    PRIVACY_METRICS,
    Table,
    privacy_table,
    utility_table,
    worst_case_table,
    write_csv,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

RESPONSIBLE_USE = (
    "Reconstructions show real people who took part in public datasets: use them to judge "
    "defenses, not to identify anyone, and run attacks only on data that you may process."
)


def write_report(run: Path) -> Path:
    """Report on a finished run.

    Args:
        run: The run's folder, as `veilbench run --out` wrote it.

    Returns:
        The page, `report/index.html` below the folder. A report that was there is replaced as a
        whole, or left alone if anything fails.

    Raises:
        UserError: A file of the run is missing or unusable.
    """
    content = read_run(run)
    with replacing(run / "report") as folder:
        _write(content, folder)
    return run / "report" / "index.html"


def _write(run: Run, folder: Path) -> None:
    privacy, utility = privacy_table(run), utility_table(run)
    for name in ("tables", "figures"):
        (folder / name).mkdir()
    for table in (privacy, worst_case_table(run), utility):
        write_csv(table, folder / "tables" / f"{table.name}.csv")
        text = LATEX.get_template("table.tex.j2").render(table=table.only(_paper_metrics(table)))
        (folder / "tables" / f"{table.name}.tex").write_text(text, encoding="utf-8")
    context = {
        "info": run.info,
        "statement": _statement(run),
        "command": shlex.join(run.info.command),
        "summary": summary(run),
        "findings": findings(run),
        "scale": scale(run),
        "untested": untested(run),
        "attacked": run.attacked,
        "privacy": privacy.only(PRIVACY_METRICS),
        "utility": utility,
        "definitions": _definitions([privacy, utility] if run.attacked else [utility]),
        "rule": RULE,
        "quantiles": list(QUANTILES),
        "responsible_use": RESPONSIBLE_USE,
        "unit": unit,
        "infinity": math.inf,
        "href": lambda cell: _href(run, cell),
        "scatters": _scatters(run, folder / "figures"),
        "plots": _plots(run, folder / "figures"),
        "grids": _grids(run, folder / "figures"),
    }
    for name, environment in (("index.html", HTML), ("report.md", MARKDOWN)):
        text = environment.get_template(f"{name}.j2").render(context)
        (folder / name).write_text(text, encoding="utf-8")


class _Plot(NamedTuple):
    """A scatter as the templates see it: the stem of its files, and the picture."""

    name: str
    scatter: Scatter
    png: bytes


class _Picture(NamedTuple):
    """A plot as the templates see it: the stem of its files, and the picture."""

    name: str
    plot: Plot
    png: bytes


class _Faces(NamedTuple):
    """A grid as the templates see it: the stem of its files, and the grid."""

    name: str
    grid: Grid


def _scatters(run: Run, folder: Path) -> list[_Plot]:
    return [
        _Plot(name, item, save(item.figure, folder, name))
        for item in scatters(run)
        for name in [f"scatter-{item.leak}"]
    ]


def _plots(run: Run, folder: Path) -> list[_Picture]:
    found = []
    for place, plot in enumerate(plots(run)):
        # Names of plug-ins are other people's text: they are slugs in names of files.
        name = f"plot-{place:02d}-{slug(plot.name)}"
        found.append(_Picture(name, plot, save(plot.figure, folder, name)))
    return found


def _grids(run: Run, folder: Path) -> list[_Faces]:
    found = []
    for place, grid in enumerate(grids(run)):
        name = f"grid-{place:02d}-{slug(grid.title)}-{grid.detail}".rstrip("-")
        save(grid_figure(grid), folder, name)
        found.append(_Faces(name, grid))
    for grid in overviews(item.grid for item in found):
        save(grid_figure(grid), folder, f"overview-{slug(grid.title)}")
    return found


def _statement(run: Run) -> str:
    """Return what was measured, in one paragraph."""
    suite = run.info.suite
    if not run.attacked:
        return (
            f"What protecting the records of the recogniser {suite.recognizer.shown} costs, on the "
            f"dataset {suite.dataset}. Nothing was attacked: what a defense hides is not said here."
        )
    victims = probes(run.folder, min(line.seed for line in run.lines))
    judges = ", ".join(
        f"{judge} ({'the recogniser under attack' if run.is_target(judge) else 'independent'})"
        for judge in run.judges
    )
    return (
        f"The recogniser {suite.recognizer.shown} keeps a record of each of {len(victims)} photos "
        f"of {len(victims.people)} people from the dataset {suite.dataset}. The records leak; "
        f"attacks rebuild the faces from them. Judges that say whether a rebuilt face shows the "
        f"person: {judges or 'none'}, with thresholds at a false match rate of {suite.fmr:g}."
    )


def _definitions(tables: Iterable[Table]) -> list[Definition]:
    used = {column.definition.id for table in tables for column in table.columns}
    return [item for item in definitions().values() if item.id in used]


def _href(run: Run, cell: str) -> str:
    return f"../cells/{quote(cell)}/" if run.has_cell(cell) else ""


def _paper_metrics(table: Table) -> Sequence[str]:
    if table.name == "utility":
        return [column.metric for column in table.columns]
    return PAPER_METRICS


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the target's place when the block ends well."""
    made = target
    try:
        made = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        yield made
        made.chmod(0o755)
        retired = made.with_name(f"{made.name}.old")
        if target.exists():
            target.replace(retired)
        made.replace(target)
        shutil.rmtree(retired, ignore_errors=True)
    except OSError as error:
        raise ReportError(
            f"The folder {target} cannot be written ({error.strerror}): free space or permit it."
        ) from error
    finally:
        if made != target:
            shutil.rmtree(made, ignore_errors=True)


@contextmanager
def writing_into(folder: Path) -> Iterator[Callable[[str, str], None]]:
    """Make a folder; yield a function (name, text) whose files appear complete or not at all.

    Raises:
        UserError: The folder, or a file in it, cannot be written.
    """

    def write(name: str, text: str) -> None:
        with atomic_path(folder / name) as path:
            path.write_text(text, encoding="utf-8")

    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield write
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be written ({error.strerror}): give another with --out."
        ) from error


# --- templates ----------------------------------------------------------------------------------

_LATEX_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "[": "{[}",  # after a line break, a bare bracket is LaTeX's argument
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "∞": r"$\infty$",
    "·": r"$\cdot$",
    "\N{EN DASH}": "--",
}


def latex(value: object) -> str:
    """Return text that LaTeX prints verbatim; what pdfLaTeX's fonts lack becomes "?"."""
    return "".join(_LATEX_SPECIAL.get(c) or _ascii(c) for c in visible(str(value)))


def markdown(value: object) -> str:
    """Return text that Markdown, HTML in it included, prints verbatim."""
    return re.sub(r"([\\`*_\[\]<>|#~&$])", r"\\\1", visible(str(value)))


def data_uri(content: bytes, kind: str) -> str:
    """Return an image as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _ascii(character: str) -> str:
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or "?"


def slug(text: str) -> str:
    """Return text as a part of a file name: at most 40 letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40]


def _environment(escape: Callable[[object], str] | None = None, **syntax: Any) -> Environment:
    """Return templates that escape all they print: as HTML, or by the given function."""
    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=escape is None,  # noqa: S701 - else `finalize` escapes, for another language
        finalize=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **syntax,
    )
    environment.filters["data_uri"] = data_uri
    environment.filters["anchor"] = lambda metric: f"definition-{slug(metric)}"
    return environment


HTML = _environment()
MARKDOWN = _environment(markdown)
LATEX = _environment(
    latex,
    block_start_string="<%",
    block_end_string="%>",
    variable_start_string="<<",
    variable_end_string=">>",
    comment_start_string="<#",
    comment_end_string="#>",
)
