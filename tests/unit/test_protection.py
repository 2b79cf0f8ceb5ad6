"""What each built-in defense does to a record, counted by hand or against its formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.leaks import Leak
from bench.networks import half_precision
from bench.registry import DEFENSES
from bench.world import seeded
from defenses.advface import balanced_pairs
from defenses.base import Defender, Defense, draw_like

if TYPE_CHECKING:
    from bench.world import World

Fit = Callable[..., Defense]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def fit(world: World) -> Fit:
    """Return a function that fits a defense on the defender's images."""

    def fitted(name: str, leak: Leak, seed: int = 1, **parameters: Any) -> Defense:
        team = world.defender
        defense = DEFENSES.get(name).create(f"defense {name!r}", parameters)
        with seeded(seed):
            return defense.setup(
                Defender(leak, team.images, team.identities, world.recognizer, seed, "cpu")
            )

    return fitted


@pytest.fixture(scope="module")
def maps(world: World, faces: Tensor) -> Tensor:
    return world.recognizer.leaking(Leak.FEATURES, faces)


@pytest.fixture(scope="module")
def templates(world: World, faces: Tensor) -> Tensor:
    return world.recognizer.leaking(Leak.TEMPLATE, faces)


@pytest.fixture(scope="module")
def deviation(world: World) -> Tensor:
    """The deviation of every channel over the defender's own maps."""
    own = world.recognizer.leaking(Leak.FEATURES, world.defender.images)
    return own.transpose(0, 1).flatten(1).std(1)


# --- random noise -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gaussian-noise", "laplace-noise", "sign-noise"])
def test_noise_has_mean_zero_and_deviation_eps(
    name: str, fit: Fit, maps: Tensor, deviation: Tensor
) -> None:
    added = fit(name, Leak.FEATURES, eps=0.7).protect(maps, generator=generator()) - maps
    columns = added.transpose(0, 1).flatten(1) / deviation[:, None].clamp_min(1e-6)
    alive = deviation > 1e-3
    assert (columns.mean(1)[alive].abs() < 0.03).all()
    torch.testing.assert_close(
        columns.std(1)[alive], torch.full((int(alive.sum()),), 0.7), rtol=0.05, atol=0
    )
    kurtosis = float((columns[alive] / 0.7).pow(4).mean())
    expected = {"gaussian-noise": 3, "laplace-noise": 6, "sign-noise": 1}[name]
    assert kurtosis == pytest.approx(expected, rel=0.1)


def test_noise_of_a_template_is_scaled_per_number(fit: Fit, world: World) -> None:
    templates = torch.zeros(4000, 128)
    added = fit("gaussian-noise", Leak.TEMPLATE, eps=0.5).protect(templates, generator=generator())
    own = world.recognizer.leaking(Leak.TEMPLATE, world.defender.images)
    torch.testing.assert_close(added.std(0), 0.5 * own.std(0), rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("kind", "mean", "deviation"),
    [("normal", 0, 1), ("uniform", 0.5, 12**-0.5), ("sign", 0, 1), ("laplace", 0, 2**0.5)],
)
def test_draws_have_the_moments_that_they_state(kind: str, mean: float, deviation: float) -> None:
    drawn = draw_like(torch.empty(200_000), generator(), kind)
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.02)
    assert float(drawn.std()) == pytest.approx(deviation, rel=0.02)
    assert torch.isfinite(drawn).all()


def test_the_largest_laplace_draw_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = torch.tensor([0.0, 1 - 2**-24])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: ends.clone())
    assert torch.isfinite(draw_like(ends, generator(), "laplace")).all()


def test_an_unknown_kind_of_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind of noise 'pink'"):
        draw_like(torch.empty(1), generator(), "pink")


# --- quantisation, pixels -----------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_quantisation_keeps_the_cell_and_so_many_levels(
    bits: int, fit: Fit, maps: Tensor, deviation: Tensor
) -> None:
    defense: Any = fit("quantize", Leak.FEATURES, bits=bits)
    made = defense.protect(maps, generator=generator())
    columns = made.transpose(0, 1).flatten(1)
    assert max(len(column.unique()) for column in columns) <= 2**bits
    cell = 6 * deviation.reshape(-1, 1, 1) / 2**bits
    mean = defense.mean.reshape(-1, 1, 1)
    inside = (maps - mean).abs() < 3 * deviation.reshape(-1, 1, 1)
    assert inside.float().mean() > 0.9
    assert ((made - maps).abs() <= cell / 2 * 1.001 + 1e-5)[inside.expand_as(maps)].all()
    assert torch.equal(made, defense.protect(made, generator=generator()))
    assert defense.bytes_per_record(torch.Size([64, 56, 56])) == 64 * 56 * 56 * bits / 8


@pytest.mark.parametrize("block", [2, 7, 16])
def test_pixelation_takes_means_of_blocks(block: int, fit: Fit, faces: Tensor) -> None:
    made = fit("pixelate", Leak.IMAGE, block=block).protect(faces, generator=generator())
    side = 112 // block
    assert made.shape == (len(faces), 3, side, side)
    by_hand = faces[2, 1, block : 2 * block, :block].double().mean()
    assert float(made[2, 1, 1, 0]) == pytest.approx(float(by_hand), abs=1e-6)


