"""Evaluation of nodes whose inputs are all constants.

Integers are exact. Floating-point numbers are evaluated in float64 whatever type the file gives
them: what is verified is the real-valued network, and its weights should not carry the rounding
of a float32 execution. Where a number decides something discrete (a comparison, a cast to an
integer, rounding), the decision must be the same in float32, or the node is refused.

ONNX's own reference evaluator does the work; it costs 60 ms to import and is imported only by
models that need it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx

from onnxcert.arrays import Array
from onnxcert.frontend.tensors import MOST_ENTRIES, Constant, NoRule

# fmt: off
DECISIONS = frozenset((
    "ArgMax", "ArgMin", "Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Mod", "NonZero", "Range", "Round", "Sign",
))
_RANDOM = frozenset((
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
))
# fmt: on


def fold(
    node: onnx.NodeProto, inputs: Sequence[Constant | None], opset: int
) -> list[Constant | None]:
    """Evaluate a node of the default domain on constants.

    Raises:
        NoRule: it is random, depends on rounding, or the reference evaluator does not know it.
        ValueError: the inputs do not fit the operator.
    """
    if node.op_type in _RANDOM:
        raise NoRule("random numbers")
    _check_size(node, inputs)
    arrays = [None if constant is None else _exact(constant.array) for constant in inputs]
    results = _evaluate(node, arrays, opset)
    if node.op_type in DECISIONS and any(_is_floating(array) for array in arrays):
        narrow = [a.astype(np.float32) if _is_floating(a) else a for a in arrays]  # type: ignore[union-attr]
        again = _evaluate(node, narrow, opset)
        if not all(np.array_equal(a, b) for a, b in zip(results, again, strict=True)):
            raise NoRule("a constant decision that depends on rounding")
    return [None if result is None else Constant(result) for result in results]


def _evaluate(node: onnx.NodeProto, arrays: Sequence[Array | None], opset: int) -> list[Array]:
    feeds = {f"input{i}": array for i, array in enumerate(arrays) if array is not None}
    there = tuple(array is not None for array in arrays)
    evaluator = _evaluator(node.SerializeToString(deterministic=True), there, opset)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = evaluator.run(None, feeds)
    except (NotImplementedError, RuntimeError, AttributeError, KeyError) as error:
        raise NoRule(f"a constant node that cannot be evaluated ({error})") from error
    return [np.asarray(result) for result in results]


@lru_cache(maxsize=4)
def _evaluator(data: bytes, there: tuple[bool, ...], opset: int) -> Any:
    """Evaluates one node with the inputs that are there; nodes come thousands of times in a row."""
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 - see the module docstring

    single = onnx.NodeProto.FromString(data)
    names = [f"input{i}" if given else "" for i, given in enumerate(there)]
    outputs = [f"output{i}" for i in range(len(single.output))]
    del single.input[:], single.output[:]
    single.input.extend(names)
    single.output.extend(outputs)
    graph = onnx.helper.make_graph(
        [single],
        "constant",
        [onnx.helper.make_empty_tensor_value_info(name) for name in names if name],
        [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        return ReferenceEvaluator(model)
    except (NotImplementedError, RuntimeError, AttributeError, KeyError) as error:
        raise NoRule(f"a constant node that cannot be evaluated ({error})") from error


def _is_floating(array: Array | None) -> bool:
    return array is not None and array.dtype.kind == "f"


def _exact(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _check_size(node: onnx.NodeProto, inputs: Sequence[Constant | None]) -> None:
    """Refuse operators that would make more entries than memory holds."""
    arrays = [constant.array for constant in inputs if constant is not None]
    wanted = 0.0
    if node.op_type == "ConstantOfShape":
        wanted = float(np.prod(arrays[0].astype(float)))
    elif node.op_type == "Range":
        start, limit, delta = (float(array.item()) for array in arrays)
        wanted = abs((limit - start) / delta) if delta else 0.0
    elif node.op_type in ("OneHot", "EyeLike", "MatMul"):
        wanted = float(np.prod([max(float(array.size), 1.0) for array in arrays[:2]]))
        if node.op_type == "OneHot":
            wanted = arrays[0].size * float(arrays[1].ravel()[0])
    elif len(arrays) > 1 and all(array.shape for array in arrays):
        ranks = max(array.ndim for array in arrays)
        padded = [(1,) * (ranks - a.ndim) + a.shape for a in arrays]
        wanted = float(np.prod(np.max(np.array(padded, dtype=float), axis=0)))
    if wanted > MOST_ENTRIES:
        raise ValueError(f"a constant of {wanted:.0f} entries")
