"""Where to cut a box: how much of a form, and of what its relaxation loses, hangs on each input.

Halving input j narrows the linear form by ``|a_j| w_j / 2`` (the "smear" of interval analysis:
Kearfott, *Rigorous Global Search*, 1996). But where few neurons are unstable and the lines cut off
a lot, the form is nearly flat and all that is lost is lost at those neurons: it shrinks with their
ranges, each with those inputs on which that neuron depends. To first order neuron n loses
``|A_n| g_n``, where A is the row that reaches it and g_n the distance between its lines, which is
about proportional to its range ``sum_j |J_nj| w_j`` with the derivatives J of its input; so each
input is counted with

    s_j = |a_j| + sum_n 2 |A_n| rho_n |J_nj|,    rho_n = g_n / (half the range of n),

times its width. J goes through the mean slopes, one forward pass of as many rows as inputs vary.

The lines about a jump keep their distance however short the range is; networks with jumps are left
to the form alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnxcert.arrays import Array, array_module
from onnxcert.bounds.ascent import Raised
from onnxcert.bounds.backward import Relaxation
from onnxcert.graph import Node
from onnxcert.ops.base import Affine, Bivariate, Elementwise
from onnxcert.sets import Box

MOST_INPUTS = 32
"""Varying inputs up to which derivatives are worth their passes; beyond, only the form counts."""


def steepness(
    relaxation: Relaxation,
    boxes: Mapping[str, Box],
    index: Array,
    raised: Raised,
    vary: Array,
) -> Array:
    """The weights s_j of all inputs, (P, input_size), non-negative.

    Args:
        relaxation: of a batch of B boxes.
        boxes: bounds of every value, (B, n) each.
        index: (P,) which of the batch the forms belong to.
        raised: forms and the rows that led to them, P of them.
        vary: (F,) the inputs that vary.
    """
    xp = array_module(index)
    result: Array = abs(raised.coefficients)
    graph = relaxation.graph
    jumps = any(isinstance(node.op, Elementwise) and not node.op.continuous for node in graph.nodes)
    if jumps or len(index) == 0 or not 0 < len(vary) <= MOST_INPUTS:
        return result
    count, size = len(index), graph.input_size
    tangents = {graph.input: xp.broadcast_to(xp.eye(size)[vary], (count, len(vary), size))}
    gain = xp.zeros((count, len(vary)))
    for position, node in enumerate(graph.nodes):
        read = [tangents[name] for name in node.inputs]
        if node.name in relaxation.left_out:
            tangents[node.name] = xp.zeros((count, len(vary), graph.sizes[node.name]))
        elif isinstance(node.op, Elementwise):
            if node.name in raised.activations:
                lost = _lost(relaxation, boxes[node.inputs[0]], node.name, index)
                weight = abs(raised.activations[node.name]) * lost
                gain += (abs(read[0]) @ weight[:, :, None])[:, :, 0]
            mean = relaxation.curves[node.name].mean
            tangents[node.name] = read[0] * mean[index][:, None]
        elif isinstance(node.op, Bivariate):
            if node.name in raised.activations:
                losses = _lost_by_pair(relaxation, node, boxes, index)
                for tangent, lost in zip(read, losses, strict=True):
                    weight = abs(raised.activations[node.name]) * lost
                    gain += (abs(tangent) @ weight[:, :, None])[:, :, 0]
            first, second = relaxation.surfaces[node.name].mean
            tangents[node.name] = read[0] * first[index][:, None] + read[1] * second[index][:, None]
        else:
            assert isinstance(node.op, Affine)
            flat = [rows.reshape(count * len(vary), -1) for rows in read]
            tangents[node.name] = node.op.apply(flat).reshape(count, len(vary), -1)
        for name in set(node.inputs):
            if graph.last_use[name] == position:
                del tangents[name]
    result[:, vary] += 2.0 * gain
    return result


def _lost(relaxation: Relaxation, box: Box, name: str, index: Array) -> Array:
    """rho_n of the neurons of one node, (P, n); zero where a line is the curve."""
    lower, upper = box.lower[index], box.upper[index]
    curve = relaxation.curves[name]
    gap = 2.0 * (curve.half[index] * (0.5 * (lower + upper)) + curve.half_offset[index])
    return _share(gap, 0.5 * (upper - lower))


def _lost_by_pair(
    relaxation: Relaxation, node: Node, boxes: Mapping[str, Box], index: Array
) -> list[Array]:
    """The same for each of two inputs: the gap between planes shrinks with the range of either."""
    surface = relaxation.surfaces[node.name].take(index)
    ranges = [boxes[name].take(index) for name in node.inputs]
    gap = 2.0 * surface.half_offset
    for half, one in zip(surface.half, ranges, strict=True):
        gap = gap + half * (one.lower + one.upper)
    return [_share(gap, 0.5 * (one.upper - one.lower)) for one in ranges]


def _share(gap: Array, reach: Array) -> Array:
    """gap / reach; zero where there is no reach, or no number."""
    xp = array_module(gap)
    share = xp.where(reach > 0, gap / xp.where(reach > 0, reach, 1.0), 0.0)
    return xp.where(xp.isfinite(share), share, 0.0)  # type: ignore[no-any-return]
