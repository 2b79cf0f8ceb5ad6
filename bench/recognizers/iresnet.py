"""ArcFace's IResNet (Deng et al., CVPR 2019) with a user's weights, as insightface trains it.

The parameters carry the names of insightface's `arcface_torch`, so its state dicts load as they
are: a stem, four stages of residual blocks, and a dense layer between two batch norms.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from bench.errors import DataError, UserError
from bench.recognizers.base import chosen_precision, frozen_prelu
from bench.recognizers.contract import (
    MAX_WEIGHTS_BYTES,
    Contract,
    ContractRecognizer,
    read_weights,
)
from bench.registry import RECOGNIZERS

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
"""Residual blocks in the four stages, by depth."""

_CHANNELS = (64, 128, 256, 512)
_STEM = ("conv1", "bn1", "prelu")
_DENSE_INPUT = 512 * 7 * 7


@RECOGNIZERS.register("iresnet")
class IResNet(ContractRecognizer):
    """ArcFace's IResNet-18, 34, 50 or 100, with a state dict in insightface's names.

    Args:
        path: The state dict, at most 1 GiB: `.safetensors`, or what `torch.save` wrote, of which
            tensors alone are read and no code is run. The depth is read off its names.
        sha256: Hash of the file in hexadecimal; another file is then refused.
        cut: Number of stages in the head, 1 to 4. The default gives the 64x56x56 map that has the
            shape of AdvFace's stored feature.
        precision: "float32", "bfloat16", or "auto": bfloat16 on a CPU that multiplies it natively.
        contract: Fields of `bench.recognizers.contract.Contract`; the defaults are insightface's.

    Input: RGB in [0, 1], 112x112, ArcFace template, no mirror image; (255 x - 127.5) / 127.5
    inside. Embeddings have unit length.
    """

    name = "iresnet"
    asset = "iresnet"

    def __init__(
        self,
        path: str,
        sha256: str | None = None,
        cut: int = 1,
        precision: str = "float32",
        **contract: Any,
    ) -> None:
        super().__init__()
        if cut not in range(1, 5):
            raise UserError(f"The cut {cut!r} of iresnet is no stage: give 1, 2, 3 or 4.")
        self.precision = chosen_precision(precision, self.name)
        self.contract = Contract.create(f"recognizer {self.name!r}", contract)
        if self.contract.shape != (3, 112, 112):
            raise UserError("The recognizer 'iresnet' reads 112x112 only: drop size and crop.")
        self.file = Path(path)
        data, self.weights_sha256 = read_weights(self.file, sha256)
        state = read_state_dict(data, path)
        with torch.device("meta"):
            layers = network(depth_of(state, path))
        load(layers, state, path)
        stages = len(_STEM) + cut
        self.front, self.back = layers[:stages], layers[stages:]
        self._settle()

    @property
    def first_convolution(self) -> nn.Conv2d:
        """Three channels to 64, without a bias.

        Raises:
            UserError: The contract adds mirror images, of which there are two first maps.
        """
        if self.contract.flip:
            raise UserError("An iresnet with flip cannot be adapted to another input: drop flip.")
        return cast("nn.Conv2d", self.front.get_submodule("conv1"))

    def first_input(self, images: Tensor) -> Tensor:
        """Map images in [0, 1] to what the contract says."""
        return self.contract.prepare(images)

    def after_first(self, x: Tensor) -> Tensor:
        """Map (N, 64, 112, 112), before the first batch norm, to embeddings of unit length."""
        rest = list(self.front.children())[1:]
        return self.tail(self._compute(nn.Sequential(*rest), x))


def network(depth: int, channels: int = 3) -> nn.Sequential:
    """Return an IResNet with fresh weights: (N, channels, 112, 112) to (N, 512).

    Args:
        depth: A key of `BLOCKS`.
        channels: Of the input.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Conv2d(channels, _CHANNELS[0], 3, padding=1, bias=False)
    layers["bn1"] = nn.BatchNorm2d(_CHANNELS[0])
    layers["prelu"] = _PReLU(_CHANNELS[0])
    inputs = _CHANNELS[0]
    for stage, (width, count) in enumerate(zip(_CHANNELS, BLOCKS[depth], strict=True), start=1):
        rest = [_Block(width, width, 1) for _ in range(count - 1)]
        layers[f"layer{stage}"] = nn.Sequential(_Block(inputs, width, 2), *rest)
        inputs = width
    layers["bn2"] = nn.BatchNorm2d(inputs)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(_DENSE_INPUT, 512)
    layers["features"] = nn.BatchNorm1d(512)
    return nn.Sequential(layers)


