"""From reconstructions to numbers, on faces that are plain colors and a scene counted by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stand_ins import Means
from torch import Tensor

from bench.cell import Cells
from bench.datasets.base import PairList, Split
from bench.scoring import (
    Scorer,
    Values,
    to_bytes,
    verification_scores,
    worst_case,
)

if TYPE_CHECKING:
    from bench.world import World

PEOPLE = np.array(["Ann", "Ann", "Ann", "Bob", "Bob", "Cid", "Cid", "Dan"])
HUES = torch.tensor(
    # Photos of a person differ little; people differ by hue.
    [[9, 1, 1], [9, 2, 1], [8, 1, 2], [1, 9, 1], [2, 9, 1], [1, 1, 9], [1, 2, 9], [9, 9, 1]]
).float()
PHOTOS = (HUES / 10)[:, :, None, None].expand(-1, -1, 112, 112)
THRESHOLD = 0.9


def indices(*photos: int) -> NDArray[np.intp]:
    return np.array(photos, dtype=np.intp)


def split(**changes: Any) -> Split:
    """Two of Ann's photos and one of Bob's leak; everyone is enrolled with another photo."""
    roles: dict[str, Any] = {
        "defender": indices(7),
        "attacker": indices(),
        "probes": indices(0, 1, 3),
        "mates": (indices(1, 2), indices(0, 2), indices(4)),
        "gallery": indices(2, 4, 5, 7),
        "calibration": indices(5, 6, 7),
        "pairs": PairList(indices(), indices(), np.array([], bool), indices()),
    }
    return Split(**roles | changes)


@dataclass
class Scene:
    """What a scorer reads of a world."""

    split: Split = field(default_factory=split)
    supported: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.judges = {"hue": Means(), "second": Means()}
        self.suite = SimpleNamespace(recognizer=SimpleNamespace(name="hue", label="hue"))

    def images(self, photos: NDArray[np.intp]) -> Tensor:
        return PHOTOS[photos]

    def identities(self, photos: NDArray[np.intp]) -> NDArray[np.str_]:
        return PEOPLE[photos]

    def embeddings(self, judge: str, photos: NDArray[np.intp]) -> Tensor:
        return self.judges[judge].embed(PHOTOS[photos])

    def operating_point(self, judge: str) -> SimpleNamespace:
        return SimpleNamespace(threshold=THRESHOLD, supported=self.supported)


def scored(shown_photos: NDArray[np.intp], shown: Any = None, **changes: Any) -> Values:
    """Score photos that stand where reconstructions would."""
    scorer = Scorer(Scene(split(**changes)))  # type: ignore[arg-type]
    return scorer.probe_values(to_bytes(PHOTOS[shown_photos]), shown)


def cosine(one: int, other: int) -> float:
    return float(torch.cosine_similarity(HUES[one], HUES[other], dim=0))


# --- values per probe ---------------------------------------------------------------------------


def test_perfect_reconstructions() -> None:
    values = scored(indices(0, 1, 3))
    assert values["ssim"].tolist() == pytest.approx([1, 1, 1])
    assert values["ssim-luma"].tolist() == pytest.approx([1, 1, 1])
    assert values["mse"].tolist() == [0, 0, 0]
    assert np.isinf(values["psnr"]).all()
    assert values["st-lpips"].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert values["hue/similarity"].tolist() == pytest.approx([1, 1, 1], abs=1e-4)
    for metric in ("sar-1", "sar-2", "rank-1"):
        assert values[f"hue/{metric}"].tolist() == [1, 1, 1]
        assert np.array_equal(values[f"second/{metric}"], values[f"hue/{metric}"])


def test_another_person_is_rejected_and_names_nobody() -> None:
    values = scored(indices(5, 5, 5))
    expected = [cosine(5, probe) for probe in (0, 1, 3)]
    assert values["hue/similarity"].tolist() == pytest.approx(expected, abs=5e-3)
    for metric in ("sar-1", "sar-2", "rank-1"):
        assert values[f"hue/{metric}"].tolist() == [0, 0, 0]
    # Mean squared error of 8-bit pixels, by hand: three channels, 25.5 levels per tenth.
    difference = (25.5 * (HUES[5] - HUES[0])).square().mean()
    assert values["mse"][0] == pytest.approx(float(difference), rel=0.02)
    assert values["psnr"][0] == pytest.approx(10 * math.log10(255**2 / values["mse"][0]), rel=1e-6)


def test_type_two_acceptance_is_the_share_of_mates_and_never_of_the_probe() -> None:
    # A color that Ann's photo 2 accepts and photos 0 and 1 do not.
    color = torch.tensor([4.0, 1.0, 4.5])
    likeness = [float(torch.cosine_similarity(color, HUES[photo], dim=0)) for photo in (0, 1, 2)]
    threshold = (max(likeness[:2]) + likeness[2]) / 2
    scene = Scene()
    scene.operating_point = lambda judge: SimpleNamespace(threshold=threshold, supported=True)  # type: ignore[method-assign]
    made = (color / 10)[None, :, None, None].expand(3, 3, 112, 112)
    values = Scorer(scene).probe_values(to_bytes(made))  # type: ignore[arg-type]
    assert values["hue/sar-1"].tolist() == [0, 0, 0]
    assert values["hue/sar-2"].tolist() == [0.5, 0.5, 0]


def test_a_reference_is_not_matched_with_the_photo_that_it_shows() -> None:
    # Photo 2 is enrolled: the probes that are shown by it have no rank, and one mate less.
    shown = indices(2, 0, 4)
    values = scored(shown, shown, gallery=indices(2, 3, 5, 7))
    assert values["hue/rank-1"].tolist()[1:] == [1, 1]
    assert math.isnan(values["hue/rank-1"][0])
    assert values["hue/sar-2"][:2].tolist() == [1, 1]
    assert math.isnan(values["hue/sar-2"][2])
    assert values["hue/sar-1"].tolist() == [1, 1, 1]
    # The very same images as reconstructions of an attack count in full.
    values = scored(shown, None, gallery=indices(2, 3, 5, 7))
    assert values["hue/rank-1"].tolist() == [1, 1, 1]
    assert values["hue/sar-2"].tolist() == [1, 1, 1]


def test_a_probe_without_mates_has_no_type_two_acceptance() -> None:
    values = scored(indices(0, 1, 3), None, mates=(indices(1, 2), indices(0, 2), indices()))
    assert values["hue/sar-2"].tolist()[:2] == [1, 1]
    assert math.isnan(values["hue/sar-2"][2])


def test_rank_one_must_beat_everybody_and_a_tie_is_a_miss() -> None:
    # Bob's photo 3 stands in the gallery once more as somebody else's.
    gallery = indices(2, 3, 5, 7)
    scene = Scene(split(gallery=gallery))
    people = {**dict(enumerate(PEOPLE)), 7: "Dan"}
    assert people[7] != "Bob"
    scene.embeddings = lambda judge, photos: scene.judges[judge].embed(  # type: ignore[method-assign]
        PHOTOS[np.where(photos == 7, 3, photos)]
    )
    values = Scorer(scene).probe_values(to_bytes(PHOTOS[[0, 1, 3]]))  # type: ignore[arg-type]
    assert values["hue/rank-1"].tolist() == [1, 1, 0]


def test_reconstructions_are_compared_as_eight_bits() -> None:
    assert to_bytes(torch.tensor([0.0, 0.4999 / 255, 0.5001 / 255, 1.0])).tolist() == [0, 0, 1, 255]
    assert to_bytes(torch.tensor([-0.1, 1.2])).tolist() == [0, 255]


# --- rows ---------------------------------------------------------------------------------------


def rows(scene: Scene, values: Values) -> dict[tuple[str | None, str], Any]:
    found = Scorer(scene).scores(values)  # type: ignore[arg-type]
    return {(score.judge, score.metric): score for score in found}


def test_a_row_is_the_mean_over_identities_probes_with_its_count() -> None:
    table = rows(Scene(), scored(indices(0, 5, 3)))
    similarity = table["hue", "similarity"].estimate
    assert similarity.value == pytest.approx((1 + cosine(5, 1) + 1) / 3, abs=1e-3)
    assert similarity.n == 3
    assert similarity.low < similarity.value
    sar = table["hue", "sar-1"].estimate
    assert sar.value == pytest.approx(2 / 3)
    assert sar.low <= sar.value <= sar.high


def test_rows_name_definition_judge_and_flags() -> None:
    table = rows(Scene(supported=False), scored(indices(0, 1, 3)))
    assert table[None, "ssim"].definition == "ssim:wang11-valid-rgb"
    assert table[None, "ssim"].flags == ()
    assert table["hue", "sar-1"].flags == ("indicative-fmr", "target-judge")
    assert table["second", "sar-2"].flags == ("indicative-fmr",)
    assert table["second", "rank-1"].flags == ("gallery=4",)
    assert "indicative-fmr" not in rows(Scene(), scored(indices(0, 1, 3)))["hue", "sar-1"].flags


def test_probes_without_a_value_are_not_counted() -> None:
    shown = indices(2, 0, 4)
    values = scored(shown, shown)
    table = rows(Scene(), values)
    assert np.isnan(values["hue/rank-1"]).sum() == 2
    assert table["hue", "rank-1"].estimate.n == 1
    everything = {key: np.full(3, np.nan) for key in values}
    empty = rows(Scene(), everything)["hue", "sar-2"].estimate
    assert empty.n == 0
    assert math.isnan(empty.value)


# --- the worst case -----------------------------------------------------------------------------


def test_the_worst_case_takes_the_best_attack_per_probe_and_metric() -> None:
    one = {"ssim": [0.1, 0.9], "mse": [5, 1], "st-lpips": [0.4, 0.2], "hue/rank-1": [1, 0]}
    other = {"ssim": [0.5, 0.2], "mse": [9, 0], "st-lpips": [0.1, 0.3], "hue/rank-1": [0, 0]}
    found = worst_case(
        {key: np.array(v, float) for key, v in cell.items()} for cell in (one, other)
    )
    assert {key: column.tolist() for key, column in found.items()} == {
        "ssim": [0.5, 0.9],
        "mse": [5, 0],
        "st-lpips": [0.1, 0.2],
        "hue/rank-1": [1, 0],
    }


def test_the_worst_case_of_one_attack_is_that_attack() -> None:
    values = {"psnr": np.array([3.0, np.nan]), "hue/similarity": np.array([-0.5, 0.5])}
    found = worst_case([values])
    assert all(np.array_equal(found[key], values[key], equal_nan=True) for key in values)


def test_the_floor_of_a_worst_case_went_through_the_same_maximum(world: World) -> None:
    cells = Cells(world)
    _, best = cells.guesses(3)
    draws = [cells.reference("other-person", draw)[1] for draw in range(3)]
    single = [values["sface/similarity"] for values in draws]
    assert not np.array_equal(single[0], single[1])
    # Attacks that know nothing, each at the floor: their best of three is far above it.
    naive = worst_case(draws)["sface/similarity"]
    assert naive.mean() > max(values.mean() for values in single)
    assert (best["sface/similarity"] >= naive).all()
    mean_face = cells.reference("mean-face")[1]["ssim"]
    assert np.array_equal(best["ssim"], np.maximum(mean_face, worst_case(draws)["ssim"]))


# --- utility ------------------------------------------------------------------------------------


def utility_rows(
    scores: list[float], same: list[int], folds: list[int], people: list[str]
) -> dict[str, Any]:
    left, right = np.array([pair[0] for pair in people]), np.array([pair[1] for pair in people])
    found = verification_scores(
        np.array(scores), np.array(same, bool), np.array(folds), (left, right), "stored-vs-fresh"
    )
    return {score.metric: score for score in found}


def test_verification_by_hand() -> None:
    # Two folds of two genuine and two impostor pairs; one genuine pair of fold 1 scores low.
    scores = [0.9, 0.8, 0.1, 0.2, 0.9, 0.4, 0.1, 0.2]
    same = [1, 1, 0, 0, 1, 1, 0, 0]
    people = ["AA", "BB", "AB", "BA", "CC", "DD", "CD", "DC"]
    table = utility_rows(scores, same, [0, 0, 0, 0, 1, 1, 1, 1], people)
    accuracy = table["accuracy.stored-vs-fresh"]
    # Fold 0 sets the threshold to .5 for fold 1, which fails there once; .3 serves fold 0.
    assert accuracy.estimate.value == pytest.approx(7 / 8)
    assert accuracy.flags == ("folds=2",)
    assert table["eer.stored-vs-fresh"].estimate.value == 0
    # Four impostors support no FAR below 1/4: no operating point at all.
    assert not [metric for metric in table if metric.startswith("tar@")]


def test_tar_is_reported_at_the_fars_that_the_impostors_support() -> None:
    generator = np.random.default_rng(0)
    impostors = generator.uniform(0, 0.5, 1000)
    genuine = generator.uniform(0.4, 1, 200)
    scores = [*genuine, *impostors]
    same = [1] * 200 + [0] * 1000
    people = ["".join(generator.choice(list("ABCDEFGH"), 2)) for _ in scores]
    table = utility_rows(scores, same, [i % 2 for i in range(1200)], people)
    supported = {metric for metric in table if metric.startswith("tar@")}
    assert "tar@far=0.1.stored-vs-fresh" in supported
    assert "tar@far=1e-05.stored-vs-fresh" not in supported
    # At FAR .1 at most 100 of 1000 impostors are above the threshold.
    threshold = np.sort(impostors)[-101]
    expected = (genuine > threshold).mean()
    assert table["tar@far=0.1.stored-vs-fresh"].estimate.value == pytest.approx(expected)


def test_pairs_outside_the_folds_count_for_rates_and_not_for_accuracy() -> None:
    scores = [0.9, 0.1, 0.9, 0.1, 0.95, 0.05]
    same = [1, 0, 1, 0, 0, 1]
    people = ["AA", "AB", "CC", "CD", "AC", "DD"]
    table = utility_rows(scores, same, [0, 0, 1, 1, -1, -1], people)
    assert table["accuracy.stored-vs-fresh"].estimate.value == 1
    assert table["accuracy.stored-vs-fresh"].estimate.n == 4
    assert table["eer.stored-vs-fresh"].estimate.value > 0.3
    assert table["eer.stored-vs-fresh"].estimate.n == 6
