"""The checker's reader of VNN-LIB against the engine's, and against the definition."""

from __future__ import annotations

import csv
import gzip
import math
import os
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.checker.errors import Rejected, Unusable
from onnxcert.checker.spec import Case, Spec, read_spec
from onnxcert.errors import UnsupportedSpec
from onnxcert.frontend.lower import lower_query
from onnxcert.frontend.vnnlib import parse_query, read_query
from onnxcert.frontend.walk import Walk
from onnxcert.frontend.write import Version, format_vnnlib
from onnxcert.spec import Query
from tests.frontend.queries import GRID, INPUTS, bounded, box_texts, linear, queries, sample

MALFORMED = Path(__file__).parent.parent / "frontend" / "malformed"
DECLARED = "(declare-const X_0 Real)\n(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n"
NETWORK = """(vnnlib-version <2.0>)
(declare-network N (declare-input X float32 [1,2]) (declare-output Y float32 [2]))
"""
UNIT = "(assert (<= X_0 1)) (assert (>= X_0 -1))\n"
Key = tuple[bytes, bytes, frozenset[tuple[object, ...]]]


def key(lower: np.ndarray, upper: np.ndarray, rows: Iterator[object]) -> Key:
    """A case, bit by bit; rows of either program."""
    found = [(r.outputs, r.inputs, r.offset, r.strict) for r in rows]  # type: ignore[attr-defined]
    assert len(set(found)) == len(found)
    return (lower.tobytes(), upper.tobytes(), frozenset(found))


def engine_cases(query: Query) -> Counter[Key]:
    lowered = lower_query(query)
    ties = list(lowered.layout.ties)

    def read(side: np.ndarray) -> np.ndarray:
        side = side.copy()
        side[ties] = 0.0  # nothing reads these
        return side

    return Counter(
        key(read(sides.lower_floor), read(sides.upper_ceil), iter(case.all_rows()))
        for case in Walk(lowered.query, lowered.layout).cases()
        for sides in [case.region.sides]
    )


def checker_cases(spec: Spec) -> Counter[Key]:
    return Counter(key(case.lower, case.upper, iter(case.rows)) for case in spec.cases())


def read(text: str) -> Spec:
    return read_spec(text.encode())


def cases(text: str) -> list[Case]:
    return list(read(text).cases())


def fractions(array: np.ndarray) -> list[Fraction]:
    return [Fraction(float(value)) for value in array]


def refused(text: str) -> str:
    with pytest.raises(Unusable) as caught:
        for _ in read(text).cases():
            pass
    return str(caught.value)


FRAMES: dict[str, list[tuple[int, int, str]]] = {
    # comparisons c . x + constant REL 0 with both inputs, the first of which is in a box
    "tied": [(1, 0, "==")],
    "tied and bounded": [(1, 0, "=="), (0, -1, "<=")],
    "implied": [(1, -1, "<="), (-1, -1, "<=")],
}


def framed(query: Query, frame: str) -> Query:
    """The query where the second input is in a box, too, or follows the first."""
    if frame == "bounded":
        return bounded(query)
    first, second = INPUTS
    box = [linear({first: Fraction(s)}, Fraction(-1)) for s in (1, -1)]
    both = [
        linear({first: Fraction(-c), second: Fraction(c or 1)}, Fraction(constant), relation)
        for c, constant, relation in FRAMES[frame]
    ]
    return Query(query.version, query.networks, (*box, *both, *query.assertions), query.source)


