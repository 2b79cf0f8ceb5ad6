"""Losses by name: closed forms, mixtures, what they look through, and what they train for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from stand_ins import Means
from torch import Tensor
from torch.nn import functional

from attacks.losses import Critic, mixture
from bench.leaks import Leak
from bench.metrics.image import ssim
from bench.registry import ATTACKS
from bench.threats import Attacker, Meter, Threat, ThreatViolation
from bench.world import seeded

if TYPE_CHECKING:
    from attacks.losses import Weights
    from bench.world import World


class Halves(Means):
    """A recogniser of a face's coarse shades: its map are means of blocks, in two scales."""

    embedding_size = 48

    def head(self, images: Tensor) -> Tensor:
        return super().head(images) * torch.tensor([1.0, 1.0, 5.0])[:, None, None]

    def tail(self, features: Tensor) -> Tensor:
        coarse = functional.adaptive_avg_pool2d(features, 4).flatten(1)
        return functional.normalize(coarse - coarse.mean(1, keepdim=True), dim=1)


def attacker(images: Tensor, people: np.ndarray) -> Attacker:
    return Attacker(
        Threat.TRANSFER,
        Leak.TEMPLATE,
        images,
        people,
        seed=0,
        device="cpu",
        recognizer=Halves(),
    )


@pytest.fixture(scope="module")
def own(world: World) -> Attacker:
    return attacker(world.attacker.images, world.attacker.identities)


@pytest.fixture(scope="module")
def pair(faces: Tensor) -> tuple[Tensor, Tensor]:
    return faces[:3], faces[3:]


@pytest.mark.parametrize("name", ["pixel", "ssim", "perceptual", "identity"])
def test_what_is_wanted_costs_nothing_and_something_else_does(
    name: str, own: Attacker, pair: tuple[Tensor, Tensor]
) -> None:
    loss = mixture({name: 1.0}, own)  # type: ignore[dict-item]
    made, wanted = pair
    assert float(loss(wanted, wanted)) == pytest.approx(0, abs=1e-6)
    leaf = made.clone().requires_grad_()
    value = loss(leaf, wanted)
    value.backward()
    assert value.item() > 0.01
    assert leaf.grad is not None
    step = leaf.grad / leaf.grad.abs().max() * 0.01
    assert loss((made - step).clamp(0, 1), wanted) < value


def test_each_loss_is_what_it_says(own: Attacker, pair: tuple[Tensor, Tensor]) -> None:
    made, wanted = pair
    recognizer = own.recognizer
    cosine = (recognizer.embed(made) * recognizer.embed(wanted)).sum(1)
    assert float(mixture({"pixel": 1}, own)(made, wanted)) == pytest.approx(
        float((made - wanted).abs().mean())
    )
    assert float(mixture({"ssim": 1}, own)(made, wanted)) == pytest.approx(
        1 - float(ssim(made, wanted, data_range=1).mean())
    )
    assert float(mixture({"identity": 1}, own)(made, wanted)) == pytest.approx(
        1 - float(cosine.mean()), abs=1e-6
    )
    # The third channel is five times as large and counts no more than the others.
    maps = [functional.avg_pool2d(images, 8) for images in pair]
    deviation = maps[1].std((0, 2, 3), keepdim=True)
    assert float(mixture({"perceptual": 1}, own)(made, wanted)) == pytest.approx(
        float(((maps[0] - maps[1]) / deviation).abs().mean()), rel=1e-5
    )


def test_a_mixture_is_the_weighted_sum(own: Attacker, pair: tuple[Tensor, Tensor]) -> None:
    weights: Weights = {"pixel": 2.0, "ssim": 0.5, "identity": 0.1}
    alone = [weight * mixture({name: 1.0}, own)(*pair) for name, weight in weights.items()]
    assert float(mixture(weights, own)(*pair)) == pytest.approx(float(sum(alone)), rel=1e-6)


def test_a_loss_through_the_recogniser_needs_the_right_to_it(own: Attacker) -> None:
    meter = Meter(lambda images: images, 1, "query")
    blind = Attacker(
        Threat.QUERY, Leak.IMAGE, own.images, own.identities, seed=0, device="cpu", query=meter
    )
    mixture({"pixel": 1.0, "ssim": 1.0, "adversarial": 1.0}, blind)
    for name in ("identity", "perceptual"):
        with pytest.raises(ThreatViolation, match="does not grant recognizer"):
            mixture({name: 1.0}, blind)


def test_the_critic_learns_what_is_real_and_its_loss_leads_there() -> None:
    photos, made = torch.full((4, 3, 112, 112), 0.8), torch.full((4, 3, 112, 112), 0.3)
    with seeded(0):
        critic = Critic(width=4, rate=5e-3)
        for _ in range(30):
            critic.loss(made, photos)
    with torch.no_grad():
        assert critic(photos).mean() > critic(made).mean() + 0.5
        before = {name: value.clone() for name, value in critic.state_dict().items()}
        assert float(critic.loss(made, photos)) == 0
        assert all(torch.equal(value, before[name]) for name, value in critic.state_dict().items())
    leaf = made.clone().requires_grad_()
    critic.loss(leaf, photos).backward()
    assert leaf.grad is not None
    assert float(leaf.grad.sum()) < 0


def test_a_decoder_does_best_at_what_it_was_trained_for(
    own: Attacker, world: World, faces: Tensor
) -> None:
    templates = own.recognizer.embed(faces)

    def found(**parameters: object) -> tuple[float, float]:
        """Return cosine and SSIM of what a decoder makes of other people's templates."""
        attack = ATTACKS.get("decoder").create(
            "x", {"steps": 20, "width": 8, "rate": 1e-2, **parameters}
        )
        with seeded(0):
            attack.fit(own)
        made = attack.reconstruct(templates)
        cosine = (own.recognizer.embed(made) * templates).sum(1).mean()
        return float(cosine), float(ssim(made, faces, data_range=1).mean())

    pixel, identity = found(), found(losses={"pixel": 0.3, "identity": 1.0})
    assert identity[0] > pixel[0]
