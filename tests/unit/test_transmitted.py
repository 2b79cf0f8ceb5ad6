"""Transmitted images: what the frequency family sends, what least squares makes of it, servers."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from scipy import fft
from torch import Tensor
from torch.nn import functional

from attacks.dct_inverse import DCTInverse
from attacks.dct_refine import DCTRefine, Mending
from bench import training
from bench.leaks import Leak
from bench.metrics import psnr, ssim
from bench.networks import MapDecoder, channel_statistics
from bench.threats import Attacker, Held, Threat
from bench.world import seeded
from defenses import adapted
from defenses.base import Defender, Defense
from defenses.blur import Blur
from defenses.frequency import block_dct, duetface, partialface
from defenses.frequency.dctdp import DCTDP
from defenses.frequency.duetface import DuetFace
from defenses.frequency.minusface import MinusFace
from defenses.frequency.partialface import PartialFace
from defenses.frequency.ppfr_fd import PPFRFD
from defenses.instahide import InstaHide
from defenses.ldp_slicing import LDPSlicing
from defenses.scramble import BlockShuffle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.world import World


@pytest.fixture(scope="module")
def scene(world: World) -> Defender:
    team = world.defender
    return Defender(Leak.IMAGE, team.images, team.identities, world.recognizer, 3, "cpu")


def draws(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the linear map and its inverse -------------------------------------------------------------


def test_some_channels_are_those_of_all(faces: Tensor) -> None:
    channels = (24, 3, 63)
    wanted = block_dct.forward(faces[:2]).unflatten(1, (3, 64))[:, :, channels].flatten(1, 2)
    torch.testing.assert_close(block_dct.forward(faces[:2], channels), wanted)


def test_decode_is_the_papers_inverse(faces: Tensor) -> None:
    coefficients = block_dct.forward(faces[:1].double())
    blocks = coefficients.numpy().reshape(3, 8, 8, 112, 112).transpose(0, 3, 4, 1, 2)
    large = fft.idctn(blocks, axes=(3, 4), norm="ortho").transpose(0, 1, 3, 2, 4)
    luma, blue, red = torch.from_numpy(large.reshape(3, 1, 1, 896, 896))
    luma = luma + 128
    rgb = torch.cat(
        [luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], 1
    )
    wanted = functional.interpolate(rgb / 255, (112, 112), mode="bilinear", align_corners=True)
    found = block_dct.decode(coefficients)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert (found - faces[:1]).abs().max() < 0.05


def luma(images: Tensor) -> Tensor:
    """Return the luma of images as gray images of mean 1/2: the constant is lost with DC."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    gray = torch.einsum("c,ncxy->nxy", weights, images)[:, None].expand(-1, 3, -1, -1)
    return (gray - gray.mean((2, 3), keepdim=True) + 0.5).clamp(0, 1)


@pytest.mark.parametrize(
    ("channels", "clean", "noisy", "peaks"),
    [
        pytest.param(block_dct.WITHOUT_DC, 0.9999, (0.998, 1), (100, 50), id="without DC"),
        pytest.param(partialface.KEPT, 0.9, (0.7, 0.9), (20, 20), id="PartialFace, all 54"),
        pytest.param(
            [partialface.KEPT[place] for place in partialface.RELEASED_SUBSETS[0]],
            0.75,
            (0.05, 0.35),
            (16, 8),
            id="PartialFace, 9 of 54",
        ),
    ],
)
def test_least_squares_sees_through_what_looks_black_until_there_is_noise(
    channels: Sequence[int],
    clean: float,
    noisy: tuple[float, float],
    peaks: tuple[float, float],
    faces: Tensor,
) -> None:
    """On another face: SSIM 1, .95 and .83 without noise, .999, .85 and .15 to .25 with it."""
    face = faces[:1].double()
    coefficients = block_dct.forward(face, channels)
    noise = torch.randn(coefficients.shape, generator=draws(), dtype=torch.float64)
    both = torch.cat([coefficients, coefficients + noise])
    if channels == block_dct.WITHOUT_DC:
        found = block_dct.inverse_without_dc(both)
    else:
        found = block_dct.least_squares(both, channels, 300)
    wanted = luma(face).expand(2, -1, -1, -1)
    similar, with_noise = ssim(luma(found), wanted, data_range=1.0).tolist()
    assert similar >= clean
    assert noisy[0] <= with_noise <= noisy[1]
    decibels = psnr(luma(found), wanted, data_range=1.0)
    assert (decibels >= torch.tensor(peaks)).all()


