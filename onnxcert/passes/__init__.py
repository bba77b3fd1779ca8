"""Simplifications of a graph, one per file, all exact over the reals.

`simplify` runs those that hold everywhere; `drop_dead_neurons` specialises a graph to one input
box, `drop_unread` to the outputs that are read, `join_relus` to bounds over the reals.
"""

from __future__ import annotations

from onnxcert.graph import Graph
from onnxcert.passes.drop_dead_neurons import drop_dead_neurons
from onnxcert.passes.drop_identities import drop_identities
from onnxcert.passes.drop_unread import drop_unread
from onnxcert.passes.drop_unused import drop_unused
from onnxcert.passes.fuse_linears import fuse_linears
from onnxcert.passes.fuse_scales import fuse_scales
from onnxcert.passes.fuse_selects import fuse_selects
from onnxcert.passes.join_relus import join_relus
from onnxcert.passes.merge_equals import merge_equals

PASSES = (drop_unused, drop_identities, fuse_selects, fuse_scales, fuse_linears)
"""In the order in which they run."""

__all__ = [
    "PASSES",
    "drop_dead_neurons",
    "drop_identities",
    "drop_unread",
    "drop_unused",
    "fuse_linears",
    "fuse_scales",
    "fuse_selects",
    "join_relus",
    "merge_equals",
    "simplify",
]


def simplify(graph: Graph) -> Graph:
    """Run all passes until none of them shrinks the graph any more."""
    while True:
        count = len(graph.nodes)
        for run in PASSES:
            graph = run(graph)
        if len(graph.nodes) == count:
            return graph
