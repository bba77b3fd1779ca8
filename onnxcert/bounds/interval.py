"""Interval bound propagation (IBP): boxes pushed forward through the graph.

Gowal et al., *On the Effectiveness of Interval Bound Propagation*, 2018. Cheap and loose; the
backward bounds start from it, and it serves alone where a neuron is stable already.
"""

from __future__ import annotations

from onnxcert.arrays import UNIT_ROUNDOFF
from onnxcert.graph import Graph
from onnxcert.sets import Box


def interval_bounds(graph: Graph, box: Box) -> dict[str, Box]:
    """Bounds of every value over the input box.

    Args:
        graph: the network.
        box: inputs, arrays (B, input_size).

    Returns:
        value name -> box with arrays (B, n), valid for the real-valued network.
    """
    boxes = {graph.input: box}
    for node in graph.nodes:
        inputs = [boxes[name] for name in node.inputs]
        boxes[node.name] = node.op.interval(inputs, UNIT_ROUNDOFF).defined()
    return boxes
