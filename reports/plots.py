"""Figures of everything between the tables and the faces: what holds over thresholds and settings.

Curves and distributions come from the raw values in the cells of a run; a cell without them, as
older runs have, gives no figure.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import ndtri

from bench.metrics import roc
from bench.metrics.definitions import definition
from bench.metrics.verification import Roc
from reports.figures import COLOURS, plain
from reports.numbers import interval, null, number, show
from reports.run import parameters_phrase, read_column, read_curves, varying

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.axes import Axes

    from bench.curves import Curve
    from bench.leaks import Leak
    from bench.threats import Threat
    from reports.run import Line, Protection, Run

FRESH, STORED = "stored-vs-fresh", "stored-vs-stored"
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "0.2", "0.6")
STYLES = ("-", "--", "-.", ":")
CURVES = 12
"""Curves in one figure: more cannot be told apart; those of the weakest defenses are kept."""


@dataclass(frozen=True)
class Plot:
    """A figure of the report.

    Attributes:
        name: Stem of its files.
        title: Heading.
        figure: The figure.
        description: What it shows, in words.
    """

    name: str
    title: str
    figure: Figure
    description: str


def plots(run: Run) -> list[Plot]:
    """Return every figure that the run has values for."""
    leaks = list(dict.fromkeys(item.leak for item in run.protections))
    kinds = (_heat_map, _det, _cmc, _distributions, _learning)
    found = [make(run, leak) for make in kinds for leak in leaks]
    every = (*found, *_sweeps(run), _linkability(run))
    return [plot for plot in every if plot is not None]


# --- attack x defense ----------------------------------------------------------------------------


def _heat_map(run: Run, leak: Leak) -> Plot | None:
    columns = [item for item in run.protections if item.leak is leak]
    lines = {
        (f"{run.attack_name(line)}, {line.threat}", item): line
        for item in columns
        for line in run.attacks(item)
    }
    rows = list(dict.fromkeys(name for name, _ in lines))
    if not rows:
        return None
    values = np.full((len(rows), len(columns)), np.nan)
    bounds = np.full((len(rows), len(columns), 2), np.nan)
    for (name, item), line in lines.items():
        row = line.row("rank-1", run.judge)
        if row is not None:
            place = rows.index(name), columns.index(item)
            values[place], bounds[place] = 100 * number(row), 100 * np.array(interval(row))
    size = (2.6 + 0.75 * len(columns), 1.5 + 0.42 * len(rows))
    figure = Figure(figsize=size)
    axes = figure.subplots()
    axes.imshow(values, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        colour = "white" if value < 60 else "black"
        if np.isnan(value):
            axes.text(x, y, "–", ha="center", va="center", color=colour)
            continue
        low, high = bounds[y, x]
        axes.text(x, y + 0.1, f"{value:.0f}", ha="center", va="bottom", color=colour)
        span = f"[{low:.0f}, {high:.0f}]"
        axes.text(x, y + 0.14, span, ha="center", va="top", fontsize=6, color=colour)
    names = [plain(run.defense_name(item)) for item in columns]
    axes.set_xticks(range(len(columns)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), [plain(name) for name in rows])
    axes.set_title(f"Leak: {leak}. Identified (rank-1 by {plain(run.judge or '')}, %)", fontsize=10)
    told = (
        f"{name} on {run.defense_name(item)}: {values[rows.index(name), columns.index(item)]:.0f} %"
        for name, item in lines
    )
    return Plot(f"heat-map-{leak}", f"Attacks on {leak}", figure, "; ".join(told))


# --- recognition ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pairs:
    """Scores of verification pairs with one defense."""

    name: str
    genuine: NDArray[np.float64]
    impostor: NDArray[np.float64]


def _pairs(run: Run, item: Protection) -> _Pairs | None:
    """Return the scores of a defense, against fresh probes where it allows them."""
    line = run.utility(item)
    if line is None or not run.has_cell(line.cell):
        return None
    path = run.folder / "cells" / line.cell / "values.csv"
    fresh = line.row(f"accuracy.{FRESH}") is not None
    scores = np.array(read_column(path, FRESH if fresh else STORED), dtype=np.float64)
    same = np.array(read_column(path, "same")) == "1"
    name = run.defense_name(item) if fresh else f"{run.defense_name(item)} (stored against stored)"
    return _Pairs(name, scores[same], scores[~same])


def _det(run: Run, leak: Leak) -> Plot | None:
    """Return ROC and DET curves of every defense of a leak, side by side."""
    found = [_pairs(run, item) for item in run.protections if item.leak is leak]
    known = [pairs for pairs in found if pairs is not None][:CURVES]
    if not known:
        return None
    figure = Figure(figsize=(8.4, 3.9))
    left, right = figure.subplots(1, 2)
    lowest = 1 / max(len(pairs.impostor) for pairs in known)
    for place, pairs in enumerate(known):
        far, tar = _corners(roc(pairs.genuine, pairs.impostor))
        kept = far >= lowest
        style = {"label": plain(pairs.name), **_style(place)}
        left.step(far[kept], tar[kept], where="post", **style)
        inside = kept & (far < 1) & (tar < 1) & (tar > 0)
        right.plot(ndtri(far[inside]), ndtri(1 - tar[inside]), **style)
    left.set_xscale("log")
    left.set_xlabel("False accept rate")
    left.set_ylabel("True accept rate")
    left.set_title("ROC")
    ticks = np.array([0.001, 0.01, 0.05, 0.2, 0.5])
    ticks = ticks[ticks >= lowest]
    right.set_xticks(ndtri(ticks), [f"{100 * tick:g} %" for tick in ticks])
    right.set_yticks(ndtri(ticks), [f"{100 * tick:g} %" for tick in ticks])
    right.set_xlabel("False accept rate")
    right.set_ylabel("False reject rate")
    right.set_title("DET")
    _finish(figure, (left, right))
    text = f"Verification with {', '.join(pairs.name for pairs in known)}; the table has the rates"
    return Plot(f"roc-det-{leak}", f"Recognition with a defense of {leak}", figure, text)


def _corners(curve: Roc) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (FAR, TAR) where the curve turns; the points between lie on straight lines."""
    up, right = np.diff(curve.tar) > 0, np.diff(curve.far) > 0
    turns = (up[1:] != up[:-1]) | (right[1:] != right[:-1])
    kept = np.concatenate(([True], turns, [True]))
    return curve.far[kept], curve.tar[kept]


