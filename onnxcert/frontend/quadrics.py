"""Quadratic comparisons of inputs that are ellipsoids with axes along the inputs.

VNN-LIB has multiplication, so a Euclidean ball can be written as a sum of squares. The readers
expand products, so it does not matter in which of its many forms it is. Ellipsoids cut the inputs;
all other comparisons with products are rows (`onnxcert.frontend.products`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from onnxcert.errors import UnsupportedSpec
from onnxcert.frontend.rows import Layout, place
from onnxcert.spec.ellipsoid import Ellipsoid
from onnxcert.spec.query import Query
from onnxcert.spec.tree import Atom, Variable


@dataclass(frozen=True)
class Quadric:
    """What a quadratic comparison leaves of the inputs.

    Attributes:
        ellipsoid: or None where that has shrunk to a point or to nothing.
        point: exact values of the inputs that it would bound; None unless it is a point.
    """

    ellipsoid: Ellipsoid | None
    point: dict[int, Fraction] | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing is left."""
        return self.ellipsoid is None and self.point is None


def is_quadric(atom: Atom, layout: Layout) -> bool:
    """Whether a comparison bounds a sum of squares of inputs, each with a positive weight."""
    terms = atom.polynomial.terms
    columns = [_column(variables, layout) for _, variables in terms]
    if atom.relation not in ("<=", "<") or atom.polynomial.is_linear or None in columns:
        return False
    squares = {v: c for (c, variables), v in zip(terms, columns, strict=True) if len(variables) > 1}
    return min(squares.values()) > 0 and squares.keys() >= set(columns)


def read_quadric(atom: Atom, layout: Layout, query: Query) -> Quadric:
    """Complete the squares of a comparison that `is_quadric`.

    Raises:
        UnsupportedSpec: its size is beyond float64.
    """
    squares: dict[int, Fraction] = {}
    linear: dict[int, Fraction] = {}
    for coefficient, variables in atom.polynomial.terms:
        part = squares if len(variables) > 1 else linear
        part[layout.position(variables[0])] = coefficient
    columns = tuple(sorted(squares))
    center = tuple(-linear.get(i, Fraction(0)) / (2 * squares[i]) for i in columns)
    square = -atom.polynomial.constant
    square += sum(squares[i] * c * c for i, c in zip(columns, center, strict=True))
    if square < 0 or (square == 0 and atom.relation == "<"):
        return Quadric(None)
    if square == 0:
        return Quadric(None, dict(zip(columns, center, strict=True)))
    ellipsoid = Ellipsoid(columns, tuple(squares[i] / square for i in columns), center)
    if not all(map(math.isfinite, ellipsoid.reach)):
        raise UnsupportedSpec("an ellipsoid is too large for float64", place=place(query, atom))
    return Quadric(ellipsoid)


def _column(variables: tuple[Variable, ...], layout: Layout) -> int | None:
    """The input whose first or second power a product is; None for other products."""
    first = variables[0]
    if len(variables) > 2 or variables[-1] != first or not layout.is_input[first.tensor]:
        return None
    return layout.position(first)
