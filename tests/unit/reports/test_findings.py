from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from run_folder import build

from bench import results
from bench.leaks import Leak
from bench.threats import Threat
from reports.findings import Verdict, findings, scale, summary, untested, verdict
from reports.run import Run, group_lines, read_run

if TYPE_CHECKING:
    from pathlib import Path

    from bench.results import Row


@pytest.fixture
def run(synthetic: Path) -> Run:
    return read_run(synthetic)


def changed(folder: Path, threat: str, **rank: float | None) -> Run:
    """Return a run with another rank-1 of AdvFace's worst case."""

    def change(row: Row) -> Row:
        where = (row.defense, row.attack, row.threat, row.metric)
        wanted = ("advface", "worst-case", threat, "rank-1")
        return row.model_copy(update=rank) if where == wanted else row

    return read_run(build(folder, change=change))


def advface(run: Run) -> str:
    found = findings(run)[1]
    assert found.title == "Features · advface"
    return " ".join(found.sentences)


def test_sentences_name_the_best_attack_its_numbers_and_n(run: Run) -> None:
    assert (
        "Under transfer, the strongest attack is unet: dlib finds the person first in "
        "30\N{NO-BREAK SPACE}% [20, 40] of 8 reconstructions, SSIM 0.30 [0.25, 0.35]."
    ) in advface(run)


def test_adaptive_undoes_what_transfer_suggested(run: Run) -> None:
    sentence = "Adaptive undoes what transfer suggested: worst-case rank-1 rises from"
    assert sentence in advface(run)
    assert any(sentence in line for line in summary(run))


def test_adaptive_that_adds_nothing_is_said_to(tmp_path: Path) -> None:
    def change(row: Row) -> Row:
        if row.attack != "worst-case" or row.defense != "advface" or row.threat != "adaptive":
            return row
        return row.model_copy(update={"ci_low": 0.0})

    assert "adds nothing measurable" in advface(read_run(build(tmp_path, change=change)))


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        ({}, Verdict.BROKEN),
        ({"value": 0.5, "ci_low": 0.4, "ci_high": 0.6}, Verdict.REDUCED),
        ({"value": 0.1, "ci_low": 0.0, "ci_high": 0.2}, Verdict.FLOOR),
        ({"value": 0.5, "ci_low": 0.1, "ci_high": 0.9}, Verdict.UNCLEAR),
        ({"value": None}, Verdict.UNTESTED),
    ],
)
def test_verdicts_compare_intervals(
    tmp_path: Path, rank: dict[str, float | None], expected: Verdict
) -> None:
    run = changed(tmp_path, "adaptive", **rank)
    assert verdict(run, run.protections[1]) is expected


def test_the_summary_names_what_broke_a_defense_and_the_rates_behind_it(
    run: Run, tmp_path: Path
) -> None:
    assert (
        "Broken under adaptive, identification is not measurably reduced: advface (features, by "
        "unet)."
    ) in summary(run)
    rates = "(95\N{NO-BREAK SPACE}% [85, 100], 97\N{NO-BREAK SPACE}% [87, 100] without a defense, 5"
    assert rates in advface(run)
    holds = changed(tmp_path, "adaptive", value=0.1, ci_low=0.0, ci_high=0.2)
    assert ("Holds under adaptive, identification is at the floor: advface (features).") in summary(
        holds
    )


def test_what_could_not_be_tested_is_told(run: Run, tmp_path: Path) -> None:
    adaptive = "no attack that knows the defense was run (adaptive)."
    assert not any("advface" in sentence for sentence in untested(run))

    def change(row: Row) -> Row:
        leak = Leak.TEMPLATE if row.defense == "none" else row.leak
        threat = Threat.INSIDER if row.threat == "adaptive" else row.threat
        judge = None if row.judge is None else "sface"
        return row.model_copy(update={"leak": leak, "threat": threat, "judge": judge})

    told = untested(read_run(build(tmp_path, change=change)))
    assert "No judge is independent of the recogniser under attack." in told
    assert f"Features · advface: {adaptive}" in told
    assert any("advface: no attack was run without a defense" in sentence for sentence in told)


