"""Keys and seeds that follow from plain values alone."""

from __future__ import annotations

import hashlib
import json


def digest(fields: object) -> str:
    """Return the sha256 of the canonical JSON of plain values."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def derived_seed(fields: object) -> int:
    """Return a seed below 2^60 that is fixed by plain values."""
    return int(digest(fields)[:15], 16)
