"""Terminals, pipes that close, signals: what only a process of its own can show."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import onnxcert
from onnxcert.cli.console import status_text
from onnxcert.verdict import Progress
from tests.cli.conftest import Files
from tests.cli.samples import ENVIRONMENT, command, run


def on_terminal(
    arguments: list[str], *, interrupt_at: str | None = None, **variables: str
) -> tuple[int, str]:
    """Run with stderr on a terminal; exit code, and what appeared there.

    Args:
        arguments: of the process.
        interrupt_at: press Ctrl-C when this text has appeared.
        variables: of the environment.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=theirs, env=ENVIRONMENT | variables
    )
    os.close(theirs)
    shown = ""
    while piece := _read(ours):
        shown += piece
        if interrupt_at is not None and interrupt_at in shown:
            process.send_signal(signal.SIGINT)
            interrupt_at = None
    os.close(ours)
    return process.wait(), shown


def _read(terminal: int) -> str:
    try:
        return os.read(terminal, 4096).decode()
    except OSError:  # Linux reports a terminal without writers as an error
        return ""


def test_status_line_is_rewritten_in_place(files: Files) -> None:
    arguments = command(files.hard_model, files.hard_spec, "--timeout", "500")
    code, shown = on_terminal(arguments, interrupt_at="open 2", TERM="xterm")
    assert code == 130
    assert "/500 s  search  open " in shown
    lines = shown.split("\r\x1b[2K")
    assert lines[-1] == "unknown: the run was interrupted\r\n"
    assert all("\n" not in line for line in lines[:-1])


def test_status_line_fits_the_terminal(files: Files) -> None:
    arguments = ["bash", "-c", 'stty columns 30 <&2; exec "$@"', "-"]
    arguments += command(files.hard_model, files.hard_spec)
    _, shown = on_terminal(arguments, interrupt_at="search  open ", TERM="xterm")
    lines = shown.split("\r\x1b[2K")[:-1]
    assert max(map(len, lines)) == 29


def test_bench_shows_a_bar_and_then_the_table(files: Files, tmp_path: Path) -> None:
    instances = tmp_path / "instances.csv"
    instances.write_text(f"{files.model},{files.sat},100\n{files.model},{files.unsat},100\n")
    arguments = command("bench", instances, "--out", tmp_path / "out")
    code, shown = on_terminal(arguments, TERM="xterm")
    assert code == 0
    *bars, table = shown.split("\r\x1b[2K")
    assert "[------------------------] 0/2  0:00" in bars
    assert table.startswith("benchmark")
    assert len(table.splitlines()) == 3


def test_quiet_shows_no_status(files: Files) -> None:
    hard = command(files.hard_model, files.hard_spec, "--timeout=1", "-q")
    assert on_terminal(hard, TERM="xterm") == (0, "")


@pytest.mark.parametrize(
    ("variables", "is_coloured"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_colour_only_where_it_is_wanted(variables: dict[str, str], is_coloured: bool) -> None:
    code, shown = on_terminal(command("--bogus", "x", "y"), **variables)
    assert code == 2
    assert shown.startswith("\x1b[1;31merror:\x1b[0m" if is_coloured else "error:")


def test_no_status_between_two_lines_of_a_log(files: Files) -> None:
    ended = run(files.hard_model, files.hard_spec, "--timeout=1")
    assert ended.stderr == "timed-out: the time limit was reached\n"


def test_status_text() -> None:
    start = Progress(0.0, "reading")
    assert status_text(start, 0.04, None) == "0.0 s  reading"
    later = Progress(3.0, "search", 40, 512, -0.03125, 2, 9)
    expected = "3.2/60 s  search  open 40  closed 512  bound -0.03125  cases 2/9 open"
    assert status_text(later, 3.21, 60.0) == expected


def test_a_reader_that_goes_away_is_no_error(files: Files) -> None:
    record = files.folder / "broken_pipe.json"
    reader, writer = os.pipe()
    os.close(reader)
    arguments = command(files.model, files.sat, "--json", str(record))
    ended = subprocess.run(
        arguments, stdout=writer, stderr=subprocess.PIPE, env=ENVIRONMENT, check=False
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert json.loads(record.read_text())["verdict"] == "sat"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams(files: Files, closed: str) -> None:
    arguments = command(files.model, files.unsat, "--exit-code")
    ended = subprocess.run(
        ["bash", "-c", f'"$@" {closed}', "-", *arguments], env=ENVIRONMENT, check=False
    )
    assert ended.returncode == 20


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_stdout_on_a_full_disk(files: Files) -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            command(files.model, files.unsat),
            stdout=full,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            check=False,
        )
    assert ended.returncode == 2
    message = b"error: standard output cannot be written: No space left on device\n"
    assert ended.stderr == message


def test_interrupt_leaves_a_verdict_and_a_record(files: Files, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    process = subprocess.Popen(
        command(files.hard_model, files.hard_spec, "-v", "--json", record),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stderr is not None
    assert "splits" in process.stderr.readline()  # the plan: the search begins
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "unknown\n")
    assert err.endswith("unknown: the run was interrupted\n")
    assert "Traceback" not in err
    written = json.loads(record.read_text())
    assert (written["verdict"], written["reason"]["code"]) == ("unknown", "interrupted")
    assert written["files"]["model"]["path"] == str(files.hard_model)
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_version_and_name_are_one_line() -> None:
    ended = run("--version")
    expected = (0, f"{onnxcert.__version__}\n", "")
    assert (ended.returncode, ended.stdout, ended.stderr) == expected
    assert run("--name").stdout == "onnxcert\n"


def test_version_and_help_import_nothing_heavy() -> None:
    """The start-up that users wait for; measured by what is imported, which does not jitter."""
    code = """
import sys
from onnxcert.cli import main
main(["--version"]), main(["--help"]), main(["verify", "--help"]), main(["check", "--help"])
heavy = {"numpy", "onnx", "onnxruntime", "vnnlib", "asyncio", "importlib.metadata"}
print(sorted(heavy & set(sys.modules)))
"""
    ended = subprocess.run(
        [command()[0], "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when a process began")
def test_the_clock_starts_with_the_process() -> None:
    code = """
import time
time.sleep(0.5)
from onnxcert.cli.clock import Clock
print(Clock.of_process().seconds)
"""
    ended = subprocess.run(
        [command()[0], "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert 0.5 <= float(ended.stdout) < 60


def test_module_and_script_are_the_same() -> None:
    code = "import sys; sys.argv = ['onnxcert', '--name']; from onnxcert.cli import main; main()"
    ended = subprocess.run(
        [command()[0], "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "onnxcert\n"