def test_pixelated_probes_are_recognised_after_enlargement(fit: Fit, faces: Tensor) -> None:
    defense = fit("pixelate", Leak.IMAGE, block=2)
    with torch.no_grad():
        stored = defense.comparable(defense.protect(faces, generator=generator()))
        fresh = defense.comparable(faces)
    assert defense.score(fresh, stored).argmax(1).tolist() == list(range(len(faces)))


# --- AdvFace ------------------------------------------------------------------------------------

SMALL = {"shadow_steps": 8, "shadow_width": 8, "steps": 4}
READINGS = ["direct", "shadow-feature", "cyclic"]


@pytest.fixture(scope="module")
def advface(fit: Fit) -> Fit:
    """Return a function that gives AdvFace another eps or reading with the same shadow."""
    first = fit("advface", Leak.FEATURES, **SMALL)

    def adapted(**parameters: Any) -> Defense:
        kind = DEFENSES.get("advface")
        other = kind.create("defense 'advface'", SMALL | parameters)
        learned = {key: value for key, value in vars(first).items() if key not in first.parameters}
        other.__dict__.update(learned, settled=other.eps)
        return other

    return adapted


def spoiled(defense: Any, records: Tensor, maps: Tensor) -> float:
    """Return how far the shadow's images of records are from those of clean maps."""
    with torch.no_grad():
        return float((defense.shadows[0](records) - defense.shadows[0](maps)).abs().mean())


@pytest.mark.parametrize("reading", READINGS)
def test_advface_stays_in_its_ball_and_uses_all_of_it(
    reading: str, advface: Fit, maps: Tensor, deviation: Tensor
) -> None:
    noise = advface(reading=reading, eps=0.4).protect(maps, generator=generator()) - maps
    radius = (0.4 * deviation).reshape(-1, 1, 1)
    assert (noise.abs() <= radius * 1.001 + 1e-5).all()
    full = (noise.abs() >= radius * 0.999 - 1e-5).float().mean()
    assert full > 0.5


@pytest.mark.parametrize("reading", READINGS)
def test_advface_spoils_its_shadow_more_than_random_signs_do(
    reading: str, advface: Fit, maps: Tensor, deviation: Tensor
) -> None:
    defense = advface(reading=reading, eps=0.6)
    made = defense.protect(maps, generator=generator())
    signs = 0.6 * deviation.reshape(-1, 1, 1) * draw_like(maps, generator(), "sign")
    assert spoiled(defense, made, maps) > 2 * spoiled(defense, maps + signs, maps)


def test_the_readings_are_three(advface: Fit, maps: Tensor) -> None:
    made = [advface(reading=reading).protect(maps, generator=generator()) for reading in READINGS]
    for one in range(3):
        for other in range(one):
            assert (made[one] != made[other]).float().mean() > 0.01


def test_without_a_random_start_the_noise_is_a_function_of_the_map(
    advface: Fit, fit: Fit, maps: Tensor
) -> None:
    defense = advface(reading="shadow-feature", random_start=False)
    one, other = (defense.protect(maps, generator=generator(seed)) for seed in (1, 2))
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match="random_start = true"):
        fit("advface", Leak.FEATURES, **SMALL, random_start=False)


def test_advface_in_the_round_ball(advface: Fit, maps: Tensor, deviation: Tensor) -> None:
    defense = advface(norm="l2", eps=0.4)
    made = defense.protect(maps, generator=generator())
    scaled = (made - maps) / deviation.reshape(-1, 1, 1).clamp_min(1e-6)
    rms = scaled[:, deviation > 1e-6].flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(rms, torch.full_like(rms, 0.4), rtol=0.05, atol=0)
    drawn = 0.4 * deviation.reshape(-1, 1, 1) * draw_like(maps, generator())
    assert spoiled(defense, made, maps) > 2 * spoiled(defense, maps + drawn, maps)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_advface_takes_the_steps_of_its_definition_in_the_units_of_the_map(
    norm: str, advface: Fit, maps: Tensor
) -> None:
    defense: Any = advface(norm=norm, reading="shadow-feature", random_start=False)
    made = defense.protect(maps, generator=generator()) - maps
    expected = steps_in_units_of_the_map(defense, maps)
    cosines = torch.cosine_similarity(made.flatten(1), expected.flatten(1))
    assert cosines.min() > 0.99


