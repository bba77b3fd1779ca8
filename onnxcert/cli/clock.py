"""How long the process has been running, so that a time limit includes Python's own start."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_LONGEST_START = 60.0
"""Seconds; a larger age is another clock's, as in some containers, and is not believed."""

_START_TIME = 19
"""Field 22 of /proc/PID/stat, counted after the name of the program and from 0."""


@dataclass(frozen=True)
class Clock:
    """Seconds since a beginning, which is a moment of ``time.monotonic``."""

    beginning: float

    @classmethod
    def starting_now(cls) -> Clock:
        """For a call from Python."""
        return cls(time.monotonic())

    @classmethod
    def of_process(cls) -> Clock:
        """For a program: from its first instruction where Linux tells, else from now."""
        now = time.monotonic()
        try:
            status = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
            ticks = int(status.rpartition(")")[2].split()[_START_TIME])
            age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        except (OSError, AttributeError, ValueError, IndexError):
            return cls(now)
        return cls(now - age if 0 <= age <= _LONGEST_START else now)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self.beginning

    def remaining(self, limit: float | None) -> float | None:
        """What is left of a limit; positive, so that a late start still ends in ``timed-out``."""
        return None if limit is None else max(limit - self.seconds, 1e-3)
