"""The block DCT against a reference written from the recipe, and its least-squares inverse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy import fft
from stand_ins import attacker_in
from torch import Tensor
from torch.nn import functional

from bench.leaks import Leak
from bench.metrics import ssim
from bench.registry import ATTACKS
from bench.threats import Held, Threat
from defenses.frequency import block_dct, duetface, partialface
from defenses.frequency.dct_drop_dc import DCTDropDC

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attacks.base import Attack
    from bench.world import World


def noise(count: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 112, 112, generator=generator, dtype=dtype)


def reference(images: Tensor) -> np.ndarray:
    """Follow the recipe step by step: upsample, JPEG YCbCr less 128, DCT of every 8x8 block."""
    large = functional.interpolate(images, scale_factor=8, mode="bilinear", align_corners=True)
    red, green, blue = (255 * large).numpy().transpose(1, 0, 2, 3)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    colors = [
        luma,
        128 - 0.168735892 * red - 0.331264108 * green + 0.5 * blue,
        128 + 0.5 * red - 0.418687589 * green - 0.081312411 * blue,
    ]
    found = np.empty((len(images), 3, 64, 112, 112))
    for place, color in enumerate(colors):
        blocks = (color - 128).reshape(-1, 112, 8, 112, 8)
        spectra = fft.dctn(blocks, axes=(2, 4), norm="ortho")
        found[:, place] = spectra.transpose(0, 2, 4, 1, 3).reshape(-1, 64, 112, 112)
    return found.reshape(-1, 192, 112, 112)


def without_dc(images: Tensor) -> Tensor:
    return block_dct.forward(images).unflatten(1, (3, 64))[:, :, 1:].flatten(1, 2)


def less_mean(images: Tensor) -> Tensor:
    return images - images.mean((2, 3), keepdim=True)


def test_forward_is_the_recipe() -> None:
    images = noise(2)
    assert np.abs(block_dct.forward(images).numpy() - reference(images)).max() <= 1e-9


def test_forward_in_single_precision(faces: Tensor) -> None:
    made = block_dct.forward(faces[:1])
    assert made.shape == (1, 192, 112, 112)
    assert made.dtype == torch.float32
    assert np.abs(made.numpy() - reference(faces[:1].double())).max() <= 1e-3


def test_a_flat_image_has_only_dc() -> None:
    made = block_dct.forward(torch.full((1, 3, 112, 112), 0.5, dtype=torch.float64))
    made = made.unflatten(1, (3, 64))
    # Mid-gray is 127.5 of 255: DC is 8 times the mean of a block.
    expected = torch.tensor([8 * (127.5 - 128), 0, 0], dtype=torch.float64)
    torch.testing.assert_close(made[0, :, 0, 5, 7], expected, rtol=0, atol=1e-5)
    assert made[:, :, 1:].abs().max() <= 1e-9


def test_a_vertical_ramp_has_only_vertical_frequencies() -> None:
    ramp = torch.linspace(0, 1, 112, dtype=torch.float64)[:, None].expand(1, 3, 112, 112)
    luma = block_dct.forward(ramp)[0, :64].abs().amax((1, 2)).reshape(8, 8)
    assert luma[1, 0] > 1
    assert luma[:, 1:].max() <= 1e-9


def test_the_map_is_eight_times_over_complete_and_well_conditioned() -> None:
    axis = block_dct._axis_matrix().permute(1, 0, 2).reshape(896, 112)
    values = torch.linalg.svdvals(axis)
    assert float(values[0] / values[-1]) == pytest.approx(1.8, abs=0.05)
    # Rows of the upsampling sum to 1 and the DCT is orthonormal: constants keep their norm.
    ones = axis @ torch.ones(112, dtype=torch.float64)
    assert float(ones.norm()) == pytest.approx(896**0.5, abs=1e-9)


def of_kept(places: Sequence[int]) -> list[int]:
    return [partialface.KEPT[place] for place in places]


@pytest.mark.parametrize(
    ("channels", "rank", "condition"),
    [
        pytest.param(block_dct.ALL, 196, 3.4, id="all"),
        pytest.param(block_dct.WITHOUT_DC, 195, 7.6, id="without DC"),
        pytest.param(duetface.SERVER, 195, 274, id="DuetFace's server"),
        pytest.param(partialface.KEPT, 195, 33, id="PartialFace, all 54"),
        *[
            pytest.param(of_kept(subset), rank, None, id=f"PartialFace, subset {number}")
            for number, (subset, rank) in enumerate(
                zip(partialface.RELEASED_SUBSETS, (182, 169, 189, 182, 180, 195), strict=True)
            )
        ],
    ],
)
def test_what_channels_determine_of_14_by_14_pixels(
    channels: Sequence[int], rank: int, condition: float | None
) -> None:
    axis = block_dct._axis_matrix(14)
    rows = [torch.kron(axis[k // 8].contiguous(), axis[k % 8].contiguous()) for k in channels]
    values = torch.linalg.svdvals(torch.cat(rows))
    assert int((values > 1e-10 * values[0]).sum()) == rank
    if condition is not None:
        assert float(values[0] / values[rank - 1]) == pytest.approx(condition, rel=0.02)


def test_without_dc_only_the_mean_is_lost() -> None:
    images = noise(2)
    found = block_dct.inverse_without_dc(without_dc(images))
    assert (less_mean(found) - less_mean(images)).abs().max() <= 1e-5


def test_without_dc_only_the_mean_is_lost_of_faces_in_single_precision(faces: Tensor) -> None:
    found = block_dct.inverse_without_dc(without_dc(faces[:3]))
    assert found.dtype == torch.float32
    assert (less_mean(found) - less_mean(faces[:3])).abs().max() <= 1e-2


def test_the_lost_mean_becomes_mid_gray(faces: Tensor) -> None:
    found = block_dct.inverse_without_dc(without_dc(faces[:2].double()))
    # What is lost is the mean with the weight of every pixel in the upsampled image.
    weight = sum(part.T @ part.sum(1) for part in block_dct._axis_matrix())
    means = torch.einsum("x,ncxy,y->nc", weight, found, weight) / weight.sum() ** 2
    torch.testing.assert_close(means, torch.full_like(means, 128 / 255), rtol=0, atol=1e-9)
    assert (found.mean((2, 3)) - 128 / 255).abs().max() <= 0.01


def test_the_inverse_is_the_least_squares_solution() -> None:
    # Noise outside the range of the map must not move the solution: project, invert, compare.
    generator = torch.Generator().manual_seed(1)
    clean = without_dc(noise())
    noisy = clean + torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    found = block_dct.inverse_without_dc(noisy)
    best = (without_dc(found) - noisy).square().sum()
    for step in (1e-3, -1e-3):
        moved = found + step * torch.randn(found.shape, generator=generator, dtype=torch.float64)
        assert (without_dc(moved) - noisy).square().sum() > best
    # At a minimum the residual is orthogonal to whatever the map can make.
    direction = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    linear = without_dc(found + direction) - without_dc(found)
    residual = without_dc(found) - noisy
    cosine = (residual * linear).sum() / (residual.norm() * linear.norm())
    assert abs(float(cosine)) <= 1e-8


def test_the_defense_drops_the_first_channel_of_every_color() -> None:
    images = noise()
    records = DCTDropDC().protect(images, generator=torch.Generator())
    kept = [channel for channel in range(192) if channel % 64]
    assert torch.equal(records, block_dct.forward(images)[:, kept])


def adapted(world: World) -> Attack:
    """Return the attack, fitted by one who knows that the DC is dropped."""
    fresh = [Held(DCTDropDC(), lambda: torch.empty(0))]
    attack = ATTACKS.get("dct-inverse")()
    attack.fit(attacker_in(world, Threat.ADAPTIVE, Leak.IMAGE, fresh=fresh))
    return attack


def test_the_attack_recovers_faces_but_for_brightness(world: World, faces: Tensor) -> None:
    found = adapted(world).reconstruct(without_dc(faces[:3]))
    assert (less_mean(found) - less_mean(faces[:3])).abs().mean() <= 0.01
    assert (found - faces[:3]).abs().mean() <= 0.15


@pytest.mark.parametrize(("deviation", "least"), [(0.0, 0.99), (0.5, 0.9)])
def test_a_secret_order_of_the_channels_is_read_off_their_energies(
    deviation: float, least: float, world: World
) -> None:
    victims = world.images(world.split.probes)
    attack: Any = adapted(world)
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(len(block_dct.WITHOUT_DC), generator=draw)
    records = without_dc(victims).unflatten(1, (3, -1))[:, :, order].flatten(1, 2)
    records = records + deviation * torch.randn(records.shape, generator=draw)
    known = attack._inverse(records, list(block_dct.WITHOUT_DC), 1)
    found = attack.reconstruct(records)
    wanted, got, misread = ((less_mean(x) + 0.5).clamp(0, 1) for x in (victims, found, known))
    assert ssim(got, wanted, data_range=1.0).mean() >= least
    assert ssim(misread, wanted, data_range=1.0).mean() < 0.5
