"""Running the original file in onnxruntime: what witnesses and our own reading are held against.

onnxruntime runs the bytes of the file as they are, without graph optimisations and on one thread,
so that a replay is the same every time. Our graph is a different object, with batch
normalisations solved, constants folded and layers contracted; `check_lowering` compares the two
before anything is concluded from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors

from onnxcert.arrays import UNIT_ROUNDOFF, Array, Device, FloatArray
from onnxcert.errors import ModelError
from onnxcert.frontend.model_file import decompressed
from onnxcert.frontend.onnx import Interface, Model
from onnxcert.graph import Graph, Node
from onnxcert.ops import Elementwise
from onnxcert.sets import Box

_FAILURES = (
    runtime_errors.EPFail,
    runtime_errors.Fail,
    runtime_errors.InvalidArgument,
    runtime_errors.InvalidGraph,
    runtime_errors.InvalidProtobuf,
    runtime_errors.NotImplemented,
    runtime_errors.RuntimeException,
    RuntimeError,
)

_UNITS = {"float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}
"""Unit roundoff of the types a file may compute in."""

_UNDERFLOW = {"float16": 2.0**-14, "float32": 1e-30, "float64": 1e-290}
"""Differences below this may come from numbers too small for the type."""


_NEAR_JUMP = 100.0
"""A curve may jump at a value where it does within so many times what binary32 makes of it."""

_OLDER_CONTAINER = 10
"""An IR version that every supported onnxruntime reads."""


class Replayer:
    """The model in onnxruntime; of several models together, each in a session of its own.

    Args:
        model: as `onnxcert.frontend.onnx.load_models` returned it.
    """

    def __init__(self, model: Interface) -> None:
        self.model = model
        self._sessions: dict[tuple[str, str, tuple[str, ...]], Any] = {}

    def session(self, part: Interface) -> Any:
        """The onnxruntime session of one of the models, made on first use.

        Raises:
            ModelError: onnxruntime refuses the model, or its file has changed.
        """
        key = part.source, part.sha256, tuple(info.name for info in part.hidden)
        if key not in self._sessions:
            self._sessions[key] = _start(part)
        return self._sessions[key]

    def run(self, inputs: Array | Sequence[Array]) -> list[Array]:
        """Evaluate one point.

        Args:
            inputs: the flat vector of all inputs, or one array per input with as many entries;
                converted to the element types of the file.

        Returns:
            Outputs, then hidden tensors, in the shapes and element types of the file.

        Raises:
            ModelError: onnxruntime fails.
        """
        feeds = self._feeds(inputs)
        outputs: list[Array] = []
        hidden: list[Array] = []
        for part in self.model.parts:
            names = [info.name for info in (*part.outputs, *part.hidden)]
            own = {info.name: feeds.pop(0) for info in part.inputs}
            try:
                results = self.session(part).run(names, own)
            except _FAILURES as error:
                raise _failure(part, error) from error
            outputs += results[: len(part.outputs)]
            hidden += results[len(part.outputs) :]
        return [np.asarray(result) for result in (*outputs, *hidden)]

    def run_flat(self, inputs: Array | Sequence[Array]) -> FloatArray:
        """As `run`, with all results in one float64 vector."""
        return np.concatenate([result.ravel() for result in self.run(inputs)]).astype(np.float64)

    def _feeds(self, inputs: Array | Sequence[Array]) -> list[Array]:
        infos = self.model.inputs
        if isinstance(inputs, np.ndarray):
            inputs = np.split(inputs.ravel(), np.cumsum([info.size for info in infos])[:-1])
        return [
            np.asarray(value).reshape(info.shape).astype(info.element_type)
            for info, value in zip(infos, inputs, strict=True)
        ]


def _start(model: Interface) -> Any:
    """A session of one model."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if model.folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(model.folder.resolve())
        )
    data = _bytes(model)
    try:
        return _session(data, options)
    except _FAILURES as error:
        if "IR version" not in str(error):
            raise _failure(model, error) from error
    # Newer writers stamp a container version that this runtime does not know yet; what the
    # nodes mean is fixed by the operator sets, which it goes on to check.
    proto = onnx.ModelProto.FromString(data)
    proto.ir_version = _OLDER_CONTAINER
    try:
        return _session(proto.SerializeToString(), options)
    except _FAILURES as error:
        raise _failure(model, error) from error


