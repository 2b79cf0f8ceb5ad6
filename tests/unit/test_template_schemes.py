"""Template protection schemes against their papers: formulas, angles, thresholds, keys."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bench.leaks import Leak
from bench.registry import DEFENSES
from bench.world import seeded
from defenses.base import Defender, Defense
from defenses.bch import BCH
from defenses.biohash import BioHash
from defenses.ironmask import IronMask
from defenses.keyed import Keyed, share_of_equal
from defenses.polyprotect import PolyProtect
from defenses.slerpface import SlerpFace

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.world import World


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scheme(name: str, **parameters: Any) -> Any:
    return DEFENSES.get(name).create(f"defense {name!r}", parameters)


def pairs_at(cosine: float, count: int = 200, size: int = 512) -> tuple[Tensor, Tensor]:
    """Return pairs of unit vectors, all at one cosine."""
    drawn = torch.randn(2, count, size, generator=generator(7))
    one = functional.normalize(drawn[0], dim=1)
    across = drawn[1] - (drawn[1] * one).sum(1, keepdim=True) * one
    return one, cosine * one + (1 - cosine**2) ** 0.5 * functional.normalize(across, dim=1)


def mean_score(defense: Keyed, cosine: float, size: int = 512) -> float:
    """Return the mean score of codes of pairs at one cosine, under one key."""
    key = defense.draw_key(size, generator(3))
    one, other = pairs_at(cosine, size=size)
    scores = [
        defense.similarity(defense.encode(a, key), defense.encode(b, key)).diagonal()
        for a, b in zip(one.split(50), other.split(50), strict=True)
    ]
    return float(torch.cat(scores).mean())


@pytest.fixture(scope="module")
def fit(world: World) -> Callable[..., Any]:
    """Return a function that fits a scheme on the defender's images."""

    def fitted(name: str, seed: int = 1, **parameters: Any) -> Defense:
        team = world.defender
        scene = Defender(Leak.TEMPLATE, team.images, team.identities, world.recognizer, seed, "cpu")
        with seeded(seed):
            return scheme(name, **parameters).setup(scene)

    return fitted


@pytest.fixture(scope="module")
def templates(world: World, faces: Tensor) -> Tensor:
    return world.recognizer.leaking(Leak.TEMPLATE, faces)


# --- what all LSH schemes promise: the score follows the angle ------------------------------------


@pytest.mark.parametrize("cosine", [0.0, 0.2533, 0.7])
def test_biohash_agrees_by_the_angle(cosine: float) -> None:
    found = mean_score(BioHash(bits=500), cosine)
    assert found == pytest.approx(1 - math.acos(cosine) / math.pi, abs=0.01)


@pytest.mark.parametrize(
    ("name", "parameters", "codes", "threshold"),
    [
        ("biohash", {"bits": 500}, 500, 293),
        ("iom-grp", {}, 300, 43),
        ("iom-urp", {}, 600, 23),
        ("imm", {}, 600, 90),
    ],
)
def test_the_published_lfw_threshold_means_what_the_raw_one_does(
    name: str, parameters: dict[str, Any], codes: int, threshold: int
) -> None:
    """Analysis_LSH: code length and LFW threshold of each hash beside a raw cosine of .2533."""
    defense = scheme(name, **parameters)
    key = defense.draw_key(512, generator())
    assert defense.encode(pairs_at(0, 2)[0], key).shape == (2, codes)
    assert codes * mean_score(defense, 0.15) < threshold < codes * mean_score(defense, 0.4)


@pytest.mark.parametrize(("name", "choices"), [("iom-grp", 16), ("iom-urp", 100), ("imm", 16)])
def test_unrelated_templates_agree_by_chance(name: str, choices: int) -> None:
    assert mean_score(scheme(name), 0) == pytest.approx(1 / choices, rel=0.15)


def test_index_of_max_by_hand() -> None:
    matrix = torch.tensor([[1.0, 0, -1, 0], [0, 2, 0, 1]])
    defense = scheme("iom-grp", indices=2, projections=2)
    x = torch.tensor([[0.6, 0.8], [0.8, -0.6], [-1, 0.1]])
    # Projections (.6, 1.6 | -.6, .8), (.8, -1.2 | -.8, -.6), (-1, .2 | 1, .1).
    assert defense.encode(x, (matrix,)).tolist() == [[1, 1], [0, 1], [1, 0]]
    permuted = scheme("iom-urp", indices=1, window=2, factors=2)
    # Position 0: x0 * x1; position 1: x1 * x1.
    assert permuted.encode(x[:2], (torch.tensor([[[0, 1], [1, 1]]]),)).tolist() == [[1], [1]]
    extremes = scheme("imm", groups=1, rows=2)
    rows = torch.tensor([[1.0, 1], [1, -1]]), torch.tensor([[0, 1]])
    assert extremes.encode(x, rows).tolist() == [[0, 1], [1, 0], [0, 1]]


