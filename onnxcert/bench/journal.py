"""The journal of a run: one JSON line per finished instance, on the disk before the next begins.

The first line says what was run, so that a run is only ever continued as what it was. The last
line may be torn, if the machine stopped while it was written; then it is cut off.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from onnxcert.errors import InputError, UsageError

FORMAT = 1


@dataclass(frozen=True)
class Outcome:
    """What became of one instance.

    Attributes:
        number, category, stem, onnx, vnnlib, expected: of the `Instance`.
        result: ``sat``, ``unsat``, ``unknown``, ``timeout`` or ``error``; an answer after the limit
            is a timeout, as in the competition.
        answer: the verdict as printed, late or not; empty if there was none.
        seconds: from start to end of the process.
        limit: seconds it was allowed.
        exit_code: of the process; negative for a signal.
        message: why there is no answer.
        phases: phase -> seconds, as the run itself reported.
        statistics: likewise.
        certified: whether the checker accepted a proof of the answer; for sat only if certificates
            are kept.
        proof: the proof as the run reported it: leaves, bytes, seconds of the check, and so on.
    """

    number: int
    category: str
    stem: str
    onnx: str
    vnnlib: str
    expected: str
    result: str
    answer: str
    seconds: float
    limit: float
    exit_code: int
    message: str = ""
    phases: Mapping[str, float] = field(default_factory=dict)
    statistics: Mapping[str, Any] = field(default_factory=dict)
    certified: bool = False
    proof: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_solved(self) -> bool:
        """Whether it was answered in time."""
        return self.result in ("sat", "unsat")

    @property
    def is_wrong(self) -> bool:
        """Whether its answer contradicts the list."""
        return {self.answer, self.expected} == {"sat", "unsat"}


class Journal:
    """An open journal; only one process can have it open.

    Args:
        path: of the file; it is created if it does not exist.
        identity: what is run; a journal of something else is refused.
        resume: whether the file may exist.

    Raises:
        UsageError: the file exists without ``resume``, is of another run, or is in use.
        InputError: the file is damaged otherwise than by a torn last line.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        try:
            self._stream: IO[bytes] = path.open("a+b")
        except OSError as error:
            raise UsageError(
                f"the journal cannot be written: {error.strerror}", place=str(path)
            ) from error
        try:
            self.outcomes = self._load(identity, resume)
        except BaseException:
            self._stream.close()
            raise

    def append(self, outcome: Outcome) -> None:
        """Add an outcome; when this returns it is on the disk."""
        self.outcomes[outcome.number] = outcome
        self._write(asdict(outcome))

    def close(self) -> None:
        """Let others open it."""
        self._stream.close()

    def _load(self, identity: Mapping[str, Any], resume: bool) -> dict[int, Outcome]:
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError("another run is using this folder", place=str(self.path)) from error
        header = {"journal": FORMAT, **identity}
        lines = self._whole_lines()
        if not lines:
            self._write(header)
            return {}
        if not resume:
            raise UsageError(
                "the folder holds an earlier run",
                place=str(self.path),
                help="continue it with --resume, or choose another folder",
            )
        entries = [self._parse(number, line) for number, line in enumerate(lines, 1)]
        self._check_same_run(entries[0], header)
        try:
            outcomes = [Outcome(**_known(entry)) for entry in entries[1:]]
        except TypeError as error:
            raise InputError(f"the journal is damaged: {error}", place=str(self.path)) from error
        return {outcome.number: outcome for outcome in outcomes}

    def _whole_lines(self) -> list[bytes]:
        self._stream.seek(0)
        data = self._stream.read()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            self._stream.truncate(end)
        return data[:end].splitlines()

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            entry = json.loads(line)
        except ValueError as error:
            entry = error
        if not isinstance(entry, dict):
            raise InputError("the journal is damaged", place=f"{self.path}:{number}")
        return entry

    def _check_same_run(self, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        for key in expected:
            if found.get(key) != expected[key]:
                raise UsageError(
                    f"the earlier run had {key} = {found.get(key)}, this one has {expected[key]}",
                    place=str(self.path),
                    help="repeat the arguments of the earlier run, or choose another folder",
                )

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(entry).encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())


def _known(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Without keys that a later version may have added."""
    return {option.name: entry[option.name] for option in fields(Outcome) if option.name in entry}