def test_least_squares_is_least(faces: Tensor) -> None:
    channels = duetface.SERVER
    clean = block_dct.forward(faces[:1].double(), channels)
    noisy = clean + torch.randn(clean.shape, generator=draws(), dtype=torch.float64)
    found = block_dct.least_squares(noisy, channels, 200)
    moved = found + 0.01 * torch.randn(found.shape, generator=draws(), dtype=torch.float64)
    left = [(block_dct.forward(x, channels) - noisy).square().sum() for x in (found, moved)]
    assert left[0] < left[1]
    assert left[0] < (clean - noisy).square().sum()


def test_the_released_tables_of_partialface_cover_what_is_kept_once() -> None:
    assert sorted(sum(partialface.RELEASED_SUBSETS, ())) == list(range(54))
    assert len(partialface.KEPT) == 54
    assert all(sum(divmod(channel, 8)) <= 3 for channel in partialface.DROPPED)
    assert all(sorted(order) == list(range(9)) for order in partialface.RELEASED_ORDERS)


def insider(defense: Defense, images: Tensor, world: World) -> Attacker:
    held = Held(defense, lambda: defense.protect(images, generator=draws(2)))
    fresh = [Held(defense.fresh(), lambda: torch.empty(0))]
    names = np.array([str(number) for number in range(len(images))])
    return Attacker(
        Threat.INSIDER,
        Leak.IMAGE,
        images,
        names,
        seed=0,
        device="cpu",
        recognizer=world.recognizer,
        fresh=fresh,
        deployed=held,
    )


@pytest.mark.parametrize("tables", ["released", "secret"])
def test_the_residual_tells_which_subset_and_order_partialface_drew(
    tables: Literal["released", "secret"], faces: Tensor, scene: Defender, world: World
) -> None:
    defense = PartialFace(tables=tables).setup(scene)
    records = defense.protect(faces[:4], generator=draws())
    drawn = torch.randint(len(defense.choices), (4,), generator=draws())
    attack = DCTInverse()
    attack.fit(insider(defense, scene.images, world))
    assert torch.equal(attack._likeliest(records)[0], drawn)


def test_records_that_are_no_selection_are_refused(scene: Defender, world: World) -> None:
    with pytest.raises(ValueError, match="records of PPFRFD are no selection of DCT channels"):
        DCTInverse().fit(insider(PPFRFD().setup(scene), scene.images, world))


# --- servers ------------------------------------------------------------------------------------


def every(scene: Defender, step: int) -> Defender:
    return replace(scene, images=scene.images[::step], identities=scene.identities[::step])


def coarse(images: Tensor) -> Tensor:
    return functional.avg_pool2d(images, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)


def server(scene: Defender, represent: adapted.Representation) -> adapted.Server:
    statistics = channel_statistics(represent(scene.images))
    made = adapted.Server(scene.recognizer, *statistics).requires_grad_(False)
    adapted.regress_stem(made, represent, scene.images)
    return made


def test_the_regressed_stem_of_an_affine_change_is_exact(scene: Defender, faces: Tensor) -> None:
    def represent(images: Tensor) -> Tensor:
        return 3 - 2 * images.flip(1)

    made = server(scene, represent)
    with torch.no_grad():
        found = made(represent(faces))
    wanted = scene.recognizer.embed(faces)
    assert functional.cosine_similarity(found, wanted).min() >= 0.99


