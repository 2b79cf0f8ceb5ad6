from __future__ import annotations

import importlib
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import MetricError
from bench.metrics import bands, population, screening
from bench.metrics.arrays import TIE
from bench.metrics.intervals import false_match_rate, tar_statistic
from bench.metrics.screening import Float32Screen, Int8Screen, Screen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.metrics.all_pairs import AllPairs
    from bench.metrics.arrays import Doubles, Floats, Integers

    Crowd = tuple[Floats, Integers, Doubles, Doubles]

module = importlib.import_module("bench.metrics.all_pairs")  # the package shows the function
all_pairs = module.all_pairs

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def faces(
    count: int, dimension: int = 32, people: int | None = None, seed: int = 0, spread: float = 1.0
) -> tuple[Floats, Integers]:
    """Embeddings around a centre per person, in shuffled order."""
    rng = np.random.default_rng(seed)
    identities = rng.integers(0, people or count // 5, count)
    centres = rng.normal(size=(identities.max() + 1, dimension))
    noise = rng.normal(size=(count, dimension))
    return (centres[identities] + spread * noise).astype(np.float32), identities


def codes(count: int, dimension: int = 16, seed: int = 0) -> tuple[Floats, Integers]:
    """Signs with a few flips: cosines take 17 values."""
    embeddings, identities = faces(count, dimension, seed=seed)
    return np.sign(embeddings), identities


def full_sort(embeddings: Floats, identities: Integers) -> tuple[Doubles, Doubles]:
    """Genuine and impostor scores, all at once, in float64."""
    vectors = embeddings.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1)
    rows = np.triu_indices(len(vectors), 1)
    cosines = (vectors @ vectors.T / np.outer(norms, norms))[rows]
    scores = np.rint(cosines / TIE) * TIE
    same = identities[rows[0]] == identities[rows[1]]
    return scores[same], np.sort(scores[~same])[::-1]


def expected_points(
    genuine: Doubles, descending: Doubles, fars: Sequence[float]
) -> Iterator[tuple[float, int, float]]:
    for far in fars:
        k = int(Fraction(str(far)) * len(descending))
        tau = descending[k] if k < len(descending) else -np.inf
        yield tau, int(np.count_nonzero(descending > tau)), float(np.mean(genuine > tau))


def found_points(result: AllPairs) -> list[tuple[float, int, float]]:
    return [(p.threshold, p.false_accepts, p.tar) for p in result.points]


@pytest.fixture(scope="module")
def crowd() -> Crowd:
    embeddings, identities = faces(2000)
    return embeddings, identities, *full_sort(embeddings, identities)


@pytest.fixture(params=["float32", "int8"])
def screen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Screen]:
    """Each screen in turn, whatever would be faster."""
    chosen = {"float32": Float32Screen, "int8": Int8Screen}[request.param]
    monkeypatch.setattr(module, "_WORTH_A_TRIAL", 0)
    monkeypatch.setattr(module, "_fastest_screen", lambda *_: chosen)
    return chosen


