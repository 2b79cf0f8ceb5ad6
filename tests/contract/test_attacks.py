"""What every registered attack, reference and threat promises; a new one is tested with no edit."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import re
import sys
from collections.abc import Callable
from functools import cache, partial
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from parameters import refuse_wrong_parameters
from pretended_device import pretended_device
from torch import Tensor

from attacks.base import Reference, Victims
from bench.cell import Cells
from bench.leaks import Leak
from bench.plan import Cell, Spec
from bench.registry import ATTACKS, DEFENSES, REFERENCES
from bench.threats import Attacker, Threat, ThreatViolation
from bench.world import World, seeded

if TYPE_CHECKING:
    from attacks.base import Attack

ORDER = [Threat.ADAPTIVE, Threat.INSIDER, Threat.TRANSFER, Threat.QUERY, Threat.SCORE]
# Those of this package: another test may have registered its own before this file is read.
NAMES = [name for name in ATTACKS.names() if ATTACKS.entry(name).target.startswith("attacks.")]
WIDEST = {name: min(ATTACKS.get(name).threats, key=ORDER.index) for name in NAMES}
CASES = [
    pytest.param(name, leak, threat, id=f"{name}-{leak}-{threat}")
    for name in NAMES
    for leak in sorted(ATTACKS.get(name).leaks)
    for threat in sorted(ATTACKS.get(name).threats)
]
ONE_THREAT = [case for case in CASES if case.values[2] == WIDEST[str(case.values[0])]]
"""Every attack on every leak once, under the threat that grants it most."""
CROP = (3, 112, 112)


@dataclasses.dataclass(frozen=True)
class Run:
    """One attack that was trained and used.

    Attributes:
        images: What it reconstructed from the victims' records.
        attacker: What it was handed.
        defense: Name of the defense that it met.
    """

    images: Tensor
    attacker: Attacker
    defense: str


class Arena:
    """Lets attacks meet a defense in the tiny world, through what the harness hands over."""

    def __init__(self, world: World, quick: Callable[..., Spec]) -> None:
        self.world, self._quick = world, quick
        self._cells = Cells(world)
        self.met = cache(self._met)

    def cell(self, defense: str, attack: str, leak: Leak, threat: Threat) -> Cell:
        return Cell(leak, self._quick("defense", defense), self._quick("attack", attack), threat, 0)

    def attacker(self, cell: Cell) -> Attacker:
        """Return what the harness hands to the attack of a cell."""
        return self._cells._attacker(cell, self._stored(cell))

    def run(self, cell: Cell, seed: int = 1) -> Run:
        attack: Attack = cell.attack.create()
        attacker = self.attacker(cell)
        leaked = self._cells._leaked(cell, self._stored(cell)).to(self.world.device)
        before = leaked.clone(), attacker.images.clone()
        with seeded(seed):
            attack.fit(attacker)
            images = attack.reconstruct(leaked)
        assert torch.equal(leaked, before[0]), "the attack changed the records in place"
        assert torch.equal(attacker.images, before[1]), "the attack changed images in place"
        return Run(images, attacker, cell.defense.name)

    def _stored(self, cell: Cell) -> Tensor:
        return self.world.victim_records(cell.defense, cell.leak).tensors["records"]

    def _met(self, name: str, leak: Leak, threat: Threat) -> Run:
        """Run an attack on the clean object, or on the first defense whose records it reads."""
        defenses = [other for other in DEFENSES.names() if leak in DEFENSES.get(other).leaks]
        failures = []
        for defense in sorted(defenses, key=lambda other: other != "none"):
            try:
                return self.run(self.cell(defense, name, leak, threat))
            except (RuntimeError, ValueError) as error:
                failures.append(f"{defense}: {error}")
        raise AssertionError(f"{name} reads the records of no defense: {failures}")


@pytest.fixture(scope="session")
def arena(world: World, quick: Callable[..., Spec]) -> Arena:
    return Arena(world, quick)


@pytest.fixture(scope="session")
def far_arena(far_world: World, quick: Callable[..., Spec]) -> Arena:
    with pretended_device():
        return Arena(far_world, quick)


# --- attacks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "leak", "threat"), CASES)
def test_reconstructions_are_one_image_per_record(
    name: str, leak: Leak, threat: Threat, arena: Arena
) -> None:
    # A ThreatViolation under a declared threat would end the run here.
    found = arena.met(name, leak, threat).images
    assert found.shape == (len(arena.world.split.probes), *CROP)
    assert found.is_floating_point()
    assert torch.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize(("name", "leak", "threat"), ONE_THREAT)
def test_the_seed_fixes_every_bit(name: str, leak: Leak, threat: Threat, arena: Arena) -> None:
    first = arena.met(name, leak, threat)
    again = arena.run(arena.cell(first.defense, name, leak, threat))
    assert torch.equal(again.images, first.images)


@pytest.mark.parametrize(("name", "leak", "threat"), CASES)
def test_metered_attacks_stay_within_the_budget(
    name: str, leak: Leak, threat: Threat, arena: Arena
) -> None:
    spent = arena.met(name, leak, threat).attacker.calls_spent
    if threat in {Threat.QUERY, Threat.SCORE}:
        assert 0 < spent <= arena.world.suite.query_budget
    else:
        assert spent == 0


@pytest.mark.parametrize(("name", "leak", "threat"), ONE_THREAT)
def test_it_stays_on_the_device_that_it_was_given(
    name: str, leak: Leak, threat: Threat, far_arena: Arena
) -> None:
    with pretended_device() as device:
        found = far_arena.met(name, leak, threat).images
    assert found.device.type == device


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_checked(name: str) -> None:
    refuse_wrong_parameters(ATTACKS.get(name), f"attack {name!r}")


@pytest.mark.parametrize("name", NAMES)
def test_docstring_tells_what_it_does_and_every_parameter(name: str) -> None:
    kind = ATTACKS.get(name)
    own = inspect.cleandoc(kind.__doc__ or "")
    assert ATTACKS.entry(name).summary
    assert own.startswith(ATTACKS.entry(name).summary.split()[0])
    for field in dataclasses.fields(kind):
        assert re.search(rf"^\s*{field.name}: \S", own, re.MULTILINE), field.name


@pytest.mark.parametrize("name", NAMES)
def test_leaks_and_threats_are_declared_and_listed(name: str) -> None:
    kind = ATTACKS.get(name)
    assert kind.leaks
    assert kind.threats
    assert all(isinstance(leak, Leak) for leak in kind.leaks)
    assert all(isinstance(threat, Threat) for threat in kind.threats)
    assert set(ATTACKS.entry(name).traits) == {*kind.leaks, *kind.threats}


# --- what an attacker holds ---------------------------------------------------------------------

ALL_THREATS = [
    pytest.param(leak, threat, id=f"{leak}-{threat}")
    for leak in sorted(Leak)
    for threat in sorted(Threat)
    # An undefended image is its own record, and those are behind the meter of match scores.
    if (leak, threat) != (Leak.IMAGE, Threat.SCORE)
]


def reachable(start: object) -> list[object]:
    """Return every object that can be reached from one, without passing through a module."""
    modules = {id(module) for module in sys.modules.values()}
    modules |= {id(vars(m)) for m in sys.modules.values() if isinstance(m, ModuleType)}
    found, waiting = {id(start): start}, [start]
    while waiting:
        current = waiting.pop()
        referents = gc.get_referents(current)
        if isinstance(current, Tensor):
            # A view keeps all of its base alive.
            referents += [current._base, current.grad]
        for item in referents:
            if id(item) not in found and id(item) not in modules and not isinstance(item, type):
                found[id(item)] = item
                waiting.append(item)
    return list(found.values())


def pictures(item: object) -> Tensor | None:
    """Return an array or tensor as rows of pictures in [0, 1], or None if it is none."""
    if isinstance(item, np.ndarray) and item.dtype.kind in "fiu":
        item = torch.from_numpy(item)
    if not isinstance(item, Tensor):
        return None
    size = CROP[0] * CROP[1] * CROP[2]
    # The storage, and not the tensor: a view of a part can be turned into the whole.
    storage = torch.empty(0, dtype=item.dtype).set_(item.untyped_storage())
    if len(storage) < size or len(storage) % size:
        return None
    rows = storage.reshape(-1, size).float()
    return rows / 255 if item.dtype == torch.uint8 else rows


def victims_shown(start: object, world: World) -> list[int]:
    """Return which of the victims' photos stand in something that can be reached."""
    wanted = world.images(world.split.evaluation).flatten(1)
    shown: set[int] = set()
    for rows in map(pictures, reachable(start)):
        if rows is not None:
            same = torch.cdist(wanted, rows, p=float("inf")) < 2 / 255
            shown |= set(same.any(1).nonzero().flatten().tolist())
    return sorted(shown)