# --- identification and scores --------------------------------------------------------------------


def _cmc(run: Run, leak: Leak) -> Plot | None:
    """Return in how many tries the worst case finds the person, per defense and threat."""
    curves: list[tuple[str, Threat, NDArray[np.float64]]] = []
    for item in run.protections:
        for threat in run.threats(item) if item.leak is leak else []:
            worst = run.worst(item, threat)
            ranks = None if worst is None else _column(run, worst, f"{run.judge}/rank")
            if ranks is not None and len(ranks):
                curves.append((run.defense_name(item), threat, ranks))
    if not curves:
        return None
    figure = Figure(figsize=(5.8, 4.4))
    axes = figure.subplots()
    last = max(5, *(int(ranks.max()) for *_, ranks in curves))
    names = list(dict.fromkeys(name for name, *_ in curves))
    for place, (name, threat, ranks) in enumerate(curves[:CURVES]):
        tries = np.arange(1, last + 1)
        share = [100 * float(np.mean(ranks <= k)) for k in tries]
        style = STYLES[names.index(name) % len(STYLES)]
        label = plain(f"{name}, {threat}")
        # Curves that lie on each other stay visible: the later, the thinner.
        width = max(1.0, 3 - 0.6 * place)
        axes.step(
            tries,
            share,
            where="post",
            color=COLOURS[threat],
            linestyle=style,
            linewidth=width,
            label=label,
        )
    axes.set_ylim(0, 102)
    axes.set_xlabel("Tries")
    axes.set_ylabel(f"Person found (by {plain(run.judge or '')}, %)")
    axes.set_title(f"Leak: {leak}, worst case per probe")
    _finish(figure, (axes,))
    told = (
        f"{name} under {threat}: {100 * float(np.mean(ranks <= 1)):.0f} % at the first try, "
        f"{100 * float(np.mean(ranks <= 5)):.0f} % within five"
        for name, threat, ranks in curves
    )
    return Plot(f"cmc-{leak}", f"Tries until {leak} give the person away", figure, "; ".join(told))