def steps_in_units_of_the_map(defense: Any, maps: Tensor) -> Tensor:
    """Return the noise of the second reading, written down as its docstring says it."""
    unit, shadow = defense.deviation.reshape(-1, 1, 1), defense.shadows[0]
    radius, size = defense.eps * unit, 2.5 * defense.eps / defense.steps

    def rms(rows: Tensor) -> Tensor:
        return rows.flatten(1).square().mean(1).sqrt().reshape(-1, 1, 1, 1)

    with torch.no_grad(), half_precision("cpu"):
        target = shadow(maps)
    with torch.no_grad():
        feature = defense.recognizer.head(target)
    noise = torch.zeros_like(maps)
    for _ in range(defense.steps):
        noise.requires_grad_()
        with half_precision("cpu"):
            made = shadow(feature + noise)
        distance = (made - target).abs().sum()
        (slope,) = torch.autograd.grad(distance, noise)
        noise = noise.detach()
        if defense.norm == "linf":
            noise = (noise + size * unit * slope.sign()).clamp(-radius, radius)
        else:
            noise = noise + size * unit.square() * slope / rms(unit * slope)
            noise = noise * (defense.eps / rms(noise / unit)).clamp(max=1)
    return noise


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_advface_stores_no_noise_where_maps_never_differ(
    norm: str, advface: Fit, maps: Tensor
) -> None:
    defense: Any = advface(norm=norm, eps=0.4)
    defense.deviation = defense.deviation.clone()
    defense.deviation[3] = 0
    noise = defense.protect(maps, generator=generator()) - maps
    assert not noise[:, 3].any()
    assert (noise[:, 4] != 0).float().mean() > 0.9


@pytest.mark.parametrize("control", ["l2", "linf"])
def test_a_control_has_the_size_of_the_noise_and_not_its_effect(
    control: str, advface: Fit, maps: Tensor
) -> None:
    plain, matched = advface(), advface(control=control)
    noise = plain.protect(maps, generator=generator()) - maps
    other = matched.protect(maps, generator=generator()) - maps
    if control == "l2":
        torch.testing.assert_close(other.flatten(1).norm(dim=1), noise.flatten(1).norm(dim=1))
    else:
        largest = noise.abs().amax((2, 3))
        torch.testing.assert_close(other.abs().amin((2, 3)), largest, rtol=1e-3, atol=1e-5)
    cosine = torch.cosine_similarity(noise.flatten(1), other.flatten(1))
    assert cosine.abs().max() < 0.05
    assert spoiled(plain, maps + noise, maps) > 2 * spoiled(plain, maps + other, maps)


@pytest.mark.parametrize(("shadow", "kinds"), [("residual", 1), ("both", 2)])
def test_the_noise_is_made_against_each_shadow(
    shadow: str, kinds: int, fit: Fit, maps: Tensor
) -> None:
    defense: Any = fit("advface", Leak.FEATURES, **SMALL, shadow=shadow)
    assert len(defense.shadows) == kinds
    made = defense.protect(maps, generator=generator())
    with torch.no_grad():
        for network in defense.shadows:
            assert (network(made) - network(maps)).abs().mean() > 0.01


def test_a_larger_ball_spoils_more(advface: Fit, maps: Tensor) -> None:
    damage = [
        spoiled(defense := advface(eps=eps), defense.protect(maps, generator=generator()), maps)
        for eps in (0.1, 0.3, 0.9)
    ]
    assert damage == sorted(damage)
    assert damage[2] > 2 * damage[0]


def test_calibration_finds_the_largest_eps_for_a_drop(world: World) -> None:
    drop = 0.02
    team, few = world.defender, slice(5, 15)  # five photos of each of two people
    scene = Defender(
        Leak.FEATURES, team.images[few], team.identities[few], world.recognizer, 1, "cpu"
    )
    assert len(set(scene.identities)) == 2
    small = {"shadow_steps": 2, "shadow_width": 8, "steps": 1, "accuracy_drop": drop}
    with seeded(1):
        defense = DEFENSES.get("advface").create("defense 'advface'", small).setup(scene)
    found = defense.found["eps"]
    assert 0 < found < 4
    maps = world.recognizer.leaking(Leak.FEATURES, scene.images)
    clean, held, lost = (defense._accuracy(scene, maps, e) for e in (0, found, found + 1 / 64))
    assert held >= clean - drop > lost
    fresh = defense.fresh()
    assert fresh.eps == found
    assert fresh.accuracy_drop is None


def test_half_of_the_pairs_behind_the_accuracy_show_one_person() -> None:
    people = np.array(["a"] * 3 + [f"p{number}" for number in range(50)])
    left, right, same = balanced_pairs(people, 0)
    assert sorted(zip(left[same], right[same], strict=True)) == [(0, 1), (0, 2), (1, 2)]
    assert len(same) == 6
    assert np.array_equal(people[left] == people[right], same)
    with pytest.raises(ValueError, match="two photos of one person"):
        balanced_pairs(people[3:], 0)


def test_the_map_of_advface_takes_five_times_the_image(fit: Fit, maps: Tensor) -> None:
    defense = fit("none", Leak.FEATURES)
    image = fit("none", Leak.IMAGE).bytes_per_record(torch.Size([3, 112, 112]))
    assert defense.bytes_per_record(maps.shape[1:]) / image == pytest.approx(5.33, abs=0.01)
    assert np.prod(maps.shape[1:]) == 64 * 56 * 56
