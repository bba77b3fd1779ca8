"""Readers against each other, the writer, and the reference parser, on random queries."""

from __future__ import annotations

import operator
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vnnlib
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.errors import UsageError
from onnxcert.frontend.vnnlib import parse_query, read_query
from onnxcert.frontend.write import Version, decimal, format_vnnlib, save_vnnlib
from onnxcert.spec import BoxUnion, Network, Query, Tensor, linf_ball
from onnxcert.spec.tree import atoms, leaves
from tests.frontend.queries import GRID, INPUTS, NETWORK, box_texts, linear, queries, sample

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "LessEqual": operator.le,
    "LessThan": operator.lt,
    "GreaterEqual": operator.ge,
    "GreaterThan": operator.gt,
    "Equal": operator.eq,
    "NotEqual": operator.ne,
}


@given(queries(products=True), st.integers(0, 2**31))
def test_written_files_read_back(query: Query, seed: int) -> None:
    versions: tuple[Version, ...] = ("1.0", "2.0")
    for version in versions:
        again = parse_query(format_vnnlib(query, version))
        assert again.version == version
        for point in sample(10, seed):
            assert again.holds(point) == query.holds(point)


@given(queries(products=True), st.integers(0, 2**31))
def test_reference_parser_means_the_same(query: Query, seed: int) -> None:
    reference = vnnlib.parse_query_string(format_vnnlib(query, "2.0"))
    for point in sample(10, seed):
        expected = all(evaluate(a.expr, point) for a in reference.assertions)
        assert query.holds(point) == expected


def evaluate(node: Any, point: dict[str, np.ndarray]) -> Any:
    """Truth or value of a node of the reference parser's tree."""
    kind = type(node).__name__
    if kind in ("And", "Or"):
        results = [evaluate(child, point) for child in node.args]
        return all(results) if kind == "And" else any(results)
    if kind in COMPARISONS:
        return COMPARISONS[kind](evaluate(node.lhs, point), evaluate(node.rhs, point))
    if kind == "Var":
        return Fraction(float(point[node.name][tuple(node.indices)]))
    if kind == "Float":
        return Fraction(node.lexeme)
    if kind == "Minus":
        head, rest = evaluate(node.head, point), [evaluate(part, point) for part in node.rest]
        return head - sum(rest) if rest else -head
    values = [evaluate(child, point) for child in node.args]
    assert kind in ("Plus", "Multiply"), kind
    total = values[0]
    for value in values[1:]:
        total = total + value if kind == "Plus" else total * value
    return total


@given(box_texts(), st.integers(0, 2**31))
def test_scanner_and_parser_mean_the_same(text: str, seed: int) -> None:
    fast, slow = parse_query(text), parse_query(text, fast=False)
    assert not any(isinstance(leaf, BoxUnion) for leaf in leaves(slow.assertions))
    rng = np.random.default_rng(seed)
    for _ in range(10):
        point = {"X": rng.choice(GRID, 3), "Y": rng.choice(GRID, 1)}
        assert fast.holds(point) == slow.holds(point)
    # Also where it is decided: at the numbers of the file themselves.
    numbers = [
        float(-atom.polynomial.constant / term.coefficient)
        for atom in atoms(slow.assertions)
        for term in atom.polynomial.terms
    ]
    for _ in range(20):
        point = {"X": rng.choice(numbers, 3), "Y": rng.choice(numbers, 1)}
        assert fast.holds(point) == slow.holds(point)


@given(box_texts())
def test_scanner_finds_what_is_written_plainly(text: str) -> None:
    plain = (
        "(declare-const X_0 Real)(declare-const Y_0 Real)"
        "(assert (<= X_0 1))(assert (or (and (<= X_0 0.5) (>= X_0 0)) (and (>= X_0 0.75))))"
    )
    assert all(isinstance(leaf, BoxUnion) for leaf in leaves(parse_query(plain).assertions))
    assert parse_query(text).networks == parse_query(text, fast=False).networks


