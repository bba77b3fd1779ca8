"""From the exact tree to batches of problems for the engine.

`onnxcert.frontend.walk` enumerates the disjuncts, this module packs them into arrays. Strict
comparisons of one input become closed bounds, and bounds and offsets are rounded outward: a problem
may have more solutions than the query, never fewer. ``Query.holds`` has the last word on every
candidate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from hashlib import sha256

import numpy as np

from onnxcert.arrays import FloatArray, IntArray
from onnxcert.errors import UnsupportedSpec
from onnxcert.frontend.products import find_products
from onnxcert.frontend.quadrics import is_quadric, read_quadric
from onnxcert.frontend.regions import Region, Sides
from onnxcert.frontend.rows import Layout, Row
from onnxcert.frontend.ties import find_ties, tied
from onnxcert.frontend.walk import Case, Walk
from onnxcert.spec.ellipsoid import Ellipsoid
from onnxcert.spec.problem import Problem
from onnxcert.spec.query import Query
from onnxcert.spec.tree import atoms

LARGEST_BATCH = 2000
"""Cases in one problem."""

LARGEST_ARRAYS = 2**26
"""Bytes of boxes and rows in one problem."""


@dataclass(frozen=True, eq=False)
class Lowered:
    """A query in the form the engine takes.

    Attributes:
        query: what was lowered; its comparisons read one input of those that are equal.
        layout: where its variables are in the flat vectors.
    """

    query: Query
    layout: Layout

    @property
    def n_inputs(self) -> int:
        """Length of the flat input vector."""
        return self.layout.n_inputs

    @property
    def n_outputs(self) -> int:
        """Length of the flat output vector: outputs, then hidden tensors."""
        return self.layout.n_outputs

    def limits(self, columns: IntArray) -> tuple[FloatArray, FloatArray]:
        """The least and the largest value of some inputs in any case, rounded outward.

        Raises:
            SpecError: a case leaves an input unbounded.
        """
        lower, upper = self._hull
        return lower[columns], upper[columns]

    @cached_property
    def _hull(self) -> tuple[FloatArray, FloatArray]:
        lower, upper = np.full(self.n_inputs, np.inf), np.full(self.n_inputs, -np.inf)
        for problem in self.cases:
            lower = np.minimum(lower, problem.lower.min(axis=0))
            upper = np.maximum(upper, problem.upper.max(axis=0))
        return lower, upper

    @property
    def cases(self) -> Iterator[Problem]:
        """A new pass over all problems, in batches; none when the query has no solution.

        Raises:
            SpecError: while it runs, when a case leaves an input unbounded.
        """
        batch = _Batch(self.layout)
        for number, case in enumerate(Walk(self.query, self.layout).cases()):
            batch.add(case, number)
            if batch.is_full:
                yield batch.problem()
                batch = _Batch(self.layout)
        if batch.cases:
            yield batch.problem()


def lower_query(query: Query) -> Lowered:
    """Prepare a query.

    Raises:
        UnsupportedSpec: it has too many products, an ellipsoid that float64 cannot hold, or
            coefficients that it cannot represent.
    """
    layout, ties = Layout.of(query), find_ties(query)
    query = tied(query, ties)
    places = {layout.position(v): layout.position(first) for v, first in ties.items()}
    layout = replace(layout, ties=places)
    for atom in atoms(query.assertions):
        if is_quadric(atom, layout):
            read_quadric(atom, layout, query)
    return Lowered(query, replace(layout, products=find_products(query, layout)))


def lower_plain(query: Query) -> Lowered:
    """As `lower_query`, of a query about one network none of whose inputs it asserts to be equal.

    Raises:
        UnsupportedSpec: it is about several, or ties inputs.
    """
    if len(query.networks) > 1:
        names = ", ".join(network.name for network in query.networks)
        cause = f"a question about several networks is not supported here: {names}"
        raise UnsupportedSpec(cause, place=query.source)
    lowered = lower_query(query)
    if lowered.layout.ties:
        cause = "inputs that are asserted to be equal are not supported here"
        raise UnsupportedSpec(cause, place=query.source)
    return lowered


class _Batch:
    """Cases on their way into one `Problem`; equal boxes and equal rows are stored once."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.regions: list[tuple[Region, Ellipsoid | None]] = []
        self.sides: list[Sides] = []
        self.boxes: dict[tuple[bytes, Ellipsoid | None], int] = {}
        self.rows: dict[Row, int] = {}
        self.touches_inputs = False
        self.cases: list[tuple[int, tuple[int, ...], int]] = []

    @property
    def is_full(self) -> bool:
        """Whether another case might be too much."""
        row_size = self.layout.n_columns + self.touches_inputs * self.layout.n_inputs
        cells = 4 * len(self.regions) * self.layout.n_inputs + len(self.rows) * row_size
        return len(self.cases) >= LARGEST_BATCH or 8 * cells >= LARGEST_ARRAYS

    def add(self, case: Case, number: int) -> None:
        """Put in a case with its running number."""
        all_rows = case.all_rows()
        self.touches_inputs |= any(row.inputs for row in all_rows)
        rows = tuple(self.rows.setdefault(row, len(self.rows)) for row in all_rows)
        self.cases.append((self._box(case.region, case.ellipsoid), rows, number))

    def _box(self, region: Region, ellipsoid: Ellipsoid | None) -> int:
        if self.regions and self.regions[-1][0] is region and self.regions[-1][1] is ellipsoid:
            return len(self.regions) - 1
        digest = sha256(b"".join(side.tobytes() for side in region.sides)).digest()
        number = self.boxes.setdefault((digest, ellipsoid), len(self.regions))
        if number == len(self.regions):
            self.regions.append((region, ellipsoid))
            self.sides.append(_cut(region.sides, ellipsoid))
        return number

    def problem(self) -> Problem:
        """The arrays."""
        width = max(len(rows) for _, rows, _ in self.cases)
        case_rows = np.full((len(self.cases), width), -1, np.int64)
        for k, (_, rows, _) in enumerate(self.cases):
            case_rows[k, : len(rows)] = rows
        inputs = [row.inputs for row in self.rows]
        sides = Sides(*map(np.stack, zip(*self.sides, strict=True)))
        for side in sides:  # nothing reads these
            side[:, list(self.layout.ties)] = 0.0
        return Problem(
            lower=sides.lower_floor,
            upper=sides.upper_ceil,
            output_rows=_dense([row.outputs for row in self.rows], self.layout.n_columns),
            input_rows=_dense(inputs, self.layout.n_inputs) if self.touches_inputs else None,
            offset=np.array([row.offset for row in self.rows]),
            strict=np.array([row.strict for row in self.rows], np.bool_),
            case_box=np.array([box for box, _, _ in self.cases]),
            case_rows=case_rows,
            case_disjunct=np.array([number for _, _, number in self.cases]),
            inner_lower=sides.lower_ceil,
            inner_upper=sides.upper_floor,
            exact_bounds=self._exact_bounds,
            ellipsoids=tuple(ellipsoid for _, ellipsoid in self.regions),
        )

    def _exact_bounds(self, box: int, column: int) -> tuple[Fraction, Fraction]:
        region, ellipsoid = self.regions[box]
        lower, upper = region.limits(column)
        if ellipsoid is not None and column in ellipsoid.columns:
            # Roots are no fractions; what is closest to the centre is inside if anything is.
            nearest = ellipsoid.center[ellipsoid.columns.index(column)]
            nearest = nearest if lower is None else max(lower, nearest)
            nearest = nearest if upper is None else min(upper, nearest)
            return nearest, nearest
        assert lower is not None  # unbounded inputs were refused
        assert upper is not None
        return lower, upper


def _cut(sides: Sides, ellipsoid: Ellipsoid | None) -> Sides:
    """Neighbours of the bounds of the part of a box in an ellipsoid."""
    if ellipsoid is None:
        return sides
    theirs = Sides(*ellipsoid.box(len(sides.lower_floor)))
    return Sides(*np.maximum(sides[:2], theirs[:2]), *np.minimum(sides[2:], theirs[2:]))


def _dense(rows: Sequence[tuple[tuple[int, float], ...]], width: int) -> FloatArray:
    matrix = np.zeros((len(rows), width))
    for number, row in enumerate(rows):
        for column, coefficient in row:
            matrix[number, column] = coefficient
    return matrix
