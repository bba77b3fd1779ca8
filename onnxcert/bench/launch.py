"""Start a program that cannot outlive its parent or take more memory than it is given.

Run as a script, ``python -I -S launch.py PARENT BYTES PROGRAM ARGUMENTS...``; it replaces itself
by the program. Both limits outlast that. A function between fork and exec would do the same, but
is not safe in a process with threads, and this is (in about 10 ms).

The memory limit is on private writable memory (``RLIMIT_DATA``), not on addresses: GPU drivers
reserve far more addresses than memory.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: str, limit: str, *command: str) -> None:
    """Set the limits and become the program."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # it has died already, and nobody will be told
            raise SystemExit(1)
    if int(limit):
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
