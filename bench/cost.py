"""What a defense costs, from what was recorded while it protected photos."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.metrics.intervals import without_interval
from bench.recognizers.base import CROP
from bench.results import Score


def costs(facts: dict[str, Any]) -> list[Score]:
    """Return time, bytes and numbers per record.

    Args:
        facts: "count" and "shape" of the records, "protect_seconds", "bytes_per_record".
    """
    count = int(facts["count"])
    found = {
        "ms-per-record": 1e3 * facts["protect_seconds"] / count,
        "bytes-per-record": facts["bytes_per_record"],
        "storage-factor": np.prod(facts["shape"]) / np.prod(CROP),
    }
    return [Score(name, name, without_interval(value, count)) for name, value in found.items()]
