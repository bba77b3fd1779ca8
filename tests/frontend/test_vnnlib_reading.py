"""What the readers accept, and what it means."""

from __future__ import annotations

import csv
import gzip
import logging
from fractions import Fraction
from pathlib import Path

import pytest

from onnxcert.errors import SpecError, UnsupportedSpec
from onnxcert.frontend import sexpr
from onnxcert.frontend.vnnlib import parse_query, read_query
from onnxcert.spec import Atom, BoxUnion
from onnxcert.spec.tree import atoms

DECLARED = "(declare-const X_0 Real)\n(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n"
NETWORK = """(vnnlib-version <2.0>)
(declare-network N (declare-input X real [1,2]) (declare-output Y real [2]))
"""


def holds(assertion: str, x: list[float], y: list[float], *, header: str = DECLARED) -> bool:
    answers = {
        parse_query(header + assertion, fast=fast).holds({"X": x, "Y": y}) for fast in (True, False)
    }
    assert len(answers) == 1
    return answers.pop()


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("(<= X_0 0.5)", True),
        ("(< X_0 0.5)", False),
        ("(>= 0.5 X_0)", True),
        ("(> 0.5 X_0)", False),
        ("(= X_0 5e-1)", True),
        ("(= X_0 Y_0)", False),
        ("(<= Y_0 Y_1)", True),
        ("(> (+ X_0 Y_0 Y_1) 3.5)", False),
        ("(>= (+ X_0 Y_0 Y_1) 3.5)", True),
        ("(<= (- Y_1 Y_0 X_0) 0.5)", True),
        ("(< (- Y_1) -2)", False),
        ("(= (* 2 X_0) Y_0)", True),
        ("(= (* X_0 Y_0 Y_1) 1)", True),
        ("(= (* (+ X_0 Y_0) (- X_0 Y_0)) -0.75)", True),
        ("(and (<= Y_0 1) (or (<= Y_1 1) (>= Y_1 2)))", True),
        ("(or (and (<= Y_0 0) (>= Y_0 0)) (and (<= Y_1 1)))", False),
        ("(<= 1 2)", True),
        ("(< 2 2)", False),
        ("(or (< X_0 X_0) (<= Y_0 (- Y_0 Y_0)))", False),
    ],
)
def test_meaning_of_1_0(condition: str, expected: bool) -> None:
    assert holds(f"(assert {condition})", [0.5], [1, 2]) == expected


def test_unary_minus_and_constants_in_front() -> None:
    query = parse_query(DECLARED + "(assert (<= (- (* 2 X_0)) (- 3)))")
    (atom,) = atoms(query.assertions)
    assert atom.polynomial.terms[0].coefficient == -2
    assert atom.polynomial.constant == 3


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("(== X[0,1] 0.25)", True),
        ("(!= X[0,1] 0.25)", False),
        ("(!= Y[0] Y[1])", True),
        ("(< Y[1] 2)", False),
        ("(<= (* X[0,0] X[0,1]) 0.125)", True),
        ("(< X[ 0 , 1 ] 1.0)", True),
        ("(<= X [0,1] 1e-1)", False),
    ],
)
def test_meaning_of_2_0(condition: str, expected: bool) -> None:
    assert holds(f"(assert {condition})", [0.5, 0.25], [1, 2], header=NETWORK) == expected


def test_all_assertions_count() -> None:
    text = "(assert (<= X_0 1))(assert (<= Y_0 1))(assert (or (<= Y_1 0) (>= X_0 0)))"
    assert holds(text, [0.5], [1, 2])
    assert not holds(text, [-0.5], [1, 2])
    assert not holds(text, [0.5], [2, 2])


def test_comments_do_not_count() -> None:
    text = DECLARED + "; (assert (<= X_0 0))\n(assert (<= X_0 1)) ; (assert (<= X_0 0))\r\n"
    assert parse_query(text).holds({"X": [0.5], "Y": [0, 0]})
    assert not parse_query(text).holds({"X": [1.5], "Y": [0, 0]})


def test_a_comment_may_look_like_the_header_of_the_other_version() -> None:
    text = "; (vnnlib-version <2.0>)\n;\n" + DECLARED + "(assert (<= X_0 1))"
    assert parse_query(text).version == "1.0"


def test_declarations_between_assertions() -> None:
    text = "(declare-const X_0 Real)(assert (<= X_0 1))(declare-const Y_0 Real)(assert (<= Y_0 0))"
    query = parse_query(text)
    assert [tensor.shape for tensor in query.tensors] == [(1,), (1,)]
    assert query.holds({"X": [1], "Y": [0]})
    assert not query.holds({"X": [1], "Y": [1]})


def test_dialect_is_told_by_content(tmp_path: Path) -> None:
    path = tmp_path / "looks_like_2.0.vnnlib"
    path.write_text(DECLARED + "(assert (<= X_0 1))")
    assert read_query(path).version == "1.0"
    path.write_text("; a remark\n\n" + NETWORK.replace("2.0", "2.1") + "(assert (<= X[0,1] 1.0))")
    assert read_query(path).version == "2.1"


def test_gzip_is_told_by_content(tmp_path: Path) -> None:
    path = tmp_path / "spec.vnnlib"
    path.write_bytes(gzip.compress((DECLARED + "(assert (<= X_0 1))").encode()))
    query = read_query(path)
    assert query.source == str(path)
    assert query.holds({"X": [1], "Y": [0, 0]})


def test_decompression_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sexpr, "LARGEST_FILE", 10**5)
    path = tmp_path / "bomb.vnnlib.gz"
    path.write_bytes(gzip.compress(b" " * 10**8))
    with pytest.raises(SpecError, match="more than 100000 bytes"):
        read_query(path)


