from __future__ import annotations

import csv
import itertools
from typing import TYPE_CHECKING

import pytest
from run_folder import FAILURE, HOSTILE, PROBES, build

from reports.run import ReportError, read_run
from reports.tables import (
    PAPER_METRICS,
    Table,
    privacy_table,
    utility_table,
    worst_case_table,
    write_csv,
)

if TYPE_CHECKING:
    from pathlib import Path

    from bench.results import Row


@pytest.fixture
def privacy(synthetic: Path) -> Table:
    return privacy_table(read_run(synthetic))


def names(table: Table, section: int) -> list[tuple[str, str]]:
    return [(line.name, line.detail) for line in table.sections[section].lines]


def test_columns_start_with_the_independent_judge(privacy: Table) -> None:
    keys = [column.key for column in privacy.columns]
    assert keys[:5] == [
        "dlib/rank-1",
        "dlib/sar-1",
        "dlib/sar-2",
        "dlib/similarity",
        "sface/rank-1",
    ]
    assert keys[8:11] == ["ssim", "st-lpips", "psnr"]
    groups = ["dlib (independent)", "sface (recogniser under attack)", "Image"]
    assert privacy.groups == list(zip(groups, [4, 4, 5], strict=True))
    assert privacy.columns[0].remarks == [f"n\N{NO-BREAK SPACE}{PROBES}", "gallery 9"]


def test_lines_are_references_then_undefended_then_defenses_by_threat(privacy: Table) -> None:
    titles = [section.title for section in privacy.sections]
    assert titles[:3] == ["References", "Features · none (undefended)", "Features · advface"]
    assert privacy.sections[2].detail == "eps 0.6, steps 10"
    references = [("other-person", "floor"), ("mean-face", "floor"), ("original", "ceiling")]
    assert names(privacy, 0) == references
    transfer = [("worst case", "transfer"), ("unet", "transfer"), ("linear", "transfer")]
    assert names(privacy, 2)[:3] == transfer


def test_a_failed_cell_is_last_and_says_why(privacy: Table) -> None:
    last = privacy.sections[3].lines[-1]
    assert last.kind == "failed"
    assert last.line.failure == " ".join(FAILURE.split())
    assert last.numbers == (None,) * len(privacy.columns)


def test_a_value_that_is_missing_is_a_gap(privacy: Table) -> None:
    place = [column.key for column in privacy.columns].index("dlib/sar-2")
    mean_face = privacy.sections[0].lines[1]
    assert mean_face.numbers[place] is None


def test_what_differs_from_the_column_is_said_in_the_cell(tmp_path: Path) -> None:
    def change(row: Row) -> Row:
        if (row.attack, row.threat, row.metric) != ("unet", "adaptive", "rank-1"):
            return row
        return row.model_copy(update={"n": 3, "flags": f"{row.flags} weaker-than-fewer-rights"})

    table = privacy_table(read_run(build(tmp_path, change=change)))
    odd = [x for section in table.sections for line in section.lines for x in line.numbers if x]
    odd = [number for number in odd if number.marks]
    assert {(number.n, number.marks) for number in odd} == {(3, "a")}
    assert table.notes[0][0] == "a"
    assert "weaker-than-fewer-rights" in table.notes[0][1]
    assert "n = 3, rank-1, gallery=9, weaker-than-fewer-rights" in odd[0].title


def test_two_definitions_never_share_a_column(tmp_path: Path) -> None:
    def change(row: Row) -> Row:
        other = row.metric == "ssim" and row.attack == "linear"
        return row.model_copy(update={"definition": "ssim:uniform7-sample-rgb"}) if other else row

    run = read_run(build(tmp_path, change=change))
    with pytest.raises(ReportError, match="ssim:uniform7-sample-rgb and ssim:wang11-valid-rgb"):
        privacy_table(run)


def test_a_table_for_paper_has_the_worst_cases_and_few_columns(synthetic: Path) -> None:
    table = worst_case_table(read_run(synthetic)).only(PAPER_METRICS)
    assert names(table, 1)[:3] == [
        ("none", "transfer"),
        ("advface", "transfer"),
        ("advface", "adaptive"),
    ]
    assert [column.metric for column in table.columns[4:]] == ["ssim", "st-lpips", "psnr"]
    assert all(len(line.numbers) == 7 for section in table.sections for line in section.lines)


def test_utility_is_grouped_by_what_is_compared(synthetic: Path) -> None:
    table = utility_table(read_run(synthetic))
    assert table.groups == [
        ("Stored against fresh", 2),
        ("Stored against stored", 2),
        ("Linking two applications", 1),
        ("Cost", 2),
    ]
    labels = [column.label for column in table.columns]
    assert labels[:2] == ["Accuracy", "TAR@FAR=0.01"]
    hostile = table.sections[0].lines[-1]
    assert hostile.numbers[0] is None
    assert hostile.numbers[2] is not None


def test_seeds_and_parameters_tell_lines_apart(tmp_path: Path) -> None:
    table = privacy_table(read_run(build(tmp_path, seeds=(0, 1))))
    titles = [section.title for section in table.sections]
    assert "Features · advface, seed 0" in titles
    assert "Features · advface, seed 1" in titles
    assert ("mean-face", "floor, seed 1") in names(table, 0)


def test_csv_has_the_raw_numbers_and_names(tmp_path: Path, privacy: Table) -> None:
    path = tmp_path / "t.csv"
    write_csv(privacy, path)
    with path.open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == sum(len(section.lines) for section in privacy.sections)
    worst = next(x for x in lines if (x["defense"], x["threat"]) == ("advface", "adaptive"))
    assert (worst["attack"], worst["ssim"], worst["ssim.n"]) == ("worst-case", "0.95", "8")
    assert float(worst["ssim.low"]) == pytest.approx(0.9)
    assert lines[-1]["defense"] == HOSTILE
    assert lines[-1]["failure"]


def test_there_is_a_mark_for_every_flag(tmp_path: Path) -> None:
    numbers = itertools.count()

    def change(row: Row) -> Row:
        return row.model_copy(update={"flags": f"flag={next(numbers)}"}) if row.attack else row

    table = privacy_table(read_run(build(tmp_path, change=change)))
    marks = [mark for mark, text in table.notes if text.startswith("flag=")]
    assert len(marks) == len(set(marks)) > 27
    assert marks[25:28] == ["z", "aa", "ab"]
