"""Small ONNX models for tests, and their comparison with onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxcert.frontend.onnx import Model, load_model
from onnxcert.frontend.replay import check_lowering

RNG = np.random.default_rng(7)


def weights(*shape: int) -> np.ndarray:
    """Random float32 numbers of size one."""
    return RNG.normal(size=shape).astype(np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[int | str]],
    outputs: Sequence[str],
    constants: dict[str, np.ndarray] | None = None,
    *,
    opset: int = 13,
    element: int = TensorProto.FLOAT,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A model from nodes; output shapes are left open."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(n, element, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, element, None) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(
        graph,
        opset_imports=imports,
        ir_version=8 if opset < 20 else 10,
        functions=list(functions),
        producer_name="tests",
    )


def single(
    operator: str,
    *operands: Sequence[int] | np.ndarray | None,
    opset: int = 13,
    outputs: int = 1,
    element: int = TensorProto.FLOAT,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node: tuples are shapes of inputs, arrays are stored tensors."""
    inputs, constants, names = {}, {}, []
    for number, operand in enumerate(operands):
        name = "" if operand is None else f"v{number}"
        names.append(name)
        if isinstance(operand, (np.ndarray, np.generic)):
            constants[name] = np.asarray(operand)
        elif operand is not None:
            inputs[name] = operand
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(operator, names, results, name="the_node", **attributes)
    return model_of([node], inputs, results, constants, opset=opset, element=element)


def agrees(proto: onnx.ModelProto, *, points: int = 6, reach: float = 2.0) -> Model:
    """Load a model and compare it with onnxruntime on a box round zero."""
    model = load_model(proto)
    size = model.graph.input_size
    rng = np.random.default_rng(0)
    check_lowering(model, np.full(size, -reach), np.full(size, reach), rng, points)
    return model
