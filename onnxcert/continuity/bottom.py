"""A model that certifies itself: one more logit for "not certified at this radius".

For logits y, of which y_j is the largest, and constants K_ij of y_i - y_j the new logit is

    y_bot = max over i != j of (y_i + eps K_ij + slack_ij)

(Leino, Wang, Fredrikson, ICML 2021). The maximum leaves out one position and not, as their code
does, all logits that equal the largest: of two that tie one is left in, and the new logit wins.
``certified`` says that the new logit is below the largest; ``radius`` is the least
(y_j - y_i - slack_ij) / K_ij, never negative, computed as eps + (y_j - (y_i + eps K_ij + slack_ij))
/ K_ij from what the new logit is the maximum of. Where nothing is claimed the new logit is larger
than any finite one, and the radius zero.

The claim is about executions: whatever binary32 execution of the file computed y here, no execution
on another input within the radius computes a larger logit for another class, if one of the two
inputs is in the domain. Each computed difference of logits is within e_ij of the real one on the
domain, and within e_ij + s_ij d of it at a distance d (`onnxcert.continuity.deviation.Growth`), so
slack_ij is at least 2 e_ij, plus what the arithmetic of the new nodes rounds, and K_ij has s_ij
added to a constant that holds everywhere. Inputs outside of the domain need no test for that to
be true: far away, no input of the domain is within the radius. They are tested where the constants
hold on the domain only, because some curves are less steep there, or on request. To read all of the
input twice more takes a tenth to a quarter of the time of a dense network of 100,000 weights.

A NaN or an infinity has to be told from a number everywhere, as runtimes may drop a NaN at a
rectifier or a maximum. It cannot hide in a sum, and where the model has a dense layer first, in
what that makes of the input, which is smaller (`onnxcert.continuity.watched`). The sums have a
range on the domain; an input where they leave it, such as an image in other units, is refused, too.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxcert import __version__
from onnxcert.arrays import UNIT_ROUNDOFF_FLOAT32, Array, FloatArray
from onnxcert.continuity.bound import LipschitzBound, lipschitz
from onnxcert.continuity.deviation import Executions
from onnxcert.continuity.network import Network, input_box
from onnxcert.continuity.watched import watched
from onnxcert.errors import ModelError, UnsupportedModel, UsageError
from onnxcert.frontend.model_file import decompressed
from onnxcert.frontend.onnx import Model, load_model
from onnxcert.frontend.replay import Replayer
from onnxcert.graph import Graph
from onnxcert.ops import Affine

_ARITHMETIC = 16.0
"""Roundings of the new nodes, in units of the largest number that they meet; there are at most
eight: two of eps K + slack where eps is an input, and one each of the sum with y_i, the difference
from y_j, its quotient and the sum with eps, the last three times K, and of eps and K."""

_REFUSAL = float(np.finfo(np.float32).max)
"""The new logit where nothing is claimed."""

_FLUSHED = 2.0**-124
"""Lost where they meet subnormal numbers."""

_SMALLEST_CONSTANT = 1e-30

_LARGEST = 1e30
"""Sizes from which on binary32 is left to others."""

_COMPARED_POINTS = 8

_NEGLIGIBLE = 0.01
"""A share of the slopes for which inputs are not read again."""


def with_bottom_logit(  # noqa: PLR0913 - all but two are keywords with defaults
    model: str | os.PathLike[str] | onnx.ModelProto,
    eps: float,
    *,
    bound: LipschitzBound | None = None,
    domain: tuple[float, float] = (0.0, 1.0),
    eps_input: bool = False,
    test_domain: bool | None = None,
    method: str = "auto",
    norm: str | float = "2",
    cache: str | os.PathLike[str] | None = None,
) -> onnx.ModelProto:
    """Add the bottom logit and the outputs ``certified`` and ``radius``.

    Args:
        model: a classifier with one output whose last axis are the logits, all in float32.
        eps: the radius; with ``eps_input`` the largest that may be asked for.
        bound: of the same model; computed if it is not given.
        domain: (low, high) of every input. The claim speaks of pairs of inputs within the radius
            of each other of which one is in the domain.
        eps_input: make the radius an input of the new model, named ``eps``.
        test_domain: never certify an input outside of the domain; the constants and the claim are
            then about pairs inside. By default where the domain makes constants smaller, or the
            given bound holds there only.
        method, norm, cache: for `lipschitz`.

    Returns:
        The new model: the same inputs, the first logits bit for bit the same.

    Raises:
        ModelError: the model cannot be read, has no bound, or has not that form.
        UsageError: the arguments make no sense.
    """
    low, high = domain
    if not (0.0 <= eps < _LARGEST):
        raise UsageError(f"the radius is a number of at least 0, not {eps}")
    if not (-_LARGEST < low <= high < _LARGEST):
        raise UsageError(f"[{low:g}, {high:g}] is no domain")
    read = load_model(model)
    form = _Form.of(read)
    if eps_input and np.float32(eps) > eps:  # the float32 number that a user writes as eps
        eps = float(np.float32(eps))
    inside = test_domain
    if inside is None:
        inside = _curbs_slopes(read, domain) if bound is None else bound.domain is not None
    needed = domain if inside else None
    known = bound or lipschitz(read, method=method, norm=norm, domain=needed, cache=cache)
    covers = known.domain is None or (known.domain[0] <= low and high <= known.domain[1])
    if not covers or known.model.sha256 != read.sha256:
        raise UsageError("the bound is of another model, or holds on another domain only")
    if known.domain is not None and not inside:
        raise UsageError("the bound holds on its domain only, which has to be tested")
    table = _Table.of(read, known, eps, domain, inside=inside)
    proto = _stored_proto(read)
    _Writer(proto, read, form, table, domain, inside).extend(eps, eps_input=eps_input)
    _describe(proto, known, eps, domain, table, eps_input=eps_input, inside=inside)
    proto.producer_name, proto.producer_version = "onnxcert", __version__
    _compare(proto, read, domain, eps_input=eps_input)
    return proto


def _curbs_slopes(model: Model, domain: tuple[float, float]) -> bool:
    """Whether curves have clearly smaller ranges of slopes on the domain than everywhere."""
    everywhere = Network.read(model.graph).slopes
    there = Network.read(model.graph, input_box(model.graph, *domain)).slopes
    pairs = [(kept, there[name]) for name, kept in everywhere.items()]
    full = sum(float((kept.high - kept.low).sum()) for kept, _ in pairs)
    left = sum(float((slopes.high - slopes.low).sum()) for _, slopes in pairs)
    return left < (1.0 - _NEGLIGIBLE) * full


@dataclass(frozen=True)
class _Form:
    """Where the logits are.

    Attributes:
        output: name of the tensor; rank: of it; classes: length of its last axis.
        batched: whether the first axes of input and output are a batch of any size.
    """

    output: str
    rank: int
    classes: int
    batched: bool

    @classmethod
    def of(cls, model: Model) -> _Form:
        def refuse(cause: str) -> UnsupportedModel:
            return UnsupportedModel(cause, place=model.source)

        if len(model.outputs) != 1:
            raise refuse(f"the model has {len(model.outputs)} outputs; a classifier has one")
        output = model.outputs[0]
        kinds = {info.element_type for info in (*model.inputs, *model.outputs)}
        if kinds != {"float32"}:
            raise refuse(f"the slack is worked out for float32, the model has {sorted(kinds)}")
        if not output.shape or output.shape[-1] != output.size or output.size < 2:
            raise refuse(f"an output of shape {list(output.shape)} is not one row of logits")
        if {"certified", "radius", "eps"} & {info.name for info in (*model.inputs, output)}:
            raise refuse("the model has a tensor named certified, radius or eps already")
        batched = _is_batched(model)
        return cls(output.name, len(output.shape), output.size, batched)


def _is_batched(model: Model) -> bool:
    """Whether the file leaves the first axis open; then its rows must not meet.

    Raises:
        UnsupportedModel: they do.
    """
    if len(model.inputs) != 1 or len(model.inputs[0].shape) < 2 or len(model.outputs[0].shape) < 2:
        return False
    proto = _stored_proto(model)
    (info,) = _given(proto)
    dims = [value.type.tensor_type.shape.dim for value in (info, *proto.graph.output)]
    if any(dim and dim[0].HasField("dim_value") for dim in dims):  # an output may have no shape
        return False
    try:
        shape = (2, *model.inputs[0].shape[1:])
        both = load_model(model.proto or model.source, input_shapes=[shape])
    except ModelError:
        return False
    if both.outputs[0].shape != (2, *model.outputs[0].shape[1:]):
        return False
    half = model.graph.input_size
    if not _rows_are_apart(both.graph, half, model.graph.output_size):
        raise UnsupportedModel(
            "the rows of a batch depend on each other",
            place=model.source,
            help="fix the first axis of the input to 1",
        )
    points = np.random.default_rng(0).uniform(-1.0, 1.0, size=(4, 2 * half))
    together = both.graph.forward(points).reshape(4, 2, -1)
    alone = model.graph.forward(points.reshape(8, half)).reshape(4, 2, -1)
    if not np.allclose(together, alone, rtol=1e-9, atol=1e-9 * float(np.abs(alone).max())):
        raise UnsupportedModel("a batch is not computed row by row", place=model.source)
    return True


def _given(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs without a stored value."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    return [info for info in proto.graph.input if info.name not in stored]


def _rows_are_apart(graph: Graph, half: int, outputs: int) -> bool:
    """Whether neither row of a batch of two reaches the other's outputs; zeros stay exact."""
    for row in (0, 1):
        reached = {graph.input: np.zeros((1, 2 * half))}
        reached[graph.input][0, row * half : (row + 1) * half] = 1.0
        for node in graph.nodes:
            read = [reached[name] for name in node.inputs]
            if isinstance(node.op, Affine):
                extent = sum(
                    part.sum()
                    for part in node.op.magnitude.transpose(np.ones((1, node.op.output_size)))
                )
                moved = node.op.magnitude.apply(read)
                reached[node.name] = (
                    (moved > 0.0).astype(float) if np.isfinite(extent) else moved + 1.0
                )
            else:
                reached[node.name] = read[0]
        other = reached[graph.output][0, (1 - row) * outputs : (2 - row) * outputs]
        if other.any():
            return False
    return True


