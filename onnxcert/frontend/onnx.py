"""ONNX models: from a file to the graph that is verified.

::

    file -> bytes, SHA-256 -> proto         model_file: gzip, external data, size limits
         -> skeleton without large weights  canonical: functions, checker, converter, shapes
         -> nodes one by one                translate: constants folded, rules applied
         -> Graph -> simpler Graph          builder, rules; onnxcert.passes

The graph computes in real arithmetic what the file says, with its weights taken exactly;
`onnxcert.frontend.replay` compares it with onnxruntime before anything is concluded from it.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from onnxcert.arrays import IntArray
from onnxcert.errors import ModelError, UnsupportedModel
from onnxcert.frontend.builder import Builder, Limits
from onnxcert.frontend.canonical import NEWEST_OPSET, Canonical, canonical
from onnxcert.frontend.model_file import ModelFile, read_bytes
from onnxcert.frontend.rules import RULES
from onnxcert.frontend.shapes import TensorInfo, element_type
from onnxcert.frontend.tensors import Shape
from onnxcert.frontend.translate import Layer, Translation, input_name
from onnxcert.graph import Graph
from onnxcert.passes import simplify

__all__ = [
    "Inspection",
    "Layer",
    "Model",
    "Part",
    "TensorInfo",
    "inspect_model",
    "load_model",
    "load_models",
    "opset_versions",
    "supported_operators",
]

Source = str | os.PathLike[str] | onnx.ModelProto

_ELEMENT_TYPES = ("float16", "float32", "float64")
_UNSUPPORTED_HELP = "`onnxcert supports --onnx-operators` lists the operators that have one"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A model that is to be read, alone or together with others.

    Attributes:
        source: path of an ``.onnx`` file, compressed with gzip or not, or a model object.
        input_shapes: declared shape of every input (VNN-LIB 2); binds dynamic dimensions.
        input_elements: number of input variables (VNN-LIB 1.0); binds one dynamic dimension.
            Dimensions that neither binds are one.
        hidden: names of inner tensors to append to the output.
        prefix: of the names of what it makes.
    """

    source: Source
    input_shapes: Sequence[tuple[int, ...]] | None = None
    input_elements: int | None = None
    hidden: tuple[str, ...] = ()
    prefix: str = ""


@dataclass(frozen=True, eq=False)
class Interface:
    """A model as a runtime shows it: where it is stored, what goes in and what comes out.

    Attributes:
        source: the path as given, or ``<model>`` for an object.
        sha256: of the file's bytes as they are (compressed if the file is), or of the object's
            serialisation.
        inputs, outputs, hidden: tensors with the file's names and types; hidden are those that
            were asked for.
        proto: the model as read, for an object; None for a file, which replay reads again.
        together: of several models together, those of each; empty for one.
    """

    source: str
    sha256: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    hidden: tuple[TensorInfo, ...]
    proto: onnx.ModelProto | None = field(repr=False)
    together: tuple[Interface, ...] = field(repr=False, default=(), kw_only=True)

    @property
    def parts(self) -> tuple[Interface, ...]:
        """The models, one by one."""
        return self.together or (self,)

    @property
    def folder(self) -> Path | None:
        """Where external data of a file lie; None for an object."""
        return None if self.proto is not None else Path(self.source).parent

    def stored(self) -> bytes:
        """The bytes that `sha256` is of: the file as it is, or the serialised object.

        Raises:
            ModelError: the file cannot be read, or has changed since it was.
        """
        if self.proto is not None:
            return bytes(self.proto.SerializeToString())
        data = read_bytes(Path(self.source))
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise ModelError("the file has changed since it was read", place=self.source)
        return data


@dataclass(frozen=True, eq=False)
class Model(Interface):
    """A model that has been read completely.

    Attributes:
        graph: one vector of all inputs in order -> one vector of all outputs, then of all hidden
            tensors that were asked for; each tensor row by row. Simplified.
        lowered: the same before simplification, layer for layer as in the file.
        opset, producer: as the file says.
        parameters: stored floating-point numbers.
        layers: the nodes of the file in order.
        compared: where there is a Softmax, the graph without it and the row of each output in it;
            see `onnxcert.frontend.translate.Translation.compared`.
        read: (input size,) which input is read in the place of each.
    """

    graph: Graph = field(repr=False)
    lowered: Graph = field(repr=False)
    opset: int
    producer: str
    parameters: int
    layers: tuple[Layer, ...] = field(repr=False)
    compared: tuple[Graph, IntArray] | None = field(repr=False, default=None)
    read: IntArray = field(repr=False, kw_only=True)


