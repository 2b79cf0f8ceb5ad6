from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import pytest
from made_results import ADAPTIVE, ADVFACE, TRANSFER, WAY, Maker, small
from typer.testing import CliRunner

import reports
from bench import result_file
from bench.cli import app
from bench.errors import UserError
from bench.leaks import Leak
from reports.gate import Answer, Baseline, Verdict, check, comparisons, judge
from reports.gate_report import github_annotations, junit, markdown_summary

if TYPE_CHECKING:
    from bench.result_file import ResultFile

HOSTILE = "]]><script>|`::error::x`\n%0A\N{RIGHT-TO-LEFT OVERRIDE}\x00"


def guarantee(**changes: Any) -> dict[str, Any]:
    return {
        "name": "identities stay private",
        "defense": "advface",
        "leak": "features",
        "threat": "transfer",
        "metric": "rank-1",
        "judge": "dlib",
        "direction": "below",
        "limit": 0.3,
        **changes,
    }


def toml(table: str, fields: dict[str, Any]) -> str:
    lines = [f"{name} = {json.dumps(value)}" for name, value in fields.items() if value is not None]
    return "\n".join([table, *lines, ""])


def verdict(folder: Path, *tables: dict[str, Any], maker: Maker | None = None) -> Verdict:
    """Return the verdict on a run made for tests."""
    result_file.write((maker or small()).file(), folder / "run.json")
    path = folder / "gate.toml"
    path.write_text("".join(toml("[[guarantee]]", table) for table in tables))
    return check(path, folder / "run.json")


def only(folder: Path, maker: Maker | None = None, **changes: Any) -> tuple[Answer, str]:
    """Return the answer to one guarantee, and its sentence."""
    (finding,) = verdict(folder, guarantee(**changes), maker=maker).findings
    return finding.answer, finding.sentence


# --- answers -----------------------------------------------------------------------------------


def test_the_same_guarantee_holds_under_transfer_and_is_broken_under_adaptive(
    tmp_path: Path,
) -> None:
    assert only(tmp_path)[0] is Answer.HOLDS
    answer, sentence = only(tmp_path, threat="adaptive")
    assert answer is Answer.BROKEN
    assert sentence.startswith("0.9, guaranteed below 0.3 (one-sided 95% bounds 0.")


