"""What each defense of feature maps does to a map, against its formula or its purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from bench.leaks import Leak
from bench.registry import DEFENSES
from bench.world import seeded
from defenses.base import Defender

if TYPE_CHECKING:
    from bench.world import World


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Bench:
    """Fits defenses on the defender's maps of the tiny world, which are computed once."""

    def __init__(self, world: World, faces: Tensor) -> None:
        self.world = world
        self.maps = world.recognizer.leaking(Leak.FEATURES, faces)
        own = world.recognizer.leaking(Leak.FEATURES, world.defender.images)
        self.deviation = own.transpose(0, 1).flatten(1).std(1)

    def records(self, name: str, **parameters: Any) -> tuple[Any, Tensor]:
        """Return a fitted defense and its records of the victims' maps."""
        team = self.world.defender
        defense = DEFENSES.get(name).create(f"defense {name!r}", parameters)
        with seeded(1):
            defense.setup(
                Defender(
                    Leak.FEATURES, team.images, team.identities, self.world.recognizer, 1, "cpu"
                )
            )
        return defense, defense.protect(self.maps, generator=generator())

    def lost(self, records: Tensor) -> float:
        """Return 1 - cosine of the embeddings of records and of clean maps."""
        with torch.no_grad():
            made, wanted = (self.world.recognizer.tail(z) for z in (records, self.maps))
        return float(1 - torch.cosine_similarity(made, wanted).mean())


@pytest.fixture(scope="module")
def bench(world: World, faces: Tensor) -> Bench:
    return Bench(world, faces)


def test_laplace_scale_is_the_sensitivity_over_the_budget(bench: Bench) -> None:
    defense, made = bench.records("ldp-laplace", budget=5, clip=1)
    unit, mean = bench.deviation.reshape(-1, 1, 1), defense.mean.reshape(-1, 1, 1)
    noise = (made - bench.maps.clamp(mean - unit, mean + unit)) / unit.clamp_min(1e-6)
    # Sensitivity 2 deviations over budget 5; the mean size of a Laplace variable is its scale.
    assert float(noise[:, bench.deviation > 1e-3].abs().mean()) == pytest.approx(0.4, rel=0.02)


@pytest.mark.parametrize("choice", ["top", "random"])
def test_so_many_numbers_are_kept(choice: str, bench: Bench) -> None:
    defense, made = bench.records("dropout-topk", keep=0.2, choice=choice)
    mean = defense.mean.reshape(-1, 1, 1).expand_as(made)
    kept = made == bench.maps
    assert torch.equal(made[~kept], mean[~kept])
    torch.testing.assert_close(
        kept.flatten(1).float().mean(1), torch.full((6,), 0.2), rtol=0.01, atol=0
    )
    if choice == "top":
        unit = defense.deviation.reshape(-1, 1, 1).clamp_min(1e-12)
        far = ((bench.maps - mean) / unit).abs()
        assert far[0][kept[0]].min() >= far[0][~kept[0]].max()
    assert defense.bytes_per_record(made.shape[1:]) == pytest.approx(0.925 * made[0].numel())


def test_disco_sets_the_share_of_channels_to_zero(bench: Bench) -> None:
    _, made = bench.records("disco", pruned=0.75, steps=1, batch=2)
    pruned = (made == 0).flatten(2).all(2)
    assert (pruned.sum(1) >= 48).all()
    assert torch.equal(made[~pruned], bench.maps[~pruned])
    # A few channels of the head are dead anyway; all others are kept 16 at a time.
    assert (~pruned).sum(1).max() <= 16


def test_the_trained_layer_gives_up_recognition_for_privacy_by_its_weight(bench: Bench) -> None:
    kind, made = bench.records("advlearning", weight=0, steps=4, batch=4, rate=2e-2)
    _, hidden = bench.records("advlearning", weight=20, steps=4, batch=4, rate=2e-2)
    assert not torch.equal(made, bench.maps)
    assert bench.lost(hidden) > bench.lost(made)
    assert kind.network.mix.weight.abs().max() > 0


