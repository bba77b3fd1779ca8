"""Reading of ONNX files, independent of the verifier's: from bytes to a `Network`.

Nodes are taken in the order of the file; `onnxcert.checker.operators` says what each one means.
What is not understood exactly is refused with `Unusable`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from onnxcert.checker.builder import Builder, Known, Node, Operand, bounded
from onnxcert.checker.errors import Unusable
from onnxcert.checker.network import (
    Affine,
    Array,
    Block,
    Curve,
    Entries,
    Network,
    Pick,
    Product,
    Term,
)
from onnxcert.checker.operators import FLOATS, FOLDED, OPERATORS, fold

__all__ = [
    "Affine",
    "Block",
    "Curve",
    "Entries",
    "Network",
    "Pick",
    "Product",
    "Term",
    "read_network",
]

_LARGEST = (1 << 31) - 1
_FAILURES = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)
"""NumPy and onnx check much of a model while it is read, and raise any of these."""

_OPSETS = range(1, 26)
Dimensions = list[int | str]


def read_network(
    data: bytes,
    *,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    input_elements: int | None = None,
    hidden: Sequence[str] = (),
    directory: Path | None = None,
) -> Network:
    """Read a model.

    Args:
        data: an ONNX file, compressed with gzip or not.
        input_shapes: declared shape of every input (VNN-LIB 2); binds dynamic dimensions.
        input_elements: how many numbers all inputs have together (VNN-LIB 1.0); binds one dynamic
            dimension. Dimensions that neither binds are one.
        hidden: inner tensors to append to the output.
        directory: where external data may lie; without it they are refused.

    Raises:
        Unusable: the file is no model, or holds what is not supported.
    """
    try:
        with np.errstate(all="ignore"):
            return _Reading(_parsed(data), directory).run(input_shapes, input_elements, hidden)
    except _FAILURES as error:
        raise Unusable(f"the model makes no sense: {error!r}") from error


def _parsed(data: bytes) -> onnx.ModelProto:
    if data.startswith(b"\x1f\x8b"):
        stream = zlib.decompressobj(wbits=31)
        try:
            data = stream.decompress(data, _LARGEST)
        except zlib.error as error:
            raise Unusable(f"the model's compressed data are broken: {error}") from error
        if not stream.eof or stream.unused_data:
            raise Unusable("the model's compressed data are cut off, too large or followed by more")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise Unusable("this is no ONNX model") from error
    versions = [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")]
    if len(set(versions)) != 1 or versions[0] not in _OPSETS:
        raise Unusable(f"operator sets {versions}, not one from 1 to {_OPSETS[-1]}")
    if proto.functions or proto.graph.sparse_initializer or proto.ir_version > onnx.IR_VERSION:
        raise Unusable("local functions, sparse stored tensors or a newer IR version")
    return proto


class _Reading:
    """One pass over the nodes of a model."""

    def __init__(self, proto: onnx.ModelProto, directory: Path | None) -> None:
        self.graph, self.directory = proto.graph, directory
        self.opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
        self.stored = {tensor.name: tensor for tensor in self.graph.initializer}
        if len(self.stored) < len(self.graph.initializer):
            raise Unusable("two stored tensors of the same name")
        self.values: dict[str, Operand] = {}
        self.elements: dict[str, str] = {}

    def run(
        self, shapes: Sequence[tuple[int, ...]] | None, count: int | None, hidden: Sequence[str]
    ) -> Network:
        """All nodes, and what is asked for of their outputs."""
        self._refuse_unsupported()
        inputs = _bound([v for v in self.graph.input if v.name not in self.stored], shapes, count)
        ends = np.cumsum([0] + [math.prod(bounded(shape)) for _, shape, _ in inputs])
        builder = Builder(int(ends[-1]), self._array)
        for start, (name, shape, element) in zip(ends, inputs, strict=False):
            self._define(name, np.arange(start, start + math.prod(shape)).reshape(shape), element)
            builder.types.add(element)
        for proto in self.graph.node:
            place = f"node {next((o for o in proto.output if o), proto.name)!r} ({proto.op_type})"
            try:
                self._run_one(builder, proto)
            except Unusable as error:
                raise Unusable(f"{place}: {error}") from error
            except (*_FAILURES, onnx.defs.SchemaError) as error:
                raise Unusable(f"{place} makes no sense: {error!r}") from error
        made = {name for proto in self.graph.node for name in proto.output}
        names = [output.name for output in self.graph.output]
        if not names or not made.issuperset(hidden):
            raise Unusable(f"no outputs, or no inner tensors {list(hidden)}")
        results = [(name, self._value(builder, name)) for name in (*names, *hidden)]
        builder.begin("outputs")
        output = np.concatenate([builder.ids(operand).ravel() for _, operand in results])
        infos = [(name, operand.shape, self._element(name, operand)) for name, operand in results]
        declared = [FLOATS.get(o.type.tensor_type.elem_type) for o in self.graph.output]
        for (name, _, element), said in zip(
            infos, [*declared, *(None for _ in hidden)], strict=True
        ):
            if element not in FLOATS.values() or said not in (None, element):
                raise Unusable(f"{name!r} has elements of type {element}, declared {said}")
        binary32 = builder.types <= {"float32"}
        return Network(builder.blocks, inputs, int(ends[-1]), output, builder.size, infos, binary32)

    def _refuse_unsupported(self) -> None:
        missing = {
            f"{node.domain}.{node.op_type}".lstrip(".")
            for node in self.graph.node
            if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS.keys() | FOLDED
        }
        if missing:
            raise Unusable(f"operators that are not supported: {', '.join(sorted(missing))}")

    def _define(self, name: str, operand: Operand, element: str) -> None:
        if name in self.values or name in self.stored or not name:
            raise Unusable(f"the tensor {name!r} is defined twice")
        self.values[name], self.elements[name] = operand, element

    def _value(self, builder: Builder, name: str) -> Operand:
        if name in self.values:
            return self.values[name]
        if name not in self.stored:
            raise Unusable(f"the tensor {name!r} is never made")
        return builder.known(self._array(self.stored[name]))

    def _element(self, name: str, operand: Operand) -> str:
        """The element type: that of the value, or as it was when the tensor was defined."""
        return str(operand.value.dtype) if isinstance(operand, Known) else self.elements[name]

    def _run_one(self, builder: Builder, proto: onnx.NodeProto) -> None:
        schema = onnx.defs.get_schema(proto.op_type, self.opset, "")
        version = schema.since_version
        operands = [self._value(builder, name) if name else None for name in proto.input]
        attributes = {a.name: _attribute(a) for a in proto.attribute}
        self._refuse_misfit(proto, schema)
        while operands and operands[-1] is None:
            operands.pop()
        node = Node(
            builder, proto.op_type, version, attributes, operands, sum(map(bool, proto.output))
        )
        builder.begin(next((name for name in proto.output if name), proto.name))
        result: Operand | list[Operand] | None = fold(node)
        if result is None:
            function, since = OPERATORS.get(proto.op_type, (None, 0))
            if function is None or version < since:
                raise Unusable(f"version {version} of the operator on these inputs")
            result = function(node)
            if node.unread():
                raise Unusable(f"inputs or attributes that are not understood: {node.unread()}")
        read = [(name, x) for name, x in zip(proto.input, operands, strict=False) if x is not None]
        read.sort(key=lambda pair: isinstance(pair[1], Known))  # what is computed comes first
        element = self._element(*read[0]) if read else ""
        if proto.op_type == "Cast":
            element = FLOATS.get(attributes["to"], "")
        for name, made in zip(proto.output, _listed(result), strict=False):
            bounded(made.shape)
            if name:
                self._define(name, made, element if isinstance(made, np.ndarray) else "")

    def _refuse_misfit(self, proto: onnx.NodeProto, schema: onnx.defs.OpSchema) -> None:
        """Refuse what is not a node of the operator: functions may then lean on defaults."""
        given = {a.name: a.type for a in proto.attribute}
        for name, attribute in schema.attributes.items():
            kind = given.pop(name, None if attribute.required else attribute.type)
            if kind != attribute.type:
                raise Unusable(f"the attribute {name!r} is missing or of another type")
        if (
            schema.deprecated
            or given
            or len({a.name for a in proto.attribute}) < len(proto.attribute)
        ):
            raise Unusable(f"deprecated, or attributes that are unknown {list(given)} or repeated")
        if not schema.min_input <= len(proto.input) <= schema.max_input:
            raise Unusable(f"{len(proto.input)} inputs")

    def _array(self, tensor: onnx.TensorProto) -> Array:
        bounded(tensor.dims)
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return onnx.numpy_helper.to_array(tensor)
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if self.directory is None:
            raise Unusable("external data")
        folder = self.directory.resolve()
        path = (folder / entries["location"]).resolve()
        if not path.is_relative_to(folder):
            raise Unusable(f"external data outside the folder: {entries['location']!r}")
        try:
            with path.open("rb") as file:
                file.seek(int(entries.get("offset", 0)))
                raw = file.read(int(entries.get("length", -1)))
        except OSError as error:
            raise Unusable(f"external data cannot be read: {error}") from error
        copy = onnx.TensorProto(dims=tensor.dims, data_type=tensor.data_type, raw_data=raw)
        return onnx.numpy_helper.to_array(copy)


def _listed(result: Operand | list[Operand]) -> list[Operand]:
    return result if isinstance(result, list) else [result]


def _attribute(attribute: onnx.AttributeProto) -> Any:
    """The value of an attribute, with text as text."""
    if attribute.ref_attr_name:
        raise Unusable("an attribute that refers to one of a function")
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value


def _bound(
    values: Sequence[onnx.ValueInfoProto],
    shapes: Sequence[tuple[int, ...]] | None,
    count: int | None,
) -> list[tuple[str, tuple[int, ...], str]]:
    """Name, concrete shape and element type of every input."""
    kinds, dimensions = [], []
    for value in values:
        tensor = value.type.tensor_type
        if tensor.elem_type not in FLOATS:
            raise Unusable(f"the input {value.name!r} is no floating-point tensor")
        kinds.append(FLOATS[tensor.elem_type])
        dimensions.append(_dimensions(value) if tensor.HasField("shape") else None)
    if not values or (shapes is not None and len(shapes) != len(values)):
        raise Unusable(f"the model has {len(values)} inputs")
    if shapes is not None:
        found = [_fitting(d, tuple(shape)) for d, shape in zip(dimensions, shapes, strict=True)]
    else:
        known = [d for d in dimensions if d is not None]
        if len(known) < len(values):
            raise Unusable("an input has no shape")
        found = _counted(known, count)
    return [(v.name, shape, kind) for v, shape, kind in zip(values, found, kinds, strict=True)]


def _dimensions(value: onnx.ValueInfoProto) -> Dimensions:
    """Lengths of the axes; unknown ones are names, all different if unnamed."""
    found: Dimensions = []
    for number, dimension in enumerate(value.type.tensor_type.shape.dim):
        known = dimension.HasField("dim_value") and dimension.dim_value >= 0
        found.append(
            dimension.dim_value if known else dimension.dim_param or f"{value.name}.{number}"
        )
    if 0 in found:
        raise Unusable(f"the input {value.name!r} is empty")
    return found


def _fitting(dimensions: Dimensions | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The declared shape where it fits, else the file's if that has as many entries."""
    fits = dimensions is None or (
        len(dimensions) == len(shape)
        and all(isinstance(d, str) or d == n for d, n in zip(dimensions, shape, strict=True))
    )
    solved = shape if fits else _solved(dimensions or [], math.prod(shape))
    if min(shape, default=1) < 1 or solved is None:
        raise Unusable(f"an input of shape {dimensions} is declared as {list(shape)}")
    return solved


def _counted(inputs: Sequence[Dimensions], count: int | None) -> list[tuple[int, ...]]:
    """Unknown dimensions are one, except that one of them may make up the count."""
    ones = [tuple(1 if isinstance(d, str) else d for d in dimensions) for dimensions in inputs]
    total = sum(map(math.prod, ones))
    if count is None or total == count:
        return ones
    for number, dimensions in enumerate(inputs):
        solved = _solved(dimensions, count - total + math.prod(ones[number]))
        if solved is not None:
            return [*ones[:number], solved, *ones[number + 1 :]]
    raise Unusable(f"the specification has {count} inputs, the model {inputs}")


def _solved(dimensions: Dimensions, count: int) -> tuple[int, ...] | None:
    """Dimensions with a product of ``count``: the last unknown is solved for, the others one."""
    known = math.prod(d for d in dimensions if isinstance(d, int))
    unknown = [i for i, d in enumerate(dimensions) if isinstance(d, str)]
    shape = [d if isinstance(d, int) else 1 for d in dimensions]
    if count != known:
        if (
            count < 1
            or count % known
            or not unknown
            or dimensions.count(dimensions[unknown[-1]]) > 1
        ):
            return None
        shape[unknown[-1]] = count // known
    return tuple(shape)
