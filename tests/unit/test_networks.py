"""The decoders that attackers and defenders share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bench.networks import (
    MAP_NETWORKS,
    EigenfaceDecoder,
    FullUNet,
    MapDecoder,
    Standardize,
    TemplateDecoder,
    channel_statistics,
    half_precision,
)
from bench.recognizers.base import CROP, best_cpu_precision
from bench.world import seeded


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def map_decoder(*shape: int, kind: str = "small") -> nn.Module:
    with seeded(0):
        return MAP_NETWORKS[kind](shape, 4, torch.zeros(shape[0]), torch.ones(shape[0])).eval()


@pytest.mark.parametrize(
    "shape", [(64, 56, 56), (3, 112, 112), (189, 112, 112), (3, 14, 14), (5, 7, 9), (1, 120, 112)]
)
@pytest.mark.parametrize("kind", MAP_NETWORKS)
def test_records_of_any_size_become_images(shape: tuple[int, int, int], kind: str) -> None:
    with torch.no_grad():
        images = map_decoder(*shape, kind=kind)(numbers(2, *shape))
    assert images.shape == (2, 3, 112, 112)
    assert images.dtype == torch.float32
    assert images.min() > 0
    assert images.max() < 1


@pytest.mark.parametrize("size", [1, 64, 128])
def test_templates_become_images(size: int) -> None:
    with torch.no_grad():
        images = TemplateDecoder(size, 8).eval()(numbers(2, size))
    assert images.shape == (2, 3, 112, 112)
    assert images.min() >= 0
    assert images.max() <= 1


@pytest.mark.parametrize("kind", MAP_NETWORKS)
def test_a_decoder_treats_every_record_alone(kind: str) -> None:
    records = numbers(3, 8, 56, 56)
    decoder = map_decoder(8, 56, 56, kind=kind)
    with torch.no_grad():
        torch.testing.assert_close(decoder(records)[1:2], decoder(records[1:2]))


def test_the_full_network_has_the_weights_it_is_said_to_have() -> None:
    with torch.device("meta"):
        network = FullUNet((64, 56, 56), 64, torch.zeros(64), torch.ones(64))
    assert sum(weights.numel() for weights in network.parameters()) == pytest.approx(31e6, rel=0.02)


def test_eigenfaces_start_as_a_regression_of_the_images_on_the_templates() -> None:
    templates = numbers(40, 5) - 0.5
    images = 0.5 + 0.1 * (templates @ numbers(5, 3 * 112 * 112, seed=1)).unflatten(1, CROP)
    decoder = EigenfaceDecoder(templates, images, 5)
    with torch.no_grad():
        found = decoder(templates)
    assert (found - images).abs().mean() < 0.4 * (images.mean(0) - images).abs().mean()
    twice = EigenfaceDecoder(torch.stack([templates, templates]), images, 5)
    torch.testing.assert_close(twice.weights, decoder.weights, rtol=0, atol=0.01)


def test_eigenfaces_learn_their_mean_and_weights_and_keep_their_components() -> None:
    decoder = EigenfaceDecoder(numbers(9, 4), numbers(9, *CROP), 3)
    assert {name for name, _ in decoder.named_parameters()} == {"mean", "weights"}
    assert decoder.basis.shape == (3, 3 * 112 * 112)
    with torch.no_grad():
        images = decoder(100 * numbers(2, 4))
    assert images.shape == (2, *CROP)
    assert images.min() >= 0
    assert images.max() <= 1


def test_a_decoder_standardises_its_records() -> None:
    records = numbers(2, 6, 56, 56)
    mean, deviation = numbers(6, seed=1), numbers(6, seed=2) + 0.5
    with seeded(0):
        scaled = MapDecoder((6, 56, 56), 4, mean, deviation).eval()
    moved = records * deviation.reshape(-1, 1, 1) + mean.reshape(-1, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(scaled(moved), map_decoder(6, 56, 56)(records))


def test_standardize_undoes_itself_and_survives_a_constant_channel() -> None:
    mean, deviation = torch.tensor([3.0, -1.0]), torch.tensor([2.0, 0.0])
    layer = Standardize(mean, deviation)
    x = numbers(2, 2, 5, 5)
    torch.testing.assert_close(layer(x)[:, 0], (x[:, 0] - 3) / 2)
    assert torch.isfinite(layer(x)).all()
    torch.testing.assert_close(layer.undo(layer(x)), x)
    assert not list(layer.parameters())
    assert set(layer.state_dict()) == {"mean", "deviation"}


@pytest.mark.parametrize("shape", [(9, 4), (9, 4, 5, 6), (9, 1, 2)])
def test_channel_statistics(shape: tuple[int, ...]) -> None:
    records = numbers(*shape)
    mean, deviation = channel_statistics(records)
    columns = records.transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(mean.double(), columns.mean(1))
    torch.testing.assert_close(deviation.double(), columns.std(1))


def test_half_precision_is_used_where_it_is_native() -> None:
    with half_precision("cpu"):
        made = numbers(2, 3) @ numbers(3, 2)
    wanted = torch.bfloat16 if best_cpu_precision() == "bfloat16" else torch.float32
    assert made.dtype == wanted
    assert (numbers(2, 3) @ numbers(3, 2)).dtype == torch.float32