def test_distillation_brings_embeddings_closer(scene: Defender) -> None:
    made = server(scene, coarse)
    wanted = scene.recognizer.leaking(Leak.TEMPLATE, scene.images)

    def loss() -> float:
        with torch.no_grad():
            found = made(coarse(scene.images))
        return float(1 - functional.cosine_similarity(found, wanted).mean())

    before = loss()
    with seeded(0):
        adapted.distill(made, coarse, scene, epochs=2, rate=5e-5)
    assert loss() < before


def test_arcface_draws_people_apart(scene: Defender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapted, "BATCH", 4)
    people = torch.from_numpy(np.unique(scene.identities, return_inverse=True)[1])
    clean = scene.recognizer.leaking(Leak.TEMPLATE, scene.images)
    start = server(scene, coarse)

    def error(arcface: float) -> float:
        made = copy.deepcopy(start)
        with seeded(0):
            adapted.distill(made, coarse, scene, epochs=2, rate=1e-4, arcface=arcface)
        with torch.no_grad():
            found = made(coarse(scene.images))
            return float(adapted.Course(made, clean, people).head(found, people))

    assert error(0.1) < 0.5 * error(0)


def test_the_server_is_trained_once_and_kept(scene: Defender, faces: Tensor) -> None:
    kept: dict[str, dict[str, Tensor]] = {}

    def keep(name: str, make: Any) -> dict[str, Tensor]:
        if name not in kept:
            kept[name] = {key: part.clone() for key, part in make(None).items()}
        return kept[name]

    def comparables() -> Tensor:
        world = Defender(
            Leak.IMAGE, scene.images, scene.identities, scene.recognizer, 3, "cpu", keep
        )
        defense = PartialFace(epochs=0).setup(world)
        return defense.comparable(defense.protect(faces, generator=draws()))

    first = comparables()
    trained = kept["server"]
    assert torch.equal(comparables(), first)
    assert kept == {"server": trained}


