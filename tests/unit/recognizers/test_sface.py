"""SFace as a torch module: equal to the ONNX graph, cut anywhere, differentiable."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from stand_ins import Means
from torch import Tensor, nn

from bench import assets
from bench.errors import UserError
from bench.leaks import Leak
from bench.recognizers.base import BATCH, best_cpu_precision
from bench.recognizers.sface import SFace
from bench.registry import RECOGNIZERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.world import World

Graph = "Callable[[Tensor], NDArray[np.float32]]"

BFLOAT16_COSINE = 0.999
"""bfloat16 against float32: smallest cosine measured on 40 ORL faces .99988, on noise .99957."""


@cache
def sface(cut: int = 4, precision: str = "float32") -> SFace:
    return SFace(cut=cut, precision=precision)


@pytest.fixture(scope="module")
def graph() -> Callable[[Tensor], NDArray[np.float32]]:
    """Return a function that runs the file itself in onnxruntime, on RGB in [0, 1]."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is the reference")
    model = onnx.load(assets.locate("sface"))
    # The file lists its weights among its inputs; onnxruntime would warn about every one.
    data = [item for item in model.graph.input if item.name == "data"]
    del model.graph.input[:]
    model.graph.input.extend(data)
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def run(images: Tensor) -> NDArray[np.float32]:
        pixels = (images * 255).numpy()
        made = [session.run(None, {"data": pixel[None]})[0] for pixel in pixels]
        return np.concatenate(made)

    return run


@pytest.fixture(scope="module")
def pictures(world: World) -> Tensor:
    """Four ORL faces, a tinted one, which tells colors apart, and noise."""
    faces = world.images(world.split.probes[:4])
    tinted = faces[:1] * torch.tensor([1, 0.7, 0.4]).reshape(3, 1, 1)
    noise = torch.randint(0, 256, (1, 3, 112, 112), generator=torch.Generator().manual_seed(0))
    return torch.cat([faces, tinted, noise / 255])


def cosines(left: Tensor, right: Tensor | NDArray[np.float32]) -> Tensor:
    return torch.cosine_similarity(left, torch.as_tensor(right), dim=1)


# --- against the file ---------------------------------------------------------------------------


def test_embeddings_equal_those_of_the_graph(
    graph: Callable[[Tensor], NDArray[np.float32]], pictures: Tensor
) -> None:
    found, wanted = sface().embed(pictures), graph(pictures)
    assert wanted.shape == tuple(found.shape) == (6, 128)
    assert cosines(found, wanted).min() >= 0.9999
    unit = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    assert np.abs(found.numpy() - unit).max() <= 1e-5
    # The reference is told apart from its neighbours: blue for red is another embedding.
    assert cosines(sface().embed(pictures[4:5].flip(1)), wanted[4:5]).max() < 0.99


def test_bfloat16_differs_by_the_stated_amount(pictures: Tensor) -> None:
    half = sface(precision="bfloat16").embed(pictures)
    assert half.dtype == torch.float32
    found = cosines(half, sface().embed(pictures))
    assert found.min() >= BFLOAT16_COSINE
    assert found.max() < 1 - 1e-6, "bfloat16 was not used"


def test_faces_of_one_person_are_more_alike(world: World) -> None:
    split = world.split
    probes = sface().embed(world.images(split.probes))
    others = sface().embed(world.images(split.other_photos))
    similarity = sface().similarity(probes, others)
    same = world.identities(split.probes)[:, None] == world.identities(split.other_photos)
    assert similarity[torch.from_numpy(same)].mean() > similarity[torch.from_numpy(~same)].max()


# --- the interface ------------------------------------------------------------------------------


def test_the_registered_recognizer() -> None:
    assert RECOGNIZERS.get("sface") is SFace
    one = sface()
    assert (one.name, one.asset, one.embedding_size) == ("sface", "sface", 128)
    assert one.weights_sha256 == assets.manifest()["sface"].sha256
    assert one.feature_shape == (64, 56, 56)


def test_the_default_map_has_the_size_of_the_papers() -> None:
    # AdvFace's stored object: 5.33 times the numbers of the image.
    assert np.prod(sface().feature_shape) / np.prod((3, 112, 112)) == pytest.approx(16 / 3)


