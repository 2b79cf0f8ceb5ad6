"""What every registered defense promises; a new one is tested with no edit here."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import pickle
import re
import typing
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch
from parameters import refuse_wrong_parameters
from pretended_device import pretended_device
from torch import Tensor, nn

from bench.leaks import Leak
from bench.registry import DEFENSES
from bench.world import seeded
from defenses.base import Defender, Defense
from defenses.keyed import Handling, Keyed

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.plan import Spec
    from bench.world import World

# Those of this package: another test may have registered its own before this file is read.
NAMES = [name for name in DEFENSES.names() if DEFENSES.entry(name).target.startswith("defenses.")]


def lacks(name: str) -> pytest.MarkDecorator:
    """Skip a defense whose optional library is not installed."""
    needs = DEFENSES.get(name).needs
    lacking = bool(needs) and importlib.util.find_spec(needs) is None
    return pytest.mark.skipif(lacking, reason=f"{needs} is not installed")


CASES = [
    pytest.param(name, leak, id=f"{name}-{leak}", marks=lacks(name))
    for name in NAMES
    for leak in sorted(DEFENSES.get(name).leaks)
]
KEYED = [name for name in NAMES if issubclass(DEFENSES.get(name), Keyed)]
LIMITS = {
    limit: [case for case in CASES if getattr(DEFENSES.get(str(case.values[0])), limit)]
    for limit in ("weakest", "strongest")
}


class Lab:
    """Instances of every defense and what they make of the victims' faces, each made once."""

    def __init__(
        self, world: World, faces: Tensor, quick: Callable[..., Spec], every: int = 2
    ) -> None:
        self.world, self.faces, self._quick, self._every = world, faces, quick, every
        self.clean = cache(lambda leak: world.recognizer.leaking(leak, faces))
        self.fitted = cache(self.fit)
        self.records = cache(self._records)

    def fit(self, name: str, leak: Leak, seed: int = 1, **parameters: Any) -> Defense:
        """Return a new instance fitted on the defender's images."""
        team = self.world.defender
        # Some of the photos of each person are enough to fit to.
        images, people = team.images[:: self._every], team.identities[:: self._every]
        scene = Defender(leak, images, people, self.world.recognizer, seed, self.world.device)
        # A test may ask for the first instance where it wants no gradients of its own.
        with seeded(seed), torch.enable_grad():
            return self._quick("defense", name, **parameters).create().setup(scene)

    def _records(self, name: str, leak: Leak, seed: int = 1, draw: int = 1) -> Tensor:
        return self.protect(self.fitted(name, leak, seed), draw)

    def protect(self, defense: Defense, draw: int = 1) -> Tensor:
        """Return the records of the victims' faces."""
        generator = torch.Generator().manual_seed(draw)
        return defense.protect(self.clean(defense.leak), generator=generator)


@pytest.fixture(scope="session")
def lab(world: World, faces: Tensor, quick: Callable[..., Spec]) -> Lab:
    return Lab(world, faces, quick)


@pytest.fixture(scope="session")
def far_lab(far_world: World, quick: Callable[..., Spec]) -> Lab:
    with pretended_device():
        return Lab(far_world, far_world.images(far_world.split.probes)[:2], quick, every=5)


def state(defense: Defense) -> list[Tensor]:
    """Return the tensors that an instance learned or drew, in a fixed order."""
    own = {name: value for name, value in vars(defense).items() if name != "recognizer"}
    return tensors(own)


def tensors(value: object) -> list[Tensor]:
    """Return the tensors in a value, in networks and in containers of such."""
    match value:
        case Tensor():
            return [value]
        case nn.Module():
            return tensors(value.state_dict())
        case dict():
            return [tensor for name in sorted(value) for tensor in tensors(value[name])]
        case list() | tuple():
            return [tensor for part in value for tensor in tensors(part)]
    return []


def differ(left: list[Tensor], right: list[Tensor]) -> bool:
    return not all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def documentation(name: str) -> str:
    """Return the docstring of a class, and of those that it inherits parameters from."""
    family = [kind for kind in DEFENSES.get(name).__mro__ if issubclass(kind, Defense)]
    return "\n".join(inspect.cleandoc(kind.__doc__ or "") for kind in family)


@pytest.mark.parametrize(("name", "leak"), CASES)
def test_records_are_one_finite_float_tensor_per_image(name: str, leak: Leak, lab: Lab) -> None:
    before = lab.clean(leak).clone()
    records = lab.records(name, leak)
    assert records.shape[0] == len(lab.faces)
    assert records.ndim >= 2
    assert records.dtype == torch.float32
    assert torch.isfinite(records).all()
    assert not records.requires_grad
    assert torch.equal(lab.clean(leak), before), "protect changed its input in place"


