"""Any ONNX face network (insightface's, the OpenCV zoo's) as a differentiable torch module.

Converters do not serve: onnx2torch 1.5 knows no block-dequantised weights, no operator set beyond
its release in 2024, and does not import beside a CPU-only torch. Face networks use some thirty
operators, so a small interpreter runs the graph node by node.

The file may come from anybody. Nothing in it is run but these operators. Before anything is
computed, the whole graph is run on torch's "meta" device, which knows shapes but holds no values,
and every shape is checked: a small file cannot ask for much memory.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import DataError, UserError
from bench.recognizers.base import chosen_precision, frozen_prelu
from bench.recognizers.contract import (
    Contract,
    ContractRecognizer,
    read_weights,
    reference_faces,
)
from bench.registry import RECOGNIZERS

Attributes = dict[str, Any]
Operator = Callable[..., Tensor]
"""Called with the attributes of a node and its inputs, None for one that is left out."""

AGREEMENT = 0.9999
"""Least cosine between an output of the module and onnxruntime's."""

MAX_NODES = 10_000
MAX_ELEMENTS = 1 << 26
"""Largest tensor for one image: 20 times IResNet's largest map."""
MAX_SHAPE_ELEMENTS = 1024
"""Largest integer tensor: integers serve as shapes, axes and indices only."""
_OPSETS = range(7, 100)
_ONNX_DOMAINS = {"", "ai.onnx"}


@RECOGNIZERS.register("onnx")
class ONNX(ContractRecognizer):
    """A face network in an ONNX file, with the input contract that the suite states.

    Args:
        path: The file, at most 1 GiB, weights inside. Its one input is (N, 3, H, W) and its one
            output (N, D); values of 16 bits are computed in 32.
        sha256: Hash of the file in hexadecimal; another file is then refused.
        cut: Name of the tensor at which the head ends. Every path from input to output must pass
            through it. The default: of such maps with half the height of the input, those with the
            fewest channels, and the last of these. In ArcFace's IResNet and in SFace it is a
            64x56x56 map, the shape of AdvFace's stored object.
        precision: "float32", "bfloat16", or "auto": bfloat16 on a CPU that multiplies it natively.
        contract: The fields of `bench.recognizers.contract.Contract`. Graphs that begin with their
            own subtraction and multiplication (SFace) want offset 0 and scale 1.

    Embeddings have unit length. On load the contract is checked (`check_contract`), and, where
    onnxruntime is installed, the raw outputs for two reference faces are compared with its own:
    cosine .9999 at least. Without onnxruntime that comparison is left out, and only shapes, and
    that a batch gives what single images give, are checked.
    """

    name = "onnx"
    asset = "onnx"

    def __init__(
        self,
        path: str,
        sha256: str | None = None,
        cut: str | None = None,
        precision: str = "float32",
        **contract: Any,
    ) -> None:
        super().__init__()
        self.precision = chosen_precision(precision, self.name)
        self.contract = Contract.create(f"recognizer {self.name!r}", contract)
        self.file = Path(path)
        data, self.weights_sha256 = read_weights(self.file, sha256)
        graph = Graph.parse(data, self.contract.shape, path)
        self.cut = graph.default_cut() if cut is None else graph.checked_cut(cut)
        self.front = graph.part(graph.source, self.cut)
        self.back = graph.part(self.cut, graph.target)
        self._compare(data, graph.source)
        self._settle()

    @property
    def settings(self) -> dict[str, Any]:
        """The contract, and the cut by name: neighbours in a graph often have one shape."""
        return {**super().settings, "cut_name": self.cut}

    @torch.no_grad()
    def _compare(self, data: bytes, source: str) -> None:
        """Compare the raw outputs for two reference faces with single ones and with onnxruntime's.

        Raises:
            DataError: They differ.
        """
        inputs = self.contract.prepare(reference_faces()[1:3])
        found = self.back(self.front(inputs))
        expected = {"the outputs of single images": _singly(self.front, self.back, inputs)}
        if importlib.util.find_spec("onnxruntime"):
            expected["onnxruntime's"] = _runtime_outputs(data, source, inputs, str(self.file))
        for whose, other in expected.items():
            if found.shape != other.shape:
                agreement = -1.0
            else:
                agreement = functional.cosine_similarity(found, other, dim=1).min().item()
            if not agreement >= AGREEMENT:
                raise DataError(
                    f"The outputs of {self.file} for a batch differ from {whose} (cosine "
                    f"{agreement:.5f}): export the graph again, for any batch size."
                )


