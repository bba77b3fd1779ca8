"""Sums of squares in specifications: what is understood, by both readers alike."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.checker.errors import Unusable
from onnxcert.checker.spec import read_spec
from onnxcert.errors import SpecError, UnsupportedSpec
from onnxcert.frontend.lower import lower_query
from onnxcert.frontend.vnnlib import parse_query
from onnxcert.frontend.write import format_vnnlib
from onnxcert.sets import Ball
from onnxcert.spec import Ellipsoid, Problem

HEADER = """(vnnlib-version <2.0>)
(declare-network N (declare-input X real [1,2]) (declare-output Y real [2]))
"""
BOX = "(assert (and (>= X[0,0] -1.0) (<= X[0,0] 1.0) (>= X[0,1] -1.0) (<= X[0,1] 1.0)))\n"
X, Z = "(- X[0,0] 0.1)", "(- X[0,1] 0.25)"
BALL = Ellipsoid((0, 1), (Fraction(4), Fraction(4)), (Fraction(1, 10), Fraction(1, 4)))


def problems(text: str) -> list[Problem]:
    return list(lower_query(parse_query(HEADER + text)).cases)


def ellipsoids(text: str) -> list[Ellipsoid | None]:
    return [ball for problem in problems(text) for ball in problem.ellipsoids]


def theirs(text: str) -> list[Ellipsoid | None]:
    """As the checker reads them."""
    balls = [case.ball for case in read_spec((HEADER + text).encode()).cases()]
    return [ball and Ellipsoid(ball.inputs, ball.weights, ball.center) for ball in balls]


@pytest.mark.parametrize(
    "text",
    [
        f"(<= (+ (* {X} {X}) (* {Z} {Z})) 0.25)",
        f"(>= 0.25 (+ (* {X} {X}) (* {Z} {Z})))",
        f"(< (+ (* 4.0 {X} {X}) (* {Z} 4.0 {Z})) 1.0)",
        f"(<= (+ (* 0.5 (+ (* {X} {X}) (* {Z} {Z}))) -0.125) 0.0)",
        f"(<= (* {X} {X}) (- 0.25 (* {Z} {Z})))",
        "(<= (+ (* X[0,0] X[0,0]) (* -0.2 X[0,0]) 0.01 (* X[0,1] X[0,1]) (* X[0,1] -0.5) 0.0625)"
        " 0.25)",
    ],
)
def test_forms_of_one_ball(text: str) -> None:
    whole = f"(assert {text})"
    assert ellipsoids(whole) == theirs(whole) == [BALL]
    (problem,) = problems(whole)
    assert isinstance(problem.inputs, Ball)
    assert problem.lower[0] == pytest.approx([-0.4, -0.25])
    assert problem.upper[0] == pytest.approx([0.6, 0.75])
    again = format_vnnlib(parse_query(HEADER + whole))
    assert [b for p in lower_query(parse_query(again)).cases for b in p.ellipsoids] == [BALL]


def test_version_1_reads_them_too() -> None:
    text = """(declare-const X_0 Real)
