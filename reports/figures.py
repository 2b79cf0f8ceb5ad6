"""Figures for the page and for papers, without any global state of matplotlib."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from bench.threats import Threat
from reports.grids import QUANTILES, Grid
from reports.numbers import interval, number, show
from reports.run import CEILING, FLOORS, Run, visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from matplotlib.axes import Axes

    from bench.leaks import Leak
    from bench.results import Row

COLOURS: Mapping[Threat, str] = MappingProxyType(
    {
        Threat.TRANSFER: "#0072B2",
        Threat.ADAPTIVE: "#D55E00",
        Threat.INSIDER: "#CC79A7",
        Threat.QUERY: "#009E73",
        Threat.SCORE: "#E69F00",
    }
)
"""Okabe and Ito's palette, told apart in every common colour blindness."""

MARKERS = "osD^vPX<>h8p*d"
NAME_LENGTH = 40
DOTS_PER_INCH = 130
MARGIN = 0.1
"""Inches around a figure."""


@dataclass(frozen=True)
class Scatter:
    """A privacy-utility scatter of one leak.

    Attributes:
        leak: The leak.
        figure: The figure.
        description: What it shows, in words: every point.
    """

    leak: Leak
    figure: Figure
    description: str


@dataclass(frozen=True)
class _Point:
    """One defense under one threat."""

    name: str
    threat: Threat
    marker: str
    utility: Row
    fresh: bool
    risk: Row


def scatters(run: Run) -> list[Scatter]:
    """Return a scatter per leak: what is recognised against what an attack identifies."""
    leaks = dict.fromkeys(item.leak for item in run.protections)
    points = {leak: list(_points(run, leak)) for leak in leaks}
    # One scale for all, so that a tenth of a percent does not fill a page.
    lowest = min((_percent(x.utility)[1] for found in points.values() for x in found), default=90)
    return [
        Scatter(leak, _scatter(run, leak, found, min(90.0, lowest) - 1), _description(found))
        for leak, found in points.items()
        if found
    ]


def grid_figure(grid: Grid) -> Figure:
    """Return a grid as a figure: originals on top, a row per attack."""
    rows = [strip.row() for strip in grid.strips]
    height, width = rows[0].shape[:2]
    figure = Figure(figsize=(6.4, 0.55 + 1.0 * len(rows)))
    axes = figure.subplots()
    axes.imshow(np.concatenate(rows), interpolation="none")
    axes.set_yticks(
        [height * (place + 0.5) for place in range(len(rows))],
        [plain(strip.name) for strip in grid.strips],
    )
    columns = len(QUANTILES)
    axes.set_xticks([width / columns * (place + 0.5) for place in range(columns)], list(QUANTILES))
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(plain(f"{grid.title}, {grid.detail}" if grid.detail else grid.title))
    return figure


def save(figure: Figure, folder: Path, name: str) -> bytes:
    """Write a figure as PNG and PDF; return the PNG.

    Nothing of the time or machine is written into the files.
    """
    stream = io.BytesIO()
    figure.set_dpi(DOTS_PER_INCH)
    with warnings.catch_warnings():
        # A name in a script that the font lacks shows as boxes; that is no reason to complain.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        box = _settled(figure)
        figure.savefig(
            stream,
            format="png",
            dpi=DOTS_PER_INCH,
            bbox_inches=box,
            metadata={"Software": None},
            pil_kwargs={"compress_level": 3},  # half the time of 6, a tenth more bytes
        )
        figure.savefig(folder / f"{name}.pdf", bbox_inches=box, metadata={"CreationDate": None})
    (folder / f"{name}.png").write_bytes(stream.getvalue())
    return stream.getvalue()


def _settled(figure: Figure) -> Bbox:
    """Lay a figure out, once for both formats; return what is drawn on, in inches, with a margin.

    Were that left to `savefig`, each format would draw everything twice.
    """
    ConstrainedLayoutEngine().execute(figure)
    return figure.get_tightbbox().padded(MARGIN)


def plain(text: str) -> str:
    """Return a name as matplotlib shows it verbatim: no formulas, no invisible characters."""
    shown = visible(text)
    if len(shown) > NAME_LENGTH:
        shown = shown[: NAME_LENGTH - 1] + "…"
    return shown.replace("$", r"\$")


