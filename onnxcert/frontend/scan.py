"""The fast path: find the comparisons of one input with one number, millions at a time.

Nearly all of the text of a large specification is ``(<= X_17 0.25)``. This module finds such forms
with NumPy, 2 MB of text at a time: the text becomes an array of token starts and kinds (by first
character), a form is five tokens ``( REL NAME NUMBER )``, and names and numbers are read column by
column, all forms at once. Neighbouring forms make up a `Run`, which the parser takes as one token;
``(assert (<= X_17 0.25))`` is found likewise. What does not match to the letter (strict
comparisons, sums, odd literals, names out of range) is left to the parser and its messages, so this
module never has to complain.

A regular expression per form is the obvious alternative: it takes three times as long for 7 million
forms, and makes as many Python objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxcert.arrays import BoolArray, IntArray
from onnxcert.frontend.numbers import NumberError, parse_number
from onnxcert.frontend.sexpr import Source
from onnxcert.spec.decimals import LARGEST_MANTISSA, LARGEST_SCALE, fit

AT_LEAST, AT_MOST, EQUAL = 0, 1, 2
"""Codes of the relations ``>= <= ==``."""

EXCEPTION = -127
"""The scale of a number that stands in ``Scan.exceptions``."""

_CHUNK = 2**21
_LONGEST_WORD = 24
_MOST_DIGITS = 9
_SILENT = re.compile(rb'"(?:[^"\\\n]|\\.)*"|;[^\n]*')
_OPEN, _CLOSE, _RELATION, _NUMBER, _ASSERT, _OTHER = 1, 2, 3, 4, 5, 6


def _first_characters() -> NDArray[np.uint8]:
    table = np.full(256, _OTHER, np.uint8)
    table[list(b" \t\r\n\f\v")] = 0
    table[list(b"<>=")] = _RELATION
    table[list(b"0123456789+-.")] = _NUMBER
    table[ord("(")], table[ord(")")], table[ord("a")] = _OPEN, _CLOSE, _ASSERT
    return table


_KIND = _first_characters()


class InputName(NamedTuple):
    """How elements of an input tensor are written: prefix, indices separated by commas, suffix."""

    tensor: int
    prefix: bytes
    suffix: bytes
    shape: tuple[int, ...]


class Run(NamedTuple):
    """Neighbouring forms: numbers ``start`` to ``stop`` of the scan, bytes ``offset`` to ``end``.

    ``is_asserted``: each form is wrapped in an ``assert`` of its own.
    """

    start: int
    stop: int
    offset: int
    end: int
    is_asserted: bool


@dataclass(frozen=True, eq=False)
class Scan:
    """All forms found in a source, in order.

    Attributes:
        name: (M,) position of the tensor in ``names``.
        index: (M,) element of the tensor.
        relation: (M,) code.
        mantissa, scale: (M,) the number, as in `onnxcert.spec.decimals.Decimals`.
        exceptions: exact numbers that do not fit, by position.
        runs: where they stand, by the offset of the first byte.
        names: the input tensors that were looked for.
    """

    name: NDArray[np.int32]
    index: NDArray[np.int32]
    relation: NDArray[np.uint8]
    mantissa: NDArray[np.int64]
    scale: NDArray[np.int8]
    exceptions: dict[int, Fraction]
    runs: dict[int, Run]
    names: tuple[InputName, ...]

    @classmethod
    def empty(cls, names: Sequence[InputName] = ()) -> Scan:
        """A scan that found nothing: the parser then reads everything token by token."""
        return _join([], names)


@dataclass(frozen=True, eq=False)
class _Chunk:
    """What `Scan` holds, for one piece of the text; runs count from its beginning."""

    name: NDArray[np.int32]
    index: NDArray[np.int32]
    relation: NDArray[np.uint8]
    mantissa: NDArray[np.int64]
    scale: NDArray[np.int8]
    exceptions: dict[int, Fraction]
    runs: list[Run]


def scan_inputs(source: Source, start: int, names: Sequence[InputName], equality: bytes) -> Scan:
    """Find the comparisons of an input with a number from an offset on.

    Args:
        source: the text; not changed.
        start: where to begin, outside of comments and strings.
        names: the input tensors, with how their elements are written.
        equality: ``=`` or ``==``.
    """
    text = source.text
    if text.find(b";", start) >= 0 or text.find(b'"', start) >= 0:
        text = text[:start] + _SILENT.sub(_blank, text[start:])
    data = np.frombuffer(text, np.uint8)
    chunks = [
        _scan_chunk(data[begin:end], begin, names, equality) for begin, end in _cut(text, start)
    ]
    return _join(chunks, names)


def _blank(match: re.Match[bytes]) -> bytes:
    """Something of the same length that no form can contain."""
    return (b'"' if match[0].startswith(b'"') else b" ") * len(match[0])


def _cut(text: bytes, start: int) -> Iterator[tuple[int, int]]:
    """Pieces that end behind a closing parenthesis, so that no comparison is cut."""
    while start < len(text):
        end = text.find(b")", start + _CHUNK) + 1 or len(text)
        yield start, end
        start = end


def _join(chunks: list[_Chunk], names: Sequence[InputName]) -> Scan:
    exceptions: dict[int, Fraction] = {}
    runs: dict[int, Run] = {}
    total = 0
    for chunk in chunks:
        exceptions.update((total + i, value) for i, value in chunk.exceptions.items())
        for run in chunk.runs:
            runs[run.offset] = run._replace(start=run.start + total, stop=run.stop + total)
        total += len(chunk.name)

    def joined(part: str, dtype: type[np.integer[Any]]) -> NDArray[Any]:
        arrays = [getattr(chunk, part) for chunk in chunks]
        return np.concatenate([np.empty(0, dtype), *arrays])

    return Scan(
        joined("name", np.int32),
        joined("index", np.int32),
        joined("relation", np.uint8),
        joined("mantissa", np.int64),
        joined("scale", np.int8),
        exceptions,
        runs,
        tuple(names),
    )


@dataclass(frozen=True, eq=False)
class _Words:
    """All tokens of a chunk: bytes, first and last offset, kind of the first character."""

    data: NDArray[np.uint8]
    starts: IntArray
    ends: IntArray
    kinds: NDArray[np.uint8]

    @classmethod
    def split(cls, data: NDArray[np.uint8]) -> _Words:
        kind = _KIND[data]
        in_word = kind > _CLOSE
        begins, finishes = in_word.copy(), in_word.copy()
        np.greater(in_word[1:], in_word[:-1], out=begins[1:])
        np.greater(in_word[:-1], in_word[1:], out=finishes[:-1])
        # The subtraction wraps around, so that only the two parentheses stay below 2.
        starts = np.flatnonzero(begins | (kind - np.uint8(_OPEN) < 2))
        kinds = kind[starts]
        ends = starts + 1
        ends[kinds > _CLOSE] = np.flatnonzero(finishes) + 1
        return cls(data, starts, ends, kinds)

    def forms(self) -> IntArray:
        """Numbers of the tokens that begin something shaped like ``( REL NAME NUMBER )``."""
        k = self.kinds
        shape = (k[:-4] == _OPEN) & (k[1:-3] == _RELATION) & (k[2:-2] >= _ASSERT)
        return np.flatnonzero(shape & (k[3:-1] == _NUMBER) & (k[4:] == _CLOSE))

    def letters(self, tokens: IntArray) -> tuple[NDArray[np.uint8], IntArray]:
        """(width, len(tokens)) the tokens, padded with zeros and cut, and their full lengths."""
        starts = self.starts[tokens]
        lengths = self.ends[tokens] - starts
        width = min(int(lengths.max(initial=0)), _LONGEST_WORD)
        letters = np.empty((width, len(tokens)), np.uint8)
        for j in range(width):
            np.take(self.data, starts + j, out=letters[j], mode="clip")
            letters[j][lengths <= j] = 0
        return letters, lengths

    def text(self, token: int) -> bytes:
        return self.data[self.starts[token] : self.ends[token]].tobytes()


def _scan_chunk(
    data: NDArray[np.uint8], begin: int, names: Sequence[InputName], equality: bytes
) -> _Chunk:
    words = _Words.split(data)
    forms = words.forms() if len(words.kinds) > 4 else np.empty(0, np.int64)
    relation, valid = _relations(words, forms + 1, equality)
    name, index = _names(words, forms + 2, names)
    valid &= name >= 0
    forms, relation, name, index = forms[valid], relation[valid], name[valid], index[valid]
    mantissa, scale, exceptions, valid = _numbers(words, forms + 3)
    if not valid.all():
        kept = np.cumsum(valid) - 1
        exceptions = {int(kept[i]): value for i, value in exceptions.items()}
        forms, relation, name, index = forms[valid], relation[valid], name[valid], index[valid]
        mantissa, scale = mantissa[valid], scale[valid]
    return _Chunk(
        name, index, relation, mantissa, scale, exceptions, _find_runs(words, forms, begin)
    )


def _relations(
    words: _Words, tokens: IntArray, equality: bytes
) -> tuple[NDArray[np.uint8], BoolArray]:
    """Codes, and where the operator is one of ``>= <=`` and equality."""
    letters, lengths = words.letters(tokens)
    code = np.zeros(len(tokens), np.uint8)
    valid = np.zeros(len(tokens), np.bool_)
    for value, operator in ((AT_LEAST, b">="), (AT_MOST, b"<="), (EQUAL, equality)):
        same = lengths == len(operator)
        for column, letter in zip(letters, operator, strict=False):
            same &= column == letter
        code[same] = value
        valid |= same
    return code, valid


def _names(
    words: _Words, tokens: IntArray, names: Sequence[InputName]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Which of the names each token is an element of (-1: none), and which element."""
    letters, lengths = words.letters(tokens)
    position = np.full(len(tokens), -1, np.int32)
    element = np.zeros(len(tokens), np.int32)
    for number, name in enumerate(names):
        if name.shape:
            valid, flat = _elements(letters, lengths, name)
            position[valid], element[valid] = number, flat[valid]
    return position, element


