"""The page of defenses lists what is registered, with the leaks and keys that the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import defenses
from bench.registry import DEFENSES
from defenses.keyed import Keyed

PAGE = (Path(defenses.__file__).parent / "README.md").read_text(encoding="utf-8")
ROWS = {
    cells[0].strip(" `"): [cell.strip() for cell in cells]
    for line in PAGE.splitlines()
    if line.startswith("| `") and (cells := line.strip("|").split("|"))
}


def test_every_defense_of_this_package_has_one_row() -> None:
    own = {name for name in DEFENSES.names() if DEFENSES.entry(name).target.startswith("defenses.")}
    assert own == set(ROWS)
    assert len(re.findall(r"^\| `", PAGE, re.MULTILINE)) == len(ROWS)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_row_says_what_the_code_does(name: str) -> None:
    kind = DEFENSES.get(name)
    row = ROWS[name]
    assert len(row) == 8
    leaks = {"any": "features, image, template"}.get(row[1], row[1])
    assert leaks == ", ".join(sorted(kind.leaks))
    assert (row[3] == "key") == issubclass(kind, Keyed)
    assert (row[3] != "no") == kind().renewable
