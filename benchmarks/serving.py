"""Workers that measure on request, for comparisons in which tools take turns.

A worker is a process that holds one tool in memory. It reads one JSON request per line from its
standard input and answers each with one JSON line: ``{"prepare": {...}}`` builds what is to be
measured, ``{"run": NAME}`` runs one method once. What the tool prints goes to standard error.
Only the standard library is needed here, so that a worker runs in any environment.
"""

from __future__ import annotations

import gc
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from select import select
from typing import Any

Run = Callable[[], Any]
"""What is timed; returns lower bounds, anything with ``sum()``."""

Method = Callable[[], Run]
"""Makes one run ready; this is not timed."""

ONE_THREAD = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM")
}
"""Environment in which the usual numerical libraries stay with one thread."""


def end_in_order() -> None:
    """Let a program that is told to end leave by an exception, so that it ends what it started."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def serve(prepare: Callable[[Mapping[str, Any]], Mapping[str, Method]]) -> None:
    """Answer requests until the input ends.

    An exception ends the process, with its message as the last line of standard error.

    Args:
        prepare: builds the methods by name from what the request says.
    """
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as replies:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        methods: Mapping[str, Method] = {}
        for line in sys.stdin:
            request = json.loads(line)
            if "prepare" in request:
                methods = prepare(request["prepare"])
                reply: dict[str, Any] = {"methods": list(methods)}
            else:
                reply = measure(methods[request["run"]])
            replies.write(json.dumps(reply) + "\n")
            replies.flush()


def measure(method: Method) -> dict[str, float]:
    """Run once: ``cpu`` and ``wall`` seconds, ``sum`` of the bounds, ``peak`` resident megabytes.

    CPU seconds are those of all threads of the process; the peak is that since its start.
    """
    run = method()
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    total = float(run().sum())  # a device has to finish for that
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu": cpu, "wall": wall, "sum": total, "peak": peak}


class WorkerLostError(Exception):
    """A worker ended or was ended; the message says why."""


class Worker:
    """The other end: a worker that was started, and what it was told to prepare."""

    def __init__(
        self, command: Sequence[str], task: Mapping[str, Any], log: Path, gigabytes: float
    ) -> None:
        """Prepare a worker; it is started by the first `run`, and again after it was lost.

        Args:
            command: starts the process.
            task: what it shall prepare.
            log: its standard error.
            gigabytes: limit of its address space; infinite for none, which a GPU needs.
        """
        self._command, self._task, self._log = list(command), dict(task), log
        self._bytes = int(gigabytes * 2**30) if gigabytes < math.inf else resource.RLIM_INFINITY
        self._process: subprocess.Popen[str] | None = None
        self._methods: Sequence[str] = ()

    def run(self, method: str, seconds: float) -> dict[str, float]:
        """Run a method once.

        Raises:
            KeyError: the tool has no such method.
            WorkerLostError: it crashed, or did not answer within these wall seconds.
        """
        if self._process is None:
            self._start(seconds)
        if method not in self._methods:
            raise KeyError(method)
        return self._ask({"run": method}, seconds)

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is None:
            return
        self._process.kill()
        self._process.communicate()
        self._process = None

    def _start(self, seconds: float) -> None:
        with self._log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | ONE_THREAD,
            )
        resource.prlimit(self._process.pid, resource.RLIMIT_AS, (self._bytes, self._bytes))
        self._methods = self._ask({"prepare": self._task}, seconds)["methods"]

    def _ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline() if select([process.stdout], [], [], seconds)[0] else ""
        except BrokenPipeError:
            line = ""
        if line:
            reply: dict[str, Any] = json.loads(line)
            return reply
        if process.poll() is None and not _ends_soon(process):
            self.stop()
            raise WorkerLostError(f"over {seconds:g} s")
        self.stop()
        words = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(words) if line.strip()), "no message")
        raise WorkerLostError(last.strip()[:100])


def _ends_soon(process: subprocess.Popen[str]) -> bool:
    """Whether a process that closed its output is about to be gone."""
    assert process.stdout is not None
    if not select([process.stdout], [], [], 0)[0]:
        return False
    process.wait()
    return True