def _singly(front: nn.Module, back: nn.Module, inputs: Tensor) -> Tensor:
    return torch.cat([back(front(image)) for image in inputs.split(1)])


def _runtime_outputs(data: bytes, source: str, inputs: Tensor, where: str) -> Tensor:
    """Return onnxruntime's outputs for single images.

    Raises:
        DataError: It refuses the graph.
    """
    import onnxruntime

    model = onnx.load_model_from_string(data)
    # onnxruntime wants a value for every input, even for those that no node reads.
    image_input = next(item for item in model.graph.input if item.name == source)
    del model.graph.input[:]
    model.graph.input.append(image_input)
    half = image_input.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    images = inputs.numpy().astype(np.float16 if half else np.float32)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        outputs = [session.run(None, {source: image[None]})[0] for image in images]
    except Exception as error:  # its exceptions have no common base of their own
        raise DataError(
            f"onnxruntime refuses {where} ({_line(error)}): export the graph again."
        ) from error
    return torch.from_numpy(np.concatenate(outputs)).float()


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation: reads named values, writes one."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    attributes: Attributes

    def run(self, values: dict[str, Tensor]) -> Tensor:
        """Return the output, given the values by name."""
        inputs = [values[name] if name else None for name in self.inputs]
        return _OPERATORS[self.kind](self.attributes, *inputs)


class Part(nn.Module):
    """A stretch of a graph between two tensors.

    Args:
        nodes: The operations, in order.
        constants: Values that they read, by name.
        source: Name of the input.
        target: Name of the output.
    """

    def __init__(
        self, nodes: Sequence[Node], constants: dict[str, Tensor], source: str, target: str
    ) -> None:
        super().__init__()
        self._nodes = nodes
        self._source, self._target = source, target
        # Integers are shapes and axes, which are read on the CPU wherever the weights are.
        self._integers = {name: x for name, x in constants.items() if not x.is_floating_point()}
        floats = [name for name in constants if name not in self._integers]
        self._buffer_names = {name: f"constant_{number}" for number, name in enumerate(floats)}
        for name, buffer in self._buffer_names.items():
            self.register_buffer(buffer, constants[name])
        last_use = {name: number for number, node in enumerate(nodes) for name in node.inputs}
        last_use.pop(target, None)
        self._done_after: list[list[str]] = [[] for _ in nodes]
        for name, number in last_use.items():
            if name:
                self._done_after[number].append(name)

    def forward(self, x: Tensor) -> Tensor:
        """Return the target, given the source."""
        buffers = {name: self.get_buffer(key) for name, key in self._buffer_names.items()}
        values = {**self._integers, **buffers, self._source: x}
        for node, done in zip(self._nodes, self._done_after, strict=True):
            values[node.output] = node.run(values)
            for name in done:
                del values[name]
        return values[self._target]