def test_iom_urp_is_undone_but_for_the_sign_by_its_own_key() -> None:
    defense = scheme("iom-urp")
    x = pairs_at(0, 20, 128)[0]
    key, other = (defense.draw_key(128, generator(seed)) for seed in (1, 2))
    code = defense.encode(x, key)
    found = defense.undo(code, key)
    assert functional.cosine_similarity(found, x).abs().min() > 0.5
    assert (found.sum(1) > 0).all()
    assert functional.cosine_similarity(defense.undo(code, other), x).abs().mean() < 0.3
    assert scheme("iom-urp", factors=3).undo(code, key) is None


def test_bytes_of_packed_codes() -> None:
    assert scheme("biohash").bytes_per_record(torch.Size([96])) == 12
    assert scheme("biohash", key="subject").bytes_per_record(torch.Size([97])) == 15
    assert scheme("iom-grp").bytes_per_record(torch.Size([300])) == 150
    assert scheme("iom-urp").bytes_per_record(torch.Size([600])) == 525
    assert scheme("mlp-hash").bytes_per_record(torch.Size([512])) == 64


def test_shares_of_equal_codes_by_hand() -> None:
    one = torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0]])
    other = torch.tensor([[1.0, 2, 0, 0], [1, 1, 1, 4], [4, 3, 2, 1]])
    assert share_of_equal(one, other).tolist() == [[0.5, 0.5, 0], [0.5, 0, 0]]


@pytest.mark.parametrize("variant", ["gaussian", "uniform"])
def test_biohash_bits(variant: str, templates: Tensor) -> None:
    defense = BioHash(bits=96, variant=variant)  # type: ignore[arg-type]
    key = defense.draw_key(128, generator())
    torch.testing.assert_close(key[0].T @ key[0], torch.eye(96), rtol=0, atol=1e-5)
    code, projected = defense.encode(templates, key), templates @ key[0]
    cut = projected.mean(1, keepdim=True) if variant == "uniform" else 0
    assert torch.equal(code.bool(), projected > cut)
    by_hand = (code[:2, None] == code[None]).float().mean(2)
    torch.testing.assert_close(defense.similarity(code[:2], code), by_hand)


