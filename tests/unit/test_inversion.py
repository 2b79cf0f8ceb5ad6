"""What each built-in attack computes, on records whose inverse is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.model_selection import GridSearchCV, GroupKFold
from stand_ins import Means, attacker_in
from torch import Tensor

from attacks.gradient import OtherView
from attacks.ridge import PENALTIES, Ridge
from bench.leaks import Leak
from bench.networks import half_precision
from bench.recognizers.dlib import DLib
from bench.registry import ATTACKS, DEFENSES
from bench.subspace import FaceSubspace
from bench.threats import Attacker, Held, Meter, Threat
from bench.world import seeded
from defenses.base import Defender

if TYPE_CHECKING:
    from attacks.base import Attack
    from bench.world import World
    from defenses.keyed import Keyed


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def queried(images: Tensor, records: Tensor, leak: Leak = Leak.TEMPLATE) -> Attacker:
    """Return an attacker whose queries answer its images with the given records."""
    meter = Meter(lambda _: records, len(images), "query")
    names = np.array(["somebody"] * len(images))
    return Attacker(Threat.QUERY, leak, images, names, seed=0, device="cpu", query=meter)


def fitted(name: str, attacker: Attacker, **parameters: Any) -> Attack:
    attack = ATTACKS.get(name).create(f"attack {name!r}", parameters)
    with seeded(0):
        attack.fit(attacker)
    return attack


@pytest.fixture(scope="module")
def own(world: World) -> Tensor:
    return world.attacker.images


# --- a search that looks like the person to several networks -------------------------------------


def test_a_public_recognizer_is_convinced_too(world: World) -> None:
    other = DLib()
    leaked = world.recognizer.leaking(Leak.TEMPLATE, world.images(world.split.probes))

    def away(*public: DLib) -> float:
        attacker = attacker_in(world, Threat.TRANSFER, Leak.TEMPLATE, public=public)
        attack = fitted("gradient", attacker, components=15, steps=8)
        with seeded(0):
            found = attack.reconstruct(leaked)
        own = world.recognizer.leaking(Leak.TEMPLATE, attacker.images)
        view = OtherView(other, attacker, own)
        return float(view.distance(found, view.expected(leaked)).mean())

    assert away(other) < away() - 0.05


# --- ridge regression ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [12, 50])
def test_linear_is_ridge_regression(size: int, own: Tensor) -> None:
    """Records of fewer and of more numbers than there are images."""
    records = normal(len(own), size)
    attack = fitted("linear", queried(own, records), ridge=0.4)
    centered = (records - records.mean(0)).double()
    penalty = 0.4 * float(centered.square().sum(0).mean())
    reference = SklearnRidge(alpha=penalty).fit(records.double(), own.flatten(1).double())
    probes = normal(3, size, seed=1)
    wanted = torch.from_numpy(reference.predict(probes.double())).clamp(0, 1).float()
    torch.testing.assert_close(attack.reconstruct(probes).flatten(1), wanted, rtol=0, atol=1e-5)


def test_linear_learns_from_all_pairs(world: World, own: Tensor) -> None:
    def held(shift: float) -> Held:
        return Held(object(), lambda: normal(len(own), 5) + shift)  # type: ignore[arg-type]

    attacker = attacker_in(world, Threat.ADAPTIVE, Leak.TEMPLATE, fresh=[held(0), held(10)])
    attack: Any = fitted("linear", attacker)
    torch.testing.assert_close(attack.record_mean, (normal(len(own), 5) + 5).double().mean(0))


def test_ridge_is_the_regression_that_predicts_new_people_best() -> None:
    """Each output by itself, against a search over penalties by another library."""
    inputs, people = normal(60, 8), np.repeat([f"{i}" for i in range(20)], 3)
    noise = torch.tensor([0.1, 1.0, 10.0])
    outputs = inputs @ normal(8, 3, seed=1) + noise * normal(60, 3, seed=2) + 5
    unseen = normal(9, 8, seed=3)
    found = Ridge(inputs, outputs, people)(unseen)
    assert found.dtype == torch.float32
    chosen = set()
    for column, wanted in zip(found.T, outputs.double().T, strict=True):
        search = GridSearchCV(
            SklearnRidge(), {"alpha": PENALTIES}, scoring="neg_mean_squared_error", cv=GroupKFold(5)
        )
        search.fit(inputs.double(), wanted, groups=people)
        reference = torch.from_numpy(search.predict(unseen.double())).float()
        torch.testing.assert_close(column, reference, rtol=0, atol=1e-5)
        chosen.add(search.best_params_["alpha"])
    assert len(chosen) > 1


@pytest.mark.parametrize("copies", [1, 50])
def test_ridge_undoes_a_linear_map(copies: int) -> None:
    """Of fewer and of more numbers than there are rows, where all rows show one person."""
    inputs = normal(200, 6).repeat(1, copies)
    outputs = normal(200, 6) @ normal(6, 4, seed=1) + normal(4, seed=2)
    found = Ridge(inputs, outputs, np.repeat("one", 200))(inputs[:9])
    torch.testing.assert_close(found, outputs[:9], rtol=0, atol=0.02)


def test_ridge_does_not_believe_noise() -> None:
    people = np.array([f"{i}" for i in range(40)])
    made = Ridge(normal(40, 20), normal(40, 3, seed=1), people)(normal(100, 20, seed=2))
    assert made.abs().mean() < 0.3


def test_ridge_does_not_learn_people_by_heart() -> None:
    """Three photos of everybody, alike in what is read and in what is wanted, by chance alone."""
    people = np.repeat([f"{i}" for i in range(20)], 3)
    inputs = normal(20, 30).repeat_interleave(3, 0) + 0.01 * normal(60, 30, seed=1)
    outputs = normal(20, 4, seed=2).repeat_interleave(3, 0)
    unseen = normal(100, 30, seed=3)
    by_person = Ridge(inputs, outputs, people)(unseen).abs().mean()
    by_row = Ridge(inputs, outputs, np.arange(60).astype(str))(unseen).abs().mean()
    assert by_person < 0.5 * by_row


# --- retrieval ----------------------------------------------------------------------------------


def test_retrieval_finds_the_own_image_of_each_record(own: Tensor) -> None:
    records = normal(len(own), 30) + 100
    attack = fitted("retrieval", queried(own, records))
    assert torch.equal(attack.reconstruct(records), own)
    near = attack.reconstruct(records[[4, 2]] + 0.05 * normal(2, 30, seed=1))
    assert torch.equal(near, own[[4, 2]])


def test_retrieval_reads_records_of_any_shape(own: Tensor) -> None:
    records = normal(len(own), 2, 4, 4)
    attack = fitted("retrieval", queried(own, records, Leak.FEATURES))
    assert torch.equal(attack.reconstruct(records[3:5]), own[3:5])


def test_retrieval_holds_no_copy_of_the_records(own: Tensor) -> None:
    records = normal(len(own), 30)
    attack: Any = fitted("retrieval", queried(own, records))
    assert attack.blocks[0].data_ptr() == records.data_ptr()
    assert sum(len(block) for block in attack.blocks) == len(own)


# --- gradient -----------------------------------------------------------------------------------


def test_the_subspace_is_that_of_principal_components(own: Tensor) -> None:
    space = FaceSubspace(own, 6)
    flat = own.flatten(1).double()
    torch.testing.assert_close(space.mean.double(), flat.mean(0), rtol=0, atol=1e-6)
    _, values, rows = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    deviation = values[:6] / (len(own) - 1) ** 0.5
    torch.testing.assert_close(space.basis.norm(dim=1).double(), deviation, rtol=1e-3, atol=0)
    cosine = torch.cosine_similarity(space.basis.double(), rows[:6], dim=1).abs()
    torch.testing.assert_close(cosine, torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-3)


def test_all_components_span_the_images(own: Tensor) -> None:
    space = FaceSubspace(own, 1000)
    assert len(space) == len(own) - 1
    coordinates = space.coordinates(own)
    torch.testing.assert_close(space.faces(coordinates), own, rtol=0, atol=1e-3)
    torch.testing.assert_close(coordinates.var(0), torch.ones(len(space)), rtol=1e-2, atol=0)


def test_duplicate_images_add_no_component(own: Tensor) -> None:
    space = FaceSubspace(torch.cat([own, own]), 1000)
    assert len(space) == len(own) - 1
    assert torch.isfinite(space.coordinates(own)).all()


@pytest.fixture(scope="module")
def transfer(world: World) -> Attacker:
    return attacker_in(world, Threat.TRANSFER, Leak.TEMPLATE)


def test_the_search_approaches_the_leaked_template(
    transfer: Attacker, world: World, faces: Tensor
) -> None:
    templates = world.recognizer.leaking(Leak.TEMPLATE, faces)

    def similarity(steps: int) -> float:
        attack = fitted("gradient", transfer, steps=steps, prior=0.0)
        with seeded(0):
            found = attack.reconstruct(templates)
        made = world.recognizer.leaking(Leak.TEMPLATE, found)
        return float(torch.cosine_similarity(made, templates).mean())

    start, end = similarity(0), similarity(8)
    assert end > start + 0.1


def test_the_generator_and_its_components_make_the_own_images(
    transfer: Attacker, own: Tensor
) -> None:
    attack: Any = fitted("latent", transfer, generator_steps=2, generator_width=8)
    with torch.no_grad():
        found = attack.faces(attack.coordinates(own))
    assert len(attack.space) < len(own)
    assert (found - own).abs().mean() < 0.02
    assert (attack._painted_like(own) - own).abs().mean() > 0.1


def test_the_latent_search_leaves_its_start_as_far_as_the_prior_lets_it(
    transfer: Attacker, world: World, faces: Tensor
) -> None:
    templates = world.recognizer.leaking(Leak.TEMPLATE, faces)

    def search(steps: int, prior: float) -> tuple[Tensor, float]:
        options = {"generator_steps": 5, "generator_width": 8, "steps": steps, "prior": prior}
        attack = fitted("latent", transfer, **options)
        with seeded(0):
            found = attack.reconstruct(templates)
        made = world.recognizer.leaking(Leak.TEMPLATE, found)
        return found, float(torch.cosine_similarity(made, templates).mean())

    start, similar = search(0, 0.0)
    free, near_target = search(8, 0.0)
    held, _ = search(8, 1e3)
    assert near_target > similar + 0.1
    assert (held - start).abs().mean() < 0.5 * (free - start).abs().mean()


def test_the_probes_of_a_batch_do_not_influence_each_other(
    transfer: Attacker, world: World, faces: Tensor
) -> None:
    templates = world.recognizer.leaking(Leak.TEMPLATE, faces)
    attack = fitted("gradient", transfer, steps=3)
    with seeded(0):
        together = attack.reconstruct(templates)
    with seeded(0):
        alone = attack.reconstruct(templates[2:3])
    # Arithmetic in bfloat16 depends a little on the size of the batch.
    assert (together[2:3] - alone).abs().mean() < 0.01
    assert (together[1:2] - alone).abs().mean() > 0.03


def test_a_code_that_is_no_embedding_is_refused_under_transfer(transfer: Attacker) -> None:
    with pytest.raises(ValueError, match="length 64 are no embeddings of 128 numbers"):
        fitted("gradient", transfer).reconstruct(torch.zeros(2, 64))


# --- trained decoders ---------------------------------------------------------------------------


def test_the_unet_learns_to_undo_what_was_done_to_images(own: Tensor) -> None:
    negative = 1 - own
    attack = fitted("unet", queried(own, negative, Leak.IMAGE), steps=25, width=8, rate=1e-2)
    found = attack.reconstruct(negative)
    mean = own.mean(0, keepdim=True)
    assert (found - own).abs().mean() < 0.8 * (mean - own).abs().mean()


def test_the_decoder_learns_a_face_from_a_template(own: Tensor) -> None:
    templates = torch.eye(len(own))
    attack = fitted("decoder", queried(own, templates), steps=12, width=8, rate=1e-2)
    found = attack.reconstruct(templates)
    assert (found - own).abs().mean() < (torch.full_like(own, 0.5) - own).abs().mean()


def test_denoise_first_restores_the_map(world: World, own: Tensor) -> None:
    clean = Means().head(own)
    fresh = [Held(object(), lambda: clean + 1)]  # type: ignore[arg-type]
    attacker = attacker_in(world, Threat.ADAPTIVE, Leak.FEATURES, recognizer=Means(), fresh=fresh)
    attack: Any = fitted("denoise", attacker, steps=40, width=8, rate=1e-2)
    with torch.no_grad(), half_precision("cpu"):
        restored = attack.purifier(clean + 1)
        images = attack.inverter(restored)
    assert (restored - clean).abs().mean() < 0.3
    assert torch.equal(attack.reconstruct(clean + 1), images)


# --- more of the person than the mean face shows ------------------------------------------------


@pytest.mark.parametrize(
    ("name", "leak", "options", "least"),
    [
        ("latent", Leak.TEMPLATE, {"generator_steps": 5, "generator_width": 8, "steps": 8}, 0.1),
        ("map-embedding", Leak.TEMPLATE, {"inverter_steps": 8, "scattered": 500}, 0.1),
        ("distill", Leak.FEATURES, {"steps": 4, "batch": 8, "inverter_steps": 8}, 0.05),
    ],
)
def test_even_a_short_search_shows_more_of_the_person_than_the_mean_face(
    name: str, leak: Leak, options: dict[str, Any], least: float, world: World, faces: Tensor
) -> None:
    """Over 3 seeds, with 10 steps: latent .25 to .26, map-embedding .20 to .22, distill .11 to .15.

    The decoder of `gan-decoder` needs more than these 20 photos: .05 to .09, and not on every face.
    """
    team, recognizer = world.attacker, world.recognizer
    defender = Defender(leak, team.images, team.identities, recognizer, 0, "cpu")
    noise = DEFENSES.get("gaussian-noise").create("x", {"eps": 0.3}).setup(defender)

    def records(images: Tensor) -> Tensor:
        clean: Tensor = recognizer.leaking(leak, images)
        return noise.protect(clean, generator=torch.Generator().manual_seed(0))

    fresh = [Held(noise, lambda: records(team.images))]
    attack = fitted(name, attacker_in(world, Threat.ADAPTIVE, leak, fresh=fresh), **options)
    with seeded(0):
        found = attack.reconstruct(records(faces))
    mean = team.images.mean(0, keepdim=True).expand_as(faces)
    assert likeness(world, found, faces) - likeness(world, mean, faces) > least


def likeness(world: World, found: Tensor, faces: Tensor) -> float:
    """Return the mean cosine of the embeddings of images and of the faces that they show."""
    one, other = (world.recognizer.leaking(Leak.TEMPLATE, x) for x in (found, faces))
    return float(torch.cosine_similarity(one, other).mean())


# --- pre-images ---------------------------------------------------------------------------------

HASHES = ["biohash", "mlp-hash", "iom-grp", "iom-urp", "imm", "diom"]


def scheme(name: str, world: World, seed: int = 0, **parameters: Any) -> Keyed:
    team = world.defender
    defender = Defender(Leak.TEMPLATE, team.images, team.identities, world.recognizer, seed, "cpu")
    made: Keyed = DEFENSES.get(name).create(name, parameters).setup(defender)
    return made


@pytest.mark.parametrize("name", HASHES)
def test_a_code_names_the_winners_of_its_contest(name: str, world: World) -> None:
    hashing = scheme(
        name, world, **({"steps": 0, "indices": 8, "width": 16} if name == "diom" else {})
    )
    templates = torch.nn.functional.normalize(normal(3, 128), dim=1)
    codes = hashing.protect(templates, generator=torch.Generator())
    key = hashing.key_of(codes[0])
    leaf = templates.clone().requires_grad_()
    contest = hashing.contest(leaf, key)
    assert contest is not None
    assert torch.equal(contest.argmax(2).float(), codes)
    contest.amax(2).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().sum() > 0


def test_a_hash_that_loses_the_sign_of_a_template_does_not_hide_it(
    world: World, own: Tensor, faces: Tensor
) -> None:
    deployed = scheme("iom-urp", world)
    templates = world.recognizer.leaking(Leak.TEMPLATE, faces)
    codes = deployed.protect(templates, generator=torch.Generator())
    assert torch.equal(deployed.protect(-templates, generator=torch.Generator()), codes)
    instance = Held(
        deployed, lambda: deployed.protect(own.flatten(1)[:, :128], generator=torch.Generator())
    )
    attacker = Attacker(
        Threat.INSIDER,
        Leak.TEMPLATE,
        own,
        world.attacker.identities,
        seed=0,
        device="cpu",
        recognizer=world.recognizer,
        fresh=[],
        deployed=instance,
    )
    attack: Any = fitted("preimage", attacker, steps=0, starts=1, usual=0.0)
    # The search starts, and ends, on the wrong side.
    attack.own = torch.nn.functional.normalize(0.02 * normal(*templates.shape) - templates, dim=1)
    attack.mean = templates.mean(0)
    assert torch.cosine_similarity(attack.target(codes), templates).min() > 0.8


@pytest.mark.parametrize(("name", "least"), [("biohash", 0.75), ("iom-grp", 0.9)])
def test_the_key_gives_the_template_back_and_another_key_does_not(
    name: str, least: float, world: World, own: Tensor
) -> None:
    deployed = scheme(name, world)
    templates = torch.nn.functional.normalize(normal(6, 128), dim=1)
    codes = deployed.protect(templates, generator=torch.Generator())

    def similarity(held: Keyed) -> float:
        instance = Held(
            held, lambda: held.protect(normal(len(own), 128), generator=torch.Generator())
        )
        rights = {"fresh": [], "deployed": instance}
        attacker = attacker_in(world, Threat.INSIDER, Leak.TEMPLATE, **rights)
        found = fitted("preimage", attacker, steps=1, usual=0.0).target(codes)  # type: ignore[attr-defined]
        return float(torch.cosine_similarity(found, templates).mean())

    assert similarity(deployed) > least
    assert abs(similarity(scheme(name, world, seed=1))) < 0.3
