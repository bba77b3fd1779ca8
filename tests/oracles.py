"""What is true, found by means that share no code with the engine.

Values are computed with ``fractions.Fraction``, so that a claim may be compared without any
tolerance: a bound too high by one rounding fails. Smooth curves are evaluated with fifty decimal
digits. Tiny networks are decided by enumerating all activation patterns with a linear program each.
"""

from __future__ import annotations

import decimal
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

import numpy as np
from scipy.optimize import linprog

from onnxcert.graph import Graph
from onnxcert.ops import (
    Absolute,
    Affine,
    Bivariate,
    Cos,
    Elementwise,
    Exp,
    Floor,
    LeakyRelu,
    Multiply,
    Operator,
    PiecewiseLinear,
    Power,
    Reciprocal,
    Relu,
    Sigmoid,
    Sign,
    Sin,
    Tanh,
)
from onnxcert.search.candidates import Confirm
from onnxcert.spec import Problem
from onnxcert.verdict import Counterexample

Vector = list[Fraction]

_CONTEXT = decimal.Context(prec=50)
_SATURATED = 100
"""Beyond this, exp(-2 |x|) is below 1e-86, and the curves are at their asymptotes."""

_BEYOND = 2000
"""Its exponential is beyond all numbers of float64, and that of less than minus it below them."""

_NOTHING = decimal.Decimal("1e-58")


def _arctan_of_inverse(n: int) -> Fraction:
    """By its series, to a hundred digits."""
    return sum(
        (Fraction((-1) ** k, (2 * k + 1) * n ** (2 * k + 1)) for k in range(80)), Fraction(0)
    )


_PI = 16 * _arctan_of_inverse(5) - 4 * _arctan_of_inverse(239)
"""Machin's formula."""


def exact(values: Iterable[float]) -> Vector:
    """Floats as the rationals they are."""
    return [Fraction(float(value)) for value in values]


def matrices(op: Affine) -> list[np.ndarray]:
    """The matrices A_i of y = sum_i A_i x_i + b, (m, n_i) each.

    A product of a unit row with a matrix involves no rounding, so the entries are exact; that they
    are the right ones is tested against definitions of each operator.
    """
    return op.transpose(np.eye(op.output_size))


def extended(values: Iterable[float]) -> list[Fraction | float]:
    """As `exact`, but infinity stays what it is; rationals compare with it."""
    return [Fraction(float(value)) if np.isfinite(value) else float(value) for value in values]


def exact_affine(op: Affine, inputs: Sequence[Vector]) -> Vector:
    """A x + b over the rationals."""
    result = [Fraction(0)] * op.output_size if op.bias is None else exact(op.bias)
    for matrix, x in zip(matrices(op), inputs, strict=True):
        for i, j in np.argwhere(matrix):
            result[i] += Fraction(float(matrix[i, j])) * x[j]
    return result


def exact_curve(op: Elementwise, x: Vector) -> Vector:
    """f(x) entry by entry; smooth curves to fifty digits."""
    if isinstance(op, LeakyRelu):
        slopes = np.broadcast_to(op.slope, (len(x),))
        return [v if v >= 0 else v * Fraction(float(s)) for v, s in zip(x, slopes, strict=True)]
    if isinstance(op, Power):
        return [value**op.exponent for value in x]
    if isinstance(op, PiecewiseLinear):
        parts = (op.weight, op.factor, op.shift)
        tables = [np.broadcast_to(part, (len(x), op.terms)) for part in parts]
        offset = np.broadcast_to(op.offset, (len(x),))
        return [
            Fraction(float(c))
            + sum(
                w * max(s * value + t, Fraction(0))
                for w, s, t in zip(*map(exact, row), strict=True)
            )
            for value, c, *row in zip(x, offset, *tables, strict=True)
        ]
    return [_CURVES[type(op)](value) for value in x]


def _tanh(x: Fraction) -> Fraction:
    if abs(x) > _SATURATED:
        return Fraction(1 if x > 0 else -1)
    with decimal.localcontext(_CONTEXT):
        power = (2 * decimal.Decimal(x.numerator) / decimal.Decimal(x.denominator)).exp()
        return Fraction((power - 1) / (power + 1)) if x else Fraction(0)


def _sigmoid(x: Fraction) -> Fraction:
    return (1 + _tanh(x / 2)) / 2


def _exp(x: Fraction) -> Fraction:
    """To fifty digits; beyond any number of float64 it only is beyond them."""
    if x < -_BEYOND:
        return Fraction(0)
    with decimal.localcontext(_CONTEXT):
        x = min(x, Fraction(_BEYOND))
        return Fraction((decimal.Decimal(x.numerator) / decimal.Decimal(x.denominator)).exp())


def _sin(x: Fraction) -> Fraction:
    """By the Taylor series, after halves of turns are taken off; fifty digits behind the point."""
    turns = round(x / _PI)
    with decimal.localcontext(_CONTEXT, prec=60):
        rest = x - turns * _PI
        term = decimal.Decimal(rest.numerator) / decimal.Decimal(rest.denominator)
        square, total, n = term * term, decimal.Decimal(0), 1
        while abs(term) > _NOTHING:
            total += term
            term = -term * square / ((n + 1) * (n + 2))
            n += 2
    return -Fraction(total) if turns % 2 else Fraction(total)


def _cos(x: Fraction) -> Fraction:
    return _sin(x + _PI / 2)


def _sign(x: Fraction) -> Fraction:
    return Fraction((x > 0) - (x < 0))