@dataclasses.dataclass(frozen=True)
class Graph:
    """A network read from a file: constants folded, nodes without effect dropped, shapes known.

    Attributes:
        nodes: The operations between input and output, in order.
        constants: Values known in advance, by name.
        source: Name of the input.
        target: Name of the output.
        shapes: Shape of every value for a single image, by name.
        where: Names the file in messages.
    """

    nodes: list[Node]
    constants: dict[str, Tensor]
    source: str
    target: str
    shapes: dict[str, torch.Size]
    where: str

    @classmethod
    def parse(cls, data: bytes, shape: tuple[int, int, int], where: str) -> Graph:
        """Read a graph from the bytes of a file.

        Args:
            data: The bytes.
            shape: What the network is fed, (3, H, W).
            where: Names the file in messages.

        Raises:
            DataError: The bytes are not a graph that can be used; the message says why.
        """
        model = onnx.ModelProto()
        try:
            model.ParseFromString(data)
        except DecodeError as error:
            raise DataError(f"{where} is not an ONNX file: give another file.") from error
        _check_opset(model, where)
        proto = model.graph
        constants = {item.name: _tensor(item, where) for item in proto.initializer}
        target = _only([item.name for item in proto.output], "outputs", where)
        nodes = _without_effect_dropped([_node(item, where) for item in proto.node], target)
        # Old files list weights among the inputs, even weights that no node reads any more.
        read = {name for node in nodes for name in node.inputs} - constants.keys()
        inputs = {item.name: item for item in proto.input if item.name in read}
        source = _only(list(inputs), "inputs besides its weights", where)
        _check_input(inputs[source], shape, where)
        shapes = _shapes(nodes, constants, source, shape, where)
        if target not in shapes:
            raise DataError(f"{where} never computes its output {target!r}: export it again.")
        varying = _fold(nodes, constants, source)
        return cls(varying, constants, source, target, shapes, where)

    def part(self, source: str, target: str) -> Part:
        """Return the stretch between two tensors through which every path passes."""
        names = [self.source, *(node.output for node in self.nodes)]
        nodes = self.nodes[names.index(source) : names.index(target)]
        read = {name for node in nodes for name in node.inputs}
        constants = {name: value for name, value in self.constants.items() if name in read}
        return Part(nodes, constants, source, target)

    def cuts(self) -> list[str]:
        """Return the names of the maps through which every path from input to output passes."""
        last_use = {name: number for number, node in enumerate(self.nodes) for name in node.inputs}
        found, needed_until = [], last_use.get(self.source, 0)
        for number, node in enumerate(self.nodes):
            if needed_until <= number and len(self.shapes[node.output]) == 4:
                found.append(node.output)
            needed_until = max(needed_until, last_use.get(node.output, 0))
        return found

    def default_cut(self) -> str:
        """Return the last cut, of those with the fewest channels, at half the input's height.

        Raises:
            UserError: There is none.
        """
        half = self.shapes[self.source][2] // 2
        found = [name for name in self.cuts() if self.shapes[name][2] == half]
        if not found:
            raise UserError(
                f"{self.where} has no map of height {half} at which it can be cut: name another "
                f"with 'cut', such as {', '.join(map(repr, self.cuts()[:3])) or '(none exists)'}."
            )
        return min(reversed(found), key=lambda name: self.shapes[name][1])

    def checked_cut(self, name: str) -> str:
        """Return a name that the user gave.

        Raises:
            UserError: The graph cannot be cut there.
        """
        if name not in self.cuts():
            raise UserError(
                f"{self.where} cannot be cut at {name!r}: name a map through which every path "
                f"passes, such as {', '.join(map(repr, self.cuts()[:3])) or '(none exists)'}."
            )
        return name


def _check_opset(model: onnx.ModelProto, where: str) -> None:
    versions = [item.version for item in model.opset_import if item.domain in _ONNX_DOMAINS]
    if not versions or max(versions) not in _OPSETS:
        raise DataError(
            f"{where} uses the ONNX operator set {max(versions, default='(none)')}: "
            f"export it with {_OPSETS.start} or later."
        )


def _only(names: list[str], what: str, where: str) -> str:
    if len(names) != 1:
        raise DataError(f"{where} has {len(names)} {what}: give a network with one.")
    return names[0]


def _check_input(value: onnx.ValueInfoProto, shape: tuple[int, int, int], where: str) -> None:
    sizes = [item.dim_value for item in value.type.tensor_type.shape.dim][1:]
    # A size of 0 is a symbolic one: any.
    fits = [stated in {0, size} for stated, size in zip(sizes, shape, strict=False)]
    if len(sizes) != len(shape) or not all(fits):
        raise DataError(
            f"{where} reads images of shape {sizes} and its contract says {list(shape)}: "
            "mend size or crop, or give a network that reads (N, 3, H, W)."
        )


def _tensor(proto: onnx.TensorProto, where: str) -> Tensor:
    """Return a constant of the file: integers of 64 bits, all else as float32."""
    if proto.data_location == onnx.TensorProto.EXTERNAL:
        raise DataError(
            f"{where} keeps the weights {proto.name!r} in another file: save it as one file "
            "(onnx.save_model with save_as_external_data=False)."
        )
    try:
        array = numpy_helper.to_array(proto)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"The weights {proto.name!r} of {where} cannot be read ({_line(error)}): "
            "export it again."
        ) from error
    if array.dtype.kind in "OSUc":
        raise DataError(f"The weights {proto.name!r} of {where} are no numbers: export it again.")
    return torch.from_numpy(array.astype(np.int64 if array.dtype == np.int64 else np.float32))


def _node(proto: onnx.NodeProto, where: str) -> Node:
    if proto.op_type not in _OPERATORS or proto.domain not in _ONNX_DOMAINS:
        domain = f" of {proto.domain}" if proto.domain else ""
        raise DataError(
            f"{where} uses the operator {proto.op_type}{domain}, which is not supported: "
            "simplify the graph, or export it without that operator."
        )
    attributes: Attributes = {}
    for item in proto.attribute:
        value = helper.get_attribute_value(item)
        if isinstance(value, onnx.TensorProto):
            value = _tensor(value, where)
        attributes[item.name] = value.decode() if isinstance(value, bytes) else value
    return Node(proto.op_type, tuple(proto.input), proto.output[0], attributes)


