"""Chapter 5 of the VNN-LIB standard: every capability, in its form, and none that is not there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from onnxcert.checker.operators import OPERATORS
from onnxcert.cli.supports import CAPABILITIES, certified_operators
from onnxcert.frontend.onnx import supported_operators
from tests.cli import samples
from tests.cli.conftest import Call, Files

THEORIES = {
    "hidden-node-theories": {"NH", "H"},
    "multiple-input-output-theories": {"SIO", "MIO"},
    "multiple-network-theories": {"SNET", "MENET", "MINET", "MNET"},
    "multiple-node-comparison-theories": {"SNC", "MNC"},
    "arithmetic-complexity-theories": {"BND", "OUTC", "LIN", "POLY"},
}
STANDARD = {
    "onnx-opset-versions",
    "onnx-element-types",
    "onnx-operators",
    "onnx-operators-unsat-proofs",
    "vnnlib-versions",
    "optimised-disjunctive-reasoning",
    "serialise-assignments",
    "unsat-proofs",
    *THEORIES,
}


def test_every_capability_of_the_standard_is_answered() -> None:
    assert set(CAPABILITIES) - {"settings", "certificates"} == STANDARD


@pytest.mark.parametrize("name", sorted(STANDARD))
def test_answers_are_lines(call: Call, name: str) -> None:
    ended = call("supports", f"--{name}")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "".join(f"{line}\n" for line in ended.out.split())


@pytest.mark.parametrize("name", ["onnx-opset-versions", "vnnlib-versions"])
def test_versions_are_two_lines(call: Call, name: str) -> None:
    oldest, newest = call("supports", f"--{name}").out.splitlines()
    assert re.fullmatch(r"\d+(\.\d+)?", oldest)
    assert float(oldest) <= float(newest)


@pytest.mark.parametrize("name", sorted(THEORIES))
def test_theories_have_names_of_the_standard(call: Call, name: str) -> None:
    assert set(call("supports", f"--{name}").out.split()) <= THEORIES[name]


def test_truth_values(call: Call) -> None:
    assert call("supports", "--serialise-assignments").out == "true\n"
    assert call("supports", "--optimised-disjunctive-reasoning").out == "false\n"
    assert call("supports", "--unsat-proofs").out == "true\n"


def test_claimed_types_are_proved_in_their_own_arithmetic(
    call: Call, files: Files, tmp_path: Path
) -> None:
    claimed = call("supports", "--onnx-element-types").out.split()
    semantics = {"real": "real", "float32": "ieee32-any-order"}
    assert claimed == list(semantics)
    for kind in claimed:
        spec = samples.spec_2("(assert (>= B[0,0] 5.0))", tmp_path / "s.vnnlib", kind)
        record = tmp_path / "record.json"
        assert call(files.model, spec, "--json", record).out == "unsat\n"
        assert json.loads(record.read_text())["proof"]["claims"] == [semantics[kind]]


def test_operators_are_those_of_the_registry(call: Call) -> None:
    assert call("supports", "--onnx-operators").out.split() == list(supported_operators())


def test_every_operator_is_certified_or_declared_not_to_be(call: Call) -> None:
    header, *rows = call("supports", "--certificates").out.splitlines()
    assert header.split() == ["operator", "certificates"]
    states = dict(row.split(maxsplit=1) for row in rows)
    assert list(states) == list(supported_operators())
    assert set(states.values()) <= {"certified", "not certified"}
    certified = [name for name, state in states.items() if state == "certified"]
    assert certified == certified_operators()
    assert call("supports", "--onnx-operators-unsat-proofs").out.split() == certified
    assert {"Gemm", "Relu", "Conv", "MaxPool", "Sigmoid"} <= set(certified)


def test_an_operator_that_the_checker_does_not_read_is_not_certified(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(OPERATORS, "Tanh")
    assert "Tanh" not in certified_operators()
    assert re.search(r"^Tanh +not certified$", call("supports", "--certificates").out, re.MULTILINE)


def test_claimed_theories_are_answered(call: Call, files: Files, tmp_path: Path) -> None:
    """One query that uses a hidden tensor, compares different nodes, and is linear."""
    spec = tmp_path / "hidden.vnnlib"
    spec.write_text("""(vnnlib-version <2.0>)
(declare-network net
    (declare-input A real [1,2])
    (declare-hidden H real [1,2] "relu1")
    (declare-output B real [1,2]))
(assert (and (>= A[0,0] 0.25) (<= A[0,0] 1.0) (>= A[0,1] 0.0) (<= A[0,1] 1.0)))
(assert (or (> (+ H[0,0] (* 2.0 A[0,1])) 2.9) (< B[0,0] A[0,0])))
""")
    ended = call(files.model, spec)
    assert (ended.code, ended.err) == (0, "")
    assert [line for line in ended.out.splitlines() if "real" in line] == [
        "A real [1,2]",
        "H real [1,2]",
        "B real [1,2]",
    ]
