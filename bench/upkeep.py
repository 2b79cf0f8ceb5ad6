"""What `veilbench store` says and does: list, verify, and delete what no kept run needs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from bench.errors import UserError
from bench.store import Store


def listing(store: Store) -> str:
    """Return a table of the stages of a store, with the number and size of their artifacts."""
    sizes: dict[str, list[int]] = defaultdict(list)
    for name, size in store.artifacts().items():
        sizes[name.partition("/")[0]].append(size)
    stages = {**sizes, "all": [size for found in sizes.values() for size in found]}
    lines = [f"{'artifacts':>9} {'size':>10}  stage"]
    lines += [f"{len(found):9d} {_bytes(sum(found)):>10}  {name}" for name, found in stages.items()]
    return "\n".join(lines)


def damage(store: Store) -> list[str]:
    """Return one line for each artifact that is not what was written."""
    return [f"{store.where}/{name}: {reason}" for name, reason in store.verify()]


def collect(store: Store, runs: Sequence[Path]) -> str:
    """Delete what no run needs to be repeated without computing; return what was done.

    Args:
        store: The store.
        runs: The --out folders of the runs to keep.

    Raises:
        UserError: A folder is not that of a run.
    """
    keep = {name for run in runs for name in _artifacts(run)}
    deleted, size = store.collect(keep)
    return f"Deleted {deleted} files, {_bytes(size)}."


def _artifacts(run: Path) -> list[str]:
    try:
        names: list[str] = json.loads((run / "run.json").read_text())["artifacts"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{run} holds no run.json that names its artifacts ({error}): give the --out folder of "
            "a finished run."
        ) from error
    return names


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
