"""Problems for the engine against the queries they come from."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given

from onnxcert.errors import SpecError, UnsupportedSpec
from onnxcert.frontend import lower, products
from onnxcert.frontend.lower import lower_query
from onnxcert.frontend.products import with_products
from onnxcert.frontend.vnnlib import parse_query
from onnxcert.graph import Graph, Node
from onnxcert.ops import Linear
from onnxcert.spec import And, Atom, BoxUnion, Decimals, Formula, Or, Problem, Query
from tests.frontend.queries import (
    INPUTS,
    NETWORK,
    OUTPUTS,
    bounded,
    linear,
    points,
    queries,
    sample,
)

DECLARED = "".join(f"(declare-const {name} Real)\n" for name in ("X_0", "X_1", "Y_0", "Y_1"))
BOX = "(assert (<= X_0 1)) (assert (>= X_0 -1)) (assert (<= X_1 1)) (assert (>= X_1 -1))\n"


def problems(text: str) -> list[Problem]:
    return list(lower_query(parse_query(DECLARED + BOX + text)).cases)


def satisfied(problem: Problem, case: int, point: dict[str, np.ndarray]) -> bool:
    """Whether a point satisfies a case; exact, for all numbers are binary."""
    x = [Fraction(float(v)) for v in point["X"].ravel()]
    y = [Fraction(float(v)) for v in point["Y"].ravel()]
    box = problem.case_box[case]
    inside = all(
        low <= value <= high
        for low, value, high in zip(problem.lower[box], x, problem.upper[box], strict=True)
    )
    return inside and all(
        row_holds(problem, row, x, y) for row in problem.case_rows[case] if row >= 0
    )


def row_holds(problem: Problem, row: int, x: list[Fraction], y: list[Fraction]) -> bool:
    value = Fraction(float(problem.offset[row]))
    value += sum(Fraction(c) * v for c, v in zip(problem.output_rows[row].tolist(), y, strict=True))
    if problem.input_rows is not None:
        coefficients = problem.input_rows[row].tolist()
        value += sum(Fraction(c) * v for c, v in zip(coefficients, x, strict=True))
    return value < 0 if problem.strict[row] else value <= 0


def closed(formula: Formula) -> Formula:
    """Strict comparisons of one input made closed, as lowering does."""
    if isinstance(formula, And | Or):
        return type(formula)(tuple(closed(child) for child in formula.children))
    if isinstance(formula, BoxUnion):
        parts = ([closed(atom) for atom in part] for part in formula.atoms)
        inner = tuple(tuple(f for f in part if isinstance(f, Atom)) for part in parts)
        return BoxUnion.build(formula.columns, formula.lower, formula.upper, inner)
    terms = formula.polynomial.terms
    if len(terms) == 1 and terms[0].variables[0] in INPUTS:
        if formula.relation == "!=":
            return And(())  # x < c or x > c, both closed
        if formula.relation == "<":
            return Atom(formula.polynomial, "<=")
    return formula


@given(queries())
def test_cases_are_the_query(query: Query) -> None:
    query = bounded(query)
    cases = [(p, k) for p in lower_query(query).cases for k in range(len(p))]
    relaxed = Query("2.0", query.networks, tuple(closed(f) for f in query.assertions))
    for point in sample(60, 0):
        found = any(satisfied(problem, case, point) for problem, case in cases)
        if query.holds(point):
            assert found
        if found:
            # Offsets and bounds are rounded outward by less than the step of the grid of points,
            # so a point that is admitted satisfies the closed query, or lies beside a boundary.
            assert relaxed.holds(point) or beside_a_boundary(query, point)


def beside_a_boundary(query: Query, point: dict[str, np.ndarray]) -> bool:
    """Whether rounding a bound such as the decimal 0.1 to a double admits the point.

    No double may satisfy the exact query then, so its neighbours are tried as fractions.
    """
    relaxed = Query("2.0", query.networks, tuple(closed(f) for f in query.assertions))
    neighbours = [
        [value, value.limit_denominator(1000), value - step, value + step]
        for value in map(Fraction, (*point["X"].tolist(), *point["Y"].tolist()))
        for step in [Fraction(1, 10**15)]
    ]
    return any(
        relaxed.holds(point, {"X": dict(enumerate(near[:2])), "Y": dict(enumerate(near[2:]))})
        for near in itertools.product(*neighbours)
    )


@given(queries())
def test_problems_are_well_formed(query: Query) -> None:
    query = bounded(query)
    number = 0
    for problem in lower_query(query).cases:
        boxes, rows = len(problem.lower), len(problem.offset)
        assert problem.lower.shape == problem.upper.shape == (boxes, 2)
        assert (problem.lower <= problem.upper).all()
        assert problem.output_rows.shape == (rows, 2)
        assert problem.strict.shape == (rows,)
        assert sorted(set(problem.case_box.tolist())) == list(range(boxes))
        used = set(problem.case_rows.ravel().tolist()) - {-1}
        assert used == set(range(rows))
        assert problem.case_disjunct.tolist() == list(range(number, number + len(problem)))
        number += len(problem)
        assert (problem.lower <= problem.inner_lower).all()
        assert (problem.inner_upper <= problem.upper).all()
        both = np.hstack([problem.lower, problem.upper, problem.inner_lower, problem.inner_upper])
        assert len(np.unique(both, axis=0)) == boxes


def test_on_every_point_of_the_grid() -> None:
    text = """(assert (or (and (<= X_0 0) (>= Y_0 X_0)) (and (>= X_1 0.25) (< (+ Y_0 Y_1) 0.5))))
    (assert (or (= Y_0 -0.5) (<= (* 3 Y_1) (+ X_0 X_1))))"""
    query = parse_query(DECLARED + BOX + text)
    (problem,) = lower_query(query).cases
    assert len(problem) == 4
    assert problem.input_rows is not None
    for point in points():
        found = any(satisfied(problem, case, point) for case in range(len(problem)))
        assert found == query.holds(point)


def test_boxes_and_rows_are_shared() -> None:
    text = "(assert (or (and (>= X_0 0)) (and (<= X_0 0) (>= X_1 0))))"
    text += "(assert (or (<= Y_0 0) (<= (* 2 Y_0) 0) (>= Y_1 1)))"
    (problem,) = problems(text)
    assert len(problem) == 6
    assert len(problem.lower) == 2
    assert len(problem.offset) == 2
    assert problem.case_box.tolist() == [0, 0, 0, 1, 1, 1]


def test_scaled_bounds_and_equations_cut_the_box() -> None:
    (problem,) = problems(
        "(assert (<= (* 2 X_0) 1.5)) (assert (= X_1 0.5)) (assert (>= 4 (- X_0)))"
    )
    assert problem.lower.tolist() == [[-1, 0.5]]
    assert problem.upper.tolist() == [[0.75, 0.5]]
    assert problem.case_rows.shape == (1, 0)


def test_strict_bounds_stay_closed_and_strict_rows_strict() -> None:
    (problem,) = problems("(assert (< X_0 0.5)) (assert (< Y_0 0.5)) (assert (> Y_1 1))")
    assert problem.upper[0, 0] == 0.5
    assert problem.strict.tolist() == [True, True]


def test_bounds_as_written_are_at_hand() -> None:
    text = "(assert (or (and (>= X_0 0.1) (<= X_1 0.3)) (and (>= X_0 0.1) (<= X_0 0.1))))"
    (problem,) = problems(text)
    assert problem.exact_bounds(0, 0) == (Fraction("0.1"), Fraction(1))
    assert problem.exact_bounds(0, 1) == (Fraction(-1), Fraction("0.3"))
    assert problem.exact_bounds(1, 0) == (Fraction("0.1"), Fraction("0.1"))
    assert problem.lower[0, 0] == math.nextafter(0.1, 0)
    assert problem.inner_lower[0, 0] == 0.1
    assert problem.inner_upper[0, 1] == problem.upper[0, 1] - math.ulp(0.25)


def test_boxes_that_differ_only_as_decimals_are_told_apart() -> None:
    text = "(assert (or (>= X_0 0.5) (and (>= X_0 0.50000000000000000001) (<= X_0 1))))"
    (problem,) = problems(text)
    assert problem.lower[:, 0].tolist() == [0.5, 0.5]
    assert problem.inner_lower[:, 0].tolist() == [0.5, math.nextafter(0.5, 1)]


def test_equations_and_disequations_of_outputs() -> None:
    (problem,) = problems("(assert (= Y_0 Y_1))")
    assert problem.output_rows.tolist() == [[1, -1], [-1, 1]]
    assert problem.case_rows.tolist() == [[0, 1]]
    text = "(vnnlib-version <2.0>)(declare-network N (declare-input X real [1])"
    text += "(declare-output Y real [1]))(assert (<= X[0] 1)) (assert (>= X[0] 0))"
    (problem,) = lower_query(parse_query(text + "(assert (!= Y[0] 3))")).cases
    assert problem.output_rows.tolist() == [[1], [-1]]
    assert problem.offset.tolist() == [-3, 3]
    assert problem.strict.tolist() == [True, True]
    assert problem.case_rows.tolist() == [[0], [1]]


def test_conditions_between_inputs_become_rows() -> None:
    (problem,) = problems("(assert (<= (+ X_0 (* 2 X_1)) 0.5)) (assert (>= Y_0 X_1))")
    assert problem.output_rows.tolist() == [[0, 0], [-1, 0]]
    assert problem.input_rows is not None
    assert problem.input_rows.tolist() == [[1, 2], [0, 1]]
    assert problem.offset.tolist() == [-0.5, 0]


def test_empty_boxes_are_dropped_exactly() -> None:
    # No double lies between these bounds, and only exact arithmetic tells them apart.
    empty = "(assert (>= X_0 0.10000000000000000001)) (assert (<= X_0 0.1))"
    assert problems(empty) == []
    point = "(assert (>= X_0 0.10000000000000000001)) (assert (<= X_0 0.10000000000000000001))"
    (problem,) = problems(point)
    assert problem.lower[0, 0] < problem.upper[0, 0]
    sliver = "(assert (>= X_0 0.10000000000000000001)) (assert (<= X_0 0.10000000000000000002))"
    assert len(problems(sliver)) == 1


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("first", "second", "cases"),
    [
        ("(<= X_0 0.1)", "(>= X_0 0.10000000000000000001)", 0),
        ("(<= X_0 0.10000000000000000001)", "(>= X_0 0.1)", 1),
        ("(<= X_0 0.1)", "(>= X_0 0.1)", 1),
    ],
)
def test_emptiness_across_disjunctions(first: str, second: str, cases: int, fast: bool) -> None:
    never = "(and (<= X_1 -2) (>= X_1 -3))"
    text = f"(assert (or (and {first} (<= X_1 1)) {never}))(assert (or (and {second}) {never}))"
    lowered = lower_query(parse_query(DECLARED + BOX + text, fast=fast))
    assert sum(len(problem) for problem in lowered.cases) == cases


def test_constant_conditions() -> None:
    assert len(problems("(assert (<= 1 2))")) == 1
    assert problems("(assert (<= 2 1))") == []
    assert [len(p) for p in problems("(assert (or (<= 2 1) (< Y_0 Y_0) (<= Y_0 0)))")] == [1]


def test_offsets_are_rounded_down() -> None:
    (problem,) = problems("(assert (<= Y_0 0.1)) (assert (>= Y_1 0.1))")
    for offset, exact in zip(problem.offset, (Fraction(-1, 10), Fraction(1, 10)), strict=True):
        assert Fraction(float(offset)) < exact
        assert Fraction(math.nextafter(offset, math.inf)) > exact


def test_coefficients_are_scaled_to_be_exact() -> None:
    (problem,) = problems("(assert (<= (+ (* 0.1 Y_0) (* 0.3 Y_1)) 0.7))")
    assert problem.output_rows.tolist() == [[1, 3]]
    assert problem.offset.tolist() == [-7]


def test_coefficients_that_cannot_be_exact() -> None:
    text = "(assert (<= (+ (* 0.12345678901234567891 Y_0) (* 0.1 Y_1)) 0))"
    with pytest.raises(UnsupportedSpec, match="not exact in float64") as caught:
        problems(text)
    assert caught.value.place == "<text>:6"
    assert "Y_0" in caught.value.help


def test_combinations_are_made_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 40
    text = "".join(f"(declare-const X_{i} Real)" for i in range(count)) + "(declare-const Y_0 Real)"
    for i in range(count):
        text += f"(assert (or (and (>= X_{i} 0) (<= X_{i} 1)) (and (>= X_{i} 2) (<= X_{i} 3))))"
    monkeypatch.setattr(lower, "LARGEST_BATCH", 16)
    cases = lower_query(parse_query(text)).cases
    first = next(cases)
    assert len(first) == 16
    assert first.case_disjunct.tolist() == list(range(16))
    assert len(np.unique(first.lower, axis=0)) == 16
    assert next(cases).case_disjunct[0] == 16


def test_pruning_makes_contradictions_cheap() -> None:
    # Of 2**30 combinations only one is possible, and the walk must not visit the others.
    text = DECLARED + BOX
    for k in range(30):
        text += f"(assert (or (and (>= X_0 0) (<= X_0 1)) (and (<= X_0 -{k + 2}) (>= X_0 -99))))"
    (problem,) = lower_query(parse_query(text)).cases
    assert len(problem) == 1


def test_batches_are_limited_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower, "LARGEST_ARRAYS", 8 * 2 * 2 * 5)
    parts = " ".join(f"(and (<= X_0 {k / 100}))" for k in range(23))
    sizes = [len(problem) for problem in problems(f"(assert (or {parts}))")]
    assert sum(sizes) == 23
    assert max(sizes) <= 5


def test_every_pass_starts_anew() -> None:
    lowered = lower_query(parse_query(DECLARED + BOX + "(assert (or (<= Y_0 0) (<= Y_1 0)))"))
    assert (lowered.n_inputs, lowered.n_outputs) == (2, 2)
    assert [len(p) for p in lowered.cases] == [len(p) for p in lowered.cases] == [2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(assert (<= X_0 1))", "input X_0 and 1 more has no lower bound"),
        ("(assert (<= X_0 1))(assert (>= X_0 0))(assert (>= X_1 0))", "X_1 has no upper bound"),
        (
            "(assert (or (and (= X_0 1) (= X_1 1)) (and (= X_1 1) (<= X_0 1))))",
            "X_0 has no lower bound",
        ),
    ],
)
def test_unbounded_inputs_are_named(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        list(lower_query(parse_query(DECLARED + text)).cases)


def test_products_stand_behind_the_outputs() -> None:
    """Powers of one variable first, then products of more; inputs before outputs."""
    text = "(assert (or (<= (+ (* Y_0 X_1) (* 2 X_0 X_1) Y_0) 1) (>= (* 3 Y_0 Y_0 Y_0) 1)))"
    lowered = lower_query(parse_query(DECLARED + BOX + text))
    (problem,) = lowered.cases
    plain = problem.output_rows[:, : lowered.n_outputs]
    assert plain[:, 0].tolist() == [1.0, 0.0]
    assert not plain[:, 1:].any()
    behind = problem.output_rows[:, lowered.n_outputs :]
    assert behind.tolist() == [[0.0, 2.0, 1.0], [-1.0, 0.0, 0.0]]  # coprime
    x, y = [0.5, 3.0], [2.0, *[0.0] * (lowered.n_outputs - 1)]
    graph = with_products(_constant(x, y), lowered.layout)
    assert graph.forward(np.array([x]))[0].tolist() == [*y, 8.0, 1.5, 6.0]


def _constant(x: list[float], y: list[float]) -> Graph:
    """A network whose outputs are always the same."""
    op = Linear(np.zeros((len(x), len(y))), np.array(y))
    return Graph("x", len(x), (Node("y", op, ("x",)),), "y")


def test_too_many_products_are_refused_with_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_MOST_PRODUCTS", 1)
    text = DECLARED + BOX + "(assert (or (<= (* X_0 Y_0) 0)\n (<= (* Y_0 Y_0) 1)))"
    with pytest.raises(UnsupportedSpec, match="more than 1 different products") as caught:
        lower_query(parse_query(text))
    assert caught.value.place == "<text>:7"


def test_flat_order_of_several_tensors() -> None:
    text = """(vnnlib-version <2.0>)
    (declare-network N (declare-input A real [2]) (declare-input B real [1,2])
      (declare-hidden H real [2] "h") (declare-output P real [2]) (declare-output Q real []))
    (assert (and (>= A[0] 0) (<= A[0] 1) (>= A[1] 2) (<= A[1] 3)
                 (>= B[0,0] 4) (<= B[0,0] 5) (>= B[0,1] 6) (<= B[0,1] 7)))
    (assert (<= (+ P[1] (* 2 Q) (* 4 H[1]) (* 8 B[0,1])) 0))"""
    lowered = lower_query(parse_query(text))
    (problem,) = lowered.cases
    assert (lowered.n_inputs, lowered.n_outputs) == (4, 5)
    assert problem.lower.tolist() == [[0, 2, 4, 6]]
    assert problem.upper.tolist() == [[1, 3, 5, 7]]
    assert problem.output_rows.tolist() == [[0, 1, 2, 0, 4]]
    assert problem.input_rows is not None
    assert problem.input_rows.tolist() == [[0, 0, 0, 8]]


def test_deeply_nested_formulas() -> None:
    formula: Formula = linear({OUTPUTS[0]: Fraction(1)}, Fraction(0))
    for level in range(10_000):
        other = linear({OUTPUTS[1]: Fraction(1)}, Fraction(-level), "<")
        formula = Or((formula, And((other, formula)))) if level == 0 else And((formula, And(())))
    query = bounded(Query("2.0", (NETWORK,), (formula,)))
    assert [len(problem) for problem in lower_query(query).cases] == [2]


def test_bounds_beyond_float64() -> None:
    union = BoxUnion.build(
        np.array(INPUTS),
        Decimals.from_fractions([Fraction(10**400), Fraction(0)]).reshape(1, 2),
        Decimals.from_fractions([Fraction(10**401), Fraction(0)]).reshape(1, 2),
        ((),),
    )
    with pytest.raises(SpecError, match=r"X\[0\] has no upper bound"):
        list(lower_query(Query("2.0", (NETWORK,), (union,))).cases)
