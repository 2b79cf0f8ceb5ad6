"""Which way an attacker reads records, and what a search learns of a ball, on known noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from stand_ins import Means
from torch import Tensor
from torch.nn import functional

from attacks.feasibility import Feasibility, ball, total_variation
from attacks.gradient import Gradient
from attacks.multi_record import MultiRecord
from attacks.reading import clarity, held_out_clarity, straight_through
from bench.leaks import Leak
from bench.registry import DEFENSES
from bench.threats import Attacker, Held, Threat
from bench.world import seeded
from defenses.base import Defender, Defense

if TYPE_CHECKING:
    from numpy.typing import NDArray

PEOPLE, PHOTOS = 8, 3
SIZE = 12


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Grid(Means):
    """Another tail, which sums rows."""

    embedding_size = 42

    def tail(self, features: Tensor) -> Tensor:
        return functional.normalize(features.mean(3).flatten(1) - 0.5, dim=1)


@pytest.fixture(scope="module")
def people() -> NDArray[np.str_]:
    return np.repeat([f"p{number}" for number in range(PEOPLE)], PHOTOS)


@pytest.fixture(scope="module")
def images() -> Tensor:
    coarse = 0.5 + 0.15 * normal(PEOPLE * PHOTOS, 3, 14, 14)
    return functional.interpolate(coarse, (112, 112), mode="nearest").clamp(0, 1)


def adaptive(
    leak: Leak, images: Tensor, people: NDArray[np.str_], name: str, **parameters: Any
) -> tuple[Attacker, Defense]:
    """Return an attacker with two instances of a defense, and a third one that is not its own."""
    recognizer = Grid()
    kind = DEFENSES.get(name)
    one, two, deployed = (
        kind.create(name, parameters).setup(Defender(leak, images, people, recognizer, seed, "cpu"))
        for seed in (1, 2, 3)
    )
    clean = recognizer.leaking(leak, images)

    def held(defense: Defense, seed: int) -> Held:
        noise = torch.Generator().manual_seed(seed)
        return Held(defense, lambda: defense.protect(clean, generator=noise))

    attacker = Attacker(
        Threat.ADAPTIVE,
        leak,
        images,
        people,
        seed=0,
        device="cpu",
        recognizer=recognizer,
        fresh=[held(one, 1), held(two, 2)],
    )
    return attacker, deployed


def test_clarity_is_the_distance_of_a_person_from_others_in_their_deviations() -> None:
    people = np.array(["a", "b", "c", "d"])
    wanted = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0, 1, 0], [-1, 0, 0]])
    found = torch.tensor([[2.0, 0, 0]] * 4)
    rows = []
    for row in range(4):
        cosines = np.array([1, 0.6, 0, -1])
        others = np.delete(cosines, row)
        rows.append((cosines[row] - others.mean()) / others.std())
    assert clarity(found, wanted, people) == pytest.approx(np.mean(rows), abs=1e-5)


def test_clarity_ignores_other_photos_of_the_person() -> None:
    wanted = normal(6, SIZE)
    people = np.array(["a", "a", "b", "b", "c", "c"])
    copied = torch.cat([wanted[:1], wanted[:1], wanted[2:]])
    same = clarity(wanted[:1].expand(6, -1), copied, people)
    assert np.isfinite(same)
    assert clarity(wanted, wanted, people) > 2


def test_people_held_out_expose_a_regression_that_learned_nothing(
    people: NDArray[np.str_],
) -> None:
    clean = normal(len(people), SIZE)
    rotation = torch.linalg.qr(normal(SIZE, SIZE, seed=1)).Q
    undone = held_out_clarity([clean @ rotation], clean, people, change=False)
    unrelated = held_out_clarity([normal(len(people), SIZE, seed=2)], clean, people, change=False)
    assert undone > 2
    assert unrelated < 0.7


def test_a_gradient_goes_straight_through_rounding(
    images: Tensor, people: NDArray[np.str_]
) -> None:
    _, defense = adaptive(Leak.TEMPLATE, images, people, "quantize", bits=2)
    clean = Grid().embed(images).requires_grad_()
    records = straight_through(defense, clean)
    wanted = defense.protect(clean.detach(), generator=torch.Generator())
    torch.testing.assert_close(records, wanted)
    weights = normal(*records.shape)
    (records * weights).sum().backward()
    torch.testing.assert_close(clean.grad, weights)


@pytest.mark.parametrize(
    ("name", "parameters", "repaired", "through"),
    [
        # Coarse cells without a secret: candidates are rounded alike.
        ("quantize", {"bits": 1}, None, True),
        # Records under secret keys of their own tell nothing, and are no embeddings.
        ("biohash", {"bits": 32}, True, False),
    ],
)
def test_gradient_reads_records_in_the_way_that_tells_people_apart(
    name: str,
    parameters: dict[str, Any],
    repaired: bool | None,
    through: bool,
    images: Tensor,
    people: NDArray[np.str_],
) -> None:
    attacker, _ = adaptive(Leak.TEMPLATE, images, people, name, **parameters)
    attack = Gradient(components=5, steps=0)
    with seeded(0):
        attack.fit(attacker)
    assert (attack.encode is not None) is through
    if repaired is not None:
        assert (attack.repair is not None) is repaired


def test_an_adaptive_attacker_leaves_records_as_they_are_where_nothing_can_be_learned(
    images: Tensor, people: NDArray[np.str_]
) -> None:
    attacker, _ = adaptive(Leak.FEATURES, images, people, "sign-noise", eps=0.3)
    attack = Gradient(components=5, steps=0)
    with seeded(0):
        attack.fit(attacker)
    records = attacker.pairs()[0].records
    assert attack.repair is None
    assert torch.equal(attack.target(records), Grid().tail(records))


def test_more_restarts_end_nearer(images: Tensor, people: NDArray[np.str_]) -> None:
    recognizer = Grid()
    attacker = Attacker(
        Threat.TRANSFER,
        Leak.TEMPLATE,
        images[:20],
        people[:20],
        seed=0,
        device="cpu",
        recognizer=recognizer,
    )
    wanted = recognizer.embed(images[20:])

    def similarity(restarts: int) -> Tensor:
        attack = Gradient(components=19, steps=4, shift=0, restarts=restarts, prior=0.0)
        with seeded(0):
            attack.fit(attacker)
            found = recognizer.embed(attack.reconstruct(wanted).flip(3))
            return functional.cosine_similarity(found, wanted)

    assert similarity(6).mean() > similarity(1).mean()


# --- several records ----------------------------------------------------------------------------


def told(
    counts: tuple[int, ...],
    images: Tensor,
    people: NDArray[np.str_],
    name: str,
    **parameters: Any,
) -> list[float]:
    """Return how near the template is that some records of each of four faces give back."""
    attacker, deployed = adaptive(Leak.TEMPLATE, images, people, name, **parameters)
    faces = functional.interpolate(0.5 + 0.1 * normal(4, 3, 14, 14, seed=3), 112)
    clean = Grid().embed(faces)
    noise = torch.Generator().manual_seed(8)
    records = torch.stack([deployed.protect(clean, generator=noise) for _ in range(8)], 1)

    def similarity(count: int) -> float:
        attack = MultiRecord(components=5, steps=0, records=count, starts=1)
        with seeded(0):
            attack.fit(attacker)
            found = attack.target(records[:, :count] if count > 1 else records[:, 0])
        return float(functional.cosine_similarity(found, clean).mean())

    return [similarity(count) for count in counts]


def test_more_records_of_a_face_tell_more(images: Tensor, people: NDArray[np.str_]) -> None:
    one, two, four, eight = told((1, 2, 4, 8), images, people, "gaussian-noise", eps=2.0)
    assert one + 0.02 < two
    assert two + 0.01 < four < eight


def test_records_under_several_keys_tell_more(images: Tensor, people: NDArray[np.str_]) -> None:
    one, four = told((1, 4), images, people, "slerpface", group=6)
    assert one + 0.02 < four


def test_records_that_are_all_the_same_tell_no_more(
    images: Tensor, people: NDArray[np.str_]
) -> None:
    one, four = told((1, 4), images, people, "quantize", bits=1)
    assert one == pytest.approx(four, abs=1e-5)


# --- feasibility --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noise", "radius"),
    [
        (0.6 * normal(4, 2, 30, 30).sign(), 0.6),
        (0.6 * (2 * torch.rand(4, 2, 30, 30, generator=torch.Generator()) - 1), 0.594),
        (0.6 * normal(4, 2, 30, 30), 0.0),
    ],
)
def test_the_ball_is_measured_where_noise_has_a_bound(noise: Tensor, radius: float) -> None:
    torch.testing.assert_close(ball(noise), torch.full((2,), radius), rtol=0, atol=0.01)


def test_total_variation_is_that_of_the_pixels() -> None:
    ramp = torch.arange(4.0).expand(1, 3, 4, 4) * torch.tensor([1.0])
    assert float(total_variation(ramp)) == pytest.approx(1.0)
    assert float(total_variation(ramp.mT.contiguous())) == pytest.approx(1.0)


def test_an_image_in_the_ball_is_nearer_than_one_that_fits_the_noise(
    images: Tensor, people: NDArray[np.str_]
) -> None:
    attacker, deployed = adaptive(Leak.FEATURES, images, people, "sign-noise", eps=0.6)
    smooth = functional.interpolate(0.5 + 0.2 * normal(4, 3, 3, 3, seed=5), (112, 112))
    clean = Grid().head(smooth)
    records = deployed.protect(clean, generator=torch.Generator().manual_seed(9))

    def error(*, knows: bool) -> float:
        attack = Feasibility(steps=60, rate=0.02)
        attack.fit(attacker)
        if not knows:
            attack.radius = torch.zeros_like(attack.radius)
        return float((attack.reconstruct(records) - smooth).abs().mean())

    assert error(knows=True) < 0.8 * error(knows=False)


class Blurring(Grid):
    """Another tail again, which takes means of neighbours first."""

    def tail(self, features: Tensor) -> Tensor:
        kernel = torch.full((3, 1, 3, 3), 1 / 9)
        return super().tail(functional.conv2d(features, kernel, padding=1, groups=3))


def test_what_the_tail_drops_from_a_record_misleads_nobody(images: Tensor) -> None:
    smooth = functional.interpolate(0.5 + 0.2 * normal(4, 3, 3, 3, seed=5), (112, 112))
    clean = Blurring().head(smooth)
    rows, columns = torch.meshgrid(torch.arange(14), torch.arange(14), indexing="ij")
    board = (-1.0) ** (rows + columns)
    records = clean + 0.5 * board

    def error(recognizer: Grid) -> float:
        names = np.array([f"p{number}" for number in range(len(images))])
        attack = Feasibility(steps=60, rate=0.02)
        attack.fit(
            Attacker(
                Threat.TRANSFER,
                Leak.FEATURES,
                images,
                names,
                seed=0,
                device="cpu",
                recognizer=recognizer,
            )
        )
        return float((attack.reconstruct(records) - smooth).abs().mean())

    assert error(Blurring()) < 0.5 * error(Grid())
