"""Reading of ONNX files, independent of the verifier's: from bytes to a `Network`.

A question about several models is one about the network that has all of their inputs and outputs.
Nodes are taken in the order of the file; `onnxcert.checker.operators` says what each one means.
What is not understood exactly is refused with `Unusable`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from onnxcert.checker.builder import (
    EXECUTED,
    FOLDED,
    STORED,
    Builder,
    Known,
    Operand,
    fold,
)
from onnxcert.checker.decisions import Key, Table, evaluated, lookup, whole_sum
from onnxcert.checker.errors import Unusable
from onnxcert.checker.network import Array, Network, bounded, need
from onnxcert.checker.operators import (
    FIXED,
    FLAGS,
    FLOATS,
    IGNORED,
    MOVES,
    OF_WHOLE,
    OPERATORS,
    TRUTHS,
)
from onnxcert.checker.spec import decompressed

_FAILURES = (
    ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError,
    OSError, onnx.checker.ValidationError, onnx.defs.SchemaError,
)  # fmt: skip
"""NumPy and onnx check much of a model while it is read, and raise any of these."""

_OPSETS = range(1, 26)
Dimensions = list[int | str]
Limits = Callable[[Array], tuple[Array, Array]]
Inputs = list[tuple[str, tuple[int, ...], str]]
_Results = tuple[list[tuple[str, Array, str]], list[tuple[str, Array, str]]]
"""Names, numbers and element types of outputs, and of hidden tensors."""


class Source(NamedTuple):
    """A model: the bytes of an ONNX file, compressed with gzip or not, and where external data may
    lie; without a directory they are refused."""

    data: bytes
    directory: Path | None = None


Models = bytes | Mapping[str, Source]
"""A model, or models by names of networks."""


@dataclass(frozen=True)
class Part:
    """One of the networks that are read together.

    Attributes:
        source: its model.
        input_shapes: declared shape of every input (VNN-LIB 2); binds dynamic dimensions.
        input_elements: how many numbers all inputs have together (VNN-LIB 1.0); binds one dynamic
            dimension. Dimensions that neither binds are one.
        hidden: inner tensors behind the outputs.
        prefix: of the names of its blocks.
    """

    source: Source
    input_shapes: Sequence[tuple[int, ...]] | None = None
    input_elements: int | None = None
    hidden: Sequence[str] = ()
    prefix: str = ""


def read_network(
    data: bytes,
    *,
    directory: Path | None = None,
    executed: bool = False,
    limits: Limits | None = None,
    **declared: Any,
) -> Network:
    """Read one model; see `read_networks`.

    Args:
        data, directory: of its `Source`.
        executed, limits: as there.
        declared: the rest of its `Part`.
    """
    part = Part(Source(data, directory), **declared)
    return read_networks([part], executed=executed, limits=limits)


def read_networks(
    parts: Sequence[Part],
    *,
    executed: bool = False,
    limits: Limits | None = None,
    ties: Mapping[int, int] | None = None,
) -> Network:
    """Read models as one network: all inputs in order, all outputs, then all hidden tensors.

    Args:
        parts: the models.
        executed: whether the errors of constants that files work out cover binary32 executions,
            too; without it they are those of float64 alone. Stored numbers are exact.
        limits: the least and the largest value of some inputs; the network is the models' where
            inputs lie within them. None where nothing is known.
        ties: inputs in whose place others are read.

    Raises:
        Unusable: a file is no model, or holds what is not supported.
    """
    try:
        protos = [
            onnx.ModelProto.FromString(decompressed(part.source.data, (1 << 31) - 1))
            for part in parts
        ]
        with np.errstate(all="ignore"):
            inputs = [_inputs(proto, part) for proto, part in zip(protos, parts, strict=True)]
            numbers = np.arange(sum(math.prod(shape) for own in inputs for _, shape, _ in own))
            for v, first in (ties or {}).items():
                numbers[v] = first
            net = Builder(numbers.size, EXECUTED if executed else STORED, limits)
            made, start = list[_Results](), 0
            for proto, part, own in zip(protos, parts, inputs, strict=True):
                net.enter(part.prefix, part.source.directory)
                end = start + sum(math.prod(shape) for _, shape, _ in own)
                made.append(_read(net, proto, part, own, numbers[start:end]))
                start = end
            return _network(net, [tensor for own in inputs for tensor in own], made)
    except (*_FAILURES, DecodeError) as error:
        raise Unusable(f"the model makes no sense: {error!r}") from error


def _inputs(proto: onnx.ModelProto, part: Part) -> Inputs:
    """What goes into a model."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    values = [v for v in proto.graph.input if v.name not in stored]
    inputs = _bound(values, part.input_shapes, part.input_elements)
    for _, shape, _ in inputs:
        bounded(shape)
    return inputs


