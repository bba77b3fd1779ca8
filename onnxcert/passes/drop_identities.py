"""Drop nodes that return their input: scales by one, selections of everything, sums of one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxcert.graph import Graph, Node
from onnxcert.ops import Concat, Operator, Scale, Select, Sum


def drop_identities(graph: Graph) -> Graph:
    """Let consumers read what an identity reads.

    Ensures: no node is an identity. The output may change its name.
    """
    names: dict[str, str] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        inputs = tuple(names.get(name, name) for name in node.inputs)
        if _is_identity(node.op):
            names[node.name] = inputs[0]
        else:
            nodes.append(replace(node, inputs=inputs))
    output = names.get(graph.output, graph.output)
    return replace(graph, nodes=tuple(nodes), output=output)


def _is_identity(op: Operator) -> bool:
    if isinstance(op, Scale):
        unit = op.factor is None or bool((op.factor == 1.0).all())
        return unit and (op.offset is None or not op.offset.any())
    if isinstance(op, Select):
        if op.fill is not None or op.output_size != op.gather.size:
            return False
        return bool((op.gather.index == np.arange(op.output_size)).all())
    if isinstance(op, Sum):
        return op.signs == (1,)
    return isinstance(op, Concat) and len(op.sizes) == 1
