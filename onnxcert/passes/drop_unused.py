"""Drop nodes that the output does not depend on."""

from __future__ import annotations

from dataclasses import replace

from onnxcert.graph import Graph


def drop_unused(graph: Graph) -> Graph:
    """Keep the nodes on some path to the output.

    Ensures: every node but the one that makes the output has a consumer.
    """
    needed = {graph.output}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return replace(graph, nodes=tuple(node for node in graph.nodes if node.name in needed))
