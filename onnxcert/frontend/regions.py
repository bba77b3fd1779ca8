"""Input boxes with exact bounds, intersected as floating-point arrays.

A bound v is kept as its two binary64 neighbours ``floor(v) <= v <= ceil(v)``. Both commute with
maximum and minimum, so intersecting boxes is exact on arrays. Only emptiness can need the decimals
themselves: when lower and upper bound fall between the same two doubles, and they are then looked
up in the pieces that the box was made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, Protocol

import numpy as np

from onnxcert.arrays import BoolArray, FloatArray, IntArray
from onnxcert.spec.boxes import BoxUnion
from onnxcert.spec.decimals import next_up, round_down, round_up

Limits = tuple[Fraction | None, Fraction | None]


class Sides(NamedTuple):
    """(c,) neighbours of the lower and of the upper bounds."""

    lower_floor: FloatArray
    lower_ceil: FloatArray
    upper_floor: FloatArray
    upper_ceil: FloatArray

    def at(self, columns: IntArray) -> Sides:
        """The sides of some columns."""
        return Sides(*(side[columns] for side in self))


_TIGHTER = (np.maximum, np.maximum, np.minimum, np.minimum)
"""What the sides of two boxes are in both of them."""


class Limited(Protocol):
    """Exact bounds on some of the inputs."""

    def limits(self, column: int) -> Limits:
        """The exact bounds of an input of the flat vector."""


class Piece(Limited, Protocol):
    """Bounds on some of the inputs that contain at least one point."""

    @property
    def columns(self) -> IntArray:
        """(c,) which inputs, of the flat input vector."""

    @property
    def sides(self) -> Sides:
        """Their bounds."""


@dataclass(frozen=True, eq=False)
class Disjunct:
    """One box of a union."""

    union: BoxUnion
    number: int
    columns: IntArray

    @property
    def sides(self) -> Sides:
        """Neighbours of the bounds, (c,) each."""
        lower, upper = self.union.lower, self.union.upper
        floors = lower.floor[self.number], upper.floor[self.number]
        lower_ceil = next_up(floors[0], lower.inexact[self.number])
        upper_ceil = next_up(floors[1], upper.inexact[self.number])
        return Sides(floors[0], lower_ceil, floors[1], upper_ceil)

    def limits(self, column: int) -> Limits:
        """The exact bounds of an input."""
        where = np.flatnonzero(self.columns == column)
        return self.union.exact_bounds(self.number, int(where[0])) if len(where) else (None, None)


@dataclass(frozen=True, eq=False)
class Conditions:
    """Bounds from comparisons of one input with a number, by position in the flat vector."""

    bounds: Mapping[int, Limits]

    @property
    def columns(self) -> IntArray:
        """Which inputs."""
        return np.fromiter(self.bounds, np.int64, len(self.bounds))

    @property
    def sides(self) -> Sides:
        """Neighbours of the bounds, (c,) each."""
        count = len(self.bounds)
        sides = Sides(*(np.full(count, sign * np.inf) for sign in (-1, -1, 1, 1)))
        for position, (low, high) in enumerate(self.bounds.values()):
            if low is not None:
                sides.lower_floor[position] = round_down(low)
                sides.lower_ceil[position] = round_up(low)
            if high is not None:
                sides.upper_floor[position] = round_down(high)
                sides.upper_ceil[position] = round_up(high)
        return sides

    def limits(self, column: int) -> Limits:
        """The exact bounds of an input."""
        return self.bounds.get(column, (None, None))


@dataclass(frozen=True, eq=False)
class Equal:
    """What a region says of the inputs that some of its inputs equal.

    Attributes:
        region: the region.
        others: input -> those that it equals.
    """

    region: Region
    others: Mapping[int, Sequence[int]]

    def limits(self, column: int) -> Limits:
        """The exact bounds of an input."""
        return _tightest([self.region.limits(other) for other in self.others.get(column, ())])


@dataclass(frozen=True, eq=False)
class Region:
    """A box that is known to contain a point: a piece cut out of another region.

    Attributes:
        sides: (n,) neighbours of the bounds; ``lower_floor`` and ``upper_ceil`` enclose the box.
        piece: the last cut; ``None`` for all of the space.
        parent: what was cut; shared by all branches that go on from there.
    """

    sides: Sides
    piece: Limited | None = None
    parent: Region | None = None

    @classmethod
    def everything(cls, size: int) -> Region:
        """All of the space."""
        low, high = np.full(size, -np.inf), np.full(size, np.inf)
        return cls(Sides(low, low, high, high))

    def intersect(self, piece: Piece) -> Region | None:
        """The points in both, or ``None`` if there are none."""
        columns, theirs = piece.columns, piece.sides
        mine = self.sides.at(columns)
        if _contains(theirs, mine).all():
            return self
        both = Sides(*(f(a, b) for f, a, b in zip(_TIGHTER, mine, theirs, strict=True)))
        if (both.lower_floor > both.upper_ceil).any():
            return None
        sides = Sides(*(side.copy() for side in self.sides))
        for whole, part in zip(sides, both, strict=True):
            whole[columns] = part
        region = Region(sides, piece, self)
        unsure = both.lower_ceil > both.upper_floor
        if unsure.any():
            # Inputs that are bounded by one side alone are not empty, for neither side is.
            unsure &= ~(_contains(mine, theirs) | _contains(theirs, mine))
            if any(region.is_empty_at(int(column)) for column in columns[unsure]):
                return None
        return region

    def tied(self, ties: Mapping[int, int]) -> Region | None:
        """The points at which inputs equal others; ``None`` if there are none.

        Only the others get bounds of those that equal them.

        Args:
            ties: input -> the other, which is none of the inputs.
        """
        columns, firsts = np.array(list(ties)), np.array(list(ties.values()))
        sides = Sides(*(side.copy() for side in self.sides))
        for side, tighter in zip(sides, _TIGHTER, strict=True):
            tighter.at(side, firsts, side[columns])
        others: dict[int, list[int]] = {}
        for column, first in ties.items():
            others.setdefault(first, []).append(column)
        region = Region(sides, Equal(self, others), self)
        unsure = np.unique(firsts[sides.lower_ceil[firsts] > sides.upper_floor[firsts]])
        return None if any(region.is_empty_at(int(column)) for column in unsure) else region

    def is_empty_at(self, column: int) -> bool:
        """Whether no value is left for an input, in exact arithmetic."""
        lower, upper = self.limits(column)
        return lower is not None and upper is not None and lower > upper

    def limits(self, column: int) -> Limits:
        """The exact bounds of an input: the tightest of all cuts."""
        found: list[Limits] = []
        region: Region | None = self
        while region is not None and region.piece is not None:
            found.append(region.piece.limits(column))
            region = region.parent
        return _tightest(found)


def _tightest(limits: Sequence[Limits]) -> Limits:
    """What all bounds of an input leave of it."""
    lower = [low for low, _ in limits if low is not None]
    upper = [high for _, high in limits if high is not None]
    return max(lower, default=None), min(upper, default=None)


def _contains(outer: Sides, inner: Sides) -> BoolArray:
    """Where the outer bounds are no tighter than the inner ones, exactly."""
    below: BoolArray = outer.lower_ceil <= inner.lower_floor
    return below & (outer.upper_floor >= inner.upper_ceil)