@dataclass(frozen=True)
class Inspection:
    """What can be said of a model without verifying it, supported or not.

    Attributes:
        unsupported: the layers that no rule covers.
        outputs: shapes may be missing behind unsupported layers; then they are empty.
    """

    source: str
    sha256: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    opset: int
    producer: str
    parameters: int
    layers: tuple[Layer, ...]

    @property
    def unsupported(self) -> tuple[Layer, ...]:
        """The layers that no rule covers."""
        return tuple(layer for layer in self.layers if layer.unsupported)


def load_model(
    source: Source,
    *,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    input_elements: int | None = None,
    hidden: Sequence[str] = (),
    limits: Limits | None = None,
) -> Model:
    """Read a model completely.

    Args:
        source, input_shapes, input_elements, hidden: see `Part`.
        limits: as for `load_models`.

    Raises:
        UnsupportedModel: some nodes have no rule; all of them are listed.
        ModelError: the file cannot be read, is not valid, or does not fit what is declared.
    """
    return load_models([Part(source, input_shapes, input_elements, tuple(hidden))], limits=limits)


def load_models(
    parts: Sequence[Part],
    *,
    limits: Limits | None = None,
    columns: IntArray | None = None,
) -> Model:
    """Read models as one: all of their inputs, all of their outputs, then all hidden tensors.

    Args:
        parts: the models.
        limits: the least and the largest value that is asked about of some inputs, by their
            positions in the vector of all; what is read holds there only. It is asked where inputs
            are cast to whole numbers or compared. None where nothing is known.
        columns: which input is read in the place of each, by position in the vector of all; None
            where each is read itself.

    Raises:
        UnsupportedModel: some nodes of a model have no rule; all of them are listed.
        ModelError: a file cannot be read, is not valid, or does not fit what is declared.
    """
    models = _canonical(parts)
    starts = np.cumsum([0] + [sum(info.size for info in model.inputs) for model in models])
    build = Builder(input_name(models), int(starts[-1]), limits)
    columns = np.arange(starts[-1]) if columns is None else columns
    translations = []
    for part, model, start, end in zip(parts, models, starts, starts[1:], strict=False):
        translation = Translation(model, build, columns[start:end], part.prefix)
        translation.run()
        _refuse_unsupported(model, translation.layers)
        _require_computed(model, part.hidden)
        translations.append(translation)
    wanted = [(t, t.model.outputs) for t in translations]
    wanted += [(t, part.hidden) for t, part in zip(translations, parts, strict=True)]
    graph = build.graph(build.joined([x for t, names in wanted for x in t.outputs(names)]))
    compared = None
    if build.shares:
        found = [pair for t, names in wanted for pair in t.compared(names)]
        operand = build.joined([operand for operand, _ in found])
        compared = simplify(build.graph(operand)), _numbered([rows for _, rows in found])
    interfaces = [
        _interface(model, part.source, part.hidden, translation.shape)
        for model, part, translation in zip(models, parts, translations, strict=True)
    ]
    return Model(
        **vars(_joined(interfaces)),
        graph=simplify(graph),
        lowered=graph,
        opset=max(model.file_opset for model in models),
        producer=" and ".join(dict.fromkeys(model.producer for model in models)),
        parameters=sum(map(_parameters, models)),
        layers=tuple(layer for translation in translations for layer in translation.layers),
        compared=compared,
        read=columns,
    )


def load_interface(parts: Sequence[Part]) -> Interface:
    """Read what a runtime shows of models, whatever operators they hold; order as `load_models`.

    Raises:
        ModelError: a file cannot be read, is not valid, or does not fit what is declared; or the
            shape of an output follows from neither the file nor its operators.
    """
    interfaces = []
    for part, model in zip(parts, _canonical(parts), strict=True):
        _require_computed(model, part.hidden)

        def shape(name: str, model: Canonical = model) -> Shape:
            if name not in model.shapes:
                cause = f"the shape of the tensor {name!r} is not known"
                raise ModelError(cause, place=model.file.source)
            return model.shapes[name]

        interfaces.append(_interface(model, part.source, part.hidden, shape))
    return _joined(interfaces)


def _canonical(parts: Sequence[Part]) -> list[Canonical]:
    """The models of parts; what is equal is read once."""
    known: dict[tuple[object, ...], Canonical] = {}
    models = []
    for part in parts:
        source, shapes = part.source, part.input_shapes
        key = id(source) if isinstance(source, onnx.ModelProto) else os.fspath(source)
        told = key, None if shapes is None else tuple(shapes), part.input_elements
        if told not in known:
            known[told] = canonical(ModelFile.read(source), shapes, part.input_elements)
        models.append(known[told])
    return models


