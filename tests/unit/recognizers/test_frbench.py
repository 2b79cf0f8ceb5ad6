"""frbench's networks from its cache: equal to its own pipeline, and never a download."""

from __future__ import annotations

import hashlib
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from bench.errors import DataError, MissingAssetError, UserError
from bench.recognizers import contract
from bench.recognizers.base import CROP
from bench.recognizers.frbench import FRBench
from bench.registry import RECOGNIZERS
from bench.torchvision_import import import_torchvision

if TYPE_CHECKING:
    from pathlib import Path

import_torchvision()
frbench = pytest.importorskip("frbench", reason="the extra frbench is not installed")
yaml = pytest.importorskip("yaml", reason="frbench brings it")

KEY = ("mobilefacenet", "arcface", "ms1m")
INPUT = {"size": [112, 112], "mean": [0.5] * 3, "std": [0.5] * 3, "channel": "rgb"}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Give frbench an empty cache and no network."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("FRBENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("FRBENCH_UPDATE_CHECK", "0")
    monkeypatch.setattr(contract, "check_contract", lambda _: None)


def fill(cache: Path, backbone: str, stated: dict[str, Any] | None = None) -> Path:
    """Write random weights into a cache as `frbench-download` does; return their file."""
    from frbench.backbones import build_backbone

    torch.manual_seed(0)
    network = build_backbone(backbone, {}, torch.device("cpu"))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.uniform_(-0.1, 0.1)
    key = f"{backbone}_arcface_ms1m"
    folder = cache / key
    folder.mkdir()
    torch.save(network.state_dict(), folder / "weights.pt")
    config = {"backbone": {"name": backbone, "kwargs": {}}, "input": stated or INPUT}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    contents = {"config": "config.yaml", "weight": "weights.pt"}
    entry = {"asset_name": f"{key}.tar.gz", "target_name": key, "contents": contents}
    manifest = {key: entry, "retinaface_mobilenetv1": entry}
    (cache / "manifest.json").write_text(json.dumps(manifest))
    return folder / "weights.pt"


def images() -> Tensor:
    return torch.rand(2, *CROP, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "backbone", ["mobilefacenet", "mobilenetv2-wd4", "irse-18", "mobilevit-xxs"]
)
def test_equals_frbenchs_own_pipeline(tmp_path: Path, backbone: str) -> None:
    stated = {**INPUT, "channel": "bgr"} if backbone == "mobilefacenet" else INPUT
    weights = fill(tmp_path, backbone, stated)
    recognizer = FRBench(backbone, "arcface", "ms1m")
    pipeline = frbench.FR(backbone, "arcface", "ms1m")
    with torch.no_grad():
        result = pipeline(images() * 255, need_crop=False, tta=(), l2_normalize=True)
    torch.testing.assert_close(recognizer.embed(images()), result.embeddings, rtol=0, atol=1e-5)
    assert recognizer.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert recognizer.embedding_size == 512
    assert recognizer.feature_shape == CROP


def test_differentiable_and_frozen(tmp_path: Path) -> None:
    fill(tmp_path, KEY[0])
    recognizer = FRBench(*KEY)
    x = images().requires_grad_()
    recognizer.embed(x)[:, 0].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in recognizer.parameters())
    assert RECOGNIZERS.get("frbench") is FRBench


def test_what_is_not_cached_is_named_with_its_command(tmp_path: Path) -> None:
    with pytest.raises(MissingAssetError, match="frbench-download mobilefacenet_arcface_ms1m"):
        FRBench(*KEY)
    weights = fill(tmp_path, KEY[0])
    with pytest.raises(MissingAssetError, match="has no irse-50_adaface_ms1m: fetch it"):
        FRBench("irse-50", "adaface", "ms1m")
    weights.unlink()
    with pytest.raises(MissingAssetError, match="lacks mobilefacenet_arcface_ms1m: fetch it"):
        FRBench(*KEY)


def test_altered_files_are_refused(tmp_path: Path) -> None:
    weights = fill(tmp_path, KEY[0])
    with pytest.raises(DataError, match="give the pinned file"):
        FRBench(*KEY, sha256="0" * 64)
    weights.write_bytes(b"altered")
    with pytest.raises(DataError, match="no state dict that can be read"):
        FRBench(*KEY)
    (tmp_path / "manifest.json").write_text('{"mobilefacenet_arcface_ms1m": 1}')
    with pytest.raises(DataError, match=r"manifest .* is malformed"):
        FRBench(*KEY)


@pytest.mark.parametrize(
    "change",
    [
        {"size": [112, 96]},
        {"size": 112},
        {"mean": [0.4, 0.5, 0.6]},
        {"template": [[0, 0]] * 5},
        {"channel": "gray"},
    ],
)
def test_contract_that_cannot_be_kept_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    fill(tmp_path, KEY[0], {**INPUT, **change})
    with pytest.raises(UserError, match=r"config\.yaml"):
        FRBench(*KEY)