def test_mlp_hash_has_orthonormal_layers_and_cuts_at_the_mean(templates: Tensor) -> None:
    defense = scheme("mlp-hash", width=160, bits=64, layers=2)
    key = defense.draw_key(128, generator())
    assert [tuple(part.shape) for part in key] == [(128, 160), (160, 160), (160, 64)]
    for part in key:
        small = part.T @ part if part.shape[0] >= part.shape[1] else part @ part.T
        torch.testing.assert_close(small, torch.eye(len(small)), rtol=0, atol=1e-4)
    made = (templates @ key[0]).relu() @ key[1]
    made = made.relu() @ key[2]
    assert torch.equal(defense.encode(templates, key).bool(), made > made.mean(1, keepdim=True))


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("biohash", {"bits": 129}, "bits <= 128"),
        ("iom-urp", {"window": 129}, "window <= 128"),
        ("imm", {"rows": 129}, "rows <= 128"),
        ("random-projection", {"numbers": 129}, "numbers <= 128"),
        ("pca-drop", {"numbers": 129}, "numbers <= 128"),
        ("polyprotect", {"overlap": 5}, "overlap < terms = 5"),
        ("polyprotect", {"largest": 2}, "terms <= 4"),
        ("slerpface", {"group": 24}, "group that divides 128"),
        ("ironmask", {"entries": 129}, "entries <= 128"),
    ],
)
def test_parameters_that_do_not_fit_the_template_are_named(
    name: str, parameters: dict[str, Any], message: str, fit: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(name, **parameters)


# --- PolyProtect ----------------------------------------------------------------------------------


def test_polyprotect_on_a_worked_example() -> None:
    """Windows (.1 .5 .7), (.7 .1 .5) with one number shared; coefficients 2, -3, 1."""
    x = torch.tensor([[0.1, 0.5, 0.7, 0.1, 0.5]])
    x = x / x.norm()  # the norm is .1 * sqrt(101)
    defense = PolyProtect(terms=3, largest=3, overlap=1)
    key = torch.tensor([2.0, -3, 1]), torch.tensor([3, 1, 2])
    a, b, c = 0.1 / x.new_tensor(1.01).sqrt(), 0.5 / 1.01**0.5, 0.7 / 1.01**0.5
    first = 2 * a**3 - 3 * b + c**2
    second = 2 * c**3 - 3 * a + b**2
    torch.testing.assert_close(defense.encode(x, key), torch.stack([first, second])[None])


@pytest.mark.parametrize(
    ("overlap", "length"),
    [(0, 103), (2, 170), (4, 508)],
)
def test_polyprotect_lengths_for_512_numbers(overlap: int, length: int) -> None:
    defense = PolyProtect(overlap=overlap)
    assert defense.encode(pairs_at(0, 2)[0], defense.draw_key(512, generator())).shape[1] == length


def test_polyprotect_draws_distinct_coefficients_and_a_permutation() -> None:
    for seed in range(50):
        coefficients, exponents = PolyProtect(terms=4, largest=3).draw_key(128, generator(seed))
        assert len(set(coefficients.tolist())) == 4
        assert 0 < coefficients.abs().min() <= coefficients.abs().max() <= 3
        assert sorted(exponents.tolist()) == [1, 2, 3, 4]


# --- SlerpFace ------------------------------------------------------------------------------------


def test_slerp_divides_the_angle_and_keeps_the_length() -> None:
    defense = SlerpFace(drop=0.25)
    x = pairs_at(0, 20, 128)[0]
    direction, _ = defense.draw_key(128, generator())
    turned, attention = defense._turned(x, direction)
    groups = functional.normalize(x.unflatten(1, (8, 16)), dim=2)
    torch.testing.assert_close(turned.norm(dim=2), torch.ones(20, 8))
    torch.testing.assert_close(attention.sum(1), torch.ones(20))
    whole = (groups * direction).sum(2).acos()
    to_key = (turned * direction).sum(2).acos()
    share = 0.9 - attention
    torch.testing.assert_close(to_key, (1 - share) * whole, rtol=1e-3, atol=1e-3)


def test_slerpface_stores_attention_as_length_and_drops_the_expected_share() -> None:
    defense = SlerpFace()
    x = pairs_at(0, 4, 128)[0]
    kept, lengths = [], []
    for seed in range(60):
        code = defense.encode(x, defense.draw_key(128, generator(seed))).unflatten(1, (8, 16))
        kept.append((code != 0).float().mean(2))
        lengths.append(code.norm(dim=2))
    attention = x.unflatten(1, (8, 16)).square().sum(2)
    torch.testing.assert_close(lengths[0], attention)
    low = attention < attention.median(1, keepdim=True).values
    share = torch.stack(kept)
    assert float(share[:, low].mean()) == pytest.approx((15 / 16) ** 12, abs=0.03)
    assert float(share[:, ~low].mean()) == pytest.approx((15 / 16) ** 4, abs=0.03)


def test_slerpface_is_undone_by_the_key_beside_it_and_not_without() -> None:
    defense = SlerpFace()
    x = pairs_at(0, 40, 128)[0]
    key, other = (defense.draw_key(128, generator(seed)) for seed in (1, 2))
    code = defense.encode(x, key)
    assert functional.cosine_similarity(defense.undo(code, key), x).mean() > 0.7
    assert functional.cosine_similarity(defense.undo(code, other), x).mean() < 0.4


def test_slerpface_ranks_the_genuine_probe_first(
    fit: Callable[..., Any], templates: Tensor
) -> None:
    defense = fit("slerpface")
    records = defense.protect(templates, generator=generator())
    assert records.shape == (len(templates), 129)
    probes = functional.normalize(templates + 0.02 * torch.randn(128, generator=generator()), dim=1)
    scores = defense.score(probes, records)
    assert scores.argmax(1).tolist() == list(range(len(templates)))
    assert (defense.score(templates, records).diagonal() > 0.99).all()


# --- IronMask -------------------------------------------------------------------------------------


def test_ironmask_stores_a_rotation_to_a_codeword(
    fit: Callable[..., Any], templates: Tensor
) -> None:
    defense = fit("ironmask", entries=9)
    assert isinstance(defense, IronMask)
    records = defense.protect(templates, generator=generator())
    rotation = records[:, : 128 * 128].reshape(-1, 128, 128)
    unit = torch.eye(128).expand(len(templates), -1, -1)
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), unit, rtol=0, atol=1e-5)
    rotated = (rotation @ templates[..., None])[..., 0]
    words = defense.nearest(rotated)
    assert (words.abs().sum(1) == 9).all()
    torch.testing.assert_close(rotated, words / 3, rtol=0, atol=1e-5)
    assert defense.bytes_per_record(records.shape[1:]) == 4 * 128 * 128 + 32


