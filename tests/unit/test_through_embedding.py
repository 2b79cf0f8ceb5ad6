"""Attacks that first estimate the clean embedding: what they regress, and what they hand on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from attacks.base import Attack
from attacks.distill import Student
from attacks.map_embedding import RadialLayer
from bench.errors import UserError
from bench.leaks import Leak
from bench.recognizers.base import Recognizer
from bench.registry import ATTACKS, DEFENSES
from bench.threats import Attacker, Held, Pairs, Threat, ThreatViolation
from bench.world import seeded
from defenses.base import Defender

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bench.world import World
    from defenses.base import Defense

pytestmark = pytest.mark.usefixtures("registries")


class Shrunk(Recognizer):
    """A recogniser whose map is the shrunk image, and whose embedding is 64 sums of it."""

    name = "shrunk"
    asset = "none"
    feature_shape = (3, 14, 14)
    embedding_size = 64

    def __init__(self) -> None:
        super().__init__()
        self.sums = torch.nn.Parameter(normal(588, 64), requires_grad=False)

    def head(self, images: Tensor) -> Tensor:
        return functional.avg_pool2d(images, 8)

    def tail(self, features: Tensor) -> Tensor:
        return functional.normalize((features.flatten(1) - 0.4) @ self.sums, dim=1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Shown(Attack):
    """Shows nothing of the templates; the test looks at what arrives."""

    leaks = frozenset({Leak.TEMPLATE})
    threats = frozenset({Threat.TRANSFER})

    def fit(self, attacker: Attacker) -> None:
        """Keep the attacker."""
        self.attacker = attacker

    def reconstruct(self, records: Tensor) -> Tensor:
        """Keep the records and return gray."""
        self.records = records
        return torch.full((len(records), 3, 112, 112), 0.5)


def insider(
    world: World, recognizer: Recognizer, leak: Leak, name: str, **parameters: Any
) -> Attacker:
    """Return an attacker that holds a defense of the recogniser's clean objects."""
    team = world.defender
    defender = Defender(leak, team.images, team.identities, recognizer, 0, "cpu")
    defense: Defense = DEFENSES.get(name).create(name, parameters).setup(defender)
    own = world.attacker

    def records() -> Tensor:
        clean = recognizer.leaking(leak, own.images)
        return defense.protect(clean, generator=torch.Generator().manual_seed(1))

    return Attacker(
        Threat.INSIDER,
        leak,
        own.images,
        own.identities,
        seed=0,
        device="cpu",
        recognizer=recognizer,
        fresh=[],
        deployed=Held(defense, records),
    )


def estimated(name: str, attacker: Attacker, records: Tensor, **parameters: Any) -> Tensor:
    """Return what the inverter gets to see."""
    ATTACKS.register("shown")(dataclass(Shown))
    attack = ATTACKS.get(name).create("x", {"inverter": "shown", **parameters})
    with seeded(0):
        attack.fit(attacker)
        attack.reconstruct(records)
    inverter = attack._inverter
    assert inverter.attacker.threat is Threat.TRANSFER
    assert inverter.attacker.leak is Leak.TEMPLATE
    assert inverter.attacker.images is attacker.images
    with pytest.raises(ThreatViolation):
        inverter.attacker.deployed_instance  # noqa: B018 - the access is what is refused
    torch.testing.assert_close(inverter.records.norm(dim=1), torch.ones(len(records)))
    found: Tensor = inverter.records
    return found


def cosine(found: Tensor, wanted: Tensor) -> float:
    return float(functional.cosine_similarity(found, wanted).mean())


@pytest.mark.parametrize(("mapping", "least"), [("ridge", 0.95), ("mlp", 0.75), ("kan", 0.75)])
def test_what_a_known_key_does_to_embeddings_is_undone(
    mapping: str, least: float, world: World, faces: Tensor
) -> None:
    attacker = insider(world, Shrunk(), Leak.TEMPLATE, "random-projection", numbers=64)
    clean = attacker.recognizer.embed(faces)
    records = attacker.deployed_instance.protect(clean, generator=torch.Generator())
    small = {"steps": 60, "width": 64, "rate": 1e-2}
    found = estimated("map-embedding", attacker, records, mapping=mapping, **small)
    mean = attacker.recognizer.embed(attacker.images).mean(0, keepdim=True)
    assert cosine(found, clean) > max(least, cosine(mean.expand_as(clean), clean) + 0.1)


