"""What `onnxcert MODEL SPEC` and `onnxcert verify` print, write and return."""

from __future__ import annotations

import gzip
import json
import re
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxcert
from onnxcert.checker import Rejected
from onnxcert.checker.certificate import Session
from onnxcert.cli import COMMANDS
from onnxcert.cli.arguments import EXECUTED
from onnxcert.frontend.vnnlib import read_query
from onnxcert.frontend.witness import parse_witness
from onnxcert.settings import Settings
from onnxcert.verdict import Reason
from tests.cli import samples
from tests.cli.conftest import Call, Files


def test_sat_prints_a_witness_that_holds(call: Call, files: Files) -> None:
    ended = call(files.model, files.sat)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("sat\n((X_0 ")
    assert ended.out.endswith("))\n")
    query = read_query(files.sat)
    assert query.holds(parse_witness(query, ended.out))


def test_unsat_prints_one_word(call: Call, files: Files) -> None:
    ended = call(files.model, files.unsat)
    assert (ended.code, ended.out, ended.err) == (0, "unsat\n", "")


def test_timeout_is_a_verdict(call: Call, files: Files) -> None:
    ended = call(files.hard_model, files.hard_spec, "--timeout", "0.5")
    assert (ended.code, ended.out) == (0, "timed-out\n")
    assert ended.err == "timed-out: the time limit was reached\n"


def test_a_limit_that_is_over_before_the_search_is_a_timeout(call: Call, files: Files) -> None:
    assert call(files.hard_model, files.hard_spec, "--timeout", "1e-6").out == "timed-out\n"


def test_unknown_says_why(call: Call, files: Files) -> None:
    ended = call(files.hard_model, files.hard_spec, "--set", "splitting=none")
    assert (ended.code, ended.out) == (0, "unknown\n")
    assert ended.err == f"unknown: {Reason.INCOMPLETE.value}\n"


@pytest.mark.parametrize(
    ("model", "spec", "options", "code"),
    [
        ("model", "sat", (), 10),
        ("model", "unsat", (), 20),
        ("hard_model", "hard_spec", ("--set=splitting=none",), 30),
        ("hard_model", "hard_spec", ("--timeout=0.5",), 40),
    ],
)
def test_exit_codes_on_request(
    call: Call, files: Files, model: str, spec: str, options: tuple[str, ...], code: int
) -> None:
    ended = call(getattr(files, model), getattr(files, spec), "--exit-code", *options)
    assert ended.code == code


def test_quiet_says_nothing_beside_the_verdict(call: Call, files: Files) -> None:
    ended = call(files.hard_model, files.hard_spec, "--timeout=0.5", "-q")
    assert (ended.code, ended.out, ended.err) == (0, "timed-out\n", "")


def test_verbose_shows_the_plan(call: Call, files: Files) -> None:
    plain, verbose = call(files.model, files.unsat), call(files.model, files.unsat, "-v")
    assert verbose.out == plain.out
    assert "splits" in verbose.err


def test_verbose_shows_the_size_of_the_proof(call: Call, files: Files) -> None:
    line = call(files.model, files.unsat, "-v").err.splitlines()[-1]
    pattern = r"proof: accepted \(real\); leaves [1-9]\d*, bytes [1-9][\d,]*, check \d+\.\d\d s"
    assert re.fullmatch(pattern, line)
    assert "proof:" not in call(files.model, files.unsat, "-v", "--uncertified").err


def test_standard_form_prints_the_standard_witness(call: Call, files: Files) -> None:
    ended = call("verify", files.sat_2, "--network", f"net={files.model}")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert (lines[0], lines[1], lines[4]) == ("sat", "A real [1,2]", "B real [1,2]")
    query = read_query(files.sat_2)
    assert query.holds(parse_witness(query, ended.out))


def test_any_network_name_fits_a_query_that_declares_none(call: Call, files: Files) -> None:
    ended = call("verify", files.unsat, "--network", f"anything={files.model}")
    assert (ended.code, ended.out) == (0, "unsat\n")


