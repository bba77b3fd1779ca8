"""Executions in binary32: how far computed values may lie from the real-valued map of a node.

An executor computes z = W h + b + e from the values h that it computed before. For every order and
association of the sums, with fused multiplication and addition or without, with the bias added last
or first, and with subnormal numbers kept or flushed to zero,

    |e| <= gamma_n(u) (|W| |h| + |b|) + f,    u = 2^-24,

where n (`Graph.roundings`) counts those that one product or the bias may meet and f is what
flushing loses (Higham, *Accuracy and Stability of Numerical Algorithms*, section 3.1). Bounds that
hold for all such e hold for every execution, and for the real-valued network too, where e = 0. This
is meant for the graph as it was read: a contracted one has other values and fewer roundings.

What only compares or moves values is exact: selections, relu, maxima. An execution that might
overflow has no bounds at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxcert.arrays import UNIT_ROUNDOFF, Array, array_module
from onnxcert.graph import Graph, Node
from onnxcert.ops.base import Affine, Bivariate, Elementwise, gamma
from onnxcert.sets import Box

FLUSH = 2.0**-124
"""Lost per rounding and unit of the operands where a result or an operand is flushed to zero."""

SMALLEST = 2.0**-102
"""An operand flushed to zero loses 2^-126, which is 2^-24 of this."""

LARGEST = 2.0**127
"""Sums of absolute values below half the overflow threshold never overflow in any order."""

SLACK = 1.0 + 1e-9
"""Covers the rounding of the error terms themselves."""


def execution_error(
    graph: Graph, node: Node, boxes: Mapping[str, Box], unit: float
) -> Array | None:
    """Bounds |e| of what the roundings of one node change in its output.

    Args:
        graph: the network.
        node: one of its nodes.
        boxes: bounds of the computed values that it reads.
        unit: unit roundoff of the executor; 0 for none.

    Returns:
        (B, n), infinite where a value might overflow; None where the node is exact. Of a folded
        node, which nobody executes, it is the deviation, (1, n).
    """
    if node.deviation is not None:
        return node.deviation[None]
    if unit == 0.0:
        return None
    op = node.op
    if isinstance(op, Elementwise):
        return _curve_error(op, boxes[node.inputs[0]], unit)
    if isinstance(op, Bivariate):
        return _pair_error(op, [boxes[name] for name in node.inputs], unit)
    assert isinstance(op, Affine)
    count = graph.roundings[node.name]
    if count == 0:
        return None
    read = [boxes[name].magnitude for name in node.inputs]
    size = op.magnitude.apply([values + SMALLEST for values in read])
    parts = op.bias_parts
    if parts is not None:
        size = size + abs(parts)
    largest = sum(values.sum(axis=1) for values in read)  # no less than any of them
    return _error(size, count, largest[:, None], unit)


def _curve_error(op: Elementwise, box: Box, unit: float) -> Array | None:
    """Curves that saturate are a few units off in absolute terms, whatever their value."""
    if op.error_terms == 0:
        return None
    size = op.interval([box], UNIT_ROUNDOFF).magnitude
    if op.saturates:
        size = array_module(size).maximum(size, 1.0)
    return _error(size, op.error_terms, box.magnitude, unit)


def _pair_error(op: Bivariate, boxes: Sequence[Box], unit: float) -> Array:
    """As for curves; either operand may be what is flushed."""
    size = op.interval(boxes, UNIT_ROUNDOFF).magnitude
    largest = op.moved_by_flushing(boxes)
    return _error(size, op.error_terms, largest, unit)


def _error(size: Array, count: int, largest: Array, unit: float) -> Array:
    return SLACK * (gamma(count, unit) * size + flushing_error(size, count, largest))


def flushing_error(size: Array, count: int, largest: Array) -> Array:
    """What flushing may change in values, infinite where they might overflow.

    Args:
        size: of what they are sums of, |W| |h| + |b|, (B, n).
        count: roundings that one product may meet.
        largest: no less than any operand, (B, n) or (B, 1).
    """
    xp = array_module(size)
    return xp.where(size < LARGEST, FLUSH * count * (1.0 + largest), xp.inf)  # type: ignore[no-any-return]


def enclose(graph: Graph, node: Node, boxes: Mapping[str, Box], unit: float) -> Box:
    """Interval bounds of a node's output, over the reals and all executions.

    Args:
        graph: the network.
        node: one of its nodes.
        boxes: bounds of the values that it reads.
        unit: unit roundoff of the executor; 0 for the real-valued network alone.
    """
    box = node.op.interval([boxes[name] for name in node.inputs], UNIT_ROUNDOFF).defined()
    error = execution_error(graph, node, boxes, unit)
    return box if error is None else widened(box, error)


def widened(box: Box, error: Array) -> Box:
    """All values within ``error`` (B, n) of those in a box, rounded outward."""
    error = error + 2.0 * UNIT_ROUNDOFF * (box.magnitude + error)
    return Box(box.lower - error, box.upper + error).defined()


def before_rounding(
    graph: Graph, node: Node, boxes: Mapping[str, Box], made: Box, unit: float
) -> Box:
    """Where a node's values lie before an execution rounds them to what lies in ``made``.

    Args:
        graph, node, boxes, unit: see `enclose`.
        made: bounds of what executions make of the node, arrays (B, n).
    """
    error = execution_error(graph, node, boxes, unit)
    return made if error is None else widened(made, error)
