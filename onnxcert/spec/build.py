"""Specifications made in code: boxes and balls round a point, and linear unsafe sets.

A Euclidean ball is a box that touches it and a sum of squares.

The number of outputs belongs to the model, which is not known yet, so these functions return a
`Specification` that becomes a `Query` once the shapes are there. All are frozen; ``unsafe`` returns
a new one. Floats mean exactly the binary number they are: write ``Fraction(1, 255)`` or
``Decimal("0.1")`` for a radius that no float has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from onnxcert.arrays import FloatArray, IntArray
from onnxcert.errors import UsageError
from onnxcert.spec.boxes import BoxUnion
from onnxcert.spec.decimals import Decimals, round_down
from onnxcert.spec.query import Query
from onnxcert.spec.tree import And, Atom, Formula, Network, Or, Polynomial, Tensor, Term, Variable

Number: TypeAlias = float | Fraction | Decimal
LinearRow: TypeAlias = tuple[tuple[tuple[int, Fraction], ...], Fraction]
"""Non-zero coefficients by output, and the bound of their sum."""

NETWORK = "N"
_ONE = Fraction(1)


class Squares(NamedTuple):
    """``sum_i weights[i] (x_i - center[i])^2 <= limit``; inputs with a weight of zero are free."""

    weights: tuple[Fraction, ...]
    center: tuple[Fraction, ...]
    limit: Fraction


@dataclass(frozen=True)
class Specification:
    """A box of inputs, and what would be a violation: any of the unsafe sets.

    Attributes:
        lower: bounds of the flat input, exact.
        upper: likewise.
        label: if given, it is a violation when another output reaches that of the label.
        unsafe_sets: conjunctions of rows over the flat output.
        n_outputs: how many outputs those rows were written for; None without rows.
        squares: the inputs lie in an ellipsoid as well; None if they fill the box.
    """

    lower: tuple[Fraction, ...]
    upper: tuple[Fraction, ...]
    label: int | None = None
    unsafe_sets: tuple[tuple[LinearRow, ...], ...] = ()
    n_outputs: int | None = None
    squares: Squares | None = None

    def limits(self, columns: IntArray) -> tuple[FloatArray, FloatArray]:
        """The least and the largest value of some inputs, rounded outward."""
        lower = np.array([round_down(self.lower[i]) for i in columns])
        return lower, -np.array([round_down(-self.upper[i]) for i in columns])

    def unsafe(self, rows: ArrayLike | Sequence[Sequence[Number]], bounds: Any) -> Specification:
        """Add the unsafe set ``rows @ Y <= bounds``; several calls are alternatives.

        Args:
            rows: (R, n_out) coefficients; a single row may be (n_out,).
            bounds: (R,) or a number for a single row.

        Raises:
            UsageError: shapes that do not fit, or values that are no finite numbers.
        """
        table, limits = np.array(rows, dtype=object), np.array(bounds, dtype=object).ravel()
        table = table.reshape(1, -1) if table.ndim == 1 else table
        if table.ndim != 2 or len(table) != len(limits):
            raise UsageError(
                f"rows of shape {table.shape} and {len(limits)} bounds do not fit together"
            )
        exact = tuple(
            (tuple((j, exact_number(c)) for j, c in enumerate(row) if c), exact_number(limit))
            for row, limit in zip(table, limits, strict=True)
        )
        if self.n_outputs not in (None, table.shape[1]):
            raise UsageError(
                f"rows of {table.shape[1]} coefficients after rows of {self.n_outputs}"
            )
        return replace(self, unsafe_sets=(*self.unsafe_sets, exact), n_outputs=int(table.shape[1]))

    def to_query(
        self, input_shapes: Sequence[Sequence[int]], output_shapes: Sequence[Sequence[int]]
    ) -> Query:
        """The query for a model with these shapes; element type ``real``.

        Raises:
            UsageError: the model has another number of inputs or too few outputs.
        """
        inputs = _tensors("X", "input", input_shapes)
        outputs = _tensors("Y", "output", output_shapes)
        n_inputs = sum(tensor.size for tensor in inputs)
        if n_inputs != len(self.lower):
            raise UsageError(
                f"the specification has {len(self.lower)} inputs, the model has {n_inputs}"
            )
        assertions: list[Formula] = [self._box(inputs), *self._ellipsoid(inputs)]
        sets = [
            *self._misclassified(_flat(outputs, len(inputs))),
            *self._sets(outputs, len(inputs)),
        ]
        if sets or self.label is not None:
            assertions.append(Or(tuple(sets)))
        network = Network(NETWORK, inputs, (), outputs)
        return Query("2.0", (network,), tuple(assertions), "<built in code>")

    def _box(self, inputs: Sequence[Tensor]) -> BoxUnion:
        columns = np.array(_flat(inputs, 0), dtype=np.int64).reshape(-1, 2)
        lower = Decimals.from_fractions(self.lower).reshape(1, -1)
        upper = Decimals.from_fractions(self.upper).reshape(1, -1)
        return BoxUnion.build(columns, lower, upper, ((),))

    def _ellipsoid(self, inputs: Sequence[Tensor]) -> list[Formula]:
        if self.squares is None:
            return []
        terms: list[Term] = []
        constant = -self.squares.limit
        parts = zip(_flat(inputs, 0), self.squares.weights, self.squares.center, strict=True)
        for variable, weight, center in parts:
            if weight:
                terms.append(Term(weight, (variable, variable)))
                constant += weight * center * center
            if weight and center:
                terms.append(Term(-2 * weight * center, (variable,)))
        return [Atom(Polynomial(tuple(terms), constant), "<=")]

    def _misclassified(self, outputs: Sequence[Variable]) -> list[Formula]:
        if self.label is None:
            return []
        if not 0 <= self.label < len(outputs):
            raise UsageError(f"label {self.label} is not among the {len(outputs)} outputs")
        label = outputs[self.label]
        return [
            Atom(_linear([(label, _ONE), (other, -_ONE)], Fraction(0)), "<=")
            for other in outputs
            if other != label
        ]

    def _sets(self, outputs: Sequence[Tensor], first: int) -> list[Formula]:
        variables = _flat(outputs, first)
        if self.n_outputs not in (None, len(variables)):
            raise UsageError(
                f"the rows have {self.n_outputs} coefficients, the model {len(variables)} outputs"
            )
        return [
            And(
                tuple(
                    Atom(_linear([(variables[j], c) for j, c in terms], -bound), "<=")
                    for terms, bound in rows
                )
            )
            for rows in self.unsafe_sets
        ]


def box(lower: ArrayLike | Sequence[Number], upper: ArrayLike | Sequence[Number]) -> Specification:
    """All inputs with ``lower <= x <= upper``; add what is unsafe with ``unsafe``.

    Args:
        lower: any shape with one number per input of the model, all inputs in order.
        upper: likewise.

    Raises:
        UsageError: the sizes differ, a bound is no finite number, or the box is empty.
    """
    low, high = _exact_vector(lower), _exact_vector(upper)
    if len(low) != len(high):
        raise UsageError(f"{len(low)} lower and {len(high)} upper bounds")
    for position, (a, b) in enumerate(zip(low, high, strict=True)):
        if a > b:
            raise UsageError(f"the box is empty: lower bound {position} is above the upper one")
    return Specification(low, high)


def linf_ball(
    x: ArrayLike | Sequence[Number],
    eps: Number,
    *,
    label: int | None = None,
    domain: tuple[Number, Number] | None = None,
) -> Specification:
    """All inputs that differ from ``x`` by at most ``eps`` in every coordinate.

    Args:
        x: any shape with one number per input of the model.
        eps: radius, at least 0.
        label: the output that must stay above all others; ``None`` leaves outputs free.
        domain: smallest and largest value an input can have, such as ``(0, 1)`` for images.

    Raises:
        UsageError: something is no finite number, ``eps`` is negative, or nothing is left of the
            ball in the domain.
    """
    centre, radius = _exact_vector(x), exact_number(eps)
    if radius < 0:
        raise UsageError(f"the radius is negative: {eps}")
    lower, upper = [c - radius for c in centre], [c + radius for c in centre]
    if domain is not None:
        low, high = exact_number(domain[0]), exact_number(domain[1])
        lower, upper = [max(v, low) for v in lower], [min(v, high) for v in upper]
        for position, (a, b) in enumerate(zip(lower, upper, strict=True)):
            if a > b:
                why = f"input {position} has no value within {eps} in [{domain[0]}, {domain[1]}]"
                raise UsageError("nothing is left of the ball in the domain", help=why)
    return replace(box(lower, upper), label=label)


def l2_ball(
    x: ArrayLike | Sequence[Number],
    eps: Number,
    *,
    label: int | None = None,
    domain: tuple[Number, Number] | None = None,
) -> Specification:
    """All inputs at a Euclidean distance of at most ``eps`` from ``x``; else as `linf_ball`.

    Raises:
        UsageError: as there.
    """
    inputs = linf_ball(x, eps, label=label, domain=domain)
    centre, radius = _exact_vector(x), exact_number(eps)
    return replace(inputs, squares=Squares((_ONE,) * len(centre), centre, radius * radius))


def exact_number(value: Any) -> Fraction:
    """The exact value of a number.

    Raises:
        UsageError: it is no finite number.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction | Decimal):
        raise UsageError(f"not a number: {value!r}")
    if not math.isfinite(value):
        raise UsageError(f"not a finite number: {value!r}")
    return Fraction(value)


def _exact_vector(values: Any) -> tuple[Fraction, ...]:
    return tuple(exact_number(value) for value in np.array(values, dtype=object).ravel())


def _tensors(name: str, kind: Any, shapes: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
    """``X``, or ``X0, X1, ...`` when there are several."""
    names = [name] if len(shapes) == 1 else [f"{name}{i}" for i in range(len(shapes))]
    return tuple(
        Tensor(NETWORK, text, kind, "real", tuple(shape))
        for text, shape in zip(names, shapes, strict=True)
    )


def _flat(tensors: Sequence[Tensor], first: int) -> list[Variable]:
    """All elements; ``first`` is the position of the first tensor in the query."""
    return [Variable(first + t, i) for t, tensor in enumerate(tensors) for i in range(tensor.size)]


def _linear(terms: Sequence[tuple[Variable, Fraction]], constant: Fraction) -> Polynomial:
    return Polynomial(tuple(Term(c, (variable,)) for variable, c in terms), constant)