@pytest.mark.parametrize("name", ["X", "X_f", "Xf2"])
def test_scanner_in_several_dimensions(name: str) -> None:
    text = f"""(vnnlib-version <2.0>)
    (declare-network N (declare-input {name} float32 [2,1,3]) (declare-input Z float32 [2])
                       (declare-output Y float32 []))
    (assert (<= {name}[1,0,2] 1.0)) (assert (>= {name}[0,0,1] -1.0))
    (assert (or (and (== {name}[1,0,0] 0.5) (<= Z[1] 2.0)) (and (<= Z[0] 0.0) (< Y 0.0))))"""
    fast, slow = parse_query(text), parse_query(text, fast=False)
    first, second = fast.assertions
    assert isinstance(first, BoxUnion)
    assert isinstance(second, BoxUnion)
    assert first.columns.tolist() == [[0, 1], [0, 5]]
    assert second.columns.tolist() == [[0, 3], [1, 0], [1, 1]]
    rng = np.random.default_rng(0)
    for _ in range(200):
        point = {
            name: rng.choice([-2, -1, 0.5, 1, 1.5], (2, 1, 3)),
            "Z": rng.choice([-1, 0, 2, 3], 2),
            "Y": rng.choice([-1, 0]),
        }
        assert fast.holds(point) == slow.holds(point)


def test_two_bounds_of_one_variable() -> None:
    text = """(declare-const X_0 Real) (declare-const Y_0 Real)
    (assert (<= X_0 1)) (assert (>= X_0 0)) (assert (<= X_0 0.5)) (assert (= X_0 0.25))"""
    query = parse_query(text)
    assert query.holds({"X": [0.25], "Y": [0]})
    assert not query.holds({"X": [0.5], "Y": [0]})


def test_files_are_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "spec.vnnlib"
    query = linf_ball([0.1, 0.2], 0.05, label=0).to_query([(2,)], [(2,)])
    save_vnnlib(query, path)
    save_vnnlib(query, path, "1.0")
    assert read_query(path).version == "1.0"
    before = path.read_bytes()
    hidden = Tensor("N", "H", "hidden", "real", (1,), "relu")
    network = Network("N", NETWORK.inputs, (hidden,), NETWORK.outputs)
    other = Query("2.0", (network,), (linear({INPUTS[0]: Fraction(1)}, Fraction(0)),))
    with pytest.raises(UsageError, match="one network with one input and one output"):
        save_vnnlib(other, path, "1.0")
    too_long = linear({INPUTS[0]: Fraction(1)}, Fraction(1, 2**3000))
    with pytest.raises(UsageError, match="too many digits"):
        save_vnnlib(Query("2.0", (network,), (too_long,)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_declarations_survive() -> None:
    text = """(vnnlib-version <2.1>)
    (declare-network f (declare-input A float64 [1,2]) (declare-input B int64 [])
      (declare-hidden H float32 [3] "a \\"quoted\\" \\\\ name") (declare-output C float16 [2]))
    (declare-network g (equal-to f) (declare-input D float64 [1,2]) (declare-input E int64 [])
      (declare-output F float16 [2]))
    (declare-network h (isomorphic-to f) (declare-input K float32 [1,2]) (declare-input L int8 [])
      (declare-output M float16 [2]))
    (assert (>= (+ B (* 2 B)) 7)) (assert (< H[2] 0.5)) (assert (!= C[0] F[1]))"""
    query = parse_query(text)
    assert query.networks[0].hidden[0].onnx_name == 'a "quoted" \\ name'
    assert query.networks[1].equal_to == query.networks[2].isomorphic_to == "f"
    again = parse_query(format_vnnlib(query))
    assert again.networks == query.networks
    assert "(>= B 7)" not in format_vnnlib(query)
    assert "(>= (* 3 B) 7)" in format_vnnlib(query)


def test_thirds_are_no_decimals() -> None:
    with pytest.raises(UsageError, match="1/3 has no finite decimal expansion"):
        decimal(Fraction(1, 3))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_decimals_are_exact(value: float) -> None:
    text = decimal(Fraction(value))
    assert Fraction(text) == Fraction(value)
    assert "e" not in text
    assert "." in text
