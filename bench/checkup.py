"""What `veilbench doctor` says: what is here, what is missing, and how to get it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from bench import assets
from bench.errors import MissingAssetError
from bench.metrics.perceptual import has_trunk
from bench.recognizers.base import best_cpu_precision
from bench.store import default_root

_PACKAGES = ("veilbench", "torch", "torchvision", "lpips", "opencv-python-headless", "numpy")


def describe() -> str:
    """Return the report as lines of text."""
    lines = [f"python      {platform.python_version()} on {platform.platform()}"]
    lines += [f"{'package':<12}{name} {_version(name)}" for name in _PACKAGES]
    lines.append(
        f"cpu         {torch.get_num_threads()} threads, {best_cpu_precision()} arithmetic"
    )
    lines += [
        f"cuda        {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())
    ]
    lines.append(f"store       {default_root()}")
    lines += [f"{'weights':<12}{name}: {_state(name)}" for name in assets.manifest()]
    found = (
        "found" if has_trunk("alex") else "absent; ST-LPIPS is taken instead, under its own name"
    )
    lines.append(f"{'weights':<12}LPIPS alex trunk: {found}")
    return "\n".join(lines)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return f"missing: install it with 'python -m pip install {name}'"


def _state(name: str) -> str:
    asset = assets.manifest()[name]
    try:
        assets.locate(name)
    except MissingAssetError as error:
        return str(error)
    return f"found, sha256 checked ({asset.license}; {asset.credit})"
