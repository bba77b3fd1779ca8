"""VNN-LIB files to queries: the dialect is told by content, never by the name of a file.

Version 2.x files begin with ``(vnnlib-version <2.0>)``; 1.0 files have no header.
"""

from __future__ import annotations

import os
import re

from onnxcert.errors import SpecError, UnsupportedSpec
from onnxcert.frontend import vnnlib1, vnnlib2
from onnxcert.frontend.sexpr import BLANKS, Source, read_source
from onnxcert.frontend.typecheck import typecheck
from onnxcert.spec.query import Query

_HEADER = re.compile(BLANKS + rb"\(" + BLANKS + rb"(?:vnnlib-version|declare-network)\b")


def read_query(path: str | os.PathLike[str]) -> Query:
    """Read a VNN-LIB file, 1.0 or 2.x, plain or gzip-compressed.

    Raises:
        SpecError: the file cannot be read or is not VNN-LIB; ``place`` has line and column.
        UnsupportedSpec: it may be VNN-LIB, but uses what is not known here.
    """
    return _parse(read_source(path), fast=True)


def parse_query(text: str | bytes, source: str = "<text>", *, fast: bool = True) -> Query:
    """Read VNN-LIB text, as `read_query` does.

    Args:
        text: the specification.
        source: name for messages.
        fast: scan for boxes first; ``False`` reads every token, with the same meaning.
    """
    whole = Source(source, text.encode() if isinstance(text, str) else text)
    whole.check()
    return _parse(whole, fast=fast)


def _parse(source: Source, *, fast: bool) -> Query:
    if not _HEADER.match(source.text):
        return vnnlib1.Reader(source, fast=fast).read()
    try:
        return vnnlib2.Reader(source, fast=fast).read()
    except UnsupportedSpec:
        raise
    except SpecError as error:
        opinion = typecheck(source.text)
        if opinion:
            help_ = f"{error.help}; " if error.help else ""
            error.help = f"{help_}the reference parser says: {opinion}"
        raise
