"""Quadratic comparisons of inputs: ellipsoids with axes along the inputs, and nothing else.

VNN-LIB has multiplication, so a Euclidean ball can be written as a sum of squares. The readers
expand products, so it does not matter in which of its many forms it is. What is convex is
understood; the outside of a ball, spheres, cylinders of parabolas and products of different
variables are not.
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

_HELP = (
    "sums of squares of inputs with positive weights, at most a number, are understood: "
    "(<= (+ (* (- X[0] 0.5) (- X[0] 0.5)) ...) 0.01)"
)


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


def read_quadric(atom: Atom, layout: Layout, query: Query) -> Quadric:
    """Complete the squares of a comparison with products of variables.

    Raises:
        UnsupportedSpec: it is not a sum of squares of inputs that is at most a number, or its size
            is beyond float64.
    """
    squares: dict[int, Fraction] = {}
    linear: dict[int, Fraction] = {}
    for coefficient, variables in atom.polynomial.terms:
        column = _column(variables, layout)
        if column is None:
            product = "*".join(query.label(variable) for variable in variables)
            raise UnsupportedSpec(
                f"products of variables are not supported: {product}",
                place=place(query, atom),
                help=_HELP,
            )
        (squares if len(variables) == 2 else linear)[column] = coefficient
    if problem := _problem(atom, squares, linear):
        raise UnsupportedSpec(problem, place=place(query, atom), help=_HELP)
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


def _problem(atom: Atom, squares: dict[int, Fraction], linear: dict[int, Fraction]) -> str:
    """Why squares and linear terms are no ellipsoid; empty if they are."""
    if atom.relation not in ("<=", "<"):
        return f"squares of inputs are not supported in comparisons with {atom.relation}"
    if any(weight < 0 for weight in squares.values()):
        return "a comparison with squares is not convex: it bounds their sum from below"
    if not linear.keys() <= squares.keys():
        return "an input stands beside squares without a square of its own"
    return ""
