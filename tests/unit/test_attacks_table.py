"""The table of attacks says what the code says."""

from __future__ import annotations

from pathlib import Path

from bench.registry import ATTACKS

TABLE = Path(__file__).parents[2] / "attacks" / "README.md"


def test_the_table_lists_every_attack_with_its_leaks_and_threats() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in TABLE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    found = {cells[0].strip("`"): {*cells[2].split(", "), *cells[3].split(", ")} for cells in rows}
    own = [entry for entry in ATTACKS.entries() if "/attacks/" in entry.origin.replace("\\", "/")]
    assert found == {entry.name: {str(trait) for trait in entry.traits} for entry in own}
    assert all(all(cells) for cells in rows)
