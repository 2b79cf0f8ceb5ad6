"""The test command installs every optional library: a lost one would skip tests in silence."""

from __future__ import annotations

import importlib.util
import os

import pytest

MODULES = [
    "dlib",
    "flask_cors",
    "frbench",
    "moto",
    "onnxruntime",
    "playwright",
    "ray",
    "s3fs",
    "tenseal",
]


@pytest.mark.skipif(os.environ.get("TOX_ENV_NAME") != "test", reason="not the test command")
@pytest.mark.parametrize("module", MODULES)
def test_what_tests_would_skip_without_is_installed(module: str) -> None:
    assert importlib.util.find_spec(module) is not None
