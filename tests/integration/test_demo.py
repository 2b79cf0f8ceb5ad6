"""The main job as a newcomer runs it: `veilbench run demo`, on real faces, then once more."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.results import Row, read

Find = Callable[..., Row]


def run_demo(folder: Path) -> None:
    command = [sys.executable, "-m", "bench.cli", "run", "demo", "--quiet", "--device", "cpu"]
    subprocess.run(
        [*command, "--out", str(folder / "out"), "--store", str(folder / "store")], check=True
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    run_demo(folder)
    return folder


@pytest.fixture(scope="module")
def find(demo: Path) -> Find:
    rows = read(demo / "out")

    def pick(**wanted: object) -> Row:
        found = [r for r in rows if all(getattr(r, name) == v for name, v in wanted.items())]
        assert len(found) == 1, (wanted, len(found))
        return found[0]

    return pick


def test_no_cell_fails_and_every_privacy_number_has_an_interval(demo: Path) -> None:
    rows = read(demo / "out")
    assert {row.status for row in rows} == {"ok"}
    for row in rows:
        if row.attack and row.value is not None:
            assert row.n > 0
            assert row.ci_low is not None
            assert row.ci_high is not None
            assert row.ci_low <= row.value <= row.ci_high


def value(find: Find, **wanted: object) -> float:
    found = find(**wanted).value
    assert found is not None
    return found


def ssim(find: Find, defense: str, threat: str) -> float:
    about = {"leak": "features", "defense": defense, "attack": "unet", "threat": threat}
    return value(find, **about, metric="ssim")


def test_undefended_maps_give_the_face_away(find: Find) -> None:
    floor = value(find, attack="mean-face", metric="ssim")
    assert ssim(find, "none", "transfer") > floor + 0.35
    assert value(find, defense="none", attack="unet", judge="dlib", metric="rank-1") >= 0.95


def test_advface_stops_only_who_does_not_know_it(find: Find) -> None:
    assert ssim(find, "advface", "transfer") <= 0.65
    assert ssim(find, "advface", "adaptive") >= 0.88


def test_random_signs_of_the_same_size_protect_almost_nothing(find: Find) -> None:
    assert ssim(find, "sign-noise", "transfer") > ssim(find, "none", "transfer") - 0.1


def unaware(find: Find, attack: str, metric: str, judge: str | None = None) -> float:
    about = {"defense": "advface", "attack": attack, "threat": "transfer"}
    return value(find, **about, metric=metric, judge=judge)


def test_the_recognizers_own_tail_breaks_advface_unseen_by_ssim(find: Find) -> None:
    floor = value(find, attack="mean-face", metric="ssim")
    chance = value(find, attack="other-person", metric="rank-1", judge="dlib")
    assert unaware(find, "gradient", "rank-1", "sface") >= 0.75
    assert unaware(find, "gradient", "rank-1", "dlib") >= chance + 0.15
    assert unaware(find, "gradient", "ssim") <= floor + 0.05


def test_what_the_tail_reads_first_breaks_advface_for_who_knows_nothing_of_it(find: Find) -> None:
    assert unaware(find, "feasibility", "ssim") >= unaware(find, "unet", "ssim") + 0.3
    assert unaware(find, "feasibility", "rank-1", "sface") >= 0.8
    assert unaware(find, "feasibility", "rank-1", "dlib") >= 0.8


def test_a_black_looking_transmission_is_one_matrix_product_away(find: Find) -> None:
    assert value(find, defense="dct-drop-dc", attack="dct-inverse", metric="ssim") >= 0.99


def test_a_key_that_is_unknown_keeps_a_biohash_at_the_floor(find: Find) -> None:
    about = {"defense": "biohash", "attack": "worst-case", "threat": "adaptive"}
    assert value(find, **about, metric="sar-1", judge="sface") <= 0.2


def test_an_adaptive_attacker_is_never_weaker(find: Find) -> None:
    for metric, judge in (("rank-1", "sface"), ("rank-1", "dlib"), ("ssim", None)):
        adaptive, transfer = (
            find(defense="advface", attack="unet", threat=threat, metric=metric, judge=judge)
            for threat in ("adaptive", "transfer")
        )
        assert adaptive.value is not None
        assert transfer.value is not None
        assert adaptive.value >= transfer.value
        assert "weaker" not in adaptive.flags


def test_advface_stores_five_and_a_third_images(find: Find) -> None:
    assert find(defense="advface", metric="storage-factor").value == pytest.approx(16 / 3)


def test_ceiling_and_floor(find: Find) -> None:
    assert value(find, attack="original", metric="ssim") == 1
    assert value(find, attack="original", metric="rank-1", judge="sface") >= 0.95
    assert value(find, attack="mean-face", metric="sar-1", judge="dlib") <= 0.05
    photo = value(find, attack="same-person-other-photo", metric="rank-1", judge="sface")
    assert photo >= 0.9


GATE = """
[[guarantee]]
name = "AdvFace keeps reconstructions unlike the face"
defense = "advface"
leak = "features"
attack = "unet"
threat = "{threat}"
metric = "ssim"
direction = "below"
limit = 0.65
"""


@pytest.mark.parametrize(("threat", "code"), [("transfer", 0), ("adaptive", 1)])
def test_a_gate_on_advface_passes_only_while_nobody_knows_it(
    demo: Path, tmp_path: Path, threat: str, code: int
) -> None:
    (tmp_path / "gate.toml").write_text(GATE.format(threat=threat))
    arguments = ["gate", str(tmp_path / "gate.toml"), str(demo / "out")]
    assert CliRunner().invoke(app, arguments).exit_code == code


def test_the_run_packs_into_a_file_that_passes_every_check(demo: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "demo.json.gz")
    assert CliRunner().invoke(app, ["submit", str(demo / "out"), "--out", path]).exit_code == 0
    done = CliRunner().invoke(app, ["submit", "--check", path])
    assert done.exit_code == 0, done.output
    assert "FAIL" not in done.output


def test_a_rerun_computes_nothing_and_says_the_same(demo: Path) -> None:
    def state() -> dict[str, int]:
        files = [*(demo / "store").rglob("*.safetensors"), demo / "out" / "run.json"]
        files += (demo / "out" / "report").rglob("*")
        return {str(path): path.stat().st_mtime_ns for path in files}

    before, rows = state(), read(demo / "out")
    run_demo(demo)
    assert state() == before
    assert read(demo / "out") == rows


def test_the_folder_holds_what_the_design_names(demo: Path) -> None:
    out = demo / "out"
    about = json.loads((out / "run.json").read_text())
    assert about["suite"]["name"] == "demo"
    assert (out / "results.csv").is_file()
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert "advface" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    for cell in (out / "cells").iterdir():
        assert (cell / "cell.json").is_file()
        assert (cell / "values.csv").is_file()
