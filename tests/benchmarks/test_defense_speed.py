"""Protecting records costs little more than the arithmetic that the method cannot do without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from timing import ratio
from torch import Tensor
from torch.nn import functional

from bench.leaks import Leak
from bench.networks import half_precision
from bench.registry import DEFENSES
from bench.world import BATCH, seeded
from defenses.base import Defender

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.world import World

RECORDS = 1000
SIZE = 128


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("biohash", 128),
        ("iom-grp", 300 * 16),
        ("iom-urp", 600 * 100),
        ("imm", 300 * 16),
        ("random-projection", 128),
        ("polyprotect", 5 * 128),
        ("mlp-hash", 1024 + (1024 * 1024 * 2 + 1024 * 512) // SIZE),
        ("diom", 1024 + 1024 * 512 * 30 // SIZE),
    ],
)
def test_a_hash_costs_at_most_three_matrix_products(
    name: str, columns: int, world: World, benchmark: Any
) -> None:
    """The product makes as many numbers as the scheme compares, or as it takes powers.

    For networks it takes as many multiplications as all their layers.
    """
    defense = DEFENSES.get(name).create(name, {"steps": 0} if name == "diom" else {})
    team = world.defender
    scene = Defender(Leak.TEMPLATE, team.images, team.identities, world.recognizer, 1, "cpu")
    with seeded(1):
        defense.setup(scene)
    key = defense.draw_key(SIZE, generator())
    templates = functional.normalize(torch.randn(RECORDS, SIZE, generator=generator()), dim=1)
    matrix = torch.randn(SIZE, columns, generator=generator())

    def protect() -> None:
        for part in templates.split(BATCH):
            defense.encode(part, key)

    def product() -> None:
        for part in templates.split(BATCH):
            part @ matrix

    found = ratio(protect, product, 7)
    benchmark.extra_info["ratio"] = round(found, 2)
    benchmark.pedantic(protect, rounds=1)
    assert found <= 3


ADVFACE = {
    **{reading: {"reading": reading} for reading in ("direct", "shadow-feature", "cyclic")},
    "l2": {"norm": "l2"},
    "residual": {"shadow": "residual"},
    "both": {"shadow": "both"},
}


@pytest.mark.parametrize("variant", ADVFACE)
def test_advface_costs_at_most_its_passes_and_a_seventh(
    variant: str, world: World, benchmark: Any
) -> None:
    defense, maps = fitted("advface", {"shadow_steps": 2, **ADVFACE[variant]}, world)

    reading = defense.reading

    def image(shadow: Any, records: Tensor) -> Tensor:
        with half_precision("cpu"):
            made: Tensor = shadow(records)
        return made

    def bare() -> None:
        """Forward and backward passes of the shadows, with nothing done about the gradient."""
        noise = torch.full_like(maps, 1e-3)
        for shadow in defense.shadows:
            with torch.no_grad():
                target = image(shadow, maps)
                start = world.recognizer.head(target) if reading == "shadow-feature" else maps
            for _ in range(defense.steps):
                noise.requires_grad_()
                made = image(shadow, start + noise)
                if reading == "cyclic":
                    made = image(shadow, world.recognizer.head(made))
                distance = functional.l1_loss(made, target, reduction="sum")
                torch.autograd.grad(distance, noise)

    compare(defense, maps, bare, benchmark)


def test_crafter_costs_at_most_its_passes_and_a_seventh(world: World, benchmark: Any) -> None:
    defense, maps = fitted("crafter", {}, world)
    faces = defense.space.coordinates(world.defender.images[: len(maps)])

    def bare() -> None:
        """A forward and a backward pass from face to map, and two forward passes, a step."""
        for _ in range(defense.steps):
            at = faces.clone().requires_grad_()
            made = world.recognizer.head(defense.space.faces(at))
            torch.autograd.grad(made, at, maps)
            with torch.no_grad():
                for _ in range(2):
                    world.recognizer.head(defense.space.faces(faces))

    compare(defense, maps, bare, benchmark)


def fitted(name: str, parameters: dict[str, Any], world: World) -> tuple[Any, Tensor]:
    """Return a defense of maps, and a few of the defender's maps."""
    team = world.defender
    scene = Defender(Leak.FEATURES, team.images, team.identities, world.recognizer, 1, "cpu")
    defense: Any = DEFENSES.get(name).create(name, parameters)
    with seeded(1):
        defense.setup(scene)
    return defense, world.recognizer.leaking(Leak.FEATURES, team.images[:8])


def compare(defense: Any, maps: Tensor, bare: Callable[[], None], benchmark: Any) -> None:
    found = ratio(lambda: defense.protect(maps, generator=generator()), bare)
    benchmark.extra_info["ratio"] = round(found, 3)
    benchmark.pedantic(bare, rounds=1)
    assert found <= 1.15
