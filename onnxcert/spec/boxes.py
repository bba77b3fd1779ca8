"""The one formula that is stored as arrays: an ``or`` of boxes, each with a few comparisons.

Almost all of the volume of real specifications has this shape: the input region of every image
query is one box, and the nn4sys queries are 11,000 boxes of 308 inputs each (108 MB of text). As a
tree of `Atom` objects the latter takes gigabytes; here it is two decimals per input and disjunct.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from onnxcert.arrays import BoolArray, FloatArray, IntArray
from onnxcert.spec.decimals import Decimals
from onnxcert.spec.tree import Atom, Variable


@dataclass(frozen=True, eq=False)
class BoxUnion:
    """``or over k: (lower[k] <= columns <= upper[k]) and all of atoms[k]``.

    Attributes:
        columns: (c, 2) tensor and index of the variables that have bounds, all inputs.
        lower: (N, c) exact; -inf where there is none.
        upper: (N, c) exact; inf where there is none.
        atoms: N conjunctions of further comparisons, over any variables.
        empty: (N,) boxes that contain no point at all; found exactly.
    """

    columns: IntArray
    lower: Decimals
    upper: Decimals
    atoms: tuple[tuple[Atom, ...], ...]
    empty: BoolArray

    @classmethod
    def build(
        cls,
        columns: IntArray,
        lower: Decimals,
        upper: Decimals,
        atoms: tuple[tuple[Atom, ...], ...],
    ) -> BoxUnion:
        """Find the empty boxes and put the parts together."""
        return cls(columns, lower, upper, atoms, _find_empty(lower, upper))

    def __len__(self) -> int:
        """Number of disjuncts."""
        return len(self.atoms)

    def variable(self, column: int) -> Variable:
        """The variable of a column."""
        tensor, index = self.columns[column]
        return Variable(int(tensor), int(index))

    def exact_bounds(self, disjunct: int, column: int) -> tuple[Fraction | None, Fraction | None]:
        """Lower and upper bound as written; ``None`` where there is none."""
        return self.lower.exact((disjunct, column)), self.upper.exact((disjunct, column))

    def holds(
        self, point: FloatArray, rounded: BoolArray, value_of: Callable[[Variable], Fraction]
    ) -> bool:
        """Whether a point satisfies a disjunct, exactly.

        Args:
            point: (c,) float64 values of the columns.
            rounded: (c,) where the exact value is no double, so that `value_of` must be asked.
            value_of: exact values, for the further comparisons.
        """
        # A double x is at least the decimal v exactly when it is at least ceil(v): no tolerance.
        inside = (point >= self.lower.ceil) & (point <= self.upper.floor)
        chosen = np.flatnonzero((inside | rounded).all(axis=1)).tolist()
        columns = np.flatnonzero(rounded).tolist()
        return any(
            all(self._contains(k, column, value_of) for column in columns)
            and all(atom.holds(value_of) for atom in self.atoms[k])
            for k in chosen
        )

    def _contains(
        self, disjunct: int, column: int, value_of: Callable[[Variable], Fraction]
    ) -> bool:
        lower, upper = self.exact_bounds(disjunct, column)
        value = value_of(self.variable(column))
        return (lower is None or lower <= value) and (upper is None or value <= upper)


def _find_empty(lower: Decimals, upper: Decimals) -> BoolArray:
    """(N,) where lower > upper for some column, in exact arithmetic."""
    empty = np.asarray((lower.floor > upper.ceil).any(axis=1))
    # Unless a double separates the two, they may still be equal or in either order.
    same = (lower.mantissa == upper.mantissa) & (lower.scale == upper.scale)
    unsure = (lower.ceil > upper.floor) & ~(same & _fits(lower) & _fits(upper))
    for position in np.argwhere(unsure & ~empty[:, None]):
        bounds = lower.exact(tuple(position)), upper.exact(tuple(position))
        if bounds[0] is not None and bounds[1] is not None and bounds[0] > bounds[1]:
            empty[position[0]] = True
    return empty


def _fits(values: Decimals) -> BoolArray:
    fits = np.ones(values.shape, dtype=np.bool_)
    fits.ravel()[list(values.exceptions)] = False
    return fits
