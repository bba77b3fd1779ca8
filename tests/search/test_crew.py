"""Other processes in a search: what they are told and tell, and what becomes of them."""

from __future__ import annotations

import fcntl
import io
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxcert
from onnxcert import Sat
from onnxcert.processes import Child, IdleProcessors, read, write
from onnxcert.search import crew
from onnxcert.search.candidates import Candidates
from onnxcert.search.crew import Crew, shared
from onnxcert.search.frontier import Frontier
from onnxcert.search.member import Member, _Noted
from tests import hasty
from tests.checker.makers import dense, spec
from tests.proof.networks import Files, least

REAL = "VERIFIED UNSAT (real)"


def passed(message: object, sender: Sequence[object], receiver: Sequence[object]) -> Any:
    """A message as the other side reads it."""
    file = io.BytesIO()
    write(file, message, sender)  # type: ignore[arg-type]
    file.seek(0)
    return read(file, receiver)  # type: ignore[arg-type]


@dataclass
class Inside:
    """Stands for a child: every message is pickled, tasks are done when they are asked for.

    Attributes:
        told: kinds of tasks and of what became of them.
        lives: tasks after which it dies.
    """

    lives: float = float("inf")
    told: Counter[str] = field(default_factory=Counter)
    closed: int = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put this in the place of processes, and have the search ask for two of them at once."""
        noted = self

        class Imitation:
            def __init__(self, module: str, common: Sequence[object]) -> None:
                assert module == "onnxcert.search.member"
                self.common, self.member, self.waiting = common, None, []
                self.own: list[object] = []

            def tell(self, message: Any) -> None:
                if self.member is None:
                    brief = passed(message, (), ())
                    self.own, self.member = shared(brief.brancher), Member(brief)
                else:
                    self.waiting.append(passed(message, self.common, self.own))

            def answer(self, seconds: float = 0.0) -> Any:
                if noted.told.total() >= noted.lives:
                    raise EOFError
                if not self.waiting:
                    raise queue.Empty
                assert self.member is not None
                done = self.member.do(self.waiting.pop(0))
                noted.told[type(done[0]).__name__] += 1
                return passed(done, self.own, self.common)

            def close(self) -> None:
                noted.closed += 1

        monkeypatch.setattr(crew, "Child", Imitation)
        staff_at_once(monkeypatch, 2.0)


def staff_at_once(monkeypatch: pytest.MonkeyPatch, idle: float) -> None:
    """No search is too short for a crew, and no task too small for it."""
    monkeypatch.setattr(crew, "_PATIENCE", -1.0)
    monkeypatch.setattr(crew, "_FEWEST", 1)
    monkeypatch.setattr(crew, "_TASK_SECONDS", 0.05)
    monkeypatch.setattr(IdleProcessors, "count", lambda self: idle)
    monkeypatch.setattr("onnxcert.search.solve.applicable", lambda graph, boxes: False)
    hasty.skip_plain_bounds(monkeypatch)


def question(folder: Path, margin: float = 0.03) -> Files:
    """A network of four inputs whose tree over neurons has dozens of leaves, with two cases."""
    model, box = dense([4, 8, 8, 8, 2], 4), ([-1.0] * 4, [1.0] * 4)
    disjuncts = []
    for row in ([1.0, 0.0], [0.5, -1.0]):
        low, spread = least(model, row, *box)
        disjuncts.append((*box, [(row, low - margin * spread)]))
    return Files.write(folder, model, spec(*disjuncts, outputs=2))


def run(files: Files, **options: Any) -> onnxcert.Result:
    few = {
        "parallel": "auto",
        "planes": "off",
        "splitting": "neuron",
        "batch_limit": 4,
        "slope_steps": 2,
        "layer_steps": 1,
    }
    return files.verify(**few | {"branch_steps": 1} | options)


@pytest.mark.parametrize(("semantics", "margin"), [("real", 0.03), ("ieee32-any-order", 0.1)])
def test_subtrees_in_other_hands_are_part_of_the_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, semantics: str, margin: float
) -> None:
    inside = Inside()
    inside.install(monkeypatch)
    files = question(tmp_path, margin)
    assert run(files, semantics=semantics).word == "unsat"
    assert files.check() == f"VERIFIED UNSAT ({semantics})"
    assert inside.told["Grown"] >= 2
    assert inside.closed == 2


def test_regions_in_other_hands_are_part_of_the_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = Inside()
    inside.install(monkeypatch)
    hasty.install(monkeypatch, batches=0)
    files = question(tmp_path)
    assert run(files).word == "unsat"
    assert files.check() == REAL
    assert inside.told["Settled"] >= 2


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("lives", [0, 1, 3])
def test_the_work_of_the_dead_is_done_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regions: bool, lives: int
) -> None:
    inside = Inside(lives=lives)
    inside.install(monkeypatch)
    if regions:
        hasty.install(monkeypatch, batches=0)
    files = question(tmp_path)
    assert run(files).word == "unsat"
    assert files.check() == REAL


@pytest.mark.parametrize("regions", [False, True])
def test_what_they_find_is_replayed_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regions: bool
) -> None:
    """Only they test points, so the witness is theirs, and it holds on the file."""
    inside = Inside()
    inside.install(monkeypatch)
    if regions:
        hasty.install(monkeypatch, batches=0)
    test = Candidates.test
    monkeypatch.setattr(Candidates, "test", lambda *arguments: None)
    monkeypatch.setattr(_Noted, "test", test, raising=False)
    files = question(tmp_path, margin=-1e-4)
    result = run(files, attack_restarts=0)
    assert isinstance(result.verdict, Sat)
    assert inside.told.total() >= 1


def test_alone_if_told_so_or_if_nobody_has_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*arguments: object) -> None:
        raise AssertionError("a process for this")

    monkeypatch.setattr(crew, "Child", start)
    assert run(question(tmp_path)).word == "unsat"  # over too soon
    staff_at_once(monkeypatch, 0.6)
    assert run(question(tmp_path)).word == "unsat"
    staff_at_once(monkeypatch, 2.0)
    assert run(question(tmp_path), parallel="off").word == "unsat"


def test_half_of_the_best_are_taken() -> None:
    frontier = Frontier()
    score = np.arange(100.0)
    frontier.push({"number": np.arange(100)}, score)
    batch, scores = frontier.pop_half(10)
    assert batch["number"].tolist() == scores.tolist() == list(range(0, 20, 2))
    assert len(frontier) == 90
    assert sorted(frontier.pop(90)["number"]) == sorted(set(range(100)) - set(range(0, 20, 2)))


# --- real processes -------------------------------------------------------------------------------


@pytest.mark.parametrize("killed", [False, True])
def test_processes_take_part_and_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    killed: bool,
) -> None:
    """A child that is killed at once is as good as none."""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))
        if killed:
            started[-1].kill()
            started[-1].wait()
        return started[-1]

    staff_at_once(monkeypatch, 1.0)
    monkeypatch.setattr(subprocess, "Popen", start)
    answered = []
    poll = Crew.poll

    def patient(members: Crew, *, wait: bool = False) -> None:
        """Wait for the first answer: without it nobody would know whether the child does work."""
        while not wait and not killed and not answered and any(m.tasks for m in members._members):
            answered.extend(m for m in members._members if not m.child._answers.empty())
        poll(members, wait=wait)

    monkeypatch.setattr(Crew, "poll", patient)
    threads = set(threading.enumerate())
    files = question(tmp_path)
    assert run(files).word == "unsat"
    assert files.check() == REAL
    assert started
    assert bool(answered) != killed
    assert all(process.returncode is not None for process in started)
    assert set(threading.enumerate()) <= threads
    assert capfd.readouterr() == ("", "")


def test_shared_objects_are_named_and_not_sent() -> None:
    common, other = np.zeros(10**5), np.ones(10**5)
    file = io.BytesIO()
    write(file, {"a": common, "b": 1}, [common])  # type: ignore[arg-type]
    assert len(file.getvalue()) < 200
    file.seek(0)
    assert read(file, [other])["a"] is other  # type: ignore[arg-type]


def test_a_child_that_ends_is_noticed() -> None:
    child = Child("onnxcert.search.member")
    child.tell("no brief")
    with pytest.raises(EOFError):
        child.answer(30.0)
    with pytest.raises(EOFError):
        child.answer()
    child.close()


def write_echo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that says what it is told, and its name."""
    (folder / "echo.py").write_text(
        "import sys\n"
        "from onnxcert.processes import read, write\n"
        "while True:\n"
        "    write(sys.stdout.buffer, read(sys.stdin.buffer))\n"
    )
    monkeypatch.syspath_prepend(folder)
    return "echo"


