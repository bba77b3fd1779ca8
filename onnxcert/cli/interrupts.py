"""Ctrl-C as an exception, but never in the middle of an import, nor while results are written.

An exception that is thrown into an import comes out as something else, or not at all: extension
modules turn it into an ImportError, abort the process, or swallow it. Most of a short run is
imports, so this is where many interrupts fall. They are held back until the import is over.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_RETRY_SECONDS = 0.02

_SignalHandler = Callable[[int, FrameType | None], object]


@contextmanager
def interrupts_outside_imports() -> Iterator[None]:
    """Hold Ctrl-C back while a module is being imported."""
    with _handled_by(_interrupt_outside_imports):
        yield


@contextmanager
def no_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C, for the moment it takes to write down what was found."""
    with _handled_by(signal.SIG_IGN):
        yield


@contextmanager
def _handled_by(handler: _SignalHandler | signal.Handlers) -> Iterator[None]:
    """Only the main thread may choose; and who started us may have chosen to ignore Ctrl-C."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt_outside_imports(number: int, frame: FrameType | None) -> None:
    if not _is_importing(frame):
        raise KeyboardInterrupt
    retry = threading.Timer(_RETRY_SECONDS, _thread.interrupt_main)
    retry.daemon = True
    retry.start()


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
