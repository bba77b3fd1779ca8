"""Source text that knows its lines, and the tokens of both VNN-LIB dialects.

The text stays ``bytes``: a specification may have 100 MB, decoding it would double that, and
tokens are ASCII anyway. A token is ``(text, offset)``; offsets become line and column only when a
message needs them. Nothing recurses, so a file may nest as deep as it likes.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

from onnxcert.errors import SpecError, UnsupportedSpec

LARGEST_FILE = 4 * 2**30
"""Bytes of text after decompression; the largest specification known has 0.13 GB."""

_BLOCK = 2**22
_LONGEST_QUOTE = 40
# Possessive, or a search for the next token could step back into a comment.
BLANKS = rb"(?:[ \t\r\n\f\v]++|;[^\n]*+)*+"
"""White space and comments."""

_TOKEN = re.compile(
    BLANKS + rb'([()]|"(?:[^"\\\n]|\\.)*"|\[[^\]\[()";\n]*\]|[^ \t\r\n\f\v()\[\]";]+)'
)
_SKIP = re.compile(BLANKS)
_SOMETHING = re.compile(rb"\S")


class Token(NamedTuple):
    """A parenthesis, a ``"string"``, an ``[index list]`` or a word; and where it starts."""

    text: bytes
    offset: int

    @property
    def quoted(self) -> str:
        """The token for a message."""
        return quote(self.text)


def quote(text: bytes) -> str:
    """Text for a message, shortened, with anything unprintable escaped."""
    shown = text[:_LONGEST_QUOTE].decode("utf-8", "backslashreplace")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return f"'{shown}…'" if len(text) > _LONGEST_QUOTE else f"'{shown}'"


class Source:
    """The text of a specification and the name of its file."""

    def __init__(self, name: str, text: bytes) -> None:
        self.name = name
        self.text = text
        self._known = (0, 1)

    def line(self, offset: int) -> int:
        """The line of an offset, counted from 1; fast for offsets asked for in order."""
        start, line = self._known if self._known[0] <= offset else (0, 1)
        self._known = offset, line + self.text.count(b"\n", start, offset)
        return self._known[1]

    def place(self, offset: int) -> str:
        """``file:line:column`` of an offset, both counted from 1."""
        start = self.text.rfind(b"\n", 0, offset) + 1
        return f"{self.name}:{self.line(offset)}:{offset - start + 1}"

    def fail(self, cause: str, offset: int, help: str = "") -> NoReturn:  # noqa: A002
        """Raise a `SpecError` at an offset."""
        raise SpecError(cause, place=self.place(offset), help=help)

    def refuse(self, cause: str, offset: int, help: str = "") -> NoReturn:  # noqa: A002
        """Raise an `UnsupportedSpec` at an offset."""
        raise UnsupportedSpec(cause, place=self.place(offset), help=help)

    def check(self) -> None:
        """Refuse what is no text at all.

        Raises:
            SpecError: the text is empty, has NUL bytes, or is not UTF-8.
        """
        if not _SOMETHING.search(self.text):
            raise SpecError("the specification is empty", place=self.name)
        position = self.text.find(b"\0")
        if position >= 0:
            self.fail("the specification has a NUL byte: it is not a text file", position)
        if not self.text.isascii():
            try:
                self.text.decode("utf-8")
            except UnicodeDecodeError as error:
                self.fail("the specification is not UTF-8 text", error.start)


def read_source(path: str | os.PathLike[str]) -> Source:
    """Read a file, decompressing it if it is gzip by content.

    Raises:
        SpecError: the file cannot be read, is not text, or is too large.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            text = _decompress(file) if is_gzip else file.read(LARGEST_FILE + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise SpecError(f"the specification cannot be read: {reason}", place=str(path)) from error
    if len(text) > LARGEST_FILE:
        raise SpecError(
            f"the specification has more than {LARGEST_FILE} bytes of text", place=str(path)
        )
    source = Source(str(path), text)
    source.check()
    return source


def _decompress(file: BinaryIO) -> bytes:
    """All of the text, or a little more than is allowed."""
    blocks, total = [], 0
    with gzip.open(file) as unzipped:
        while total <= LARGEST_FILE and (block := unzipped.read(_BLOCK)):
            blocks.append(block)
            total += len(block)
    return b"".join(blocks)


class Tokens:
    """A cursor over the tokens of a source."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.offset = 0

    def next(self) -> Token | None:
        """The next token, or ``None`` at the end of the text."""
        match = _TOKEN.match(self.source.text, self.offset)
        if match is None:
            self._end()
            return None
        self.offset = match.end()
        return Token(match[1], match.start(1))

    def peek(self) -> Token | None:
        """The next token, which stays."""
        offset = self.offset
        token = self.next()
        self.offset = offset
        return token

    def expect(self, what: str) -> Token:
        """The next token; ``what`` says in words which one, if the text ends instead."""
        token = self.next()
        if token is None:
            self.fail_at_end(what)
        return token

    def expect_text(self, text: bytes, what: str) -> Token:
        """The next token, which must be this one."""
        token = self.expect(what)
        if token.text != text:
            self.source.fail(f"expected {what}, found {token.quoted}", token.offset)
        return token

    def fail_at_end(self, what: str) -> NoReturn:
        """Complain that the text ends."""
        self.source.fail(
            f"the file ends where {what} is expected",
            len(self.source.text),
            help="the file may be truncated",
        )

    def _end(self) -> None:
        match = _SKIP.match(self.source.text, self.offset)
        start = match.end() if match else self.offset
        if start == len(self.source.text):
            return
        rest = self.source.text[start : start + 1]
        cause = {b'"': "a string is not closed", b"[": "an index list is not closed"}.get(
            rest, f"unexpected {quote(rest)}"
        )
        self.source.fail(cause, start)