def _elements(
    letters: NDArray[np.uint8], lengths: IntArray, name: InputName
) -> tuple[BoolArray, IntArray]:
    """Where a word is an element of the tensor in full, and its row-major position."""
    count = lengths.shape[0]
    stop = lengths - len(name.prefix) - len(name.suffix)
    valid = (stop > 0) & (lengths <= len(letters))
    for letter, column in zip(name.prefix, letters, strict=False):
        valid &= column == letter
    body = np.zeros((max(len(letters) - len(name.prefix), 0) + 1, count), np.uint8)
    body[:-1] = letters[len(name.prefix) :]
    shape = np.array([*name.shape, 0])
    flat, value = np.zeros(count, np.int64), np.zeros(count, np.int64)
    digits, axis = np.zeros(count, np.int8), np.zeros(count, np.int64)
    for j, column in enumerate(body):
        digit = column - np.uint8(ord("0"))
        is_digit = (digit <= 9) & (j < stop)
        ends_axis = (j == stop) | ((column == ord(",")) & (j < stop))
        valid &= is_digit | ends_axis | (j > stop)
        value = np.where(is_digit, 10 * value + digit, value)
        digits += is_digit
        valid &= ~ends_axis | ((digits > 0) & (digits <= _MOST_DIGITS) & (value < shape[axis]))
        flat = np.where(ends_axis, flat * shape[axis] + value, flat)
        value, digits = np.where(ends_axis, 0, value), np.where(ends_axis, 0, digits)
        axis = np.minimum(axis + ends_axis, len(name.shape))
        if name.suffix:
            valid &= (j != stop) | (column == name.suffix[0])
    valid &= axis == len(name.shape)
    if not name.suffix:
        # X_07 is another symbol than X_7.
        valid &= (stop == 1) | (body[0] != ord("0"))
    return valid, flat


