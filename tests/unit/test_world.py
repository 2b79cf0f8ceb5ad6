"""The scene of a suite and its cells: what is shared, what is refused, what is measured."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.cell import Cells, check_images
from bench.errors import DataError, UserError
from bench.jobs import choose_device
from bench.leaks import Leak
from bench.linkage import Pairs, linkability
from bench.plan import Cell, NamedRecognizer, Spec
from bench.plugin import Plugin
from bench.registry import DATASETS, DEFENSES, load_plugin
from bench.scoring import protection, utility
from bench.store import Store
from bench.threats import Threat
from bench.world import (
    BATCH,
    World,
    check_records,
    comparables,
    draws,
    make_recognizer,
    protect,
    seeded,
)
from defenses.base import Defense

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

NONE = Spec("defense", "none", ())
RETRIEVAL = Spec("attack", "retrieval", ())


def another(world: World, **changes: Any) -> World:
    """Return a new world with the store of the first."""
    suite = world.suite.model_copy(update=changes)
    return World(suite, world.seed, world.store, "cpu", None)


# --- the scene ----------------------------------------------------------------------------------


def test_images_are_aligned_crops_in_the_order_asked_for(world: World) -> None:
    probes = world.split.probes
    images = world.images(probes)
    assert images.shape == (6, 3, 112, 112)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert 0.5 < images.max() <= 1
    assert torch.equal(world.images(probes[::-1].copy()), images.flip(0))
    assert world.identities(probes[:1]).tolist() == [world.dataset.photos[probes[0]].identity]


def test_mirror_images_double_the_teams_and_nothing_else(world: World) -> None:
    mirrored = another(world, split=world.suite.split.model_copy(update={"mirror": True}))
    own = world.attacker
    assert torch.equal(mirrored.attacker.images, torch.cat([own.images, own.images.flip(3)]))
    assert mirrored.attacker.identities.tolist() == [*own.identities, *own.identities]
    assert mirrored.attacker.content != own.content
    assert mirrored.scene == world.scene


def test_the_same_seed_gives_the_same_keys(world: World) -> None:
    again = another(world)
    assert again.scene == world.scene
    assert again.attacker.content == world.attacker.content
    assert again.attacker.content != again.defender.content
    other = World(world.suite, 1, world.store, "cpu", None)
    assert other.scene != world.scene


def test_a_second_world_computes_nothing_again(world: World, tmp_path: Path) -> None:
    store, said = Store(tmp_path), list[str]()
    cell = Cell(Leak.TEMPLATE, NONE, RETRIEVAL, Threat.TRANSFER, 0)

    def work() -> set[str]:
        said.clear()
        fresh = World(world.suite, 0, store, "cpu", None, said.append)
        Cells(fresh).values(cell)
        fresh.operating_point("sface")
        return {text.split()[0] for text in said}

    assert {"aligning", "embedding", "training"} <= work()
    assert not {"aligning", "embedding", "training"} & work()


def test_the_threshold_comes_from_people_who_are_no_victims(world: World) -> None:
    victims = set(world.identities(world.split.evaluation))
    assert not victims & set(world.identities(world.split.calibration))
    point = world.operating_point("sface")
    found = world.embeddings("sface", world.split.calibration)
    people = world.identities(world.split.calibration)
    scores = (found @ found.T).numpy()[np.triu_indices(len(people), 1)]
    same = (people[:, None] == people[None])[np.triu_indices(len(people), 1)]
    assert (scores[~same] > point.threshold).mean() <= world.suite.fmr


def test_a_person_in_two_roles_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = DATASETS.get("orl")
    split = kind().split(world.suite.split, 0)
    overlap = type(split)(**{**vars(split), "attacker": split.probes})
    monkeypatch.setattr(kind, "split", lambda *_: overlap)
    with pytest.raises(DataError, match="is in the roles attacker and victims of one split"):
        another(world)


# --- records ------------------------------------------------------------------------------------


class Echo(Defense):
    """Stores templates with noise, and remembers how many it was given at once."""

    leaks = frozenset(Leak)

    def __init__(self, world: World, leak: Leak = Leak.IMAGE) -> None:
        self.leak, self.recognizer = leak, world.recognizer
        self.seen: list[int] = []

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        self.seen.append(len(x))
        return x.flatten(1)[:, :4] + torch.rand(len(x), 4, generator=generator)


def test_records_are_made_in_batches_of_one_size(world: World) -> None:
    images = torch.rand(2 * BATCH + 3, 3, 112, 112)
    echo = Echo(world)
    made, facts = protect(echo, images, draws(1))
    assert echo.seen == [BATCH, BATCH, 3]
    assert made["records"].shape == (2 * BATCH + 3, 4)
    assert facts["shape"] == [4]
    assert facts["count"] == 2 * BATCH + 3
    assert facts["protect_seconds"] > 0
    again = protect(echo, images[:BATCH], draws(1))[0]["records"]
    assert torch.equal(made["records"][:BATCH], again)
    assert not torch.equal(protect(echo, images[:BATCH], draws(2))[0]["records"], again)


def test_only_what_is_kept_is_kept(world: World) -> None:
    made, facts = protect(Echo(world), torch.rand(3, 3, 112, 112), draws(1), lambda r: r[:, :1])
    assert made["records"].shape == (3, 1)
    assert facts["shape"] == [4]


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (torch.zeros(2, 4), r"shape \[2, 4\] for 3 inputs"),
        (torch.zeros(3), r"shape \[3\] for 3 inputs"),
        (None, r"shape \[\] for 3 inputs"),
        (torch.full((3, 4), torch.nan), "values that are not finite"),
        (torch.full((3, 4), torch.inf), "values that are not finite"),
        (torch.tensor([[torch.inf, -torch.inf]] * 3), "values that are not finite"),
    ],
)
def test_records_of_the_wrong_kind_are_refused(records: Any, reason: str, world: World) -> None:
    with pytest.raises(ValueError, match=f"Echo.protect .*{reason}"):
        check_records(Echo(world), records, 3)


def test_records_of_any_size_are_finite(world: World) -> None:
    check_records(Echo(world), torch.full((3, 4), torch.finfo(torch.float32).max), 3)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (torch.zeros(2, 3, 112, 112), r"shape \[2, 3, 112, 112\], not \[3, 3, 112, 112\]"),
        (torch.zeros(3, 3, 56, 56), r"shape \[3, 3, 56, 56\]"),
        (None, r"shape \[\]"),
        (torch.full((3, 3, 112, 112), torch.nan), "values that are not finite"),
        (torch.full((3, 3, 112, 112), -0.01), r"values outside \[0, 1\]"),
        (torch.full((3, 3, 112, 112), 1.01), r"values outside \[0, 1\]"),
    ],
)
def test_reconstructions_of_the_wrong_kind_are_refused(images: Any, reason: str) -> None:
    cell = Cell(Leak.IMAGE, NONE, RETRIEVAL, Threat.ADAPTIVE, 0)
    with pytest.raises(ValueError, match=f"retrieval.reconstruct returned {reason}"):
        check_images(cell, images, 3)


def test_a_judge_in_attackers_hands_is_refused(world: World) -> None:
    public = (NamedRecognizer(name="sface", label="again"),)
    with pytest.raises(UserError, match="again has the weights of sface, which judges"):
        another(world, public=public)


# --- cells --------------------------------------------------------------------------------------


def test_under_transfer_one_trained_attack_serves_every_defense(
    world: World, quick: Callable[..., Spec]
) -> None:
    cells = Cells(world)
    noise = Spec("defense", "sign-noise", ())

    def keys(threat: Threat) -> tuple[Any, Any]:
        made = [Cell(Leak.FEATURES, d, quick("attack", "unet"), threat, 0) for d in (NONE, noise)]
        return tuple(cells._training_fields(cell) for cell in made)  # type: ignore[return-value]

    clean, protected = keys(Threat.TRANSFER)
    assert clean == protected
    clean, protected = keys(Threat.ADAPTIVE)
    assert clean != protected


def test_what_is_public_is_in_every_attackers_hands_and_in_its_key(world: World) -> None:
    cell = Cell(Leak.TEMPLATE, NONE, RETRIEVAL, Threat.TRANSFER, 0)
    armed = Cells(another(world, public=(NamedRecognizer(name="dlib"),)))
    attacker = armed._attacker(cell, world.victim_records(NONE, cell.leak).tensors["records"])
    assert [one.name for one in attacker.public] == ["dlib"]
    assert [one.name for one in attacker.unaware(Leak.TEMPLATE).public] == ["dlib"]
    weights = attacker.public[0].weights_sha256
    assert armed._training_fields(cell)["public"][0]["weights"] == weights
    assert "public" not in Cells(world)._training_fields(cell)


def test_a_reconstruction_depends_on_the_deployed_defense(world: World) -> None:
    cells = Cells(world)
    noise = Spec("defense", "sign-noise", ())
    clean, protected = (
        Cell(Leak.FEATURES, defense, RETRIEVAL, Threat.TRANSFER, 0) for defense in (NONE, noise)
    )
    assert cells.fields(clean) != cells.fields(protected)
    assert cells.reconstructions(clean).key != cells.reconstructions(protected).key


def test_queries_are_counted_and_cut_off(world: World) -> None:
    cell = Cell(Leak.TEMPLATE, NONE, RETRIEVAL, Threat.QUERY, 0)
    made = Cells(world).reconstructions(cell)
    assert made.facts["calls_spent"] == len(world.attacker.images)
    from bench.threats import ThreatViolation

    poor = another(world, query_budget=3)
    with pytest.raises(ThreatViolation, match="budget of 3 query calls"):
        Cells(poor).reconstructions(cell)


@pytest.mark.parametrize("noisy", [True, False])
def test_a_query_asked_again_draws_its_noise_anew(world: World, noisy: bool) -> None:
    defense = Spec("defense", "gaussian-noise", ()) if noisy else NONE
    cell = Cell(Leak.TEMPLATE, defense, RETRIEVAL, Threat.QUERY, 0)
    attacker = Cells(world)._attacker(cell, torch.empty(0))
    image = world.attacker.images[:1]
    assert torch.equal(attacker.query(image), attacker.query(image)) != noisy


def test_behind_the_scores_stand_templates_and_no_images(world: World) -> None:
    cell = Cell(Leak.IMAGE, NONE, RETRIEVAL, Threat.SCORE, 0)
    photos = world.images(world.split.probes)
    attacker = Cells(world)._attacker(cell, photos)
    assert attacker.score(torch.arange(2), photos[:2]).min() > 0.99
    meter: Any = attacker._score
    enrolled = meter._function.args[1]
    assert enrolled.shape == (len(photos), world.recognizer.embedding_size)


def test_scores_are_those_of_the_stored_records(world: World) -> None:
    cell = Cell(Leak.TEMPLATE, NONE, RETRIEVAL, Threat.SCORE, 0)
    stored = world.victim_records(NONE, Leak.TEMPLATE).tensors["records"]
    attacker = Cells(world)._attacker(cell, stored)
    images = world.attacker.images[:4]
    found = attacker.score(torch.tensor([5, 0, 0, 2]), images)
    own = world.recognizer.leaking(Leak.TEMPLATE, images)
    wanted = torch.cosine_similarity(own, stored[[5, 0, 0, 2]])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)


def test_utility_of_no_defense_is_the_same_both_ways(world: World) -> None:
    scores = world.pair_scores(NONE, Leak.TEMPLATE)
    fresh, stored = scores.tensors["stored-vs-fresh"], scores.tensors["stored-vs-stored"]
    torch.testing.assert_close(fresh, stored, rtol=0, atol=1e-2)
    assert len(stored) == len(world.split.pairs.left)
    table = {score.metric: score.estimate.value for score in utility(world, NONE, Leak.TEMPLATE)}
    assert table["bytes-per-record"] == 512
    assert table["storage-factor"] == pytest.approx(128 / (3 * 112 * 112))
    assert table["accuracy.stored-vs-stored"] > 0.9


@pytest.mark.parametrize(
    ("name", "given"), [("none", ()), ("iom-grp", ()), ("biohash", (("key", "leaked"),))]
)
def test_listed_pairs_have_the_scores_that_all_with_all_would_have(
    world: World, name: str, given: tuple[tuple[str, Any], ...]
) -> None:
    spec = Spec("defense", name, given)
    pairs, photos = world.split.pairs, world.pair_photos
    artifact = world.pair_scores(spec, Leak.TEMPLATE)
    defense = world.deployed(spec, Leak.TEMPLATE)
    fields = {
        **world.record_fields(spec, Leak.TEMPLATE, world._content(photos), "defender"),
        "pairs": [pairs.left.tolist(), pairs.right.tolist()],
    }
    made, _ = protect(defense, world.crops(photos), draws(fields), keep=defense.comparable)
    records = made["records"]
    parts = world.images(photos).split(BATCH)
    plain = torch.cat([world.recognizer.leaking(Leak.TEMPLATE, part) for part in parts])
    rows = [np.searchsorted(photos, side) for side in (pairs.right, pairs.left)]
    ways = {"stored-vs-stored": records, "stored-vs-fresh": comparables(defense, plain)}
    assert artifact.tensors.keys() <= ways.keys()
    for way, found in artifact.tensors.items():
        wanted = defense.score(ways[way], records)[rows[0], rows[1]]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-2)
        assert found.std() > 0.05


def test_protected_probes_alone_are_matched_where_plain_ones_cannot_be(world: World) -> None:
    scores = world.pair_scores(Spec("defense", "biohash", ()), Leak.TEMPLATE)
    assert set(scores.tensors) == {"stored-vs-stored"}


def test_records_with_keys_of_their_own_meet_plain_probes_only(world: World) -> None:
    spec = Spec("defense", "biohash", (("key", "subject"),))
    assert set(world.pair_scores(spec, Leak.TEMPLATE).tensors) == {"stored-vs-fresh"}
    table = {score.metric: score.estimate for score in utility(world, spec, Leak.TEMPLATE)}
    assert table["accuracy.stored-vs-fresh"].value > 0.9
    linked = protection(world, spec, Leak.TEMPLATE)
    assert linked is not None
    pairs, scores = linked
    found = {score.metric: score.estimate for score in linkability(scores, pairs)}
    assert found["linkage-auc"].value < 0.7
    assert found["d-sys"].n == found["linkage-auc"].n > 0


@dataclass
class Labelled(Defense):
    """Stores a key and a number of the face, and shows one of them instead of a similarity."""

    leaks = frozenset({Leak.TEMPLATE})
    renewable = True
    key = -1

    side: str = "left"
    column: int = 0

    def renewed(self, generator: torch.Generator) -> Self:
        """Return this instance with another key."""
        other = copy.copy(self)
        other.key = int(torch.randint(2**20, (1,), generator=generator))
        return other

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return the key and the first number of each template."""
        return torch.stack([torch.full_like(x[:, 0], self.key), x[:, 0]], 1)

    def linkage(self, records: Tensor, others: Tensor) -> Tensor:
        """Return a column of one side."""
        if self.side == "left":
            return records[:, self.column, None].expand(-1, len(others))
        return others[:, self.column].expand(len(records), -1)