@dataclass(frozen=True, eq=False)
class _Table:
    """Constants and slack of the pairs, rounded up to float32; [j, i] is for y_j over y_i.

    Attributes:
        constants: of real differences, with what their deviations grow by.
        slack: what is added to a lead.
        reach: the largest radius that may be claimed, infinite where inputs are in the domain.
    """

    constants: Array
    slack: Array
    reach: float

    @classmethod
    def of(
        cls,
        model: Model,
        bound: LipschitzBound,
        eps: float,
        domain: tuple[float, float],
        *,
        inside: bool,
    ) -> _Table:
        box = input_box(model.graph, *domain)
        executions = Executions.over(model.lowered, box, UNIT_ROUNDOFF_FLOAT32)
        constants, slack, reach = bound.pairs, 2.0 * executions.deviations(), np.inf
        if not inside:
            growth = executions.growth()
            # No vector is longer in the Euclidean norm than this many times in the bound's.
            stretch = np.sqrt(model.graph.input_size) if bound.norm == "inf" else 1.0
            rounded = 2.0 * _ARITHMETIC * UNIT_ROUNDOFF_FLOAT32 * growth.outputs
            constants = constants + stretch * (1.0 + 1e-6) * (growth.pairs + rounded)
            reach = min(growth.reach, _LARGEST / max(growth.outputs, 1.0)) / (2.0 * stretch)
        used = eps * constants
        met = 2.0 * executions.largest + used.max() + slack.max()
        slack = slack * (1.0 + 1e-6) + _ARITHMETIC * (UNIT_ROUNDOFF_FLOAT32 * met + _FLUSHED)
        if not (np.isfinite(slack).all() and np.isfinite(constants).all() and met < _LARGEST):
            raise UnsupportedModel(
                "an execution in float32 might overflow on the domain", place=model.source
            )
        if not eps <= reach:
            raise UnsupportedModel(
                "an execution in float32 might overflow within the radius", place=model.source
            )
        return cls(_up(np.maximum(constants, _SMALLEST_CONSTANT)), _up(slack), reach)


