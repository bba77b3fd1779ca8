"""Contract selections with each other and with the matrix before or behind them."""

from __future__ import annotations

import numpy as np

from onnxcert.arrays import Array
from onnxcert.graph import Graph
from onnxcert.ops import Linear, Select
from onnxcert.passes.base import contract_pairs


def fuse_selects(graph: Graph) -> Graph:
    """Contract; nothing is rounded.

    Ensures: the same function, with at most as many nodes and no larger matrix.
    """
    return contract_pairs(
        graph,
        {
            (Select, Select): _select_select,
            (Linear, Select): _linear_select,
            (Select, Linear): _select_linear,
        },
    )


def _pick(values: Array, index: Array) -> Array:
    """Entries (of the last axis) by position; zero for position -1."""
    return np.where(index >= 0, values[..., np.maximum(index, 0)], 0.0)


def _select_select(first: Select, second: Select) -> Select:
    outer = second.gather.index
    index = np.where(outer >= 0, first.gather.index[np.maximum(outer, 0)], -1)
    fill = second.fill
    if first.fill is not None:
        inner = _pick(first.fill, outer)
        fill = inner if fill is None else fill + inner
    made = Select.of(index, first.gather.size)
    return Select(made.gather, fill)


def _linear_select(first: Linear, second: Select) -> Linear | None:
    index = second.gather.index
    if first.rows != 1 or len(index) > first.output_size:
        return None
    offset = second.fill
    if first.offset is not None:
        inner = _pick(first.offset, index)
        offset = inner if offset is None else offset + inner
    return Linear(_pick(first.weight, index), offset)


def _select_linear(first: Select, second: Linear) -> Linear | None:
    """Only for selections without repetition: the rows are not added up."""
    index, size = first.gather.index, first.gather.size
    once = len(np.unique(index)) == len(index) and (index >= 0).all()
    if second.rows != 1 or first.fill is not None or not once or size > len(index):
        return None
    weight = np.zeros((size, second.weight.shape[1]))
    weight[index] = second.weight
    return Linear(weight, second.offset)