@given(
    st.one_of(queries(), queries(products=True)),
    st.integers(0, 2**31),
    st.sampled_from(["bounded", *FRAMES]),
)
def test_same_cases_and_same_truth_as_the_engine(query: Query, seed: int, frame: str) -> None:
    query = framed(query, frame)
    versions: tuple[Version, ...] = ("1.0", "2.0")
    for version in versions:
        spec = read(format_vnnlib(query, version))
        assert spec.version == version
        assert (spec.n_inputs, spec.n_outputs) == (2, 2)
        try:
            expected = engine_cases(query)
        except UnsupportedSpec:
            assert "two ellipsoids" in refused(format_vnnlib(query, version))
        else:
            assert checker_cases(spec) == expected
        for point in sample(10, seed) + alike(10, seed):
            values = fractions(point["X"]), fractions(point["Y"])
            assert spec.holds(*values) == query.holds(point)


def alike(count: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Points whose inputs are equal."""
    return [{**point, "X": point["X"][[0, 0]]} for point in sample(count, seed)]


@given(
    st.one_of(queries(), queries(products=True)),
    st.integers(0, 2**31),
    st.sampled_from(["bounded", *FRAMES]),
)
def test_a_point_that_satisfies_the_file_lies_in_a_case(
    query: Query, seed: int, frame: str
) -> None:
    spec = read(format_vnnlib(framed(query, frame), "2.0"))
    try:
        found = list(spec.cases())
    except Unusable:
        assert spec.has_balls
        return
    for point in sample(20, seed) + alike(20, seed):
        x, y = fractions(point["X"]), fractions(point["Y"])
        products = [math.prod(x[v] if v >= 0 else y[~v] for v in p) for p in spec.products]
        read_of = [Fraction(0) if v in spec.ties else value for v, value in enumerate(x)]
        inside = any(contains(case, read_of, [*y, *products]) for case in found)
        assert inside >= spec.holds(x, y)


def contains(case: Case, x: list[Fraction], y: list[Fraction]) -> bool:
    """Whether a point is in a case, exactly."""
    inside = all(low <= v <= high for low, v, high in zip(case.lower, x, case.upper, strict=True))
    if case.ball is not None:
        ball = zip(case.ball.inputs, case.ball.weights, case.ball.center, strict=True)
        inside &= sum(w * (x[i] - c) ** 2 for i, w, c in ball) <= 1
    for row in case.rows:
        value = sum(Fraction(c) * y[i] for i, c in row.outputs) + Fraction(row.offset)
        value += sum(Fraction(c) * x[i] for i, c in row.inputs)
        inside &= value < 0 or (value == 0 and not row.strict)
    return inside


@given(box_texts(), st.integers(0, 2**31))
def test_same_as_the_engine_as_text(text: str, seed: int) -> None:
    text += "(assert (and (<= X_0 3) (<= X_1 3) (<= X_2 3)))"
    text += "(assert (and (>= X_0 -3) (>= X_1 -3) (>= X_2 -3)))"
    spec, query = read(text), parse_query(text)
    assert checker_cases(spec) == engine_cases(query)
    rng = np.random.default_rng(seed)
    for _ in range(10):
        point = {"X": rng.choice(GRID, 3), "Y": rng.choice(GRID, 1)}
        assert spec.holds(fractions(point["X"]), fractions(point["Y"])) == query.holds(point)


@given(st.one_of(box_texts(), queries().map(format_vnnlib)), st.data())
def test_a_damaged_file_is_refused_or_read_as_the_engine_reads_it(
    text: str, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, min(len(text), start + 20)))
    piece = data.draw(st.sampled_from(["", text[start:stop] * 2, "(", ")", "[", '"', "\x00", "é"]))
    damaged = text[:start] + piece + text[stop:]
    try:
        spec = read(damaged)
    except Unusable:
        return
    query = parse_query(damaged)
    try:
        found = checker_cases(spec)
    except Unusable:
        return
    assert found == engine_cases(query)


@pytest.mark.parametrize("name", sorted(path.name for path in MALFORMED.glob("*.vnnlib")))
def test_what_the_engine_refuses_is_refused(name: str) -> None:
    with pytest.raises(Unusable):
        read_spec((MALFORMED / name).read_bytes())


@pytest.mark.parametrize(
    "text",
    [
        f"(assert (<= (* {' '.join(['Y_0'] * 65)}) 1))",
        "(assert (== X_0 1))",
        "(assert (!= X_0 1))",
        "(assert (<= X_0 1_0))",
        "(assert (<= X_0 1/2))",
        "(assert (<= X_0 1 2))",
        "(assert (<= X_0))",
        "(assert (and))",
        "(assert (or X_0))",
        "(assert (<= (and (<= X_0 1)) 1))",
        "(assert (+))",
        "(assert X_0)",
        "(assert (<= X_0[0] 1))",
        "(assert ((<= X_0 1)))",
        "(assert ())",
        "(assert (<= X_0 1)",
        "(assert (<= X_0 1)))",
        "(assert (<= X_0 1)) more",
        "assert (<= X_0 1))",
        "(check-sat)",
        "(assert (<= X_0 ٣))",
        "(assert (<= X_0 1e2001))",
        "(assert (<= X_0 1e-2001))",
        "(assert (<= X_0 1e400))",
        "(assert (<= (+ Y_0 Y_1) -1e400))",
        "(assert (<= (+ (* 9007199254740993 Y_0) Y_1) 1))",
        "(assert (<= (+ (* 1e400 Y_0) Y_1) 1))",
        f"(assert (<= X_0 0.{'1' * 2000}))",
        "(declare-const X_2 Real)(assert (<= X_0 1))",
        "(declare-const X_0 Real)(assert (<= X_0 1))",
        "(declare-const X_1 Int)(assert (<= X_0 1))",
        "(declare-const Z_0 Real)(assert (<= X_0 1))",
        "",
    ],
)
def test_refused_1_0(text: str) -> None:
    assert "line " in refused(DECLARED + text)


HEADER, X, Y = "(vnnlib-version <2.0>)", "(declare-input X real [1])", "(declare-output Y real [])"


@pytest.mark.parametrize(
    "text",
    [
        f"{HEADER} (declare-network N {X} {Y}) (declare-network M {X} {Y}) (assert (<= Y 1))",
        f"{HEADER} (declare-network N (equal-to M) {X} {Y}) (assert (<= Y 1))",
        f"{HEADER} (declare-network N (isomorphic-to M) {X} {Y}) (assert (<= Y 1))",
        f"{HEADER} (declare-network N {Y} {X}) (assert (<= Y 1))",
        f"{HEADER} (declare-network N {X}) (assert (<= X[0] 1))",
        f"{HEADER} (declare-network X {X} {Y}) (assert (<= Y 1))",
        f"{HEADER} (declare-network N {X} {X} {Y}) (assert (<= Y 1))",
        f"{HEADER} (declare-network N {X} {Y}) (assert (= Y 1))",
        f"{HEADER} (declare-network N {X} {Y}) (assert (<= Y[0] 1))",
        f"{HEADER} (declare-network N {X} {Y}) (assert (<= X 1))",
        f"{HEADER} (declare-network N {X} {Y}) (assert (<= X[1] 1))",
        f"{HEADER} (declare-network N {X} {Y}) (assert (<= X[0,0] 1))",
        f"{HEADER} (declare-network N {X} {Y}) (assert (<= X[0,] 1))",
        f"{HEADER} (declare-network N {X} {Y}) (assert (<= X[0 0] 1))",
        f"{HEADER} (declare-network N {X} {Y}",
        f"{HEADER} (assert (<= 0 1))",
        f"{HEADER} (declare-network N {X} {Y.replace('real', 'float64')}) (assert (<= Y 1))",
        f"{HEADER} (declare-network N {X.replace('real', 'int8')} {Y}) (assert (<= Y 1))",
        f"{HEADER} (declare-network N {X.replace('[1]', '[0]')} {Y}) (assert (<= Y 1))",
        f"{HEADER} (declare-network N {X.replace('[1]', '')} {Y}) (assert (<= Y 1))",
        f"{HEADER} (declare-network N {X} (declare-hidden H real []) {Y}) (assert (<= Y 1))",
        f"{HEADER} {HEADER} (declare-network N {X} {Y}) (assert (<= Y 1))",
        f"(vnnlib-version <2.2>) (declare-network N {X} {Y}) (assert (<= Y 1))",
        f"(declare-network N {X} {Y}) (assert (<= Y 1))",
    ],
)
def test_refused_2_0(text: str) -> None:
    assert "line 1: " in refused(text)


def test_lines_are_counted() -> None:
    assert "line 6: 'X_7'" in refused(DECLARED + "; a remark\n\n(assert (<= X_7\n 1))")


def test_a_file_that_is_no_text() -> None:
    for data in (b"\xff\xfe", gzip.compress(b"(assert")[:-4], b"\x1f\x8b\x08"):
        with pytest.raises(Unusable, match="cannot be read"):
            read_spec(data)


def test_too_much_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcert.checker.spec._LARGEST_TEXT", 10**5)
    for data in (b" " * 10**6, gzip.compress(b" " * 10**8)):
        with pytest.raises(Unusable, match="more than 100000 bytes"):
            read_spec(data)


def test_declarations() -> None:
    text = """; a remark
    (vnnlib-version <2.1>)
    (declare-network f (declare-input A float64 [1,2]) (declare-input B float64 [])
      (declare-hidden H float64 [3] "a; name") (declare-output C float64 [2,2]))
    (assert (<= (+ A[0,1] (* 2 B) (* 3 H[2]) (* 5 C[1,0])) 0.3))"""
    spec = read_spec(gzip.compress(text.encode()))
    assert spec.version == "2.1"
    assert [(t.name, t.kind, t.shape, t.onnx_name) for t in spec.networks[0].tensors] == [
        ("A", "input", (1, 2), ""),
        ("B", "input", (), ""),
        ("H", "hidden", (3,), "a; name"),
        ("C", "output", (2, 2), ""),
    ]
    assert (spec.n_inputs, spec.n_outputs) == (3, 7)
    bounds = " ".join(
        f"(assert (and (<= {v} 1) (>= {v} -1)))" for v in ("A[0,0]", "A [0,1]", "A[0, 0]", "B")
    )
    (case,) = cases(text + bounds)
    (row,) = case.rows
    assert (row.outputs, row.inputs, row.strict) == (((2, 5), (6, 3)), ((1, 1), (2, 2)), False)
    assert row.offset == np.nextafter(-0.3, -1)  # the double 0.3 is below the decimal
    values = [Fraction(0)] * 7
    values[6] = Fraction(1, 10)
    assert spec.holds([Fraction(0)] * 3, values)
    values[6] += Fraction(1, 10**30)
    assert not spec.holds([Fraction(0)] * 3, values)
    with pytest.raises(ValueError, match="3 inputs and 7 outputs"):
        spec.holds([Fraction(0)] * 7, values)


def test_rows_are_coprime_integers() -> None:
    (case,) = cases(DECLARED + UNIT + "(assert (>= (* 0.3 Y_0) (+ 0.7 (* 0.9 Y_1) (* 0.6 X_0))))")
    (row,) = case.rows
    assert row.outputs == ((0, -1.0), (1, 3.0))
    assert row.inputs == ((0, 2.0),)
    assert Fraction(row.offset) < Fraction(7, 3) < Fraction(np.nextafter(row.offset, 9))


def test_equality_and_inequality() -> None:
    (case,) = cases(DECLARED + UNIT + "(assert (= Y_0 Y_1))")
    assert [row.outputs for row in case.rows] == [((0, 1), (1, -1)), ((0, -1), (1, 1))]
    text = "(assert (and (<= X[0,0] 1) (>= X[0,0] 0) (== X[0,1] 0.1)))(assert (!= Y[0] 0))"
    first, second = cases(NETWORK + text)
    assert first.lower is second.lower
    assert [case.rows[0].outputs for case in (first, second)] == [((0, 1),), ((0, -1),)]
    assert first.rows[0].strict
    assert first.upper[1] == 0.1 == np.nextafter(first.lower[1], 1)


def test_emptiness_is_exact() -> None:
    digits = "0.1000000000000000055511151231257827"
    empty = f"(assert (<= X_0 {digits}1))(assert (>= X_0 {digits}2))"
    point = f"(assert (<= X_0 {digits}1))(assert (>= X_0 {digits}1))"
    assert cases(DECLARED + empty) == []
    assert len(cases(DECLARED + point)) == 1
    assert len(cases(DECLARED + "(assert (< X_0 1))(assert (> X_0 1))")) == 1  # closed
    assert cases(DECLARED + UNIT + "(assert (or (< 1 1) (and (<= X_0 2) (<= X_0 -2))))") == []
    assert len(cases(DECLARED + UNIT + "(assert (or (<= 1 1) (<= Y_0 1)))")) == 2


def test_every_case_needs_bounds() -> None:
    assert "input 0" in refused(DECLARED + "(assert (or (<= X_0 1) (>= X_0 1)))")
    assert "input 0" in refused(DECLARED + UNIT[:19] + "(assert (<= (+ X_0 Y_0) 1))")
    assert "1e308" in refused(DECLARED + "(assert (<= X_0 1.2e308))")


def test_arrays_are_shared_and_read_only() -> None:
    text = DECLARED + UNIT + "(assert (or (<= Y_0 0) (<= Y_1 0) (and (<= Y_1 9) (<= X_0 0))))"
    first, second, third = cases(text)
    assert first.lower is second.lower
    assert first.upper is second.upper
    assert third.upper.tolist() == [0.0]
    with pytest.raises(ValueError, match="read-only"):
        first.lower[0] = 0.0


def test_the_dnf_is_not_expanded_before_it_is_asked_for() -> None:
    either = "(assert (or (<= Y_0 0) (<= Y_1 0) (<= X_0 Y_1)))"
    found = read(DECLARED + UNIT + either * 1000).cases()
    assert [row.outputs for row in next(found).rows] == [((0, 1),)]
    assert len(next(found).rows) == 2


@pytest.mark.parametrize(
    "opening", ["(and ", "(or ", "(or (<= Y_0 0) (and (>= X_0 0) ", "(", "(<= ", "(- (- "]
)
def test_depth_is_no_problem(opening: str) -> None:
    count = opening.count("(and") + opening.count("(or") or 1
    inner = "(<= Y_1 1)"
    if "- " in opening:
        opening, inner, count = "(<= " + "(- " * 100_000, "Y_1", 1
        text = f"(assert {opening}{inner}{')' * 100_000} 1))"
    else:
        depth = 100_000 if count == 1 else 3_000
        text = f"(assert {opening * depth}{inner}{')' * depth * count})"
    if opening in ("(", "(<= "):
        refused(DECLARED + UNIT + text)
    else:
        spec = read(DECLARED + UNIT + text)
        assert spec.holds([Fraction(1)], [Fraction(1), Fraction(1)])
        assert not spec.holds([Fraction(1)], [Fraction(1), Fraction(2)])
        assert len(next(spec.cases()).rows) == 1


@pytest.mark.parametrize(
    "term",
    [
        "(* 1e2000 " * 3000 + "Y_0" + ")" * 3000,
        "(* " + "1e2000 " * 3000 + "Y_0)",
        "(+ X_0 Y_0 Y_1 " * 2_000 + "Y_0" + ")" * 2_000,
    ],
)
def test_arithmetic_ends(term: str) -> None:
    text = DECLARED + UNIT + f"(assert (<= {term} 0))"
    if term.startswith("(*"):
        assert "nested too deeply" in refused(text)
    else:
        (row,) = cases(text)[0].rows
        assert row.outputs == ((0, 2001), (1, 2000))


def test_nested_sums_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcert.checker.spec._LARGEST_WORK", 500)
    text = DECLARED + UNIT + "(assert (<= " + "(+ Y_1 " * 400 + "Y_0" + ")" * 400 + " 0))"
    assert "nested too deeply" in refused(text)


def test_errors_say_what_and_where() -> None:
    error = Rejected("R8", "case 3, leaf 7", "the bound is not positive")
    assert str(error) == "R8, case 3, leaf 7: the bound is not positive"
    assert (error.rule, error.place) == ("R8", "case 3, leaf 7")
    assert error.reason == "the bound is not positive"


def _benchmark_specs() -> list[str]:
    folder = os.environ.get("ONNXCERT_BENCHMARKS")
    if not folder:
        return [""]
    with (Path(folder) / "instances.csv").open(newline="", encoding="utf-8") as stream:
        return sorted({row["vnnlib"] for row in csv.DictReader(stream)})


@pytest.mark.benchmarks
@pytest.mark.parametrize("name", _benchmark_specs())
def test_same_cases_on_the_competition_files(name: str, instances: Path) -> None:
    path = instances.parent / name
    query, spec = read_query(path), read_spec(path.read_bytes())
    assert spec.version == query.version
    assert checker_cases(spec) == engine_cases(query)


@pytest.mark.parametrize("text", ["1", "-.5e-3", "+0.1", "0", "-0.0", "1e308", "1e-400", "3."])
@pytest.mark.parametrize("operator", ["<=", ">="])
def test_bounds_of_an_input_are_read_alike_alone_and_inside_a_condition(
    operator: str, text: str
) -> None:
    """The first is read at once, the second token by token."""
    alone = read(f"{DECLARED}(assert({operator} X_0 ;c\n {text} ) )")
    inside = read(f"{DECLARED}(assert (and ({operator} X_0 {text})))")
    (group,) = inside.formula.children
    assert not isinstance(group, type(alone.formula.children[0]))
    assert alone.formula.children == group.children  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text", ["(assert (<=X_0 1))", "(assert (<= X_1 1))", "(assert (<= X_0 1)"]
)
def test_what_only_looks_like_a_bound_is_refused(text: str) -> None:
    with pytest.raises(Unusable):
        read(f"{DECLARED}{UNIT}{text}")


def test_a_bound_beyond_float64_is_refused_with_its_line() -> None:
    with pytest.raises(Unusable, match="line 5: a number is beyond 1e308"):
        read(f"{DECLARED}{UNIT}(assert (<= X_0 1.5e308))")


@pytest.mark.parametrize("number", ["0.1", "-3", "1e-3", "+2.50", "0.30000000000000004e1", "1e30"])
@pytest.mark.parametrize("relation", ["<=", ">="])
@pytest.mark.parametrize("variable", ["X_0", "Y_0"])
def test_bounds_within_disjunctions_are_those_of_the_general_way(
    variable: str, relation: str, number: str
) -> None:
    """The same bound, in one go and as a difference of a sum and a number."""
    declared = "(declare-const X_0 Real)(declare-const Y_0 Real)"
    declared += "(assert (>= X_0 -7))(assert (<= X_0 7.5))"

    def text(left: str) -> str:
        other = "(and (<= X_0 1) (<= Y_0 2))"
        return f"{declared}(assert (or (and ({relation} {left} {number}) (<= Y_0 1)) {other}))"

    found, general = read(text(variable)).formula, read(text(f"(+ {variable})")).formula
    assert found == general
    for made, again in zip(cases(text(variable)), cases(text(f"(+ {variable})")), strict=True):
        assert (made.rows, made.ball) == (again.rows, again.ball)
        np.testing.assert_array_equal(made.lower, again.lower)
        np.testing.assert_array_equal(made.upper, again.upper)
