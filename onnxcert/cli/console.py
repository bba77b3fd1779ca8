"""stdout for answers, stderr for people: errors, warnings, logs and the status line.

A reader may go away at any time (``onnxcert ... | head -1``). Then the rest of the output goes
nowhere and the run ends as if it had been read, because the verdict was reached all the same.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING, TextIO

from onnxcert.errors import OnnxcertError, UsageError

if TYPE_CHECKING:
    from onnxcert.verdict import Progress

_RED, _YELLOW, _PLAIN = "\x1b[1;31m", "\x1b[1;33m", "\x1b[0m"
_CLEAR_LINE = "\r\x1b[2K"

LIVE_SECONDS = 0.1
"""Between two states of the line on a terminal."""

LOG_SECONDS = 10.0
"""Between two lines where stderr is a file."""


class Console:
    """The two streams of a run.

    Args:
        stdout, stderr: the streams; ``None`` where the caller has closed one.
    """

    def __init__(self, stdout: TextIO | None, stderr: TextIO | None) -> None:
        self.stdout = stdout
        self.stderr = stderr
        is_terminal = stderr is not None and stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.is_live = is_terminal
        self.has_colour = is_terminal and not os.environ.get("NO_COLOR")
        self.verbosity = 0
        self._has_line = False
        self._next_status = 0.0
        self._handler: logging.Handler | None = None
        if isinstance(stdout, io.TextIOWrapper):
            stdout.reconfigure(errors="backslashreplace")  # names in a model may be anything

    def configure(self, verbosity: int) -> None:
        """Choose what is said: -1 errors only, 0 warnings and status, 1 the steps, 2 everything."""
        self.verbosity = verbosity
        self._next_status = time.monotonic() + (0.0 if self.is_live else LOG_SECONDS)
        levels = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}
        logger = logging.getLogger("onnxcert")
        logger.setLevel(levels.get(verbosity, logging.DEBUG))
        if self._handler is None:
            self._handler = _LogHandler(self)
            logger.addHandler(self._handler)

    def close(self) -> None:
        """Take the status line away and stop listening to the log."""
        self.clear()
        if self._handler is not None:
            logging.getLogger("onnxcert").removeHandler(self._handler)
            self._handler = None

    def answer(self, text: str) -> None:
        """Write to stdout.

        Raises:
            UsageError: stdout cannot take it, for a reason other than a reader that went away.
        """
        self.clear()
        try:
            _write(self.stdout, text)
        except BrokenPipeError:
            return
        except OSError as error:
            raise UsageError(f"standard output cannot be written: {error.strerror}") from error

    def say(self, text: str) -> None:
        """Write a line to stderr."""
        self.clear()
        self._to_people(f"{text}\n")

    def note(self, text: str) -> None:
        """Write a line to stderr, unless only errors are wanted."""
        if self.verbosity >= 0:
            self.say(text)

    def warn(self, text: str) -> None:
        """Write a warning to stderr, whatever the verbosity."""
        self.say(f"{self._coloured('warning:', _YELLOW)} {text}")

    def error(self, error: OnnxcertError) -> None:
        """Write an error in its three lines; with ``-v`` also where it was raised."""
        self._traceback(error)
        self.say(str(error).replace("error:", self._coloured("error:", _RED), 1))

    def fault(self, fault: Exception) -> None:
        """Say that onnxcert itself has failed, and where; with ``-v`` also the traceback."""
        self._traceback(fault)
        last = traceback.extract_tb(fault.__traceback__)[-1]
        more = "" if self.verbosity > 0 else ", with the traceback that -v shows"
        error = OnnxcertError(
            " ".join(f"onnxcert has failed: {type(fault).__name__}: {fault}".split()),
            place=f"{last.filename}:{last.lineno} ({last.name})",
            help=f"this is a fault of onnxcert, not of your files: please report it{more}",
        )
        self.say(str(error).replace("error:", self._coloured("error:", _RED), 1))

    def _traceback(self, error: Exception) -> None:
        if self.verbosity > 0:
            self.say("".join(traceback.format_exception(error)).rstrip())

    def status(self, text: str) -> None:
        """Show how things stand: in place on a terminal, else a line now and then."""
        now = time.monotonic()
        if self.verbosity < 0 or now < self._next_status:
            return
        if self.is_live:
            self._next_status = now + LIVE_SECONDS
            width = _columns(self.stderr) - 1
            self._to_people(f"{_CLEAR_LINE}{text[:width]}")
            self._has_line = True
        else:
            self._next_status = now + LOG_SECONDS
            self._to_people(f"{text}\n")

    def clear(self) -> None:
        """Take the status line away."""
        if self._has_line:
            self._has_line = False
            self._to_people(_CLEAR_LINE)

    def _coloured(self, text: str, colour: str) -> str:
        return f"{colour}{text}{_PLAIN}" if self.has_colour else text

    def _to_people(self, text: str) -> None:
        try:
            _write(self.stderr, text)
        except OSError:
            self.stderr = None  # nobody listens, and there is no other place to complain


class _LogHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            self.console.warn(text)
        else:
            name = record.name.removeprefix("onnxcert.")
            self.console.say(f"{name}: {text}" if record.levelno < logging.INFO else text)


def status_text(progress: Progress, seconds: float, limit: float | None) -> str:
    """One line: ``12.3/60 s  search  open 40  closed 512  bound -0.031  cases 2/9 open``."""
    clock = f"{seconds:.1f} s" if limit is None else f"{seconds:.1f}/{limit:g} s"
    parts = [clock, progress.phase]
    if progress.open or progress.closed:
        parts += [f"open {progress.open}", f"closed {progress.closed}"]
    if progress.bound == progress.bound:
        parts.append(f"bound {progress.bound:.4g}")
    if progress.disjuncts > 1:
        parts.append(f"cases {progress.disjuncts_open}/{progress.disjuncts} open")
    return "  ".join(parts)


def _write(stream: TextIO | None, text: str) -> None:
    """Write all of it now, or raise OSError once and swallow everything from then on."""
    if stream is None:
        return
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        _redirect_to_nowhere(stream)
        raise


def _redirect_to_nowhere(stream: TextIO) -> None:
    """Python flushes the streams when it ends, which would fail again and change the exit code."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _columns(stream: TextIO | None) -> int:
    try:
        return os.get_terminal_size((stream or sys.stderr).fileno()).columns or 80
    except OSError:
        return 80
