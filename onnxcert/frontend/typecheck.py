"""The reference parser for VNN-LIB 2.x (package ``vnnlib``), as a second opinion.

Our reader decides. The reference parser 1.0.2 refuses what the standard allows (integer literals
beside floats), accepts what it forbids (unknown element types), and needs forty times the size of
the file in memory. So it is asked for small files only, and only when our reader has refused one:
its words then stand beside ours. The tests compare the two on random queries.
"""

from __future__ import annotations

import json

import numpy as np

LARGEST_CHECKED = 8 * 2**20
"""Bytes."""

DEEPEST_CHECKED = 1000
"""Parentheses; the reference parser recurses, and 100,000 end the process."""


def typecheck(text: bytes) -> str | None:
    """What the reference parser says against a 2.x query; ``None`` if nothing, or not asked."""
    if len(text) > LARGEST_CHECKED or b"\0" in text or _depth(text) > DEEPEST_CHECKED:
        return None
    import vnnlib  # noqa: PLC0415 - rarely needed

    try:
        vnnlib.parse_query_string(text.decode("utf-8", "replace"))
    except vnnlib.VNNLibException as error:
        return _first_line(str(error))
    return None


def _depth(text: bytes) -> int:
    """How deep parentheses are nested, at most; those in comments count too."""
    data = np.frombuffer(text, np.uint8)
    steps = (data == ord("(")).astype(np.int32) - (data == ord(")"))
    return int(np.cumsum(steps).max(initial=0))


def _first_line(message: str) -> str:
    """The first complaint, in one line; the package reports type errors as JSON."""
    try:
        first = json.loads(message)["errors"][0]
        return f"line {first['line']}: {first['message']}: {first['offendingSymbol']}"
    except (ValueError, KeyError, IndexError, TypeError):
        return message.strip().partition("\n")[0]
