"""What the scripts beside this one share: CPU seconds of a call, and rows of a Markdown table."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def timed(run: Callable[[], T], repeats: int = 3) -> tuple[T, float]:
    """The result, and the least CPU seconds."""
    best = math.inf
    for _ in range(repeats):
        started = time.process_time()
        result = run()
        best = min(best, time.process_time() - started)
    return result, best


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)