@pytest.mark.parametrize(
    ("cut", "shape"), [(1, (32, 112, 112)), (4, (64, 56, 56)), (11, None), (20, None), (26, None)]
)
def test_head_and_tail_compose_at_every_cut(
    cut: int, shape: tuple[int, int, int] | None, pictures: Tensor
) -> None:
    one = sface(cut=cut)
    features = one.head(pictures[:2])
    assert features.shape == (2, *one.feature_shape)
    assert features.dtype == torch.float32
    assert shape in {None, one.feature_shape}
    torch.testing.assert_close(
        one.tail(features), sface().embed(pictures[:2]), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(one.tail(features), one.embed(pictures[:2]))


def test_cuts_are_counted_in_convolutions() -> None:
    def convolutions(module: nn.Module) -> int:
        return sum(isinstance(part, nn.Conv2d) for part in module.modules())

    assert convolutions(sface()) == 27
    assert convolutions(sface(cut=7).head_blocks) == 7


def test_the_first_reading_is_that_of_the_first_convolution_over_neighbours(
    pictures: Tensor,
) -> None:
    one = sface()
    features = one.head(pictures[:2])
    # Block 4 has a kernel of one pixel, block 5 one of nine.
    mixed = one.tail_blocks.get_submodule("1.0")(one.tail_blocks[0](features))
    torch.testing.assert_close(one.first_reading(features), mixed)
    features.requires_grad_()
    reading = one.first_reading(features)
    assert reading is not None
    reading.sum().backward()
    assert features.grad is not None
    assert features.grad.abs().amin(1).max() > 0


def test_a_tail_that_mixes_no_neighbours_reads_nothing_first() -> None:
    assert Means().first_reading(torch.ones(2, 3, 14, 14)) is None
    last = sface(cut=26)
    assert last.first_reading(last.head(torch.zeros(1, 3, 112, 112))) is None


def test_embeddings_have_unit_length_and_do_not_depend_on_the_batch(pictures: Tensor) -> None:
    together = sface().embed(pictures)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(6))
    alone = torch.cat([sface().embed(image[None]) for image in pictures])
    assert cosines(together, alone).min() >= 1 - 1e-6


@pytest.mark.parametrize("leak", list(Leak))
def test_leaking_objects_are_made_batch_by_batch_without_gradients(
    leak: Leak, pictures: Tensor
) -> None:
    images = pictures.repeat(6, 1, 1, 1)[: BATCH + 1].requires_grad_()
    found = sface(precision=best_cpu_precision()).leaking(leak, images)
    assert len(found) == BATCH + 1
    if leak is Leak.IMAGE:
        assert found is images
    else:
        assert not found.requires_grad
        half = sface(precision=best_cpu_precision())
        wanted = half.head(pictures) if leak is Leak.FEATURES else half.embed(pictures)
        assert cosines(found[:6].flatten(1), wanted.flatten(1)).min() > 0.999


def test_similarity_is_the_cosine() -> None:
    left, right = torch.tensor([[3.0, 0], [1, 1]]), torch.tensor([[0.0, 2], [-1, 0], [5, 5]])
    half = 0.5**0.5
    expected = torch.tensor([[0, -1, half], [half, -half, 1]])
    torch.testing.assert_close(sface().similarity(left, right), expected)


# --- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradients_flow_through_head_and_tail(precision: str, pictures: Tensor) -> None:
    one = sface(precision=precision)
    images = pictures[:2].clone().requires_grad_()
    features = one.head(images)
    features.retain_grad()
    one.tail(features)[:, 0].sum().backward()
    for tensor in (images, features):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert (tensor.grad.flatten(1).abs().max(1).values > 0).all()


def test_the_gradient_is_that_of_the_function(pictures: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    image = pictures[5:].double()
    target = torch.randn(128, generator=generator, dtype=torch.float64)
    direction = torch.randn(image.shape, generator=generator, dtype=torch.float64)
    exact = SFace(precision="float32").double()
    exact._compute = lambda layers, x: layers(x)  # type: ignore[method-assign] # no cast to float32

    def value(step: float) -> Tensor:
        return exact.embed(image + step * direction) @ target

    point = image.clone().requires_grad_()
    (exact.embed(point) @ target).sum().backward()
    assert point.grad is not None
    slope = float((point.grad * direction).sum())
    # Small enough that hardly any of the piecewise linear units changes its side.
    step = 1e-7
    assert float((value(step) - value(-step)) / (2 * step)) == pytest.approx(slope, rel=1e-3)


def test_weights_are_frozen(pictures: Tensor) -> None:
    one = sface()
    assert not one.training
    assert not any(parameter.requires_grad for parameter in one.parameters())
    assert not one.embed(pictures[:1]).requires_grad


# --- parameters ---------------------------------------------------------------------------------


def test_auto_is_the_best_precision_of_the_processor() -> None:
    assert SFace().precision == best_cpu_precision()
    assert best_cpu_precision() in {"float32", "bfloat16"}


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UserError, match="precision 'float8' of sface is unknown: use auto"):
        SFace(precision="float8")


def test_embeddings_of_a_batch_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recognizer = sface()
    whole = recognizer.embed
    calls: list[int] = []

    def counted(x: Tensor) -> Tensor:
        calls.append(len(x))
        return whole(x)

    monkeypatch.setattr(recognizer, "embed", counted)
    images = torch.rand(33, 3, 112, 112, generator=torch.Generator().manual_seed(3))
    first = recognizer.leaking(Leak.TEMPLATE, images)
    again = recognizer.leaking(Leak.TEMPLATE, images)
    assert torch.equal(first, again)
    assert calls == [32, 1]
    again.zero_()  # what a caller does with its copy is its own affair
    assert torch.equal(first, recognizer.leaking(Leak.TEMPLATE, images))
    recognizer.leaking(Leak.TEMPLATE, images[5:6])
    assert calls == [32, 1, 1]
