"""A model and a query that fit together: what every question about the two begins with.

`Files` knows of the model only what a runtime shows: what goes in and what comes out. That is
enough to confirm a witness, also where some operator has no rule. `Instance` has the network, too.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from onnxcert.arrays import Array, FloatArray
from onnxcert.checker.model import Models, Source
from onnxcert.errors import SpecError, UsageError
from onnxcert.frontend.lower import Lowered, lower_query
from onnxcert.frontend.onnx import (
    Interface,
    Model,
    Part,
    TensorInfo,
    load_interface,
    load_models,
)
from onnxcert.frontend.products import columns_read, with_products
from onnxcert.frontend.replay import Replayer
from onnxcert.frontend.rows import only_compares
from onnxcert.frontend.vnnlib import read_query
from onnxcert.frontend.write import format_vnnlib
from onnxcert.graph import Graph
from onnxcert.passes import drop_unread, join_relus, merge_equals, simplify
from onnxcert.search.candidates import Confirm
from onnxcert.spec import Query, Tensor
from onnxcert.spec.build import Specification
from onnxcert.spec.query import Decimals
from onnxcert.spec.tree import TensorKind
from onnxcert.verdict import Counterexample

if TYPE_CHECKING:
    import onnx

    ModelSource = str | os.PathLike[str] | onnx.ModelProto

SpecSource = str | os.PathLike[str] | Query | Specification


@dataclass(frozen=True)
class Files:
    """A model and a query that fit together, as far as a runtime shows the model.

    Attributes:
        model: the tensors that go in and come out, and where the model is stored.
        query: the specification.
        lowered: the query as batches of problems over flat vectors.
        files: ``model`` and ``spec`` -> path and SHA-256.
    """

    model: Interface
    query: Query
    lowered: Lowered
    files: Mapping[str, Mapping[str, str]]

    @classmethod
    def read(cls, model: ModelSource | Mapping[str, ModelSource], spec: SpecSource) -> Self:
        """Read both and compare their tensors.

        Args:
            model: or, for a query over several networks, the models of all that are not equal to
                another one, by name.
            spec: the query.

        Raises:
            InputError: one cannot be read, or they do not fit.
            UsageError: the names of models are not those of the query's networks.
        """
        if isinstance(spec, Specification):
            part = Part(_only(model), input_elements=len(spec.lower))
            network = cls._load([part], limits=spec.limits)
            query = spec.to_query(
                [info.shape for info in network.inputs], [info.shape for info in network.outputs]
            )
            lowered = lower_query(query)
        else:
            query = spec if isinstance(spec, Query) else read_query(spec)
            lowered = lower_query(query)
            parts, columns = _parts(query, lowered, model), lowered.layout.read
            network = cls._load(parts, limits=lowered.limits, columns=columns)
        _check_fit(query, network)
        files = _models(query, network) | {
            "spec": {"path": query.source, "sha256": _file_hash(query.source)}
        }
        return cls(network, query, lowered, files)

    @classmethod
    def _load(cls, parts: Sequence[Part], **how: Any) -> Any:
        """Read the models.

        Args:
            parts: where they are, and what the query declares of them.
            how: options of `load_models`.
        """
        del how
        return load_interface(parts)

    def stored(self) -> tuple[Models, bytes, Path | None]:
        """What the checker reads: the bytes of the model and of the specification, as the files are
        or as saving the objects would write them; and the folder of the model.

        Raises:
            InputError: a file has changed since it was read.
        """
        spec, parts = self._stored_query(), self.model.parts
        if len(parts) == 1:
            return self.model.stored(), spec, self.model.folder
        networks = zip(self.query.networks, parts, strict=True)
        return (
            {n.name: Source(part.stored(), part.folder) for n, part in networks if not n.equal_to},
            spec,
            None,
        )

    def _stored_query(self) -> bytes:
        path, known = Path(self.query.source), self.files["spec"]["sha256"]
        if not known:
            return format_vnnlib(self.query).encode()
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != known:
            raise SpecError("the file has changed since it was read", place=str(path))
        return data

    @property
    def input_type(self) -> type[np.floating]:
        """The coarsest element type among the model's inputs."""
        types = [np.dtype(info.element_type) for info in self.model.inputs]
        return min(types, key=lambda kind: kind.itemsize).type

    def split(self, point: FloatArray) -> list[Array]:
        """The flat vector of all inputs as one array per input, in its shape and type."""
        infos = self.model.inputs
        parts = np.split(point, np.cumsum([info.size for info in infos])[:-1])
        return [
            part.astype(info.element_type).reshape(info.shape)
            for part, info in zip(parts, infos, strict=True)
        ]

    def confirmation(self, replayer: Replayer) -> Confirm:
        """The function that turns a point into a counterexample, or refuses."""
        declared = self.query.of_kind("input")
        results = self.query.of_kind("output", "hidden")
        read, ties = self.lowered.layout.read, self.lowered.layout.ties

        def confirm(point: FloatArray, decimals: Mapping[int, Fraction]) -> Counterexample | None:
            point = point[read]
            same = {i: decimals[first] for i, first in ties.items() if first in decimals}
            inputs = _assign(declared, self.split(point))
            outputs = _assign(results, replayer.run(point))
            exact = _place(declared, {**decimals, **same})
            if not self.query.holds(inputs | outputs, exact):
                return None
            return Counterexample(inputs, outputs, exact)

        return confirm


