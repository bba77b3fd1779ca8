"""Contract two matrices in a row when their product is smaller than both together."""

from __future__ import annotations

from onnxcert.graph import Graph
from onnxcert.ops import Linear, SparseLinear
from onnxcert.passes.base import contract_pairs, matrix_product, sparse_product


def fuse_linears(graph: Graph) -> Graph:
    """Multiply out with compensated sums.

    Ensures: the same function over the reals, with at most as many nodes and stored numbers.
    """
    return contract_pairs(
        graph, {(Linear, Linear): _linear_linear, (Linear, SparseLinear): _linear_sparse}
    )


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


def _linear_sparse(first: Linear, second: SparseLinear) -> Linear | None:
    size = first.weight.shape[0] * second.shape[1]
    stored = first.weight.size + 3 * second.values.size  # an entry is a value and two numbers
    if first.rows != 1 or size > stored:
        return None
    weight = sparse_product(first.weight, second)
    if weight is None:
        return None
    offset = second.offset
    if first.offset is not None:
        product = sparse_product(first.offset[None], second, offset)
        if product is None:
            return None
        offset = product[0]
    return Linear(weight, offset)