def test_ironmask_accepts_by_decoding_within_a_small_angle_only(
    fit: Callable[..., Any], templates: Tensor
) -> None:
    defense = fit("ironmask", entries=16)
    records = defense.protect(templates, generator=generator())
    noise = functional.normalize(torch.randn(templates.shape, generator=generator(5)), dim=1)

    def accepted(angle: float) -> Tensor:
        probes = math.cos(angle) * templates + math.sin(angle) * noise
        return defense.score(functional.normalize(probes, dim=1), records)

    assert torch.equal(accepted(0.2), torch.eye(len(templates)))
    assert accepted(1.2).sum() == 0


# --- SigFeat ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "errors", "message"), [(63, 11, 16), (127, 10, 64), (127, 2, 113), (255, 21, 115)]
)
def test_bch_codes_have_the_published_sizes_and_correct_so_many_errors(
    length: int, errors: int, message: int
) -> None:
    code = BCH(length, errors)
    assert code.message == message
    random = np.random.default_rng(0)
    codewords = code.encode(random.integers(0, 2, (20, message)).astype(np.uint8))
    # Linear, and closed under turning round: what makes the code cyclic.
    assert all(code.decode(np.roll(codewords, 1, axis=1))[1])
    for wrong in (0, 1, errors):
        words = codewords.copy()
        for word in words:
            word[random.permutation(length)[:wrong]] ^= 1
        corrected, decoded = code.decode(words)
        assert decoded.all()
        assert (corrected == codewords).all()
    far = random.integers(0, 2, (20, length)).astype(np.uint8)
    corrected, decoded = code.decode(far)
    assert ((corrected != far).sum(1)[decoded] <= errors).all()


def test_a_bch_code_that_is_none_is_refused(fit: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="not 100"):
        BCH(100, 3)
    with pytest.raises(ValueError, match="cannot correct 64 errors"):
        fit("sigfeat", errors=64)


def test_sigfeat_accepts_as_many_wrong_bits_as_the_code_corrects(
    fit: Callable[..., Any], templates: Tensor
) -> None:
    defense = fit("sigfeat", length=63, errors=11)
    records = defense.protect(templates, generator=generator())
    assert torch.equal(defense.score(templates, records), torch.eye(len(templates)))
    for row, template in enumerate(templates):
        places = torch.nonzero(records[row, :128] >= 0)[:, 0]
        assert len(places) == 63
        inner = torch.ones(128, dtype=torch.bool)
        inner[places] = False
        assert template[inner].abs().max() <= template[places].abs().max()
        for swaps, accepted in [(5, 1), (6, 0)]:
            probe = template.clone()
            order = places[template[places].argsort()]
            low, high = order[:swaps], order[-swaps:]
            probe[low], probe[high] = template[high], template[low]  # two bits a swap
            assert float(defense.score(probe[None], records[row : row + 1])) == accepted
    assert defense.bytes_per_record(records.shape[1:]) == (128 + 63) / 8 + 32


# --- keys -----------------------------------------------------------------------------------------


def test_another_key_forgets(fit: Callable[..., Any], templates: Tensor) -> None:
    for name, chance in [("biohash", 0.5), ("iom-grp", 1 / 16), ("mlp-hash", 0.5)]:
        one, other = (fit(name, seed=seed) for seed in (1, 2))
        code, renewed = (item.protect(templates, generator=generator()) for item in (one, other))
        assert one.score(code, code).diagonal().min() == 1
        # MLP-Hash keeps some bits: a ReLU's outputs have a mean, and so have the bits.
        assert float(one.linkage(code, renewed).diagonal().mean()) == pytest.approx(chance, abs=0.2)


