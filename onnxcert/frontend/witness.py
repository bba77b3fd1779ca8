"""Witnesses as text and as tensors: the assignments that stand behind the word ``sat``.

VNN-LIB 1.0 (the competition's result files)::

    ((X_0 0.25)
    (X_1 -1)
    (Y_0 3.5))

VNN-LIB 2.x (chapter 5 of the standard): per tensor, in the order of declaration, a line
``name type [d0,d1]`` and then one value per line, row-major.

Floats are written as the exact decimals they are. Fewer digits would bring back the same bits, but
the text itself could lie outside a box whose bounds are written with more, and six digits, a
popular choice, lose counterexamples that lie close to a boundary. An input that the query fixes to
a decimal which is no floating-point number is written as that decimal; a runtime rounds it when it
reads it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from onnxcert.arrays import Array, FloatArray
from onnxcert.errors import SpecError, UsageError
from onnxcert.frontend.numbers import NumberError, parse_number
from onnxcert.frontend.sexpr import Source, Token, Tokens
from onnxcert.frontend.write import decimal
from onnxcert.spec.query import Decimals, Query
from onnxcert.spec.tree import Tensor


def format_witness(
    query: Query, values: Mapping[str, Array], decimals: Decimals | None = None
) -> str:
    """The witness in the form of the query's version, without a newline at the end.

    Args:
        query: names and order of the tensors.
        values: by name, any shape with the declared number of elements.
        decimals: exact values that replace some of those, as in `Query.holds`.

    Raises:
        UsageError: a tensor has no value or the wrong number of elements.
    """
    if query.version == "1.0":
        parts = [
            f"({tensor.name}_{index} {text})"
            for tensor in query.tensors
            for index, text in enumerate(_texts(tensor, values, decimals or {}))
        ]
        return f"({chr(10).join(parts)})"
    lines: list[str] = []
    for tensor in query.tensors:
        lines += [_header(tensor), *_texts(tensor, values, decimals or {})]
    return "\n".join(lines)


def parse_witness(query: Query, text: str, source: str = "<witness>") -> dict[str, FloatArray]:
    """Read what `format_witness` wrote; a first line ``sat`` is skipped.

    Returns:
        Arrays of the declared shapes; float32 for tensors declared so, float64 for others.

    Raises:
        SpecError: the text is no witness of this query.
    """
    whole = Source(source, text.encode())
    whole.check()
    values = _parse_pairs(query, whole) if query.version == "1.0" else _parse_blocks(query, whole)
    return {
        tensor.name: np.array(values[tensor.name], _dtype(tensor)).reshape(tensor.shape)
        for tensor in query.tensors
    }


def write_assignments(
    folder: str | os.PathLike[str], query: Query, values: Mapping[str, Array]
) -> None:
    """Write ``<tensor>.pb``, an ONNX ``TensorProto`` of declared type and shape, for every tensor.

    Tensors of type ``real`` keep the element type of their array.

    Raises:
        UsageError: a tensor has no value, the wrong number of elements, or values that its
            declared type cannot represent.
        OSError: the folder cannot be written.
    """
    from onnx import numpy_helper  # noqa: PLC0415 - heavy, and not needed for text

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for tensor in query.tensors:
        array = _declared(tensor, _value(tensor, values)).reshape(tensor.shape)
        proto = numpy_helper.from_array(array, name=tensor.name)
        (folder / f"{tensor.name}.pb").write_bytes(proto.SerializeToString())


def _header(tensor: Tensor) -> str:
    return f"{tensor.name} {tensor.element_type} [{','.join(map(str, tensor.shape))}]"


def _value(tensor: Tensor, values: Mapping[str, Array]) -> Array:
    if tensor.name not in values:
        raise UsageError(f"the witness has no value of {tensor.name}")
    array = np.asarray(values[tensor.name]).ravel()
    if array.size != tensor.size:
        raise UsageError(f"{tensor.name} has {tensor.size} elements, the witness {array.size}")
    return array


def _texts(tensor: Tensor, values: Mapping[str, Array], decimals: Decimals) -> list[str]:
    array = _value(tensor, values)
    if array.dtype.kind != "f":
        return [str(int(value)) for value in array]
    texts = [format(Decimal(value), "f") for value in array.tolist()]
    for index, exact in decimals.get(tensor.name, {}).items():
        texts[index] = decimal(exact)
    return texts


def _dtype(tensor: Tensor) -> type[np.floating[Any]]:
    return np.float32 if tensor.element_type == "float32" else np.float64


def _declared(tensor: Tensor, array: Array) -> Array:
    """The array in the declared element type, which must not change its values."""
    if tensor.element_type == "real":
        return array
    try:
        dtype = np.dtype(tensor.element_type)
    except TypeError as error:
        raise UsageError(
            f"{tensor.name}: tensors of {tensor.element_type} cannot be written"
        ) from error
    converted = array.astype(dtype)
    if not np.array_equal(converted.astype(np.float64), array.astype(np.float64)):
        raise UsageError(f"{tensor.name} has values that are not {tensor.element_type}")
    return converted


def _number(source: Source, token: Token) -> float:
    try:
        value = parse_number(token.text)
    except NumberError as error:
        source.fail(str(error), token.offset)
    if value is None:
        source.fail(f"{token.quoted} is no number", token.offset)
    return float(token.text)


def _parse_pairs(query: Query, source: Source) -> dict[str, list[float]]:
    tokens = Tokens(source)
    start = tokens.peek()
    if start is not None and start.text == b"sat":
        tokens.next()
    tokens.expect_text(b"(", "'('")
    values: dict[str, list[float]] = {}
    for tensor in query.tensors:
        numbers = values.setdefault(tensor.name, [])
        for index in range(tensor.size):
            name = f"{tensor.name}_{index}"
            tokens.expect_text(b"(", "'('")
            tokens.expect_text(name.encode(), name)
            numbers.append(_number(source, tokens.expect("a number")))
            tokens.expect_text(b")", "')'")
    tokens.expect_text(b")", "')'")
    rest = tokens.next()
    if rest is not None:
        source.fail(f"unexpected {rest.quoted} behind the witness", rest.offset)
    return values


def _parse_blocks(query: Query, source: Source) -> dict[str, list[float]]:
    lines = _lines(source)
    line = next(lines, None)
    if line is not None and line.text == b"sat":
        line = next(lines, None)
    values: dict[str, list[float]] = {}
    for tensor in query.tensors:
        if line is None or line.text.decode("utf-8", "replace") != _header(tensor):
            _fail_at(source, line, f"expected '{_header(tensor)}'")
        numbers = values.setdefault(tensor.name, [])
        for index in range(tensor.size):
            line = next(lines, None)
            if line is None:
                _fail_at(source, line, f"{tensor.name} has only {index} of {tensor.size} values")
            numbers.append(_number(source, line))
        line = next(lines, None)
    if line is not None:
        _fail_at(source, line, "expected the end of the witness")
    return values


def _lines(source: Source) -> Iterator[Token]:
    """The lines that are not blank, stripped."""
    for match in re.finditer(rb"[^\n]*\S[^\n]*", source.text):
        yield Token(match[0].strip(), match.start())


def _fail_at(source: Source, line: Token | None, cause: str) -> NoReturn:
    if line is None:
        raise SpecError(f"{cause}, and the file ends", place=source.name)
    source.fail(f"{cause}, found {line.quoted}", line.offset)