def test_cloak_learns_more_noise_for_more_weight_and_stays_in_its_limits(bench: Bench) -> None:
    little, _ = bench.records("cloak", weight=0.01, steps=3, batch=4)
    much, made = bench.records("cloak", weight=100, steps=3, batch=4, suppress=1)
    unit = bench.deviation.reshape(-1, 1, 1)
    assert much.scale.mean() > little.scale.mean()
    assert (much.scale <= 1.5 * unit * 1.001).all()
    assert (much.scale >= 0).all()
    noise = made - bench.maps - much.shift
    alive = bench.deviation > 1e-3
    torch.testing.assert_close(
        noise[:, alive].square().mean().sqrt(),
        much.scale[alive].square().mean().sqrt(),
        rtol=0.02,
        atol=0,
    )


def test_cloak_stores_a_constant_where_nothing_is_needed(bench: Bench) -> None:
    defense, made = bench.records("cloak", weight=1, steps=3, batch=2, suppress=0.5)
    constant = ~defense.kept
    assert 0 < constant.float().mean() < 1
    assert torch.equal(made[0][constant], made[1][constant])
    assert defense.bytes_per_record(made.shape[1:]) == 4 * float(defense.kept.sum())


# --- eigenfaces -----------------------------------------------------------------------------------


def test_peep_is_a_projection_on_eigenfaces_with_laplace_noise(world: World, faces: Tensor) -> None:
    team = world.defender
    scene = Defender(Leak.IMAGE, team.images, team.identities, world.recognizer, 1, "cpu")
    plain: Any = DEFENSES.get("peep").create("peep", {"budget": 1e9, "clip": 100}).setup(scene)
    # All 19 components of 20 images make these images themselves.
    made = plain.protect(team.images, generator=generator())
    torch.testing.assert_close(made, team.images, rtol=0, atol=1e-3)
    # Faces near the mean, so that nothing is cut off at 0 or 1.
    noisy: Any = DEFENSES.get("peep").create("peep", {"budget": 200, "clip": 1}).setup(scene)
    means = noisy.space.mean.expand(300, -1).unflatten(1, (3, 112, 112)).clamp(0.05, 0.95)
    added = noisy.space.coordinates(noisy.protect(means, generator=generator()) - means)
    # The mean size of a Laplace variable is its scale: 2 deviations / 200.
    sizes = added.sub(added.mean(0)).abs().mean(0)
    assert float(sizes.mean()) == pytest.approx(0.01, rel=0.1)
    assert noisy.bytes_per_record(torch.Size([3, 112, 112])) == 4 * 19


# --- crafter --------------------------------------------------------------------------------------


def test_crafter_moves_the_inversion_to_the_prior_for_the_least_change(bench: Bench) -> None:
    """The smaller beta, the nearer the face is to the mean, and the further the map has moved."""
    sizes, changes = [], []
    for beta in (1e9, 1.0, 0.05):
        defense, made = bench.records("crafter", beta=beta, steps=8)
        face = torch.zeros(len(made), len(defense.space))
        for _ in range(12):
            face = face - 0.5 * defense._inversion(face, made) @ defense.inverse
        sizes.append(float(face.square().mean()))
        changes.append(float((defense.weight * (made - bench.maps).square()).sum((1, 2, 3)).mean()))
    assert sizes[0] > 1.5 * sizes[1] > 2 * sizes[2]
    assert changes[0] < 1e-6 < changes[1] < changes[2] < 0.5


def test_crafters_change_is_where_its_two_gradients_cancel(bench: Bench) -> None:
    """More steps hardly move it: it is a stationary point, not where the steps ran out."""
    _, made = bench.records("crafter", beta=0.3, steps=8)
    defense, more = bench.records("crafter", beta=0.3, steps=16)
    size, left = (
        float((defense.weight * noise.square()).sum((1, 2, 3)).mean().sqrt())
        for noise in (more - bench.maps, more - made)
    )
    assert left < 0.5 * size
