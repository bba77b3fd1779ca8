"""CROWN bounds of every pre-activation, layer by layer, and the relaxation they give.

Interval bounds are computed first; backward bounds only for the neurons that these leave unstable
in some subproblem, in batches of subproblems x rows that stay within a memory budget. Known bounds
(a parent's, or those of split constraints) are intersected on the way, so what is inherited is
never lost: default slopes are not monotone in the bounds, intersection is what makes a child at
least as tight as its parent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnxcert.arrays import Array, array_module
from onnxcert.bounds.backward import Relaxation, pull_back_units, unstable_neurons
from onnxcert.bounds.execution import enclose
from onnxcert.graph import Graph, Node
from onnxcert.ops.base import Elementwise
from onnxcert.sets import Box

CHUNK_NUMBERS = 1 << 20
"""Numbers in the widest row block of a pass: 8 MB, so that its temporaries stay in cache."""

LEAST_ROWS = 64
"""Rows of a block however wide the network is: neurons that lie together share their window."""


@dataclass(frozen=True)
class Bounds:
    """Bounds of a batch of subproblems.

    Attributes:
        boxes: value name -> box, (B, n), for every value of the graph.
        relaxation: the lines that follow from them.
        empty: (B,) True where the known bounds contradict the network: nothing is in there.
    """

    boxes: dict[str, Box]
    relaxation: Relaxation
    empty: Array


def crown_bounds(
    graph: Graph,
    box: Box,
    *,
    known: Mapping[str, Box] | None = None,
    backward: bool = True,
    expired: Callable[[], bool] = lambda: False,
    execution_unit: float = 0.0,
) -> Bounds:
    """Bound every value of the graph over a batch of input boxes.

    Args:
        graph: the network.
        box: (B, input_size).
        known: value name -> box that is known to hold, intersected.
        backward: False leaves it at interval bounds.
        expired: asked between row blocks; once True, remaining layers get interval bounds only.
        execution_unit: unit roundoff of executions, see `Relaxation`.

    Returns:
        Bounds valid for the real-valued network and for those executions.
    """
    xp = array_module(box.lower)
    known = known or {}
    boxes = {graph.input: box}
    relaxation = Relaxation(graph, box, execution_unit)
    empty = xp.zeros(len(box), dtype=bool)
    for node in graph.nodes:
        current = enclose(graph, node, boxes, execution_unit)
        if node.name in known:
            current = current.intersect(known[node.name])
        if isinstance(node.op, Elementwise):
            source = boxes[node.inputs[0]]
            relaxation.add_elementwise(node, boxes, node.op.relax(source))
        else:
            boxes[node.name] = current
            relaxation.add_affine(node, boxes)
        reads_input_only = node.inputs == (graph.input,)
        worthwhile = node.name in graph.pre_activations and not reads_input_only
        if backward and worthwhile and not expired():
            current = _refine(relaxation, node, current, expired)
        wrong = (current.lower > current.upper).any(axis=1)
        empty |= wrong
        if wrong.any():
            # Nothing is in there, so any bounds hold; these keep the arithmetic well defined.
            current = Box(
                xp.minimum(current.lower, current.upper), xp.maximum(current.lower, current.upper)
            )
        boxes[node.name] = current
    return Bounds(boxes, relaxation, empty)


def _refine(
    relaxation: Relaxation,
    node: Node,
    box: Box,
    expired: Callable[[], bool],
) -> Box:
    """Intersect with backward bounds where some reader finds the neuron unstable."""
    xp = array_module(box.lower)
    unstable = unstable_neurons(relaxation.graph, node.name, box)
    width = int(unstable.sum(axis=1).max())
    if width == 0:
        return box
    # Unstable neurons first; shorter subproblems are padded with stable ones, which does no harm.
    rank = relaxation.graph.ranks[node.name]
    if rank is None:
        order = xp.argsort(~unstable, axis=1, kind="stable")[:, :width]
    else:
        near = xp.argsort(rank)
        order = near[xp.argsort(~unstable[:, near], axis=1, kind="stable")[:, :width]]
    lower, upper = box.lower.copy(), box.upper.copy()
    each = xp.arange(len(box))[:, None]
    widest = max(relaxation.graph.sizes.values())
    step = max(1, CHUNK_NUMBERS // (widest * len(box)), LEAST_ROWS // len(box))
    for start in range(0, width, step):
        if expired():
            break
        index = order[:, start : start + step]
        below = pull_back_units(relaxation, node.name, index, 1.0)
        above = -pull_back_units(relaxation, node.name, index, -1.0)
        # What padding would tighten must not depend on which subproblems share a batch: a proof is
        # repeated in other batches.
        wanted = xp.take_along_axis(unstable, index, axis=1)
        for target, value, choose in ((lower, below, xp.maximum), (upper, above, xp.minimum)):
            old = target[each, index]
            target[each, index] = xp.where(wanted, choose(old, value), old)
    return Box(lower, upper)


def output_bounds(graph: Graph, bounds: Bounds) -> Box:
    """Backward bounds of every output, intersected with the interval bounds."""
    box = bounds.boxes[graph.output]
    if graph.output == graph.input:
        return box
    xp = array_module(box.lower)
    count = len(box)
    widest = max(graph.sizes.values())
    step = max(1, CHUNK_NUMBERS // (widest * count))
    sides = []
    for sign in (1.0, -1.0):
        parts = []
        for start in range(0, graph.output_size, step):
            numbers = xp.arange(start, min(start + step, graph.output_size))
            index = xp.broadcast_to(numbers, (count, len(numbers)))
            parts.append(sign * pull_back_units(bounds.relaxation, graph.output, index, sign))
        sides.append(xp.concatenate(parts, axis=1))
    return box.intersect(Box(*sides))