@dataclass(frozen=True)
class Instance(Files):
    """Files of which the network is known, too.

    Attributes:
        model: the network as read.
    """

    model: Model

    @classmethod
    def _load(cls, parts: Sequence[Part], **how: Any) -> Any:
        return load_models(parts, **how)

    @property
    def executed(self) -> Graph:
        """The graph that answers the query for every execution in binary32."""
        return with_products(self.model.lowered, self.lowered.layout)

    @property
    def compared(self) -> Graph:
        """The graph that answers the query over the reals.

        Where shares are only compared with shares of the same row, what Softmax is applied to
        decides, and nothing has to be estimated of its exponentials.
        """
        chosen, layout = self.model.graph, self.lowered.layout
        if self.model.compared is not None:
            graph, families = self.model.compared
            chosen = graph if only_compares(self.lowered.query, layout, families) else chosen
        return with_products(chosen, layout)

    @property
    def joined(self) -> Graph:
        """`compared` with curves in place of sums of relus of one number."""
        compared = self.compared
        if compared is not self.model.graph:
            return join_relus(compared)
        joined = merge_equals(join_relus(self.model.lowered))
        return compared if joined is self.model.lowered else simplify(joined)

    def searched(self, *, executed: bool) -> Graph:
        """What the query reads of `executed` or `joined`; outputs that it does not read are zero.

        Curves are joined before, as the neurons of one are numbered among all of the file's layer.
        """
        whole = self.executed if executed else self.joined
        needed = drop_unread(whole, columns_read(self.lowered.query, self.lowered.layout))
        return needed if executed or needed is whole else simplify(needed)


def _only(model: ModelSource | Mapping[str, ModelSource]) -> ModelSource:
    """The model of a query of VNN-LIB 1.0 or made in code, whatever the name of its network."""
    if not isinstance(model, Mapping):
        return model
    if len(model) != 1:
        raise UsageError(f"the query declares no networks, but has {len(model)} models")
    return next(iter(model.values()))


def _parts(
    query: Query, lowered: Lowered, model: ModelSource | Mapping[str, ModelSource]
) -> list[Part]:
    """The model of each network, with the shapes and hidden tensors that the query declares."""
    if query.version == "1.0":
        return [Part(_only(model), input_elements=lowered.n_inputs)]
    models = _models_of(query, model)
    several = len(query.networks) > 1
    return [
        Part(
            source,
            [tensor.shape for tensor in network.inputs],
            hidden=tuple(tensor.onnx_name or tensor.name for tensor in network.hidden),
            prefix=f"{network.name}:" if several else "",
        )
        for network, source in zip(query.networks, models, strict=True)
    ]


