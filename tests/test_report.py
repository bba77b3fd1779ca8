"""Records and the writing of files."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from onnxcert.errors import UnsupportedSpec, UsageError
from onnxcert.files import check_outputs, check_writable, write_file
from onnxcert.report import (
    error_record,
    is_certified,
    plain,
    result_record,
    to_json,
)
from onnxcert.settings import Settings
from onnxcert.verdict import Counterexample, Proof, Reason, Result, Sat, Unknown, Unsat


def test_record_has_one_key_per_line_and_no_other_infinities() -> None:
    bounds = {0: math.inf, 1: -math.inf, 3: 0.1}
    result = Result(Unknown(Reason.INCOMPLETE), None, bounds=bounds, statistics={"x": math.nan})
    text = to_json(result_record(result))
    record = json.loads(text, parse_constant=pytest.fail)
    assert len(text.splitlines()) == len(record) + 2
    assert [entry["lower"] for entry in record["bounds"]] == ["Infinity", "-Infinity", 0.1]
    assert record["statistics"] == {"x": "NaN"}
    assert record["reason"]["code"] == "incomplete"


def test_witness_values_are_exact() -> None:
    values = np.array([[0.1, -1e-40]], np.float32)
    result = Result(Sat(Counterexample({"X": values}, {"Y": values.astype(np.float64)})), None)
    witness = json.loads(to_json(result_record(result)))["witness"]
    (tensor,) = witness["inputs"]
    assert (tensor["type"], tensor["shape"]) == ("float32", [1, 2])
    assert np.array_equal(np.array(tensor["values"], np.float32), values.ravel())
    assert "holds" not in witness["replay"]  # no query, nothing to evaluate


def test_record_says_what_was_proved_and_whether_it_was_checked() -> None:
    proof = Proof(True, ("ieee32-any-order",), 12, 3456, 0.25, "proof.onnxcert")
    certified = Result(Unsat(), None, semantics="ieee32-any-order", proof=proof)
    record = json.loads(to_json(result_record(certified)))
    assert (record["semantics"], record["certified"]) == ("ieee32-any-order", True)
    assert record["proof"] == {
        "accepted": True,
        "claims": ["ieee32-any-order"],
        "leaves": 12,
        "bytes": 3456,
        "seconds": 0.25,
        "path": "proof.onnxcert",
        "message": "",
    }


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (Result(Unsat(), None), False),
        (Result(Unsat(), None, proof=Proof(False, (), 1, 2, 0.0)), False),
        (Result(Sat(Counterexample({}, {})), None), None),
        (Result(Sat(Counterexample({}, {})), None, proof=Proof(False)), False),
        (Result(Sat(Counterexample({}, {})), None, proof=Proof(True, ("x",), 0, 2, 0.0)), True),
        (Result(Unknown(Reason.TIMEOUT), None), None),
        (Result(Unknown(Reason.UNCERTIFIED), None, proof=Proof(False, (), 1, 2, 0.0)), None),
    ],
)
def test_only_an_accepted_proof_certifies(result: Result, expected: bool | None) -> None:
    assert is_certified(result) is expected
    assert result_record(result)["certified"] is expected


def test_error_record_has_cause_place_and_help() -> None:
    error = UnsupportedSpec("too hard", place="file:3", help="simplify")
    record = error_record(error, {"model": Path("m.onnx"), "spec": "s.vnnlib"})
    expected = {"kind": "UnsupportedSpec", "cause": "too hard", "place": "file:3"}
    assert record["error"] == expected | {"help": "simplify"}
    assert record["verdict"] is None
    assert record["files"]["model"] == {"path": "m.onnx"}


def test_plain_values() -> None:
    value = {
        1: np.float32(0.5),
        "array": np.arange(2),
        "flag": np.bool_(True),
        "reason": Reason.MEMORY,
        "settings": Settings(),
        "path": Path("x"),
        "tuple": (1, None),
    }
    converted = plain(value)
    assert converted["1"] == 0.5
    assert converted["array"] == [0, 1]
    assert converted["flag"] is True
    assert converted["reason"] == "memory"
    assert converted["settings"]["splitting"] == "auto"
    assert (converted["path"], converted["tuple"]) == ("x", [1, None])


def test_write_replaces_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_file(path, "old")

    def fail(stream: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UsageError, match="No space left on device"):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    write_file(path, b"new")
    assert path.read_text() == "new"


def test_links_stay_links_and_devices_stay_devices(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    check_writable(link)
    write_file(link, "text")
    assert link.is_symlink()
    assert target.read_text() == "text"
    check_writable(os.devnull)
    write_file(os.devnull, "text")
    assert not Path(os.devnull).is_file()


def test_check_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="a folder"):
        check_writable(tmp_path)
    with pytest.raises(UsageError, match="cannot be written"):
        check_writable(tmp_path / "no" / "file")


def test_every_output_has_a_place_of_its_own(tmp_path: Path) -> None:
    model, one, other = tmp_path / "model", tmp_path / "one", tmp_path / "other"
    model.touch()
    (tmp_path / "link").symlink_to(one)
    check_outputs((None, one, other), (None, model))
    for paths in ((one, model), (one, None, one), (one, tmp_path / "link")):
        with pytest.raises(UsageError, match="an input or another output"):
            check_outputs(paths, (None, model))
    with pytest.raises(UsageError, match="cannot be written"):
        check_outputs((one, tmp_path / "no" / "file"), ())
    assert {path.name for path in tmp_path.iterdir()} == {"model", "link"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_protected_files_stay(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch(0o444)
    with pytest.raises(UsageError, match="Permission denied"):
        check_writable(path)