def _distributions(run: Run, leak: Leak) -> Plot | None:
    """Return genuine, impostor and attack scores of the recogniser under attack, with threshold."""
    target = run.info.suite.recognizer.shown
    bare = next((x for x in run.protections if x.leak is leak and x.undefended), None)
    pairs = None if bare is None else _pairs(run, bare)
    items = [(x, threat) for x in run.protections if x.leak is leak for threat in run.threats(x)]
    found = [(item, threat, _best_scores(run, item, threat, target)) for item, threat in items]
    attacks = [(item, threat, x) for item, threat, x in found if x is not None][:6]
    if pairs is None or not attacks:
        return None
    figure = Figure(figsize=(6.2, 1.2 + 1.1 * len(attacks)))
    grid = figure.subplots(len(attacks), 1, sharex=True, squeeze=False)[:, 0]
    scores = [pairs.genuine, pairs.impostor, *(x for *_, x in attacks)]
    bins = np.linspace(min(x.min() for x in scores), max(x.max() for x in scores), 60)
    threshold = run.info.thresholds.get(target)
    for axes, (item, threat, values) in zip(grid, attacks, strict=True):
        # One polygon each: a bar for every bin would take most of the report's time.
        filled = {"density": True, "histtype": "stepfilled", "alpha": 0.6}
        axes.hist(pairs.genuine, bins, color="0.3", label="genuine", **filled)
        axes.hist(pairs.impostor, bins, color="0.7", label="impostor", **filled)
        outline = {"density": True, "histtype": "step", "linewidth": 1.6}
        axes.hist(values, bins, color=COLOURS[threat], label="reconstructions", **outline)
        if threshold is not None:
            axes.axvline(threshold.threshold, color="black", linestyle=":", label="threshold")
        axes.set_yticks([])
        axes.set_title(plain(f"{run.defense_name(item)}, {threat}"), fontsize=8, loc="left")
    grid[-1].set_xlabel(f"Similarity by {plain(target)}")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    told = (
        f"{run.defense_name(item)} under {threat}: median {np.median(values):.2f}"
        for item, threat, values in attacks
    )
    text = (
        f"Similarity of the best reconstruction to the leaked photo. Genuine pairs: median "
        f"{np.median(pairs.genuine):.2f}; impostors: {np.median(pairs.impostor):.2f}; "
    )
    return Plot(f"scores-{leak}", f"Scores that {leak} give", figure, text + "; ".join(told))


def _best_scores(
    run: Run, item: Protection, threat: Threat, judge: str
) -> NDArray[np.float64] | None:
    worst = run.worst(item, threat)
    return None if worst is None else _column(run, worst, f"{judge}/similarity")


def _column(run: Run, line: Line, name: str) -> NDArray[np.float64] | None:
    """Return the known raw values of a line's cell; None where the cell has none of that name."""
    if not run.has_cell(line.cell):
        return None
    path = run.folder / "cells" / line.cell / "values.csv"
    with path.open(encoding="utf-8") as stream:
        if name not in stream.readline().rstrip("\n").split(","):
            return None
    values = np.array(read_column(path, name), dtype=np.float64)
    return values[~np.isnan(values)]


# --- training ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lesson:
    """How one network of an attack learned, and against which defenses it was then used."""

    attack: str
    curve: Curve
    defenses: tuple[str, ...]

    @property
    def remark(self) -> str:
        """Whether more budget helps, as far as people held out can tell."""
        told = {True: "more budget helps", False: "budget was enough", None: "nobody held out"}
        return told[self.curve.more_budget_helps]

    @property
    def phrase(self) -> str:
        """What the panel shows, in words."""
        training, held_out = self.curve.training, self.curve.held_out
        ends = f"training loss {training[0]:.3g} to {training[-1]:.3g}"
        if held_out:
            kept = f"{min(held_out):.3g} at step {self.curve.best}"
            ends += f", on people held out {held_out[0]:.3g} to {kept}"
        return f"{self.attack} on {', '.join(self.defenses)}: {ends}, {self.remark}"


