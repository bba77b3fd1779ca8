"""Every rule against onnxruntime, over attributes and operator versions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcert.errors import ModelError, UnsupportedModel
from onnxcert.frontend.onnx import load_model
from onnxcert.frontend.rules import RULES
from tests.frontend.onnx_models import agrees, integers, model_of, single, weights

SHAPE = (2, 3, 4)
IMAGE = (1, 3, 6, 5)
LINE = (2, 4, 7)

FLOATS = np.float32

MOVEMENT = [
    single("Identity", SHAPE),
    single("Dropout", SHAPE, opset=7, ratio=0.3),
    single("Dropout", SHAPE, opset=10),
    single("Dropout", SHAPE, np.float32(0.5), np.array(False), opset=13),
    single("Cast", SHAPE, to=TensorProto.FLOAT, opset=6),
    single("Reshape", SHAPE, integers(4, -1), opset=5),
    single("Reshape", SHAPE, integers(0, -1), opset=14),
    single("Reshape", SHAPE, integers(6, 4), opset=14, allowzero=1),
    *(single("Flatten", SHAPE, axis=a, opset=11) for a in (0, 1, 2, 3, -1)),
    single("Flatten", SHAPE, opset=1),
    single("Squeeze", (1, 3, 1), axes=[0], opset=1),
    single("Squeeze", (1, 3, 1), axes=[-1], opset=11),
    single("Squeeze", (1, 3, 1), opset=13),
    single("Squeeze", (1, 3, 1), integers(0, 2), opset=13),
    single("Unsqueeze", (3, 2), axes=[0, 3], opset=1),
    single("Unsqueeze", (3, 2), axes=[-1], opset=11),
    single("Unsqueeze", (3, 2), integers(1, -1), opset=13),
    single("Transpose", SHAPE),
    single("Transpose", SHAPE, perm=[1, 2, 0], opset=1),
    *(single("Concat", SHAPE, (2, 3, 4), axis=a) for a in (0, 1, -1)),
    single("Concat", SHAPE, weights(2, 1, 4), (2, 2, 4), axis=1, opset=4),
    single("Split", SHAPE, outputs=2, axis=2, opset=2),
    single("Split", SHAPE, outputs=2, axis=1, split=[1, 2], opset=11),
    single("Split", SHAPE, integers(3, 1), outputs=2, axis=-1, opset=13),
    single("Split", SHAPE, outputs=2, axis=1, num_outputs=2, opset=18),
    single("DepthToSpace", (1, 8, 2, 3), blocksize=2, opset=1),
    single("DepthToSpace", (1, 8, 2, 3), blocksize=2, mode="CRD", opset=11),
    single("SpaceToDepth", (1, 2, 4, 6), blocksize=2),
]

PICKING = [
    single("Slice", SHAPE, starts=[0, 1], ends=[2, 1000], opset=1),
    single("Slice", SHAPE, axes=[1, 2], starts=[-2, 1], ends=[-1, 3], opset=1),
    single("Slice", SHAPE, integers(3), integers(-9), integers(2), integers(-2), opset=10),
    single("Slice", SHAPE, integers(0, 1), integers(9, 3), integers(-1, 0), opset=13),
    single("Slice", SHAPE, integers(-1), integers(-(2**63)), integers(1), integers(-1)),
    single("Gather", SHAPE, np.array(1), axis=2, opset=1),
    single("Gather", SHAPE, np.array([[0, -1], [2, 2]]), axis=1, opset=11),
    single("GatherElements", SHAPE, np.array([[[0, -1, 1, 2]]]), axis=1),
    single("GatherND", SHAPE, np.array([[0, 1], [1, -1]])),
    single("ScatterND", SHAPE, np.array([[0, 1], [1, -1]]), (2, 4)),
    single("ScatterND", SHAPE, np.array([[0, 1], [1, 2]]), weights(2, 4), opset=16),
    single("Expand", (3, 1), integers(2, 3, 4), opset=8),
    single("Expand", SHAPE, integers(1), opset=13),
    single("Tile", SHAPE, integers(1, 2, 3), opset=6),
    single("Where", weights(2, 1, 4) > 0, SHAPE, (3, 4), opset=9),
    single("Where", weights(3, 4) > 0, SHAPE, weights(1), opset=16),
    single("Trilu", SHAPE, opset=14),
    single("Trilu", SHAPE, np.array(1), opset=14, upper=0),
    single("Pad", SHAPE, pads=[0, 1, 2, 1, 0, 3], value=1.5, opset=2),
    single("Pad", SHAPE, pads=[0, -1, 1, 0, 0, -2], opset=2),
    *(single("Pad", SHAPE, integers(0, 1, 2, 1, 0, 3), mode=m) for m in ("constant", "edge")),
    single("Pad", SHAPE, integers(0, 1, 2, 1, 2, 3), mode="reflect", opset=11),
    single("Pad", SHAPE, integers(0, 1, 2, 1, 0, 3), np.float32(-2.5), opset=11),
    single("Pad", SHAPE, integers(1, 2), None, integers(-1), opset=18),
    single("Pad", SHAPE, integers(0, 0, 2, 0, 0, 1), mode="wrap", opset=19),
]

ARITHMETIC = [
    *(
        single(op, *operands, opset=opset)
        for opset in (7, 13, 14)
        for op in ("Add", "Sub")
        for operands in (
            (SHAPE, SHAPE),
            (SHAPE, (3, 1)),
            ((4,), SHAPE),
            (SHAPE, weights(3, 4)),
            (weights(4), SHAPE),
            ((1, 4), weights(2, 3, 1)),
        )
    ),
    single("Sum", SHAPE, opset=6),
    single("Sum", SHAPE, (4,), weights(3, 1), SHAPE, opset=8),
    single("Mean", SHAPE, (4,), weights(3, 1), opset=8),
    single("Neg", SHAPE, opset=6),
    single("Mul", SHAPE, weights(3, 1), opset=7),
    single("Mul", weights(1), SHAPE),
    single("Mul", SHAPE, np.zeros(4, dtype=FLOATS)),
    single("Mul", SHAPE, SHAPE),
    *(
        single("MatMul", a, b, opset=opset)
        for opset, a, b in (
            (1, (2, 3), (3, 4)),
            (9, (3,), (3,)),
            (9, (3,), (3, 4)),
            (13, (2, 3), (3,)),
            (9, (2, 3, 4), (2, 4, 5)),
            (9, (2, 1, 3, 4), (3, 4, 2)),
            (13, (4,), (2, 4, 3)),
            (13, (1, 5), (5, 1)),
            (13, (3, 1), (1, 2)),
        )
    ),
    single("Gemm", (2, 3), (3, 4), weights(4), opset=7),
    single("Gemm", (2, 3), (3, 4), opset=11),
    single("Gemm", (3, 2), (4, 3), weights(4), opset=11, transA=1, transB=1, alpha=0.5, beta=2.0),
    single("Gemm", (2, 3), (4, 3), (2, 1), opset=13, transB=1, alpha=-1.5, beta=0.25),
    single("Mul", (3, 1), SHAPE, opset=7),
    single("Div", SHAPE, weights(3, 1)),
    single("Div", SHAPE, (3, 1)),
    single("Div", SHAPE, SHAPE, opset=7),
    single("Div", weights(3, 1), SHAPE),
    single("Reciprocal", SHAPE),
    single("Pow", SHAPE, np.float32(1)),
    single("Pow", SHAPE, np.float32(2)),
    single("Pow", SHAPE, np.full((3, 1), 5, dtype=FLOATS)),
    single("Pow", SHAPE, np.float32(-3)),
    single("BatchNormalization", IMAGE, *weights(3, 3), np.abs(weights(3)), opset=7),
    single("BatchNormalization", IMAGE, *weights(3, 3), np.abs(weights(3)), opset=9, epsilon=0.1),
    single("BatchNormalization", (4, 3), *weights(3, 3), np.abs(weights(3)), opset=15),
]

LINEAR = [
    single("MatMul", (2, 3), weights(3, 4), opset=1),
    single("MatMul", (2, 5, 3), weights(3, 4)),
    single("MatMul", (2, 5, 3), weights(1, 3, 4)),
    single("MatMul", (2, 5, 3), weights(2, 3, 4)),
    single("MatMul", (5, 3), weights(2, 3, 4)),
    single("MatMul", (2, 1, 5, 3), weights(4, 3, 2)),
    single("MatMul", (3,), weights(3, 4)),
    single("MatMul", (3,), weights(2, 3, 4)),
    single("MatMul", (2, 3), weights(3)),
    single("MatMul", (3,), weights(3)),
    single("MatMul", weights(4, 3), (3, 2)),
    single("MatMul", weights(4, 3), (2, 3, 5)),
    single("MatMul", weights(2, 4, 3), (2, 3, 5)),
    single("MatMul", weights(2, 4, 3), (3,)),
    single("MatMul", weights(3), (2, 3, 5)),
    single("MatMul", weights(4, 3), (3,)),
    *(
        single("Gemm", *operands, transA=a, transB=b, alpha=0.7, beta=1.3, opset=opset)
        for opset in (7, 11)
        for operands, a, b in (
            (((2, 3), weights(3, 4), weights(4)), 0, 0),
            (((3, 2), weights(4, 3), weights(2, 4)), 1, 1),
            ((weights(2, 3), (3, 4), weights(1, 4)), 0, 0),
            ((weights(3, 2), (4, 3), weights(2, 1)), 1, 1),
            (((2, 3), weights(3, 4), (2, 4)), 0, 0),
        )
    ),
    single("Gemm", (2, 3), weights(3, 4), opset=11),
    *(
        single(op, SHAPE, axes=axes, keepdims=keep, opset=11)
        for op in ("ReduceSum", "ReduceMean")
        for axes in ([0], [1, -1], [0, 1, 2])
        for keep in (0, 1)
    ),
    single("ReduceSum", SHAPE, opset=11),
    single("ReduceSum", SHAPE, integers(1), keepdims=0, opset=13),
    single("ReduceSum", SHAPE, noop_with_empty_axes=1, opset=13),
    single("ReduceMean", SHAPE, integers(-2), opset=18),
    single("GlobalAveragePool", IMAGE),
]

CONVOLUTION = [
    single("Conv", IMAGE, weights(4, 3, 3, 2), opset=1),
    single("Conv", IMAGE, weights(4, 3, 3, 2), weights(4), pads=[1, 0, 2, 1], strides=[2, 1]),
    single("Conv", (2, 4, 6, 6), weights(6, 2, 2, 3), group=2, dilations=[2, 1]),
    single("Conv", (1, 4, 6, 6), weights(4, 1, 3, 3), weights(4), group=4, pads=[1, 1, 1, 1]),
    single("Conv", LINE, weights(5, 4, 3), weights(5), pads=[2, 0], strides=[2], dilations=[2]),
    *(
        single("Conv", IMAGE, weights(2, 3, 3, 2), auto_pad=pad, strides=[2, 3])
        for pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ),
    single("ConvTranspose", IMAGE, weights(3, 2, 3, 3), opset=1),
    single("ConvTranspose", (2, 4, 3, 2), weights(4, 3, 2, 3), weights(6), group=2, strides=[2, 3]),
    single(
        "ConvTranspose", IMAGE, weights(3, 2, 3, 3), weights(2), strides=[2, 2],
        pads=[1, 0, 1, 2], output_padding=[1, 0],
    ),
    single("ConvTranspose", IMAGE, weights(3, 2, 3, 2), dilations=[2, 1], strides=[1, 2]),
    single("ConvTranspose", IMAGE, weights(3, 1, 3, 3), strides=[2, 2], output_shape=[12, 10]),
    single(
        "ConvTranspose", IMAGE, weights(3, 1, 3, 3), strides=[2, 2], output_shape=[12, 10],
        auto_pad="SAME_UPPER",
    ),
    *(
        single("ConvTranspose", IMAGE, weights(3, 2, 3, 2), auto_pad=pad, strides=[2, 1])
        for pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ),
    single("ConvTranspose", LINE, weights(4, 2, 3), strides=[2], pads=[1, 0]),
    single("BatchNormalization", LINE, *weights(3, 4), np.abs(weights(4)), opset=15),
]  # fmt: skip

POOLING = [
    *(
        single("AveragePool", shape, opset=opset, **attributes)
        for opset in (7, 11)
        for shape, attributes in (
            (IMAGE, {"kernel_shape": [2, 3]}),
            (IMAGE, {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
            (
                IMAGE,
                {"kernel_shape": [3, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1},
            ),
            (IMAGE, {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
            (IMAGE, {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"}),
            (LINE, {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}),
        )
    ),
    *(
        single(
            "AveragePool", IMAGE, kernel_shape=[3, 2], strides=[2, 3], ceil_mode=1, opset=opset,
            pads=pads, count_include_pad=include,
        )
        for opset, pads in (
            (10, [0, 0, 0, 0]), (10, [1, 0, 1, 0]), (19, [1, 0, 1, 0]), (22, [1, 1, 1, 0])
        )
        for include in (0, 1)
    ),
    single("AveragePool", IMAGE, kernel_shape=[2, 2], dilations=[2, 1], opset=19),
    single("MaxPool", IMAGE, kernel_shape=[2, 3], opset=1),
    single("MaxPool", IMAGE, kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 0, 1], opset=8),
    single("MaxPool", IMAGE, kernel_shape=[3, 2], dilations=[2, 1], opset=10),
    single("MaxPool", IMAGE, kernel_shape=[3, 2], strides=[2, 3], ceil_mode=1, opset=12),
    single(
        "MaxPool", IMAGE, kernel_shape=[2, 2], strides=[3, 3], pads=[0, 1, 1, 1], ceil_mode=1,
        opset=22,
    ),
    single("MaxPool", IMAGE, kernel_shape=[3, 3], auto_pad="SAME_LOWER", strides=[2, 2]),
    single("MaxPool", LINE, kernel_shape=[5], pads=[2, 2]),
    single("GlobalMaxPool", IMAGE),
    single("Upsample", (1, 2, 3, 2), scales=[1.0, 1.0, 2.0, 3.0], opset=7),
    single("Upsample", (1, 2, 3, 2), np.array([1, 1, 2, 3], dtype=FLOATS), opset=9),
    single("Resize", (1, 2, 3, 2), np.array([1, 1, 2, 3], dtype=FLOATS), opset=10),
    *(
        single(
            "Resize", (1, 2, 3, 2), np.zeros(0, dtype=FLOATS),
            np.array([1, 1, 2, 3], dtype=FLOATS), nearest_mode=rounding,
            coordinate_transformation_mode=mode, opset=opset,
        )
        for opset in (11, 13, 18)
        for mode in ("half_pixel", "asymmetric", "pytorch_half_pixel", "align_corners")
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
    single(
        "Resize", (1, 2, 3, 2), np.zeros(0, dtype=FLOATS), np.zeros(0, dtype=FLOATS),
        integers(1, 2, 6, 8), coordinate_transformation_mode="tf_half_pixel_for_nn", opset=11,
    ),
    single("Resize", (1, 2, 3, 2), None, None, integers(9, 4), axes=[2, 3], opset=18),
]  # fmt: skip

CURVES = [
    *(single(op, SHAPE, opset=6) for op in ("Abs", "Exp", "Relu", "Sigmoid", "Tanh")),
    *(single(op, SHAPE, opset=7) for op in ("Cos", "Sin")),
    *(single("Softmax", SHAPE, opset=opset) for opset in (6, 11, 13, 17)),
    *(
        single("Softmax", SHAPE, axis=axis, opset=opset)
        for opset in (11, 13)
        for axis in (0, 1, 2, -1)
    ),
    single("Softmax", (4, 1), opset=13),
    single("Softmax", (3,), axis=0, opset=13),
    single("Sign", SHAPE, opset=9),
    *(single("Floor", SHAPE, opset=opset) for opset in (6, 13)),
    single("LeakyRelu", SHAPE, opset=6),
    single("LeakyRelu", SHAPE, alpha=-0.3, opset=16),
    single("PRelu", IMAGE, weights(3, 1, 1), opset=7),
    single("PRelu", SHAPE, weights(4), opset=16),
    single("HardSigmoid", SHAPE, opset=6),
    single("HardSigmoid", SHAPE, alpha=0.7, beta=0.1),
    single("Clip", SHAPE, min=-0.5, max=0.75, opset=6),
    single("Clip", SHAPE, opset=6),
    single("Clip", SHAPE, np.float32(-0.5), opset=11),
    single("Clip", SHAPE, None, np.float32(0.5), opset=13),
    single("Clip", SHAPE, np.float32(0.5), np.float32(-0.5), opset=13),
    *(
        single(op, *operands, opset=opset)
        for opset in (8, 13)
        for op in ("Max", "Min")
        for operands in (
            (SHAPE,),
            (SHAPE, (4,)),
            (SHAPE, weights(3, 1)),
            (weights(1), SHAPE, (3, 4), SHAPE, weights(4)),
        )
    ),
    *(
        single(op, SHAPE, axes=axes, keepdims=keep, opset=11)
        for op in ("ReduceMax", "ReduceMin")
        for axes in ([0], [1, -1], [0, 1, 2])
        for keep in (0, 1)
    ),
    single("ReduceMax", SHAPE, integers(1), keepdims=0, opset=18),
]


def decided(
    operator: str, *operands: tuple[int, ...] | np.ndarray, opset: int = 13, **attributes: object
) -> onnx.ModelProto:
    """As `single` for operators that make whole numbers or truths: as numbers."""
    proto = single(operator, *operands, opset=opset, **attributes)
    proto.graph.node[0].output[0] = "d"
    proto.graph.node.append(helper.make_node("Cast", ["d"], ["y0"], to=TensorProto.FLOAT))
    return proto


def of_truths(operator: str, count: int, shape: tuple[int, ...] = SHAPE) -> onnx.ModelProto:
    """An operator on truths, which are signs of inputs here."""
    names = [f"v{i}" for i in range(count)]
    nodes = [helper.make_node("Greater", [name, "zero"], ["t" + name]) for name in names]
    last = ["Cast", ["d"], ["y0"]]
    nodes.append(helper.make_node(operator, ["t" + name for name in names], ["d"]))
    nodes.append(helper.make_node(*last, to=TensorProto.FLOAT))
    zero = {"zero": np.zeros(1, np.float32)}
    return model_of(nodes, dict.fromkeys(names, shape), ["y0"], zero)


def chosen(*operands: str) -> onnx.ModelProto:
    """Where, by the sign of its first operand."""
    nodes = [
        helper.make_node("Less", ["x", "zero"], ["t"]),
        helper.make_node("Where", ["t", *operands], ["y0"]),
    ]
    constants = {"zero": np.zeros(1, np.float32), "c": weights(3, 1), "k": weights(4)}
    return model_of(nodes, {"x": SHAPE, "z": (3, 4)}, ["y0"], constants)


DECISIONS = [
    *(
        decided(op, *operands, opset=opset)
        for opset in (9, 13)
        for op in ("Greater", "Less")
        for operands in ((SHAPE, SHAPE), (SHAPE, weights(3, 1)), (weights(1), SHAPE))
    ),
    *(
        decided(op, *operands, opset=opset)
        for opset in (12, 16)
        for op in ("GreaterOrEqual", "LessOrEqual")
        for operands in ((SHAPE, SHAPE), (SHAPE, weights(4)))
    ),
    *(decided("Equal", *operands) for operands in ((SHAPE, (4,)), (SHAPE, weights(1)))),
    *(
        decided(op, SHAPE, axis=axis, keepdims=keep, opset=opset)
        for op in ("ArgMax", "ArgMin")
        for axis, keep, opset in ((0, 1, 7), (1, 0, 11), (-1, 1, 13))
    ),
    decided("ArgMax", SHAPE, axis=2, select_last_index=1),
    decided("ArgMin", (1, 5), axis=1, select_last_index=1, keepdims=0, opset=12),
    decided("ArgMax", (3, 1), axis=1),
    of_truths("Not", 1),
    of_truths("And", 2),
    of_truths("Or", 2),
    chosen("x", "z"),
    chosen("z", "c"),
    chosen("c", "k"),
]


def _name(proto: onnx.ModelProto) -> str:
    node = proto.graph.node[0]
    attributes = ",".join(f"{a.name}={helper.get_attribute_value(a)}" for a in node.attribute)
    return f"{node.op_type}-{proto.opset_import[0].version}-{attributes}"


ALL = MOVEMENT + PICKING + ARITHMETIC + LINEAR + CONVOLUTION + POOLING + CURVES + DECISIONS


@pytest.mark.parametrize("proto", ALL, ids=_name)
def test_rule_agrees_with_onnxruntime(proto: onnx.ModelProto) -> None:
    agrees(proto)


def test_every_rule_is_tested() -> None:
    tested = {node.op_type for proto in ALL for node in proto.graph.node}
    elsewhere = {"CastLike", "Shape", "Size"}
    assert set(RULES) == tested | elsewhere


@pytest.mark.parametrize(
    "proto",
    [p for p in MOVEMENT + PICKING if p.graph.node[0].op_type != "Dropout"],
    ids=_name,
)
def test_moves_of_curves_and_mixtures(proto: onnx.ModelProto) -> None:
    """Moving entries commutes with what stands before and behind, here a product and a relu."""
    nodes = list(proto.graph.node)
    first, last = nodes[0].input[0] or "v1", nodes[-1].output[0]
    values = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in proto.graph.input
    }
    if first not in values:
        first = next(iter(values))
    del proto.graph.node[:]
    for node in nodes:
        node.input[:] = ["scaled" if name == first else name for name in node.input]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights(*values[first]), "factors"))
    proto.graph.node.extend(
        [
            helper.make_node("Mul", [first, "factors"], ["scaled"]),
            *nodes,
            helper.make_node("Relu", [last], ["positive"]),
        ]
    )
    proto.graph.output.append(helper.make_tensor_value_info("positive", 1, None))
    if proto.opset_import[0].version < 7:
        proto.opset_import[0].version = 9
    agrees(proto)


@pytest.mark.parametrize("element", [TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_other_floating_point_types(element: int) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(element)
    agrees(single("MatMul", (2, 3), weights(3, 4).astype(dtype), element=element))
    agrees(single("Add", (2, 3), weights(3).astype(dtype), element=element))


def test_shape_arithmetic_is_folded() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"], axis=0),
        helper.make_node("Unsqueeze", ["batch"], ["first"], axes=[0]),
        helper.make_node("Concat", ["first", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("Size", ["x"], ["count"]),
        helper.make_node("Cast", ["count"], ["float"], to=1),
        helper.make_node("Sqrt", ["float"], ["root"]),
        helper.make_node("Div", ["flat", "root"], ["y"]),
    ]
    constants = {"zero": np.array(0), "rest": integers(-1)}
    model = agrees(model_of(nodes, {"x": (2, 3, 4)}, ["y"], constants, opset=11))
    assert len(model.graph.nodes) == 1


def test_constant_branches_and_casts() -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["three"], ["zeros"]),
        helper.make_node("Equal", ["ids", "two"], ["mask"]),
        helper.make_node("CastLike", ["ids", "x"], ["like"]),
        helper.make_node("CastLike", ["x", "like"], ["same"]),
        helper.make_node("Where", ["mask", "same", "zeros"], ["kept"]),
        helper.make_node("Add", ["kept", "like"], ["y"]),
    ]
    constants = {"three": integers(3), "ids": integers(1, 2, 3), "two": integers(2)}
    agrees(model_of(nodes, {"x": (3,)}, ["y"], constants, opset=15))


def test_what_is_cut_out_of_a_padding_is_constant_again() -> None:
    nodes = [
        helper.make_node("Concat", ["x", "c"], ["both"], axis=0),
        helper.make_node("Slice", ["both", "two", "five"], ["tail"]),
        helper.make_node("Mul", ["x", "tail"], ["y"]),
    ]
    constants = {"c": weights(3), "two": integers(-2), "five": integers(5)}
    agrees(model_of(nodes, {"x": (2,)}, ["y"], constants))


def test_value_read_twice_by_one_node() -> None:
    for operator in ("Add", "Sub", "Max", "Sum"):
        node = helper.make_node(operator, ["x", "x"], ["y"])
        agrees(model_of([node], {"x": (3,)}, ["y"]))
    node = helper.make_node("Concat", ["x", "x"], ["y"], axis=0)
    agrees(model_of([node], {"x": (3,)}, ["y"]))


def test_channels_last_convolutions_need_no_selection() -> None:
    """The transpositions between two convolutions cancel; relu and bias go through them."""
    nodes = [
        helper.make_node("Conv", ["x", "k1"], ["c1"]),
        helper.make_node("Transpose", ["c1"], ["t1"], perm=[0, 2, 3, 1]),
        helper.make_node("Add", ["t1", "b1"], ["a1"]),
        helper.make_node("Relu", ["a1"], ["r1"]),
        helper.make_node("Transpose", ["r1"], ["t2"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t2", "k2"], ["y"]),
    ]
    constants = {"k1": weights(4, 2, 3, 3), "b1": weights(4), "k2": weights(3, 4, 2, 2)}
    model = agrees(model_of(nodes, {"x": (1, 2, 6, 5)}, ["y"], constants))
    assert [type(node.op).__name__ for node in model.graph.nodes] == [
        "Convolution",
        "Relu",
        "Convolution",
    ]


def test_a_sparse_matrix_is_stored_by_its_entries() -> None:
    matrix = np.zeros((400, 300), dtype=np.float32)
    matrix[::7, ::11] = 1.5
    model = agrees(single("MatMul", (1, 400), matrix))
    (node,) = model.graph.nodes
    assert type(node.op).__name__ == "SparseLinear"


UNSUPPORTED = {
    "the exponent depends on the input": single("Pow", SHAPE, SHAPE),
    "the same whole number": single("Pow", SHAPE, np.array([1, 2, 3, 2], dtype=FLOATS)),
    "is zero": single("Pow", SHAPE, np.float32(0)),
    "more than 64": single("Pow", SHAPE, np.float32(65)),
    "no rule": single("Erf", SHAPE),
    "whole number for all entries": single("Pow", SHAPE, np.float32(0.5)),
    "mode=linear": single(
        "Resize", (1, 1, 2, 2), None, np.array([1, 1, 2, 2], dtype=FLOATS), mode="linear"
    ),
    "scales": single("Resize", (1, 1, 4, 4), None, np.array([1, 1, 1.5, 2], dtype=FLOATS)),
    "3-dimensional images": single("Conv", (1, 1, 3, 3, 3), weights(1, 1, 2, 2, 2)),
    "the weight depends on the input": single("Conv", IMAGE, (1, 3, 2, 2)),
    "count windows differently": single(
        "MaxPool", IMAGE, kernel_shape=[2, 2], strides=[3, 3], pads=[0, 1, 1, 1], ceil_mode=1
    ),
    "the indices of the maxima": single("MaxPool", IMAGE, kernel_shape=[2, 2], outputs=2),
    "min depends on the input": single("Clip", SHAPE, ()),
    "training_mode": single(
        "BatchNormalization", IMAGE, *weights(3, 3), np.abs(weights(3)), opset=15,
        training_mode=1, outputs=3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", list(UNSUPPORTED))
def test_unsupported_forms_are_named(reason: str) -> None:
    proto = UNSUPPORTED[reason]
    for output in proto.graph.output[1:]:
        output.type.tensor_type.elem_type = TensorProto.INT64 if len(proto.graph.output) == 2 else 1
    with pytest.raises(UnsupportedModel) as caught:
        load_model(proto)
    assert reason in caught.value.place
    assert "the_node" in caught.value.place
    assert "operator set" in caught.value.place
    assert "tests" in caught.value.place


NONSENSE = [
    single("Div", SHAPE, np.zeros(4, dtype=FLOATS)),
    single("Add", SHAPE, np.array([np.nan, 0, 0, 0], dtype=FLOATS)),
    single("MatMul", (2, 3), np.array([[np.inf], [0], [0]], dtype=FLOATS)),
    single("Gather", SHAPE, np.array(9), axis=0),
    single("Clip", SHAPE, np.float32(np.nan), opset=11),
    single("MaxPool", (1, 1, 4, 4), kernel_shape=[1, 1], pads=[1, 1, 1, 1]),
    single("Slice", SHAPE, integers(0), integers(2), integers(0), integers(0)),
    single("BatchNormalization", IMAGE, *weights(3, 3), -np.ones(3, dtype=FLOATS), opset=15),
]


@pytest.mark.parametrize("proto", NONSENSE, ids=_name)
def test_nonsense_names_the_node(proto: onnx.ModelProto) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(proto)
    assert not isinstance(caught.value, UnsupportedModel)
    assert "the_node" in str(caught.value)
