"""Where exactness is claimed, float32 is never TF32, whatever a program has set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from bench.metrics import lpips
from bench.metrics.perceptual import _network
from bench.precision import full_float32
from bench.recognizers.sface import SFace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.utils.hooks import RemovableHandle

cudnn: Any = torch.backends.cudnn  # torch does not declare all of its settings


def settings() -> tuple[str, str]:
    return torch.get_float32_matmul_precision(), cudnn.conv.fp32_precision


@pytest.fixture(autouse=True)
def careless() -> Iterator[None]:
    """Allow TF32 everywhere, as a program might."""
    before = settings()
    torch.set_float32_matmul_precision("medium")
    cudnn.conv.fp32_precision = "tf32"
    yield
    torch.set_float32_matmul_precision(before[0])
    cudnn.conv.fp32_precision = before[1]


def test_settings_hold_inside_and_are_put_back_even_after_an_error() -> None:
    @full_float32()
    def fails() -> None:
        inside.append(settings())
        raise KeyError

    inside: list[tuple[str, str]] = []
    with pytest.raises(KeyError):
        fails()
    assert inside == [("highest", "ieee")]
    assert settings() == ("medium", "tf32")


def seen_by(module: nn.Module) -> tuple[list[tuple[str, str]], RemovableHandle]:
    seen: list[tuple[str, str]] = []
    return seen, module.register_forward_hook(lambda *_: seen.append(settings()))


def test_recognisers_and_perceptual_distances_compute_in_full_float32() -> None:
    images = torch.rand(1, 3, 112, 112)
    recognizer = SFace(precision="float32")
    for module, call in (
        (recognizer.tail_blocks, lambda: recognizer.embed(images)),
        (_network("st-alex", images.device).trunk, lambda: lpips(images, images)),
    ):
        seen, handle = seen_by(module)
        call()
        handle.remove()
        assert set(seen) == {("highest", "ieee")}
