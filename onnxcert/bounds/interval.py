"""Interval bound propagation (IBP): boxes pushed forward through the graph.

Gowal et al., *On the Effectiveness of Interval Bound Propagation*, 2018. Cheap and loose; the
backward bounds start from it, and it serves alone where a neuron is stable already.
"""

from __future__ import annotations

from onnxcert.bounds.execution import enclose
from onnxcert.graph import Graph
from onnxcert.sets import Box


def interval_bounds(graph: Graph, box: Box, *, execution_unit: float = 0.0) -> dict[str, Box]:
    """Bounds of every value over the input box.

    Args:
        graph: the network.
        box: inputs, arrays (B, input_size).
        execution_unit: unit roundoff of executions, see `onnxcert.bounds.backward.Relaxation`.

    Returns:
        value name -> box with arrays (B, n), valid for the real-valued network and for those
        executions.
    """
    boxes = {graph.input: box}
    for node in graph.nodes:
        boxes[node.name] = enclose(graph, node, boxes, execution_unit)
    return boxes