def _without_effect_dropped(nodes: list[Node], target: str) -> list[Node]:
    """Return the nodes that the target depends on."""
    needed, kept = {target}, []
    for node in reversed(nodes):
        if node.output in needed:
            kept.append(node)
            needed.update(node.inputs)
    return kept[::-1]


def _shapes(
    nodes: list[Node],
    constants: dict[str, Tensor],
    source: str,
    shape: tuple[int, int, int],
    where: str,
) -> dict[str, torch.Size]:
    """Return the shape of every value for one image, having run the graph without values."""
    if len(nodes) > MAX_NODES:
        raise DataError(f"{where} has {len(nodes)} nodes, more than {MAX_NODES}: simplify it.")
    values = {
        name: value.to("meta") if value.is_floating_point() else value
        for name, value in constants.items()
    }
    values[source] = torch.empty(1, *shape, device="meta")
    for node in nodes:
        try:
            value = node.run(values)
            limit = MAX_ELEMENTS if value.is_floating_point() else MAX_SHAPE_ELEMENTS
            if value.numel() > limit:
                raise ValueError(f"shape {list(value.shape)} is too large")
        except _REFUSALS as error:
            raise DataError(
                f"The node {node.output!r} ({node.kind}) of {where} cannot be computed for images "
                f"of shape {list(shape)} ({_line(error)}): check the contract, or export it again."
            ) from error
        values[node.output] = value
    return {name: value.shape for name, value in values.items()}