@pytest.mark.parametrize(("leak", "threat"), ALL_THREATS)
def test_no_image_of_a_victim_is_reachable(leak: Leak, threat: Threat, arena: Arena) -> None:
    attacker = arena.attacker(arena.cell("none", NAMES[0], leak, threat))
    assert any(item is attacker.images for item in reachable(attacker))
    assert victims_shown(attacker, arena.world) == []
    assert not set(attacker.identities) & set(arena.world.identities(arena.world.split.evaluation))


def test_the_search_for_victims_finds_what_is_hidden(world: World) -> None:
    photos = world.images(world.split.evaluation[:3])
    crops = (photos * 255).round().byte()

    def closure() -> Tensor:
        return photos[1]

    class Holder:
        """Something that an attacker could be handed."""

        def __init__(self, secret: object) -> None:
            self.hidden = {"deep": [secret]}

    assert victims_shown(Holder(photos[0].clone()), world) == [0]
    assert victims_shown(Holder(partial(torch.add, photos[2].clone())), world) == [2]
    assert victims_shown(Holder(closure), world) == [0, 1, 2]
    assert victims_shown(Holder(crops[1, 0, :5]), world) == [0, 1, 2]
    assert victims_shown(Holder(photos[1].numpy().copy()), world) == [1]
    assert victims_shown(Holder(torch.rand(CROP)), world) == []


