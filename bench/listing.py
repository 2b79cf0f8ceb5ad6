"""What `veilbench list` prints, without importing torch."""

from __future__ import annotations

import tomllib
from pathlib import Path

from bench.registry import ATTACKS, DATASETS, DEFENSES, RECOGNIZERS, REFERENCES, Registry

SUITES = Path(__file__).with_name("suites")

_REGISTRIES: dict[str, tuple[Registry, ...]] = {
    "attacks": (ATTACKS, REFERENCES),
    "defenses": (DEFENSES,),
    "datasets": (DATASETS,),
    "recognizers": (RECOGNIZERS,),
}


def show(what: str) -> str:
    """Return a heading and one line per name."""
    lines = [_line(*row) for row in _rows(what)]
    return "\n".join([f"{what}:", *lines, ""])


def _rows(what: str) -> list[tuple[str, str, str]]:
    match what:
        case "threats":
            from bench.threats import RIGHTS

            return [
                (threat, "", "grants " + ", ".join(sorted(right.name.lower() for right in rights)))
                for threat, rights in RIGHTS.items()
            ]
        case "suites":
            # Only the title: checking a whole suite would import numpy and pydantic.
            return [
                (path.stem, "", tomllib.loads(path.read_text(encoding="utf-8"))["title"])
                for path in sorted(SUITES.glob("*.toml"))
            ]
        case "metrics":
            from bench.metrics.definitions import definitions

            return [(item.id, item.kind, item.description) for item in definitions().values()]
        case _:
            return [
                (entry.name, ", ".join(dict.fromkeys(entry.traits)), entry.summary)
                for registry in _REGISTRIES[what]
                for entry in registry.entries()
            ]


def _line(name: str, traits: str, summary: str) -> str:
    return f"  {name:<26}{f'[{traits}] ' if traits else ''}{summary}"