def _read(
    net: Builder, proto: onnx.ModelProto, part: Part, inputs: Inputs, numbers: Array
) -> _Results:
    """Outputs and hidden tensors of a model whose inputs have these numbers."""
    graph = proto.graph
    opset = _opset(proto)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    need(len(stored) == len(graph.initializer), "two stored tensors of the same name")
    _need_operators(graph.node)
    tensors = _Tensors(net, stored)
    tensors.define_inputs(inputs, numbers)
    for node in graph.node:
        tensors.define_outputs(node, opset)
    return _results(tensors, graph, part.hidden)


def _opset(proto: onnx.ModelProto) -> int:
    """Version of the operators; the file holds nothing but a graph of plain ones."""
    versions = {o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")}
    opset = min(versions) if len(versions) == 1 else 0
    need(opset in _OPSETS, f"operator sets {versions}, not one from 1 to {_OPSETS[-1]}")
    newer = proto.ir_version > onnx.IR_VERSION
    plain = not (proto.functions or proto.graph.sparse_initializer or newer)
    need(plain, "local functions, sparse stored tensors or a newer IR version")
    return opset


def _need_operators(nodes: Iterable[onnx.NodeProto]) -> None:
    """All operators are known here; if not, all that are missing are named."""
    known, missing = OPERATORS.keys() | FOLDED, set()
    for node in nodes:
        if node.domain not in ("", "ai.onnx") or node.op_type not in known:
            missing.add(f"{node.domain}.{node.op_type}".lstrip("."))
    need(not missing, f"operators that are not supported: {', '.join(sorted(missing))}")


class _Tensors:
    """The tensors of a graph that are made so far, with their element types.

    Args:
        net: what they are made of.
        stored: tensors that the file holds, loaded when they are first read.
    """

    def __init__(self, net: Builder, stored: Mapping[str, onnx.TensorProto]) -> None:
        self.net, self._stored = net, stored
        self._values: dict[str, tuple[Operand | Table, str]] = {}
        self._looked_up: dict[str, Operand] = {}
        self._hats: dict[Key, Array] = {}

    def computed(self, name: str) -> tuple[Operand, str]:
        """A tensor with its element type; what whole inputs look up becomes a block."""
        value, element = self[name]
        if not isinstance(value, Table):
            return value, element
        if name not in self._looked_up:
            self._looked_up[name] = lookup(self.net, value, self._hats)
        return self._looked_up[name], element

    def __getitem__(self, name: str) -> tuple[Operand | Table, str]:
        if name not in self._values:
            need(name in self._stored, f"the tensor {name!r} is never made")
            known = self.net.load(self._stored[name])
            self._values[name] = known, str(known.value.dtype)
        return self._values[name]

    def _define(self, name: str, operand: Operand | Table, element: str) -> None:
        is_new = name not in self._values and name not in self._stored
        need(is_new, f"the tensor {name!r} is defined twice")
        bounded(operand.shape)
        self._values[name] = operand, element

    def define_inputs(self, inputs: Inputs, numbers: Array) -> None:
        """Scalars of the first block, by their numbers, one input after the other."""
        start = 0
        for name, shape, element in inputs:
            end = start + math.prod(shape)
            self._define(name, numbers[start:end].reshape(shape), element)
            self.net.types.add(element)
            start = end

    def define_outputs(self, node: onnx.NodeProto, opset: int) -> None:
        """What a node makes."""
        name = next((name for name in node.output if name), node.name)
        try:
            schema = onnx.defs.get_schema(node.op_type, opset, "")
            self.net.begin(name, schema.since_version, sum(map(bool, node.output)))
            read: list[Any] = [self[n] if n else None for n in node.input]
            if _looks_up(node.op_type, [pair[0] for pair in read if pair]):
                made, element = self._evaluate(node, schema, read)
            else:
                read = [self.computed(n) if n else None for n in node.input]
                made, element = _run(self.net, node, schema, read)
            for result, operand in zip(node.output, made, strict=False):
                if result:
                    self._define(result, operand, element)
        except (Unusable, *_FAILURES) as error:
            reason = error if isinstance(error, Unusable) else f"makes no sense: {error!r}"
            raise Unusable(f"node {name!r} ({node.op_type}): {reason}") from error

    def _evaluate(
        self, node: onnx.NodeProto, schema: onnx.defs.OpSchema, read: list[Any]
    ) -> tuple[list[Operand | Table], str]:
        """What a node makes of tables and constants."""
        need(len(node.output) == 1, "several tensors that whole inputs decide")
        kinds, elements = [pair and pair[1] for pair in read], set[str]()

        def one(operands: list[Any]) -> Any:
            pairs = [x if x is None else (x, k) for x, k in zip(operands, kinds, strict=True)]
            (made,), element = _run(self.net, node, schema, pairs)
            elements.add(element)
            return made

        made = evaluated([pair and pair[0] for pair in read], one)
        (element,) = elements
        return [made], element


def _looks_up(operator: str, operands: Sequence[Operand | Table]) -> bool:
    """Whether a node may be evaluated for each combination of what looks up its operands."""
    arrays = [x.value for x in operands if isinstance(x, Known)]
    tables = [x.rows[0] for x in operands if isinstance(x, Table)]
    if not tables or len(arrays) + len(tables) < len(operands):
        return False
    whole = all(array.dtype.kind in "iub" for array in arrays + tables)
    return whole or operator in MOVES | TRUTHS


def _results(tensors: _Tensors, graph: onnx.GraphProto, hidden: Sequence[str]) -> _Results:
    """The outputs of a graph, and its hidden tensors."""
    net, inner = tensors.net, {name for node in graph.node for name in node.output}
    need(graph.output and inner.issuperset(hidden), f"no outputs, or no inner tensors {[*hidden]}")
    net.begin("outputs")
    names = (*(o.name for o in graph.output), *hidden)
    results = [(name, *tensors.computed(name)) for name in names]
    declared = [FLOATS.get(o.type.tensor_type.elem_type) for o in graph.output]
    for (name, _, element), said in zip(results, declared, strict=False):
        need(said in (None, element), f"{name!r} has elements of type {element}, declared {said}")
    made = [(name, net.ids(operand), element) for name, operand, element in results]
    need({element for *_, element in made} <= {*FLOATS.values()}, "outputs that are no numbers")
    return made[: len(graph.output)], made[len(graph.output) :]


def _network(net: Builder, inputs: Inputs, made: Sequence[_Results]) -> Network:
    """The network whose outputs are those of all models, then all of their hidden tensors."""
    results = [tensor for k in (0, 1) for pair in made for tensor in pair[k]]
    output = np.concatenate([ids.ravel() for _, ids, _ in results])
    infos = [(name, ids.shape, element) for name, ids, element in results]
    binary32 = net.types <= {"float32"}
    n_inputs = net.blocks[0].size
    return Network(
        net.blocks, inputs, n_inputs, output, net.size, infos, binary32, net.folded, net.shares
    )


def _run(
    net: Builder, node: onnx.NodeProto, schema: onnx.defs.OpSchema, read: list[Any]
) -> tuple[list[Any], str]:
    """What a node makes of operands with their element types, and its element type."""
    need(not schema.deprecated, "a deprecated operator")
    given = _attributes(node, schema)
    need(schema.min_input <= len(read) <= schema.max_input, f"{len(read)} inputs")
    for i, operand in enumerate(read):
        formal = schema.inputs[min(i, len(schema.inputs) - 1)]
        optional = formal.option == onnx.defs.OpSchema.FormalParameterOption.Optional
        need(operand or optional or node.op_type == "Resize", f"input {i} is missing")
    while read and read[-1] is None:
        read.pop()
    operands = [pair and pair[0] for pair in read]
    kinds = net.kinds = [pair[1] for pair in read if pair and not isinstance(pair[0], Known)]
    is_whole = not {*FLOATS.values()}.issuperset(kinds)
    need(not is_whole or node.op_type in OF_WHOLE, "not understood of computed whole numbers")
    if is_whole and node.op_type in ("Add", "Sub"):
        whole_sum(net)
    if operands and not kinds and not given and node.op_type in FOLDED:
        made: Any = fold(node.op_type, *operands, unit=net.unit)
        net.folded |= made.value.dtype.kind == "f"
    else:
        need(node.op_type in OPERATORS, "not understood of computed values")
        made = OPERATORS[node.op_type](net, *operands, **given)
    made = made if isinstance(made, list) else [made]
    every = [pair[1] for pair in read if pair]
    if isinstance(made[0], Known) and node.op_type != "Cast":
        # Floating-point constants are worked out in float64, whatever they are declared as.
        declared = [e for e in every if e in FLOATS.values()]
        is_float = made[0].value.dtype.kind == "f" and declared
        return made, declared[0] if is_float else str(made[0].value.dtype)
    return made, _element(node.op_type, given, kinds, every)


def _element(operator: str, given: dict[str, Any], kinds: list[str], every: list[str]) -> str:
    """The element type of what is computed, from those of computed operands and of all."""
    if operator == "Cast":
        return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(given["to"])))
    if operator in TRUTHS:
        return "bool"
    if operator in ("ArgMax", "ArgMin"):
        return "int64"
    if operator in ("CastLike", "Where"):
        return every[1]
    return [*kinds, *every][0]


