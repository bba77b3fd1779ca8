"""The walk over a canonical model: each node is folded, moved or handed to its rule.

A node without a rule does not end the walk. It is noted, its outputs become placeholders of the
shapes that ONNX infers, and the walk goes on, so that one message can list every such node.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx

from onnxcert.arrays import Array, IntArray
from onnxcert.errors import ModelError
from onnxcert.frontend.builder import Builder
from onnxcert.frontend.canonical import NEWEST_OPSET, Canonical, node_key, schema_version
from onnxcert.frontend.folding import DECISIONS, fold
from onnxcert.frontend.rules import RULES, Call, Entry
from onnxcert.frontend.tables import Table, evaluate
from onnxcert.frontend.tensors import Constant, NoRule, Operand, Shape, Tensor, checked_size


def input_name(models: Sequence[Canonical]) -> str:
    """A name for the vector of all inputs that no node has."""
    names = {output for model in models for node in model.nodes for output in node.output}
    inputs = [info.name for model in models for info in model.inputs]
    name = inputs[0] if len(inputs) == 1 else "inputs"
    while name in names:
        name += "_"
    return name


@dataclass(frozen=True)
class Layer:
    """One node of the file, for people.

    Attributes:
        name: the node's name, or its first output if it has none.
        operator: with its domain, unless that is ONNX's own.
        shape: of the first output; None if it cannot be told.
        parameters: stored numbers that the node reads.
        unsupported: why no rule covers the node; empty if one does.
    """

    name: str
    operator: str
    shape: Shape | None
    parameters: int
    unsupported: str = ""


_Value: TypeAlias = "Operand | Table | None"


class _BehindUnsupported(Exception):  # noqa: N818 - says where a node stands
    """A node reads a value of unknown shape, so that its rule cannot be tried."""


class Translation:
    """One pass over the nodes of a model.

    Args:
        model: what to read.
        build: the graph so far.
        columns: positions of the model's inputs, one after the other, in that of the graph.
        prefix: of the names of what is made.

    Attributes:
        layers: what was met, in order.
    """

    def __init__(
        self, model: Canonical, build: Builder, columns: IntArray, prefix: str = ""
    ) -> None:
        self.model, self.build, self._prefix = model, build, prefix
        self.layers: list[Layer] = []
        self._values: dict[str, _Value] = {"": None}
        self._looked_up: dict[str, Tensor] = {}
        self._kinds: dict[str, str] = {}
        self._left_out: set[str] = set()
        parts = np.split(columns, np.cumsum([info.size for info in model.inputs])[:-1])
        for info, part in zip(model.inputs, parts, strict=True):
            index = part.reshape(info.shape)
            self._values[info.name] = Tensor(build.input, build.sizes[build.input], index)

    @classmethod
    def of(cls, model: Canonical) -> Translation:
        """The translation of a model alone."""
        size = sum(info.size for info in model.inputs)
        return cls(model, Builder(input_name([model]), size), np.arange(size))

    def _begin(self, output: str, origin: str) -> None:
        self.build.begin(self._prefix + output, origin)

    def run(self) -> None:
        """Translate all nodes.

        Raises:
            ModelError: a node contradicts its operator's definition.
        """
        with np.errstate(all="ignore"):
            for node in self.model.nodes:
                self._run_one(node)

    def _run_one(self, node: onnx.NodeProto) -> None:
        place = f"{self.model.file.source}: node {node.name or node_key(node)!r}"
        place += f" ({node.op_type})"
        reason = ""
        try:
            results = self._translate(node)
        except NoRule as missing:
            reason = str(missing)
            results = self._placeholders(node)
        except _BehindUnsupported:
            results = self._placeholders(node)
        # Rules lean on NumPy to check shapes and attributes, and it raises any of these.
        except (ValueError, IndexError, TypeError, KeyError, ArithmeticError) as error:
            text = str(error) if isinstance(error, ValueError) else repr(error)
            raise ModelError(f"a node makes no sense: {text}", place=place) from error
        except MemoryError as error:
            raise ModelError("a node needs more memory than there is", place=place) from error
        self._check_shapes(node, results, place)
        self._values.update(zip(node.output, results, strict=False))
        self._kinds.update(
            (n, self._kind(node, r)) for n, r in zip(node.output, results, strict=False)
        )
        self._left_out.update(node.output[len(results) :])
        self._values[""] = None
        self._note(node, results, reason)

    def outputs(self, names: Iterable[str]) -> list[Operand]:
        """The named tensors.

        Raises:
            ModelError: a name is none of the model's tensors.
        """
        self._begin("outputs", "")
        operands = [self._lookup(name) for name in names]
        if any(operand is None for operand in operands):
            raise ModelError("an output cannot be computed", place=self.model.file.source)
        return [operand for operand in operands if operand is not None]

    def compared(self, names: Iterable[str]) -> list[tuple[Operand, IntArray]]:
        """As `outputs`, with the numbers that a Softmax is applied to in place of its shares.

        Returns:
            The tensors, and for each of their entries the row of shares that it is from, numbered
            for each tensor from 0; -1 for none. Of two shares of one row, the larger one is of the
            larger number.
        """
        found = []
        for operand in self.outputs(names):
            family, chosen = np.full(operand.shape, -1), operand
            rows = self.build.shares.get(operand.source) if isinstance(operand, Tensor) else None
            if isinstance(operand, Tensor) and rows is not None and operand.fill is None:
                index = operand.index
                family = index // rows.shape[1]
                chosen = self.build.moved([rows], lambda x, index=index: x.ravel()[index])
            found.append((chosen, family))
        return found

    def shape(self, name: str) -> Shape:
        """The shape of a tensor.

        Raises:
            ModelError: there is none of that name.
        """
        operand = self._lookup(name)
        if operand is None:
            raise ModelError(f"the tensor {name!r} is not computed", place=self.model.file.source)
        return operand.shape

    def _lookup(self, name: str) -> Operand | None:
        """The value of a tensor, computed where it is a table; None where it is left out."""
        value = self._value(name)
        if not isinstance(value, Table):
            return value
        if name not in self._looked_up:
            self._looked_up[name] = self.build.lookup(value)
        return self._looked_up[name]

    def _value(self, name: str) -> _Value:
        """The value of a tensor; None where an optional output or input is left out.

        Raises:
            ModelError: there is no such tensor.
        """
        if name not in self._values:
            stored = self.model.weights.get(name)
            if stored is None:
                raise ModelError(f"the tensor {name!r} is never made", place=self.model.file.source)
            # Not remembered: a dense copy of every weight would double the memory.
            return Constant(self.model.file.array(stored))
        return self._values[name]

    def _translate(self, node: onnx.NodeProto) -> list[_Value]:
        unknown = self.model.unknown.get(node_key(node))
        if unknown:
            raise NoRule(unknown)
        if node.op_type == "Constant":
            return [Constant(self._constant_value(node))]
        if not self._left_out.isdisjoint(node.input):
            raise NoRule("reads an output that the rule of another node leaves out")
        if any(name not in self._values and name not in self.model.weights for name in node.input):
            raise ValueError("an input is never made")
        for name in node.output:
            checked_size(self.model.shapes.get(name, ()))
        values = [self._value(name) for name in node.input]
        if any(v is None and name for v, name in zip(values, node.input, strict=True)):
            if node.op_type not in RULES:
                raise NoRule("no rule")
            raise _BehindUnsupported
        entry = RULES.get(node.op_type)
        if _looks_up(node.op_type, entry, values):
            return self._evaluate_each(node, entry, values)
        self._begin(node_key(node), node.name or node_key(node))
        return list(self._apply(node, entry, [self._lookup(name) for name in node.input]))

    def _evaluate_each(
        self, node: onnx.NodeProto, entry: Entry | None, values: Sequence[_Value]
    ) -> list[_Value]:
        """What a node makes of tables and constants, for each combination of keys."""
        if len(node.output) > 1:
            raise NoRule("several tensors that whole inputs decide")

        def made(rows: Sequence[Array]) -> Array:
            row = iter(rows)
            inputs = [Constant(next(row)) if isinstance(v, Table) else v for v in values]
            (result,) = self._apply(node, entry, inputs)
            assert isinstance(result, Constant)
            return result.array

        return [evaluate([value for value in values if isinstance(value, Table)], made)]

    def _apply(
        self, node: onnx.NodeProto, entry: Entry | None, inputs: Sequence[Operand | None]
    ) -> Sequence[_Value]:
        """What a node makes of constants and of what is computed."""
        known = all(not isinstance(value, Tensor) for value in inputs)
        if known and (entry is None or not entry.moves):
            return self._fold(node, inputs)
        if entry is None:
            raise NoRule("no rule")
        version = schema_version(node.op_type, self.model.opset) or 0
        if not entry.since <= version <= NEWEST_OPSET:
            raise NoRule(f"version {version} of the operator")
        kinds = tuple(self._kinds.get(name, "f") for name in node.input)
        if not known and not entry.whole and set(kinds) & {"i", "b"}:
            raise NoRule("of whole numbers that are computed")
        attributes = {a.name: _attribute(a) for a in node.attribute}
        wanted = sum(bool(name) for name in node.output)
        call = Call(node.op_type, version, attributes, tuple(inputs), kinds, wanted, self.build)
        result = entry.rule(call)
        results = [result] if isinstance(result, (Constant, Tensor, Table)) else list(result)
        return [r.settled() if isinstance(r, Tensor) else r for r in results]

    def _kind(self, node: onnx.NodeProto, result: _Value) -> str:
        """What computed numbers a node makes: floating-point ("f"), whole ("i") or truths ("b")."""
        if isinstance(result, Constant):
            return "f"  # known: nobody asks
        if isinstance(result, Table):
            return _kind_of(result.dtype)
        entry = RULES.get(node.op_type)
        if entry is not None and entry.makes:
            return entry.makes
        if node.op_type == "Cast":
            (to,) = (a.i for a in node.attribute if a.name == "to")
            return _kind_of(onnx.helper.tensor_dtype_to_np_dtype(to))
        # A condition is of another type than what it chooses from, as is what is cast.
        read = node.input[1:] if node.op_type in ("CastLike", "Where") else node.input
        kinds = [self._kinds[name] for name in read if name in self._kinds]
        return next((kind for kind in kinds if kind != "f"), "f")

    def _constant_value(self, node: onnx.NodeProto) -> Array:
        """The value of a Constant node, whichever attribute holds it."""
        values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if "value" in values:
            return self.model.file.array(values["value"])
        for name, dtype in (("value_float", np.float32), ("value_int", np.int64)):
            for key in (name, name + "s"):
                if key in values:
                    return np.array(values[key], dtype=dtype)
        if "sparse_value" not in values:
            raise NoRule(f"a constant given as {', '.join(values) or 'nothing'}")
        return _dense(values["sparse_value"])

    def _fold(self, node: onnx.NodeProto, inputs: Sequence[Operand | None]) -> list[_Value]:
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            raise NoRule("control flow")
        constants = [value if isinstance(value, Constant) else None for value in inputs]
        return list(fold(node, constants, self.model.opset))

    def _placeholders(self, node: onnx.NodeProto) -> list[_Value]:
        self._begin(node_key(node), node.name)
        results: list[_Value] = []
        for name in node.output:
            shape = self.model.shapes.get(name) if name else None
            usable = shape is not None and math.prod(shape) <= 1 << 24
            results.append(self.build.placeholder(shape) if shape and usable else None)
        return results

    def _check_shapes(self, node: onnx.NodeProto, results: Sequence[_Value], place: str) -> None:
        """Compare with ONNX's inference: a guard against our own rules."""
        for name, result in zip(node.output, results, strict=False):
            expected = self.model.shapes.get(name)
            if isinstance(result, Table) or result is None or expected is None:
                continue
            if result.shape != expected:
                raise ModelError(
                    f"the shape of {name!r} is {list(result.shape)} as read, "
                    f"but {list(expected)} by ONNX's inference",
                    place=place,
                )

    def _note(self, node: onnx.NodeProto, results: Sequence[_Value], reason: str) -> None:
        first = results[0] if results else None
        shape = self.model.shapes.get(node_key(node))
        if isinstance(first, Constant | Tensor):
            shape = first.shape
        stored = (self.model.weights[n] for n in set(node.input) if n in self.model.weights)
        parameters = sum(math.prod(t.dims) for t in stored)
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        name = node.name or node_key(node)
        self.layers.append(Layer(name, operator, shape, parameters, reason))


def _looks_up(operator: str, entry: Entry | None, values: Sequence[_Value]) -> bool:
    """Whether a node may be evaluated for each combination of the keys of tables.

    Whole numbers and decisions are exact, and so are numbers that are only moved.
    """
    types = [v.array.dtype for v in values if isinstance(v, Constant)]
    tables = [v.dtype for v in values if isinstance(v, Table)]
    if not tables or any(isinstance(v, Tensor) for v in values):
        return False
    whole = all(dtype.kind in "iub" for dtype in types + tables)
    return whole or operator in DECISIONS or (entry is not None and entry.moves)


def _kind_of(dtype: np.dtype[Any]) -> str:
    return {"b": "b", "i": "i", "u": "i"}.get(dtype.kind, "f")


def _dense(sparse: onnx.SparseTensorProto) -> Array:
    values = onnx.numpy_helper.to_array(sparse.values)
    indices = onnx.numpy_helper.to_array(sparse.indices)
    shape = tuple(sparse.dims)
    checked_size(shape)
    dense = np.zeros(shape, dtype=values.dtype)
    places = tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, shape)
    dense[places] = values
    return dense


def _attribute(attribute: onnx.AttributeProto) -> Any:
    """The value of an attribute, with text as text."""
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
