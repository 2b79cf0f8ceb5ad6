"""IResNet with a user's state dict: insightface's names, safe reading, and clear refusals."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import DataError, UserError
from bench.recognizers import contract
from bench.recognizers.base import CROP
from bench.recognizers.iresnet import BLOCKS, IResNet, load, network, read_state_dict
from bench.registry import RECOGNIZERS


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Return random weights of an IResNet-18 whose statistics are not the initial ones."""
    torch.manual_seed(0)
    found = network(18).state_dict()
    for name, value in found.items():
        if "running" in name:
            value.uniform_(0.5, 1.5)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Tensor]) -> Path:
    path = tmp_path_factory.mktemp("iresnet")
    safetensors.torch.save_file(state, path / "r18.safetensors")
    torch.save(state, path / "r18.pth")
    return path


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let random weights pass, which tell nobody apart."""
    monkeypatch.setattr(contract, "check_contract", lambda _: None)


def images() -> Tensor:
    return torch.rand(2, *CROP, generator=torch.Generator().manual_seed(0))


def expected(state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the map after the first stage and the embeddings, written out from the definition."""

    def norm(name: str, x: Tensor) -> Tensor:
        keys = ("running_mean", "running_var", "weight", "bias")
        mean, variance, weight, bias = (state[f"{name}.{key}"] for key in keys)
        return functional.batch_norm(x, mean, variance, weight, bias)

    def convolution(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return functional.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)

    def block(name: str, x: Tensor, stride: int) -> Tensor:
        y = norm(f"{name}.bn2", convolution(f"{name}.conv1", norm(f"{name}.bn1", x)))
        y = functional.prelu(y, state[f"{name}.prelu.weight"])
        y = norm(f"{name}.bn3", convolution(f"{name}.conv2", y, stride))
        if stride == 2:
            x = norm(f"{name}.downsample.1", convolution(f"{name}.downsample.0", x, stride))
        return x + y

    x = functional.prelu(norm("bn1", convolution("conv1", x * 2 - 1)), state["prelu.weight"])
    maps = []
    for stage in range(1, 5):
        x = block(f"layer{stage}.1", block(f"layer{stage}.0", x, 2), 1)
        maps.append(x)
    x = functional.linear(norm("bn2", x).flatten(1), state["fc.weight"], state["fc.bias"])
    return maps[0], functional.normalize(norm("features", x), dim=1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("file", ["r18.safetensors", "r18.pth"])
def test_equals_the_definition(folder: Path, state: dict[str, Tensor], file: str) -> None:
    recognizer = IResNet(str(folder / file))
    features, embeddings = expected(state, images())
    assert recognizer.feature_shape == (64, 56, 56)
    assert recognizer.embedding_size == 512
    torch.testing.assert_close(recognizer.head(images()), features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(recognizer.embed(images()), embeddings, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_cut_moves_the_map_and_not_the_embedding(folder: Path) -> None:
    path = str(folder / "r18.safetensors")
    late = IResNet(path, cut=3)
    assert late.feature_shape == (256, 14, 14)
    reading = late.first_reading(late.head(images()))
    assert reading is not None
    assert reading.shape == (len(images()), 512, 14, 14)
    torch.testing.assert_close(late.embed(images()), IResNet(path).embed(images()))


@pytest.mark.usefixtures("unchecked")
def test_what_follows_the_first_convolution_is_the_rest(folder: Path) -> None:
    recognizer = IResNet(str(folder / "r18.safetensors"), offset=100.0)
    first = recognizer.first_convolution(recognizer.first_input(images()))
    torch.testing.assert_close(recognizer.after_first(first), recognizer.embed(images()))
    with pytest.raises(UserError, match="with flip cannot be adapted"):
        _ = IResNet(str(folder / "r18.safetensors"), flip=True).first_convolution


@pytest.mark.usefixtures("unchecked")
def test_both_halves_are_differentiable_and_the_weights_are_frozen(folder: Path) -> None:
    recognizer = IResNet(str(folder / "r18.safetensors"))
    x = images().requires_grad_()
    features = recognizer.head(x)
    features.retain_grad()
    recognizer.tail(features)[:, 0].sum().backward()
    for tensor in (x, features):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in recognizer.parameters())


def test_random_weights_do_not_pass_the_check_of_the_contract(folder: Path) -> None:
    with pytest.raises(UserError, match="does not fit its weights"):
        IResNet(str(folder / "r18.safetensors"))


def test_names_are_insightfaces() -> None:
    with torch.device("meta"):
        names = {depth: set(network(depth).state_dict()) for depth in BLOCKS}
    assert {"conv1.weight", "bn1.weight", "prelu.weight", "fc.bias", "features.running_var"} < (
        names[50]
    )
    assert {"layer1.0.downsample.0.weight", "layer1.0.downsample.1.bias"} < names[50]
    assert "layer1.1.downsample.0.weight" not in names[50]
    assert "layer3.13.bn3.weight" in names[50]
    assert "layer3.14.bn3.weight" not in names[50]
    assert "layer3.29.prelu.weight" in names[100]
    # What insightface's own iresnet50 holds: parameters in millions.
    with torch.device("meta"):
        assert sum(x.numel() for x in network(50).parameters()) == pytest.approx(43.59e6, rel=1e-3)
    assert RECOGNIZERS.get("iresnet") is IResNet


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))


