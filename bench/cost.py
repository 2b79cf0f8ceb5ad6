"""What a defense costs, from what was recorded while it protected photos."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.metrics import Estimate
from bench.metrics.intervals import without_interval
from bench.recognizers.base import CROP
from bench.results import Score


def costs(facts: dict[str, Any]) -> list[Score]:
    """Return time, bytes and numbers per record.

    Bytes and numbers are exact, since all records of a defense have one shape: both ends of their
    interval are the value. Time is one measurement of all records together, so that n is their
    number, and a spread is not known.

    Args:
        facts: "count" and "shape" of the records, "protect_seconds", "bytes_per_record".
    """
    count = int(facts["count"])
    time = without_interval(1e3 * facts["protect_seconds"] / count, count)
    size = float(facts["bytes_per_record"])
    factor = float(np.prod(facts["shape"]) / np.prod(CROP))
    return [
        Score("ms-per-record", "ms-per-record", time),
        Score("bytes-per-record", "bytes-per-record", _exact(size, count)),
        Score("storage-factor", "storage-factor", _exact(factor, count)),
    ]


def _exact(value: float, n: int) -> Estimate:
    return Estimate(value, value, value, n, n, "exact")