def test_an_interrupted_server_goes_on_to_the_same_bits(
    scene: Defender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(adapted, "BATCH", 2)
    monkeypatch.setattr(adapted, "STEM_IMAGES", 8)
    checkpoint, steps = tmp_path / "checkpoint", list[int]()
    forward = adapted.Server.forward

    def trained(path: Path | None, *, stop: bool) -> dict[str, Tensor]:
        def interrupted(server: adapted.Server, x: Tensor) -> Tensor:
            steps.append(len(x))
            if stop and len(steps) == 4:
                raise KeyboardInterrupt
            return forward(server, x)

        monkeypatch.setattr(adapted.Server, "forward", interrupted)

        def keep(name: str, make: Any) -> dict[str, Tensor]:
            weights: dict[str, Tensor] = make(path)
            return weights

        world = replace(every(scene, 2), keep=keep)
        return PartialFace(epochs=1, arcface=0.1).setup(world).server.state_dict()

    with pytest.raises(KeyboardInterrupt):
        trained(checkpoint, stop=True)
    assert checkpoint.is_file()
    steps.clear()
    resumed = trained(checkpoint, stop=False)
    assert len(steps) == 2  # of five: three were saved
    assert not checkpoint.exists()
    whole = trained(None, stop=False)
    assert all(torch.equal(part, whole[name]) for name, part in resumed.items())


# --- the methods --------------------------------------------------------------------------------


def test_dctdp_draws_laplace_noise_of_its_budget(scene: Defender, faces: Tensor) -> None:
    clean = block_dct.forward(faces, block_dct.WITHOUT_DC)
    noise = DCTDP(epsilon=2).setup(scene).protect(faces, generator=draws()) - clean
    # The mean magnitude of Laplace noise is its scale, sensitivity 1 over epsilon.
    assert float(noise.abs().mean()) == pytest.approx(0.5, abs=0.005)
    assert noise.shape[1] == 189


def test_dctdp_measures_the_range_of_every_coefficient(scene: Defender) -> None:
    defense = DCTDP(epsilon=2, sensitivity="measured").setup(scene)
    made = block_dct.forward(scene.images, block_dct.WITHOUT_DC)
    torch.testing.assert_close(defense.scale, (made.amax(0) - made.amin(0)) / 2)
    assert defense.found["epsilon-per-coefficient"] == pytest.approx(2)
    changing = int((defense.scale > 0).sum())
    assert defense.found["epsilon-per-image"] == pytest.approx(2 * changing, rel=1e-4)


def test_dctdp_as_released_spends_more_than_its_epsilon_says(scene: Defender) -> None:
    made = block_dct.forward(scene.images, block_dct.WITHOUT_DC)
    ranges = made.amax(0) - made.amin(0)
    found = DCTDP(epsilon=2).setup(scene).found["epsilon-per-coefficient"]
    assert found == pytest.approx(2 * float(ranges[ranges > 0].mean()), rel=1e-4)
    assert found > 2


def test_dctdp_learns_a_split_of_the_same_budget(scene: Defender, faces: Tensor) -> None:
    defense = DCTDP(epsilon=2, split_epochs=1).setup(scene)
    assert float((1 / defense.scale).mean()) == pytest.approx(2, rel=1e-3)
    assert defense.scale.std() > 0.01
    assert defense.shift.any()
    made = defense.protect(faces[:1], generator=draws())
    clean = block_dct.forward(faces[:1], block_dct.WITHOUT_DC)
    noise = made - clean - defense.shift
    assert float((noise.abs() / defense.scale).mean()) == pytest.approx(1, abs=0.01)


def test_duetface_sends_all_but_ten_channels_and_masks(scene: Defender, faces: Tensor) -> None:
    defense = DuetFace(client_epochs=0).setup(scene)
    records = defense.protect(faces, generator=draws())
    assert records.shape[1:] == (166, 112, 112)
    torch.testing.assert_close(records[:, :162], block_dct.forward(faces, duetface.SERVER))
    masks = records[:, 162:]
    assert masks.min() == 0
    assert masks.max() <= 1
    assert not masks[..., :30, :].any()  # the oval of the face begins below
    # The mask of stage n is that of 112 / 2^n pixels, repeated.
    pixels = sum((112 // 2**stage) ** 2 for stage in range(4))
    assert defense.bytes_per_record(records.shape[1:]) == 4 * (162 * 112**2 + pixels)
    coarse = functional.max_pool2d(masks[:, 3:], 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.equal(masks[:, 3:], torch.where(masks[:, 3:] > 0, coarse, masks[:, 3:]))


def test_duetfaces_server_follows_the_masks_once_it_learned_to(
    scene: Defender, faces: Tensor
) -> None:
    defense = DuetFace(client_epochs=0, epochs=0).setup(scene)
    records = defense.protect(faces[:2], generator=draws())
    without = records.clone()
    without[:, 162:] = 0
    torch.testing.assert_close(defense.comparable(records), defense.comparable(without))
    defense.server.get_parameter("weights").fill_(0.5)
    moved = (defense.comparable(records) - defense.comparable(without)).norm(dim=1)
    assert (moved > 0.05).all()


def test_ppfr_fd_sends_normalised_mixtures(scene: Defender, faces: Tensor) -> None:
    records = PPFRFD().setup(scene).protect(faces[:2], generator=draws())
    assert records.shape[1:] == (108, 112, 112)
    assert records.mean((2, 3)).abs().max() < 1e-3
    # Gray faces have no chroma to mix, whose deviation stays next to 0.
    assert (records.std((2, 3)).sub(1).abs() < 1e-2).float().mean() > 0.3


def test_minusface_without_training_regenerates_nothing(scene: Defender, faces: Tensor) -> None:
    defense = MinusFace(steps=0, width=4).setup(scene)
    coefficients = block_dct.forward(faces[:2])
    with torch.no_grad():
        assert not defense.regenerate(coefficients).any()
    records = defense.protect(faces[:2], generator=draws())
    order = torch.rand((2, 192), generator=draws()).argsort(1)
    shuffled = torch.stack([x[row] for x, row in zip(coefficients, order, strict=True)])
    torch.testing.assert_close(records, block_dct.decode(shuffled).clamp(0, 1))


def test_minusface_learns_to_regenerate(scene: Defender, faces: Tensor) -> None:
    defense = MinusFace(steps=2, width=4).setup(scene)
    with torch.no_grad():
        made = block_dct.decode(defense.regenerate(block_dct.forward(faces[:3])))
    # Nothing regenerated is mid-gray.
    assert (made - faces[:3]).abs().mean() < (128 / 255 - faces[:3]).abs().mean()


def test_ldp_slicing_tells_bits_truly_as_often_as_its_budget_says(
    scene: Defender, faces: Tensor
) -> None:
    defense = LDPSlicing(epsilon=20).setup(scene)
    budgets = defense.budgets()
    assert float(budgets.sum()) == pytest.approx(20)
    # Four times the weight, or two bits higher, is twice the budget.
    torch.testing.assert_close(budgets[0], 2 * budgets[1])
    torch.testing.assert_close(budgets[:, 2:], 2 * budgets[:, :-2])
    truth = LDPSlicing(epsilon=1e6).setup(scene).protect(faces, generator=draws())
    told = defense.protect(faces, generator=draws())
    bits = 2 ** torch.arange(8)[:, None, None, None, None]
    same = (255 * truth).round().int() & bits == (255 * told).round().int() & bits
    found = same.float().mean((1, 3, 4)).T
    torch.testing.assert_close(found, budgets.sigmoid(), rtol=0, atol=0.01)


def test_ldp_slicing_removes_the_mean_of_every_square(scene: Defender, faces: Tensor) -> None:
    record = LDPSlicing(epsilon=1e6).setup(scene).protect(faces, generator=draws())
    squares = functional.avg_pool2d(255 * record, 2)
    assert (squares - 128).abs().max() <= 0.5


def test_instahide_mixes_two_images_with_random_signs(scene: Defender, faces: Tensor) -> None:
    defense = InstaHide().setup(scene)
    shares = defense._shares(500, draws())
    assert shares.max() <= 0.65 + 1e-6
    torch.testing.assert_close(shares.sum(1), torch.ones(500, 1, 1, 1))
    records = defense.protect(faces, generator=draws())
    assert float((records > 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert records.abs().max() <= 1


def test_blur_keeps_what_is_flat_and_spreads_what_is_not() -> None:
    flat = torch.full((1, 3, 112, 112), 0.7)
    torch.testing.assert_close(Blur().protect(flat, generator=draws()), flat)
    point = torch.zeros(1, 3, 112, 112)
    point[..., 56, 56] = 1
    made = Blur(sigma=2).protect(point, generator=draws())
    assert float(made[0, 0, 56, 56]) == pytest.approx(1 / (8 * torch.pi), rel=1e-3)


@pytest.mark.parametrize("block", [1, 8])
def test_block_shuffle_moves_every_block_and_the_server_puts_them_back(
    block: Literal[1, 8], scene: Defender, faces: Tensor
) -> None:
    defense = BlockShuffle(block=block).setup(scene)
    records = defense.protect(faces, generator=draws())
    assert torch.equal(records.flatten().sort().values, faces.flatten().sort().values)
    torch.testing.assert_close(defense.comparable(records), scene.recognizer.embed(faces))


def test_a_network_mends_what_least_squares_leaves(
    scene: Defender, world: World, faces: Tensor
) -> None:
    defense = DCTDP(epsilon=0.05).setup(scene)
    attacker = insider(defense, scene.images, world)
    records = defense.protect(faces, generator=draws())

    def similarity(attack: DCTInverse) -> float:
        with seeded(0):
            attack.fit(attacker)
        found = attack.reconstruct(records).double()
        return float(ssim(found, faces.double(), data_range=1.0).mean())

    assert similarity(DCTRefine(steps=25, width=16, rate=5e-3)) > similarity(DCTInverse()) + 0.02


def test_what_mends_an_inverse_adds_nothing_before_it_learns() -> None:
    painter = MapDecoder((3, 112, 112), 8, torch.zeros(3), torch.ones(3))
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Mending(painter)(images), images)
