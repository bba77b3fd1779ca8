"""The checker as a program: its line, its exit codes, what it imports, and what it survives."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from onnxcert.checker import __main__ as command
from tests.cli import samples
from tests.cli.samples import ENVIRONMENT, ROOT

EXECUTED = "ieee32-any-order"


@dataclass(frozen=True)
class Proofs:
    """A model, specifications, and certificates that the solver wrote."""

    model: Path
    unsat: Path
    sat: Path
    proof: Path
    executed: Path
    witness: Path


@pytest.fixture(scope="module")
def proofs(tmp_path_factory: pytest.TempPathFactory) -> Proofs:
    folder = tmp_path_factory.mktemp("proofs")
    made = Proofs(
        samples.small_model(folder / "model.onnx"),
        samples.spec_1(samples.UNSAT, folder / "unsat.vnnlib"),
        samples.spec_1(samples.SAT, folder / "sat.vnnlib"),
        *(folder / f"{name}.onnxcert" for name in ("proof", "executed", "witness")),
    )
    for spec, path, semantics in (
        (made.unsat, made.proof, "real"),
        (made.unsat, made.executed, EXECUTED),
        (made.sat, made.witness, "real"),
    ):
        options = (f"--certificate={path}", f"--semantics={semantics}")
        ended = samples.run(made.model, spec, *options)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert path.is_file()
    return made


def run(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """``python -m onnxcert.checker`` as a process."""
    return subprocess.run(
        [sys.executable, "-m", "onnxcert.checker", *map(str, arguments)],
        env=ENVIRONMENT | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


# --- the line and the exit code -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("proof", (), "VERIFIED UNSAT (real)"),
        ("proof", ("--semantics", "real"), "VERIFIED UNSAT (real)"),
        ("proof", ("--jobs", "2"), "VERIFIED UNSAT (real)"),
        ("executed", (), f"VERIFIED UNSAT ({EXECUTED})"),
        ("executed", ("--semantics=real",), f"VERIFIED UNSAT ({EXECUTED})"),
        ("executed", (f"--semantics={EXECUTED}",), f"VERIFIED UNSAT ({EXECUTED})"),
        ("witness", (), "VERIFIED SAT (exact-replay, ort-replay)"),
    ],
)
def test_verified(proofs: Proofs, name: str, options: tuple[str, ...], line: str) -> None:
    spec = proofs.sat if name == "witness" else proofs.unsat
    ended = run(getattr(proofs, name), proofs.model, spec, *options)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{line}\n", "")


def test_audited(proofs: Proofs) -> None:
    ended = run(proofs.proof, proofs.model, proofs.unsat, "--audit=1")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("VERIFIED UNSAT (real), 1 ")


@pytest.mark.parametrize(
    ("name", "spec", "options", "line"),
    [
        ("proof", "sat", (), "REJECTED: R0, spec_sha256, "),
        ("witness", "unsat", (), "REJECTED: R0, spec_sha256, "),
        ("proof", "unsat", (f"--semantics={EXECUTED}",), "REJECTED: R0, semantics, "),
        ("witness", "sat", (f"--semantics={EXECUTED}",), "REJECTED: R13, semantics, "),
        ("unsat", "unsat", (), "REJECTED: container, "),
        ("model", "unsat", (), "REJECTED: container, "),
    ],
)
def test_rejected(
    proofs: Proofs, name: str, spec: str, options: tuple[str, ...], line: str
) -> None:
    ended = run(getattr(proofs, name), proofs.model, getattr(proofs, spec), *options)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert ended.stdout.startswith(line)
    assert ended.stdout.count("\n") == 1


@pytest.mark.parametrize("role", ["proof", "model", "unsat"])
@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_unusable(proofs: Proofs, tmp_path: Path, role: str, kind: str) -> None:
    paths = {name: getattr(proofs, name) for name in ("proof", "model", "unsat")}
    paths[role] = tmp_path if kind == "folder" else tmp_path / kind
    ended = run(*paths.values())
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"{paths[role]}: ")
    assert ended.stderr.count("\n") == 1


def test_files_that_are_not_understood_are_unusable(proofs: Proofs, tmp_path: Path) -> None:
    path = tmp_path / "rubbish"
    for content in (b"", b"(", b"\xff\xfe", b"\x1f\x8b\x08"):
        path.write_bytes(content)
        for model, spec in ((path, proofs.unsat), (proofs.model, path)):
            code, line = command.answer(str(proofs.proof), str(model), str(spec))
            assert code == 2
            assert line


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("p",),
        ("p", "m", "s", "more"),
        ("p", "m", "s", "--semantics=auto"),
        ("p", "m", "s", "--audit=-1"),
        ("p", "m", "s", "--jobs=0"),
        ("p", "m", "s", "--jobs=x"),
        ("p", "m", "s", "--sem=real"),
    ],
)
def test_wrong_calls_are_usage_errors(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: python -m onnxcert.checker ")


def test_no_memory_is_unusable(proofs: Proofs, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(command, "check", fail)
    answer = command.answer(str(proofs.proof), str(proofs.model), str(proofs.unsat))
    assert answer == (2, "there is not enough memory for this check")


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["proof", "witness"])
def test_damaged_certificates_are_answered_in_one_line(
    proofs: Proofs, tmp_path: Path, name: str
) -> None:
    """Flipped bytes may be harmless, such as those of a date; a cut is not."""
    whole = getattr(proofs, name).read_bytes()
    spec = proofs.sat if name == "witness" else proofs.unsat
    rng = np.random.default_rng(3)
    damaged = []
    for place in rng.integers(len(whole), size=100).tolist():
        data = bytearray(whole)
        data[place] ^= int(rng.integers(1, 256))
        damaged.append((bytes(data), (0, 1)))
    damaged += [(whole[:end], (1,)) for end in rng.integers(len(whole), size=30).tolist()]
    path = tmp_path / "damaged"
    counts = [0, 0]
    for data, allowed in damaged:
        path.write_bytes(data)
        code, line = command.answer(str(path), str(proofs.model), str(spec))
        assert code in allowed
        assert line.startswith(("VERIFIED ", "REJECTED: ")[code])
        assert line.isprintable()
        counts[code] += 1
    assert counts[1] > 60


def repacked(path: Path, more: dict[str, bytes]) -> bytes:
    """The archive with members replaced or added."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in (members | more).items():
            archive.writestr(name, content)
    return data.getvalue()


