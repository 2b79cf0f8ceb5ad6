"""Float32 products that are float32.

On a GPU torch takes those of convolutions in TF32, with 10 bits after the point, unless told not
to, and those of matrices wherever a program allows it. Judges' scores, metrics and the error bounds
of all-pairs screening must not depend on that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Keep torch from taking float32 products in TF32 or bfloat16; settings are put back after."""
    convolution = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    matrices, convolutions = torch.get_float32_matmul_precision(), convolution.fp32_precision
    torch.set_float32_matmul_precision("highest")
    convolution.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matrices)
        convolution.fp32_precision = convolutions
