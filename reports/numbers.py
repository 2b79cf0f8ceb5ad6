"""Numbers as text: no more digits than their interval supports, rates in percent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.metrics.definitions import Definition, definition

if TYPE_CHECKING:
    from bench.results import Row


NULL = ("null-mean", "null-p95")
"""Flags that say what chance alone gives."""


@dataclass(frozen=True)
class Shown:
    """A number as text.

    Attributes:
        value: The value without its unit.
        interval: Its 95 % interval as "[low, high]", or "exact"; for D_sys also what chance gives,
            its mean and its 95th percentile; empty where there is none.
        unit: "%", "dB", "ms"; empty for an index.
    """

    value: str
    interval: str
    unit: str

    def __str__(self) -> str:
        joined = " ".join(part for part in (self.value, self.unit, self.interval) if part)
        return joined.replace(" %", "\N{NO-BREAK SPACE}%")


def unit(metric: Definition) -> str:
    """Return the unit in which a metric is shown: rates in percent, indices without one."""
    rate = metric.kind == "utility" or (metric.kind == "privacy" and metric.low == 0)
    if metric.unit != "1":
        return metric.unit
    return "%" if rate and metric.high == 1 else ""


def number(row: Row) -> float:
    """Return a row's value, NaN where there is none."""
    return math.nan if row.value is None else row.value


def interval(row: Row) -> tuple[float, float]:
    """Return a row's interval, its value twice where it has none."""
    value = number(row)
    low = value if row.ci_low is None else row.ci_low
    return low, value if row.ci_high is None else row.ci_high


def show(row: Row) -> Shown:
    """Return a row's value and interval as text."""
    about = definition(row.definition)
    measure = unit(about)
    scale = 100.0 if measure == "%" else 1.0
    value = scale * number(row)
    if row.ci_low is None or row.ci_high is None:
        return Shown(_fixed(value, _plain_decimals(value, measure)), _chance(row), measure)
    low, high = scale * row.ci_low, scale * row.ci_high
    if about.kind == "cost" and low == high:
        return Shown(_fixed(value, _plain_decimals(value, measure)), "exact", measure)
    known = 0 < high - low < math.inf
    places = decimals((high - low) / 2) if known else _plain_decimals(value, measure)
    text = f"[{_fixed(low, places)}, {_fixed(high, places)}]"
    text = " ".join(part for part in (text, _chance(row)) if part)
    return Shown(_fixed(value, places), text, measure)


def null(row: Row) -> tuple[float, float] | None:
    """Return mean and 95th percentile of what chance gives; None where a row does not say."""
    told = dict(flag.partition("=")[::2] for flag in row.flags.split())
    try:
        mean, high = (float(told[name]) for name in NULL)
    except (KeyError, ValueError):
        return None
    return mean, high


def _chance(row: Row) -> str:
    chance = null(row)
    return "" if chance is None else f"chance {chance[0]:.2f}\N{EN DASH}{chance[1]:.2f}"


def decimals(half_width: float) -> int:
    """Return how many decimals a number deserves: one digit of its uncertainty, two below 3."""
    return min(4, max(0, math.ceil(-math.log10(half_width / 3))))


def _plain_decimals(value: float, measure: str) -> int:
    """Return the decimals of three significant digits; none of a count, at most two of a rate."""
    if not math.isfinite(value) or value == 0 or (measure and value.is_integer()):
        return 0
    places = 2 - math.floor(math.log10(abs(value)))
    return min(2 if measure == "%" else 4, max(0, places))


def _fixed(value: float, places: int) -> str:
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    text = f"{value:,.{places}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text
