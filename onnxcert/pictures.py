"""Drawing into files (extra ``plot``: matplotlib)."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from onnxcert.errors import UsageError
from onnxcert.files import write_file


def check_format(path: str | os.PathLike[str]) -> None:
    """See that a picture of the kind that the ending of the path says can be made.

    Raises:
        UsageError: matplotlib is missing, or does not know it.
    """
    known = new_figure().canvas.get_supported_filetypes()
    if _format(path) not in known:
        raise UsageError(
            f"pictures cannot be {_format(path)!r}",
            place=os.fspath(path),
            help=f"one of {', '.join(sorted(known))}",
        )


def new_figure(**options: Any) -> Any:
    """An empty figure of matplotlib, which no window knows of.

    Raises:
        UsageError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - optional
    except ImportError as error:
        raise UsageError(
            "pictures need matplotlib", help="install onnxcert[plot], or leave --plot out"
        ) from error
    return Figure(**options)


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write it; the ending of the path says the format, none is PNG.

    Raises:
        UsageError: the file cannot be written.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format=_format(path), dpi=120)
    write_file(path, buffer.getvalue())


def _format(path: str | os.PathLike[str]) -> str:
    return Path(path).suffix.removeprefix(".").lower() or "png"