def test_a_message_is_sent_as_it_was_when_it_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects of a search remember what they computed, and go on doing so while a thread sends."""
    child = Child(write_echo(tmp_path, monkeypatch))
    message = {number: number for number in range(10**5)}
    for number in range(20):
        child.tell(message)
        message[-1 - number] = number
    first = [child.answer(30.0) for _ in range(20)]
    child.close()
    assert [len(answer) for answer in first] == [10**5 + number for number in range(20)]


def test_what_is_no_message_is_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Bytes that make the reader of pickles raise whatever it likes: a name that is nowhere."""
    source = "import sys; sys.stdout.buffer.write(b'cnowhere\\nname\\n.')"
    (tmp_path / "babbler.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    child = Child("babbler")
    with pytest.raises(EOFError):
        child.answer(30.0)
    child.close()
    assert capfd.readouterr() == ("", "")


def test_a_busy_child_ends_with_its_parent(tmp_path: Path) -> None:
    """It holds a lock as long as it lives; what it does would take a minute."""
    (tmp_path / "busy.py").write_text(
        "import fcntl, pathlib, sys, time\n"
        "from onnxcert.processes import end_with_parent, write\n"
        "end_with_parent()\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "lock = (folder / 'lock').open('w')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "write(sys.stdout.buffer, 'busy')\n"
        "time.sleep(60.0)\n"
        "(folder / 'done').touch()\n"
    )
    (tmp_path / "parent.py").write_text(
        "import os\n"
        "from onnxcert.processes import Child\n"
        "assert Child('busy').answer(60.0) == 'busy'\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    parent = subprocess.run([sys.executable, tmp_path / "parent.py"], env=environment, check=False)
    assert parent.returncode == -signal.SIGKILL
    with (tmp_path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    assert not (tmp_path / "done").exists()


def test_idle_processors_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcert.processes.os.sched_getaffinity", lambda process: {0, 1})
    statistics, clock = tmp_path / "stat", [100.0]
    monkeypatch.setattr("onnxcert.processes._STATISTICS", statistics)
    monkeypatch.setattr("onnxcert.processes.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("onnxcert.processes.os.sysconf", lambda name: 100)
    line = "cpu{} 10 10 10 {} {} 0 0 0 0 0\n"
    statistics.write_text(line.format("", 9, 9) + line.format(0, 50, 5) + line.format(2, 0, 0))
    idle = IdleProcessors()
    clock[0] += 2.0
    statistics.write_text(line.format("", 9, 9) + line.format(0, 150, 25) + line.format(2, 99, 0))
    assert idle.count() == pytest.approx(0.6)
    limits = tmp_path / "limits"
    monkeypatch.setattr("onnxcert.processes._LIMITS", limits)
    monkeypatch.setattr("onnxcert.processes.time.process_time", lambda: 0.0)
    idle._used = -1.0  # half a processor
    (limits / "cpu").mkdir(parents=True)
    (limits / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    for file, text, count in (
        ("cpu/cpu.cfs_quota_us", "-1\n", 0.6),
        ("cpu/cpu.cfs_quota_us", "80000\n", 0.3),
        ("cpu.max", "max 100000\n", 0.6),
        ("cpu.max", "90000 100000\n", 0.4),
        ("cpu.max", "20000 100000\n", 0.0),
        ("cpu.max", "300000 100000\n", 0.6),
    ):
        (limits / file).write_text(text)
        assert idle.count() == pytest.approx(count)
    statistics.unlink()
    assert idle.count() == 0.0
    assert IdleProcessors().count() == 0.0