FORGED = "x\nVERIFIED UNSAT (real)\n\x1b[2K\u2028\ud800"


def test_names_in_a_certificate_cannot_forge_a_line(proofs: Proofs, tmp_path: Path) -> None:
    path = tmp_path / "forged"
    with zipfile.ZipFile(proofs.proof) as archive:
        header = json.loads(archive.read("header.json"))
    forged = {
        "member": {f"{FORGED[:-1]}.npy": b""},
        "key": {"header.json": json.dumps(header | {FORGED: 1}).encode()},
        "format": {"header.json": json.dumps(header | {"format": FORGED}).encode()},
        "semantics": {"header.json": json.dumps(header | {"semantics": FORGED}).encode()},
    }
    for more in forged.values():
        path.write_bytes(repacked(proofs.proof, more))
        ended = run(path, proofs.model, proofs.unsat, PYTHONIOENCODING="ascii")
        assert (ended.returncode, ended.stderr) == (1, "")
        assert ended.stdout.startswith("REJECTED: ")
        assert ended.stdout.count("\n") == 1
        assert ended.stdout[:-1].isprintable()
        assert ended.stdout.isascii()


def test_a_path_that_no_terminal_shows(proofs: Proofs, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\n\xe2\x82\xac"
    arguments = [sys.executable, "-m", "onnxcert.checker", path, proofs.model, proofs.unsat]
    ended = subprocess.run(
        arguments, env=ENVIRONMENT | {"LC_ALL": "C"}, capture_output=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert ended.stderr.endswith(b"\\udcff\\n\\u20ac: No such file or directory\n")


# --- independence ---------------------------------------------------------------------------------

LOADED = """
import json, sys
from onnxcert.checker.__main__ import main
code = main(sys.argv[1:])
print(json.dumps(sorted(name for name in sys.modules if name == sys.modules[name].__name__)))
raise SystemExit(code)
"""


@pytest.mark.parametrize("options", [(), ("--audit=1",), ("--jobs=2",)])
def test_nothing_of_the_engine_is_loaded(proofs: Proofs, options: tuple[str, ...]) -> None:
    files = map(str, (proofs.proof, proofs.model, proofs.unsat))
    ended = subprocess.run(
        [sys.executable, "-c", LOADED, *files, *options],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    line, text = ended.stdout.splitlines()
    assert line.startswith("VERIFIED UNSAT (real)")
    loaded = json.loads(text)
    ours = {name for name in loaded if name.partition(".")[0] == "onnxcert"} - {"onnxcert"}
    assert "onnxcert.checker.bounds" in ours
    assert all(f"{name}.".startswith("onnxcert.checker.") for name in ours)
    packages = {name.partition(".")[0] for name in loaded}
    assert packages.isdisjoint({"onnxruntime", "scipy", "cupy", "vnnlib", "hypothesis", "pytest"})
    if not options:  # half of the time of a short check
        assert {"numpy.ma", "numpy.random"}.isdisjoint(loaded)


def test_the_checker_works_without_the_rest_of_the_package(proofs: Proofs, tmp_path: Path) -> None:
    package = tmp_path / "onnxcert"
    shutil.copytree(ROOT / "onnxcert" / "checker", package / "checker")
    shutil.copy(ROOT / "onnxcert" / "__init__.py", package)
    for name in ("onnxruntime", "scipy", "vnnlib", "cupy"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not for the checker')\n")
    alone = ENVIRONMENT | {"PYTHONPATH": str(tmp_path)}
    for proof, spec, line in (
        (proofs.proof, proofs.unsat, "VERIFIED UNSAT (real)\n"),
        (proofs.proof, proofs.sat, "REJECTED: R0, spec_sha256, "),
        (proofs.witness, proofs.sat, "VERIFIED SAT (exact-replay)\n"),
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "onnxcert.checker", proof, proofs.model, spec],
            cwd=tmp_path,
            env=alone,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.stderr == ""
        assert ended.stdout.startswith(line)
