"""Drop entries of values that nothing read depends on: neurons, and rows and columns of matrices.

A query may be about one of thousands of outputs. What only the others are made from needs no
bounds, no slopes and no branching. Entries are followed from the output to the input, operator by
operator (`Operator.part`); a matrix reads what it has factors for.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxcert.arrays import BoolArray
from onnxcert.graph import Graph, Node
from onnxcert.ops import Select
from onnxcert.ops.base import Part


def drop_unread(graph: Graph, read: BoolArray) -> Graph:
    """Keep what some entries of the output depend on.

    Args:
        graph: the network.
        read: (output_size,) which entries of the output anybody reads.

    Returns:
        A graph with as many outputs, of which those that are not read are zero if any had to go;
        the same graph if there is nothing to be dropped.

    Ensures: the same function at the entries that are read, with no larger matrix, and the
    roundings that an executor of the file makes there.
    """
    if not read.any():
        return graph
    kept = {name: np.zeros(size, bool) for name, size in graph.sizes.items()}
    kept[graph.output] |= read
    parts: dict[str, Part] = {}
    for node in reversed(graph.nodes):
        if kept[node.name].any():
            parts[node.name] = part = node.op.part(kept[node.name])
            kept[node.name] = part.makes
            for name, reads in zip(node.inputs, part.reads, strict=True):
                kept[name] |= reads
    if all(kept[node.name].all() for node in graph.nodes):
        return graph
    kept[graph.input][:] = True
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.name in parts:
            nodes += _cut(node, parts[node.name], kept, graph.roundings.get(node.name))
    output = graph.output
    if not kept[output].all():
        index = np.where(read, np.cumsum(kept[output]) - 1, -1)
        output = f"{output} where it is read"
        op = Select.of(index, int(kept[graph.output].sum()))
        nodes.append(Node(output, op, (graph.output,)))
    return Graph(graph.input, graph.input_size, tuple(nodes), output)


def _cut(node: Node, part: Part, kept: dict[str, BoolArray], roundings: int | None) -> list[Node]:
    """A part of a node, behind nodes that pick what it reads where more than that is kept."""
    nodes, inputs = [], []
    for number, (name, reads) in enumerate(zip(node.inputs, part.reads, strict=True)):
        if not reads.any():
            continue
        if (reads != kept[name]).any():
            index = np.flatnonzero(reads[kept[name]])
            picked = f"input {number} of {node.name}"
            nodes.append(Node(picked, Select.of(index, int(kept[name].sum())), (name,)))
            name = picked  # noqa: PLW2901
        inputs.append(name)
    neurons = node.neurons and node.neurons.keep(np.flatnonzero(part.makes))
    made = replace(node, op=part.op, inputs=tuple(inputs), neurons=neurons, roundings=roundings)
    return [*nodes, made]