def _learning(run: Run, leak: Leak) -> Plot | None:
    """Return a panel per trained network: its loss on its images and on people held out."""
    lessons = _lessons(run, leak)[:CURVES]
    if not lessons:
        return None
    columns = min(3, len(lessons))
    rows = -(-len(lessons) // columns)
    size = (max(4.4, 2.9 * columns), 0.8 + 2.2 * rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, lesson in zip(panels, lessons, strict=False):
        curve = lesson.curve
        axes.plot(curve.steps, curve.training, marker=".", label="training", **_style(0))
        if curve.held_out:
            axes.plot(curve.steps, curve.held_out, marker=".", label="people held out", **_style(1))
        axes.axvline(curve.best, color="black", linestyle=":", label="weights kept")
        names = (lesson.attack, f"on {', '.join(lesson.defenses)}", lesson.remark)
        axes.set_title("\n".join(plain(name) for name in names), fontsize=8)
        axes.set_xlabel("Steps", fontsize=8)
        axes.set_ylabel("Loss", fontsize=8)
        axes.tick_params(labelsize=7)
    for axes in panels[len(lessons) :]:
        axes.set_axis_off()
    _finish(figure, list(panels[: len(lessons)]))
    told = "; ".join(lesson.phrase for lesson in lessons)
    return Plot(f"learning-{leak}", f"How attacks on {leak} learned", figure, told)


def _lessons(run: Run, leak: Leak) -> list[_Lesson]:
    """Return every trained network once: under transfer, one training serves all defenses."""
    found: dict[tuple[str, str], tuple[Curve, list[str]]] = {}
    for item in run.protections:
        for line in run.attacks(item) if item.leak is leak else []:
            for curve in read_curves(run, line):
                if curve.steps:
                    name = f"{run.attack_name(line)}, {line.threat}"
                    key = name, curve.model_dump_json()
                    found.setdefault(key, (curve, []))[1].append(run.defense_name(item))
    return [_Lesson(name, curve, tuple(names)) for (name, _), (curve, names) in found.items()]


# --- settings -------------------------------------------------------------------------------------


def _sweeps(run: Run) -> list[Plot]:
    """Return a curve for every parameter that a run varied alone: eps, steps, images."""
    found = []
    for what, groups in (("defense", _defense_settings(run)), ("attack", _attack_settings(run))):
        for (name, parameter), curves in groups.items():
            curves = {label: points for label, points in curves.items() if len(points) > 1}
            if curves:
                found.append(_sweep(run, what, name, parameter, curves))
    return found


_Curves = dict[str, dict[float, "Line"]]
_Settings = dict[tuple[str, str], _Curves]


def _defense_settings(run: Run) -> _Settings:
    """Return worst cases by (defense, parameter), curve and value of the parameter."""
    found: _Settings = defaultdict(lambda: defaultdict(dict))
    shown = varying((item.defense, item.parameters) for item in run.protections)
    for item in run.protections:
        for name, value, rest in _varied(item.parameters, shown[item.defense]):
            for threat in run.threats(item):
                worst = run.worst(item, threat)
                if worst is not None:
                    label = f"{item.leak}, {threat}{rest}, seed {item.seed}"
                    found[item.defense, name][label][value] = worst
    return found


def _attack_settings(run: Run) -> _Settings:
    """Return attacks by (attack, parameter), curve and value of the parameter."""
    found: _Settings = defaultdict(lambda: defaultdict(dict))
    lines = [(item, line) for item in run.protections for line in run.attacks(item)]
    shown = varying((line.attack or "", line.attack_parameters) for _, line in lines)
    for item, line in lines:
        for name, value, rest in _varied(line.attack_parameters, shown[line.attack or ""]):
            label = f"{run.title(item)}, {line.threat}{rest}"
            found[line.attack or "", name][label][value] = line
    return found


def _varied(text: str, shown: Sequence[str]) -> Iterable[tuple[str, float, str]]:
    """Return every numeric parameter that varies, its value, and the phrase of the others."""
    parameters = json.loads(text)
    for name in shown:
        value = parameters.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            rest = parameters_phrase(text, [other for other in shown if other != name])
            yield name, float(value), f" ({rest})" if rest else ""


def _sweep(run: Run, what: str, name: str, parameter: str, curves: _Curves) -> Plot:
    figure = Figure(figsize=(8.4, 3.6))
    panels = figure.subplots(1, 2)
    told = []
    for axes, metric, judge, title in (
        (panels[0], "rank-1", run.judge, f"Identified (rank-1 by {plain(run.judge or '')})"),
        (panels[1], "ssim", None, "SSIM"),
    ):
        for place, (label, points) in enumerate(list(curves.items())[:CURVES]):
            rows = [(x, line.row(metric, judge)) for x, line in sorted(points.items())]
            known = [(x, row) for x, row in rows if row is not None]
            if not known:
                continue
            middle = [number(row) for _, row in known]
            bounds = [interval(row) for _, row in known]
            errors = [
                [m - low for m, (low, _) in zip(middle, bounds, strict=True)],
                [high - m for m, (_, high) in zip(middle, bounds, strict=True)],
            ]
            style = {"label": plain(_shorter(label, curves)), **_style(place)}
            axes.errorbar([x for x, _ in known], middle, errors, marker="o", capsize=2, **style)
            told += [f"{label}, {parameter} {x:g}: {title} {number(row):.2f}" for x, row in known]
        axes.set_xlabel(plain(parameter))
        axes.set_ylabel(title)
    _finish(figure, panels)
    title = f"{parameter.capitalize()} of the {what} {name}"
    return Plot(f"sweep-{what}-{name}-{parameter}", title, figure, "; ".join(told))


def _shorter(label: str, curves: Mapping[str, object]) -> str:
    """Return a label without its parameters where it stays unlike the others."""
    short = label.partition(" (")[0]
    return short if sum(x.startswith(short) for x in curves) == 1 else label


# --- template protection -------------------------------------------------------------------------


def _linkability(run: Run) -> Plot | None:
    """Return D_sys of every renewable defense, beside what chance gives."""
    found = []
    for item in run.protections:
        line = run.utility(item)
        row = None if line is None else line.row("d-sys")
        if row is not None:
            found.append((run.defense_name(item), row))
    if not found:
        return None
    figure = Figure(figsize=(5.8, 1.4 + 0.34 * len(found)))
    axes = figure.subplots()
    places = range(len(found))
    values = np.array([number(row) for _, row in found])
    ends = np.abs(np.array([interval(row) for _, row in found]).T - values)
    axes.barh(places, values, color=LINES[0], height=0.6, label="D_sys")
    axes.errorbar(values, places, xerr=ends, fmt="none", color=LINES[1], label="95 % interval")
    chances = [null(row) or (np.nan, np.nan) for _, row in found]
    for place, chance in enumerate(chances):
        label = "chance: mean to 95th percentile" if place == 0 else None
        axes.plot(chance, [place, place], color="black", linewidth=2.5, label=label)
    axes.set_yticks(places, [plain(name) for name, _ in found])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.set_xlabel(f"{definition('d-sys').name}: 0 is unlinkable, 1 is linked for certain")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    told = (f"{name}: {show(row)}" for name, row in found)
    return Plot("unlinkability", "Can two databases be joined?", figure, "; ".join(told))


def _style(place: int) -> dict[str, str]:
    return {
        "color": LINES[place % len(LINES)],
        "linestyle": STYLES[place // len(LINES) % len(STYLES)],
    }


def _finish(figure: Figure, panels: Sequence[Axes]) -> None:
    for axes in panels:
        axes.grid(alpha=0.25, linewidth=0.5)
    legends = [axes.get_legend_handles_labels() for axes in panels]
    shown = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=2, fontsize=8)
