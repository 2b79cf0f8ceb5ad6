"""Where the time of a run goes: nested spans, each counted without the spans inside it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

MODELS = "models"
"""Kind of the spans in which a network computes: training, inference, detection."""

HARNESS = "harness"
"""Kind of all other spans: reading, writing, statistics, the report."""

Span = tuple[str, str]
"""Kind and name."""


class Profile:
    """Seconds by span, of one process and of those that work for it.

    Attributes:
        seconds: Seconds by (kind, name), each without the spans inside it.
        processes: How many work at the same time.
    """

    def __init__(self) -> None:
        self.seconds: dict[Span, float] = defaultdict(float)
        self.processes = 1
        self._inside = [0.0]

    @contextmanager
    def span(self, name: str, kind: str = HARNESS) -> Iterator[None]:
        """Count the time of a block, less that of spans inside it."""
        started = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self.seconds[kind, name] += elapsed - self._inside.pop()
            self._inside[-1] += elapsed

    def add(self, seconds: dict[Span, float]) -> None:
        """Add what another process has counted."""
        for span, value in seconds.items():
            self.seconds[span] += value

    def take(self) -> dict[Span, float]:
        """Return what has been counted since the last call."""
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken


profile = Profile()
"""The profile of this process."""


def table(spent: Profile, wall: float) -> str:
    """Return a table of spans, the largest first, with the share of models in all the time.

    Args:
        spent: What was counted.
        wall: Seconds from start to end.
    """
    total = wall * spent.processes
    rest = max(0.0, total - sum(spent.seconds.values()))
    shown = [*spent.seconds.items(), ((HARNESS, "everything else, waiting included"), rest)]
    lines = [f"{'seconds':>9} {'share':>6}  {'kind':<8} what"]
    for (kind, name), value in sorted(shown, key=lambda item: -item[1]):
        lines.append(f"{value:9.1f} {value / total:6.1%}  {kind:<8} {name}")
    models = sum(value for (kind, _), value in spent.seconds.items() if kind == MODELS)
    lines.append(f"{total:9.1f} {1:6.0%}  of which models: {models / total:.1%}")
    return "\n".join(lines)
