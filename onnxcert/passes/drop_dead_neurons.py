"""Drop neurons that are zero all over an input box: the network specialised to that box.

A relu whose input is never positive on the box contributes nothing there, so its column of the
matrix before and its row of the matrix behind can go. In fully connected networks most neurons die
on a small box, and every further bound over it gets cheaper by the square of the share that is
left. The result equals the network on that box only, so it never leaves the search of the box.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from onnxcert.arrays import IntArray, array_module, to_host
from onnxcert.graph import Graph, Node
from onnxcert.ops import Linear, Relu
from onnxcert.sets import Box


def drop_dead_neurons(graph: Graph, boxes: Mapping[str, Box]) -> tuple[Graph, dict[str, Box]]:
    """Remove dead neurons between matrices.

    Args:
        graph: the network.
        boxes: bounds of every value over one input box, a batch of one.

    Returns:
        The smaller network and the bounds of its values.

    Ensures: the same function over the reals for all inputs in the box.
    """
    nodes = {node.name: node for node in graph.nodes}
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    result = dict(boxes)
    for relu in graph.nodes:
        if not _stands_between_matrices(relu, nodes, readers):
            continue
        if graph.output in (relu.name, relu.inputs[0]):
            continue
        before = nodes[relu.inputs[0]]
        upper = result[before.name].upper[0]
        keep = array_module(upper).flatnonzero(upper > 0)
        if len(keep) == len(upper) or len(keep) == 0:
            continue
        _keep_only(keep, before, relu, readers[relu.name], nodes)
        for name in (before.name, relu.name):
            result[name] = Box(result[name].lower[:, keep], result[name].upper[:, keep])
    return replace(graph, nodes=tuple(nodes[node.name] for node in graph.nodes)), result


def _stands_between_matrices(
    relu: Node, nodes: Mapping[str, Node], readers: Mapping[str, list[Node]]
) -> bool:
    """Whether a node is a relu that reads one matrix product alone and feeds only such products."""
    before = nodes.get(relu.inputs[0])
    behind = readers.get(relu.name, [])
    return (
        isinstance(relu.op, Relu)
        and before is not None
        and _is_single_row(before)
        and len(readers[before.name]) == 1
        and bool(behind)
        and all(_is_single_row(node) for node in behind)
    )


def _is_single_row(node: Node) -> bool:
    return isinstance(node.op, Linear) and node.op.rows == 1


def _keep_only(
    keep: IntArray, before: Node, relu: Node, behind: list[Node], nodes: dict[str, Node]
) -> None:
    """Replace the nodes round a relu by smaller ones."""
    first = nodes[before.name].op
    assert isinstance(first, Linear)
    offset = None if first.offset is None else first.offset[keep]
    nodes[before.name] = replace(nodes[before.name], op=Linear(first.weight[:, keep], offset))
    neurons = relu.neurons and relu.neurons.keep(to_host(keep))
    nodes[relu.name] = replace(relu, op=Relu(len(keep)), neurons=neurons)
    for node in behind:
        second = nodes[node.name].op
        assert isinstance(second, Linear)
        smaller = Linear(second.weight[keep], second.offset)
        nodes[node.name] = replace(nodes[node.name], op=smaller)
