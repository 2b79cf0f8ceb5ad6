"""Inverting many templates costs little more than the recogniser's own passes.

Ratios of processor seconds, taken in turns within one process: other programs' turns do not count.
The lesser of two counts, since programs beside it also push its data out of the caches.
"""

from __future__ import annotations

from time import process_time
from typing import TYPE_CHECKING

import torch
from stand_ins import attacker_in
from torch.nn import functional

from attacks.gradient import Gradient
from attacks.ridge import Ridge
from bench.leaks import Leak
from bench.recognizers.base import CROP
from bench.threats import Threat
from bench.world import BATCH, seeded

if TYPE_CHECKING:
    from collections.abc import Callable

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
    # As many components as on LFW: with twenty photos a face would be cheaper to make.
    attack.fit_faces(torch.rand(attack.components + 1, *CROP))
    attack.start = Ridge(templates, attack.coordinates(images), team.identities[rows.numpy()])
    assert len(attack.space) == attack.components

    def bare() -> None:
        for part, wanted in zip(images.split(BATCH), templates.split(BATCH), strict=True):
            leaf = part.clone().requires_grad_()
            found = recognizer.embed(leaf)
            (1 - functional.cosine_similarity(found, wanted)).sum().backward()

    def search() -> Tensor:
        with seeded(0):
            return attack.reconstruct(templates)

    ratio = min(processor_seconds(search) / processor_seconds(bare) for _ in range(2))
    print(f"a step costs {ratio:.2f} times the bare passes")
    assert ratio <= 1.3


def processor_seconds(work: Callable[[], object]) -> float:
    started = process_time()
    work()
    return process_time() - started