def test_an_attack_that_still_learned_is_no_last_word(run: Run, tmp_path: Path) -> None:
    told = "It was still learning when its training ended."
    assert told not in advface(run)

    def change(row: Row) -> Row:
        helped = row.attack == "unet" and row.status == "ok"
        return row.model_copy(update={"flags": "more-budget-helps"}) if helped else row

    assert told in advface(read_run(build(tmp_path, change=change)))


def test_the_best_of_attacks_is_compared_with_the_best_of_as_many_guesses(tmp_path: Path) -> None:
    # Linear and unet under two threats: four chances to find the person by luck.
    half = {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6}
    run = changed(tmp_path, "adaptive", **half)
    assert verdict(run, run.protections[1]) is Verdict.REDUCED

    def guessed(count: int) -> Run:
        rows = results.read(tmp_path)
        lucky = [
            row.model_copy(
                update=half
                | {"attack": "best-of-guesses", "attack_params": f'{{"guesses": {count}}}'}
            )
            for row in rows
            if row.attack == "other-person" and row.metric == "rank-1"
        ]
        return dataclasses.replace(run, lines=tuple(group_lines([*rows, *lucky])))

    assert verdict(guessed(4), run.protections[1]) is Verdict.FLOOR
    assert verdict(guessed(3), run.protections[1]) is Verdict.REDUCED


def test_attacks_that_fail_without_a_defense_judge_nothing(tmp_path: Path) -> None:
    def change(row: Row) -> Row:
        weak = row.attack == "worst-case" and row.metric == "rank-1"
        return row.model_copy(update={"value": 0.1, "ci_low": 0.0, "ci_high": 0.2}) if weak else row

    run = read_run(build(tmp_path, change=change))
    assert verdict(run, run.protections[1]) is Verdict.WEAK


def test_attacks_level_at_the_top_are_named_together(tmp_path: Path) -> None:
    def change(row: Row) -> Row:
        level = row.threat == "transfer" and row.metric == "rank-1" and row.attack == "linear"
        return row.model_copy(update={"value": 0.3}) if level else row

    assert "attacks are, level, unet and linear" in advface(
        read_run(build(tmp_path, change=change))
    )


def test_failures_and_floors_are_told(run: Run) -> None:
    assert "unet / adaptive failed: RuntimeError" in untested(run)[0]
    assert scale(run)[0].startswith("Floor, other-person: dlib finds the person first in 2")
    assert "no attack finished" in " ".join(findings(run)[2].sentences)


def test_a_run_without_attacks_claims_nothing_about_what_is_hidden(run: Run) -> None:
    costs = tuple(line for line in run.lines if line.attack is None or line.protection is None)
    bare = dataclasses.replace(run, lines=costs)
    assert bare.references
    assert not bare.attacked
    assert summary(bare) == scale(bare) == untested(bare) == []
    assert findings(bare) == []


def test_a_defense_that_nothing_attacked_is_named_beside_those_attacked(run: Run) -> None:
    name = run.protections[1].defense
    costs = (x for x in run.lines if x.protection != run.protections[1] or x.attack is None)
    partly = dataclasses.replace(run, lines=tuple(costs))
    assert f"Not attacked: {name} (features)." in summary(partly)
    assert all(name not in finding.title for finding in findings(partly))


def test_a_run_without_any_score_still_reads(tmp_path: Path) -> None:
    def change(row: Row) -> Row:
        failed = {"status": "error", "value": None, "reason": "no luck", "definition": ""}
        return row.model_copy(update={**failed, "judge": None})

    run = read_run(build(tmp_path, change=change))
    assert run.judge is None
    assert all("no attack finished" in finding.sentences[0] for finding in findings(run))
