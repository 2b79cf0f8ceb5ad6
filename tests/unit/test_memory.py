"""Memory that is freed serves again: the system need not clear it each time."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from bench.memory import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_large_tensors_take_the_pages_of_those_before() -> None:
    keep_freed_memory()
    size = 64 * 2**20
    before = 0
    for number in range(20):
        if number == 10:  # It takes a few until one is found that fits.
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(size, dtype=torch.uint8)
    cleared = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert cleared < size / resource.getpagesize()