def test_published_keys_link_records_and_secret_ones_do_not(fit: Callable[..., Any]) -> None:
    x = pairs_at(0, 30, 128)[0]

    def gap(key: str) -> float:
        one, other = (fit("biohash", seed=seed, key=key) for seed in (1, 2))
        records = [
            defense.protect(x, generator=generator(seed))
            for seed, defense in enumerate((one, other))
        ]
        scores = one.linkage(*records)
        return float(scores.diagonal().mean() - scores.mean())

    assert abs(gap("application")) < 0.05
    assert abs(gap("subject")) < 0.05
    assert gap("leaked") > 0.4
    assert gap("shared") > 0.4


def test_diom_learns_and_its_permutation_is_the_key(fit: Callable[..., Any], world: World) -> None:
    small = {"indices": 32, "choices": 8, "width": 64}
    defense, untrained = fit("diom", steps=30, **small), fit("diom", steps=0, **small)
    x = pairs_at(0, 20, 128)[0]
    plain = defense.encode(x, (torch.arange(8).expand(32, 8),))
    assert torch.equal(plain, defense._grouped(x).argmax(2).float())
    key = defense.draw_key(128, generator())
    by_hand = torch.stack([key[0][g, plain[:, g].long()] for g in range(32)], 1).float()
    assert torch.equal(defense.encode(x, key), by_hand)
    people = world.defender.identities
    same = torch.from_numpy(people[:, None] == people[None])
    own = world.recognizer.leaking(Leak.TEMPLATE, world.defender.images)

    def separation(item: Any) -> float:
        code = item.protect(own, generator=generator())
        scores = item.score(code, code)
        return float(scores[same].mean() - scores[~same].mean())

    assert separation(defense) > separation(untrained) + 0.05


# --- fewer numbers --------------------------------------------------------------------------------


def test_all_components_lose_nothing_and_fewer_keep_the_most(
    fit: Callable[..., Any], templates: Tensor, world: World
) -> None:
    whole = fit("pca-drop", numbers=128)
    made = whole.protect(templates, generator=generator())
    torch.testing.assert_close(whole.score(made, made), templates @ templates.T)
    own = world.recognizer.leaking(Leak.TEMPLATE, world.defender.images)
    kept = (own - own.mean(0)) @ fit("pca-drop", numbers=5).components
    _, values, _ = torch.linalg.svd((own - own.mean(0)).double())
    torch.testing.assert_close(kept.square().sum(0).double(), values[:5] ** 2, rtol=1e-3, atol=0)
    everything = fit("random-projection", numbers=128)
    rotated = everything.protect(templates, generator=generator())
    torch.testing.assert_close(everything.score(rotated, rotated), templates @ templates.T)


# --- homomorphic encryption -----------------------------------------------------------------------


@pytest.mark.parametrize("probes", [3, 40])
def test_an_encrypted_score_is_the_inner_product_of_whole_numbers(
    probes: int, fit: Callable[..., Any], templates: Tensor
) -> None:
    """40 probes take three polynomials, the last one in part."""
    pytest.importorskip("tenseal", reason="tenseal is not installed")
    defense = fit("homomorphic")
    drawn = torch.randn(probes, templates.shape[1], generator=generator(5))
    fresh = functional.normalize(drawn, dim=1)
    records = defense.protect(templates, generator=generator())
    whole = [(x * 255).round().long() for x in (fresh, templates)]
    scores = defense.score(fresh, records) * 255**2
    assert torch.equal(scores.round().long(), whole[0] @ whole[1].T)
    assert torch.equal((defense.decrypt(records) * 255).round().long(), whole[1])


def test_ciphertexts_say_nothing_without_the_key(
    fit: Callable[..., Any], templates: Tensor
) -> None:
    pytest.importorskip("tenseal", reason="tenseal is not installed")
    defense, thief = fit("homomorphic"), fit("homomorphic", seed=2)
    records = defense.protect(templates, generator=generator())
    again = defense.protect(templates, generator=generator(1))
    # One template twice is no more alike than two templates are.
    linked = defense.linkage(records, again)
    assert linked.diagonal().mean() == pytest.approx(float(linked.mean()), abs=0.02)
    guessed = functional.normalize(thief.decrypt(records), dim=1)
    assert (guessed * templates).sum(1).abs().max() < 0.4
    # No two records share their randomness: the difference of such is that of the templates.
    twice = defense.protect(templates[:1].expand(2, -1), generator=generator())
    assert (twice[0] != twice[1]).float().mean() > 0.9