@pytest.mark.usefixtures("registries")
def test_every_person_is_with_two_applications_that_have_keys_of_their_own(world: World) -> None:
    DEFENSES.register("labelled")(Labelled)

    def shown(side: str, column: int) -> tuple[Pairs, NDArray[np.float64]]:
        spec = Spec("defense", "labelled", (("side", side), ("column", column)))
        linked = protection(world, spec, Leak.TEMPLATE)
        assert linked is not None
        return linked

    pairs, left_keys = shown("left", 0)
    right_keys = shown("right", 0)[1]
    people = len(np.unique(pairs.left_identity))
    assert people > 3
    owners = {(p, k) for p, k in zip(pairs.left_identity, left_keys, strict=True)}
    assert len(owners) == len(set(left_keys)) == len(set(right_keys)) == people
    assert not set(left_keys) & set(right_keys)
    assert -1 not in left_keys
    photos = world.images(world.pair_photos)
    faces = world.recognizer.leaking(Leak.TEMPLATE, photos)[:, 0].numpy()
    for side, rows in (("left", pairs.left), ("right", pairs.right)):
        np.testing.assert_allclose(shown(side, 1)[1], faces[rows], rtol=0, atol=1e-3)


def test_nothing_is_linked_where_nothing_can_be_renewed(world: World) -> None:
    assert protection(world, NONE, Leak.TEMPLATE) is None