def _attributes(node: onnx.NodeProto, schema: onnx.defs.OpSchema) -> dict[str, Any]:
    """The attributes, default values among them, that are left to the operator's function."""
    found = {k: a.default_value for k, a in schema.attributes.items() if a.default_value.type}
    for a in node.attribute:
        formal, count = schema.attributes.get(a.name), sum(b.name == a.name for b in node.attribute)
        fits = formal and formal.type == a.type and count == 1 and not a.ref_attr_name
        need(fits, f"the attribute {a.name!r} is unknown, repeated or of another type")
        found[a.name] = a
    values = {name: onnx.helper.get_attribute_value(a) for name, a in found.items()}
    values = {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}
    need(all(values[k] in (0, 1) for k in FLAGS & values.keys()), f"flags that are none: {values}")
    return {
        k: v for k, v in values.items() if k not in IGNORED and (k not in FIXED or v != FIXED[k])
    }


def _bound(
    values: Sequence[onnx.ValueInfoProto],
    shapes: Sequence[tuple[int, ...]] | None,
    count: int | None,
) -> Inputs:
    """Name, concrete shape and element type of every input."""
    inputs: list[Dimensions | None] = []
    for value in values:
        tensor = value.type.tensor_type
        need(tensor.elem_type in FLOATS, f"the input {value.name!r} is no floating-point tensor")
        dimensions: Dimensions = [
            d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else d.dim_param or f".{i}"
            for i, d in enumerate(tensor.shape.dim)
        ]
        need(0 not in dimensions, f"the input {value.name!r} is empty")
        inputs.append(dimensions if tensor.HasField("shape") else None)
    need(inputs and (shapes is None or len(shapes) == len(inputs)), f"{len(inputs)} inputs")
    if shapes is not None:
        found = [_declared(d, tuple(shape)) for d, shape in zip(inputs, shapes, strict=True)]
    else:
        found = _counted(inputs, count)
    kinds = [FLOATS[v.type.tensor_type.elem_type] for v in values]
    return [(v.name, shape, kind) for v, shape, kind in zip(values, found, kinds, strict=True)]