def test_float_types_are_answered_like_any_other(call: Call, files: Files) -> None:
    ended = call(files.model, files.sat_2_float)
    assert ended.out.startswith("sat\nA float32 [1,2]\n")
    assert ended.err == ""


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    """Typed float32; the margin of 5e-8 is less than the worst rounding of two Gemm layers."""
    return samples.spec_2("(assert (>= B[0,0] 1.00000005))", tmp_path / "narrow.vnnlib", "float32")


def test_what_only_the_reals_settle_is_unknown_for_floats(
    call: Call, files: Files, tmp_path: Path, narrow: Path
) -> None:
    record = tmp_path / "record.json"
    ended = call(files.model, narrow, "--json", record, "--set=splitting=none")
    assert (ended.code, ended.out) == (0, "unknown\n")
    assert ended.err == (
        f"unknown: {Reason.ROUNDING.value}\n"
        "  help: --semantics real consents to an answer over the reals\n"
    )
    written = json.loads(record.read_text())
    assert (written["reason"]["code"], written["certified"]) == ("rounding", None)


def test_naming_the_reals_is_consent(
    call: Call, files: Files, tmp_path: Path, narrow: Path
) -> None:
    record, proof = tmp_path / "record.json", tmp_path / "proof.onnxcert"
    options = ("--semantics=real", "--json", record, "--certificate", proof)
    ended = call(files.model, narrow, *options)
    assert (ended.code, ended.out) == (0, "unsat\n")
    assert ended.err == (
        "warning: the query declares float32, but unsat is proved for real arithmetic, as "
        "--semantics real allows: rounding inside the network is not covered\n"
    )
    assert call(files.model, narrow, "--semantics=real", "-q").err == ""
    written = json.loads(record.read_text())
    assert (written["semantics"], written["certified"]) == ("real", True)
    assert (written["settings"]["semantics"], written["proof"]["claims"]) == ("real", ["real"])
    line = call("check", proof, "--model", files.model, "--spec", narrow).out
    assert line == "VERIFIED UNSAT (real)\n"


def test_executions_may_be_asked_for_whatever_the_type(
    call: Call, files: Files, tmp_path: Path
) -> None:
    record = tmp_path / "record.json"
    ended = call(files.model, files.unsat, "--semantics=ieee32-any-order", "--json", record)
    assert (ended.code, ended.out, ended.err) == (0, "unsat\n", "")
    written = json.loads(record.read_text())
    assert (written["semantics"], written["proof"]["claims"]) == (EXECUTED, [EXECUTED])


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("unsat", "VERIFIED UNSAT (real)\n"),
        ("sat", "VERIFIED SAT (exact-replay, ort-replay)\n"),
        ("sat_2_float", "VERIFIED SAT (exact-replay, ort-replay)\n"),
    ],
)
def test_certificates_are_written_and_accepted(
    call: Call, files: Files, tmp_path: Path, spec: str, line: str
) -> None:
    proof, record = tmp_path / "proof.onnxcert", tmp_path / "record.json"
    query = getattr(files, spec)
    ended = call(files.model, query, "--certificate", proof, "--json", record)
    assert (ended.code, ended.err) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["proof.onnxcert", "record.json"]
    assert call("check", proof, "--model", files.model, "--spec", query).out == line
    written = json.loads(record.read_text())["proof"]
    assert (written["path"], written["bytes"]) == (str(proof), proof.stat().st_size)
    assert written["accepted"] is True
    assert line.endswith(f" ({', '.join(written['claims'])})\n")


def test_no_certificate_without_a_verdict(call: Call, files: Files, tmp_path: Path) -> None:
    hard = (files.hard_model, files.hard_spec, "--timeout=0.5")
    assert call(*hard, "--certificate", tmp_path / "proof").out == "timed-out\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("quiet", [(), ("-q",)])
