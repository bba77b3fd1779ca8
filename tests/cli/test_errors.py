"""Every way to call it wrongly: the exact words, the exit code, and an empty stdout."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from onnx import TensorProto, helper, save

from onnxcert.cli import verify as verify_command
from tests.cli import samples
from tests.cli.conftest import Call, Files

SEE = "\n  help: see `onnxcert verify --help`\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--timeout", "0"), "argument --timeout: '0' is not a positive number of seconds"),
        (("--timeout", "-1"), "argument --timeout: '-1' is not a positive number of seconds"),
        (("--timeout=-1",), "argument --timeout: '-1' is not a positive number of seconds"),
        (("--timeout", "nan"), "argument --timeout: 'nan' is not a positive number of seconds"),
        (("--timeout", "inf"), "argument --timeout: 'inf' is not a positive number of seconds"),
        (("--timeout", "1h"), "argument --timeout: '1h' is not a positive number of seconds"),
        (("--timeout",), "argument --timeout: expected one argument"),
        (("--time", "1"), "unrecognized arguments: --time 1"),
        (("--device", "tpu"), "argument --device: 'tpu' is not one of auto, cpu, cuda, cuda:N"),
        (("--certificate",), "argument --certificate: expected one argument"),
        (("--seed", "-1"), "argument --seed: '-1' is not a whole number"),
        (("--seed", "1.5"), "argument --seed: '1.5' is not a whole number"),
        (("-q", "-v"), "argument -v/--verbose: not allowed with argument -q/--quiet"),
        (("third",), "unrecognized arguments: third"),
        (("--bogus",), "unrecognized arguments: --bogus"),
    ],
)
def test_wrong_options(call: Call, files: Files, options: tuple[str, ...], message: str) -> None:
    ended = call(files.model, files.sat, *options)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"error: {message}{SEE}"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((), "a model and a specification are needed\n  help: see `onnxcert --help`"),
        (("m.onnx",), f"the following arguments are required: SPEC{SEE.rstrip()}"),
        (
            ("verify", "s.vnnlib"),
            f"the following arguments are required: --network{SEE.rstrip()}",
        ),
        (
            ("verify", "s.vnnlib", "--network", "m.onnx"),
            f"argument --network: 'm.onnx' is not NAME=MODEL{SEE.rstrip()}",
        ),
        (
            ("s.vnnlib", "m.onnx"),
            "the model comes first, then the specification",
        ),
        (
            ("m.onnx", "s.vnnlib", "--semantics", "float"),
            "argument --semantics: invalid choice: 'float' (choose from",
        ),
        (
            ("inspect",),
            "the following arguments are required: MODEL\n  help: see `onnxcert inspect --help`",
        ),
        (
            ("bounds", "m.onnx", "s.vnnlib", "--method", "magic"),
            "argument --method: invalid choice: 'magic' (choose from",
        ),
        (
            ("bench", "list.csv"),
            "the following arguments are required: --out\n  help: see `onnxcert bench --help`",
        ),
        (
            ("bench", "list.csv", "--out", "x", "--jobs", "0"),
            "argument --jobs: it must be at least 1\n  help: see `onnxcert bench --help`",
        ),
        (
            ("bench", "list.csv", "--out", "x", "--memory", "0"),
            "argument --memory: '0' is not a positive number of gigabytes",
        ),
        (
            ("check", "p.onnxcert"),
            "the following arguments are required: --model\n  help: see `onnxcert check --help`",
        ),
        (
            ("check", "p", "--model=m", "--spec=s", "--jobs=0"),
            "argument --jobs: it must be at least 1\n  help: see `onnxcert check --help`",
        ),
        (
            ("check", "p", "--model=m", "--spec=s", "--audit=-1"),
            "argument --audit: '-1' is not a whole number",
        ),
        (
            ("check", "p", "--model=m", "--spec=s", "--semantics=auto"),
            "argument --semantics: invalid choice: 'auto' (choose from",
        ),
        (("supports",), "one of the arguments --onnx-opset-versions"),
        (("supports", "--magic"), "one of the arguments --onnx-opset-versions"),
    ],
)
def test_wrong_calls(call: Call, words: tuple[str, ...], error: str) -> None:
    ended = call(*words)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"error: {error}")
    assert ended.err.endswith("\n")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("batch_limit", "--set needs KEY=VALUE, not 'batch_limit'"),
        ("magic=1", "there is no option 'magic'"),
        ("splitting=magic", "splitting is one of auto, input, neuron, none, not 'magic'"),
        ("batch_limit=x", "batch_limit is a number (int), not 'x'"),
        ("batch_limit=0", "batch_limit lies in [1, any]"),
    ],
)
def test_wrong_settings(call: Call, files: Files, assignment: str, message: str) -> None:
    ended = call(files.model, files.sat, "--set", assignment)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"error: {message}\n")


@pytest.mark.parametrize(
    ("networks", "error"),
    [
        (
            ("other={model}",),
            "network net has no model\n  --> {spec}\n"
            "  help: onnxcert verify SPEC --network net=MODEL",
        ),
        (
            ("net={model}", "other={model}"),
            "network other is not declared\n  --> {spec}\n  help: the query needs models for: net",
        ),
        (("net={model}", "net={model}"), "--network gives one name twice"),
    ],
)
def test_networks_that_do_not_fit(
    call: Call, files: Files, networks: tuple[str, ...], error: str
) -> None:
    options = [f"--network={network.format(model=files.model)}" for network in networks]
    ended = call("verify", files.sat_2, *options)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"error: {error.format(spec=files.sat_2)}\n"


def _two_networks(path: Path, relation: str, least: str = "0") -> Path:
    text = f"""(vnnlib-version <2.0>)