def _declared(dimensions: Dimensions | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The declared shape where it fits, else the file's if that has as many entries."""
    own = shape if dimensions is None else dimensions
    fits = len(own) == len(shape) and all(
        isinstance(d, str) or d == n for d, n in zip(own, shape, strict=True)
    )
    solved = shape if fits else _solved(own, math.prod(shape))
    need(solved and min(shape, default=1) > 0, f"{dimensions} is declared as {shape}")
    return solved or ()


def _counted(inputs: Sequence[Dimensions | None], count: int | None) -> list[tuple[int, ...]]:
    """Unknown dimensions are one, except that one of them may make up the count."""
    need(None not in inputs, "an input has no shape")
    ones = [
        tuple(1 if isinstance(d, str) else d for d in dimensions or []) for dimensions in inputs
    ]
    missing = 0 if count is None else count - sum(map(math.prod, ones))
    for i, dimensions in enumerate(inputs):
        solved = _solved(dimensions or [], missing + math.prod(ones[i]))
        if solved is not None:
            return [*ones[:i], solved, *ones[i + 1 :]]
    raise Unusable(f"the specification has {count} inputs, the model {inputs}")


def _solved(dimensions: Sequence[int | str], count: int) -> tuple[int, ...] | None:
    """Dimensions with a product of ``count``: the last unknown is solved for, the others one."""
    shape = [1 if isinstance(d, str) else d for d in dimensions]
    names = [d for d in dimensions if isinstance(d, str)]
    if count != math.prod(shape):
        if not names or names.count(names[-1]) > 1 or count < 1 or count % math.prod(shape):
            return None
        shape[dimensions.index(names[-1])] = count // math.prod(shape)
    return tuple(shape)
