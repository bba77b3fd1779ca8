"""When Ctrl-C becomes an exception, and when it does not."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

from onnxcert.cli.interrupts import interrupts_outside_imports, no_interrupts


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    """Whatever a test does, the handler of the test run comes back."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def wait_after(action: Callable[[], object]) -> None:
    """Give the interrupt that the action causes the time to arrive."""
    action()
    for _ in range(2400):
        time.sleep(0.05)


def test_at_once_in_ordinary_code() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts_outside_imports():
        wait_after(press_ctrl_c)


def test_after_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "interrupted_while_imported"
    text = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nfinished = True\n"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt), interrupts_outside_imports():
        wait_after(lambda: import_module(name))
    assert sys.modules.pop(name).finished


def test_not_while_results_are_written() -> None:
    with interrupts_outside_imports(), no_interrupts():
        press_ctrl_c()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_caller_who_ignores_ctrl_c_is_respected() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts_outside_imports():
        press_ctrl_c()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
