"""All instances of a list, some at a time, into a folder that is valid at every moment."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from onnxcert import __version__
from onnxcert.bench.instances import Instance, read_instances
from onnxcert.bench.journal import Journal, Outcome
from onnxcert.bench.summary import Summary, results_csv
from onnxcert.bench.worker import Limits, solve
from onnxcert.errors import UsageError
from onnxcert.files import write_file
from onnxcert.report import SCHEMA, to_json

_TICK_SECONDS = 0.5


@dataclass(frozen=True)
class Options:
    """How to run a list.

    Attributes:
        timeout: seconds per instance; the list's own if ``None``.
        jobs: instances at a time.
        grace: seconds beyond the limit after which a process is killed.
        memory_gigabytes: private memory per process; ``None`` for no limit.
        arguments: further options of the command line, for every instance.
        certificates: keep the certificate of every answer.
    """

    timeout: float | None = None
    jobs: int = 1
    grace: float = 10.0
    memory_gigabytes: float | None = None
    arguments: tuple[str, ...] = ()
    certificates: bool = False

    def limits(self, instance: Instance) -> Limits:
        """What the process of an instance may use."""
        memory = int((self.memory_gigabytes or 0.0) * 1e9)
        return Limits(self.timeout or instance.timeout, self.grace, memory)


@dataclass(frozen=True)
class State:
    """A moment of a run.

    Attributes:
        outcomes: so far, those of an earlier run included.
        total: instances in the list.
        seconds: since this run began.
        fresh: outcomes of this run.
        latest: the outcome that has just come in, if that is the news.
    """

    outcomes: Mapping[int, Outcome]
    total: int
    seconds: float
    fresh: int
    latest: Outcome | None = None


Report = Callable[[State], None]


def run_benchmark(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    options: Options,
    *,
    resume: bool = False,
    report: Report = lambda state: None,
) -> Summary:
    """Run a list of instances and write ``results.csv``, ``summary.json``, witnesses and records.

    Args:
        path: of the list (`onnxcert.bench.instances`).
        folder: for everything that is written; it is created if it does not exist.
        options: how to run.
        resume: go on with the run that the folder holds.
        report: called when an instance has ended, and twice a second.

    Raises:
        InputError: the list cannot be read.
        UsageError: the folder cannot be used.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; what was finished has been written.
    """
    instances = read_instances(path)
    out = Path(folder)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the folder cannot be made: {error.strerror}", place=str(out)) from error
    journal = Journal(out / "journal.jsonl", _identity(path, options), resume=resume)
    try:
        asyncio.run(_Run(instances, out, options, journal, report).everything())
    except asyncio.CancelledError as error:
        raise KeyboardInterrupt from error
    finally:
        summary = Summary.of(instances, journal.outcomes)
        _write_results(out, instances, journal.outcomes, summary, options)
        journal.close()
    return summary


def _identity(path: str | os.PathLike[str], options: Options) -> dict[str, Any]:
    """What has to be the same for a run to be continued; how many at a time may change."""
    return {
        "version": __version__,
        "instances_sha256": sha256(Path(path).read_bytes()).hexdigest(),
        "timeout": options.timeout,
        "memory_gigabytes": options.memory_gigabytes,
        "arguments": list(options.arguments),
    }


def _write_results(
    folder: Path,
    instances: Sequence[Instance],
    outcomes: Mapping[int, Outcome],
    summary: Summary,
    options: Options,
) -> None:
    write_file(folder / "results.csv", results_csv(instances, outcomes))
    record = {
        "schema": SCHEMA,
        "tool": {"name": "onnxcert", "version": __version__},
        "options": asdict(options),
        **asdict(summary),
    }
    write_file(folder / "summary.json", to_json(record))


class _Run:
    def __init__(
        self,
        instances: Sequence[Instance],
        folder: Path,
        options: Options,
        journal: Journal,
        report: Report,
    ) -> None:
        self.waiting = [i for i in instances if i.number not in journal.outcomes]
        self.waiting.reverse()
        self.total = len(instances)
        self.folder = folder
        self.options = options
        self.journal = journal
        self.report = report
        self.started = time.monotonic()
        self.before = len(journal.outcomes)

    async def everything(self) -> None:
        """Work until nothing waits; a failure of one worker ends all of them."""
        self._cancel_on_signals()
        ticking = asyncio.create_task(self._tick())
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.options.jobs):
                    group.create_task(self._work())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            ticking.cancel()

    def _cancel_on_signals(self) -> None:
        task = asyncio.current_task()
        if task is not None and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, task.cancel)

    async def _work(self) -> None:
        while self.waiting:
            instance = self.waiting.pop()
            limits = self.options.limits(instance)
            outcome = await solve(
                instance,
                limits,
                self.folder,
                self.options.arguments,
                certificates=self.options.certificates,
            )
            self.journal.append(outcome)
            self._report(outcome)

    async def _tick(self) -> None:
        while True:
            self._report(None)
            await asyncio.sleep(_TICK_SECONDS)

    def _report(self, latest: Outcome | None) -> None:
        outcomes = self.journal.outcomes
        seconds = time.monotonic() - self.started
        self.report(State(outcomes, self.total, seconds, len(outcomes) - self.before, latest))