def _up(values: FloatArray) -> Array:
    """The next float32 numbers above, one more to be safe from the product with eps."""
    single = np.nextafter(values.astype(np.float32), np.float32(np.inf))
    return np.nextafter(single, np.float32(np.inf))


def _down(value: float) -> Array:
    """The largest float32 number that is not above, ()."""
    single = np.float32(value)
    return np.asarray(
        np.nextafter(single, np.float32(-np.inf)) if float(single) > value else single
    )


@dataclass(eq=False)
class _Writer:
    """Appends nodes to a model; ``inside`` says whether they test that inputs are in the domain."""

    proto: onnx.ModelProto
    model: Model
    form: _Form
    table: _Table
    domain: tuple[float, float]
    inside: bool

    def __post_init__(self) -> None:
        graph = self.proto.graph
        self.taken = {name for node in graph.node for name in (*node.input, *node.output)}
        self.taken |= {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
        self.opset = next(
            entry.version for entry in self.proto.opset_import if entry.domain in ("", "ai.onnx")
        )

    def extend(self, eps: float, *, eps_input: bool) -> None:
        """All new nodes and outputs.

        Numbers of one input are kept without a last axis of length 1 where they meet constants:
        runtimes step through such an axis row by row. Where they meet logits, a product with a row
        of ones, which is exact, repeats them in a seventh of the time.
        """
        logits = self._make_room(eps_input=eps_input)
        axis = self.form.rank - 1
        diagonal = np.eye(self.form.classes, dtype=bool)
        slack = np.where(diagonal, np.float32(-np.inf), self.table.slack)
        constants = np.where(diagonal, np.float32(1.0), self.table.constants)
        winner = self._node("ArgMax", [logits], axis=axis, keepdims=0)
        own_constants = self._node("Gather", [self._constant("constants", constants), winner])
        if eps_input:
            own_slack = self._node("Gather", [self._constant("slack", slack), winner])
            reach = self._node("Mul", [own_constants, "eps"])
            offset, proved = self._node("Add", [reach, own_slack]), "eps"
        else:
            total = _up(np.float64(eps) * constants.astype(np.float64) + slack)
            offset = self._node("Gather", [self._constant("offset", total), winner])
            proved = self._constant("radius", _down(eps))
        raised = self._node("Add", [logits, offset])
        bottom = self._reduced("ReduceMax", raised, [axis], keep=False)
        largest = self._reduced("ReduceMax", logits, [axis], keep=True)
        ones = self._constant("ones", np.ones((1, self.form.classes)))
        lead = self._node("Sub", [self._node("MatMul", [largest, ones]), raised])
        beyond = self._node("Div", [lead, own_constants])
        beyond = self._reduced("ReduceMin", beyond, [axis], keep=False)
        radius = self._clipped(self._node("Add", [beyond, proved]), min(self.table.reach, _REFUSAL))
        # Last, as onnxruntime then sums up the first layer before it computes the next ones, whose
        # values may take the place of the first one's.
        claimed = self._claimed()
        for test in self._radius_tests(eps) if eps_input else ():
            claimed = self._node("And", [claimed, test])
        self._where(claimed, radius, 0.0, "radius")
        bottom = self._where(claimed, bottom, _REFUSAL)
        # Outside a logit may be infinite, above the refusal.
        leads = self._node("Less", [bottom, self._with_axes("Squeeze", largest, [axis], 13)])
        self._node("And", [claimed, leads], "certified")
        bottom = self._with_axes("Unsqueeze", bottom, [axis], 13)
        self._node("Concat", [logits, bottom], self.form.output, axis=axis)
        self._declare(eps_input=eps_input)

    def _make_room(self, *, eps_input: bool) -> str:
        """Fix what was read, and free the names of the new tensors; returns that of the logits."""
        graph = self.proto.graph
        for value, info in zip(_given(self.proto), self.model.inputs, strict=True):
            dims = value.type.tensor_type.shape.dim
            for number, (dim, size) in enumerate(zip(dims, info.shape, strict=True)):
                if number or not self.form.batched:
                    dim.Clear()
                    dim.dim_value = size
        # Older files would have to list every stored tensor as an input.
        self.proto.ir_version = max(self.proto.ir_version, 4)
        for name in ("certified", "radius", *(["eps"] if eps_input else [])):
            if name in self.taken:
                self._rename(name, self._fresh(name))
        logits = self._fresh("logits")
        self._rename(self.form.output, logits)
        if not any(logits in node.output for node in graph.node):
            raise UnsupportedModel("the output is not made by a node", place=self.model.source)
        return logits

    def _rename(self, old: str, new: str) -> None:
        """Give an inner tensor another name."""
        graph = self.proto.graph
        for node in graph.node:
            for names in (node.input, node.output):
                for position, name in enumerate(names):
                    if name == old:
                        names[position] = new
        for info in list(graph.value_info):
            if info.name == old:
                graph.value_info.remove(info)
        for value in (*graph.initializer, *graph.input):
            if value.name == old:
                value.name = new

    def _claimed(self) -> str:
        """Name of the booleans that say that inputs are what is claimed for, as ``certified``."""
        tests = []
        first = int(self.form.batched)
        for info in self.model.inputs:
            sums = watched(self.proto, self.model, info, self.domain, batched=self.form.batched)
            axes = list(range(first, sums.rank))
            total = self._with_axes("ReduceSum", sums.name, axes, 13, keepdims=0)
            # No NaN passes these comparisons.
            tests.append(self._node("Less", [self._constant("least", sums.low), total]))
            tests.append(self._node("Less", [total, self._constant("most", sums.high)]))
            if self.inside:
                axes = list(range(first, len(info.shape)))
                least = self._reduced("ReduceMin", info.name, axes, keep=False)
                most = self._reduced("ReduceMax", info.name, axes, keep=False)
                low, high = -_down(-self.domain[0]), _down(self.domain[1])
                tests.append(self._at_most(self._constant("low", low), least))
                tests.append(self._at_most(most, self._constant("high", high)))
        claimed = functools.reduce(lambda *pair: self._node("And", pair), tests)
        axes = list(range(1, self.form.rank - 1)) if self.form.batched else []
        return self._with_axes("Unsqueeze", claimed, axes, 13) if axes else claimed

    def _clipped(self, name: str, high: float) -> str:
        """The number that is nearest among those from zero to ``high``."""
        largest = _down(high)
        if self.opset < 11:
            return self._node("Clip", [name], min=0.0, max=float(largest))
        return self._node(
            "Clip", [name, self._constant("zero", 0.0), self._constant("reach", largest)]
        )

    def _at_most(self, first: str, second: str) -> str:
        """Whether one number is at most the other; which of NaN is not defined."""
        if self.opset >= 12:
            return self._node("LessOrEqual", [first, second])
        return self._node("Not", [self._node("Less", [second, first])])

    def _radius_tests(self, eps: float) -> list[str]:
        """Names of booleans that say that the radius is one; no NaN passes these comparisons."""
        above = self._constant("above_eps", np.nextafter(np.float32(eps), np.float32(np.inf)))
        below = self._constant("below_eps", np.array(np.float32(-_SMALLEST_CONSTANT)))
        return [self._node("Less", ["eps", above]), self._node("Greater", ["eps", below])]

    def _where(self, condition: str, name: str, other: float, output: str = "") -> str:
        """The value, or another one where the condition does not hold."""
        if self.opset >= 9:
            otherwise = self._constant("otherwise", other)
            return self._node("Where", [condition, name, otherwise], output)
        # Before there was Where: a bound that changes nothing, or is met by every number.
        operator, harmless = ("Max", -_REFUSAL) if other else ("Min", _REFUSAL)
        limits = self._constant("limits", np.array([other, harmless]))
        row = self._node("Cast", [condition], to=TensorProto.INT32)
        return self._node(operator, [name, self._node("Gather", [limits, row])], output)

    def _declare(self, *, eps_input: bool) -> None:
        graph = self.proto.graph
        output = next(value for value in graph.output if value.name == self.form.output)
        shape = output.type.tensor_type.shape
        while len(shape.dim) < self.form.rank:  # the file leaves them out
            shape.dim.add()
        shape.dim[-1].Clear()
        shape.dim[-1].dim_value = self.form.classes + 1
        for name, kind in (("certified", TensorProto.BOOL), ("radius", TensorProto.FLOAT)):
            value = helper.make_tensor_value_info(name, kind, [])
            for dim in list(shape.dim)[:-1]:
                value.type.tensor_type.shape.dim.add().CopyFrom(dim)
            graph.output.append(value)
        if eps_input:
            graph.input.append(helper.make_tensor_value_info("eps", TensorProto.FLOAT, []))

    def _fresh(self, name: str) -> str:
        number, found = 0, f"onnxcert/{name}"
        while found in self.taken:
            number += 1
            found = f"onnxcert/{name}_{number}"
        self.taken.add(found)
        return found

    def _constant(self, name: str, values: Array | float) -> str:
        found, values = self._fresh(name), np.asarray(values)
        kind = np.int64 if values.dtype.kind == "i" else np.float32
        self.proto.graph.initializer.append(numpy_helper.from_array(values.astype(kind), found))
        return found

    def _node(
        self, operator: str, inputs: Sequence[str], output: str = "", **attributes: Any
    ) -> str:
        made = output or self._fresh(operator.lower())
        node = helper.make_node(operator, list(inputs), [made], name=self._fresh("node"))
        node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        self.proto.graph.node.append(node)
        return made

    def _with_axes(
        self,
        operator: str,
        name: str,
        axes: list[int],
        since: int,
        output: str = "",
        **attributes: Any,
    ) -> str:
        """Axes are an attribute in older operator sets, an input in newer ones."""
        if self.opset < since:
            return self._node(operator, [name], output, axes=axes, **attributes)
        listed = self._constant("axes", np.array(axes))
        return self._node(operator, [name, listed], output, **attributes)

    def _reduced(self, operator: str, name: str, axes: list[int], *, keep: bool) -> str:
        return self._with_axes(operator, name, axes, 18, keepdims=int(keep))


def _stored_proto(model: Model) -> onnx.ModelProto:
    """The file's model with all of its data."""
    proto = onnx.ModelProto.FromString(decompressed(model.stored(), model.source))
    if model.proto is None:
        onnx.load_external_data_for_model(proto, str(Path(model.source).resolve().parent))
    return proto  # type: ignore[no-any-return]


def _describe(
    proto: onnx.ModelProto,
    bound: LipschitzBound,
    eps: float,
    domain: tuple[float, float],
    table: _Table,
    *,
    eps_input: bool,
    inside: bool,
) -> None:
    """Metadata: what is claimed, of which model, from what."""
    pairs = bound.pairs[~np.eye(len(bound.pairs), dtype=bool)]
    facts = {
        "source_sha256": bound.model.sha256,
        "norm": bound.norm,
        "eps": repr(float(eps)) if not eps_input else f"an input, at most {float(eps)!r}",
        "domain": f"[{domain[0]!r}, {domain[1]!r}]",
        "pairs": "both inputs in the domain" if inside else "one of two inputs in the domain",
        "method": bound.method,
        "constants_rest_on": bound.rests_on,
        "largest_constant": repr(float(pairs.max())),
        "largest_slack": repr(float(table.slack.max())),
        "semantics": "ieee32-any-order",
        "version": __version__,
    }
    told = {entry.key: entry.value for entry in proto.metadata_props}
    told |= {f"onnxcert.{name}": value for name, value in facts.items()}
    helper.set_model_props(proto, told)


def _compare(
    proto: onnx.ModelProto, source: Model, domain: tuple[float, float], *, eps_input: bool
) -> None:
    """Run both models: the new one must be valid and have the same logits, bit for bit."""
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise ModelError(
            f"the extended model is not valid: {' '.join(str(error).split())[:300]}",
            place=source.source,
        ) from error
    replayer = Replayer(source)
    import onnxruntime  # noqa: PLC0415 - after the replayer has found it usable

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    for _ in range(_COMPARED_POINTS):
        inputs = [
            rng.uniform(*domain, size=info.shape).astype(np.float32) for info in source.inputs
        ]
        feeds = dict(zip((info.name for info in source.inputs), inputs, strict=True))
        if eps_input:
            feeds["eps"] = np.zeros((), np.float32)
        extended = session.run([source.outputs[0].name], feeds)[0]
        if not np.array_equal(replayer.run(inputs)[0], extended[..., :-1], equal_nan=True):
            raise ModelError(
                "the extended model computes other logits than the source",
                place=source.source,
                help="please report the model: this is a fault of onnxcert or of onnxruntime",
            )