def test_truncated_gzip(tmp_path: Path) -> None:
    path = tmp_path / "cut.vnnlib.gz"
    path.write_bytes(gzip.compress((DECLARED + "(assert (<= X_0 1))" * 1000).encode())[:-20])
    with pytest.raises(SpecError, match="cannot be read"):
        read_query(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        read_query(tmp_path / "nowhere.vnnlib")
    with pytest.raises(SpecError, match="cannot be read: Is a directory"):
        read_query(tmp_path)


@pytest.mark.parametrize("opening", ["(or (<= Y_0 0) (and (>= X_0 0) ", "(and ", "(or "])
def test_deep_formulas(opening: str) -> None:
    depth = 10_000
    formula = opening * depth + "(<= Y_1 1)" + ")" * depth * opening.count(" (and") + ")" * depth
    for fast in (True, False):
        query = parse_query(DECLARED + f"(assert {formula})", fast=fast)
        assert query.holds({"X": [1], "Y": [1, 1]})
        assert not query.holds({"X": [1], "Y": [1, 2]})


@pytest.mark.parametrize(
    ("opening", "value"), [("(- ", 1), ("(+ 1 ", 10_001), ("(+ Y_0 ", 10_001), ("(* -1 ", 1)]
)
def test_deep_terms(opening: str, value: int) -> None:
    text = f"(assert (= {opening * 10_000}Y_0{')' * 10_000} {value}))"
    assert holds(text, [0], [1, 0])
    assert not holds(text, [0], [2, 0])


@pytest.mark.parametrize(
    "term",
    [
        "(* " + " ".join(["(+ X_0 Y_0 Y_1)"] * 500) + ")",
        "(* " + " ".join(["X_0"] * 500) + ")",
        "(* " * 300 + "X_0" + " 1e300)" * 300,
    ],
)
def test_terms_that_explode_are_refused(term: str) -> None:
    with pytest.raises(UnsupportedSpec):
        parse_query(DECLARED + f"(assert (<= {term} 0))")


def test_literals_stay_exact() -> None:
    text = "0.1000000000000000055511151231257827021181583404541015625"  # the double 0.1
    for condition in (f"(assert (<= X_0 {text}))", f"(assert (<= Y_0 {text}))"):
        assert holds(condition, [0.1], [0.1, 0])
    below = text[:-1] + "4"
    for condition in (f"(assert (<= X_0 {below}))", f"(assert (<= Y_0 {below}))"):
        assert not holds(condition, [0.1], [0.1, 0])


def test_source_lines_of_comparisons() -> None:
    query = parse_query(DECLARED + "(assert (<= X_0 1))\n\n(assert\n (or (<= Y_0 1)\n(>= Y_1 1)))")
    assert [atom.line for atom in atoms(query.assertions)] == [7, 8]


def test_departures_from_the_standard_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    text = NETWORK + "( assert (<= X[0,0] 1e-3))\n( assert (<= Y[0] 1.0))"
    with caplog.at_level(logging.WARNING):
        query = parse_query(text)
    assert query.holds({"X": [0.001, 0], "Y": [1, 0]}) is False  # the decimal is smaller
    messages = [record.getMessage() for record in caplog.records]
    assert any("a blank between '('" in m and "<text>:3:3" in m for m in messages)
    with caplog.at_level(logging.WARNING):
        parse_query(NETWORK + "(assert (<= Y[0] 1e-3))")
    assert any("exponents" in r.getMessage() for r in caplog.records)


def test_newer_minor_versions_are_read_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        query = parse_query(NETWORK.replace("2.0", "2.7") + "(assert (<= Y[0] 1.0))")
    assert query.version == "2.7"
    assert "VNN-LIB 2.7 is read as 2.1" in caplog.text


def test_integer_literals_beside_floats() -> None:
    query = parse_query(NETWORK.replace("real", "float32") + "(assert (<= Y[0] 1))")
    assert query.holds({"X": [0, 0], "Y": [1, 0]})


def test_sparse_unions_are_stored_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcert.frontend.assemble.LARGEST_UNION", 3)
    text = "".join(f"(declare-const X_{i} Real)" for i in range(4)) + "(declare-const Y_0 Real)"
    text += "(assert (or (<= X_0 0) (and (>= X_1 1) (<= X_1 2)) (<= X_2 Y_0) (>= X_3 5)))"
    query = parse_query(text)
    unions = [leaf for leaf in query.assertions[0].children if isinstance(leaf, BoxUnion)]  # type: ignore[union-attr]
    assert [len(union) for union in unions] == [1, 1, 1]
    assert query.holds({"X": [1, 1.5, 1, 0], "Y": [0]})
    assert query.holds({"X": [1, 0, 1, 5], "Y": [0]})
    assert not query.holds({"X": [1, 0, 1, 0], "Y": [0]})


def test_constants_are_folded() -> None:
    (atom,) = parse_query(DECLARED + "(assert (<= (+ Y_0 (- Y_0) (* 0 X_0)) 1))").assertions
    assert isinstance(atom, Atom)
    assert atom.polynomial.terms == ()
    assert atom.polynomial.constant == Fraction(-1)


@pytest.mark.benchmarks
def test_every_competition_file_is_read(instances: Path) -> None:
    with instances.open() as file:
        rows = {row["vnnlib"]: row for row in csv.DictReader(file)}
    assert len(rows) > 100
    for name, row in rows.items():
        query = read_query(instances.parent / name)
        sizes = {"input": 0, "output": 0, "hidden": 0}
        for tensor in query.tensors:
            sizes[tensor.kind] += tensor.size
        assert query.version == row["vnnlib_version"], name
        assert sizes == {
            "input": int(row["inputs"]),
            "output": int(row["outputs"]),
            "hidden": 0,
        }, name