(declare-const Y_0 Real)
(assert (<= (* (- X_0 0.5) (- X_0 0.5)) 0.25))
(assert (<= Y_0 0))
"""
    (problem,) = lower_query(parse_query(text)).cases
    (case,) = read_spec(text.encode()).cases()
    assert problem.lower.tolist() == [[0.0]] == [case.lower.tolist()]
    assert problem.upper.tolist() == [[1.0]] == [case.upper.tolist()]


def test_a_ball_and_a_box() -> None:
    text = BOX + f"(assert (<= (* {X} {X}) 0.25))\n(assert (<= X[0,0] 0.375))"
    (problem,), (ball,) = problems(text), ellipsoids(text)
    assert ball == Ellipsoid((0,), (Fraction(4),), (Fraction(1, 10),)) == theirs(text)[0]
    assert problem.lower.tolist() == [[-0.4, -1.0]]
    assert problem.upper.tolist() == [[0.375, 1.0]]
    (case,) = read_spec((HEADER + text).encode()).cases()
    assert (case.lower.tolist(), case.upper.tolist()) == ([-0.4, -1.0], [0.375, 1.0])
    assert problem.exact_bounds(0, 0) == (Fraction(1, 10), Fraction(1, 10))
    assert problem.exact_bounds(0, 1) == (-1, 1)


def test_one_in_each_disjunct() -> None:
    text = f"(assert (or (<= (+ (* {X} {X}) (* {Z} {Z})) 0.25) (and (<= (* {X} {X}) 0.25) {{}})))"
    text = text.format("(<= X[0,1] 1.0) (>= X[0,1] -1.0)")
    other = Ellipsoid((0,), (Fraction(4),), (Fraction(1, 10),))
    assert {*ellipsoids(text)} == {*theirs(text)} == {BALL, other}


def test_equal_boxes_with_other_ellipsoids_are_kept_apart() -> None:
    ball = "(<= (+ (* X[0,0] X[0,0]) (* X[0,1] X[0,1])) {})"
    text = BOX + f"(assert (or {ball.format('4.0')} {ball.format('9.0')} {ball.format('4.0')}))"
    (problem,) = problems(text)
    assert problem.case_box.tolist() == [0, 1, 0]
    assert problem.lower.tolist() == [[-1.0, -1.0]] * 2


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (f"(<= (* {X} {X}) -0.25)", 0),  # a negative square
        (f"(< (* {X} {X}) 0.0)", 0),
        (f"(<= (* {X} {X}) 0.0)", 1),  # a point
        (f"(and (<= (* {X} {X}) 0.0) (< X[0,0] 0.1))", 1),  # strict bounds count as closed
        (f"(and (<= (* {X} {X}) 0.0) (<= X[0,0] 0.099))", 0),
        (f"(and (<= (+ (* {X} {X}) (* {Z} {Z})) 0.25) (>= X[0,0] 0.5) (>= X[0,1] 0.6))", 0),
        (f"(and (<= (+ (* {X} {X}) (* {Z} {Z})) 0.25) (>= X[0,0] 0.4) (>= X[0,1] 0.65))", 1),
        (f"(and (<= (* {X} {X}) 0.25) (>= X[0,0] 0.6))", 1),  # they touch
        (f"(<= (- (* {X} {X}) (* X[0,0] X[0,0])) 0.25)", 1),  # no square is left
    ],
)
def test_points_and_nothing(text: str, count: int) -> None:
    whole = BOX + f"(assert {text})"
    assert len(ellipsoids(whole)) == count == len(theirs(whole))


def test_a_point_is_exact() -> None:
    (problem,) = problems(BOX + f"(assert (<= (* {X} {X}) 0.0))")
    assert problem.ellipsoids == (None,)
    assert problem.exact_bounds(0, 0) == (Fraction(1, 10), Fraction(1, 10))


@pytest.mark.parametrize(
    ("text", "products"),
    [
        (f"(>= (* {X} {X}) 0.25)", [(0, 0)]),  # not convex
        (f"(<= (- (* {X} {X}) (* {Z} {Z})) 0.25)", [(0, 0), (1, 1)]),
        (f"(== (* {X} {X}) 0.25)", [(0, 0)]),
        (f"(<= (* {X} {Z}) 0.25)", [(0, 1)]),
        (f"(<= (* {X} {X} {X}) 0.25)", [(0, 0), (0, 0, 0)]),
        ("(<= (* Y[0] Y[0]) 0.25)", [(~0, ~0)]),
        ("(<= (* X[0,0] Y[0]) 0.25)", [(~0, 0)]),
        (f"(<= (* {X} {X}) X[0,1])", [(0, 0)]),  # nothing bounds that input
        (f"(<= (* {X} {X}) Y[0])", [(0, 0)]),
    ],
)
def test_what_is_no_ellipsoid_is_a_row(text: str, products: list[tuple[int, ...]]) -> None:
    whole = BOX + f"(assert {text})"
    assert ellipsoids(whole) == [] or ellipsoids(whole) == [None]
    assert theirs(whole) == [None]
    (problem,) = problems(whole)
    assert problem.output_rows.shape[1] == 2 + len(products)
    assert problem.output_rows[:, 2:].any(axis=0).all()
    assert list(read_spec((HEADER + whole).encode()).products) == products


def test_one_side_of_an_inequality_may_be_an_ellipsoid() -> None:
    """``p != 0`` is ``p < 0``, inside, or ``p > 0``, outside."""
    whole = BOX + f"(assert (!= (* {X} {X}) 0.25))"
    inside = Ellipsoid((0,), (Fraction(4),), (Fraction(1, 10),))
    assert {*ellipsoids(whole)} == {*theirs(whole)} == {inside, None}


def test_ellipsoids_beyond_float64_are_refused() -> None:
    whole = BOX + f"(assert (or (<= X[0,0] 0.5)\n (<= (* {X} {X}) 1{'0' * 700}.0)))"
    with pytest.raises(UnsupportedSpec, match="too large for float64") as caught:
        problems(whole)
    assert caught.value.place == "<text>:5"
    with pytest.raises(Unusable, match="line 5"):
        theirs(whole)


def test_two_in_one_disjunct_are_refused() -> None:
    two = BOX + f"(assert (<= (* {X} {X}) 0.25))\n(assert (<= (* {Z} {Z}) 0.25))"
    with pytest.raises(UnsupportedSpec, match="two ellipsoids") as caught:
        problems(two)
    assert caught.value.place == "<text>:5"
    with pytest.raises(Unusable, match="two ellipsoids"):
        theirs(two)
    same = BOX + f"(assert (<= (* {X} {X}) 0.25))\n(assert (<= (* 2.0 {X} {X}) 0.5))"
    assert len(ellipsoids(same)) == 1 == len(theirs(same))


def test_other_inputs_need_bounds() -> None:
    text = f"(assert (<= (* {X} {X}) 0.25))"
    with pytest.raises(SpecError, match=r"X\[0,1\] has no lower bound"):
        problems(text)
    with pytest.raises(Unusable, match="input 1 without a bound"):
        theirs(text)


SMALL = st.sampled_from(["-1.0", "-0.3", "0.0", "0.1", "0.5", "2.0"])
WEIGHTS = st.sampled_from(["0.0", "0.3", "1.0", "2.5"])
GRID = (-1.0, -0.3, 0.0, 0.1, float(np.float32(0.1)), 0.5, 0.8, 2.0)


@st.composite
def texts(draw: st.DrawFn) -> str:
    """A box, and a conjunction or disjunction of balls and bounds."""

    def ball() -> str:
        squares = []
        for i in (0, 1):
            term = f"(- X[0,{i}] {draw(SMALL)})"
            squares.append(f"(* {draw(WEIGHTS)} {term} {term})")
        relation, room = draw(st.sampled_from(["<=", "<"])), draw(SMALL)
        return f"({relation} (+ {' '.join(squares)}) {room})"

    def bound() -> str:
        return (
            f"({draw(st.sampled_from(['<=', '>=']))} X[0,{draw(st.integers(0, 1))}] {draw(SMALL)})"
        )

    parts = [f"(and {ball()} {bound()} (<= Y[0] {draw(SMALL)}))" for _ in range(2)]
    return BOX + f"(assert (or {' '.join(parts)} {ball()}))\n(assert {bound()})"


@given(texts(), st.integers(0, 2**32 - 1))
def test_both_readers_agree(text: str, seed: int) -> None:
    query, spec = parse_query(HEADER + text), read_spec((HEADER + text).encode())
    ours = [
        (problem.lower[box].tolist(), problem.upper[box].tolist(), ball, len(rows[rows >= 0]))
        for problem in lower_query(query).cases
        for box, rows in zip(problem.case_box, problem.case_rows, strict=True)
        for ball in [problem.ellipsoids[box]]
    ]
    cases = list(spec.cases())
    balls = [c.ball and Ellipsoid(c.ball.inputs, c.ball.weights, c.ball.center) for c in cases]
    read = [
        (case.lower.tolist(), case.upper.tolist(), ball, len(case.rows))
        for case, ball in zip(cases, balls, strict=True)
    ]
    assert sorted(ours, key=repr) == sorted(read, key=repr)
    assert spec.has_balls or not any(balls)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        x, y = rng.choice(GRID, 2), rng.choice(GRID, 2)
        exact = [[Fraction(float(v)) for v in side] for side in (x, y)]
        truth = query.holds({"X": x, "Y": y})
        assert spec.holds(*exact) is truth
        if truth:  # and then it lies in one of the cases
            assert any(
                (x >= low).all() and (x <= high).all() and (ball is None or _inside(ball, exact[0]))
                for low, high, ball, _ in ours
            )


def _inside(ball: Ellipsoid, x: list[Fraction]) -> bool:
    parts = zip(ball.columns, ball.weights, ball.center, strict=True)
    return sum(w * (x[i] - c) ** 2 for i, w, c in parts) <= 1
