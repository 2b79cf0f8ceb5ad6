from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from bench.errors import MetricError, MissingAssetError
from bench.metrics import perceptual
from bench.metrics.perceptual import Reference, lpips
from bench.torchvision_import import import_torchvision

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# ST-LPIPS of `pictures`, from stlpips_pytorch 0.0.2 itself in float64: LPIPS(net=...,
# variant="shift_tolerant")(a, b, normalize=True), with empty modules in place of IPython,
# torchsummary and torchvision's operator descriptions.
GOLDEN = {
    ("st-alex", 112, 112): (0.040354159, 0.034802019, 0.029284558),
    ("st-alex", 64, 80): (0.042225015, 0.049170809, 0.021272358),
    ("st-vgg", 112, 112): (0.081789121, 0.078901427, 0.041777123),
    ("st-vgg", 64, 80): (0.049913861, 0.033726052, 0.046866333),
}


def pictures(height: int, width: int, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Return waves, and the same waves with another gamma and a ripple."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    waves = [
        [0.5 + 0.4 * np.sin(2 * np.pi * ((i + 1) * x + (c + 1) * y)) for c in range(3)]
        for i in range(count)
    ]
    a = np.array(waves)
    b = np.clip(a**1.5 + 0.1 * np.cos(40 * x * y), 0, 1)
    return torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32)


@pytest.mark.parametrize(("net", "height", "width"), GOLDEN)
def test_st_lpips_gives_the_published_values(net: str, height: int, width: int) -> None:
    values = lpips(*pictures(height, width), net=net)
    np.testing.assert_allclose(values, GOLDEN[net, height, width], rtol=2e-5)


def test_arrays_and_single_images() -> None:
    a, b = pictures(48, 40, count=20)
    batch = lpips(a.double().numpy(), b.double().numpy())
    assert batch.dtype == np.float32
    single = lpips(a[19].numpy(), b[19].numpy())
    assert single.shape == ()
    np.testing.assert_allclose(single, batch[19], rtol=1e-5)
    np.testing.assert_allclose(lpips(a, a), 0, atol=1e-12)


def test_the_cached_reference_changes_nothing_and_is_bounded() -> None:
    a, b = pictures(40, 48, count=40)
    expected = lpips(a, b)
    batch_bytes = sum(layer.nbytes for layer in Reference(a[:16])._features[0])
    for cache_bytes, batches in ((0, 0), (batch_bytes, 1), (3 * batch_bytes, 3)):
        reference = Reference(a, cache_bytes=cache_bytes)
        assert len(reference._features) == batches
        assert torch.equal(reference.lpips(b), expected)
        np.testing.assert_allclose(reference.lpips(a), 0, atol=1e-12)


def test_gradients_are_finite_even_where_all_features_vanish() -> None:
    flat = torch.zeros(1, 3, 40, 40)
    image = flat.clone().requires_grad_()
    lpips(image, torch.full_like(flat, 0.5)).sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()
    a, b = pictures(40, 40)
    with torch.inference_mode():
        lpips(a, b)
    b.requires_grad_()
    Reference(a).lpips(b).sum().backward()
    assert b.grad is not None
    assert b.grad.isfinite().all()
    assert b.grad.abs().sum() > 0


def test_loading_leaves_the_random_state_alone() -> None:
    perceptual._network.cache_clear()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    lpips(*pictures(40, 40))
    assert torch.equal(torch.get_rng_state(), before)


IMAGE = torch.full((1, 3, 40, 40), 0.5)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (IMAGE, IMAGE[..., :36], "differ in shape"),
        (IMAGE[:, :1], IMAGE[:, :1], r"shape \(N, 3, H, W\)"),
        (IMAGE[..., :31], IMAGE[..., :31], "40x31 are too small"),
        (IMAGE.byte(), IMAGE.byte(), "divide them by 255"),
        (IMAGE * 3, IMAGE, "from 1.5 to 1.5"),
        (IMAGE - 1, IMAGE, "from -0.5 to -0.5"),
        (IMAGE * torch.nan, IMAGE, "from nan to nan"),
    ],
)
def test_bad_images_are_refused(a: torch.Tensor, b: torch.Tensor, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        lpips(a, b)


def test_an_unknown_net_names_the_nearest() -> None:
    with pytest.raises(MetricError, match="did you mean 'st-alex'"):
        lpips(IMAGE, IMAGE, net="st_alex")


@pytest.fixture
def no_trunks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for net in ("ALEX", "VGG", "SQUEEZE"):
        monkeypatch.delenv(f"VEILBENCH_ASSET_LPIPS_TRUNK_{net}", raising=False)
    perceptual._network.cache_clear()
    (tmp_path / "checkpoints").mkdir()
    yield tmp_path / "checkpoints"
    perceptual._network.cache_clear()


@pytest.mark.usefixtures("no_trunks")
@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_lpips_without_its_trunk_refuses(net: str) -> None:
    with pytest.raises(MissingAssetError, match=f"LPIPS {net} is missing at .*download.pytorch"):
        lpips(IMAGE, IMAGE, net=net)


def test_lpips_with_an_altered_trunk_refuses(no_trunks: Path) -> None:
    (no_trunks / "alexnet-owt-7be5be79.pth").write_bytes(b"altered")
    with pytest.raises(MissingAssetError, match=r"was altered .*expected 7be5be79"):
        lpips(IMAGE, IMAGE, net="alex")


def test_lpips_with_a_trunk_equals_the_package(
    no_trunks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = import_torchvision().models
    import lpips as package

    with torch.random.fork_rng():
        torch.manual_seed(3)
        trunk = models.squeezenet1_1()
    path = no_trunks / "trunk"
    torch.save(trunk.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path = path.rename(no_trunks / f"squeezenet-{digest[:8]}.pth")
    monkeypatch.setitem(perceptual._TRUNKS, "squeeze", path.name)
    a, b = pictures(64, 64)
    values = lpips(a, b, net="squeeze")

    monkeypatch.setattr(models, "squeezenet1_1", lambda pretrained: trunk)
    expected = package.LPIPS(net="squeeze", verbose=False)(a, b, normalize=True).flatten()
    np.testing.assert_allclose(values, expected.detach(), rtol=1e-5)


def test_lpips_finds_a_trunk_through_the_environment(
    no_trunks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEILBENCH_ASSET_LPIPS_TRUNK_VGG", str(no_trunks / "mine.pth"))
    with pytest.raises(MissingAssetError, match=r"mine\.pth"):
        lpips(IMAGE, IMAGE, net="vgg")


def test_torchvision_imports_next_to_any_torch() -> None:
    code = (
        "from bench.torchvision_import import import_torchvision;"
        "assert import_torchvision() is import_torchvision();"
        "import torchvision.models, lpips; torchvision.models.squeezenet1_1()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_another_failure_of_torchvision_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError(f"{name} is broken")

    monkeypatch.setattr("bench.torchvision_import.import_module", broken)
    with pytest.raises(RuntimeError, match="torchvision is broken"):
        import_torchvision()
