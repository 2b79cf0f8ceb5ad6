from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from pretended_device import pretended_device
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from bench.errors import MetricError, UserError
from bench.metrics.image import DEFINITIONS, mse, psnr, ssim

if TYPE_CHECKING:
    from numpy.typing import NDArray

WANG: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
SCIKIT_IMAGE: dict[str, dict[str, Any]] = {
    "wang11-valid-rgb": WANG,
    "uniform7-sample-rgb": {},
}


def crops(count: int, size: int = 48) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return smooth random images and blurred, noisy or negated versions of them."""
    rng = np.random.default_rng(7)
    coarse = rng.uniform(0, 255, (count, 3, size // 8, size // 8))
    images = np.kron(coarse, np.ones((8, 8))) + rng.normal(0, 12, (count, 3, size, size))
    images = images.clip(0, 255)
    distorted = images + rng.normal(0, 1, images.shape) * rng.uniform(1, 60, (count, 1, 1, 1))
    distorted[::5] = 255 - images[::5]
    distorted[1::5] = np.roll(images[1::5], 1, axis=-1)
    return images.astype(np.uint8), np.clip(distorted, 0, 255).astype(np.uint8)


def scikit_image(a: NDArray[Any], b: NDArray[Any], **settings: Any) -> NDArray[np.float64]:
    return np.array(
        [
            structural_similarity(x, y, channel_axis=0, data_range=255, **settings)
            for x, y in zip(a.astype(np.float64), b.astype(np.float64), strict=True)
        ]
    )


@pytest.mark.parametrize("definition", SCIKIT_IMAGE)
def test_ssim_agrees_with_scikit_image(definition: str) -> None:
    a, b = crops(50)
    expected = scikit_image(a, b, **SCIKIT_IMAGE[definition])
    in_64 = ssim(a, b, definition=definition, data_range=255)
    in_32 = ssim(a.astype(np.float32), b.astype(np.float32), definition=definition, data_range=255)
    assert in_64.dtype == np.float64
    assert in_32.dtype == np.float32
    assert np.abs(in_64 - expected).max() <= 1e-9
    assert np.abs(in_32 - expected).max() <= 5e-6
    assert expected.min() < 0 < 0.9 < expected.max()  # the crops cover the range


def test_ssim_of_luma_agrees_with_scikit_image() -> None:
    a, b = crops(10)
    luma = [np.einsum("nchw,c->nhw", x.astype(float), (0.299, 0.587, 0.114)) for x in (a, b)]
    expected = scikit_image(*(x[:, None] for x in luma), **WANG)
    values = ssim(a, b, definition="wang11-valid-luma", data_range=255)
    assert np.abs(values - expected).max() <= 1e-9


@pytest.mark.parametrize("shape", [(3, 11, 11), (1, 12, 57), (3, 91, 130)])
def test_ssim_of_any_shape_agrees_with_scikit_image(shape: tuple[int, int, int]) -> None:
    a, b = np.random.default_rng(0).integers(0, 256, (2, 2, *shape))
    assert np.abs(ssim(a, b, data_range=255) - scikit_image(a, b, **WANG)).max() <= 1e-9


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_a_batch_equals_its_images_one_by_one(definition: str) -> None:
    a, b = crops(40, size=64)
    batch = ssim(a, b, definition=definition, data_range=255)
    single = [ssim(x, y, definition=definition, data_range=255) for x, y in zip(a, b, strict=True)]
    assert np.abs(batch - np.array(single)).max() <= 1e-12
    assert single[0].shape == ()


def test_scaling_the_images_with_the_range_changes_nothing() -> None:
    a, b = crops(5)
    unit = ssim(a / 255, b / 255, data_range=1)
    assert np.abs(unit - ssim(a, b, data_range=255)).max() <= 1e-12


def test_ssim_is_differentiable() -> None:
    a, b = (torch.from_numpy(0.1 + x[:2, :, :13, :14] / 320) for x in crops(2))
    for definition in DEFINITIONS:
        function = lambda x, d=definition: ssim(x, b, definition=d, data_range=1)  # noqa: E731
        assert torch.autograd.gradcheck(function, (a.clone().requires_grad_(),))


def test_a_call_in_inference_mode_does_not_spoil_a_later_gradient() -> None:
    a, b = (torch.from_numpy(x / 255) for x in crops(1, size=40))
    with torch.inference_mode():
        ssim(a, b, data_range=1)
    a.requires_grad_()
    ssim(a, b, data_range=1).sum().backward()
    assert a.grad is not None


def test_psnr_and_mse_agree_with_scikit_image() -> None:
    a, b = crops(20)
    pairs = list(zip(a, b, strict=True))
    expected_mse = [mean_squared_error(x, y) for x, y in pairs]
    expected_psnr = [peak_signal_noise_ratio(x, y, data_range=255) for x, y in pairs]
    np.testing.assert_allclose(mse(a, b), expected_mse, rtol=1e-12)
    np.testing.assert_allclose(psnr(a, b, data_range=255), expected_psnr, rtol=1e-12)


def test_identical_images() -> None:
    a, _ = crops(2)
    assert (ssim(a, a, data_range=255) == 1).all()
    assert (psnr(a, a, data_range=255) == np.inf).all()
    assert (mse(a, a) == 0).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float16, np.float32])
def test_real_types_compute_in_float(dtype: type[np.generic]) -> None:
    a, b = (np.asfortranarray(x[..., ::-1]).astype(dtype) for x in crops(2))
    a.flags.writeable = False
    values = ssim(a, b, data_range=255)
    assert values.dtype == (np.float64 if np.issubdtype(dtype, np.integer) else np.float32)
    assert isinstance(ssim(torch.tensor(a), torch.tensor(b), data_range=255), torch.Tensor)
    np.testing.assert_allclose(values, ssim(*crops(2), data_range=255), atol=1e-2)


def replaced(image: NDArray[Any], value: float) -> NDArray[np.float64]:
    image = image.astype(np.float64)
    image[0, 0, 0, 0] = value
    return image


IMAGE = np.full((1, 3, 16, 16), 100.0)


@pytest.mark.parametrize(
    ("a", "b", "data_range", "message"),
    [
        (replaced(IMAGE, np.nan), IMAGE, 255, "NaN"),
        (IMAGE, replaced(IMAGE, np.inf), 255, "infinite"),
        (IMAGE, IMAGE[..., :12], 255, "differ in shape"),
        (IMAGE, IMAGE.astype(np.float32), 255, "differ in type"),
        (IMAGE, IMAGE, 1, r"from 100 to 100, outside \[0, 1\]"),
        (IMAGE - 101, IMAGE, 255, r"from -1 to -1, outside \[0, 255\]"),
        (IMAGE / 255, IMAGE / 255, 255, "give data_range=1"),
        (IMAGE, IMAGE, 0, "data_range must be positive"),
        (IMAGE, IMAGE, np.nan, "data_range must be positive"),
        (IMAGE[..., :10], IMAGE[..., :10], 255, "16x10 are smaller than the window of 11"),
        (IMAGE[0, 0], IMAGE[0, 0], 255, "must have the shape"),
        (IMAGE[:0], IMAGE[:0], 255, "must have the shape"),
        (IMAGE > 0, IMAGE > 0, 255, "must be real"),
        (IMAGE + 1j, IMAGE + 1j, 255, "must be real"),
        (IMAGE.tolist(), IMAGE.tolist(), 255, "must be a tensor or an array"),
        (IMAGE.astype(object), IMAGE.astype(object), 255, "must be a tensor or an array"),
    ],
)
def test_bad_images_are_refused(
    a: NDArray[Any], b: NDArray[Any], data_range: float, message: str
) -> None:
    with pytest.raises(MetricError, match=message):
        ssim(a, b, data_range=data_range)


def test_bad_definitions_are_refused() -> None:
    with pytest.raises(MetricError, match="did you mean 'wang11-valid-rgb'"):
        ssim(IMAGE, IMAGE, definition="wang11-rgb", data_range=255)
    with pytest.raises(MetricError, match="3 channels"):
        ssim(IMAGE[:, :2], IMAGE[:, :2], definition="wang11-valid-luma", data_range=255)
    assert issubclass(MetricError, UserError)
    assert issubclass(MetricError, ValueError)


def test_all_black_images_are_images() -> None:
    black = np.zeros((1, 3, 16, 16), np.uint8)
    assert ssim(black, black, data_range=255) == [1.0]


def test_a_device_gives_what_the_cpu_gives() -> None:
    a, b = (torch.from_numpy(x) for x in crops(20))
    with pretended_device() as device:
        for definition in DEFINITIONS:
            on_cpu = ssim(a, b, definition=definition, data_range=255)
            there = ssim(a.to(device), b.to(device), definition=definition, data_range=255)
            assert there.device.type == device
            assert (there.cpu() - on_cpu).abs().max() <= 1e-12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_what_the_cpu_gives() -> None:
    a, b = (torch.from_numpy(x) for x in crops(20))
    for definition in DEFINITIONS:
        on_cpu = ssim(a, b, definition=definition, data_range=255)
        on_gpu = ssim(a.cuda(), b.cuda(), definition=definition, data_range=255)
        assert (on_gpu.cpu() - on_cpu).abs().max() <= 1e-12