@pytest.mark.parametrize(("name", "leak"), CASES)
def test_randomness_comes_from_the_generator_alone(name: str, leak: Leak, lab: Lab) -> None:
    defense = lab.fitted(name, leak)
    generator = torch.Generator().manual_seed(1)
    start = generator.get_state()
    with seeded(12345):
        again = defense.protect(lab.clean(leak), generator=generator)
    assert torch.equal(again, lab.records(name, leak))
    drew = not torch.equal(start, generator.get_state())
    assert torch.equal(again, lab.records(name, leak, draw=2)) != drew


@pytest.mark.parametrize(("name", "leak"), CASES)
def test_another_seed_gives_other_secrets_where_the_docstring_names_some(
    name: str, leak: Leak, lab: Lab
) -> None:
    learned = differ(state(lab.fitted(name, leak)), state(lab.fitted(name, leak, seed=2)))
    # The same draw, so that only what was learned can make a difference.
    same = torch.equal(lab.records(name, leak), lab.records(name, leak, seed=2))
    assert same != learned
    drawn = not torch.equal(lab.records(name, leak), lab.records(name, leak, draw=2))
    denied = re.search(r"secrets?: none", documentation(name), re.IGNORECASE) is not None
    assert (learned or drawn) != denied


@pytest.mark.parametrize(("name", "leak"), CASES)
def test_secrets_are_fixed_by_the_seed(name: str, leak: Leak, lab: Lab) -> None:
    again = lab.fit(name, leak)
    assert not differ(state(again), state(lab.fitted(name, leak)))
    assert torch.equal(lab.protect(again), lab.records(name, leak))


@pytest.mark.parametrize(("name", "leak"), CASES)
def test_fresh_keeps_the_parameters_and_no_secret(name: str, leak: Leak, lab: Lab) -> None:
    defense = lab.fitted(name, leak)
    fresh = defense.fresh()
    assert type(fresh) is type(defense)
    assert fresh is not defense
    assert fresh.parameters == defense.parameters
    assert set(vars(fresh)) == set(fresh.parameters)


@pytest.mark.parametrize(("name", "leak"), CASES)
def test_comparables_and_scores(name: str, leak: Leak, lab: Lab) -> None:
    defense = lab.fitted(name, leak)
    with torch.no_grad():
        stored = defense.comparable(lab.records(name, leak))
        generator = torch.Generator().manual_seed(2)
        probes = defense.probe(lab.clean(leak), generator=generator)
    assert stored.ndim == 2
    assert len(stored) == len(lab.faces)
    assert torch.isfinite(stored).all()
    scores = defense.score(probes[:4], stored)
    assert scores.shape == (4, len(lab.faces))
    assert torch.isfinite(scores).all()
    if defense.mutual:
        assert probes.shape == stored.shape
        itself = defense.score(stored, stored)
        assert (itself.diagonal() >= itself.max(1).values - 1e-5).all()
    else:
        assert defense.plain_probes, "neither a record nor a plain probe can be compared"


@pytest.mark.parametrize(("name", "leak"), CASES)
def test_the_same_face_does_not_score_below_others_on_average(
    name: str, leak: Leak, lab: Lab
) -> None:
    defense = lab.fitted(name, leak)
    with torch.no_grad():
        stored = defense.comparable(lab.records(name, leak))
        probes = defense.probe(lab.clean(leak), generator=torch.Generator().manual_seed(2))
        scores = defense.score(probes, stored)
    # Six faces under much noise are equal but for chance.
    assert advantage(scores) > -0.1


@pytest.mark.parametrize(("name", "leak"), CASES)
def test_records_of_two_applications_can_be_scored_for_linkage(
    name: str, leak: Leak, lab: Lab
) -> None:
    defense = lab.fitted(name, leak)
    records = lab.records(name, leak)
    others = lab.records(name, leak, seed=2, draw=2)
    if defense.renewable:
        others = lab.protect(defense.renewed(torch.Generator().manual_seed(2)), draw=2)
        assert not torch.equal(records, others), "renewal gave the old record back"
        assert torch.equal(lab.protect(defense), records), "renewal changed the old instance"
    with torch.no_grad():
        scores = defense.linkage(records, others)
    assert scores.shape == (len(lab.faces), len(lab.faces))
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize(("name", "leak"), CASES)
def test_a_fitted_instance_survives_serialisation(name: str, leak: Leak, lab: Lab) -> None:
    defense: Any = lab.fitted(name, leak)
    recognizer = defense.recognizer
    defense.recognizer = None  # the target is no part of a defense, and large
    try:
        written = pickle.dumps(defense)
    finally:
        defense.recognizer = recognizer
    read = pickle.loads(written)
    read.recognizer = recognizer
    assert read.parameters == defense.parameters
    assert torch.equal(lab.protect(read), lab.records(name, leak))


