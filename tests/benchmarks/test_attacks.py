"""Inverting many templates costs little more than the recogniser's own passes.

Ratios taken in turns within one process, so that a busy machine slows both sides; the
lesser of two counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from stand_ins import attacker_in
from timing import seconds
from torch.nn import functional

from attacks.gradient import Gradient
from bench.leaks import Leak
from bench.threats import Threat
from bench.world import BATCH, seeded

if TYPE_CHECKING:
    from torch import Tensor

    from bench.world import World

PROBES = 256


def test_a_step_for_256_probes_costs_at_most_1_3_times_the_bare_passes(world: World) -> None:
    team, recognizer = world.attacker, world.recognizer
    rows = torch.arange(PROBES) % len(team.images)
    images = team.images[rows]
    templates = recognizer.leaking(Leak.TEMPLATE, team.images)[rows]
    attack = Gradient(steps=1)
    attack.fit(attacker_in(world, Threat.TRANSFER, Leak.TEMPLATE))

    def bare() -> None:
        for part, wanted in zip(images.split(BATCH), templates.split(BATCH), strict=True):
            leaf = part.clone().requires_grad_()
            found = recognizer.embed(leaf)
            (1 - functional.cosine_similarity(found, wanted)).sum().backward()

    def search() -> Tensor:
        with seeded(0):
            return attack.reconstruct(templates)

    ratio = min(seconds(search) / seconds(bare) for _ in range(2))
    print(f"a step costs {ratio:.2f} times the bare passes")
    assert ratio <= 1.3
