"""ONNX files: equal to onnxruntime, differentiable, cut where asked, and safe against anybody's."""

from __future__ import annotations

import contextlib
import io
import random
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from bench import assets
from bench.errors import DataError, UserError
from bench.recognizers import contract, iresnet
from bench.recognizers import onnx as module
from bench.recognizers.contract import reference_faces
from bench.recognizers.onnx import ONNX, Graph
from bench.recognizers.sface import SFace
from bench.registry import RECOGNIZERS

if TYPE_CHECKING:
    from pathlib import Path

SIDE = 16
SHAPE = (3, SIDE, SIDE)

RNG = np.random.default_rng(0)


def weight(*shape: int) -> NDArray[np.float32]:
    inputs: Any = np.prod(shape[1:])
    return (RNG.standard_normal(shape) / max(1, inputs) ** 0.5).astype(np.float32)


def model(
    nodes: list[onnx.NodeProto],
    constants: dict[str, NDArray[Any]],
    shape: tuple[int | str, ...] = ("N", *SHAPE),
    opset: int = 17,
) -> onnx.ModelProto:
    """Return a graph from "x" to "y"."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def batch_norm(prefix: str, channels: int) -> dict[str, NDArray[np.float32]]:
    values = [weight(channels), weight(channels), weight(channels), np.abs(weight(channels)) + 1]
    return {f"{prefix}{i}": value.astype(np.float32) for i, value in enumerate(values)}


def residual() -> onnx.ModelProto:
    """Return stem, a residual block of stride 2, attention, and the dense end, as exporters write.

    The end flattens through Shape, Gather, Unsqueeze, Concat and Reshape.
    """
    make = helper.make_node
    norm = "BatchNormalization"
    nodes = [
        make("Conv", ["x", "stem"], ["s0"], pads=[1, 1, 1, 1]),
        make(norm, ["s0", *batch_norm("n", 8)], ["s1"]),
        make("PRelu", ["s1", "slope"], ["s2"]),
        make("Conv", ["s2", "first"], ["b0"], pads=[1, 1, 1, 1]),
        make("PRelu", ["b0", "slope"], ["b1"]),
        make("Conv", ["b1", "second", "bias"], ["b2"], pads=[1, 1, 1, 1], strides=[2, 2]),
        make("Conv", ["s2", "short"], ["b3"], strides=[2, 2]),
        make("Add", ["b2", "b3"], ["block"]),
        make("GlobalAveragePool", ["block"], ["a0"]),
        make("Conv", ["a0", "squeeze"], ["a1"]),
        make("Sigmoid", ["a1"], ["a2"]),
        make("Mul", ["block", "a2"], ["a3"]),
        make("MaxPool", ["a3"], ["a4"], kernel_shape=[2, 2], strides=[2, 2]),
        make("Constant", [], ["zero"], value=numpy_helper.from_array(np.array(0))),
        make("Constant", [], ["minus"], value=numpy_helper.from_array(np.array([-1]))),
        make("Shape", ["a4"], ["f0"]),
        make("Gather", ["f0", "zero"], ["f1"], axis=0),
        make("Unsqueeze", ["f1", "axes"], ["f2"]),
        make("Concat", ["f2", "minus"], ["f3"], axis=0),
        make("Reshape", ["a4", "f3"], ["f4"]),
        make("Dropout", ["f4"], ["f5"]),
        make("Gemm", ["f5", "dense", "end"], ["f6"], transB=1),
        make(norm, ["f6", *batch_norm("m", 12)], ["y"], epsilon=2e-5),
    ]
    constants = {
        **batch_norm("n", 8),
        **batch_norm("m", 12),
        "stem": weight(8, 3, 3, 3),
        "slope": weight(8, 1, 1),
        "first": weight(8, 8, 3, 3),
        "second": weight(8, 8, 3, 3),
        "bias": weight(8),
        "short": weight(8, 8, 1, 1),
        "squeeze": weight(8, 8, 1, 1),
        "axes": np.array([0]),
        "dense": weight(12, 8 * 4 * 4),
        "end": weight(12),
    }
    return model(nodes, constants)


def parse(proto: onnx.ModelProto, shape: tuple[int, int, int] = SHAPE) -> Graph:
    return Graph.parse(proto.SerializeToString(), shape, "model.onnx")


def outputs(proto: onnx.ModelProto, images: torch.Tensor) -> torch.Tensor:
    channels, height, width = images.shape[1:]
    graph = parse(proto, (channels, height, width))
    return graph.part(graph.source, graph.target)(images)


def images(count: int = 3, side: int = SIDE) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def assert_equals_onnxruntime(proto: onnx.ModelProto) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is the reference")
    session = runtime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    expected = session.run(None, {"x": images().numpy()})[0]
    np.testing.assert_allclose(outputs(proto, images()).numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def sface() -> ONNX:
    return ONNX(str(assets.locate("sface")), offset=0, scale=1)


def standardized(x: torch.Tensor | None) -> torch.Tensor:
    assert x is not None
    deviation, mean = torch.std_mean(x, (0, 2, 3), keepdim=True)
    return (x - mean) / deviation


def test_equals_sface(sface: ONNX) -> None:
    reference = SFace(precision="float32")
    faces = reference_faces() * torch.tensor([1, 0.8, 0.6]).reshape(3, 1, 1)
    assert sface.feature_shape == reference.feature_shape == (64, 56, 56)
    assert sface.embedding_size == reference.embedding_size
    assert sface.weights_sha256 == reference.weights_sha256
    torch.testing.assert_close(sface.embed(faces), reference.embed(faces), rtol=0, atol=2e-6)
    maps = reference.head(faces)
    torch.testing.assert_close(sface.head(faces), maps, rtol=1e-4, atol=1e-3)
    # The file's convolutions are followed by a scale and a shift, which SFace folds into them.
    own, wanted = (standardized(one.first_reading(maps)) for one in (sface, reference))
    torch.testing.assert_close(own.abs(), wanted.abs(), rtol=1e-3, atol=1e-3)


def test_gradients_equal_sfaces(sface: ONNX) -> None:
    gradients = []
    for recognizer in (sface, SFace(precision="float32")):
        faces = reference_faces()[:1].clone().requires_grad_()
        recognizer.embed(faces)[0, :16].sum().backward()
        assert faces.grad is not None
        gradients.append(faces.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
    assert not any(buffer.requires_grad for buffer in sface.buffers())


def test_registered_and_named(sface: ONNX) -> None:
    assert RECOGNIZERS.get("onnx") is ONNX
    assert sface.name == "onnx"
    assert sface.settings["cut_name"] == "conv_3_dw_relu"
    assert sface.settings["contract"]["scale"] == 1
    assert sface.precision == "float32"


def test_residual_network_equals_onnxruntime() -> None:
    assert_equals_onnxruntime(residual())


def test_iresnet_exported_by_torch_is_cut_behind_its_first_stage() -> None:
    torch.manual_seed(0)
    network = iresnet.network(18).eval()
    stream: Any = io.BytesIO()
    dynamic = {"x": {0: "N"}, "y": {0: "N"}}
    # The exporter of old: the new one needs a package of its own, and published files are older.
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            network,
            (images(1, 112),),
            stream,
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=dynamic,
        )
        graph = Graph.parse(stream.getvalue(), (3, 112, 112), "model.onnx")
        cut = graph.default_cut()
        front, back = graph.part("x", cut), graph.part(cut, "y")
        found = front(images(2, 112))
        torch.testing.assert_close(found, network[:4](images(2, 112)), rtol=1e-4, atol=1e-3)
        expected = network(images(2, 112))
    torch.testing.assert_close(back(found), expected, rtol=1e-3, atol=1e-3)


def test_cuts_are_where_every_path_passes() -> None:
    graph = parse(residual())
    whole = graph.part(graph.source, graph.target)
    assert graph.cuts() == ["s0", "s1", "s2", "block", "a3", "a4"]
    assert graph.default_cut() == "a3"
    assert graph.shapes["a3"] == (1, 8, 8, 8)
    for cut in graph.cuts():
        front, back = graph.part("x", cut), graph.part(cut, "y")
        torch.testing.assert_close(back(front(images())), whole(images()))


def test_wrong_cut_is_refused() -> None:
    graph = parse(residual())
    assert graph.checked_cut("block") == "block"
    for name in ("b2", "absent", "y", "x"):
        with pytest.raises(UserError, match=f"cannot be cut at '{name}': .* such as 's0'"):
            graph.checked_cut(name)


def test_network_without_a_map_of_half_the_height_names_other_cuts() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Flatten", ["r"], ["y"]),
    ]
    with pytest.raises(UserError, match=r"no map of height 8 .* such as 'r'"):
        parse(model(nodes, {})).default_cut()


def operator(kind: str, *inputs: str, **attributes: Any) -> list[onnx.NodeProto]:
    return [helper.make_node(kind, ["x", *inputs], ["y"], **attributes)]


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        (operator("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), {}),
        (
            operator("AveragePool", kernel_shape=[2, 2], pads=[0, 0, 1, 1], count_include_pad=1),
            {},
        ),
        (operator("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]), {}),
        (operator("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), {}),
        (operator("Conv", "w", pads=[0, 1, 1, 2], group=3), {"w": weight(6, 1, 3, 3)}),
        (operator("Conv", "w", dilations=[2, 2]), {"w": weight(6, 3, 3, 3)}),
        (operator("Clip", "", "most"), {"most": np.float32(0.5)}),
        (operator("Clip", "least"), {"least": np.float32(0)}),
        (operator("PRelu", "slope"), {"slope": weight(1)}),
        (operator("PRelu", "slope"), {"slope": weight(3, 1, 1)}),
        (operator("LeakyRelu", alpha=0.2), {}),
        (operator("Transpose", perm=[0, 2, 3, 1]), {}),
        (operator("ReduceMean", axes=[2, 3], keepdims=0), {}),
        (operator("ReduceSum", "axes"), {"axes": np.array([1])}),
        (operator("ReduceL2", axes=[1]), {}),
        (operator("Sub", "w"), {"w": weight(3, 1, 1)}),
        (operator("Div", "w"), {"w": np.float32(128)}),
        (operator("MatMul", "w"), {"w": weight(SIDE, 5)}),
        (operator("Reshape", "shape"), {"shape": np.array([0, -1])}),
        (operator("Flatten", axis=2), {}),
        (operator("Gather", "at", axis=1), {"at": np.array([[0, -1]])}),
        (operator("Gather", "at", axis=2), {"at": np.array(3)}),
        (operator("Unsqueeze", "axes"), {"axes": np.array([0, 2])}),
        (operator("Cast", to=TensorProto.FLOAT), {}),
        (operator("Concat", "x", axis=1), {}),
    ],
    ids=lambda value: value[0].op_type if isinstance(value, list) else "",
)
def test_operator_equals_onnxruntime(
    nodes: list[onnx.NodeProto], constants: dict[str, NDArray[Any]]
) -> None:
    assert_equals_onnxruntime(model(nodes, constants))


@pytest.mark.parametrize(
    ("axis", "block", "scales"), [(0, 0, (6,)), (1, 2, (6, 2, 1, 1)), (0, 0, ())]
)
def test_quantized_weights_equal_onnxruntimes(
    axis: int, block: int, scales: tuple[int, ...]
) -> None:
    shape: tuple[int, ...]
    if block:  # onnxruntime has blocks on the last axes of matrices only
        nodes = [
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=1, block_size=16),
            helper.make_node("Flatten", ["x"], ["f"]),
            helper.make_node("MatMul", ["f", "w"], ["y"]),
        ]
        shape, scales = (3 * SIDE * SIDE, 32), (3 * SIDE * SIDE, 2)
    else:
        nodes = [
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=axis),
            helper.make_node("Conv", ["x", "w"], ["y"]),
        ]
        shape = (6, 3, 3, 3)
    constants: dict[str, NDArray[Any]] = {
        "q": RNG.integers(-128, 128, shape).astype(np.int8),
        "s": (np.abs(RNG.standard_normal(scales)) / 100).astype(np.float32),
        "z": RNG.integers(-9, 9, scales).astype(np.int8),
    }
    assert_equals_onnxruntime(model(nodes, constants, opset=21))


def test_constants_are_folded_and_dead_nodes_dropped() -> None:
    nodes = [
        helper.make_node("Mul", ["w", "w"], ["square"]),
        helper.make_node("Sqrt", ["x"], ["dead"]),
        helper.make_node("Add", ["x", "square"], ["y"]),
    ]
    graph = parse(model(nodes, {"w": weight(3, 1, 1)}))
    assert [node.kind for node in graph.nodes] == ["Add"]


def test_half_precision_weights_are_computed_in_float32() -> None:
    w = weight(6, 3, 1, 1)
    proto = model(operator("Conv", "w"), {"w": w.astype(np.float16)})
    found = outputs(proto, images())
    assert found.dtype == torch.float32
    expected = nn.functional.conv2d(images(), torch.from_numpy(w.astype(np.float16)).float())
    torch.testing.assert_close(found, expected)


# --- files that cannot be used ------------------------------------------------------------------


def refused(proto: onnx.ModelProto, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        parse(proto)
    assert "model.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_operator_is_named() -> None:
    refused(model(operator("Erf"), {}), "the operator Erf, which is not supported")
    foreign = operator("Relu", domain="com.microsoft")
    refused(model(foreign, {}), "the operator Relu of com.microsoft")


def test_weights_in_another_file_are_refused() -> None:
    proto = model(operator("Add", "w"), {"w": weight(3, 1, 1)})
    proto.graph.initializer[0].data_location = TensorProto.EXTERNAL
    entry = proto.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    refused(proto, "keeps the weights 'w' in another file")


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        (operator("Conv", "w", pads=[10**6] * 4), {"w": weight(6, 3, 3, 3)}),
        (operator("Add", "w"), {"w": weight(100_000, 1, 1, 1)}),
    ],
)
def test_small_file_cannot_ask_for_much_memory(
    nodes: list[onnx.NodeProto], constants: dict[str, NDArray[Any]]
) -> None:
    refused(model(nodes, constants), r"cannot be computed .*(pads|too large)")


def test_doubling_shapes_are_refused() -> None:
    nodes = [helper.make_node("Shape", ["x"], ["d0"])]
    nodes += [
        helper.make_node("Concat", [f"d{i}", f"d{i}"], [f"d{i + 1}"], axis=0) for i in range(40)
    ]
    nodes.append(helper.make_node("Reshape", ["x", "d40"], ["y"]))
    refused(model(nodes, {}), r"'d9' \(Concat\) .* too large")


def test_wrong_shapes_and_counts_are_refused() -> None:
    refused(model(operator("Conv", "w"), {"w": weight(6, 4, 3, 3)}), r"'y' \(Conv\)")
    refused(model(operator("Add", "absent"), {}), "has 2|cannot be computed|inputs")
    refused(
        model(operator("Relu"), {}, shape=("N", 3, 20, 20)), r"reads images of shape \[3, 20, 20\]"
    )
    refused(model(operator("Relu"), {}, shape=("N", 3)), "reads images of shape")
    refused(model(operator("Relu"), {}, opset=6), "operator set 6")
    proto = model(operator("Relu"), {})
    proto.graph.output[0].name = "absent"
    refused(proto, "has 0 inputs")


def test_unusable_attributes_are_refused() -> None:
    refused(
        model(operator("MaxPool", kernel_shape=[2, 2], auto_pad="SAME_UPPER"), {}),
        "auto_pad SAME_UPPER is not supported",
    )
    training = operator("BatchNormalization", *"abcd", training_mode=1)
    refused(model(training, {name: weight(3) for name in "abcd"}), "training_mode")


def test_fixed_batch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "check_contract", lambda _: None)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[2, 2]),
        helper.make_node("Reshape", ["c", "shape"], ["y"]),
    ]
    constants = {"w": weight(4, 3, 1, 1), "shape": np.array([1, -1])}
    path = tmp_path / "fixed.onnx"
    onnx.save(model(nodes, constants, shape=(1, 3, 112, 112)), path)
    with pytest.raises(DataError, match="for a batch differ from the outputs of single images"):
        ONNX(str(path))
    constants["shape"] = np.array([0, -1])
    onnx.save(model(nodes, constants, shape=(1, 3, 112, 112)), path)
    assert ONNX(str(path)).feature_shape == (4, 56, 56)


def test_disagreement_with_onnxruntime_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is the reference")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[2, 2]),
        helper.make_node("Flatten", ["c"], ["y"]),
    ]
    path = tmp_path / "network.onnx"
    onnx.save(model(nodes, {"w": weight(4, 3, 1, 1)}, shape=("N", 3, 112, 112)), path)
    monkeypatch.setitem(module._OPERATORS, "Flatten", lambda a, x: x.flatten(1) + 0.5)
    with pytest.raises(DataError, match="for a batch differ from onnxruntime's"):
        ONNX(str(path))


def test_file_must_be_an_onnx_file_and_the_pinned_one(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("not a graph")
    with pytest.raises(DataError, match="is not an ONNX file"):
        ONNX(str(path))
    with pytest.raises(DataError, match="give the pinned file"):
        ONNX(str(path), sha256="0" * 64)
    with pytest.raises(UserError, match="use auto, float32 or bfloat16"):
        ONNX(str(path), precision="float16")


def test_altered_bytes_raise_nothing_but_the_documented_errors() -> None:
    data = residual().SerializeToString()
    draw = random.Random(0)
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        cut = draw.choice([len(broken), draw.randrange(len(broken))])
        with contextlib.suppress(UserError):
            graph = Graph.parse(bytes(broken[:cut]), SHAPE, "model.onnx")
            graph.part(graph.source, graph.target)(images(1))