@pytest.mark.parametrize(("leak", "threat"), ALL_THREATS)
def test_the_harness_hands_over_what_the_threat_grants(
    leak: Leak, threat: Threat, arena: Arena
) -> None:
    attacker = arena.attacker(arena.cell("none", NAMES[0], leak, threat))
    own = attacker.images
    if threat is Threat.SCORE:
        assert attacker.score(torch.arange(3), own[:3]).shape == (3,)
        with pytest.raises(ThreatViolation):
            attacker.pairs()
        return
    expected = arena.world.recognizer.leaking(leak, own)
    pools = attacker.pairs()
    assert len(pools) == (arena.world.suite.fresh_instances if threat is Threat.ADAPTIVE else 1)
    for pool in pools:
        assert pool.images is own
        assert torch.equal(pool.records, expected)


def test_an_attack_that_reaches_for_more_is_stopped(arena: Arena) -> None:
    attacker = arena.attacker(arena.cell("none", NAMES[0], Leak.FEATURES, Threat.TRANSFER))
    with pytest.raises(ThreatViolation, match="fresh instances"):
        attacker.fresh_instances  # noqa: B018 - the access is what is refused


@pytest.mark.parametrize("leak", [Leak.FEATURES, Leak.TEMPLATE])
def test_an_insider_has_the_secrets_and_an_adaptive_attacker_others(
    leak: Leak, arena: Arena
) -> None:
    defense = "advface" if leak is Leak.FEATURES else "biohash"
    insider = arena.attacker(arena.cell(defense, NAMES[0], leak, Threat.INSIDER))
    adaptive = arena.attacker(arena.cell(defense, NAMES[0], leak, Threat.ADAPTIVE))
    spec = arena.cell(defense, NAMES[0], leak, Threat.INSIDER).defense
    deployed = arena.world.deployed(spec, leak)
    assert insider.deployed_instance is deployed
    assert not any(item is deployed for item in reachable(adaptive))
    pools = [pool.records for pool in [*adaptive.pairs(), *insider.pairs()]]
    for number, records in enumerate(pools):
        assert not any(torch.equal(records, other) for other in pools[:number])


# --- references ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def victims(world: World) -> Victims:
    split = world.split
    return Victims(world.images(split.probes), world.images(split.other_photos))


def shown(name: str, victims: Victims, world: World, seed: int = 1) -> Tensor:
    kind: type[Reference] = REFERENCES.get(name)
    return kind().images(victims, world.attacker.images, seed)


@pytest.mark.parametrize("name", REFERENCES.names())
def test_references_are_one_image_per_probe(name: str, victims: Victims, world: World) -> None:
    found = shown(name, victims, world)
    assert found.shape == (len(victims.originals), *CROP)
    assert torch.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(found, shown(name, victims, world))


def test_mean_face_is_the_same_mean_for_every_probe(victims: Victims, world: World) -> None:
    mean = world.attacker.images.double().mean(0).float()
    for image in shown("mean-face", victims, world):
        torch.testing.assert_close(image, mean, rtol=0, atol=1e-6)


def test_other_person_shows_the_attackers_people(victims: Victims, world: World) -> None:
    own = world.attacker.images
    found = shown("other-person", victims, world)
    for image in found:
        assert any(torch.equal(image, photo) for photo in own)
    assert not torch.equal(found, shown("other-person", victims, world, seed=2))


def test_same_person_other_photo_shows_the_person_and_never_the_probe(
    victims: Victims, world: World
) -> None:
    split = world.split
    assert REFERENCES.get("same-person-other-photo").shows_mates
    assert torch.equal(shown("same-person-other-photo", victims, world), victims.mates)
    people = world.identities(split.probes)
    assert (world.identities(split.other_photos) == people).all()
    assert not (split.other_photos == split.probes).any()


def test_original_shows_the_probe(victims: Victims, world: World) -> None:
    assert torch.equal(shown("original", victims, world), victims.originals)
