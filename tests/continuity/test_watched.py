"""Sums that tell numbers from what is none, where runtimes drop NaN at rectifiers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcert import load_model
from onnxcert import with_bottom_logit as extend
from onnxcert.arrays import Array
from onnxcert.continuity.watched import Watched, watched
from tests.continuity.test_bottom import run
from tests.frontend.onnx_models import model_of

SIZE, WIDTH = 48, 40
CASES = ("gemm", "matmul", "transposed", "flat", "tanh", "pruned", "blind", "narrow", "wide")
SEEN = {"tanh": "z", "pruned": "z", "blind": "x", "narrow": "z", "wide": "x"}


def model(case: str) -> onnx.ModelProto:
    """A dense layer, a curve and another layer, on images or vectors in [0, 1]."""
    rng = np.random.default_rng(5)
    width = {"narrow": 8, "wide": SIZE}.get(case, WIDTH)
    weight = rng.normal(size=(SIZE, width)).astype(np.float32)
    if case == "pruned":
        weight[rng.random(weight.shape) < 0.5] = 0.0
    if case == "blind":
        weight[3] = 0.0
    bias = rng.normal(size=width).astype(np.float32)
    last = rng.normal(size=(width, 3)).astype(np.float32)
    constants: dict[str, Array] = {"w": weight, "b": bias, "v": last}
    if case == "transposed":
        constants["w"] = np.ascontiguousarray(weight.T)
    read = "f" if case == "flat" else "x"
    if case == "matmul":
        nodes = [
            helper.make_node("MatMul", [read, "w"], ["p"]),
            helper.make_node("Add", ["b", "p"], ["z"]),
        ]
    else:
        nodes = [
            helper.make_node("Gemm", [read, "w", "b"], ["z"], transB=int(case == "transposed"))
        ]
    if case == "flat":
        nodes.insert(0, helper.make_node("Flatten", ["x"], ["f"]))
    nodes += [
        helper.make_node("Tanh" if case == "tanh" else "Relu", ["z"], ["h"]),
        helper.make_node("MatMul", ["h", "v"], ["y"]),
    ]
    shape = ("N", 3, 4, 4) if case == "flat" else ("N", SIZE)
    return model_of(nodes, {"x": shape}, ["y"], constants)


def inputs(case: str, count: int) -> Array:
    x = np.random.default_rng(1).random((count, SIZE)).astype(np.float32)
    x[0], x[1] = 0.0, 1.0
    return x.reshape(-1, 3, 4, 4) if case == "flat" else x


def seen(proto: onnx.ModelProto) -> Watched:
    read = load_model(proto)
    return watched(proto, read, read.inputs[0], (0.0, 1.0), batched=True)


def dropping(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in a runtime whose rectifiers make zero of NaN."""
    changed = onnx.ModelProto.FromString(proto.SerializeToString())
    nodes = list(changed.graph.node)
    del changed.graph.node[:]
    for node in nodes:
        if node.op_type == "Relu":
            made, told = node.output[0], f"{node.output[0]}/above"
            zero = helper.make_node("Constant", [], [f"{made}/zero"], value_float=0.0)
            test = helper.make_node("Greater", [node.input[0], f"{made}/zero"], [told])
            pick = helper.make_node("Where", [told, node.input[0], f"{made}/zero"], [made])
            changed.graph.node.extend([zero, test, pick])
        else:
            changed.graph.node.append(node)
    return changed


@pytest.mark.parametrize("case", CASES)
def test_the_smallest_tensor_that_does_is_watched(case: str) -> None:
    """All sums over the domain are inside of the range."""
    proto = model(case)
    found = seen(proto)
    assert found.name == SEEN.get(case, "h")
    tapped = onnx.ModelProto.FromString(proto.SerializeToString())
    if found.name != "x":
        del tapped.graph.output[:]
        tapped.graph.output.append(
            helper.make_tensor_value_info(found.name, onnx.TensorProto.FLOAT, ["N", None])
        )
    x = inputs(case, 200)
    values = x if found.name == "x" else run(tapped, x=x)[0]
    assert values.ndim == found.rank
    sums = values.sum(axis=1)
    assert ((sums > found.low) & (sums < found.high)).all()


@pytest.mark.parametrize("test_domain", [False, True])
@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_what_is_no_number_is_never_certified(case: str, drops: bool, test_domain: bool) -> None:
    extended = extend(model(case), 1e-4, test_domain=test_domain, method="product")
    extended = dropping(extended) if drops else extended
    x = inputs(case, 3 * SIZE + 2)
    assert run(extended, x=x)[1].mean() > 0.9
    rows = x.reshape(len(x), SIZE)
    for k in range(SIZE):
        rows[3 * k : 3 * k + 3, k] = np.nan, np.inf, -np.inf
    rows[-2], rows[-1] = np.inf, np.nan
    _, certified, radius = run(extended, x=x)
    assert not certified.any()
    assert (radius == 0.0).all()


@pytest.mark.parametrize("case", ["gemm", "blind", "wide"])
def test_images_in_other_units_are_refused(case: str) -> None:
    extended = extend(model(case), 1e-4, test_domain=False, method="product")
    assert not run(extended, x=255.0 * inputs(case, 50)[1:])[1].any()


def test_layers_that_callers_may_change_are_not_relied_on() -> None:
    proto, read = model("gemm"), load_model(model("gemm"))
    assert watched(proto, read, read.inputs[0], (0.0, 1.0), batched=True).name == "h"
    proto.graph.input.append(helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, None))
    assert watched(proto, read, read.inputs[0], (0.0, 1.0), batched=True).name == "x"


@pytest.mark.parametrize("attributes", [{"alpha": 2.0}, {"transA": 1}])
def test_other_products_are_not_layers(attributes: dict[str, float]) -> None:
    proto, read = model("gemm"), load_model(model("gemm"))
    proto.graph.node[0].attribute.extend(
        helper.make_attribute(name, value) for name, value in attributes.items()
    )
    assert watched(proto, read, read.inputs[0], (0.0, 1.0), batched=True).name == "x"
