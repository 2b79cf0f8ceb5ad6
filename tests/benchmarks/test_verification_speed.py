"""Speed of verification as ratios to the usual way, both timed in the same run.

Run with `pytest tests/benchmarks --benchmark-only`; the ratios are in the report's extra info.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache, partial
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from ijb_sized import TEMPLATES, TemplateList, image_features, template_list
from sklearn.metrics import roc_curve

from bench.metrics.all_pairs import all_pairs
from bench.metrics.templates import pair_scores, pool_templates
from bench.metrics.verification import tar_at_far

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from pytest_benchmark.fixture import BenchmarkFixture

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
PAIRS_PER_BATCH = 100_000
SHARE = 0.1  # of the list, for the slow way


def compare(
    benchmark: BenchmarkFixture,
    usual: Callable[[], Any],
    ours: Callable[[], Any],
    rounds: int,
    usual_share: float = 1,
) -> float:
    """Return how many times longer the usual way takes: the median over interleaved runs.

    `usual` may do only a share of the work of `ours`.
    """
    ratios = []

    def once() -> None:
        start = perf_counter()
        usual()
        middle = perf_counter()
        ours()
        ratios.append((middle - start) / usual_share / (perf_counter() - middle))

    ours()
    for _ in range(rounds):
        once()
    benchmark.extra_info["ratio"] = round(median(ratios), 2)
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.pedantic(ours, rounds=1)
    return median(ratios)


def peak_above_inputs(action: Callable[[], Any]) -> float:
    """Return by how many MB an action raises the resident memory at its peak (Linux)."""

    def megabytes(field: str) -> float:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) / 1e3 for line in status if line.startswith(field))

    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before = megabytes("VmRSS")
    action()
    return megabytes("VmHWM") - before


@pytest.fixture(scope="module")
def ijb() -> TemplateList:
    return template_list()


@pytest.fixture(scope="module")
def ijb_scores(ijb: TemplateList) -> npt.NDArray[np.float32]:
    return pair_scores(ijb.embeddings, ijb.left, ijb.right)


def test_tar_at_six_fars(
    benchmark: BenchmarkFixture, ijb: TemplateList, ijb_scores: npt.NDArray[np.float32]
) -> None:
    def nearest_on_the_curve() -> list[float]:
        """The lines that insightface, TFace and FaceX-Zoo share."""
        fpr, tpr, _ = roc_curve(ijb.same, ijb_scores)
        fpr, tpr = np.flipud(fpr), np.flipud(tpr)
        return [tpr[min(zip(abs(fpr - x), range(len(fpr)), strict=True))[1]] for x in FARS]

    def ours() -> list[Any]:
        return tar_at_far(ijb_scores[ijb.same], ijb_scores[~ijb.same], FARS)

    assert compare(benchmark, nearest_on_the_curve, ours, rounds=3) >= 50
    assert all(point.achieved_far <= point.far for point in ours())


def test_scores_of_listed_pairs(
    benchmark: BenchmarkFixture, ijb: TemplateList, ijb_scores: npt.NDArray[np.float32]
) -> None:
    some = slice(0, int(SHARE * len(ijb.left)))

    def gather_multiply_sum() -> None:
        left, right = ijb.left[some], ijb.right[some]
        for start in range(0, len(left), PAIRS_PER_BATCH):
            batch = slice(start, start + PAIRS_PER_BATCH)
            np.sum(ijb.embeddings[left[batch]] * ijb.embeddings[right[batch]], axis=1)

    ours = partial(pair_scores, ijb.embeddings, ijb.left, ijb.right)
    assert compare(benchmark, gather_multiply_sum, ours, rounds=3, usual_share=SHARE) >= 6
    peak = peak_above_inputs(ours)
    benchmark.extra_info["peak MB above the inputs"] = round(peak)
    assert peak <= 600
    checked = np.append(np.arange(0, len(ijb.left), 50), np.flatnonzero(ijb.same))
    pairs = ijb.embeddings[ijb.left[checked]], ijb.embeddings[ijb.right[checked]]
    exact = np.vecdot(*pairs, dtype=np.float64)
    assert np.abs(ijb_scores[checked] - exact).max() <= 2e-7


def test_template_pooling(benchmark: BenchmarkFixture) -> None:
    features, templates, media = image_features()

    def image_by_image() -> npt.NDArray[np.float32]:
        """The loop of insightface's image2template_feature."""
        pooled = np.empty((TEMPLATES, features.shape[1]), np.float32)
        for row, template in enumerate(np.unique(templates)):
            (mine,) = np.where(templates == template)
            images, own_media = features[mine], media[mine]
            means = []
            for medium, count in zip(*np.unique(own_media, return_counts=True), strict=True):
                (same,) = np.where(own_media == medium)
                mean = images[same] if count == 1 else images[same].mean(axis=0, keepdims=True)
                means.append(mean)
            pooled[row] = np.sum(np.concatenate(means), axis=0)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

    ours = partial(pool_templates, features, templates, media)
    assert np.abs(ours().embeddings - image_by_image()).max() < 1e-6
    assert compare(benchmark, image_by_image, ours, rounds=3) >= 15