@pytest.fixture
def short_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands in the middle at every target but the smallest, as in large populations."""
    monkeypatch.setattr(module, "_FEW", 0)


class TestEqualsTheFullSort:
    def test_two_thousand_images(self, crowd: Crowd, screen: type[Screen]) -> None:
        embeddings, identities, genuine, descending = crowd
        result = all_pairs(embeddings, identities, FARS)
        assert found_points(result) == list(expected_points(genuine, descending, FARS))
        assert result.certificate.screen == screen.name
        assert result.certificate.passes == 1

    @pytest.mark.usefixtures("short_lists")
    def test_counted_targets(self, crowd: Crowd, screen: type[Screen]) -> None:
        embeddings, identities, genuine, descending = crowd
        result = all_pairs(embeddings, identities, FARS)
        assert found_points(result) == list(expected_points(genuine, descending, FARS))
        assert result.certificate.scored < len(descending) / (20 if screen is Float32Screen else 1)
        for bracket in result.certificate.brackets:
            inside = (descending > bracket.low) & (descending <= bracket.high)
            assert bracket.above == np.count_nonzero(descending > bracket.high)
            assert bracket.inside == np.count_nonzero(inside)
            assert bracket.above <= bracket.rank < bracket.above + bracket.inside

    @pytest.mark.usefixtures("screen", "short_lists")
    @pytest.mark.parametrize("pending", [100, 10**6])
    def test_ties_by_the_thousand(self, monkeypatch: pytest.MonkeyPatch, pending: int) -> None:
        monkeypatch.setattr(bands, "_PENDING", pending)
        embeddings, identities = codes(1500)
        genuine, descending = full_sort(embeddings, identities)
        result = all_pairs(embeddings, identities, FARS)
        assert found_points(result) == list(expected_points(genuine, descending, FARS))
        assert result.certificate.passes == 1

    @pytest.mark.usefixtures("screen")
    @pytest.mark.parametrize("dimension", [2, 3, 17, 130])
    def test_any_dimension(self, dimension: int) -> None:
        embeddings, identities = faces(300, dimension)
        genuine, descending = full_sort(embeddings, identities)
        result = all_pairs(embeddings, identities, FARS)
        assert found_points(result) == list(expected_points(genuine, descending, FARS))

    @pytest.mark.usefixtures("short_lists")
    def test_embeddings_that_forget_the_person(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bands, "_PENDING", 1000)
        embeddings = np.tile(np.random.default_rng(0).normal(size=7), (300, 1))
        result = all_pairs(embeddings, np.arange(300) // 2, FARS)
        assert found_points(result) == [(1.0, 0, 0.0)] * 6
        assert result.certificate.passes == 1

    @settings(deadline=None, max_examples=60)
    @given(st.data())
    def test_small_populations(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(3, 40))
        identities = data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
        if not 1 < len(set(identities)) < count:
            return
        seed = data.draw(st.integers(0, 1000))
        embeddings = np.random.default_rng(seed).integers(-2, 3, (count, 4)) + 0.5
        fars = data.draw(st.lists(st.integers(1, 1000).map(lambda n: n / 1000), min_size=1))
        block = data.draw(st.integers(8, 64))
        result = all_pairs(embeddings, identities, fars, block=block)
        genuine, descending = full_sort(embeddings, np.array(identities))
        assert found_points(result) == list(expected_points(genuine, descending, fars))
        assert sorted(result.genuine.scores) == sorted(genuine)

    @pytest.mark.usefixtures("short_lists")
    def test_a_missed_bracket_is_noticed_and_repeated(
        self, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        embeddings, identities, genuine, descending = crowd
        bracket = bands.Sample.bracket

        def misses_first(self: bands.Sample, rank: int, sigmas: float) -> tuple[float, float]:
            low, high = bracket(self, rank, sigmas)
            return (low + 0.1, high + 0.1) if sigmas < 5 else (low, high)

        monkeypatch.setattr(bands.Sample, "bracket", misses_first)
        result = all_pairs(embeddings, identities, FARS)
        assert found_points(result) == list(expected_points(genuine, descending, FARS))
        assert result.certificate.passes == 2


class TestInvariance:
    @pytest.mark.usefixtures("screen", "short_lists")
    @pytest.mark.parametrize("block", [8, 100, 333, 4096])
    def test_block_size_changes_nothing(self, block: int) -> None:
        embeddings, identities = faces(1700 if block > 8 else 130, seed=3)
        plain = all_pairs(embeddings, identities, FARS)
        other = all_pairs(embeddings, identities, FARS, block=block)
        assert plain.points == other.points
        assert plain.impostors.scores.tolist() == other.impostors.scores.tolist()

    def test_order_scale_kind_and_names_change_nothing(self) -> None:
        embeddings, identities = faces(400)
        plain = all_pairs(embeddings, identities, FARS)
        order = np.random.default_rng(1).permutation(400)
        names = np.array([f"person {i}" for i in identities], dtype=object)
        scales = 2.0 ** np.random.default_rng(2).integers(-9, 9, (400, 1)).astype(np.float32)
        tensor = torch.from_numpy((embeddings * scales)[order]).requires_grad_()
        assert all_pairs(tensor, names[order], FARS).points == plain.points

    def test_the_device_branch_gives_the_same(
        self, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        embeddings, identities = crowd[:2]
        plain = all_pairs(embeddings, identities, FARS)
        for part in (population, screening):
            monkeypatch.setattr(part, "on_host", lambda _: False)
        assert all_pairs(torch.from_numpy(embeddings), identities, FARS).points == plain.points

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_a_gpu_gives_the_same(self, crowd: Crowd) -> None:
        embeddings, identities = crowd[:2]
        on_gpu = torch.from_numpy(embeddings).cuda()
        plain = all_pairs(embeddings, identities, FARS)
        assert all_pairs(on_gpu, identities, FARS).points == plain.points

    def test_settings_of_torch_are_as_before(self) -> None:
        threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
        torch.set_num_threads(2)
        torch.set_float32_matmul_precision("medium")
        try:
            all_pairs(*faces(100), FARS)
            assert torch.get_num_threads() == 2
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)


class TestLists:
    def test_pairs_are_the_callers_rows(self) -> None:
        embeddings, identities = faces(200)
        result = all_pairs(embeddings, identities, 0.05)
        units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        for pairs, same in ((result.genuine, True), (result.false_matches(0.05), False)):
            assert ((identities[pairs.left] == identities[pairs.right]) == same).all()
            cosines = (units[pairs.left] * units[pairs.right]).sum(axis=1)
            assert pairs.scores == pytest.approx(cosines, abs=1e-6)
        assert result.people[result.person].tolist() == identities.tolist()
        assert result.images.tolist() == np.unique(identities, return_counts=True)[1].tolist()

    def test_false_matches_are_those_above_the_threshold(self, crowd: Crowd) -> None:
        embeddings, identities, _, descending = crowd
        result = all_pairs(embeddings, identities, FARS)
        for point in result.points[1:]:
            matches = result.false_matches(point.far)
            assert len(matches) == point.false_accepts
            assert matches.scores == pytest.approx(descending[: len(matches)], abs=2 * TIE)

    def test_keep_lists_more(self, crowd: Crowd) -> None:
        embeddings, identities, _, descending = crowd
        result = all_pairs(embeddings, identities, 1e-6, keep=5000)
        assert result.impostors.scores == pytest.approx(descending[:5000], abs=2 * TIE)
        everything = all_pairs(*faces(50), 0.1, keep=10**6)
        assert len(everything.impostors) == everything.points[0].impostors

    @pytest.mark.usefixtures("short_lists")
    def test_matches_that_were_only_counted_are_refused(self, crowd: Crowd) -> None:
        result = all_pairs(*crowd[:2], (0.1, 1e-4))
        assert len(result.false_matches(1e-4)) == result.points[1].false_accepts
        with pytest.raises(MetricError, match=r"accepted at far 0\.1; only the highest"):
            result.false_matches(0.1)
        with pytest.raises(MetricError, match=r"far 0\.2 is none of"):
            result.false_matches(0.2)

    def test_intervals_take_them(self, crowd: Crowd) -> None:
        result = all_pairs(*crowd[:2], 1e-3, keep=12_000)
        matches, point = result.false_matches(1e-3), result.points[0]
        left, right = result.person[matches.left], result.person[matches.right]
        estimate = false_match_rate(left, right, result.images)
        assert estimate.value == pytest.approx(point.achieved_far)
        statistic = tar_statistic(
            result.genuine.scores,
            result.person[result.genuine.left],
            result.impostors.scores,
            result.person[result.impostors.left],
            result.person[result.impostors.right],
            result.images,
            far=1e-3,
        )
        assert statistic(np.ones(len(result.images), np.int64)) == pytest.approx(point.tar)

    def test_everything_may_pass(self) -> None:
        result = all_pairs(*faces(60), (1, 0.5))
        assert result.points[0].threshold == -np.inf
        assert result.points[0].tar == 1


class TestScreens:
    @pytest.mark.parametrize("kind", [Float32Screen, Int8Screen])
    @pytest.mark.parametrize("shape", ["normal", "sparse", "constant", "heavy"])
    def test_products_keep_their_bound_and_masks_their_promise(
        self, kind: type[Screen], shape: str
    ) -> None:
        rng = np.random.default_rng(0)
        vectors = {
            "normal": rng.normal(size=(300, 40)),
            "sparse": rng.normal(size=(300, 40)) * (rng.random((300, 40)) < 0.05) + 1e-3,
            "constant": np.ones((300, 40)),
            "heavy": rng.standard_t(1.5, size=(300, 40)),
        }[shape]
        crowd = population.Population(vectors, np.arange(300) // 2)
        screen: Screen = kind(crowd.units(), crowd.genuine_pairs(), 128, 32)
        space = screen.workspace()
        seen = 0
        for rows, columns in screen.blocks():
            tile = screen.tile(rows, columns, space)
            everything = tile.pick(
                torch.ones_like(space.masks[0, : tile.values.numel()].view(tile.values.shape))
            )
            counts = tile.values.numpy().ravel() > screen.lowest
            seen += int(np.count_nonzero(counts))
            exact = crowd.scores(everything.left[counts], everything.right[counts])
            for products in (everything, tile.refined(everything) or everything):
                errors = np.abs(products.values[counts] - exact)
                assert (errors <= products.errors[counts]).all()
            for level in (-0.3, 0.0, 0.2, 0.99):
                possibly = tile.possibly_above(level).numpy().ravel()[counts]
                surely = tile.surely_above(level).numpy().ravel()[counts]
                assert possibly[exact > level].all()
                assert (exact[surely] > level).all()
                assert (possibly >= surely).all()
                finer = (tile.refined(everything) or everything).possibly_above(level)
                assert (
                    np.count_nonzero(exact > level)
                    <= np.isin(
                        everything.left[counts] * 300 + everything.right[counts],
                        finer.left * 300 + finer.right,
                    ).sum()
                )
        assert seen == crowd.impostors

    def test_a_product_that_breaks_its_bound_is_noticed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(screening, "float32_error", lambda _: 1e-12)
        with pytest.raises(ArithmeticError, match="break the error bound"):
            all_pairs(*faces(100), 0.1)

    @pytest.mark.parametrize("dimension", [2, 40, 512])
    def test_the_sum_of_the_largest_codes_is_exact(self, dimension: int) -> None:
        assert screening.int8_products_are_exact(70, dimension)

    @pytest.mark.parametrize("spoil", ["dimension", "product"])
    def test_inexact_integer_products_are_not_used(
        self, monkeypatch: pytest.MonkeyPatch, spoil: str
    ) -> None:
        monkeypatch.setattr(module, "_WORTH_A_TRIAL", 0)
        if spoil == "product":
            product = torch._int_mm
            monkeypatch.setattr(torch, "_int_mm", lambda a, b: product(a, b).clamp(max=32767))
        # torch 2.13 multiplies codes of a single dimension wrongly.
        embeddings, identities = faces(300, 1 if spoil == "dimension" else 8)
        result = all_pairs(embeddings, identities, 1e-4)
        assert result.certificate.screen == "float32"

    def test_the_faster_screen_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        embeddings, identities = faces(2000)
        monkeypatch.setattr(module, "_WORTH_A_TRIAL", 0)
        for slow, quick in ((Float32Screen, "int8"), (Int8Screen, "float32")):
            with monkeypatch.context() as patch:
                multiply = slow._multiply

                def again_and_again(
                    self: Screen, *arguments: Any, multiply: Any = multiply
                ) -> None:
                    for _ in range(20):
                        multiply(self, *arguments)

                patch.setattr(slow, "_multiply", again_and_again)
                assert all_pairs(embeddings, identities, 1e-5).certificate.screen == quick


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "options", "message"),
        [
            ((np.ones((3, 2)), [0, 0], 0.1), {}, "identities must hold 3"),
            ((np.ones(3), [0, 0, 1], 0.1), {}, "2 axes"),
            ((np.ones((3, 2)), [0, 0, 1], 0), {}, r"\(0, 1\]"),
            ((np.ones((3, 2)), [0, 1, 2], 0.1), {}, "no genuine pair"),
            ((np.ones((3, 2)), [1, 1, 1], 0.1), {}, "no impostor pair"),
            ((np.array([[1, 0], [0, 0], [1, 1]]), [0, 0, 1], 0.1), {}, "row 1 of embeddings"),
            ((np.array([[1, 0], [0, 1], [1, np.nan]]), [0, 0, 1], 0.1), {}, "row 2 of embeddings"),
            ((np.array([[np.inf, 0], [0, 1], [1, 1]]), [0, 0, 1], 0.1), {}, "row 0 of embeddings"),
            ((np.ones((3, 2)), [0, 0, 1], 0.1), {"block": 7}, "block must be"),
            ((np.ones((3, 2)), [0, 0, 1], 0.1), {"keep": -1}, "keep at least 0"),
        ],
    )
    def test_bad_input_is_named(
        self, arguments: tuple[Any, ...], options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(MetricError, match=message):
            all_pairs(*arguments, **options)