def _numbered(families: Sequence[IntArray]) -> IntArray:
    """Rows of several tensors, each numbered from 0, as rows of all."""
    every, count = [np.zeros(0, dtype=np.int64)], 0
    for family in families:
        every.append(np.where(family >= 0, family + count, family).ravel())
        count = max(count, int(every[-1].max(initial=-1)) + 1)
    return np.concatenate(every)


def _interface(
    model: Canonical, source: Source, hidden: Sequence[str], shape: Callable[[str], Shape]
) -> Interface:
    """What a runtime shows, with the shapes of what it makes."""
    outputs, inner = (
        tuple(_tensor_info(model, name, shape(name)) for name in names)
        for names in (model.outputs, hidden)
    )
    proto = source if isinstance(source, onnx.ModelProto) else None
    return Interface(model.file.source, model.file.sha256, model.inputs, outputs, inner, proto)


def _joined(interfaces: Sequence[Interface]) -> Interface:
    """The interface of several models together."""
    if len(interfaces) == 1:
        return interfaces[0]
    return Interface(
        " and ".join(dict.fromkeys(one.source for one in interfaces)),
        " ".join(dict.fromkeys(one.sha256 for one in interfaces)),
        tuple(info for one in interfaces for info in one.inputs),
        tuple(info for one in interfaces for info in one.outputs),
        tuple(info for one in interfaces for info in one.hidden),
        None,
        together=tuple(interfaces),
    )


def inspect_model(source: Source) -> Inspection:
    """Describe a model, whether it is supported or not.

    Raises:
        ModelError: the file cannot be read or is not valid.
    """
    model = canonical(ModelFile.read(source), None, None)
    translation = Translation.of(model)
    translation.run()
    outputs = []
    for name in model.outputs:
        shape = model.shapes.get(name, ())
        outputs.append(TensorInfo(name, element_type(model.types.get(name, 0)), shape))
    return Inspection(
        model.file.source,
        model.file.sha256,
        model.inputs,
        tuple(outputs),
        model.file_opset,
        model.producer,
        _parameters(model),
        tuple(translation.layers),
    )


def supported_operators() -> Mapping[str, tuple[tuple[str, ...], str]]:
    """ONNX operator -> (sorted element types, note on what is not covered)."""
    constants = {"Constant": "", "ConstantOfShape": "constant shape"}
    notes = {name: entry.note for name, entry in RULES.items()} | constants
    return {name: (_ELEMENT_TYPES, notes[name]) for name in sorted(notes)}


def opset_versions() -> tuple[int, int]:
    """The oldest and the newest operator set that is read."""
    return 7, NEWEST_OPSET


def _refuse_unsupported(model: Canonical, layers: Sequence[Layer]) -> None:
    """Raise one error that names every node without a rule, grouped by operator and reason."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for layer in layers:
        if layer.unsupported:
            groups[layer.operator, layer.unsupported].append(layer.name)
    if not groups:
        return
    count = sum(map(len, groups.values()))
    exporter = model.producer or "an unnamed exporter"
    lines = [
        f"{operator} ({reason}): " + ", ".join(map(repr, names))
        for (operator, reason), names in groups.items()
    ]
    place = f"{model.file.source}, operator set {model.file_opset}, written by {exporter}"
    raise UnsupportedModel(
        f"{count} {'node has' if count == 1 else 'nodes have'} no rule",
        place="\n  --> ".join([place, *lines]),
        help=_UNSUPPORTED_HELP,
    )


def _require_computed(model: Canonical, hidden: Sequence[str]) -> None:
    made = {name for node in model.nodes for name in node.output}
    missing = [name for name in hidden if name not in made]
    if missing:
        raise ModelError(
            f"the model has no inner tensor {missing[0]!r}",
            place=model.file.source,
            help="hidden tensors are named by the output of a node of the file",
        )


def _tensor_info(model: Canonical, name: str, shape: Shape) -> TensorInfo:
    element = element_type(model.types.get(name, 0))
    if element not in _ELEMENT_TYPES:
        raise ModelError(
            f"the tensor {name!r} has elements of type {element}, which cannot be reasoned about",
            place=model.file.source,
        )
    return TensorInfo(name, element, shape)


def _parameters(model: Canonical) -> int:
    floating = (1, 10, 11, 16)
    return sum(math.prod(t.dims) for t in model.weights.values() if t.data_type in floating)
