"""Deadlines are arguments; slices never outlive the whole."""

from __future__ import annotations

import math
import time

import pytest

from onnxcert.search.deadline import Deadline


def test_no_limit_never_expires() -> None:
    deadline = Deadline()
    assert deadline.remaining == math.inf
    assert not deadline.expired()


def test_limit_counts_from_the_start() -> None:
    now = time.monotonic()
    assert Deadline(5.0, now - 5.0).expired()
    late = Deadline(1.0, now - 3.0)
    assert late.elapsed >= 3.0
    assert late.remaining <= -2.0


@pytest.mark.parametrize("seconds", [-1.0, 0.0])
def test_empty_slice_is_over_at_once(seconds: float) -> None:
    assert Deadline().slice(seconds).expired()


def test_slice_ends_with_the_whole() -> None:
    deadline = Deadline(2.0)
    assert deadline.slice(100.0).limit == 2.0
    assert deadline.slice(1.0).limit <= 2.0
    assert deadline.slice(1.0).started == deadline.started
