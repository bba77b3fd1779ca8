"""Contract two matrices in a row when their product is smaller than both together."""

from __future__ import annotations

from onnxcert.graph import Graph
from onnxcert.ops import Linear
from onnxcert.passes.base import contract_pairs, matrix_product


def fuse_linears(graph: Graph) -> Graph:
    """Multiply out with compensated sums.

    Ensures: the same function over the reals, with at most as many nodes and stored numbers.
    """
    return contract_pairs(graph, {(Linear, Linear): _linear_linear})


def _linear_linear(first: Linear, second: Linear) -> Linear | None:
    size = first.weight.shape[0] * second.weight.shape[1]
    if first.rows != second.rows or size > first.weight.size + second.weight.size:
        return None
    weight = matrix_product(first.weight, second.weight)
    if weight is None:
        return None
    offset = second.offset
    if first.offset is not None:
        product = matrix_product(first.offset[None], second.weight, offset)
        if product is None:
            return None
        offset = product[0]
    return Linear(weight, offset, first.rows)
