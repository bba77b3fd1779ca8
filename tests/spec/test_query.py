"""Exact evaluation of queries."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from onnxcert.errors import UsageError
from onnxcert.spec import (
    And,
    Atom,
    BoxUnion,
    Decimals,
    Network,
    Or,
    Polynomial,
    Query,
    Tensor,
    Term,
    Variable,
)
from tests.frontend.queries import INPUTS, NETWORK, OUTPUTS, holds, linear, queries, sample


@given(queries(products=True), st.integers(0, 2**31))
def test_holds_is_the_definition(query: Query, seed: int) -> None:
    for point in sample(20, seed):
        expected = all(holds(formula, point) for formula in query.assertions)
        assert query.holds(point) == expected


def make(*assertions: Atom | And | Or | BoxUnion) -> Query:
    return Query("2.0", (NETWORK,), assertions)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["X", "Y"])
def test_undefined_values_satisfy_nothing(bad: float, name: str) -> None:
    point = {"X": [0.0, 0.0], "Y": [0.0, 0.0]}
    assert make(And(())).holds(point)
    point[name] = [0.0, bad]
    assert not make(And(())).holds(point)


def test_empty_formulas() -> None:
    point = {"X": [0.0, 0.0], "Y": [0.0, 0.0]}
    assert make(And(())).holds(point)
    assert not make(Or(())).holds(point)
    assert make(Atom(Polynomial((), Fraction(-1)), "<=")).holds(point)
    assert not make(Atom(Polynomial((), Fraction(0)), "<")).holds(point)


def test_no_tolerance_at_a_decimal_boundary() -> None:
    box = BoxUnion.build(
        np.array([INPUTS[0]]),
        Decimals.from_fractions([Fraction(0)]).reshape(1, 1),
        Decimals.from_fractions([Fraction("0.1")]).reshape(1, 1),
        ((),),
    )
    as_atoms = (linear({INPUTS[0]: Fraction(1)}, Fraction("-0.1")),)
    for query in (make(box), make(*as_atoms)):
        # The double 0.1 and the float32 0.1 lie above the decimal; their neighbours do not.
        assert not query.holds({"X": [0.1, 0], "Y": [0, 0]})
        assert query.holds({"X": [np.nextafter(0.1, 0), 0], "Y": [0, 0]})
        assert not query.holds({"X": np.array([0.1, 0], np.float32), "Y": [0, 0]})


def test_decimals_stand_in_for_values() -> None:
    tenth = Fraction("0.1")
    box = BoxUnion.build(
        np.array(INPUTS),
        Decimals.from_fractions([tenth, Fraction(0)]).reshape(1, 2),
        Decimals.from_fractions([tenth, Fraction(1)]).reshape(1, 2),
        ((linear({INPUTS[0]: Fraction(1)}, -tenth, "=="),),),
    )
    point: dict[str, ArrayLike] = {"X": [0.1, 0.5], "Y": [0, 0]}
    assert not make(box).holds(point)
    assert make(box).holds(point, {"X": {0: tenth}})
    assert not make(box).holds(point, {"X": {0: tenth + Fraction(1, 10**30)}})
    assert not make(box).holds({**point, "X": [0.1, 1.5]}, {"X": {0: tenth}})


def test_values_must_fit_the_declaration() -> None:
    query = make(linear({OUTPUTS[0]: Fraction(1)}, Fraction(0)))
    assert query.holds({"Y": np.zeros((1, 2))})
    with pytest.raises(UsageError, match="Y has 2 elements, 3 were given"):
        query.holds({"X": [0, 0], "Y": [0, 0, 0]})
    with pytest.raises(UsageError, match="no values were given for Y"):
        query.holds({"X": [0, 0]})
    with pytest.raises(UsageError, match="not exact in float64"):
        query.holds({"Y": np.array([2**53 + 1, 0])})
    with pytest.raises(UsageError, match="not exact in float64"):
        query.holds({"Y": np.array(["a", "b"])})


def test_depth_does_not_matter() -> None:
    formula: Atom | And | Or = linear({OUTPUTS[0]: Fraction(1)}, Fraction(0))
    for level in range(20_000):
        formula = (And, Or)[level % 2]((formula, And(()) if level % 2 == 0 else Or(())))
    assert make(formula).holds({"X": [0, 0], "Y": [-1, 0]})
    assert not make(formula).holds({"X": [0, 0], "Y": [1, 0]})


def test_many_outputs_and_terms() -> None:
    count = 21_125
    rng = np.random.default_rng(0)
    values = rng.normal(size=count)
    exact = sum((Fraction(v) for v in values.tolist()), Fraction(0))
    terms = {Variable(0, k): Fraction(1) for k in range(count)}
    tensor = Tensor("N", "Y", "output", "real", (count,))
    network = Network("N", (), (), (tensor,))
    at_most = linear(terms, -exact)
    below = linear(terms, -exact, "<")
    assert Query("2.0", (network,), (at_most,)).holds({"Y": values})
    assert not Query("2.0", (network,), (below,)).holds({"Y": values})


def test_linear_and_labels() -> None:
    plain = linear({INPUTS[0]: Fraction(1)}, Fraction(0))
    product = Atom(Polynomial((Term(Fraction(1), INPUTS),), Fraction(0)), "<=")
    assert make(plain).is_linear
    assert not make(Or((plain, And((product,))))).is_linear
    assert make(product).label(Variable(1, 1)) == "Y[1]"
    assert Query("1.0", (NETWORK,), ()).label(Variable(1, 1)) == "Y_1"
