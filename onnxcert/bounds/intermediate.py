"""Optimised bounds of intermediate layers: every unstable neuron gets slopes of its own.

The relaxation of a layer is as loose as its bounds. Optimising the slopes of the output rows alone
leaves those as plain CROWN gave them; alpha-CROWN (Xu et al., 2021) optimises all slopes jointly
against the final bound. Here the layers are taken in order, and each unstable neuron's lower and
upper bound is one row of an ordinary ascent over the layers before it, whose bounds are final by
then. That needs no gradient through bounds, and no neuron has to share its slopes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnxcert.arrays import UNIT_ROUNDOFF, Array, array_module
from onnxcert.bounds.backward import unstable_neurons
from onnxcert.bounds.optimised import Forms, FreeRelaxation, Start, optimise
from onnxcert.graph import Graph
from onnxcert.sets import Box

_CHUNK_NUMBERS = 1 << 21
"""Slopes in one ascent: 16 MB for each of its dozen arrays."""


def tighten(
    graph: Graph,
    boxes: Mapping[str, Box],
    *,
    steps: int,
    expired: Callable[[], bool] = lambda: False,
) -> dict[str, Box]:
    """Tighten known bounds of all values over one input box.

    Args:
        graph: the network.
        boxes: bounds of every value, batches of one; they are intersected with what is found.
        steps: ascent steps per row.
        expired: asked before each block of rows; once True, what is known is only propagated.

    Returns:
        Bounds of every value, nowhere looser.
    """
    result = {graph.input: boxes[graph.input]}
    free = FreeRelaxation.begin(graph, result[graph.input])
    for node in graph.nodes:
        box = node.op.interval([result[name] for name in node.inputs], UNIT_ROUNDOFF).defined()
        result[node.name] = box.intersect(boxes[node.name])
        free.add(node, result)
        reads_input_only = node.inputs == (graph.input,)
        worthwhile = node.name in graph.pre_activations and not reads_input_only
        if worthwhile and steps and free.free:
            result[node.name] = _ascend(free, node.name, result[node.name], steps, expired)
    return result


def _ascend(
    free: FreeRelaxation,
    name: str,
    box: Box,
    steps: int,
    expired: Callable[[], bool],
) -> Box:
    """Raise lower and lower upper bounds of the neurons that some reader finds unstable."""
    xp = array_module(box.lower)
    numbers = xp.flatnonzero(unstable_neurons(free.relaxation.graph, name, box)[0])
    slopes = sum(default.shape[1] for default in free.default.values())
    count = max(8, _CHUNK_NUMBERS // slopes)
    lower, upper = box.lower.copy(), box.upper.copy()
    for start in range(0, len(numbers), count):
        index = numbers[start : start + count]
        for side, sign in ((lower, 1.0), (upper, -1.0)):
            if expired():
                return Box(lower, upper)
            found = sign * _bound_units(free, name, box, index, sign, steps, expired)
            choose = xp.maximum if sign > 0 else xp.minimum
            side[0, index] = choose(side[0, index], found)
    return Box(lower, upper)


def _bound_units(
    free: FreeRelaxation,
    target: str,
    box: Box,
    index: Array,
    sign: float,
    steps: int,
    expired: Callable[[], bool],
) -> Array:
    """Optimised lower bounds of ``sign * value[index]``, (len(index),)."""
    xp = array_module(index)
    count = len(index)
    rows = xp.zeros((count, 1, box.lower.shape[1]))
    rows[xp.arange(count), 0, index] = sign
    forms = Forms(rows, None, xp.zeros((count, 1)), xp.ones((count, 1), dtype=bool))
    start = Start.at_form(xp.zeros(count, dtype=int), forms)
    return optimise(free, forms, box, start, target=target, steps=steps, expired=expired).lower