(declare-network f (declare-input A real [1,2]) (declare-output B real [1,2]))
(declare-network g ({relation} f) (declare-input C real [1,2]) (declare-output D real [1,2]))
(assert (and (<= 0 A[0,0]) (<= A[0,0] 1) (<= 0 A[0,1]) (<= A[0,1] 1)))
(assert (and (<= 0 C[0,0]) (<= C[0,0] A[0,0]) (== C[0,1] A[0,1])))
(assert (>= (- B[0,0] D[0,0]) {least}))
"""
    path.write_text(text)
    return path


def test_two_networks(call: Call, files: Files, tmp_path: Path) -> None:
    """The competition repeats the file of an equal network; one model is also given by itself."""
    first, proof = files.model, tmp_path / "p.onnxcert"
    copy = Path(shutil.copy(first, tmp_path / "copy.onnx"))
    for relation, second in (("equal-to", first), ("isomorphic-to", copy)):
        for least, word in (("-1000", "sat"), ("1000", "unsat")):
            spec = _two_networks(tmp_path / "two.vnnlib", relation, least)
            forms: list[tuple[str | Path, ...]] = [
                ("verify", spec, f"--network=f={first}", f"--network=g={second}")
            ]
            others = [f"--network=g={second}"]
            if relation == "equal-to":
                forms += [(first, spec), ("verify", spec, f"--network=f={first}")]
                others = []
            for form in forms:
                ended = call(*form, f"--certificate={proof}")
                assert (ended.code, ended.out.split()[0]) == (0, word)
                ended = call("check", proof, f"--model={first}", *others, f"--spec={spec}")
                assert (ended.code, ended.out.split()[1]) == (0, word.upper())
            ended = call(
                "check", proof, f"--model={first}", f"--network=h={second}", f"--spec={spec}"
            )
            assert (ended.code, ended.out) == (2, "")
            assert "models are needed for the networks" in ended.err


def test_an_equal_network_has_no_other_model(call: Call, files: Files, tmp_path: Path) -> None:
    spec = _two_networks(tmp_path / "two.vnnlib", "equal-to")
    options = [f"--network=f={files.model}", f"--network=g={files.hard_model}"]
    ended = call("verify", spec, *options)
    assert ended.code == 2
    assert ended.err.startswith("error: network g is declared equal-to f\n")


def test_an_isomorphic_network_needs_a_model(call: Call, files: Files, tmp_path: Path) -> None:
    spec = _two_networks(tmp_path / "two.vnnlib", "isomorphic-to")
    ended = call("verify", spec, f"--network=f={files.model}")
    assert ended.code == 2
    assert ended.err.startswith("error: network g has no model\n")


def test_missing_files(call: Call, files: Files, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    ended = call(missing, files.sat)
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith("error: the model cannot be read: No such file or directory\n")
    assert f"  --> {missing}\n" in ended.err
    ended = call(files.model, missing)
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith(
        f"error: the specification cannot be read: No such file or directory\n  --> {missing}\n"
    )


@pytest.mark.parametrize("command", [(), ("inspect",), ("bounds",)])
@pytest.mark.parametrize("kind", ["folder", "loop", "under a file"])
def test_paths_that_cannot_be_read(
    call: Call, files: Files, tmp_path: Path, command: tuple[str, ...], kind: str
) -> None:
    path = {"folder": tmp_path, "loop": tmp_path / "loop", "under a file": files.sat / "x"}[kind]
    if kind == "loop":
        path.symlink_to(path)
    for arguments in ((path, files.sat), (files.model, path)):
        ended = call(*command, *arguments)
        assert ended.code == 3
        assert ended.err.startswith("error: the ")
        assert "cannot be read" in ended.err
        assert "Traceback" not in ended.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_without_permission(call: Call, files: Files, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch(0o000)
    assert "Permission denied" in call(path, files.sat).err
    assert "Permission denied" in call(files.model, path).err


@pytest.mark.parametrize("content", [b"", b"\0\1\2", b"\x08", b"(", b"\x1f\x8b\x08", b"PK\x03\x04"])
def test_rubbish_is_an_input_error(
    call: Call, files: Files, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "rubbish"
    path.write_bytes(content)
    for arguments in ((path, files.sat), (files.model, path)):
        ended = call(*arguments)
        assert (ended.code, ended.out) == (3, "")
        assert ended.err.startswith("error: ")
        assert str(path) in ended.err


def test_unsupported_operators_are_named(call: Call, files: Files, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Det", ["X"], ["Z"], "the_det"),
        helper.make_node("Erf", ["Z"], ["Y"], "the_erf"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [2, 2])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [])],
    )
    path = tmp_path / "m.onnx"
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    spec = samples.spec_1(samples.UNSAT, tmp_path / "s.vnnlib", inputs=4, outputs=1)
    ended = call(path, spec, "--timeout", "1")
    assert (ended.code, ended.out) == (3, "")
    assert "\nerror: 2 nodes have no rule\n" in ended.err
    assert "the_det" in ended.err
    assert "the_erf" in ended.err
    inspected = call("inspect", path)
    assert inspected.code == 3
    assert inspected.out.count("UNSUPPORTED") == 2


def test_sizes_that_do_not_fit(call: Call, files: Files, tmp_path: Path) -> None:
    spec = samples.spec_1(samples.SAT, tmp_path / "s.vnnlib", inputs=3)
    ended = call(files.model, spec)
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith("error: ")


@pytest.mark.parametrize("option", ["--json", "--witness", "--certificate"])
def test_outputs_are_checked_before_the_search(
    call: Call, files: Files, tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_command, "_search", _must_not_run)
    ended = call(files.model, files.sat, option, tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"error: the output file is a folder\n  --> {tmp_path}\n"
    ended = call(files.model, files.sat, option, tmp_path / "no" / "file")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "error: the output file cannot be written: No such file or directory\n"
        f"  --> {tmp_path}/no/file\n"
        "  help: choose a path in a folder that exists and is writable\n"
    )


def test_assignment_folder_is_checked_before_the_search(
    call: Call, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_command, "_search", _must_not_run)
    ended = call(files.model, files.sat, "--serialise-assignments", files.sat)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"error: the folder cannot be made: File exists\n  --> {files.sat}\n"


@pytest.mark.parametrize(
    ("one", "other"),
    [("json", "witness"), ("json", "certificate"), ("witness", "certificate")],
)
def test_two_outputs_in_one_file(
    call: Call, files: Files, tmp_path: Path, one: str, other: str
) -> None:
    path, link = tmp_path / "both", tmp_path / "link"
    link.symlink_to(path)
    ended = call(files.model, files.sat, f"--{one}", path, f"--{other}", link)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"error: --{one} and --{other} name the same file\n  --> {path}\n"


@pytest.mark.parametrize("option", ["--json", "--witness", "--certificate"])
def test_no_output_in_place_of_an_input(call: Call, files: Files, option: str) -> None:
    for path in (files.model, files.sat):
        before = path.read_bytes()
        ended = call(files.model, files.sat, option, path)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err == f"error: {option} would overwrite an input\n  --> {path}\n"
        assert path.read_bytes() == before


def _must_not_run(*arguments: object) -> None:
    raise AssertionError("the search has begun")


def test_a_fault_of_ours_is_one_paragraph(
    call: Call, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("no\nluck")

    monkeypatch.setattr(verify_command, "_verify", fail)
    record = tmp_path / "record.json"
    ended = call(files.model, files.sat, "--json", record)
    assert (ended.code, ended.out) == (4, "")
    lines = ended.err.splitlines()
    assert lines[0] == "error: onnxcert has failed: ZeroDivisionError: no luck"
    assert lines[1].startswith("  --> ")
    assert lines[2].startswith("  help: this is a fault of onnxcert, not of your files")
    assert len(lines) == 3
    assert '"kind": "ZeroDivisionError"' in record.read_text()
    assert "Traceback (most recent call last)" in call(files.model, files.sat, "-v").err