def test_embeddings_of_nobody_make_up_for_few_people(world: World, faces: Tensor) -> None:
    attacker = insider(world, Shrunk(), Leak.TEMPLATE, "biohash", bits=64)
    clean = attacker.recognizer.embed(faces)
    records = attacker.deployed_instance.protect(clean, generator=torch.Generator())

    def quality(scattered: int) -> float:
        options = {"mapping": "ridge", "scattered": scattered}
        return cosine(estimated("map-embedding", attacker, records, **options), clean)

    assert quality(2000) > quality(0) + 0.03


def test_a_layer_of_learned_functions_learns_what_no_line_can() -> None:
    x = normal(256, 2)
    wanted = (2 * x).sin() * x.flip(1).sign()
    with seeded(0):
        layer = torch.nn.Sequential(RadialLayer(2, 16), RadialLayer(16, 2))
        optimizer = torch.optim.Adam(layer.parameters(), lr=2e-2)
        for _ in range(150):
            optimizer.zero_grad()
            (layer(x) - wanted).square().mean().backward()
            optimizer.step()
    line = torch.linalg.lstsq(functional.pad(x, [0, 1], value=1.0), wanted).solution
    residual = wanted - functional.pad(x, [0, 1], value=1.0) @ line
    assert (layer.eval()(x) - wanted).square().mean() < 0.3 * residual.square().mean()


@pytest.mark.parametrize("leak", [Leak.IMAGE, Leak.FEATURES])
def test_the_adapter_undoes_a_linear_transform_in_closed_form(
    leak: Leak, world: World, faces: Tensor
) -> None:
    recognizer, own = Shrunk(), world.attacker
    mixing = torch.linalg.qr(normal(3, 3)).Q

    def protect(images: Tensor) -> Tensor:
        return torch.einsum("nchw,dc->ndhw", recognizer.leaking(leak, images), mixing) - 3

    clean = recognizer.leaking(leak, own.images)
    with seeded(0):
        student = Student(recognizer, leak, protect(own.images), clean)
        student.regress_adapter([Pairs(protect(own.images), clean, own.identities)])
    with torch.no_grad():
        found = student(protect(faces))
    assert cosine(found, recognizer.embed(faces)) > 0.99


def test_the_student_learns_what_a_convolution_cannot_undo(world: World, faces: Tensor) -> None:
    attacker = insider(world, Shrunk(), Leak.FEATURES, "quantize", bits=1)
    clean = attacker.recognizer.head(faces)
    records = attacker.deployed_instance.protect(clean, generator=torch.Generator())

    def quality(rate: float) -> float:
        found = estimated("distill", attacker, records, steps=30, rate=rate)
        return cosine(found, attacker.recognizer.tail(clean))

    assert quality(3e-2) > quality(1e-9) + 0.01


def test_an_inverter_must_exist_and_read_clean_templates(world: World) -> None:
    attacker = insider(world, Shrunk(), Leak.TEMPLATE, "biohash", bits=64)
    kind = ATTACKS.get("map-embedding")
    with pytest.raises(UserError, match="no-such-attack"):
        kind.create("x", {"inverter": "no-such-attack"}).fit(attacker)
    with pytest.raises(ValueError, match="does not invert templates under transfer"):
        kind.create("x", {"inverter": "unet"}).fit(attacker)


def test_an_attacker_who_forgets_the_defense_keeps_its_own_people(world: World) -> None:
    attacker = insider(world, Shrunk(), Leak.FEATURES, "quantize")
    plain = attacker.unaware(Leak.TEMPLATE)
    (pairs,) = plain.pairs()
    names: NDArray[np.str_] = attacker.identities
    assert torch.equal(pairs.records, attacker.recognizer.embed(attacker.images))
    assert (pairs.identities == names).all()
    with pytest.raises(ThreatViolation):
        plain.fresh_instances  # noqa: B018 - the access is what is refused
