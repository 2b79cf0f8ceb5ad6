"""The result schema: what is written is read back, and what is not a result is refused."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from pydantic import ValidationError

from bench.errors import UserError
from bench.leaks import Leak
from bench.results import Row, parameters_text, read, to_frame, write
from bench.threats import Threat

if TYPE_CHECKING:
    from pathlib import Path


def row(**changes: Any) -> Row:
    common: dict[str, Any] = {
        "suite": "tiny",
        "dataset": "orl",
        "recognizer": "sface",
        "seed": 0,
        "metric": "ssim",
        "definition": "ssim:wang11-valid-rgb",
        "value": 0.5,
    }
    return Row(**common | changes)


FULL = row(
    leak=Leak.FEATURES,
    defense="advface",
    defense_params='{"eps": 0.6}',
    attack="unet",
    attack_params='{"steps": 12}',
    threat=Threat.ADAPTIVE,
    seed=2**40,
    judge="dlib",
    value=1 / 3,
    ci_low=0.25,
    ci_high=0.5,
    n=45,
    flags="indicative-fmr gallery=35",
    cell="ab" * 32,
)
FAILED = row(
    leak=Leak.TEMPLATE,
    defense='mine, "quoted"\nand ü',
    attack="unet",
    threat=Threat.QUERY,
    definition="",
    value=None,
    status="error",
    reason="ValueError: boom",
)
REFERENCE = row(attack="mean-face", value=math.inf, ci_low=-math.inf)
COST = row(leak=Leak.IMAGE, defense="none", metric="bytes-per-record", value=802816.0)


@pytest.mark.parametrize(
    "rows", [[FULL], [FAILED], [REFERENCE], [FULL, FAILED, REFERENCE, COST], [FAILED, FAILED]]
)
def test_rows_come_back_as_they_were(rows: list[Row], tmp_path: Path) -> None:
    write(rows, tmp_path)
    assert read(tmp_path) == rows


def test_no_rows_are_no_rows(tmp_path: Path) -> None:
    write([], tmp_path)
    assert read(tmp_path) == []


def test_both_files_have_a_column_per_field_and_numbers_as_numbers(tmp_path: Path) -> None:
    write([FULL, FAILED], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "results.parquet"]
    for frame in (
        pd.read_parquet(tmp_path / "results.parquet"),
        pd.read_csv(tmp_path / "results.csv"),
    ):
        assert list(frame.columns) == list(Row.model_fields)
        assert frame["value"].dtype == frame["ci_low"].dtype == "float64"
        assert frame["n"].dtype == frame["seed"].dtype == "int64"
        assert frame["value"][0] == 1 / 3
        assert math.isnan(frame["value"][1])
        assert frame["status"].tolist() == ["ok", "error"]
        assert frame["defense"].tolist() == ["advface", FAILED.defense]


def test_the_columns_are_those_of_the_design() -> None:
    named = (
        "suite dataset recognizer leak defense defense_params attack attack_params threat seed "
        "judge metric definition value ci_low ci_high n status flags cell"
    )
    assert set(named.split()) <= set(Row.model_fields)


def test_a_table_of_error_rows_alone_has_numbers() -> None:
    assert to_frame([FAILED])["value"].dtype == "float64"


@pytest.mark.parametrize(
    "changes",
    [
        {"leak": "pixels"},
        {"threat": "psychic"},
        {"status": "maybe"},
        {"value": "high"},
        {"n": 1.5},
        {"colour": "red"},
        {"metric": None},
    ],
)
def test_a_row_outside_the_schema_is_refused(changes: dict[str, Any]) -> None:
    [field] = changes
    with pytest.raises(ValidationError, match=field):
        row(**changes)


def test_rows_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        FULL.value = 1.0


# --- reading ------------------------------------------------------------------------------------


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no results\.parquet: give the --out folder"):
        read(tmp_path)
    with pytest.raises(UserError, match=r"nowhere holds no results\.parquet"):
        read(tmp_path / "nowhere")


def damaged(frame: pd.DataFrame, how: str) -> pd.DataFrame:
    match how:
        case "a column too many":
            return frame.assign(colour="red")
        case "a column too few":
            return frame.drop(columns="metric")
        case "text for a number":
            return frame.assign(value="high")
        case "an unknown threat":
            return frame.assign(threat="psychic")
        case _:
            return frame.assign(status="maybe")


@pytest.mark.parametrize(
    "how",
    ["a column too many", "a column too few", "text for a number", "an unknown threat", "status"],
)
def test_results_outside_the_schema_are_refused_in_one_sentence(how: str, tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    damaged(to_frame([FULL]), how).to_parquet(path, index=False)
    with pytest.raises(UserError, match=r"not a veilbench result \(.*\): run the suite again") as e:
        read(tmp_path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"suite,dataset\n"])
def test_a_file_that_is_no_parquet_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "results.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"results\.parquet is not a veilbench result"):
        read(tmp_path)


def test_parameters_are_written_in_one_order() -> None:
    assert parameters_text({"b": 1, "a": [0.5, None]}) == '{"a": [0.5, null], "b": 1}'
    assert parameters_text({}) == Row.model_fields["defense_params"].default
