"""Files that are whole or absent.

Every file is written beside its place and then renamed, so a reader never sees half of one, even
after ``kill -9``.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from onnxcert.errors import UsageError


def write_file(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a whole file or none of it; an existing one is replaced in one step.

    Devices and pipes, such as ``/dev/stderr``, are written to directly; a symbolic link stays one.

    Raises:
        UsageError: the file cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    place = os.path.realpath(path)
    try:
        if _is_special(place):
            with open(place, "wb") as stream:
                stream.write(data)
        else:
            _replace(Path(place), data)
    except OSError as error:
        raise _unwritable(path, error) from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out before a long search whether `write_file` will work.

    Raises:
        UsageError: the path is a folder, or nothing can be written beside it.
    """
    place = Path(os.path.realpath(path))
    if place.is_dir():
        raise UsageError("the output file is a folder", place=os.fspath(path))
    try:
        if place.exists() and not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if not _is_special(os.fspath(place)):
            with tempfile.TemporaryFile(dir=place.parent):
                pass
    except OSError as error:
        raise _unwritable(path, error) from error


def check_output(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """`check_writable`, and the file is none of those that are read, or written before it.

    Raises:
        UsageError: it is, or it cannot be written.
    """
    if os.path.realpath(path) in map(os.path.realpath, inputs):
        raise UsageError(
            "the output would overwrite an input or another output", place=os.fspath(path)
        )
    check_writable(path)


def check_outputs(
    paths: Iterable[str | os.PathLike[str] | None], inputs: Iterable[str | os.PathLike[str] | None]
) -> None:
    """Find out before a long run that each of several results has a place of its own.

    Args:
        paths: where results go, in the order in which they are written; None for nowhere.
        inputs: what is read; None for nothing.

    Raises:
        UsageError: as `check_output`.
    """
    taken = [path for path in inputs if path is not None]
    for path in paths:
        if path is not None:
            check_output(path, taken)
            taken.append(path)


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder and those above it, where they are missing, and see that it takes files.

    Raises:
        UsageError: it cannot be made, or nothing can be written in it.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the folder cannot be made: {error.strerror}", place=os.fspath(path)
        ) from error
    check_writable(os.path.join(path, "probe"))


def _is_special(place: str) -> bool:
    try:
        return not stat.S_ISREG(os.stat(place).st_mode)
    except FileNotFoundError:
        return False


def _replace(place: Path, data: bytes) -> None:
    temporary = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def _unwritable(path: str | os.PathLike[str], error: OSError) -> UsageError:
    return UsageError(
        f"the output file cannot be written: {error.strerror}",
        place=os.fspath(path),
        help="choose a path in a folder that exists and is writable",
    )
