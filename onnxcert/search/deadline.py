"""A point in time by which a run must end, passed down as an argument."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Deadline:
    """Seconds are wall seconds of the monotonic clock; ``limit`` may be infinite."""

    limit: float = math.inf
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def remaining(self) -> float:
        """Seconds left; negative when late."""
        return self.limit - self.elapsed

    def expired(self) -> bool:
        """Whether the time is up."""
        return self.elapsed >= self.limit

    def slice(self, seconds: float) -> Deadline:
        """An earlier deadline, ``seconds`` from now, never later than this one."""
        now = self.elapsed
        return Deadline(min(self.limit, now + max(seconds, 0.0)), self.started)
