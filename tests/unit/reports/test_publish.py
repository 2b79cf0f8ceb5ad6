"""The page of published results: matrices with floors, paired utility, and papers' claims."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from made_results import ADAPTIVE, ADVFACE, TRANSFER, Maker, small, started

from bench import result_file
from bench.errors import UserError
from bench.leaks import Leak
from reports.literature import Answer, answers, load_claims
from reports.publish import publish
from reports.standings import read_source

if TYPE_CHECKING:
    from pathlib import Path

BARE = {"leak": Leak.FEATURES, "defense": "none"}
OF = {
    "leak": "features",
    "defense": "advface",
    "threat": "adaptive",
    "metric": "rank-1",
    "judge": "dlib",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run in which AdvFace decides some pairs wrongly, and no defense none."""
    return written(small().utility(0.0, **BARE), tmp_path / "run.json")


def written(maker: Maker, path: Path) -> Path:
    result_file.write(started(maker.file(), "2026-01-01"), path)
    return path


def inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {inline(item)}" for name, item in value.items()) + "}"
    return json.dumps(value)


def claims(folder: Path, *tables: dict[str, Any]) -> Path:
    path = folder / "claims.toml"
    common = {"paper": "Somebody, 2026", "statement": "It is so."}
    lines = [
        f"{name} = {inline(value)}\n" if name != "[" else "[[claim]]\n"
        for table in tables
        for name, value in {"[": None, **common, **table}.items()
    ]
    path.write_text("".join(lines))
    return path


def answer(run: Path, **table: Any) -> tuple[Answer, str]:
    (claim,) = load_claims(claims(run.parent, table))
    (finding,) = answers(claim, [read_source(run)])
    return finding.answer, finding.found


@pytest.mark.parametrize(
    ("table", "wanted"),
    [
        ({"of": OF, "direction": "above", "limit": 0.6}, Answer.CONFIRMED),
        ({"of": OF, "direction": "below", "limit": 0.6}, Answer.REFUTED),
        ({"of": OF, "direction": "above", "limit": 0.89}, Answer.UNDECIDED),
        ({"of": OF, "direction": "above", "than": {"threat": "transfer"}}, Answer.CONFIRMED),
        ({"of": OF, "direction": "below", "than": {"attack": "mean-face"}}, Answer.REFUTED),
        (
            {"of": OF, "direction": "above", "than": {"threat": "transfer"}, "limit": 0.84},
            Answer.UNDECIDED,
        ),
        ({"of": OF}, Answer.BESIDE),
        ({"of": {**OF, "defense": "crafter"}}, Answer.ABSENT),
        ({"of": {**OF, "defense_parameters": {"eps": 0.3}}}, Answer.ABSENT),
        ({"untestable": "Its data are not to be had."}, Answer.UNTESTED),
    ],
)
def test_a_claim_is_answered_from_the_whole_interval(
    run: Path, table: dict[str, Any], wanted: Answer
) -> None:
    assert answer(run, **table)[0] is wanted


def test_an_order_is_answered_from_the_paired_difference(tmp_path: Path) -> None:
    """Two attacks whose intervals overlap, one of which finds all that the other finds and more."""
    hits = np.arange(120) < 60
    more = hits | (np.arange(120) % 3 == 0)
    maker = Maker().references()
    maker.attack(hits, attack="unet", **TRANSFER).attack(more, attack="unet", **ADAPTIVE)
    path = written(maker, tmp_path / "run.json")
    found, text = answer(
        path, of={**OF, "attack": "unet"}, direction="above", than={"threat": "transfer"}
    )
    assert found is Answer.CONFIRMED
    assert "50\N{NO-BREAK SPACE}%" in text
    assert "difference 17 points [" in text


def test_the_page_has_floors_in_every_matrix_and_paired_utility(run: Path) -> None:
    page = publish([run], run.parent / "out", []).read_text()
    matrices = page.split("### What defenses leave")[0].split("**transfer: ")[1:]
    assert len(matrices) == 2  # rank-1 by one judge, SSIM
    for matrix in matrices:
        assert "| advface | " in matrix
        assert "| mean-face (floor) | " in matrix
    assert "| advface | 5 % \\[" in matrices[0].replace("\N{NO-BREAK SPACE}", " ")
    assert "| -2.5 \\[" in page


def test_a_page_is_made_again_from_the_file_beside_it(run: Path) -> None:
    out = run.parent / "out"
    told = claims(run.parent, {"of": OF, "direction": "above", "limit": 0.6})
    before = publish([run], out, [told]).read_text()
    (packed,) = out.glob("*.json.gz")
    data = packed.read_bytes()
    assert publish([packed], out, [told]).read_text() == before
    assert packed.read_bytes() == data
    assert "**confirmed**" in before


def test_one_suite_on_two_datasets_makes_one_page(tmp_path: Path) -> None:
    runs = []
    for name in ("orl", "lfw"):
        maker = Maker(dataset=name).references().utility(0.02, **ADVFACE)
        maker.attack(0.9, attack="unet", **ADAPTIVE).attack(0.9, attack="worst-case", **ADAPTIVE)
        runs.append(written(maker, tmp_path / f"{name}.json"))
    told = claims(tmp_path, {"of": OF, "direction": "above", "limit": 0.6})
    page = publish(runs, tmp_path / "out", [told]).read_text()
    assert page.count("**confirmed**") == 2
    assert page.startswith("# Published results: made on orl, made on lfw\n")
    with pytest.raises(UserError, match="same suite and dataset"):
        publish([runs[0], runs[0]], tmp_path / "twice", [])
    assert not (tmp_path / "twice").exists()


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({}, "give either"),
        ({"of": OF, "untestable": "No."}, "give either"),
        ({"of": OF, "direction": "above"}, "a direction goes with"),
        ({"of": OF, "limit": 0.5}, "a direction goes with"),
        ({"of": {"leak": "features"}}, "claim.0.of.defense"),
        ({"of": OF, "direction": "above", "than": {"thread": "x"}}, "thread"),
    ],
)
def test_a_claim_that_cannot_be_tested_as_written_is_refused(
    tmp_path: Path, table: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        load_claims(claims(tmp_path, table))


def test_a_run_that_is_not_sound_is_not_published(tmp_path: Path) -> None:
    maker = Maker().attack(0.9, attack="unet", **ADAPTIVE)
    with pytest.raises(UserError, match="has no row of mean-face"):
        publish([written(maker, tmp_path / "run.json")], tmp_path / "out", [])
    assert not (tmp_path / "out").exists()


def test_a_claim_says_what_it_compares(run: Path) -> None:
    table = {"of": OF, "direction": "below", "than": {"defense": "none"}, "limit": 0.1}
    (claim,) = load_claims(claims(run.parent, table))
    assert claim.test == (
        "features / advface / worst-case / adaptive / rank-1 by dlib, "
        "below the same with defense none by 0.1"
    )