def _bytes(model: Interface) -> bytes:
    """The serialised model, with hidden tensors among its outputs."""
    data = decompressed(model.stored(), model.source)
    if not model.hidden:
        return data
    proto = onnx.ModelProto()
    proto.ParseFromString(data)
    known = {output.name for output in proto.graph.output}
    for info in model.hidden:
        if info.name not in known:
            number = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(info.element_type))
            proto.graph.output.append(onnx.helper.make_tensor_value_info(info.name, number, None))
    return bytes(proto.SerializeToString())


def _failure(model: Interface, error: BaseException) -> ModelError:
    text = " ".join(str(error).split())
    return ModelError(f"onnxruntime cannot run the model: {text[:300]}", place=model.source)


def _session(data: bytes, options: Any) -> Any:
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class _Expected:
    """What the lowered graph allows at one point: the real-valued outputs, and their enclosure
    over all executions in the arithmetic of the file; whether a curve may have jumped in one.
    """

    outputs: FloatArray
    box: Box
    jumps: bool


def check_lowering(
    model: Model,
    lower: FloatArray,
    upper: FloatArray,
    rng: np.random.Generator,
    points: int,
    *,
    replayer: Replayer | None = None,
) -> None:
    """Compare the model as read with onnxruntime on corners and random points of a box.

    Two tests. onnxruntime's outputs must lie in the interval enclosure of all executions with
    the rounding of the file's arithmetic, in any order of summation. In deep networks that
    enclosure is wide; so they must also be near the real-valued outputs, by the measure of what
    float32 arithmetic does to the same graph.

    Args:
        model: as read.
        lower, upper: the input box, (input size,) each.
        rng: chooses the points.
        points: how many.
        replayer: to reuse a session.

    Raises:
        ModelError: a difference that rounding does not explain.
    """
    with np.errstate(all="ignore"):  # what overflows fails the comparison
        _check_points(model, lower, upper, rng, points, replayer or Replayer(model))


def _check_points(
    model: Model,
    lower: FloatArray,
    upper: FloatArray,
    rng: np.random.Generator,
    points: int,
    replayer: Replayer,
) -> None:
    types = {info.element_type for info in (*model.inputs, *model.outputs, *model.hidden)}
    coarsest = max(types, key=lambda name: _UNITS[name])
    xs = _sample(model, lower, upper, rng, points)
    exact = model.graph.forward(xs)
    single = _in_float32(model.graph, xs)
    wobble = np.abs(single - exact).max(axis=0)
    for x, simple in zip(xs, exact, strict=True):
        found = replayer.run_flat(x)
        expected = _expect(model.lowered, x, _UNITS[coarsest] + UNIT_ROUNDOFF)
        _compare(model, found, expected, wobble, coarsest)
        if not expected.jumps:
            _compare_passes(model, simple, expected.outputs, wobble)


def _sample(
    model: Model, lower: FloatArray, upper: FloatArray, rng: np.random.Generator, points: int
) -> FloatArray:
    """Corners and inner points in turn, (points, n), as numbers of the file's types."""
    types = np.concatenate([np.full(info.size, _UNITS[info.element_type]) for info in model.inputs])
    low = np.clip(np.nan_to_num(lower, neginf=-1.0, posinf=1.0), -1e4, 1e4)
    high = np.clip(np.nan_to_num(upper, neginf=-1.0, posinf=1.0), -1e4, 1e4)
    weight = rng.random((points, len(low)))
    weight[::2] = np.round(weight[::2])
    xs = low + weight * (high - low)
    xs = xs[:, model.read]
    half, single = (xs.astype(kind).astype(np.float64) for kind in (np.float16, np.float32))
    return np.where(types == _UNITS["float16"], half, np.where(types == 2.0**-24, single, xs))


