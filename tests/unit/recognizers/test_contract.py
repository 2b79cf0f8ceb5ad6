"""The input contract: what it feeds a network, and wrong ones that the check catches."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from bench import assets
from bench.errors import DataError, UserError
from bench.recognizers.base import CROP
from bench.recognizers.contract import Contract, check_contract, read_weights, reference_faces
from bench.recognizers.onnx import ONNX
from bench.recognizers.sface import SFace

if TYPE_CHECKING:
    from pathlib import Path


def sface_file(**contract: Any) -> ONNX:
    """Return SFace's file with a contract; its graph begins with (x - 127.5) / 128."""
    return ONNX(str(assets.locate("sface")), **{"offset": 0, "scale": 1, **contract})


@pytest.fixture(scope="module")
def network() -> ONNX:
    return sface_file()


def noise(count: int = 2) -> Tensor:
    return torch.rand(count, *CROP, generator=torch.Generator().manual_seed(0))


def test_default_is_insightfaces() -> None:
    images = noise()
    torch.testing.assert_close(Contract().prepare(images), images * 2 - 1)


def test_color_order_range_and_size() -> None:
    images = noise()
    contract = Contract(size=64, color="bgr", offset=0, scale=255)
    found = contract.prepare(images)
    assert found.shape[1:] == contract.shape == (3, 64, 64)
    torch.testing.assert_close(
        found.mean((0, 2, 3)), images.mean((0, 2, 3)).flip(0), atol=1e-3, rtol=0
    )
    assert str(contract) == "bgr, 0 to 1, arcface crop 64x64"


def test_sphereface_crop_is_the_middle() -> None:
    images = noise()
    contract = Contract(crop="sphereface", offset=0, scale=255)
    assert contract.shape == (3, 112, 96)
    torch.testing.assert_close(contract.prepare(images), images[..., 8:104])


@pytest.mark.parametrize(
    ("field", "value"),
    [("size", 0), ("size", "big"), ("color", "gray"), ("scale", 0.0), ("offset", float("nan"))],
)
def test_wrong_field_is_refused(field: str, value: object) -> None:
    with pytest.raises(UserError, match=f"parameter '{field}' of recognizer 'onnx'"):
        Contract.create("recognizer 'onnx'", {field: value})


def test_reference_faces_are_two_people_twice() -> None:
    faces = reference_faces()
    assert faces.shape == (4, *CROP)
    assert faces.min() >= 0
    assert 0.5 < faces.max() <= 1


def test_right_contract_passes() -> None:
    check_contract(SFace(precision="float32"))
    check_contract(SFace(precision="bfloat16"))


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"scale": 255}, id="0..1"),
        pytest.param({"offset": 127.5, "scale": 127.5}, id="-1..1"),
        pytest.param({"offset": 127.5}, id="-127..127"),
        pytest.param({"color": "bgr"}, id="bgr"),
    ],
)
def test_wrong_contract_of_a_real_network_is_caught(
    network: ONNX, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    monkeypatch.setattr(network, "contract", dataclasses.replace(network.contract, **wrong))
    with pytest.raises(UserError, match="does not fit its weights"):
        check_contract(network)


@pytest.mark.parametrize("wrong", [{"scale": 255}, {"size": 128}, {"crop": "sphereface"}])
def test_wrong_contract_is_caught_on_load(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="contract"):
        sface_file(**wrong)


@pytest.mark.parametrize(("offset", "scale"), [(0, 255), (127.5, 255)])
def test_wrong_range_before_a_network_of_minus_one_to_one_is_caught(
    network: ONNX, monkeypatch: pytest.MonkeyPatch, offset: float, scale: float
) -> None:
    # With the graph's own subtraction and division undone, it is a network that wants -1 to 1.
    def feed(offset: float, scale: float) -> Contract:
        return Contract(offset=offset - 127.5 * scale / 128, scale=scale / 128)

    torch.testing.assert_close(feed(127.5, 128).prepare(noise()), network.contract.prepare(noise()))
    monkeypatch.setattr(network, "contract", feed(offset, scale))
    with pytest.raises(UserError, match="light two photos of one person are only"):
        check_contract(network)


def test_embeddings_that_are_not_finite_or_all_equal_are_caught() -> None:
    class Broken(SFace):
        value = float("nan")

        def tail(self, features: Tensor) -> Tensor:
            return torch.full((len(features), 128), self.value)

    broken = Broken()
    with pytest.raises(UserError, match="not finite"):
        check_contract(broken)
    broken.value = 1.0
    with pytest.raises(UserError, match=r"only 0\.00 more alike"):
        check_contract(broken)


def test_mirror_image_adds_its_channels_and_its_embedding(network: ONNX) -> None:
    mirrored = sface_file(flip=True)
    faces = reference_faces()[:2]
    channels, *size = network.feature_shape
    assert mirrored.feature_shape == (2 * channels, *size)
    raw = [network.back(network.head(x)) for x in (faces, faces.flip(3))]
    expected = torch.nn.functional.normalize(raw[0] + raw[1], dim=1)
    torch.testing.assert_close(mirrored.embed(faces), expected)
    torch.testing.assert_close(mirrored.embed(faces.flip(3)), expected)


def test_the_first_reading_is_of_every_view(network: ONNX) -> None:
    mirrored = sface_file(flip=True)
    faces = reference_faces()[:2]
    views: list[Any] = [network.first_reading(network.head(x)) for x in (faces, faces.flip(3))]
    torch.testing.assert_close(mirrored.first_reading(mirrored.head(faces)), torch.cat(views, 1))


def test_file_is_hashed_and_its_pin_kept(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    expected = hashlib.sha256(b"weights").hexdigest()
    assert read_weights(path, expected.upper()) == (b"weights", expected)
    with pytest.raises(DataError, match="give the pinned file"):
        read_weights(path, "0" * 64)
    with pytest.raises(DataError, match="is not a file"):
        read_weights(tmp_path / "absent", None)


def test_credit_names_the_file_and_its_hash(network: ONNX) -> None:
    assert network.credit.startswith("face_recognition_sface_2021dec_int8bq.onnx, brought by")
    assert network.weights_sha256 == assets.manifest()["sface"].sha256
    assert network.weights_sha256 in network.credit
