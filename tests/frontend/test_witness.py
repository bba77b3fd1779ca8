"""Witnesses as text and as tensors."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxcert.errors import SpecError, UsageError
from onnxcert.frontend.vnnlib import parse_query
from onnxcert.frontend.witness import format_witness, parse_witness, write_assignments

OLD = parse_query(
    "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)(assert (<= X_0 1))"
)
NEW = parse_query(
    """(vnnlib-version <2.0>)
    (declare-network f (declare-input A float32 [2,1]) (declare-input B int32 [])
      (declare-hidden H float64 [1,2] "h") (declare-output C real [1]))
    (declare-network g (declare-input D float32 [1]) (declare-output E float32 [1]))
    (assert (<= A[0,0] 1.0))"""
)
VALUES = {
    "A": np.array([[0.1], [1e-12]], np.float32),
    "B": np.array(-3, np.int32),
    "H": np.array([[0.1, 1 / 3]]),
    "C": np.array([2.5]),
    "D": np.array([3.0], np.float32),
    "E": np.array([-0.0], np.float32),
}


def test_form_of_1_0() -> None:
    values = {"X": np.array([[0.1, -2]], np.float32), "Y": np.array([1 / 3])}
    assert format_witness(OLD, values) == (
        "((X_0 0.100000001490116119384765625)\n(X_1 -2)\n"
        "(Y_0 0.333333333333333314829616256247390992939472198486328125))"
    )


def test_form_of_2_0() -> None:
    values = {**VALUES, "A": np.array([[0.1], [2**-12]], np.float32), "H": np.array([0.5, -1e3])}
    assert format_witness(NEW, values).splitlines() == [
        "A float32 [2,1]",
        "0.100000001490116119384765625",
        "0.000244140625",
        "B int32 []",
        "-3",
        "H float64 [1,2]",
        "0.5",
        "-1000",
        "C real [1]",
        "2.5",
        "D float32 [1]",
        "3",
        "E float32 [1]",
        "-0",
    ]


def test_inputs_that_no_float_can_be_are_written_as_decimals() -> None:
    values = {"X": np.array([0.1, 0.5]), "Y": np.array([0.0])}
    text = format_witness(OLD, values, {"X": {0: Fraction("0.1")}})
    assert text == "((X_0 0.1)\n(X_1 0.5)\n(Y_0 0))"
    again = parse_witness(OLD, text)
    assert again["X"].tolist() == [0.1, 0.5]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3))
def test_doubles_come_back(numbers: list[float]) -> None:
    values = {"X": np.array(numbers[:2]), "Y": np.array(numbers[2:])}
    again = parse_witness(OLD, "sat\n" + format_witness(OLD, values) + "\n")
    for name, array in values.items():
        assert again[name].tobytes() == array.tobytes()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2))
def test_floats_come_back(numbers: list[float]) -> None:
    values = {**VALUES, "A": np.array(numbers, np.float32).reshape(2, 1)}
    again = parse_witness(NEW, "sat\n" + format_witness(NEW, values))
    assert again["A"].dtype == np.float32
    for name, array in values.items():
        assert again[name].shape == array.shape
        assert np.array_equal(again[name], array)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("((X_0 1)(X_1 2)", "the file ends where '\\(' is expected"),
        ("((X_1 1)(X_0 2)(Y_0 3))", "expected X_0, found 'X_1'"),
        ("((X_0 1)(X_1 2)(Y_0 x))", "'x' is no number"),
        ("((X_0 1)(X_1 2)(Y_0 1e9999))", "exponent"),
        ("((X_0 1)(X_1 2)(Y_0 3)) more", "unexpected 'more'"),
    ],
)
def test_broken_text_of_1_0(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_witness(OLD, text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("A float32 [2,1]", "A float32 [1,2]"), r"expected 'A float32 \[2,1\]', found"),
        (("B int32", "B int64"), r"expected 'B int32 \[\]'"),
        (("2.5\n", ""), "'D float32 \\[1\\]' is no number"),
        (("\n-0", ""), "E has only 0 of 1 values, and the file ends"),
        (("\n-0", "\n-0\n7"), "expected the end of the witness, found '7'"),
    ],
)
def test_broken_text_of_2_0(change: tuple[str, str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_witness(NEW, format_witness(NEW, VALUES).replace(*change))


def test_values_must_be_complete() -> None:
    with pytest.raises(UsageError, match="no value of Y"):
        format_witness(OLD, {"X": np.zeros(2)})
    with pytest.raises(UsageError, match="X has 2 elements, the witness 3"):
        format_witness(OLD, {"X": np.zeros(3), "Y": np.zeros(1)})


def test_tensors_have_the_declared_types(tmp_path: Path) -> None:
    values = {name: array.astype(np.float64) for name, array in VALUES.items()}
    write_assignments(tmp_path / "new" / "folder", NEW, values)
    types = {}
    for path in (tmp_path / "new" / "folder").iterdir():
        proto = onnx.TensorProto.FromString(path.read_bytes())
        array = numpy_helper.to_array(proto)
        assert path.name == f"{proto.name}.pb"
        assert np.array_equal(array, VALUES[proto.name])
        assert array.shape == VALUES[proto.name].shape
        types[proto.name] = array.dtype.name
    assert types == {
        "A": "float32",
        "B": "int32",
        "C": "float64",
        "D": "float32",
        "E": "float32",
        "H": "float64",
    }


def test_tensors_are_not_rounded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="D has values that are not float32"):
        write_assignments(tmp_path, NEW, {**VALUES, "D": np.array([0.1])})
