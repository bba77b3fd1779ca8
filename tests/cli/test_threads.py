"""How many threads matrix products take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onnxcert.cli import THREAD_VARIABLES, main


@pytest.fixture
def no_threads_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREAD_VARIABLES:
        monkeypatch.setenv(name, "1")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("no_threads_asked_for")
def test_matrix_products_take_one_thread() -> None:
    assert main(["supports", "--vnnlib-versions"]) == 0
    assert {os.environ.get(name) for name in THREAD_VARIABLES} == {"1"}


@pytest.mark.usefixtures("no_threads_asked_for")
def test_threads_that_the_user_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert main(["supports", "--vnnlib-versions"]) == 0
    assert [os.environ.get(name) for name in THREAD_VARIABLES] == ["3", None, None]


@pytest.mark.usefixtures("no_threads_asked_for")
def test_training_takes_all_threads(tmp_path: Path) -> None:
    assert main(["train", "--data", str(tmp_path / "none.npz"), "--eps", "1", "-o", "x.onnx"]) != 0
    assert not any(name in os.environ for name in THREAD_VARIABLES)
