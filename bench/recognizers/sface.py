"""SFace (Zhong et al., TIP 2021) from the OpenCV model zoo, as a differentiable torch module.

The network is a MobileFaceNet-like chain of 27 convolutions, each with batch norm and PReLU, and
one dense layer to 128 numbers. The file stores block-dequantised int8 weights; they are expanded,
batch norm is folded, and the result equals the ONNX graph.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from bench import assets
from bench.errors import UserError
from bench.recognizers.base import CROP, Recognizer, chosen_precision, frozen_prelu
from bench.registry import RECOGNIZERS

Array = NDArray[np.float32]
Affine = tuple[Tensor, Tensor]
"""Scale and shift per channel."""


@RECOGNIZERS.register("sface")
class SFace(Recognizer):
    """SFace, 128 numbers, LFW .994 on color images.

    Args:
        cut: Number of convolution blocks in the head, 1 to 26. The default gives the 64x56x56 map
            that has the shape of AdvFace's stored feature.
        precision: "float32", "bfloat16", or "auto": bfloat16 where the CPU multiplies it natively.

    Input: RGB in [0, 1], 112x112, ArcFace template, no mirror image; (255 x - 127.5) / 128 inside.
    Embeddings have unit length. Licence of the weights: Apache-2.0.
    """

    name = "sface"
    asset = "sface"
    embedding_size = 128

    def __init__(self, cut: int = 4, precision: str = "auto") -> None:
        super().__init__()
        if not 1 <= cut <= 26:
            raise UserError(f"The cut {cut} of sface is no block: give a number from 1 to 26.")
        self.precision = chosen_precision(precision, self.name)
        self.weights_sha256 = assets.manifest()["sface"].sha256
        blocks, self.dense = _build(onnx.load(assets.locate("sface")).graph)
        self.head_blocks = nn.Sequential(*blocks[:cut])
        self.tail_blocks = nn.Sequential(*blocks[cut:])
        self.requires_grad_(False).eval()
        channels, height, width = self.head(torch.zeros(1, *CROP)).shape[1:]
        self.feature_shape = (channels, height, width)

    def head(self, images: Tensor) -> Tensor:
        """Map images (N, 3, 112, 112) in [0, 1] to the map at the cut."""
        return self._compute(self.head_blocks, self.first_input(images))

    def tail(self, features: Tensor) -> Tensor:
        """Map the map at the cut to embeddings of unit length."""
        return self._embedding(self._compute(self.tail_blocks, features))

    @property
    def first_convolution(self) -> nn.Conv2d:
        """Three channels to 32, with its batch norm folded in."""
        return cast("nn.Conv2d", self.head_blocks.get_submodule("0.0"))

    def first_input(self, images: Tensor) -> Tensor:
        """Map images in [0, 1] to about [-1, 1]."""
        return (images * 255 - 127.5) / 128

    def after_first(self, x: Tensor) -> Tensor:
        """Map (N, 32, 112, 112), before the first PReLU, to embeddings of unit length."""
        others = [*self.head_blocks, *self.tail_blocks][1:]
        rest = [self.head_blocks.get_submodule("0.1"), *others]
        return self._embedding(self._compute(nn.Sequential(*rest), x))

    def _embedding(self, x: Tensor) -> Tensor:
        return functional.normalize(self.dense(x.flatten(1)), dim=1)


def _build(graph: onnx.GraphProto) -> tuple[list[nn.Sequential], nn.Linear]:
    """Read the graph, a chain, as convolution blocks and the final dense layer.

    Batch norm is folded into the convolution or dense layer before it; the one that precedes the
    dense layer is folded into that layer.
    """
    values = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    blocks: list[nn.Sequential] = []
    dense = nn.Linear(1, 1)
    before_dense = (torch.ones(1), torch.zeros(1))
    for node in graph.node:
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        known = [values[name] for name in node.input if name in values]
        match node.op_type:
            case "DequantizeLinear":
                values[node.output[0]] = _dequantize(known, attributes)
            case "Reshape":
                values[node.output[0]] = known[0].reshape(known[1])
            case "Conv":
                blocks.append(nn.Sequential(_convolution(known[0], attributes)))
            case "PRelu":
                blocks[-1].append(_FrozenPReLU(known[0]))
            case "Gemm":
                dense = _dense(known[0], known[1], before_dense)
            case "BatchNormalization":
                affine = _affine(known, attributes["epsilon"])
                if dense.out_features > 1:
                    _fold(dense, affine)
                elif len(blocks[-1]) == 1:
                    _fold(blocks[-1][0], affine)
                else:
                    before_dense = affine
    return blocks, dense


def _dequantize(known: list[Array], attributes: dict[str, Any]) -> Array:
    """Return (quantized - zero point) * scale, where one scale serves a block along an axis."""
    quantized, scales, zero_points = known
    axis, size = attributes["axis"], attributes["block_size"]
    length = quantized.shape[axis]

    def spread(values: Array) -> Array:
        return np.repeat(values.astype(np.float32), size, axis).take(range(length), axis)

    result: Array = (quantized.astype(np.float32) - spread(zero_points)) * spread(scales)
    return result


def _affine(known: list[Array], epsilon: float) -> Affine:
    gamma, beta, mean, variance = (torch.from_numpy(np.array(value)) for value in known)
    scale = gamma / torch.sqrt(variance + epsilon)
    return scale, beta - mean * scale


def _fold(layer: nn.Module, affine: Affine) -> None:
    """Let a convolution or dense layer compute scale * layer(x) + shift."""
    scale, shift = affine
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    weight.data *= scale.reshape(-1, *[1] * (weight.ndim - 1))
    bias.data = bias.data * scale + shift


def _convolution(weight: Array, attributes: dict[str, Any]) -> nn.Conv2d:
    outputs, per_group, kernel, _ = weight.shape
    layer = nn.Conv2d(
        per_group * attributes["group"],
        outputs,
        kernel,
        stride=attributes["strides"][0],
        padding=attributes["pads"][0],
        groups=attributes["group"],
    )
    _set(layer, torch.from_numpy(weight.copy()), torch.zeros(outputs))
    layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    return layer


def _set(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    layer.get_parameter("weight").data = weight
    layer.get_parameter("bias").data = bias


class _FrozenPReLU(nn.Module):
    """PReLU whose slopes are constants."""

    def __init__(self, slope: Array) -> None:
        super().__init__()
        self.register_buffer("slope", torch.from_numpy(np.array(slope)).flatten())

    def forward(self, x: Tensor) -> Tensor:
        return frozen_prelu(x, self.get_buffer("slope"))


def _dense(weight: Array, bias: Array, before: Affine) -> nn.Linear:
    """Return the dense layer with the batch norm of the map before it folded in."""
    outputs, inputs = weight.shape
    scale, shift = (value.repeat_interleave(inputs // len(value)) for value in before)
    layer = nn.Linear(inputs, outputs)
    matrix = torch.from_numpy(weight.copy())
    _set(layer, matrix * scale, torch.from_numpy(bias.copy()) + matrix @ shift)
    return layer