def _points(run: Run, leak: Leak) -> Iterable[_Point]:
    for place, protection in enumerate(x for x in run.protections if x.leak is leak):
        line = run.utility(protection)
        fresh = line.row("accuracy.stored-vs-fresh") if line else None
        utility = fresh or (line.row("accuracy.stored-vs-stored") if line else None)
        for threat in run.threats(protection):
            worst = run.worst(protection, threat)
            risk = worst.row("rank-1", run.judge) if worst else None
            if utility is not None and risk is not None:
                marker = MARKERS[place % len(MARKERS)]
                name = run.defense_name(protection)
                yield _Point(name, threat, marker, utility, fresh is not None, risk)


def _scatter(run: Run, leak: Leak, points: list[_Point], lowest: float) -> Figure:
    figure = Figure(figsize=(5.6, 4.8))
    axes = figure.subplots()
    for point in points:
        _draw(axes, point)
    for threat in dict.fromkeys(point.threat for point in points):
        _draw_front(axes, [point for point in points if point.threat is threat])
    _reference_lines(axes, run)
    axes.set_ylim(-4, 104)
    axes.set_xlim(lowest, 101)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.set_title(f"Leak: {leak}")
    axes.set_xlabel("Recognition accuracy (%)")
    axes.set_ylabel(f"Identified in the worst case (rank-1 by {plain(run.judge or '')}, %)")
    figure.legend(handles=_legend(points), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _draw(axes: Axes, point: _Point) -> None:
    x, y = _percent(point.utility), _percent(point.risk)
    axes.errorbar(
        [x[0]],
        [y[0]],
        xerr=[[x[0] - x[1]], [x[2] - x[0]]],
        yerr=[[y[0] - y[1]], [y[2] - y[0]]],
        color=COLOURS[point.threat],
        marker=point.marker,
        # Weaker threats are drawn larger and first, so that points that coincide show as rings.
        markersize=11 - 2 * list(Threat).index(point.threat),
        markerfacecolor=COLOURS[point.threat] if point.fresh else "white",
        elinewidth=0.8,
        capsize=2,
        alpha=0.9,
    )


def _draw_front(axes: Axes, points: list[_Point]) -> None:
    """Draw the Pareto front of one threat: where privacy costs recognition, and back."""
    placed = sorted({(_percent(x.utility)[0], _percent(x.risk)[0]) for x in points}, reverse=True)
    front: list[tuple[float, float]] = []
    for accuracy, risk in placed:
        if not front or risk < front[-1][1]:
            front.append((accuracy, risk))
    color = COLOURS[points[0].threat]
    axes.step(*zip(*front, strict=True), where="pre", color=color, linewidth=0.9, alpha=0.6)


def _percent(row: Row) -> tuple[float, float, float]:
    """Return value, low and high in percent."""
    low, high = interval(row)
    return 100 * number(row), 100 * low, 100 * high


def _reference_lines(axes: Axes, run: Run) -> None:
    for line in run.references:
        row = line.row("rank-1", run.judge)
        if row is not None and line.attack in {*FLOORS, CEILING}:
            axes.axhline(100 * number(row), color="0.45", linestyle=":", linewidth=1)
            axes.text(
                1.01,
                100 * number(row),
                plain(run.attack_name(line)),
                transform=axes.get_yaxis_transform(),
                fontsize=7,
                color="0.3",
                va="center",
            )


def _legend(points: Iterable[_Point]) -> list[Line2D]:
    defenses = dict.fromkeys((point.name, point.marker, point.fresh) for point in points)
    shapes = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=marker,
            color="0.3",
            markerfacecolor="0.3" if fresh else "white",
            label=plain(name if fresh else f"{name} (stored against stored)"),
        )
        for name, marker, fresh in defenses
    ]
    threats = dict.fromkeys(point.threat for point in points)
    colours = [
        Line2D([], [], linewidth=4, color=COLOURS[threat], label=str(threat)) for threat in threats
    ]
    return [*colours, *shapes]


def _description(points: Iterable[_Point]) -> str:
    return "; ".join(
        f"{point.name} under {point.threat}: accuracy {show(point.utility)}, "
        f"identified {show(point.risk)}"
        for point in points
    )
