from __future__ import annotations

import subprocess
import sys

import pytest

from bench.errors import MetricError
from bench.metrics.definitions import Definition, definition, definitions
from bench.metrics.image import DEFINITIONS as SSIM
from bench.metrics.perceptual import DEFINITIONS as LPIPS


def test_every_entry_is_complete_and_sane() -> None:
    for metric, entry in definitions().items():
        assert isinstance(entry, Definition)
        assert entry.id == metric
        assert entry.low < entry.high
        assert entry.better in {"higher", "lower"}
        assert entry.kind in {"privacy", "utility", "protection", "cost"}
        assert entry.description.endswith(".")
        assert all((entry.name, entry.unit, entry.source))


def test_every_definition_in_code_is_in_the_table() -> None:
    assert {f"ssim:{name}" for name in SSIM} == {m for m in definitions() if m.startswith("ssim:")}
    assert set(LPIPS.values()) == {m for m in definitions() if m.startswith("lpips:")}


def test_an_unknown_id_names_the_nearest() -> None:
    with pytest.raises(MetricError, match="did you mean 'ssim:wang11-valid-rgb'"):
        definition("ssim:wang11-valid-rg")
    with pytest.raises(MetricError, match="known are "):
        definition("!!!")


def test_listing_the_metrics_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from bench.metrics import definitions; definitions();"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_function_is_reachable_though_its_module_has_the_same_name() -> None:
    code = (
        "import bench.metrics.unlinkability, bench.metrics.definitions;"
        "from bench.metrics import definitions, unlinkability;"
        "assert callable(unlinkability) and callable(definitions)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
