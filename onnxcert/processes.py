"""Child processes of this package, and whether there are processors for them.

A child runs a module (``python -m``) and talks in pickled messages: those for it go through a
thread, so that sending never waits for a child that is busy, and what it answers is collected by
another one. Messages are pickled by whoever sends them, as objects that remember what they have
computed change under the hands of a thread. A child that dies is noticed by the end of its answers.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

_log = logging.getLogger(__name__)

_STATISTICS = Path("/proc/stat")

_LIMITS = Path("/sys/fs/cgroup")
"""Where the kernel tells a container how many processors' time it may take."""

_UNREADABLE = (
    *(pickle.UnpicklingError, AttributeError, ImportError, IndexError, KeyError),
    *(TypeError, ValueError, OverflowError, MemoryError),
)
"""What bytes that are no message, or no whole one, make the reader of pickles raise."""

_GLANCE = 0.25
"""Seconds between a child's looks for its parent."""

_IDLE = slice(4, 6)
"""Where a processor's line has its ticks of doing nothing, and of waiting for a disk."""


class _Writer(pickle.Pickler):
    def __init__(self, file: IO[bytes], shared: Sequence[object]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._places = {id(thing): place for place, thing in enumerate(shared)}

    def persistent_id(self, obj: object) -> int | None:
        return self._places.get(id(obj))


class _Reader(pickle.Unpickler):
    def __init__(self, file: IO[bytes], shared: Sequence[object]) -> None:
        super().__init__(file)
        self._shared = shared

    def persistent_load(self, place: int) -> object:
        return self._shared[place]


def write(file: IO[bytes], message: object, shared: Sequence[object] = ()) -> None:
    """Send a message; objects that both sides have are named by their place in ``shared``."""
    _Writer(file, shared).dump(message)
    file.flush()


def read(file: IO[bytes], shared: Sequence[object] = ()) -> Any:
    """Receive a message that was written with the other side's ``shared``.

    Raises:
        EOFError, pickle.UnpicklingError: the other side is gone.
    """
    return _Reader(file, shared).load()


def end_with_parent() -> None:
    """End this process once its parent is gone, in the middle of whatever it does.

    The end of its messages says the same, but a child that is busy does not read them.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_GLANCE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Child:
    """A process that runs a module of this package with one thread.

    Args:
        module: its full name.
        shared: objects that are named in messages and not sent; the child makes its own list of
            them from its first message, which is the only one without.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, module: str, shared: Sequence[object] = ()) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            # The same modules as here, and none that happen to lie in the current folder.
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # whatever stops the child, the parent can do without it
            env=environment,
        )
        self._shared = shared
        self._briefed = False
        self._messages: queue.SimpleQueue[tuple[memoryview, bool] | None] = queue.SimpleQueue()
        self._told, self._sent, self._hurried = 0, 0, False
        self._answers: queue.SimpleQueue[tuple[Any] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._send, daemon=True),
            threading.Thread(target=self._receive, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def tell(self, message: object, *, spare: bool = False) -> None:
        """Send a message some time soon, as it is now; one to spare, only before `hurry`."""
        file = io.BytesIO()
        write(file, message, self._shared if self._briefed else ())
        self._briefed = True
        data = file.getbuffer()
        self._told += len(data)
        self._messages.put((data, spare))

    @property
    def waiting(self) -> int:
        """Bytes of messages that the child has not read."""
        return self._told - self._sent

    def hurry(self) -> None:
        """Send no more of the messages to spare."""
        self._hurried = True

    def answer(self, seconds: float = 0.0) -> Any:
        """The next answer, waiting for it so long.

        Raises:
            queue.Empty: there is none yet.
            EOFError: there will be none any more.
        """
        found = self._answers.get(timeout=seconds) if seconds > 0 else self._answers.get_nowait()
        if found is None:
            self._answers.put(None)
            raise EOFError
        return found[0]

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._messages.put(None)
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        try:
            while (next_one := self._messages.get()) is not None:
                data, spare = next_one
                if not (spare and self._hurried):
                    pipe.write(data)
                    pipe.flush()
                self._sent += len(data)
        except (BrokenPipeError, ValueError):
            pass  # the child is gone; whoever waits for its answers will notice
        finally:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # and if it is not gone: it will not wait for more

    def _receive(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        try:
            while True:
                self._answers.put((read(pipe, self._shared),))
        except EOFError:
            pass
        except _UNREADABLE as error:
            _log.info("what a process answers cannot be read: %r", error)
        finally:
            pipe.close()
            self._answers.put(None)


class IdleProcessors:
    """How many processors that this process may use have had nothing to do since a moment.

    In a container that may take the time of a few processors only, no more than it leaves of those.
    """

    def __init__(self) -> None:
        self._since, self._used = time.monotonic(), time.process_time()
        self._before = _idle_seconds()

    @property
    def seconds(self) -> float:
        """Wall time since that moment."""
        return time.monotonic() - self._since

    def count(self) -> float:
        """The mean number; 0 where the system does not tell."""
        seconds, now = self.seconds, _idle_seconds()
        if self._before is None or now is None or seconds <= 0:
            return 0.0
        left = _allowed() - (time.process_time() - self._used) / seconds
        return max(0.0, min((now - self._before) / seconds, left))


def _allowed() -> float:
    """Processors whose time this process and its neighbours may take; infinity for any number.

    That is a quota over a period in microseconds, ``max`` or -1 for none, in versions 2 and 1 of
    control groups.
    """
    try:
        both = _LIMITS / "cpu.max"
        if both.exists():
            quota, period = both.read_text(encoding="ascii").split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = ((_LIMITS / "cpu" / name).read_text(encoding="ascii") for name in names)
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _idle_seconds() -> float | None:
    """Seconds that the processors of this process have been idle, all together."""
    try:
        usable = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        lines = _STATISTICS.read_text(encoding="ascii").splitlines()
        parts = [line.split() for line in lines]
        ticks = sum(sum(map(int, p[_IDLE])) for p in parts if p and p[0] in usable)
        return ticks / os.sysconf("SC_CLK_TCK")
    except (AttributeError, OSError, ValueError):
        return None