def test_an_uncertified_unsat_says_so(
    call: Call, files: Files, tmp_path: Path, quiet: tuple[str, ...]
) -> None:
    record = tmp_path / "record.json"
    ended = call(files.model, files.unsat, "--uncertified", "--json", record, *quiet)
    assert (ended.code, ended.out) == (0, "unsat\n")
    assert ended.err == (
        "warning: unsat is uncertified: no checker has accepted a proof of it (--uncertified)\n"
    )
    written = json.loads(record.read_text())
    assert (written["verdict"], written["certified"]) == ("unsat", False)
    assert (written["proof"], written["settings"]["certified"]) == (None, False)


def test_a_witness_needs_no_checker(call: Call, files: Files) -> None:
    assert call(files.model, files.sat, "--uncertified") == call(files.model, files.sat)


def test_a_certificate_is_checked_even_if_the_verdict_does_not_depend_on_it(
    call: Call, files: Files, tmp_path: Path
) -> None:
    proof = tmp_path / "proof.onnxcert"
    ended = call(files.model, files.unsat, "--uncertified", "--certificate", proof)
    assert (ended.out, ended.err) == ("unsat\n", "")
    checked = call("check", proof, "--model", files.model, "--spec", files.unsat)
    assert (checked.code, checked.out) == (0, "VERIFIED UNSAT (real)\n")