def test_a_limit_on_a_worst_case_that_as_many_guesses_reach_is_told(tmp_path: Path) -> None:
    maker = small().attack(0.04, attack="hill-climb", **TRANSFER)
    guesses = {"attack": "best-of-guesses", "attack_params": '{"guesses": 2}'}
    maker.attack(0.1, **guesses)
    told = "; blind guesses reach 0.1: no defense keeps this limit"
    assert only(tmp_path, maker, limit=0.08)[1].endswith(told)
    assert not only(tmp_path, maker)[1].endswith(told)
    # A single attack is not the best of two guesses.
    assert not only(tmp_path, maker, limit=0.08, attack="unet")[1].endswith(told)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"limit": 0.06}, "more probes would tell"),
        ({"min_n": 121}, "n 120): fewer than 121"),
        ({"defense": "advfase"}, "no such defense as advfase; it has advface."),
        ({"leak": "template"}, "no such leak as template; it has features."),
        ({"threat": "insider"}, "no such threat as insider; it has none, transfer, adaptive."),
        ({"metric": "rank-5"}, "no such metric as rank-5; it has rank-1, ssim, psnr."),
        ({"judge": "sface"}, "no such judge as sface; it has dlib."),
        ({"attack": "linear"}, "no such attack as linear; it has unet, worst-case."),
        ({"defense_parameters": None, "judge": None}, "no such judge as none; it has dlib."),
    ],
)
def test_what_cannot_be_told_is_inconclusive_and_says_why(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    answer, sentence = only(tmp_path, **changes)
    assert answer is Answer.INCONCLUSIVE
    assert sentence.endswith(reason)


@pytest.mark.parametrize(
    ("strength", "answer"),
    [(0.0, Answer.HOLDS), (3.0, Answer.BROKEN), (1.0, Answer.INCONCLUSIVE)],
)
def test_unlinkability_is_guaranteed_like_any_number(
    tmp_path: Path, strength: float, answer: Answer
) -> None:
    maker = small().linkage(strength, leak=Leak.TEMPLATE, defense="keyed")
    about = {"defense": "keyed", "leak": "template", "threat": None, "judge": None}
    found, sentence = only(tmp_path, maker, **about, metric="d-sys")
    assert found is answer, sentence


def test_linkage_scores_that_say_nothing_are_inconclusive(tmp_path: Path) -> None:
    maker = small().linkage(1.0, leak=Leak.TEMPLATE, defense="keyed")
    about = {"defense": "keyed", "leak": "template", "threat": None, "judge": None}
    maker.cells["linkage"] = maker.cells["linkage"].model_copy(update={"values": {}})
    answer, sentence = only(tmp_path, maker, **about, metric="d-sys")
    assert answer is Answer.INCONCLUSIVE
    assert sentence.startswith("There are no linkage scores")


def test_a_failed_attack_leaves_the_worst_case_open_and_others_not(tmp_path: Path) -> None:
    maker = small().failed("RuntimeError: boom", attack="gradient", **TRANSFER)
    assert only(tmp_path, maker) == (
        Answer.INCONCLUSIVE,
        "gradient failed: RuntimeError: boom",
    )
    assert only(tmp_path, maker, attack="unet")[0] is Answer.HOLDS


def test_settings_of_one_defense_are_told_apart_by_parameters(tmp_path: Path) -> None:
    other = {**TRANSFER, "defense_params": '{"eps": 0.1}'}
    maker = small().attack(0.8, attack="worst-case", **other)
    assert "2 settings" in only(tmp_path, maker)[1]
    path = tmp_path / "gate.toml"
    for eps, answer in ((0.6, Answer.HOLDS), (0.1, Answer.BROKEN)):
        path.write_text(
            toml("[[guarantee]]", guarantee()) + f"defense_parameters = {{ eps = {eps} }}\n"
        )
        assert check(path, tmp_path / "run.json").answer is answer


def test_utility_has_bounds_too(tmp_path: Path) -> None:
    about: dict[str, Any] = {"threat": None, "judge": None, "metric": f"accuracy.{WAY}"}
    assert only(tmp_path, **about, direction="above", limit=0.9)[0] is Answer.HOLDS
    assert only(tmp_path, **about, direction="above", limit=0.999)[0] is Answer.BROKEN


def test_an_eer_has_bounds_and_a_baseline(tmp_path: Path) -> None:
    metric = f"eer.{WAY}"
    utility = {"threat": None, "judge": None, "metric": metric}
    maker = Maker().utility(0.05, measure="eer", **ADVFACE)
    for limit, answer in ((0.2, "holds"), (0.06, "inconclusive"), (0.001, "broken")):
        assert only(tmp_path, maker, **utility, limit=limit)[0] == answer
    assert only(tmp_path, maker, **utility, limit=0.2, direction="above")[0] is Answer.BROKEN
    path = pinned(tmp_path, maker=maker)
    path.write_text(path.read_text() + f'\n"{metric}" = 0.1')
    for wrong, answer in ((0.05, "holds"), (0.4, "broken")):
        run = Maker().utility(wrong, measure="eer", **ADVFACE).file()
        result_file.write(run, tmp_path / "run.json")
        assert check(path, tmp_path / "run.json").answer == answer


def test_several_seeds_are_one_sample(tmp_path: Path) -> None:
    files = [Maker(seed=seed).attack(0.05, attack="worst-case", **TRANSFER) for seed in (0, 1, 2)]
    merged = files[0].file()
    cells = {f"{n}-{key}": x for n, made in enumerate(files) for key, x in made.cells.items()}
    rows = [
        row.model_copy(update={"cell": f"{n}-{row.cell}"})
        for n, made in enumerate(files)
        for row in made.rows
    ]
    seeds = {key: x for made in files for key, x in made.file().seeds.items()}
    merged = merged.model_copy(update={"cells": cells, "rows": rows, "seeds": seeds})
    result_file.write(merged, tmp_path / "run.json")
    (tmp_path / "gate.toml").write_text(toml("[[guarantee]]", guarantee()))
    (finding,) = check(tmp_path / "gate.toml", tmp_path / "run.json").findings
    assert finding.answer is Answer.HOLDS
    assert finding.sentence.endswith("n 360)")


def test_one_broken_guarantee_breaks_the_gate_and_an_open_one_leaves_it_open(
    tmp_path: Path,
) -> None:
    holds, broken = guarantee(), guarantee(threat="adaptive")
    unknown = guarantee(min_n=1000)
    assert verdict(tmp_path, holds, holds).exit_code == 0
    assert verdict(tmp_path, holds, unknown).exit_code == 2
    assert verdict(tmp_path, holds, unknown, broken).exit_code == 1


def test_the_level_is_shared_among_guarantees(tmp_path: Path) -> None:
    maker = Maker().attack(0.05, attack="worst-case", **TRANSFER)
    near = guarantee(limit=0.15)
    assert verdict(tmp_path, near, maker=maker).exit_code == 0
    crowd = verdict(tmp_path, near, *[guarantee(limit=0.05)] * 19, maker=maker)
    assert crowd.findings[0].sentence.endswith("level that it shares with the other guarantees")


# --- the pinned baseline -----------------------------------------------------------------------


def pinned(
    folder: Path, sha256: str | None = None, maker: Maker | None = None, **changes: Any
) -> Path:
    result_file.write((maker or small()).file(), folder / "baseline.json")
    fields = {
        "file": "baseline.json",
        "sha256": sha256 or result_file.file_sha256(folder / "baseline.json"),
        **changes,
    }
    path = folder / "gate.toml"
    path.write_text(toml("[baseline]", fields) + "[baseline.tolerances]\nrank-1 = 0.1\nssim = 0.05")
    return path


def test_a_run_like_the_baseline_holds_and_a_worse_one_is_broken(tmp_path: Path) -> None:
    gate = pinned(tmp_path)
    assert check(gate, tmp_path / "baseline.json").answer is Answer.HOLDS
    worse = Maker().references().attack(0.6, attack="worst-case", **TRANSFER)
    worse.attack(0.9, attack="worst-case", **ADAPTIVE)
    result_file.write(worse.file(), tmp_path / "run.json")
    answers = {x.claim.name: x.answer for x in check(gate, tmp_path / "run.json").findings}
    name = "baseline: features / advface / worst-case / {} / rank-1 by dlib"
    assert answers[name.format("transfer")] is Answer.BROKEN
    assert answers[name.format("adaptive")] is Answer.HOLDS


def test_other_probes_or_missing_rows_cannot_be_compared(tmp_path: Path) -> None:
    gate = pinned(tmp_path)
    other = Maker(each=4).attack(0.05, attack="worst-case", **TRANSFER)
    result_file.write(other.file(), tmp_path / "run.json")
    sentences = [x.sentence for x in check(gate, tmp_path / "run.json").findings]
    assert any("The run's probes are not the baseline's" in x for x in sentences)
    assert any("The run lacks what the baseline has" in x for x in sentences)


def test_a_baseline_that_moved_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the pinned"):
        check(pinned(tmp_path, sha256="0" * 64), tmp_path / "baseline.json")


# --- power -------------------------------------------------------------------------------------

TOLERANCE = 0.05
RUNS = 200
PEOPLE, EACH = 225, 4


def simulated(rng: np.random.Generator, risk: float, loss: float) -> tuple[ResultFile, ResultFile]:
    """Return a baseline and a run that is worse by `risk` in rank-1 and by `loss` in accuracy.

    People differ: each has a rate of its own, and changes of the run cluster by person.
    """
    probes = PEOPLE * EACH
    rate = np.repeat(rng.beta(2, 4, PEOPLE), EACH)
    hits = rng.random(probes) < rate
    change = np.repeat(rng.beta(8, 2, PEOPLE) / 0.8, EACH)
    gained = ~hits & (rng.random(probes) < change * (risk + 0.02) / (1 - 1 / 3))
    lost = hits & (rng.random(probes) < 0.02 * 3)
    wrong = rng.random(2 * probes) < 0.03
    worse = ~wrong & (rng.random(2 * probes) < (loss + 0.01) / 0.97)
    better = wrong & (rng.random(2 * probes) < 0.01 / 0.03)
    made = []
    for identified, missed in ((hits, wrong), ((hits | gained) & ~lost, (wrong | worse) & ~better)):
        maker = Maker(people=PEOPLE, each=EACH, scored=False)
        maker.attack(identified, attack="worst-case", **ADAPTIVE).utility(missed, **ADVFACE)
        made.append(maker._file())
    return made[0], made[1]


def answered(risk: float, loss: float, seed: int, runs: int = RUNS) -> tuple[float, float]:
    """Return the shares of simulated runs that the gate calls broken, and that it lets pass."""
    rng = np.random.default_rng(seed)
    tolerances = {"rank-1": TOLERANCE, f"accuracy.{WAY}": TOLERANCE}
    baseline = Baseline(file=Path("x"), sha256="0" * 64, tolerances=tolerances)
    pairs = (simulated(rng, risk, loss) for _ in range(runs))
    codes = [judge(comparisons(baseline, *pair)).exit_code for pair in pairs]
    return codes.count(1) / runs, codes.count(0) / runs


def test_at_the_tolerance_the_gate_raises_few_false_alarms_and_lets_little_pass() -> None:
    broken, passed = answered(TOLERANCE, TOLERANCE, seed=1)
    assert broken <= 0.05 + 0.03
    assert passed <= 0.05 + 0.03


@pytest.mark.parametrize(
    ("risk", "loss", "runs"), [(2 * TOLERANCE, 0.0, RUNS), (0.0, 2 * TOLERANCE, RUNS // 4)]
)
def test_twice_the_tolerance_is_caught(risk: float, loss: float, runs: int) -> None:
    broken, passed = answered(risk, loss, seed=2, runs=runs)
    assert broken >= 0.95
    assert passed == 0


# --- what is told ------------------------------------------------------------------------------


def test_junit_markdown_and_annotations_carry_the_answers_and_no_markup(tmp_path: Path) -> None:
    tables = [guarantee(), guarantee(name=HOSTILE, threat="adaptive"), guarantee(min_n=1000)]
    found = verdict(tmp_path, *tables)
    suite = ElementTree.fromstring(junit(found))
    assert {name: suite.get(name) for name in ("tests", "failures", "errors")} == {
        "tests": "3",
        "failures": "1",
        "errors": "1",
    }
    (failed,) = suite.findall("testcase/failure/..")
    assert failed.get("name") == "]]><script>|`::error::x` %0A"
    told = github_annotations(found).splitlines()
    assert [line.split()[0] for line in told] == ["::error", "::warning"]
    assert told[0].startswith("::error title=broken%3A ]]><script>|`%3A%3Aerror%3A%3Ax` %250A::0.9")
    text = markdown_summary(found)
    assert text.count("\n| ") == 4
    assert "<script" not in text.replace("\\<", "")


def test_the_command_exits_with_the_answer_and_writes_both_files(tmp_path: Path) -> None:
    verdict(tmp_path, guarantee(threat="adaptive"))
    arguments = [str(tmp_path / name) for name in ("gate.toml", "run.json")]
    summary = tmp_path / "summary.md"
    done = CliRunner().invoke(
        app,
        ["gate", *arguments, "--out", str(tmp_path / "out")],
        env={"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)},
    )
    assert done.exit_code == 1
    assert "The gate: broken (0 hold, 1 broken, 0 inconclusive)." in done.output
    assert "::error title=broken%3A identities" in done.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gate.md", "gate.xml"]
    assert "Privacy gate: broken" in summary.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "guarantees nothing"),
        ("[[guarantee]", "cannot be read"),
        (toml("[[guarantee]]", guarantee(alpha=0.7)), r"guarantee\.0\.alpha: Input should be less"),
        (toml("[[guarantee]]", guarantee(limt=1)), r"guarantee\.0\.limt: Extra inputs"),
        (toml("[baseline]", {"file": "b", "sha256": "x"}), r"baseline\.sha256"),
    ],
)
def test_a_gate_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "gate.toml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        check(tmp_path / "gate.toml", tmp_path / "run.json")
    assert "\n" not in str(caught.value)


def test_the_example_tells_what_the_readme_says() -> None:
    folder = Path(reports.__file__).parent
    verdict = check(folder / "examples/gate.toml", folder / "published/results/demo.json.gz")
    first, second, third, *others = (finding.answer for finding in verdict.findings)
    assert (first, second, third) == (Answer.HOLDS, Answer.BROKEN, Answer.HOLDS)
    assert set(others) == {Answer.HOLDS}
    readme = (folder.parent / "README.md").read_text()
    for finding in verdict.findings[:3]:
        numbers, _, _ = finding.sentence.partition(" (")
        assert f"{finding.claim.name}: {numbers} (" in readme
    workflow = (folder / "examples/privacy-gate.yml").read_text()
    assert "veilbench gate gate.toml run --out gate" in workflow


# --- ratios of times ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fast", "rounds", "answer"),
    [
        (0.2, 50, Answer.HOLDS),
        (0.9, 50, Answer.BROKEN),
        (0.5, 50, Answer.INCONCLUSIVE),
        (0.2, 3, Answer.INCONCLUSIVE),
    ],
)
def test_a_ratio_of_benchmarks_is_a_guarantee(
    tmp_path: Path, fast: float, rounds: int, answer: Answer
) -> None:
    times = {"test_fast": fast, "test_slow": 1.0}
    benchmarks = [
        {"name": name, "stats": {"median": median, "iqr": 0.1 * median, "rounds": rounds}}
        for name, median in times.items()
    ]
    (tmp_path / "b.json").write_text(json.dumps({"benchmarks": benchmarks}))
    fields = {"name": "speed", "file": "b.json", "numerator": "test_fast", "limit": 0.5}
    path = tmp_path / "gate.toml"
    path.write_text(toml("[[ratio]]", {**fields, "denominator": "test_slow"}))
    result_file.write(small().file(), tmp_path / "run.json")
    assert check(path, tmp_path / "run.json").answer is answer
    path.write_text(toml("[[ratio]]", {**fields, "denominator": "test_gone"}))
    with pytest.raises(UserError, match=r"b\.json cannot be used \(KeyError: 'test_gone'\)"):
        check(path, tmp_path / "run.json")
