"""The 45 networks of PyPI's `frbench` (Wang et al., CVPR 2026), from its cache, never the network.

Of the package only the architectures are used: its own pipeline asks the internet for updates and
downloads what is missing as soon as it is constructed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.datasets.align import TEMPLATE
from bench.datasets.images import reading
from bench.errors import DataError, MissingAssetError
from bench.recognizers.base import chosen_precision
from bench.recognizers.contract import Contract, ContractRecognizer, read_weights
from bench.recognizers.iresnet import load, read_state_dict
from bench.registry import RECOGNIZERS
from bench.torchvision_import import import_torchvision

MAX_CONFIG_BYTES = 1 << 20
_TEMPLATE_TOLERANCE = 0.1
"""In pixels."""


@RECOGNIZERS.register("frbench")
class FRBench(ContractRecognizer):
    """A network of the package frbench, by architecture, loss and training data.

    Args:
        backbone: Architecture, such as "irse-50" or "swinv2-t".
        loss: Loss that it was trained with, such as "arcface" or "adaface".
        dataset: Data that it was trained on: "ms1m", "webface4m" or "glint360k".
        sha256: Hash of the extracted file of weights in hexadecimal; another one is then refused.
        precision: "float32", "bfloat16", or "auto": bfloat16 on a CPU that multiplies it natively.

    Nothing is downloaded: `frbench-download irse-50_arcface_ms1m` fills frbench's cache, and checks
    its archive against the sha256 of frbench's manifest. The archive is not kept, so what is
    recorded here, and can be pinned, is the sha256 of the weights themselves.

    The input contract is read from the configuration beside the weights. The 25 architectures have
    no common map to cut at: the features are the prepared image, so these networks serve as judges
    and as targets whose images or templates leak. frbench itself adds the mirror image unless told
    not to; here there is none. Embeddings have unit length. Licence of the package: MIT.
    """

    name = "frbench"
    asset = "frbench"

    def __init__(
        self,
        backbone: str,
        loss: str,
        dataset: str,
        sha256: str | None = None,
        precision: str = "float32",
    ) -> None:
        super().__init__()
        self.precision = chosen_precision(precision, self.name)
        _import_frbench()
        folder = cached_model(f"{backbone}_{loss}_{dataset}")
        config = _read_config(folder.config)
        self.contract = _contract(config.get("input", {}), folder.config)
        self.file = folder.weights
        data, self.weights_sha256 = read_weights(self.file, sha256)
        self.front = nn.Identity()
        self.back = _backbone(config.get("backbone", {}), folder.config)
        load(self.back, read_state_dict(data, str(self.file)), str(self.file))
        self._settle()


@dataclass(frozen=True)
class CachedModel:
    """Where frbench's cache keeps one network.

    Attributes:
        config: YAML file with the architecture and the input contract.
        weights: State dict.
    """

    config: Path
    weights: Path


def _import_frbench() -> Any:
    import_torchvision()  # frbench imports it
    try:
        return import_module("frbench")
    except ImportError as error:
        raise MissingAssetError(
            "The package frbench is not installed: install it with "
            "'python -m pip install veilbench[frbench]'."
        ) from error


def cached_model(key: str) -> CachedModel:
    """Return where frbench's cache keeps a network.

    Args:
        key: "backbone_loss_dataset".

    Raises:
        MissingAssetError: The cache does not hold it.
        DataError: The cache's manifest cannot be read.
    """
    cache = Path(_import_frbench().CACHE)
    manifest = cache / "manifest.json"
    mend = f"fetch it with 'frbench-download {key}'"
    if not manifest.is_file():
        raise MissingAssetError(f"The cache of frbench at {cache} is empty: {mend}.")
    with reading(manifest, max_bytes=MAX_CONFIG_BYTES) as stream:
        text = stream.read()
    try:
        entry = json.loads(text).get(key)
        if entry is None:
            raise MissingAssetError(f"frbench's manifest {manifest} has no {key}: {mend}.")
        folder = cache / entry["target_name"]
        contents = entry["contents"]
        found = CachedModel(folder / contents["config"], folder / contents["weight"])
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise DataError(
            f"frbench's manifest {manifest} is malformed ({error}): renew it with "
            "'frbench-download --refresh --list'."
        ) from error
    if not (found.config.is_file() and found.weights.is_file()):
        raise MissingAssetError(f"The cache of frbench at {cache} lacks {key}: {mend}.")
    return found


def _read_config(path: Path) -> dict[str, Any]:
    yaml = import_module("yaml")  # frbench brings it

    with reading(path, max_bytes=MAX_CONFIG_BYTES) as stream:
        text = stream.read()
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _malformed(path, "it is not YAML") from error
    if not isinstance(config, dict):
        raise _malformed(path, "it has no fields")
    return config


def _contract(stated: dict[str, Any], path: Path) -> Contract:
    """Return the contract that frbench's `input` section states; its values are of 0 to 1."""
    try:
        height, width = stated.get("size", (112, 112))
        (mean,) = set(stated.get("mean", [0.5]))
        # frbench's own name for the standard deviation comes first.
        (deviation,) = set(stated.get("var", stated.get("std", [0.5])))
        template = np.array(stated.get("template") or TEMPLATE, dtype=np.float64)
        arcface = height == width and np.abs(template - TEMPLATE).max() <= _TEMPLATE_TOLERANCE
        fields = {
            "size": height,
            "color": stated.get("channel", "rgb"),
            "offset": mean * 255,
            "scale": deviation * 255,
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise _malformed(path, f"its input section does not fit, {error}") from error
    if not arcface:
        raise _malformed(path, "its crop is not ArcFace's square one")
    return Contract.create(f"frbench's {path.name}", fields)


def _backbone(stated: dict[str, Any], path: Path) -> nn.Module:
    build = import_module("frbench.backbones").build_backbone
    try:
        built: nn.Module = build(stated["name"], stated.get("kwargs", {}), torch.device("cpu"))
    except (ValueError, LookupError, TypeError, AssertionError) as error:
        raise _malformed(path, f"its backbone cannot be built, {error}") from error
    return built


def _malformed(path: Path, reason: str) -> DataError:
    return DataError(
        f"frbench's configuration {path} cannot be used ({reason}): fetch it again with "
        "'frbench-download'."
    )