def test_an_unsat_that_the_checker_refuses_is_not_printed(
    call: Call, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise Rejected("R8", "leaf 0", "a leaf is not refuted")

    monkeypatch.setattr(Session, "check", refuse)
    record = tmp_path / "record.json"
    ended = call(files.model, files.unsat, "--json", record, "--timeout=20")
    assert (ended.code, ended.out) == (0, "unknown\n")
    reason = "R8, leaf 0: a leaf is not refuted"
    assert ended.err == (
        f"warning: the checker does not accept the proof: {reason}\n"
        f"unknown: {Reason.UNCERTIFIED.value}\n"
    )
    written = json.loads(record.read_text())
    assert written["reason"]["code"] == "uncertified"
    assert (written["proof"]["accepted"], written["proof"]["message"]) == (False, reason)
    ended = call(files.model, files.unsat, "--uncertified", "--certificate", tmp_path / "proof")
    assert (ended.code, ended.out) == (0, "unsat\n")
    assert ended.err == (
        f"warning: unsat is uncertified: no checker has accepted a proof of it: {reason}\n"
        f"warning: no certificate was written to {tmp_path}/proof\n"
    )
    assert not (tmp_path / "proof").exists()


def test_a_witness_that_the_checker_refuses_is_no_certificate(
    call: Call, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise Rejected("R13", "witness", "the outputs do not meet the specification")

    monkeypatch.setattr(Session, "check", refuse)
    ended = call(files.model, files.sat, "--certificate", tmp_path / "proof")
    assert ended.out.startswith("sat\n((X_0 ")
    assert ended.err == (
        "warning: sat is uncertified: no checker has accepted a proof of it: "
        "R13, witness: the outputs do not meet the specification\n"
        f"warning: no certificate was written to {tmp_path}/proof\n"
    )


def test_compressed_files(call: Call, files: Files, tmp_path: Path) -> None:
    model, spec = tmp_path / "m.onnx.gz", tmp_path / "s.vnnlib.gz"
    model.write_bytes(gzip.compress(files.model.read_bytes()))
    spec.write_bytes(gzip.compress(files.unsat.read_bytes()))
    assert call(model, spec).out == "unsat\n"


def test_witness_file_has_the_same_witness(call: Call, files: Files, tmp_path: Path) -> None:
    path = tmp_path / "witness.txt"
    ended = call(files.model, files.sat, "--witness", path)
    assert ended.out == f"sat\n{path.read_text()}"


def test_no_witness_file_without_a_witness(call: Call, files: Files, tmp_path: Path) -> None:
    call(files.model, files.unsat, "--witness", tmp_path / "witness.txt")
    assert list(tmp_path.iterdir()) == []


def test_serialised_assignments_replace_the_text(call: Call, files: Files, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    ended = call(files.model, files.sat_2_float, "-q", "--serialise-assignments", folder)
    assert ended.out == "sat\n"
    assert sorted(path.name for path in folder.iterdir()) == ["A.pb", "B.pb"]
    values = {}
    for name in ("A", "B"):
        proto = onnx.TensorProto.FromString((folder / f"{name}.pb").read_bytes())
        values[name] = numpy_helper.to_array(proto)
        assert values[name].dtype == np.float32
        assert values[name].shape == (1, 2)
    assert read_query(files.sat_2_float).holds(values)


def test_record_of_sat(call: Call, files: Files, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    call(files.model, files.sat, "--json", path, "--seed", "5", "--timeout", "60")
    record = json.loads(path.read_text())
    assert (record["schema"], record["verdict"], record["error"]) == (2, "sat", None)
    assert record["tool"]["version"] == onnxcert.__version__
    assert (record["certified"], record["proof"]) == (None, None)
    assert (record["settings"]["seed"], record["settings"]["timeout"]) == (5, 60.0)
    for role, file in (("model", files.model), ("spec", files.sat)):
        digest = sha256(file.read_bytes()).hexdigest()
        assert record["files"][role] == {"path": str(file), "sha256": digest}
    assert record["witness"]["replay"] == {"runtime": "onnxruntime", "tolerance": 0, "holds": True}
    values = {
        tensor["name"]: np.array(tensor["values"], tensor["type"])
        for part in ("inputs", "outputs")
        for tensor in record["witness"][part]
    }
    assert read_query(files.sat).holds(values)


def test_record_of_unsat_has_the_bounds(call: Call, files: Files, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    call(files.model, files.unsat, "--json", path, "--set", "splitting=neuron")
    record = json.loads(path.read_text())
    assert (record["verdict"], record["witness"], record["reason"]) == ("unsat", None, None)
    assert (record["semantics"], record["certified"]) == ("real", True)
    assert (record["proof"]["path"], record["proof"]["message"]) == ("", "")
    assert record["proof"]["leaves"] >= 1
    assert record["settings"]["splitting"] == "neuron"
    assert [entry["disjunct"] for entry in record["bounds"]] == [0]
    assert 0 < record["bounds"][0]["lower"] <= 4.0
    assert record["seconds"]["process"] >= record["seconds"]["total"] > 0


def test_record_of_a_timeout_has_the_reason(call: Call, files: Files, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    call(files.hard_model, files.hard_spec, "--timeout=0.5", "--json", path)
    record = json.loads(path.read_text())
    assert record["verdict"] == "timed-out"
    assert record["reason"] == {"code": "timeout", "text": "the time limit was reached"}
    assert record["certified"] is None


def test_record_of_an_error(call: Call, files: Files, tmp_path: Path) -> None:
    path, missing = tmp_path / "record.json", tmp_path / "missing.onnx"
    assert call(missing, files.sat, "--json", path).code == 3
    record = json.loads(path.read_text())
    assert record["verdict"] is None
    assert record["error"]["kind"] == "ModelError"
    assert record["error"]["place"] == str(missing)
    assert record["files"] == {"model": {"path": str(missing)}, "spec": {"path": str(files.sat)}}


def test_settings_page_needs_no_files(call: Call) -> None:
    pages = {
        call("--set", "help").out,
        call("verify", "--set=help").out,
        call("bench", "--set", "help").out,
        call("supports", "--settings").out,
    }
    assert len(pages) == 1
    page = pages.pop()
    assert all(f"\n{name}=" in page for name in Settings.__dataclass_fields__)


@pytest.mark.parametrize("options", [("--help",), ("-h",)])
def test_help_names_every_command(call: Call, options: tuple[str, ...]) -> None:
    ended = call(*options)
    assert (ended.code, ended.err) == (0, "")
    commands = ("verify", "check", "inspect", "bounds", "bench", "supports")
    assert all(f"onnxcert {command} " in ended.out for command in commands)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(call: Call, command: str) -> None:
    ended = call(command, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"usage: onnxcert {command} ")