def _models_of(query: Query, given: ModelSource | Mapping[str, ModelSource]) -> list[ModelSource]:
    """The model of each network of a query.

    The standard wants no model for a network that is ``equal-to`` another; the competition passes
    the same file again, which says nothing new and is accepted.

    Raises:
        UsageError: a network has no model, or a model no network.
    """
    originals = {network.name: network.equal_to or network.name for network in query.networks}
    needed = list(dict.fromkeys(originals.values()))
    models = given if isinstance(given, Mapping) else {needed[0]: given}
    for name in needed:
        if name not in models:
            options = " ".join(f"--network {network}=MODEL" for network in needed)
            raise UsageError(
                f"network {name} has no model",
                place=query.source,
                help=f"onnxcert verify SPEC {options}",
            )
    for name, source in models.items():
        original = originals.get(name)
        if original is None or not _same(source, models[original]):
            why = f"is declared equal-to {original}" if original else "is not declared"
            raise UsageError(
                f"network {name} {why}",
                place=query.source,
                help=f"the query needs models for: {', '.join(needed)}",
            )
    return [models[originals[network.name]] for network in query.networks]


def _same(one: ModelSource, other: ModelSource) -> bool:
    """Whether two models are one file, or one object."""
    paths = [os.fspath(x) for x in (one, other) if isinstance(x, str | os.PathLike)]
    return one is other or len(set(map(os.path.realpath, paths))) == 1 < len(paths)


def _models(query: Query, model: Interface) -> dict[str, Mapping[str, str]]:
    """Path and SHA-256 of each model: ``model``, or ``model NAME`` where there are several."""
    if len(model.parts) == 1:
        return {"model": {"path": model.source, "sha256": model.sha256}}
    return {
        f"model {network.name}": {"path": part.source, "sha256": part.sha256}
        for network, part in zip(query.networks, model.parts, strict=True)
    }


def _check_fit(query: Query, model: Interface) -> None:
    """Compare numbers of tensors, elements and element types.

    Raises:
        SpecError: with what the query declares and what the model has.
    """
    kinds: tuple[tuple[TensorKind, Sequence[TensorInfo]], ...] = (
        ("input", model.inputs),
        ("output", model.outputs),
    )
    place = f"{query.source} and {model.source}"
    for kind, found in kinds:
        declared = query.of_kind(kind)
        wanted, given = sum(t.size for t in declared), sum(t.size for t in found)
        if query.version != "1.0":
            _check_tensors(kind, declared, found, place)
        elif wanted != given:
            cause = f"the specification has {wanted} {kind} variables, the model {given}"
            raise SpecError(cause, place=place)


def _check_tensors(
    kind: str, declared: Sequence[Tensor], found: Sequence[TensorInfo], place: str
) -> None:
    if len(declared) != len(found):
        raise SpecError(
            f"the specification declares {len(declared)} {kind} tensors, the model {len(found)}",
            place=place,
        )
    for tensor, info in zip(declared, found, strict=True):
        if tensor.size != math.prod(info.shape):
            raise SpecError(
                f"{tensor.name} is declared with shape {list(tensor.shape)}, "
                f"the model's {info.name} has {list(info.shape)}",
                place=place,
            )
        if tensor.element_type not in ("real", info.element_type):
            raise SpecError(
                f"{tensor.name} is declared {tensor.element_type}, "
                f"the model's {info.name} holds {info.element_type}",
                place=place,
                help="declare the model's element type, or real to reason in real arithmetic",
            )


def _assign(tensors: Sequence[Tensor], arrays: Sequence[Array]) -> dict[str, Array]:
    """Name arrays by the query's tensors; VNN-LIB 1.0 has one tensor for all of them."""
    if len(tensors) == 1 and len(arrays) > 1:
        arrays = [np.concatenate([array.ravel() for array in arrays])]
    return {
        tensor.name: array.reshape(tensor.shape)
        for tensor, array in zip(tensors, arrays, strict=True)
    }


def _place(tensors: Sequence[Tensor], decimals: Mapping[int, Fraction]) -> Decimals:
    """Exact values by position in the flat input -> by tensor and position in it."""
    result: dict[str, dict[int, Fraction]] = {}
    starts = np.cumsum([0] + [tensor.size for tensor in tensors])
    for position, value in decimals.items():
        number = int(np.searchsorted(starts, position, side="right")) - 1
        result.setdefault(tensors[number].name, {})[position - int(starts[number])] = value
    return result


def _file_hash(source: str) -> str:
    path = Path(source)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