@pytest.mark.parametrize(("name", "leak"), CASES)
def test_storage_is_positive_and_at_most_the_tensor(name: str, leak: Leak, lab: Lab) -> None:
    shape = lab.records(name, leak).shape[1:]
    assert 0 < lab.fitted(name, leak).bytes_per_record(shape) <= 4 * shape.numel()


@pytest.mark.parametrize(("name", "leak"), CASES)
def test_it_stays_on_the_device_that_it_was_given(name: str, leak: Leak, far_lab: Lab) -> None:
    with pretended_device() as device, torch.no_grad():
        defense = far_lab.fitted(name, leak)
        records = far_lab.protect(defense)
        stored = defense.comparable(records)
        probes = defense.probe(far_lab.clean(leak), generator=torch.Generator().manual_seed(2))
        scores = defense.score(probes, stored), defense.linkage(records, records)
    assert {item.device.type for item in (records, stored, probes, *scores)} == {device}


@pytest.mark.parametrize("key", typing.get_args(Handling))
@pytest.mark.parametrize("name", KEYED)
def test_keys_are_handled_as_they_are_named(name: str, key: str, lab: Lab) -> None:
    one, other = (lab.fit(name, Leak.TEMPLATE, seed, key=key) for seed in (1, 2))
    assert isinstance(one, Keyed)
    assert isinstance(other, Keyed)
    clean = lab.clean(Leak.TEMPLATE)
    records = lab.protect(one)
    numbers = len(lab.faces) if key in {"subject", "leaked"} else 1
    keys = [one.key_of(record) for record in records]
    assert len({tuple(part.flatten()[:40].tolist()) for part, *_ in keys}) <= numbers
    # Who has the record and no secret makes the same key exactly where keys are published.
    published = all(
        torch.equal(a, b)
        for record, own in zip(records, keys, strict=True)
        for a, b in zip(own, other.key_of(record), strict=True)
    )
    assert published == (key in {"shared", "leaked"})
    renewed = one.renewed(torch.Generator().manual_seed(3))
    assert torch.equal(lab.protect(renewed), records) == published
    codes = one.codes(records)
    again = torch.cat([one.encode(x[None], k) for x, k in zip(clean, keys, strict=True)])
    torch.testing.assert_close(codes, again)
    assert one.score(one.probe(clean, generator=torch.Generator()), records).argmax(1).tolist() == (
        list(range(len(clean)))
    )


@pytest.mark.parametrize(("name", "leak"), LIMITS["weakest"])
def test_at_its_weakest_it_stores_the_clean_object(name: str, leak: Leak, lab: Lab) -> None:
    records = lab.protect(lab.fit(name, leak, **DEFENSES.get(name).weakest))
    torch.testing.assert_close(records, lab.clean(leak), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "leak"), LIMITS["strongest"])
def test_at_its_strongest_nobody_is_told_apart(name: str, leak: Leak, lab: Lab) -> None:
    defense = lab.fit(name, leak, **DEFENSES.get(name).strongest)
    with torch.no_grad():
        stored = defense.comparable(lab.protect(defense))
        probes = defense.probe(lab.clean(leak), generator=torch.Generator().manual_seed(2))
        scores = defense.score(probes, stored)
        clean = defense.comparable(lab.clean(leak))
    undefended = defense.score(clean, clean)
    assert advantage(scores) < advantage(undefended) / 4


def advantage(scores: Tensor) -> float:
    """Return the mean score of the same face less that of others."""
    others = scores[~torch.eye(len(scores), dtype=torch.bool)]
    return float(scores.diagonal().mean() - others.mean())


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_checked(name: str) -> None:
    refuse_wrong_parameters(DEFENSES.get(name), f"defense {name!r}")


@pytest.mark.parametrize("name", NAMES)
def test_docstring_tells_leak_secret_weakness_and_parameters(name: str) -> None:
    own = inspect.getdoc(DEFENSES.get(name)) or ""
    for word in (r"\bleaks?:", r"\bsecrets?:", r"\bweakness(es)?\b"):
        assert re.search(word, own, re.IGNORECASE), f"{word} is missing"
    for field in dataclasses.fields(DEFENSES.get(name)):
        assert re.search(rf"^\s*{field.name}: \S", documentation(name), re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_leaks_are_declared_and_listed(name: str) -> None:
    leaks = DEFENSES.get(name).leaks
    assert leaks
    assert all(isinstance(leak, Leak) for leak in leaks)
    assert set(DEFENSES.entry(name).traits) == set(leaks)