def altered(change: dict[str, Any], *without: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {**small().state_dict(), **change}
    return {name: value for name, value in state.items() if name not in without}


@pytest.mark.parametrize(
    ("state", "match"),
    [
        (altered({}, "1.bias"), r"lacks '1.bias' \(1 such names\)"),
        (altered({"2.weight": torch.zeros(1)}), "has the unknown '2.weight'"),
        (altered({"0.bias": torch.zeros(3)}), r"'0.bias' as torch.float32 of shape \[3\] instead"),
        (altered({"0.bias": torch.zeros(2, dtype=torch.int64)}), "'0.bias' as torch.int64"),
        (altered({"0.bias": torch.tensor([0, torch.nan])}), "in '0.bias' that are not finite"),
    ],
)
def test_another_architecture_is_refused(state: dict[str, Tensor], match: str) -> None:
    with pytest.raises(DataError, match=f"^weights.pt .*{match}"):
        load(small(), state, "weights.pt")


def test_half_precision_and_missing_counters_are_taken() -> None:
    state = {name: value.half() for name, value in altered({}, "1.num_batches_tracked").items()}
    layers = small()
    load(layers, state, "weights.pt")
    assert layers.state_dict()["0.weight"].dtype == torch.float32
    assert torch.equal(layers.state_dict()["0.weight"], state["0.weight"].float())


class Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (Path("exploited"), ""))


def saved(value: object, *, archive: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=archive)
    return stream.getvalue()


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_file_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for data in (saved({"x": Exploit()}, archive=archive), pickle.dumps(Exploit(), protocol=2)):
        with pytest.raises(DataError, match="without running code"):
            read_state_dict(data, "weights.pt")
    assert not (tmp_path / "exploited").exists()
    old = read_state_dict(saved({"x": torch.ones(2)}, archive=archive), "weights.pt")
    assert torch.equal(old["x"], torch.ones(2))


def test_file_that_is_no_state_dict_is_refused() -> None:
    for value in ([1, 2], {"x": 1}, {"state": {"x": torch.ones(1)}}, {1: torch.ones(1)}):
        with pytest.raises(DataError, match="something else than tensors by name"):
            read_state_dict(saved(value), "weights.pt")
    whole = saved({"x": torch.ones(1000)})
    for data in (b"", b"PK\x03\x04", b"\x80\x02", b"text", whole[:500], whole[:-30]):
        with pytest.raises(DataError, match="no state dict that can be read"):
            read_state_dict(data, "weights.pt")


def test_archive_that_unpacks_to_more_than_is_read_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100_000))
    monkeypatch.setattr("bench.recognizers.iresnet.MAX_WEIGHTS_BYTES", 50_000)
    with pytest.raises(DataError, match="unpacks to 100,000 bytes"):
        read_state_dict(stream.getvalue(), "weights.pt")


def test_wrong_parameters_are_refused(folder: Path, tmp_path: Path) -> None:
    path = str(folder / "r18.safetensors")
    with pytest.raises(UserError, match="cut 5 of iresnet is no stage"):
        IResNet(path, cut=5)
    with pytest.raises(UserError, match="reads 112x112 only"):
        IResNet(path, size=128)
    with pytest.raises(UserError, match="parameter 'colour'"):
        IResNet(path, colour="rgb")
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"layer1.0.bn1.weight": torch.ones(64)}, other)
    with pytest.raises(DataError, match=r"\(1, 0, 0, 0\) blocks in its stages"):
        IResNet(str(other))
