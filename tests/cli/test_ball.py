"""``onnxcert MODEL --norm 2 --eps E --input FILE.npy``."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxcert
from onnxcert.checker import check
from onnxcert.frontend.lower import lower_query
from onnxcert.frontend.vnnlib import read_query
from onnxcert.spec import Ellipsoid
from tests.checker.makers import dense
from tests.cli.conftest import Call, Ended, Files

Ask = Callable[..., Ended]


@pytest.fixture
def ask(call: Call, files: Files, tmp_path: Path) -> Ask:
    """``Y = relu(X)`` round (1, 0.5), whose class is 0: the other is reached at a distance of
    sqrt(1/8), and at 1/4 in the maximum norm."""
    np.save(tmp_path / "x.npy", np.array([1.0, 0.5], np.float32))
    return lambda *words: call(files.model, "--input", tmp_path / "x.npy", *words)


@pytest.mark.parametrize(
    ("norm", "eps", "word"),
    [
        ("2", "0.3535", "unsat"),
        ("2", "0.3536", "sat"),
        ("inf", "0.2499", "unsat"),
        ("inf", "0.25", "sat"),
        ("2", "0", "unsat"),
    ],
)
def test_the_answer_has_a_certificate(
    ask: Ask, files: Files, tmp_path: Path, norm: str, eps: str, word: str
) -> None:
    proof = tmp_path / "ball.onnxcert"
    ended = ask("--norm", norm, "--eps", eps, "--certificate", proof)
    assert (ended.code, ended.out.splitlines()[0]) == (0, word)
    verified = check(proof, files.model, tmp_path / "ball.vnnlib")
    assert verified.verdict == word
    assert onnxcert.verify(files.model, tmp_path / "ball.vnnlib").word == word


def test_the_query_is_what_was_asked(ask: Ask, tmp_path: Path) -> None:
    spec = tmp_path / "spec.vnnlib"
    words = ("--norm", "2", "--eps", "0.1", "--domain", "-1e-1", "1.05", "--save-spec", spec)
    assert ask(*words).out == "unsat\n"
    (problem,) = lower_query(read_query(spec)).cases
    weight = 1 / Fraction(1, 10) ** 2
    assert problem.ellipsoids == (
        Ellipsoid((0, 1), (weight, weight), (Fraction(1), Fraction(1, 2))),
    )
    assert problem.upper[0] == pytest.approx([1.05, 0.6])
    assert Fraction(problem.upper[0, 0]) >= Fraction("1.05")
    assert "(* (- X[0,0] 1.0) (- X[0,0] 1.0))" in spec.read_text(encoding="utf-8")


def test_labels(ask: Ask) -> None:
    assert ask("--norm", "2", "--eps", "0.1", "--label", "0").out == "unsat\n"
    assert ask("--norm", "2", "--eps", "0.1", "--label", "auto").out == "unsat\n"
    assert ask("--norm", "2", "--eps", "0.1", "--label", "1").out.startswith("sat\n")


def test_one_of_several_inputs(call: Call, files: Files, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[1.0, 0.5], [1.0, 0.95]]))
    ask = (files.model, "--norm", "2", "--eps", "0.1", "--input", tmp_path / "x.npy")
    assert call(*ask).out == "unsat\n"
    assert call(*ask, "--index", 1).out.startswith("sat\n")
    assert "there is no input 2 among 2" in call(*ask, "--index", 2).err


def test_the_record_of_a_run(ask: Ask, tmp_path: Path) -> None:
    record, spec = tmp_path / "r.json", tmp_path / "s.vnnlib"
    ask("--norm", "2", "--eps", "0.1", "--json", record, "--save-spec", spec)
    assert json.loads(record.read_text())["files"]["spec"]["path"] == str(spec)
    ended = ask("--norm", "2", "--eps", "0.1", "--label", "7", "--json", record)
    assert (ended.code, ended.out) == (2, "")
    assert "label 7 is not among the 2 outputs" in ended.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--eps", "0.1"), "--eps needs --norm 2 or --norm inf"),
        (("--norm", "2"), "--norm needs --eps and --input"),
        (("--norm", "1", "--eps", "0.1"), "invalid choice: '1'"),
        (("--norm", "2", "--eps", "-1"), "'-1' is not a radius"),
        (("--norm", "2", "--eps", "nan"), "'nan' is not a number"),
        (("--norm", "2", "--eps", "1e999999999"), "'1e999999999' is not a number"),
        (("--norm", "2", "--eps", "0.1", "--domain", "0"), "expected 2 arguments"),
        (("--norm", "2", "--eps", "0.1", "--domain", "2", "3"), "nothing is left of the ball"),
        (("--norm", "2", "--eps", "0.1", "--domain", "0", "inf"), "'inf' is not a number"),
        (("--norm", "2", "--eps", "0.1", "--label", "-1"), "'-1' is not a whole number"),
        (("s.vnnlib", "--norm", "2", "--eps", "0.1"), "--norm takes the place of SPEC"),
    ],
)
def test_wrong_words(ask: Ask, words: tuple[str, ...], message: str) -> None:
    ended = ask(*words)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(3), "the input has 3 elements, the model 2"),
        (np.zeros((1, 3)), "the input has 3 elements, the model 2"),
        (np.full(2, np.longdouble("1e400")), "the input holds NaN or infinity"),
        (np.array([np.nan, 0.0]), "the input holds NaN or infinity"),
        (np.array(["a", "b"]), "no array of numbers"),
    ],
)
def test_wrong_inputs(
    call: Call, files: Files, tmp_path: Path, values: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "x.npy", values)
    spec = tmp_path / "s.vnnlib"
    words = ("--norm", "2", "--eps", "0.1", "--save-spec", spec)
    ended = call(files.model, *words, "--input", tmp_path / "x.npy")
    assert (ended.code, ended.out) == (3, "")
    assert message in ended.err
    assert not spec.exists()


def test_files_are_not_overwritten(ask: Ask, files: Files, tmp_path: Path) -> None:
    for path in (files.model, tmp_path / "x.npy"):
        ended = ask("--norm", "2", "--eps", "0.1", "--save-spec", path)
        assert (ended.code, ended.out) == (2, "")
        assert "--save-spec would overwrite an input" in ended.err
    proof = tmp_path / "p.vnnlib"
    ended = ask("--norm", "2", "--eps", "0.1", "--certificate", proof)
    assert "--certificate and --save-spec name the same file" in ended.err


def test_no_input_among_none(ask: Ask, call: Call, files: Files, tmp_path: Path) -> None:
    np.save(tmp_path / "none.npy", np.zeros((0, 2)))
    ended = call(files.model, "--norm", "2", "--eps", "0.1", "--input", tmp_path / "none.npy")
    assert (ended.code, ended.out) == (2, "")
    assert "there is no input 0 among 0" in ended.err


def test_what_others_wrote_is_not_overwritten(ask: Ask, tmp_path: Path) -> None:
    """The query beside a certificate takes the place of an older query, and of nothing else."""
    words = ("--norm", "2", "--certificate", tmp_path / "p.onnxcert", "--eps")
    spec = tmp_path / "p.vnnlib"
    spec.write_text("; mine\n")
    ended = ask(*words, "0.1")
    assert (ended.code, ended.out) == (2, "")
    assert "would overwrite a file" in ended.err
    assert spec.read_text() == "; mine\n"
    assert not (tmp_path / "p.onnxcert").exists()
    assert ask(*words, "0.1", "--save-spec", spec).out == "unsat\n"
    first = spec.read_text()
    assert ask(*words, "0.2").out == "unsat\n"
    assert spec.read_text() != first


@pytest.mark.parametrize("path", ["", "/", ".."])
def test_certificates_without_a_name(ask: Ask, path: str) -> None:
    ended = ask("--norm", "2", "--eps", "0.1", "--certificate", path)
    assert (ended.code, ended.out) == (2, "")
    assert "the output file is a folder" in ended.err


def test_nothing_lies_beside_a_device(ask: Ask, tmp_path: Path) -> None:
    device = tmp_path / "null"
    device.symlink_to("/dev/null")
    assert ask("--norm", "2", "--eps", "0.1", "--certificate", device).out == "unsat\n"
    assert not (tmp_path / "null.vnnlib").exists()


def test_models_without_a_class(call: Call, tmp_path: Path) -> None:
    one, huge = dense([2, 1], 0), dense([2, 2], 0)
    for tensor in huge.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(1e38 * numpy_helper.to_array(tensor), tensor.name))
    np.save(tmp_path / "x.npy", np.array([1e300, 0.0]))
    for name, model, code, message in (
        ("one", one, 2, "a model with one output has no classes"),
        ("huge", huge, 3, "the model's outputs at the input are not finite"),
    ):
        onnx.save(model, tmp_path / name)
        words = ("--norm", "2", "--eps", "0.1", "--input", tmp_path / "x.npy")
        ended = call(tmp_path / name, *words)
        assert (ended.code, ended.out) == (code, "")
        assert message in ended.err


def test_balls_in_code(files: Files) -> None:
    x = np.array([1.0, 0.5])
    assert onnxcert.verify(files.model, onnxcert.l2_ball(x, 0.35, label=0)).word == "unsat"
    found = onnxcert.verify(files.model, onnxcert.l2_ball(x, Decimal("0.36"), label=0))
    assert isinstance(found.verdict, onnxcert.Sat)
    (inside,) = found.verdict.counterexample.inputs.values()
    squares = sum(
        (Fraction(float(v)) - Fraction(float(c))) ** 2 for v, c in zip(inside[0], x, strict=True)
    )
    assert squares <= Fraction(36, 100) ** 2