_REFUSALS = (
    *(RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(OverflowError, ZeroDivisionError, NotImplementedError, AssertionError),
)
"""What torch and Python raise for wrong sizes, attributes, or numbers of inputs."""


def _line(error: BaseException) -> str:
    """Return the first line of a message without the full stop."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(". ")


def _fold(nodes: list[Node], constants: dict[str, Tensor], source: str) -> list[Node]:
    """Compute into `constants` what does not depend on the input; return the other nodes."""
    varying, kept = {source}, []
    for node in nodes:
        if varying.isdisjoint(node.inputs):
            constants[node.output] = node.run(constants)
        else:
            varying.add(node.output)
            kept.append(node)
    return kept


# --- operators: what the ONNX standard says, for one output, in inference -------------------------


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x, padding = _padded(a, x, 0.0)
    stride, dilation = _pair(a, "strides"), _pair(a, "dilations")
    return functional.conv2d(x, weight, bias, stride, padding, dilation, a.get("group", 1))


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    x, padding = _padded(a, x, -math.inf)
    ceil = bool(a.get("ceil_mode", 0))
    kernel, stride, dilation = a["kernel_shape"], _pair(a, "strides"), _pair(a, "dilations")
    return functional.max_pool2d(x, kernel, stride, padding, dilation, ceil)


def _average_pool(a: Attributes, x: Tensor) -> Tensor:
    count_padding = bool(a.get("count_include_pad", 0))
    x, padding = _padded(a, x, 0.0 if count_padding else None)
    if a.get("ceil_mode", 0) or set(_pair(a, "dilations")) != {1}:
        raise ValueError("ceil_mode and dilations are not supported")
    stride = _pair(a, "strides")
    return functional.avg_pool2d(x, a["kernel_shape"], stride, padding, False, count_padding)


def _pair(a: Attributes, name: str) -> list[int]:
    pair: list[int] = a.get(name, [1, 1])
    return pair


def _padded(a: Attributes, x: Tensor, fill: float | None) -> tuple[Tensor, list[int]]:
    """Return the map and the symmetric padding left to do: what is lopsided is done here."""
    if a.get("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        raise ValueError(f"auto_pad {a['auto_pad']} is not supported")
    top, left, bottom, right = a.get("pads", [0, 0, 0, 0])
    if min(top, left, bottom, right) < 0 or max(top, left, bottom, right) > max(x.shape[2:]):
        raise ValueError(f"pads {a['pads']} are not supported")
    if (top, left) == (bottom, right):
        return x, [top, left]
    if fill is None:
        raise ValueError(f"lopsided pads {a['pads']} are not supported")
    return functional.pad(x, [left, right, top, bottom], value=fill), [0, 0]


def _batch_norm(
    a: Attributes, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    if a.get("training_mode", 0):
        raise ValueError("training_mode is not supported")
    return functional.batch_norm(x, mean, variance, scale, shift, eps=a.get("epsilon", 1e-5))


def _prelu(a: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    if slope.shape == (x.shape[1], 1, 1):
        return frozen_prelu(x, slope.flatten())
    return x.relu() + slope.to(x.dtype) * x.clamp(max=0)


def _divide(a: Attributes, x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _gemm(a: Attributes, x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    x = x.T if a.get("transA", 0) else x
    y = y.T if a.get("transB", 0) else y
    product = x @ y * a.get("alpha", 1.0)
    return product if bias is None else product + bias * a.get("beta", 1.0)


def _flatten(a: Attributes, x: Tensor) -> Tensor:
    axis = a.get("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = shape.long().tolist()
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(sizes)])


def _clip(
    a: Attributes, x: Tensor, least: Tensor | None = None, most: Tensor | None = None
) -> Tensor:
    return x.clamp(a.get("min", least), a.get("max", most))


def _axes(a: Attributes, axes: Tensor | None) -> list[int]:
    found: list[int] = a["axes"] if axes is None else axes.tolist()
    return found


def _reduction(reduce: Callable[..., Tensor]) -> Operator:
    def run(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        return reduce(x, dim=_axes(a, axes), keepdim=bool(a.get("keepdims", 1)))

    return run


def _squeeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze(_axes(a, axes))


def _unsqueeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    for axis in sorted(_axes(a, axes)):
        x = x.unsqueeze(axis)
    return x


def _gather(a: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis, flat = a.get("axis", 0), indices.flatten().to(x.device)
    axis += x.ndim if axis < 0 else 0
    flat = torch.where(flat < 0, flat + x.shape[axis], flat)
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    return x.index_select(axis, flat).reshape(shape)


def _cast(a: Attributes, x: Tensor) -> Tensor:
    kind = helper.tensor_dtype_to_np_dtype(a["to"])
    return x.long() if kind.kind in "iub" else x.float()


def _constant(a: Attributes) -> Tensor:
    ((name, value),) = a.items()
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.int64 if "int" in name else torch.float32)


def _dequantize(a: Attributes, x: Tensor, scales: Tensor, zeros: Tensor | None = None) -> Tensor:
    """Return (x - zero) * scale: one scale for all, one along an axis, or one for each block."""
    if scales.numel() == 1:
        return (x - (0 if zeros is None else zeros)) * scales
    axis, block = a.get("axis", 1), a.get("block_size", 0)
    axis += x.ndim if axis < 0 else 0
    zeros = torch.zeros_like(scales) if zeros is None else zeros
    if block == 0:
        sizes = [-1 if number == axis else 1 for number in range(x.ndim)]
        return (x - zeros.reshape(sizes)) * scales.reshape(sizes)
    length = x.shape[axis]
    if not 0 < block <= length or scales.shape[axis] != -(-length // block):
        raise ValueError(f"block_size {block} does not fit")
    block_of = torch.arange(length, device=x.device) // block
    return (x - zeros.index_select(axis, block_of)) * scales.index_select(axis, block_of)


def _unchanged(a: Attributes, x: Tensor, *unused: Tensor) -> Tensor:
    return x


_OPERATORS: dict[str, Operator] = {
    "Add": lambda a, x, y: x + y,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda a, *parts: torch.cat(parts, dim=a["axis"]),
    "Constant": _constant,
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": _divide,
    "Dropout": _unchanged,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda a, x: x.mean((2, 3), keepdim=True),
    "Identity": _unchanged,
    "LeakyRelu": lambda a, x: functional.leaky_relu(x, a.get("alpha", 0.01)),
    "MatMul": lambda a, x, y: x @ y,
    "MaxPool": _max_pool,
    "Mul": lambda a, x, y: x * y,
    "PRelu": _prelu,
    "ReduceL2": _reduction(torch.linalg.vector_norm),
    "ReduceMean": _reduction(torch.mean),
    "ReduceSum": _reduction(torch.sum),
    "Relu": lambda a, x: x.relu(),
    "Reshape": _reshape,
    "Shape": lambda a, x: torch.tensor(x.shape),
    "Sigmoid": lambda a, x: x.sigmoid(),
    "Sqrt": lambda a, x: x.sqrt(),
    "Squeeze": _squeeze,
    "Sub": lambda a, x, y: x - y,
    "Transpose": lambda a, x: x.permute(a["perm"]),
    "Unsqueeze": _unsqueeze,
}
