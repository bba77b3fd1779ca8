"""Rule R13: a witness lies in the specification, with outputs that were computed here.

Inputs are read as exact rationals: the numbers of the arrays, or a decimal of the header where the
specification confines an input to an interval without any number of its type. ``exact-replay`` says
that the real-valued network, evaluated in rationals, meets the specification; ``ort-replay`` that
the outputs of onnxruntime do, without graph optimisations and on one thread. No tolerance.
"""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxcert.checker.curves import Array
from onnxcert.checker.errors import Expired, Rejected, Unusable
from onnxcert.checker.network import Affine, Product

_MOST_PRODUCTS = 3_000_000
"""Multiplications in rationals that are worth beginning: about ten seconds, more in deep networks,
where numbers grow from layer to layer."""

_MOST_SECONDS = 10.0
"""Seconds after which no further layer is begun."""

if TYPE_CHECKING:
    from onnxcert.checker.certificate import Session
    from onnxcert.checker.model import Part


def replay(session: Session, arrays: Mapping[str, Array], decimals: Any) -> tuple[str, ...]:
    """Replay a witness; the claims that hold.

    Args:
        session: model and specification.
        arrays: ``x0``, ``x1``, ...: one for each input of the model.
        decimals: position in the flat input -> text of an exact number.

    Raises:
        Rejected: there is no witness here.
    """
    inputs = session.network.inputs
    if set(arrays) != {f"x{i}" for i in range(len(inputs))}:
        raise Rejected("R13", "arrays", "not one for each input")
    given = [arrays[f"x{i}"] for i in range(len(inputs))]
    for array, (name, shape, kind) in zip(given, inputs, strict=True):
        if array.shape != tuple(shape) or array.dtype != kind or not np.isfinite(array).all():
            raise Rejected("R13", name, f"not finite numbers of type {kind} and shape {shape}")
    exact = [Fraction(value) for array in given for value in array.ravel().tolist()]
    fixed = _decimals(decimals)
    kinds = np.concatenate([np.full(array.size, array.dtype.str) for array in given])
    for position, value in fixed.items():
        if position >= len(exact) or _nearest(value, kinds[position]) != exact[position]:
            raise Rejected("R13", "decimals", "an exact number that is not rounded to the input")
        exact[position] = value
    claims = []
    for name, outputs in (
        ("exact-replay", _evaluate(session, exact)),
        ("ort-replay", _run(session, given)),
    ):
        if outputs is None or not session.query.holds(exact, outputs):
            continue
        for position, value in fixed.items():
            for number in _neighbours(value, kinds[position]):
                if not session.query.excludes(number, position, exact, outputs):
                    raise Rejected("R13", "decimals", "a number of the input's type would do")
        claims.append(name)
    if not claims:
        raise Rejected("R13", "witness", "the outputs do not meet the specification")
    return tuple(claims)


def _decimals(table: Any) -> dict[int, Fraction]:
    if not isinstance(table, dict):
        raise Rejected("R13", "decimals", "no table")
    for key, text in table.items():
        if not (re.fullmatch(r"0|[1-9]\d{0,9}", key) and isinstance(text, str)):
            raise Rejected("R13", "decimals", f"no position: {key!r}")
        if not re.fullmatch(r"-?\d{1,700}(/[1-9]\d{0,700})?", text):
            raise Rejected("R13", "decimals", "no fraction of integers")
    return {int(key): Fraction(text) for key, text in table.items()}


def _nearest(value: Fraction, kind: str) -> Fraction | None:
    try:
        with np.errstate(over="ignore"):
            number = np.dtype(kind).type(float(value))
        return Fraction(float(number)) if np.isfinite(number) else None
    except OverflowError:
        return None


def _neighbours(value: Fraction, kind: str) -> list[Fraction]:
    """The numbers of a type on both sides of a number; decimals are for intervals without any."""
    nearest = np.dtype(kind).type(float(value))
    sides = (nearest, *(np.nextafter(nearest, np.dtype(kind).type(end)) for end in (-1e30, 1e30)))
    return [Fraction(float(number)) for number in sides if np.isfinite(number)]


def _evaluate(session: Session, exact: list[Fraction]) -> list[Fraction] | None:
    """Outputs in exact arithmetic; None where they have no exact value or it would take long."""
    network = session.proved(executed=False)
    work = sum(
        term.weight.size * term.ids.shape[2]
        for block in network.blocks
        if isinstance(block, Affine)
        for term in block.terms
        if isinstance(term, Product)
    )
    if work > _MOST_PRODUCTS:
        return None
    end = time.monotonic() + _MOST_SECONDS
    try:
        made = network.evaluate(exact, lambda: time.monotonic() > end)
        return made[: session.query.n_outputs]  # behind them are products, worked out by the query
    except (Unusable, Expired):
        return None  # smooth curves and rounded constants; deep networks


def _run(session: Session, given: list[Array]) -> list[Fraction] | None:
    """Outputs of onnxruntime as exact numbers; None where it is missing, fails or overflows."""
    tensors, results, start = list(zip(session.network.inputs, given, strict=True)), [], 0
    for part, network in zip(session.parts, session.query.networks, strict=True):
        end = start + len(network.of("input")) if part.input_shapes is not None else len(tensors)
        feeds = {name: x for (name, _, _), x in tensors[start:end]}
        made = _run_one(part, feeds)
        if made is None:
            return None
        results.append(made)
        start = end
    arrays = [array for k in (0, 1) for pair in results for array in pair[k]]
    if not all(np.isfinite(array).all() for array in arrays):
        return None
    return [Fraction(value) for array in arrays for value in np.asarray(array).ravel().tolist()]


def _run_one(part: Part, feeds: Mapping[str, Array]) -> tuple[list[Array], list[Array]] | None:
    """Outputs and hidden tensors of one model; None where onnxruntime is missing or fails."""
    try:
        import onnxruntime  # noqa: PLC0415 - for witnesses only
        from onnxruntime.capi import onnxruntime_pybind11_state as state  # noqa: PLC0415
    except ImportError:
        return None
    data, directory = part.source
    proto = onnx.ModelProto.FromString(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    proto.ir_version = min(proto.ir_version, 10)  # what nodes mean hangs on operator sets alone
    names = [output.name for output in proto.graph.output]
    kind = onnx.helper.np_dtype_to_tensor_dtype(next(iter(feeds.values())).dtype)
    for name in part.hidden:
        if name not in names:
            proto.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if directory is not None:
        entry = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(entry, str(directory.resolve()))
    try:
        run = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        made = run.run([*names, *part.hidden], feeds)
    except (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.NotImplemented,
        state.RuntimeException,
        RuntimeError,
    ):
        return None
    return made[: len(names)], made[len(names) :]
