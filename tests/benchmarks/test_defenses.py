"""Protecting records costs little more than the arithmetic that the method cannot do without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from timing import ratio
from torch.nn import functional

from bench.leaks import Leak
from bench.registry import DEFENSES
from bench.world import BATCH, seeded
from defenses.base import Defender

if TYPE_CHECKING:
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
    ],
)
def test_a_hash_costs_at_most_three_matrix_products(
    name: str, columns: int, benchmark: Any
) -> None:
    """The product makes as many numbers as the scheme compares, or as it takes powers."""
    defense = DEFENSES.get(name)()
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


@pytest.mark.parametrize("reading", ["direct", "shadow-feature", "cyclic"])
def test_advface_costs_at_most_its_passes_and_a_seventh(
    reading: str, world: World, benchmark: Any
) -> None:
    team = world.defender
    scene = Defender(Leak.FEATURES, team.images, team.identities, world.recognizer, 1, "cpu")
    steps = 4
    defense: Any = DEFENSES.get("advface")(reading=reading, steps=steps, shadow_steps=2)
    with seeded(1):
        defense.setup(scene)
    maps = world.recognizer.leaking(Leak.FEATURES, team.images)

    def bare() -> None:
        """Forward and backward passes, with nothing done about the gradient."""
        spoiled, target = defense._objective(maps, defense.shadows[0])
        noise = torch.full_like(maps, 1e-3)
        for _ in range(steps):
            noise.requires_grad_()
            distance = functional.l1_loss(spoiled(noise), target, reduction="sum")
            torch.autograd.grad(distance, noise)

    found = ratio(lambda: defense.protect(maps, generator=generator()), bare)
    benchmark.extra_info["ratio"] = round(found, 3)
    benchmark.pedantic(bare, rounds=1)
    assert found <= 1.15
