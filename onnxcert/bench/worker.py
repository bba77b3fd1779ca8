"""One instance: a process, its limits, and what its output means."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcert.bench.instances import Instance
from onnxcert.bench.journal import Outcome
from onnxcert.files import write_file

_LAUNCH = Path(__file__).with_name("launch.py")
_RESULTS = {"sat": "sat", "unsat": "unsat", "unknown": "unknown", "timed-out": "timeout"}


@dataclass(frozen=True)
class Limits:
    """What a process may use.

    Attributes:
        timeout: seconds the instance may take.
        grace: seconds after which a process that has not ended by itself is killed.
        memory_bytes: of private memory; 0 for no limit.
    """

    timeout: float
    grace: float
    memory_bytes: int


@dataclass(frozen=True)
class Ended:
    """What is known of a process that is gone; its exit code is negative for a signal."""

    stdout: str
    stderr: str
    exit_code: int
    seconds: float
    was_killed: bool


async def solve(
    instance: Instance,
    limits: Limits,
    folder: Path,
    options: Sequence[str],
    *,
    certificates: bool = False,
) -> Outcome:
    """Run one instance and keep its witness, its record and, if wanted, its certificate.

    Args:
        instance: what to solve.
        limits: of the process.
        folder: gets ``<category>/<stem>.counterexample.gz`` and ``<category>/<stem>.json``.
        options: further options of the command line.
        certificates: write ``<category>/<stem>.onnxcert`` too.
    """
    place = folder / instance.category
    place.mkdir(parents=True, exist_ok=True)
    record_path = place / f"{instance.stem}.json"
    record_path.unlink(missing_ok=True)
    command = [
        *("-m", "onnxcert", *instance.arguments, "--quiet"),
        f"--timeout={limits.timeout!r}",
        f"--json={record_path}",
        *options,
    ]
    if certificates:
        command.append(f"--certificate={place / instance.stem}.onnxcert")
    ended = await run_limited(command, limits)
    outcome = _outcome(instance, ended, limits, _read_record(record_path))
    witness = ended.stdout.partition("\n")[2]
    if outcome.answer == "sat" and witness:
        packed = gzip.compress(witness.encode(), mtime=0)
        write_file(place / f"{instance.stem}.counterexample.gz", packed)
    return outcome


async def run_limited(command: Sequence[str], limits: Limits) -> Ended:
    """Start Python with the command, in a group of its own, and wait until all of it is gone."""
    launch = [sys.executable, "-I", "-S", str(_LAUNCH), str(os.getpid()), str(limits.memory_bytes)]
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *launch,
        *(sys.executable, *command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    stdout, stderr, was_killed = b"", b"", False
    try:
        async with asyncio.timeout(limits.timeout + limits.grace):
            stdout, stderr = await process.communicate()
    except TimeoutError:
        was_killed = True
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    seconds = time.monotonic() - started
    words = (stdout.decode(errors="replace"), stderr.decode(errors="replace"))
    return Ended(*words, process.returncode or 0, seconds, was_killed)


def _outcome(
    instance: Instance, ended: Ended, limits: Limits, record: Mapping[str, Any]
) -> Outcome:
    answer = ended.stdout.partition("\n")[0].strip()
    result, message = _judge(answer, ended, limits, record)
    return Outcome(
        instance.number,
        instance.category,
        instance.stem,
        instance.onnx,
        instance.vnnlib,
        instance.expected,
        result,
        answer if answer in _RESULTS else "",
        round(ended.seconds, 3),
        limits.timeout,
        ended.exit_code,
        message,
        record.get("seconds") or {},
        record.get("statistics") or {},
        record.get("certified") is True,
        record.get("proof") or {},
    )


def _judge(answer: str, ended: Ended, limits: Limits, record: Mapping[str, Any]) -> tuple[str, str]:
    """Result, and why it is no verdict."""
    if ended.was_killed:
        return "timeout", f"killed {limits.grace:g} s after the limit"
    if ended.exit_code < 0:
        name = signal.strsignal(-ended.exit_code) or "unknown"
        return "error", f"ended by signal {-ended.exit_code} ({name})"
    if ended.exit_code:
        return "error", _complaint(ended.stderr) or f"exit code {ended.exit_code}"
    if answer not in _RESULTS:
        return "error", "no verdict was printed"
    if ended.seconds > limits.timeout and answer != "timed-out":
        return "timeout", f"{answer} came after the limit"
    reason = record.get("reason") or {}
    return _RESULTS[answer], reason.get("text", "")


def _complaint(stderr: str) -> str:
    """The first error, with where it is: the last words of the process otherwise."""
    lines = stderr.strip().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("error: "):
            place = [more for more in lines[number + 1 :] if more.startswith("  --> ")]
            return " ".join([line.removeprefix("error: "), *(p.strip() for p in place)])
    return lines[-1] if lines else ""


def _read_record(path: Path) -> Mapping[str, Any]:
    """The run's own record; empty if the process was killed before it could write one."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