_CURVES: dict[type[Elementwise], Callable[[Fraction], Fraction]] = {
    Relu: lambda x: max(x, Fraction(0)),
    Absolute: abs,
    Sign: _sign,
    Floor: lambda x: Fraction(math.floor(x)),
    Sigmoid: _sigmoid,
    Tanh: _tanh,
    Reciprocal: lambda x: 1 / x,
    Exp: _exp,
    Sin: _sin,
    Cos: _cos,
}


def exact_operator(op: Operator, inputs: Sequence[Vector]) -> Vector:
    """Any operator over the rationals."""
    if isinstance(op, Affine):
        return exact_affine(op, inputs)
    if isinstance(op, Bivariate):
        pairs = zip(*inputs, strict=True)
        return [a * b if isinstance(op, Multiply) else a / b for a, b in pairs]
    assert isinstance(op, Elementwise)
    return exact_curve(op, inputs[0])


def exact_values(graph: Graph, x: Iterable[float]) -> dict[str, Vector]:
    """Every value of a network at one point."""
    values = {graph.input: exact(x)}
    for node in graph.nodes:
        values[node.name] = exact_operator(node.op, [values[name] for name in node.inputs])
    return values


def dot(row: Iterable[float], values: Vector) -> Fraction:
    """The exact inner product of a float row and a rational vector."""
    pairs = zip(row, values, strict=True)
    return sum((Fraction(float(a)) * v for a, v in pairs if a), start=Fraction(0))


def finite_difference(
    function: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-6
) -> np.ndarray:
    """Central differences of a scalar function of an array."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        shift = np.zeros_like(x)
        shift[index] = step
        gradient[index] = (function(x + shift) - function(x - shift)) / (2.0 * step)
    return gradient


def smallest_violation(graph: Graph, problem: Problem, case: int) -> float:
    """min over the box of max over the rows of a case: negative means that a witness exists.

    Enumerates the activation patterns of a network whose only curves are relus. Each pattern makes
    the network affine on a polytope, where the minimum is a linear program. Accurate to the
    solver's 1e-7 or so.
    """
    box = problem.case_box[case]
    bounds = list(zip(problem.lower[box], problem.upper[box], strict=True))
    rows = [row for row in problem.case_rows[case] if row >= 0]
    neurons = [node for node in graph.nodes if isinstance(node.op, Elementwise)]
    assert all(isinstance(node.op, Relu) for node in neurons)
    count = sum(node.op.output_size for node in neurons)
    best = np.inf
    for pattern in itertools.product((0.0, 1.0), repeat=count):
        best = min(best, _pattern_minimum(graph, problem, rows, bounds, np.array(pattern)))
    return best


def _pattern_minimum(
    graph: Graph,
    problem: Problem,
    rows: list[int],
    bounds: list[tuple[float, float]],
    pattern: np.ndarray,
) -> float:
    size = graph.input_size
    # A value is an affine form of x: (n, size + 1), the last column its constant.
    forms = {graph.input: np.eye(size, size + 1)}
    halfspaces: list[np.ndarray] = []
    position = 0
    for node in graph.nodes:
        sources = [forms[name] for name in node.inputs]
        if isinstance(node.op, Affine):
            form = sum(m @ s for m, s in zip(matrices(node.op), sources, strict=True))
            if node.op.bias is not None:
                form[:, -1] += node.op.bias
            forms[node.name] = form
            continue
        active = pattern[position : position + node.op.output_size, None]
        position += node.op.output_size
        forms[node.name] = active * sources[0]
        halfspaces.append((1.0 - 2.0 * active) * sources[0])  # <= 0
    output = forms[graph.output]
    asked = problem.output_rows[rows] @ output
    if problem.input_rows is not None:
        asked[:, :-1] += problem.input_rows[rows]
    asked[:, -1] += problem.offset[rows]
    # Variables: x and t; minimise t subject to every row <= t.
    left = [np.c_[asked[:, :-1], -np.ones(len(asked))]]
    right = [-asked[:, -1]]
    for half in halfspaces:
        left.append(np.c_[half[:, :-1], np.zeros(len(half))])
        right.append(-half[:, -1])
    cost = np.r_[np.zeros(size), 1.0]
    answer = linprog(
        cost,
        np.concatenate(left),
        np.concatenate(right),
        bounds=[*bounds, (None, None)],
    )
    return float(answer.fun) if answer.status == 0 else np.inf


def satisfied_case(graph: Graph, problem: Problem, point: Iterable[float]) -> int | None:
    """The first case that a point satisfies, exactly; None if there is none."""
    x = list(point)
    values = exact_values(graph, x)[graph.output]
    for case, rows in enumerate(problem.case_rows):
        box = problem.case_box[case]
        if any(
            not low <= v <= high
            for v, low, high in zip(x, problem.lower[box], problem.upper[box], strict=True)
        ):
            continue
        forms = [
            (dot(problem.output_rows[t], values) + Fraction(float(problem.offset[t])), t)
            for t in rows
            if t >= 0
        ]
        if all(form < 0 or (form == 0 and not problem.strict[t]) for form, t in forms):
            return case
    return None


def confirm_exactly(graph: Graph, problem: Problem) -> Confirm:
    """A confirmation that replays over the rationals and takes only real witnesses."""

    def confirm(point: np.ndarray, decimals: object) -> Counterexample | None:
        del decimals
        if satisfied_case(graph, problem, point) is None:
            return None
        return Counterexample({"X": point}, {})

    return confirm