@cache
def crowd(count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Embeddings (count, 512), ten images per person."""
    rng = np.random.default_rng(0)
    identities = np.arange(count) % (count // 10)
    centres = rng.standard_normal((count // 10, 512), dtype=np.float32)
    noise = rng.standard_normal((count, 512), dtype=np.float32)
    return 0.7 * centres[identities] + noise, identities


def bare_products(embeddings: npt.NDArray[np.float32]) -> None:
    """Multiply the upper triangle in float32 blocks of 4096 and do nothing with it."""
    vectors = torch.from_numpy(embeddings)
    space = torch.empty(4096 * 4096)
    for row in range(0, len(vectors), 4096):
        for column in range(row, len(vectors), 4096):
            left, right = vectors[row : row + 4096], vectors[column : column + 4096]
            out = space[: len(left) * len(right)].view(len(left), len(right))
            torch.mm(left, right.T, out=out)


@pytest.mark.parametrize("count", [10_000, 20_000, 40_000])
def test_all_pairs_against_the_bare_products(benchmark: BenchmarkFixture, count: int) -> None:
    usual, ours = partial(bare_products, crowd(count)[0]), partial(all_pairs, *crowd(count), FARS)
    ratio = 1 / compare(benchmark, usual, ours, rounds=3)
    benchmark.extra_info["time over bare products"] = round(ratio, 2)
    if count == 40_000:
        assert ratio <= 1.6


@pytest.mark.parametrize("far", [1e-3, 1e-4, 1e-6])
def test_screened_pairs_against_the_bare_products(benchmark: BenchmarkFixture, far: float) -> None:
    embeddings, identities = crowd(40_000)
    if all_pairs(embeddings, identities, far).certificate.screen != "int8":
        pytest.skip("8-bit products are not faster on this processor")
    usual, ours = partial(bare_products, embeddings), partial(all_pairs, *crowd(40_000), far)
    ratio = 1 / compare(benchmark, usual, ours, rounds=3)
    benchmark.extra_info["time over bare products"] = round(ratio, 2)
    assert ratio <= 0.7


def test_all_pairs_of_forty_thousand_stay_below_a_gigabyte(benchmark: BenchmarkFixture) -> None:
    program = (
        "import numpy as np\n"
        "from bench.metrics.all_pairs import all_pairs\n"
        "faces = np.random.default_rng(0).standard_normal((40_000, 512), dtype=np.float32)\n"
        f"all_pairs(faces, np.arange(40_000) // 10, {FARS})\n"
        "print(open('/proc/self/status').read())\n"
    )

    def megabytes() -> float:
        status = subprocess.check_output([sys.executable, "-c", program], text=True)
        return int(status.split("VmHWM:")[1].split()[0]) / 1e3

    peak = benchmark.pedantic(megabytes, rounds=1)
    benchmark.extra_info["peak MB"] = round(peak)
    assert peak <= 1000


def test_all_pairs_of_a_hundred_thousand_complete(benchmark: BenchmarkFixture) -> None:
    embeddings, identities = crowd(100_000)
    start = perf_counter()
    bare_products(embeddings)
    middle = perf_counter()
    result = benchmark.pedantic(all_pairs, args=(embeddings, identities, FARS), rounds=1)
    ratio = (perf_counter() - middle) / (middle - start)
    benchmark.extra_info["time over bare products"] = round(ratio, 2)
    assert result.points[-1].false_accepts == 4999
    assert result.points[-1].impostors == 4_999_500_000