class _PReLU(nn.PReLU):
    """PReLU, outside training without the gradient of its slopes: 4 times as fast backwards."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else frozen_prelu(x, self.weight)


class _Block(nn.Module):
    """Two convolutions between three batch norms, and a shortcut."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = _PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = nn.Sequential()
        if stride > 1:
            self.downsample.append(nn.Conv2d(inputs, channels, 1, stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        result: Tensor = self.bn3(self.conv2(y)) + self.downsample(x)
        return result


def read_state_dict(data: bytes, where: str) -> dict[str, Tensor]:
    """Read tensors by name from a file that may come from anybody; no code of it is run.

    Args:
        data: The bytes of a `.safetensors` file, or of what `torch.save` wrote.
        where: Names the file in messages.

    Raises:
        DataError: The bytes are neither, or hold something else than tensors by name.
    """
    try:
        state = _load_torch(data, where) if _is_torch(data) else safetensors.torch.load(data)
    except _UNREADABLE as error:
        raise DataError(
            f"{where} is no state dict that can be read without running code: save the "
            "network's state_dict() with torch.save or safetensors."
        ) from error
    if not isinstance(state, dict) or not all(_is_plain(*item) for item in state.items()):
        raise DataError(
            f"{where} holds something else than tensors by name: save the network's state_dict() "
            "alone."
        )
    return state


_UNREADABLE = (
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError, MemoryError),
    *(pickle.UnpicklingError, zipfile.BadZipFile, safetensors.SafetensorError),
)
"""What the readers raise for broken or forbidden bytes."""


def _is_plain(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor) and value.layout is torch.strided


def _is_torch(data: bytes) -> bool:
    """Tell a file of torch.save (zip archive, or bare pickle in old ones) from safetensors."""
    return data[:4] == b"PK\x03\x04" or data[:1] == b"\x80"


def _load_torch(data: bytes, where: str) -> Any:
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(item.file_size for item in archive.infolist())
        if unpacked > MAX_WEIGHTS_BYTES:
            raise DataError(f"{where} unpacks to {unpacked:,} bytes: check that it is right.")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def load(layers: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Put a state dict into a network, all of it and nothing else, in the types of the network.

    Args:
        layers: The network, on any device; it takes the tensors over.
        state: Tensors by name. Counters of batches, which only training needs, are not read.
        where: Names the file in messages.

    Raises:
        DataError: A name or a shape differs, or a value is not finite.
    """
    wanted = layers.state_dict()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    _check_names("lacks", wanted.keys() - counters - state.keys(), where)
    _check_names("has the unknown", state.keys() - wanted.keys(), where)
    found = {name: state[name] for name in wanted if name not in counters}
    for name, value in found.items():
        shape, expected = list(value.shape), list(wanted[name].shape)
        if shape != expected or value.is_floating_point() != wanted[name].is_floating_point():
            raise DataError(
                f"{where} has {name!r} as {value.dtype} of shape {shape} instead of {expected}: "
                "give the state dict of this architecture."
            )
        if not value.isfinite().all():
            raise DataError(f"{where} has values in {name!r} that are not finite: save it again.")
    # A copy: what the file calls a tensor may be a view into something larger.
    values = {name: value.to(wanted[name].dtype, copy=True) for name, value in found.items()}
    layers.load_state_dict(values | {name: torch.tensor(0) for name in counters}, assign=True)


def _check_names(what: str, names: set[str], where: str) -> None:
    if names:
        raise DataError(
            f"{where} {what} {min(names)!r} ({len(names)} such names): give the state dict of this "
            "architecture."
        )


def depth_of(state: dict[str, Tensor], where: str) -> int:
    """Return the depth whose blocks a state dict names.

    Raises:
        DataError: There is none.
    """
    blocks = {tuple(name.split(".")[:2]) for name in state if name.startswith("layer")}
    counts = tuple(sum(stage == f"layer{n}" for stage, *_ in blocks) for n in range(1, 5))
    for depth, known in BLOCKS.items():
        if counts == known:
            return depth
    raise DataError(
        f"{where} has {counts} blocks in its stages, which no IResNet has: give the state dict of "
        f"an insightface IResNet-{', '.join(map(str, BLOCKS))}."
    )
