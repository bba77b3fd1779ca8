"""Values that a few whole inputs decide: indices, masks and whatever else is looked up.

Exporters write ``x[i : i + 1]`` for an input i as a cast to an integer and twenty nodes of integer
arithmetic. There is nothing to bound in those. They are evaluated for each combination of the
whole numbers that they come from, and what meets computed values in the end is a `Table`: one
tensor for each combination. Where it does, a table becomes a layer, a sum over combinations of an
indicator, which is one for that combination and zero for all others, times the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from onnxcert.arrays import Array, FloatArray, IntArray
from onnxcert.frontend.tensors import Constant, NoRule, Shape

MOST_COMBINATIONS = 1 << 14
"""Of the whole numbers that decide one tensor."""


@dataclass(frozen=True)
class Key:
    """A whole number that is computed: an entry of a vector of the graph, between two limits."""

    source: str
    position: int
    low: int
    high: int

    @property
    def count(self) -> int:
        """How many values it may have."""
        return self.high - self.low + 1


Keys = tuple[Key, ...]


@dataclass(frozen=True, eq=False)
class Table:
    """A tensor for each combination of some whole numbers, all of one element type.

    Attributes:
        keys: the last one counts fastest.
        rows: the different tensors; shapes may differ, as slices may be empty.
        number: of each combination's tensor among them.
    """

    keys: Keys
    rows: tuple[Array, ...]
    number: IntArray

    @classmethod
    def of(cls, keys: Keys, rows: Iterable[Array]) -> Constant | Table:
        """From the tensors of all combinations; a constant where all are the same."""
        known: dict[tuple[Shape, bytes], int] = {}
        different, number = list[Array](), list[int]()
        for row in rows:
            name = row.shape, row.tobytes()
            if name not in known:
                known[name] = len(different)
                different.append(row)
            number.append(known[name])
        if len(different) == 1:
            return Constant(different[0])
        return cls(keys, tuple(different), np.array(number))

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type."""
        return self.rows[0].dtype

    @property
    def shape(self) -> Shape:
        """The ONNX shape that all tensors have.

        Raises:
            NoRule: there are several.
        """
        if len({row.shape for row in self.rows}) > 1:
            raise NoRule("its shape depends on the input")
        return self.rows[0].shape

    def entries(self) -> Entries:
        """What most combinations have in common, and what others have instead of that.

        Raises:
            NoRule: shapes differ, or a difference is no floating-point number.
        """
        assert self.shape == self.rows[0].shape
        rows = np.stack([row.ravel() for row in self.rows]).astype(np.float64)
        counts = np.bincount(self.number)
        base = rows[counts.argmax()]
        if 2 * counts.max() <= len(self.number):  # what two of three agree on
            first, second, third = rows[self.number[len(self.number) * np.arange(1, 4) // 4]]
            base = np.where(first == third, first, second)
        difference = rows - base
        # What a difference rounds away, as two sums tell (Knuth).
        part = rows - difference
        if ((rows - (difference + part)) + (part - base)).any():
            raise NoRule("a table of numbers of very different size")
        changed = [np.flatnonzero(row) for row in difference]
        sizes = np.array([len(changed[k]) for k in self.number])
        position = np.concatenate([changed[k] for k in self.number])
        combination = np.repeat(np.arange(len(sizes)), sizes)
        return Entries(base, combination, position, difference[self.number[combination], position])


class Entries(NamedTuple):
    """A table as a sum.

    Attributes:
        base: (n,), flat.
        combination, position, difference: (e,) what is added to it where a combination is met.
    """

    base: FloatArray
    combination: IntArray
    position: IntArray
    difference: FloatArray


def evaluate(tables: Sequence[Table], node: Callable[[Sequence[Array]], Array]) -> Constant | Table:
    """What a node makes of one row of each table, for each combination of all keys.

    Raises:
        NoRule: there are too many combinations.
    """
    keys = tuple(dict.fromkeys(key for table in tables for key in table.keys))
    if math.prod(key.count for key in keys) > MOST_COMBINATIONS:
        raise NoRule(f"more than {MOST_COMBINATIONS} combinations of whole inputs")
    grid = np.indices([key.count for key in keys]).reshape(len(keys), -1)
    numbers = []
    for table in tables:
        own = tuple(grid[keys.index(key)] for key in table.keys)
        counts = [key.count for key in table.keys]
        numbers.append(table.number[np.ravel_multi_index(own, counts)])
    different, place = np.unique(np.stack(numbers), axis=1, return_inverse=True)
    made = [
        node([table.rows[k] for table, k in zip(tables, column, strict=True)])
        for column in different.T
    ]
    return Table.of(keys, (made[k] for k in place.ravel()))


def of_keys(keys: Keys, index: IntArray, values: Array) -> Constant | Table:
    """Whole numbers as a tensor: key ``index`` of an entry, or the value there where it is -1."""
    grid = product(*(range(key.low, key.high + 1) for key in keys))
    return Table.of(keys, (np.where(index >= 0, np.array(row)[index], values) for row in grid))
