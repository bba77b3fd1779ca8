"""What the passes share: contracting pairs of nodes, and sums that keep their digits.

A pass takes a graph and returns one that computes the same function of real numbers. Stored
numbers may be rounded once more: `Affine` charges four roundings more than it makes. That covers
a product, whose error is relative to itself. It does not cover a sum, which may cancel, so sums
are taken with compensation (Ogita, Rump, Oishi, *Accurate sum and dot product*, 2005) and only
where the result provably has all its digits; otherwise nothing is contracted.

The graph stays a topologically ordered tuple. A general graph library would do, but NetworkX
takes 80 ms to import, a third of the whole start, for passes that only look at neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from onnxcert.arrays import Array, FloatArray
from onnxcert.graph import Graph, Node
from onnxcert.ops import Operator, SparseLinear

Contract = Callable[[Any, Any], Operator | None]
"""From the operators of a node and its only consumer to one that does both, or None."""

_MOST_PRODUCTS = 1 << 24
"""Largest number of products in a compensated matrix product; one takes some 50 ns."""


def contract_pairs(graph: Graph, rules: Mapping[tuple[type, type], Contract]) -> Graph:
    """Replace a node and its only consumer by one node wherever a rule allows it.

    Ensures: the output keeps its name, and every contracted pair its second node's name.
    """
    nodes: dict[str, Node] = {}
    consumers = graph.consumers
    for node in graph.nodes:
        while len(node.inputs) == 1 and node.inputs[0] in nodes:
            first = nodes[node.inputs[0]]
            rule = rules.get((type(first.op), type(node.op)))
            # The output counts as one more consumer.
            if rule is None or consumers[first.name] != 1 or first.name == graph.output:
                break
            both = rule(first.op, node.op)
            if both is None:
                break
            del nodes[first.name]
            node = replace(node, op=both, inputs=first.inputs)  # noqa: PLW2901
        nodes[node.name] = node
    return replace(graph, nodes=tuple(nodes.values()))


def is_exact(*arrays: Array | None) -> bool:
    """Whether all numbers fit binary32: then they are numbers of the file, never rounded since."""
    with np.errstate(over="ignore"):
        return all(a is None or bool((a.astype(np.float32) == a).all()) for a in arrays)


def product_or_none(factor: FloatArray | None, other: FloatArray | None) -> FloatArray | None:
    """The product, where None stands for one."""
    if factor is None or other is None:
        return other if factor is None else factor
    return factor * other


def shifted(
    factor: FloatArray | None, inner: FloatArray | None, outer: FloatArray | None
) -> tuple[bool, FloatArray | None]:
    """``factor * inner + outer`` entry by entry; None stands for one, zero and zero.

    Returns:
        (whether every entry has all its digits, the result).
    """
    if inner is None or outer is None:
        return True, outer if inner is None else product_or_none(factor, inner)
    ones = np.ones_like(inner) if factor is None else factor
    product, low = _two_product(ones, inner)
    total, rest = _two_sum(product, outer)
    result = total + (low + rest)
    steady = np.abs(product) + np.abs(outer) <= 2.0 * np.abs(result)
    return bool((steady | (is_exact(factor, inner, outer))).all()), result


def matrix_product(
    first: FloatArray, second: FloatArray, offset: FloatArray | None = None
) -> FloatArray | None:
    """``first @ second + offset`` with every entry rounded about once.

    Args:
        first: (n, k).
        second: (k, m).
        offset: (m,) or None.

    Returns:
        (n, m), or None where the factors are rounded themselves, the work is too much, or an
        entry cancels so far that even the compensated sum has lost digits.
    """
    (rows, inner), columns = first.shape, second.shape[1]
    if rows * inner * columns > _MOST_PRODUCTS or not is_exact(first, second, offset):
        return None
    high = np.zeros((rows, columns)) if offset is None else np.tile(offset, (rows, 1))
    low = np.zeros((rows, columns))
    size = np.abs(high) + np.abs(first) @ np.abs(second)
    for k in range(inner):
        # The factors have 24 bits each, so the product is exact.
        high, rest = _two_sum(high, first[:, k : k + 1] * second[k])
        low += rest
    result = high + low
    doubt = (inner + 1) * 2.0**-100 * size > 2.0**-53 * np.abs(result)
    return None if (doubt & (low != 0.0)).any() else result


def sparse_product(
    first: FloatArray, second: SparseLinear, offset: FloatArray | None = None
) -> FloatArray | None:
    """As `matrix_product`, for a sparse second factor whose entries per column are few.

    Args:
        first: (n, k).
        second: k x m; its own offset is ignored.
        offset: (m,) or None.
    """
    (rows, _), columns = first.shape, second.shape[1]
    if not is_exact(first, second.values, offset):
        return None
    order = np.argsort(second.column, kind="stable")
    column, row, values = second.column[order], second.row[order], second.values[order]
    starts = np.searchsorted(column, np.arange(columns))
    rank = np.arange(len(column)) - starts[column]
    high = np.zeros((rows, columns)) if offset is None else np.tile(offset, (rows, 1))
    low, size = np.zeros((rows, columns)), np.abs(high)
    most = int(rank.max(initial=-1)) + 1
    for k in range(most):
        here = rank == k
        product = first[:, row[here]] * values[here]
        high[:, column[here]], rest = _two_sum(high[:, column[here]], product)
        low[:, column[here]] += rest
        size[:, column[here]] += np.abs(product)
    result = high + low
    doubt = (most + 1) * 2.0**-100 * size > 2.0**-53 * np.abs(result)
    return None if (doubt & (low != 0.0)).any() else result


def _two_sum(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The rounded sum and its error, exactly (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _two_product(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The rounded product and its error, exactly (Dekker, with Veltkamp's splitting)."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = _split(a), _split(b)
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error


def _split(a: FloatArray) -> tuple[FloatArray, FloatArray]:
    large = 134217729.0 * a
    high = large - (large - a)
    return high, a - high