def _in_float32(graph: Graph, xs: FloatArray) -> FloatArray:
    return graph.to(Device(), np.float32).forward(xs.astype(np.float32)).astype(np.float64)


def _expect(graph: Graph, x: FloatArray, unit: float) -> _Expected:
    """Evaluate the point and its enclosure, node by node."""
    values = {graph.input: x[None]}
    boxes = {graph.input: Box(x[None], x[None])}
    jumping = any(_may_jump(node) for node in graph.nodes)
    single = graph.single.values(x[None].astype(np.float32)) if jumping else {}
    jumps = False
    for number, node in enumerate(graph.nodes):
        values[node.name] = node.op.forward([values[name] for name in node.inputs])
        boxes[node.name] = node.op.interval([boxes[name] for name in node.inputs], unit).defined()
        if isinstance(node.op, Elementwise) and _may_jump(node):
            read = values[node.inputs[0]]
            near = _NEAR_JUMP * abs(single[node.inputs[0]] - read)
            jumps |= bool((node.op.value(read - near) != node.op.value(read + near)).any())
        for name in set(node.inputs):
            if graph.last_use[name] == number and name != graph.output:
                del values[name], boxes[name]
    return _Expected(values[graph.output][0], boxes[graph.output], jumps)


def _may_jump(node: Node) -> bool:
    return isinstance(node.op, Elementwise) and not node.op.continuous


def _compare(
    model: Model, found: FloatArray, expected: _Expected, wobble: FloatArray, coarsest: str
) -> None:
    """The two tests of `check_lowering` at one point."""
    if not np.isfinite(found).all():
        raise ModelError(
            f"onnxruntime's outputs are not finite ({found[~np.isfinite(found)][0]}): the "
            f"arithmetic of the file, {coarsest}, overflows inside the input box",
            place=model.source,
        )
    unit = _UNITS[coarsest] / _UNITS["float32"]
    size = max(1e-30, float(np.abs(expected.outputs).max(initial=0.0)))
    slack = 1e-6 * size * unit + _UNDERFLOW[coarsest]
    box = expected.box
    outside = np.maximum(box.lower[0] - found, found - box.upper[0]) - slack
    deviation = np.abs(found - expected.outputs)
    excess = deviation - ((100.0 * wobble + 1e-5 * size) * unit + slack)
    worst = outside if expected.jumps else np.maximum(outside, excess)
    # Written so that NaN fails.
    if not (worst <= 0.0).all():
        number = int(np.argmax(np.where(np.isnan(worst), np.inf, worst)))
        raise ModelError(
            "the model as read differs from onnxruntime: output "
            f"{number} is {found[number]:.9g} there and {expected.outputs[number]:.9g} here, "
            f"enclosed in [{box.lower[0][number]:.9g}, {box.upper[0][number]:.9g}]",
            place=model.source,
            help="please report the model: this is a fault of onnxcert or of onnxruntime",
        )


def _compare_passes(
    model: Model, simple: FloatArray, lowered: FloatArray, wobble: FloatArray
) -> None:
    """The simplified graph against the one that was read, both in float64.

    What float32 does to the graph, times 2^-29, is what float64 does; the rest is generosity.
    """
    size = max(1e-30, float(np.abs(lowered).max(initial=0.0)))
    if not (np.abs(simple - lowered) <= 1e-9 * size + 1e-6 * wobble).all():
        raise ModelError(
            "simplification changed the model by "
            f"{float(np.abs(simple - lowered).max()):.3g} at outputs of size {size:.3g}",
            place=model.source,
            help="please report the model: this is a fault of onnxcert",
        )