# --- small parts --------------------------------------------------------------------------------


def test_seeded_leaves_the_global_generator_as_it_was() -> None:
    with seeded(0):
        first = torch.rand(3)
        torch.rand(9)
    torch.manual_seed(5)
    with seeded(0):
        assert torch.equal(torch.rand(3), first)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)


def test_a_device_is_chosen_or_refused() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match=r"device 'gpu' cannot be used \(.*\): give --device cpu"):
        choose_device("gpu")


def test_a_recognizer_takes_its_parameters(world: World) -> None:
    deep = make_recognizer(
        NamedRecognizer.model_validate({"name": "sface", "cut": 6, "precision": "float32"}), "cpu"
    )
    assert deep.feature_shape != world.recognizer.feature_shape
    assert deep.precision == "float32"


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"cut": "x"}, "parameter 'cut' of recognizer 'sface' is wrong .*integer.*are cut, prec"),
        ({"precision": 3}, "parameter 'precision' of recognizer 'sface' is wrong .*string"),
        ({"depth": 3}, "parameter 'depth' of recognizer 'sface' is wrong .*Unexpected"),
        ({"cut": 99}, "cut 99 of sface is no block: give a number from 1 to 26"),
    ],
)
def test_a_wrong_parameter_of_a_recognizer_is_named(
    parameters: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        make_recognizer(NamedRecognizer(name="sface", **parameters), "cpu")


def test_two_recognizers_of_one_kind_are_told_apart_by_their_labels(world: World) -> None:
    judge = NamedRecognizer.model_validate({"name": "sface", "cut": 6, "label": "sface-6"})
    judges = another(world, judges=(judge,)).judges
    assert list(judges) == ["sface", "sface-6"]
    assert judges["sface"].feature_shape != judges["sface-6"].feature_shape


PLUGIN = '''
from dataclasses import dataclass
from typing import Annotated
from pydantic import Field
from attacks.base import Attack
from bench.leaks import Leak
from bench.registry import ATTACKS
from bench.threats import Threat

@ATTACKS.register("white")
@dataclass
class White(Attack):
    """Paints."""

    leaks = frozenset({Leak.TEMPLATE})
    threats = frozenset({Threat.TRANSFER})

    level: Annotated[float, Field(ge=0, le=1)] = 1.0
    name: str = "x"

    def fit(self, attacker):
        self.learned = 3

    def reconstruct(self, records):
        raise OSError("never reached")
'''


@pytest.mark.usefixtures("registries")
def test_parameters_are_fields_and_nothing_that_was_learned(tmp_path: Path) -> None:
    path = tmp_path / "white.py"
    path.write_text(PLUGIN)
    white: type[Plugin] = load_plugin(path).White
    one = white.create("attack 'white'", {"level": 1})
    one.fit(None)  # type: ignore[attr-defined]
    assert one.parameters == {"level": 1.0, "name": "x"}
    for wrong in ({"level": 2}, {"level": "high"}, {"name": 3}, {"learned": 3}):
        [field] = wrong
        with pytest.raises(
            UserError, match=rf"'{field}' of attack 'white' cannot be .*level, name"
        ):
            white.create("attack 'white'", wrong)
