"""The scripts of the competition, run as its harness runs them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onnxcert.frontend.vnnlib import read_query
from onnxcert.frontend.witness import parse_witness
from tests.cli import samples
from tests.cli.samples import ENVIRONMENT, ROOT

SCRIPTS = ROOT / "vnncomp"


def script(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", SCRIPTS / name, *arguments],
        env=ENVIRONMENT | {"ONNXCERT_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return samples.small_model(tmp_path / "model.onnx")


def solve(folder: Path, model: str | Path, spec: Path, timeout: str = "100") -> str:
    """The content of the result file."""
    results = folder / "results.txt"
    ended = script("run_instance.sh", "v1", "some_category", model, spec, results, timeout)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert not list(folder.glob("*.part"))
    return results.read_text()


@pytest.mark.parametrize("dialect", ["1.0", "2.0"])
def test_sat_with_witness(tmp_path: Path, model: Path, dialect: str) -> None:
    path = tmp_path / "s.vnnlib"
    if dialect == "1.0":
        samples.spec_1(samples.SAT, path)
    else:
        samples.spec_2("(assert (>= B[0,0] 0.5))", path, "float32")
    text = solve(tmp_path, model, path)
    assert text.startswith("sat\n((X_0 " if dialect == "1.0" else "sat\nA float32 [1,2]\n")
    query = read_query(path)
    assert query.holds(parse_witness(query, text))


def test_unsat(tmp_path: Path, model: Path) -> None:
    spec = samples.spec_1(samples.UNSAT, tmp_path / "s.vnnlib")
    assert solve(tmp_path, model, spec) == "unsat\n"


def test_floats_are_answered_over_the_reals(tmp_path: Path, model: Path) -> None:
    """The margin is smaller than the worst rounding in binary32; see tests/cli/test_verify.py."""
    condition = "(assert (>= B[0,0] 1.00000005))"
    spec = samples.spec_2(condition, tmp_path / "s.vnnlib", "float32")
    assert solve(tmp_path, model, spec) == "unsat\n"


def test_timeout_has_the_word_of_the_competition(tmp_path: Path) -> None:
    hard = samples.hard_model(tmp_path / "hard.onnx")
    spec = samples.hard_spec(tmp_path / "hard.vnnlib")
    assert solve(tmp_path, hard, spec, "1.5") == "timeout\n"


def test_error(tmp_path: Path, model: Path) -> None:
    assert solve(tmp_path, model, tmp_path / "missing.vnnlib") == "error\n"


def test_a_list_of_networks(tmp_path: Path, model: Path) -> None:
    spec = samples.spec_2("(assert (>= B[0,0] 5.0))", tmp_path / "s.vnnlib")
    assert solve(tmp_path, f"[('net', '{model}')]", spec) == "unsat\n"
    assert solve(tmp_path, f"[('other', '{model}')]", spec) == "error\n"


def test_an_old_result_is_replaced(tmp_path: Path, model: Path) -> None:
    (tmp_path / "results.txt").write_text("sat\nan older and longer witness\n")
    spec = samples.spec_1(samples.UNSAT, tmp_path / "s.vnnlib")
    assert solve(tmp_path, model, spec) == "unsat\n"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_terminated_script_leaves_no_process(tmp_path: Path) -> None:
    hard = samples.hard_model(tmp_path / "hard.onnx")
    spec = samples.hard_spec(tmp_path / "hard.vnnlib")
    arguments = map(str, ("v1", "c", hard, spec, tmp_path / "results.txt", 1000))
    process = subprocess.Popen(
        ["bash", str(SCRIPTS / "run_instance.sh"), *arguments],
        env=ENVIRONMENT | {"ONNXCERT_PYTHON": sys.executable},
    )
    solver = _solver(process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    for _ in range(600):
        if not Path(f"/proc/{solver}").exists():
            break
        time.sleep(0.05)
    assert not Path(f"/proc/{solver}").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hard.onnx", "hard.vnnlib"]


def _solver(shell: int) -> int:
    """The process number of the solver, once it has taken the shell's place."""
    for _ in range(600):
        for word in Path(f"/proc/{shell}/task/{shell}/children").read_text().split():
            if b"onnxcert" in Path(f"/proc/{word}/cmdline").read_bytes():
                return int(word)
        time.sleep(0.05)
    raise AssertionError("the solver has not started")


def test_prepare_reads_but_never_fails(tmp_path: Path, model: Path) -> None:
    spec = samples.spec_1(samples.SAT, tmp_path / "s.vnnlib")
    networks = f"[('f', '{model}'), ('g', '{model}')]"
    for first in (model, tmp_path / "missing.onnx", networks):
        ended = script("prepare_instance.sh", "v1", "category", first, spec)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("install_tool.sh", ()),
        ("install_tool.sh", ("v2",)),
        ("prepare_instance.sh", ("v1", "c", "m")),
        ("prepare_instance.sh", ("v2", "c", "m", "s")),
        ("run_instance.sh", ("v1", "c", "m", "s", "r")),
        ("run_instance.sh", ("v2", "c", "m", "s", "r", "1")),
    ],
)
def test_wrong_calls_say_how(name: str, arguments: tuple[str, ...]) -> None:
    ended = script(name, *arguments)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"usage: {name} v1")