def _numbers(
    words: _Words, tokens: IntArray
) -> tuple[NDArray[np.int64], NDArray[np.int8], dict[int, Fraction], BoolArray]:
    """Mantissas, scales, numbers that do not fit, and where the token is a number at all."""
    letters, lengths = words.letters(tokens)
    count = len(tokens)
    mantissa = np.zeros(count, np.uint64)
    digits, significant, scale = (np.zeros(count, np.int8) for _ in range(3))
    seen_point = np.zeros(count, np.bool_)
    simple = lengths <= len(letters)
    negative = np.zeros(count, np.bool_)
    for j, column in enumerate(letters):
        digit = column - np.uint8(ord("0"))
        is_digit, is_point = digit <= 9, column == ord(".")
        known = is_digit | (is_point & ~seen_point) | (column == 0)
        if j == 0:
            negative = column == ord("-")
            known |= negative | (column == ord("+"))
        simple &= known
        mantissa = np.where(is_digit, mantissa * np.uint64(10) + digit, mantissa)
        digits += is_digit
        significant += is_digit & (mantissa > 0)
        scale += is_digit & seen_point
        seen_point |= is_point
    simple &= (digits > 0) & (significant <= 19) & (scale <= LARGEST_SCALE)
    simple &= mantissa < LARGEST_MANTISSA
    signed = np.where(simple, mantissa, 0).astype(np.int64)
    signed = np.where(negative, -signed, signed)
    exceptions, valid = _odd_numbers(words, tokens, np.flatnonzero(~simple), signed, scale)
    return signed, scale, exceptions, valid


