"""`onnxcert check`: what it prints and returns; tests/checker/test_command.py has the module."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnxcert
from onnxcert.checker import Rejected, Unusable
from tests.cli.conftest import Call, Files


@pytest.fixture
def proof(call: Call, files: Files, tmp_path: Path) -> Path:
    """A certificate of `Files.unsat`."""
    path = tmp_path / "proof.onnxcert"
    assert call(files.model, files.unsat, "--certificate", path).out == "unsat\n"
    return path


@pytest.mark.parametrize("options", [(), ("--semantics", "real"), ("--audit=1",), ("--jobs=2",)])
def test_a_proof_is_verified(
    call: Call, files: Files, proof: Path, options: tuple[str, ...]
) -> None:
    ended = call("check", "--model", files.model, proof, "--spec", files.unsat, *options)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("VERIFIED UNSAT (real)")
    assert ended.out.count("\n") == 1
    assert ("audited" in ended.out) == ("--audit=1" in options)


def test_a_proof_of_something_else_is_rejected(call: Call, files: Files, proof: Path) -> None:
    ended = call("check", proof, "--model", files.model, "--spec", files.sat)
    assert (ended.code, ended.err) == (1, "")
    assert ended.out.startswith("REJECTED: R0, spec_sha256, ")
    ended = call("check", proof, "--model", files.hard_model, "--spec", files.hard_spec)
    assert (ended.code, ended.err) == (1, "")
    assert ended.out.startswith("REJECTED: R0, ")


def test_more_may_be_asked_than_was_proved(call: Call, files: Files, proof: Path) -> None:
    names = (files.model, "--spec", files.unsat)
    ended = call("check", proof, "--model", *names, "--semantics=ieee32-any-order")
    assert (ended.code, ended.out.split(",")[:2]) == (1, ["REJECTED: R0", " semantics"])
    call(files.model, files.unsat, "--semantics=ieee32-any-order", "--certificate", proof)
    for options in ((), ("--semantics=real",), ("--semantics=ieee32-any-order",)):
        ended = call("check", proof, "--model", *names, *options)
        assert (ended.code, ended.out) == (0, "VERIFIED UNSAT (ieee32-any-order)\n")


@pytest.mark.parametrize("role", ["proof", "model", "spec"])
def test_missing_files_are_unusable(
    call: Call, files: Files, proof: Path, tmp_path: Path, role: str
) -> None:
    missing = tmp_path / "missing"
    paths = {"proof": proof, "model": files.model, "spec": files.unsat} | {role: missing}
    ended = call("check", paths["proof"], "--model", paths["model"], "--spec", paths["spec"])
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"error: {missing}: No such file or directory\n"


def test_the_library_has_the_same_answers(files: Files, proof: Path, tmp_path: Path) -> None:
    verified = onnxcert.check(str(proof), str(files.model), str(files.unsat), semantics="real")
    assert str(verified) == "VERIFIED UNSAT (real)"
    audited = onnxcert.check(proof, files.model, files.unsat, audit=1, jobs=1)
    assert (audited.claims, audited.audited) == (("real",), 1)
    with pytest.raises(Rejected) as caught:
        onnxcert.check(proof, files.model, files.sat)
    assert (caught.value.rule, caught.value.place) == ("R0", "spec_sha256")
    with pytest.raises(Unusable):
        onnxcert.check(tmp_path / "missing", files.model, files.sat)
