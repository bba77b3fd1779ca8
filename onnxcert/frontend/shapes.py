"""Concrete shapes of a model's inputs: fixed ones of the file, the rest from the specification."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from onnxcert.errors import ModelError
from onnxcert.frontend.tensors import Shape

_log = logging.getLogger(__name__)

_TYPES = {1: "float32", 10: "float16", 11: "float64"}


@dataclass(frozen=True)
class TensorInfo:
    """Name, element type (``float32``, ...) and shape of a tensor of the file."""

    name: str
    element_type: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many entries it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class _Declared:
    """An input as the file declares it; unknown dimensions are names, all different if unnamed."""

    name: str
    element_type: str
    dimensions: tuple[int | str, ...] | None

    @property
    def unknown(self) -> list[str]:
        return [d for d in self.dimensions or () if isinstance(d, str)]


def element_type(number: int) -> str:
    """NumPy's and VNN-LIB's name of an ONNX element type, ``int64`` for instance."""
    if number in _TYPES:
        return _TYPES[number]
    if number not in onnx.TensorProto.DataType.values():
        return f"number {number}"
    return str(onnx.TensorProto.DataType.Name(number)).lower()


def bind_inputs(
    source: str,
    values: Sequence[onnx.ValueInfoProto],
    input_shapes: Sequence[Shape] | None,
    input_elements: int | None,
) -> tuple[TensorInfo, ...]:
    """Give every input a concrete shape.

    Args:
        source: the file, for messages.
        values: the graph inputs that are not stored tensors.
        input_shapes: one declared shape per input (VNN-LIB 2), or None.
        input_elements: how many numbers all inputs have together (VNN-LIB 1.0), or None.

    Raises:
        ModelError: an input is no floating-point tensor, or nothing fits what is declared.
    """
    inputs = [_declared(source, value) for value in values]
    if not inputs:
        raise ModelError("the model has no input", place=source)
    if input_shapes is not None:
        if len(input_shapes) != len(inputs):
            raise ModelError(
                f"the model has {len(inputs)} inputs, {len(input_shapes)} are declared",
                place=source,
            )
        pairs = zip(inputs, input_shapes, strict=True)
        return tuple(_with_declared_shape(source, i, tuple(shape)) for i, shape in pairs)
    return _with_element_count(source, inputs, input_elements)


def _declared(source: str, value: onnx.ValueInfoProto) -> _Declared:
    place = f"{source}: input {value.name!r}"
    if value.type.WhichOneof("value") != "tensor_type":
        raise ModelError("an input is not a tensor", place=place)
    tensor = value.type.tensor_type
    if tensor.elem_type not in _TYPES:
        raise ModelError(
            f"an input has elements of type {element_type(tensor.elem_type)}",
            place=place,
            help="inputs must be floating-point tensors: float16, float32 or float64",
        )
    if not tensor.HasField("shape"):
        return _Declared(value.name, _TYPES[tensor.elem_type], None)
    dimensions: list[int | str] = []
    for number, dimension in enumerate(tensor.shape.dim):
        if dimension.HasField("dim_value") and dimension.dim_value >= 0:
            if dimension.dim_value == 0:
                raise ModelError("an input has a dimension of length zero", place=place)
            dimensions.append(dimension.dim_value)
        else:
            dimensions.append(dimension.dim_param or f"{value.name}.{number}")
    return _Declared(value.name, _TYPES[tensor.elem_type], tuple(dimensions))


def _with_declared_shape(source: str, value: _Declared, shape: Shape) -> TensorInfo:
    """The declared shape where it fits, else the file's shape if that has as many entries."""
    place = f"{source}: input {value.name!r}"
    if any(n < 1 for n in shape):
        raise ModelError(f"an input is declared with the shape {list(shape)}", place=place)
    dimensions = value.dimensions
    if dimensions is None or (
        len(dimensions) == len(shape)
        and all(isinstance(d, str) or d == n for d, n in zip(dimensions, shape, strict=True))
    ):
        return TensorInfo(value.name, value.element_type, shape)
    fitting = _solve(dimensions, math.prod(shape))
    if fitting is None:
        raise ModelError(
            f"an input has the shape {_show(dimensions)}, but {list(shape)} is declared",
            place=place,
        )
    _log.warning(
        "%s has the shape %s; the declared %s is reshaped to it", place, list(fitting), list(shape)
    )
    return TensorInfo(value.name, value.element_type, fitting)


def _with_element_count(
    source: str, inputs: Sequence[_Declared], count: int | None
) -> tuple[TensorInfo, ...]:
    """All unknown dimensions are one, except that one of them may make up the count."""
    for value in inputs:
        if value.dimensions is None:
            place = f"{source}: input {value.name!r}"
            raise ModelError("an input has no shape", place=place, help="declare its shape")
    ones = [tuple(1 if isinstance(d, str) else d for d in v.dimensions or ()) for v in inputs]
    shapes: list[Shape] | None = ones
    if count is not None and sum(map(math.prod, ones)) != count:
        shapes = None
        for number, value in enumerate(inputs):
            others = sum(math.prod(s) for i, s in enumerate(ones) if i != number)
            fitting = _solve(value.dimensions or (), count - others)
            if fitting is not None:
                shapes = [*ones[:number], fitting, *ones[number + 1 :]]
                break
    if shapes is None:
        total = " + ".join(_show(v.dimensions or ()) for v in inputs)
        raise ModelError(
            f"the specification has {count} input variables, the model's inputs are {total}",
            place=source,
        )
    return tuple(TensorInfo(v.name, v.element_type, s) for v, s in zip(inputs, shapes, strict=True))


def _solve(dimensions: Sequence[int | str], count: int) -> Shape | None:
    """Concrete dimensions with a product of ``count``: one unknown is solved for, the others are
    one; the last unknown is the free one, because the first is the batch.
    """
    known = math.prod(d for d in dimensions if isinstance(d, int))
    unknown = [i for i, d in enumerate(dimensions) if isinstance(d, str)]
    shape = [d if isinstance(d, int) else 1 for d in dimensions]
    if count < 1 or count % known or (count != known and not unknown):
        return None
    if count != known:
        free = unknown[-1]
        if sum(d == dimensions[free] for d in dimensions) != 1:
            return None
        shape[free] = count // known
    return tuple(shape)


def _show(dimensions: Sequence[int | str]) -> str:
    return "[" + ", ".join(map(str, dimensions)) + "]"