def _odd_numbers(
    words: _Words,
    tokens: IntArray,
    odd: IntArray,
    mantissa: NDArray[np.int64],
    scale: NDArray[np.int8],
) -> tuple[dict[int, Fraction], BoolArray]:
    """Read long literals and exponents one by one, into the arrays where they fit."""
    exceptions: dict[int, Fraction] = {}
    valid = np.ones(len(tokens), np.bool_)
    for position in odd.tolist():
        try:
            value = parse_number(words.text(tokens[position]))
        except NumberError:
            value = None
        if value is None:
            valid[position] = False
            continue
        fitted = fit(value)
        mantissa[position], scale[position] = fitted or (0, EXCEPTION)
        if fitted is None:
            exceptions[position] = value
    return exceptions, valid


def _find_runs(words: _Words, forms: IntArray, begin: int) -> list[Run]:
    """Group the forms (numbers of their first token) that follow each other."""
    if not len(forms):
        return []
    asserted = _find_asserted(words, forms)
    gap = np.diff(forms)
    breaks = (asserted[1:] != asserted[:-1]) | (gap != np.where(asserted[1:], 8, 5))
    first = np.concatenate([[0], np.flatnonzero(breaks) + 1])
    last = np.concatenate([first[1:], [len(forms)]]) - 1
    wrapped = asserted[first]
    offset = words.starts[forms[first] - 2 * wrapped] + begin
    end = words.ends[forms[last] + 4 + wrapped] + begin
    columns = (first, last + 1, offset, end, wrapped)
    return [Run(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]


def _find_asserted(words: _Words, forms: IntArray) -> BoolArray:
    """Where ``(assert`` stands right before a form and ``)`` right behind."""
    kinds, last = words.kinds, len(words.kinds) - 1
    before, word, after = np.maximum(forms - 2, 0), forms - 1, np.minimum(forms + 5, last)
    found: BoolArray = (forms >= 2) & (forms + 5 <= last)
    found &= (kinds[before] == _OPEN) & (kinds[word] == _ASSERT) & (kinds[after] == _CLOSE)
    found &= words.starts[word] == words.ends[before]
    where = np.flatnonzero(found)
    letters, lengths = words.letters(word[where])
    found[where] &= lengths == len(b"assert")
    for column, letter in zip(letters, b"assert", strict=False):
        found[where] &= column == letter
    return found
