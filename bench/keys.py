"""Keys and seeds that follow from plain values alone."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def digest(fields: object) -> str:
    """Return the sha256 of the canonical JSON of plain values."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def derived_seed(fields: object) -> int:
    """Return a seed below 2^60 that is fixed by plain values, but for those under "source".

    A changed source is another result, but a reworded comment must not draw other random numbers.
    """
    return int(digest(_without_source(fields))[:15], 16)


def _without_source(fields: Any) -> Any:
    if isinstance(fields, dict):
        return {name: _without_source(value) for name, value in fields.items() if name != "source"}
    if isinstance(fields, list | tuple):
        return [_without_source(value) for value in fields]
    return fields
