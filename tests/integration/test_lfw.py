"""The reference setting on Labeled Faces in the Wild, at a size that CI can run."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.plan import Suite, parse_suite
from bench.results import Row
from bench.run import run_suite
from bench.store import Store


def small_lfw() -> Suite:
    return parse_suite(
        {
            "name": "lfw-small",
            "title": "LFW at the size of a test",
            "dataset": "lfw",
            "recognizer": {"name": "sface"},
            "split": {
                "pairs_per_fold": 6,
                "probes": 30,
                "attacker_images": 320,
                "defender_images": 200,
                "gallery_people": 40,
            },
            "group": [
                {
                    "leak": "features",
                    "defenses": [{"name": "none"}, {"name": "sign-noise", "eps": 0.6}],
                    "attacks": [{"name": "unet", "steps": 120, "threats": ["transfer"]}],
                },
                {
                    "leak": "features",
                    "defenses": [{"name": "advface", "eps": 0.6, "shadow_steps": 80}],
                    "attacks": [
                        {"name": "unet", "steps": 120, "threats": ["transfer", "adaptive"]}
                    ],
                },
                {
                    "leak": "image",
                    "defenses": [{"name": "dct-drop-dc"}],
                    "attacks": [{"name": "dct-inverse", "threats": ["adaptive"]}],
                },
            ],
        },
        "in the test",
    )


@pytest.fixture(scope="module")
def rows(lfw_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    folder = tmp_path_factory.mktemp("lfw")
    outcome = run_suite(
        small_lfw(),
        folder / "out",
        Store(folder / "store"),
        device="cpu",
        data_root=lfw_root,
        quiet=True,
    )
    assert outcome.failed == 0
    return outcome.rows


def value(rows: list[Row], defense: str | None, attack: str, metric: str, threat: str) -> float:
    (row,) = [
        r
        for r in rows
        if (r.defense, r.attack, r.metric, r.threat) == (defense, attack, metric, threat)
    ]
    assert row.value is not None
    return row.value


def test_the_undefended_map_is_an_image(rows: list[Row]) -> None:
    assert value(rows, "none", "unet", "ssim", "transfer") >= 0.95


def test_advface_falls_to_whoever_trains_on_it(rows: list[Row]) -> None:
    assert value(rows, "advface", "unet", "ssim", "transfer") <= 0.65
    assert value(rows, "advface", "unet", "ssim", "adaptive") >= 0.88


def test_random_signs_protect_almost_nothing(rows: list[Row]) -> None:
    assert value(rows, "sign-noise", "unet", "ssim", "transfer") >= 0.9


def test_least_squares_undoes_the_block_dct(rows: list[Row]) -> None:
    assert value(rows, "dct-drop-dc", "dct-inverse", "ssim", "adaptive") >= 0.97
