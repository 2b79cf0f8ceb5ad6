"""What the metric ids in result rows mean: name, unit, range, direction, kind and source.

The table is `definitions.toml`; reading it imports neither torch nor numpy. Reports use it to label
columns, to rank in the right direction and to refuse two definitions in one column.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from bench.errors import MetricError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True)
class Definition:
    """One metric, completely specified.

    Attributes:
        id: Key in result rows, such as "ssim:wang11-valid-rgb". Two ids are never comparable.
        name: Short name for a column.
        description: One sentence that lets a reader recompute the number.
        unit: Unit of the value, "1" for a ratio or an index.
        low: Smallest possible value (may be -inf).
        high: Largest possible value (may be inf).
        better: Direction that is better for whoever protects faces: privacy metrics are better
            when the attack does worse.
        kind: What the number speaks about.
        source: Paper, standard or code that defines it.
    """

    id: str
    name: str
    description: str
    unit: str
    low: float
    high: float
    better: Literal["higher", "lower"]
    kind: Literal["privacy", "utility", "protection", "cost"]
    source: str


@cache
def definitions() -> Mapping[str, Definition]:
    """Return every metric definition by id, in the order of `definitions.toml`."""
    text = Path(__file__).with_name("definitions.toml").read_text(encoding="utf-8")
    table = {key: Definition(id=key, **fields) for key, fields in tomllib.loads(text).items()}
    return MappingProxyType(table)


def definition(metric: str) -> Definition:
    """Return the definition with this id.

    Args:
        metric: An id such as "ssim:wang11-valid-rgb".

    Raises:
        MetricError: No definition has this id.
    """
    if metric not in definitions():
        raise unknown("metric definition", metric, definitions())
    return definitions()[metric]


def unknown(what: str, name: str, known: Iterable[str]) -> MetricError:
    """Return the error for a name outside `known`, with the nearest known name as a suggestion."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    mend = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
    return MetricError(f"Unknown {what} {name!r}: {mend}")
