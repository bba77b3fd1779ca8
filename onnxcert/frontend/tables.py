"""Values that a few whole inputs decide: indices, masks and whatever else is looked up.

Exporters write ``x[i : i + 1]`` for an input i as a cast to an integer and twenty nodes of integer
arithmetic. There is nothing to bound in those. They are evaluated for each combination of the
whole numbers that they come from, and what meets computed values in the end is a `Table`: one
tensor for each combination. Where it does, a table becomes a layer, a sum over combinations of an
indicator, which is one for that combination and zero for all others, times the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

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
        base: what most combinations have in common, in its ONNX shape.
        changes: for each combination flat positions, and what stands there instead; None and the
            whole tensor where it has another shape, as slices may be empty.
    """

    keys: Keys
    base: Array
    changes: tuple[tuple[IntArray | None, Array], ...]

    @classmethod
    def of(cls, keys: Keys, row: Callable[[int], Array]) -> Constant | Table:
        """Ask for the tensor of every combination; a constant where all are the same."""
        count = math.prod(key.count for key in keys)
        # What two of three combinations that are far from each other agree on is common.
        first, base, last = (row(count * part // 4) for part in (1, 2, 3))
        if first.shape == base.shape == last.shape:
            base = np.where(first == last, first, base)
        changes: list[tuple[IntArray | None, Array]] = []
        for number in range(count):
            array = row(number)
            if array.shape != base.shape:
                changes.append((None, array))
                continue
            positions = np.flatnonzero(array.ravel() != base.ravel())
            changes.append((positions, array.ravel()[positions]))
        if all(positions is not None and not len(positions) for positions, _ in changes):
            return Constant(base)
        return cls(keys, base, tuple(changes))

    @property
    def shape(self) -> Shape:
        """The ONNX shape that all tensors have.

        Raises:
            NoRule: there are several.
        """
        if any(positions is None for positions, _ in self.changes):
            raise NoRule("its shape depends on the input")
        return self.base.shape

    def row(self, number: int) -> Array:
        """The tensor of one combination."""
        positions, values = self.changes[number]
        if positions is None:
            return values
        made = self.base.copy()
        made.ravel()[positions] = values
        return made

    def entries(self) -> tuple[IntArray, IntArray, FloatArray]:
        """What is added to `base`: numbers of combinations, flat positions, and differences.

        Raises:
            NoRule: shapes differ, or a difference is no floating-point number.
        """
        assert self.shape == self.base.shape
        places = [positions for positions, _ in self.changes if positions is not None]
        numbers = np.repeat(np.arange(len(places)), [len(some) for some in places])
        positions = np.concatenate(places)
        values = np.concatenate([values for _, values in self.changes]).astype(np.float64)
        common = self.base.ravel()[positions].astype(np.float64)
        difference = values - common
        # What a difference rounds away, as two sums tell (Knuth).
        part = values - difference
        lost = (values - (difference + part)) + (part - common)
        if lost.any():
            raise NoRule("a table of numbers of very different size")
        return numbers, positions, difference


def common_keys(tables: Sequence[Table]) -> tuple[Keys, list[IntArray]]:
    """The keys of some tables together, and for each table its number by that of a combination.

    Raises:
        NoRule: there are too many combinations.
    """
    keys = tuple(dict.fromkeys(key for table in tables for key in table.keys))
    if math.prod(key.count for key in keys) > MOST_COMBINATIONS:
        raise NoRule(f"more than {MOST_COMBINATIONS} combinations of whole inputs")
    grid = np.indices([key.count for key in keys]).reshape(len(keys), -1)
    numbers = []
    for table in tables:
        own = [grid[keys.index(key)] for key in table.keys]
        numbers.append(np.ravel_multi_index(tuple(own), [key.count for key in table.keys]))
    return keys, numbers


def of_keys(keys: Keys, index: IntArray, values: Array) -> Constant | Table:
    """Whole numbers as a tensor: key ``index`` of an entry, or the value there where it is -1."""
    grid = list(product(*(range(key.low, key.high + 1) for key in keys)))

    def row(number: int) -> Array:
        return np.where(index >= 0, np.array(grid[number])[index], values)

    return Table.of(keys, row)
