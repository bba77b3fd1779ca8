"""Certificates of small generated models, and siblings of theirs about which nothing is proved.

Every member of the zoo is refuted by the engine and accepted by the checker. Its *sibling* has the
same tensors but a solution, and that solution is known: whatever certificate is accepted for the
sibling proves what is false.
"""

from __future__ import annotations

import hashlib
import io
import json
import signal
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import helper

import onnxcert
from onnxcert import Settings
from onnxcert.checker import container
from onnxcert.checker.certificate import EXECUTED, REAL, Session
from onnxcert.checker.errors import Rejected, Unusable
from onnxcert.frontend.lower import lower_query
from onnxcert.frontend.onnx import load_model
from onnxcert.frontend.vnnlib import read_query
from onnxcert.graph import Graph
from onnxcert.spec import Problem
from tests.frontend.onnx_models import model_of
from tests.mixed import early
from tests.oracles import satisfied_case

Rows = Sequence[tuple[Sequence[float], float]]
"""(coefficients of the outputs, bound): their sum is at most the bound."""

Disjunct = tuple[Sequence[float], Sequence[float], Rows]
"""Lower ends, upper ends and rows."""

Arrays = dict[str, np.ndarray]
Header = dict[str, Any]

ACCEPTED = "accepted"
UNUSABLE = "unusable"


def spec(*disjuncts: Disjunct, outputs: int = 1) -> bytes:
    """VNN-LIB 1.0 text: a solution of one of the disjuncts is asked for."""
    names = [f"X_{i}" for i in range(len(disjuncts[0][0]))] + [f"Y_{i}" for i in range(outputs)]
    lines = [f"(declare-const {name} Real)" for name in names]
    formulas = [_formula(*disjunct) for disjunct in disjuncts]
    whole = formulas[0] if len(formulas) == 1 else f"(or {' '.join(formulas)})"
    return "\n".join([*lines, f"(assert {whole})\n"]).encode()


def _formula(low: Sequence[float], high: Sequence[float], rows: Rows) -> str:
    parts = [
        f"(>= X_{i} {_decimal(a)}) (<= X_{i} {_decimal(b)})"
        for i, (a, b) in enumerate(zip(low, high, strict=True))
    ]
    for coefficients, bound in rows:
        terms = " ".join(f"(* {_decimal(c)} Y_{i})" for i, c in enumerate(coefficients) if c)
        parts.append(f"(<= (+ {terms} 0.0) {_decimal(bound)})")
    return f"(and {' '.join(parts)})"


def _decimal(value: float) -> str:
    """A float as the decimal that it is."""
    text = format(Decimal(float(value)), "f")
    return text if "." in text else f"{text}.0"


def dense(
    sizes: Sequence[int], seed: int, *, curve: str = "Relu", opset: int = 13
) -> onnx.ModelProto:
    """Gemm layers with curves ``h0``, ``h1``, ... between; weights are multiples of 1/8."""
    rng = np.random.default_rng(seed)
    nodes, constants, value = [], {}, "x"
    for number, (rows, columns) in enumerate(pairwise(sizes)):
        for name, shape in ((f"w{number}", (rows, columns)), (f"b{number}", (columns,))):
            constants[name] = (np.round(8 * rng.normal(size=shape)) / 8).astype(np.float32)
        is_last = number == len(sizes) - 2
        target = "y" if is_last else f"z{number}"
        nodes.append(helper.make_node("Gemm", [value, f"w{number}", f"b{number}"], [target]))
        if not is_last:
            value = f"h{number}"
            nodes.append(helper.make_node(curve, [target], [value]))
    return model_of(nodes, {"x": [1, sizes[0]]}, ["y"], constants, opset=opset)


@dataclass(frozen=True)
class Instance:
    """A model and a specification, as files have them."""

    model: bytes
    spec: bytes

    @cached_property
    def session(self) -> Session:
        """The checker's reading."""
        return Session(self.model, self.spec)

    @cached_property
    def graph(self) -> Graph:
        """The engine's reading of the model."""
        return load_model(onnx.ModelProto.FromString(self.model)).graph

    @cached_property
    def problems(self) -> list[Problem]:
        """The engine's reading of the specification."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "spec.vnnlib"
            path.write_bytes(self.spec)
            return list(lower_query(read_query(path)).cases)

    def is_solved_by(self, point: Sequence[float]) -> bool:
        """Whether a point is a solution, in exact arithmetic."""
        return any(satisfied_case(self.graph, p, point) is not None for p in self.problems)

    def outcome(self, certificate: bytes, **options: Any) -> str:
        """``accepted``, ``unusable``, or the rule that a certificate breaks."""
        try:
            self.session.check(certificate, **options)
        except Rejected as error:
            return error.rule
        except Unusable:
            return UNUSABLE
        return ACCEPTED


@dataclass(frozen=True)
class Made:
    """An accepted certificate.

    Attributes:
        instance: what it is about.
        certificate: the bytes.
        sibling: an instance with a solution.
        solution: of the sibling.
    """

    instance: Instance
    certificate: bytes
    sibling: Instance
    solution: tuple[float, ...]

    @cached_property
    def parts(self) -> tuple[Header, Arrays]:
        """Header and arrays."""
        return container.unpack(self.certificate)

    def edited(self, change: Callable[[Header, Arrays], None]) -> bytes:
        """The certificate after a change of copies of its header and arrays."""
        return edited(self.certificate, change)

    def at_sibling(self, certificate: bytes) -> str:
        """How a certificate fares with the sibling, once its hashes are those of the sibling."""
        return self.sibling.outcome(bound_to(self.sibling, certificate))


def assert_slopes_prove_nothing_false(it: Made, rng: np.random.Generator) -> None:
    """Whatever slopes a certificate has: of the sibling it is refused, and of its own question an
    audit agrees with the check."""
    for _ in range(20):

        def change(header: Header, arrays: Arrays) -> None:
            arrays["slope"] = rng.integers(0, 256, arrays["slope"].shape).astype(np.uint8)
            arrays["point"] = rng.normal(size=arrays["point"].shape)

        certificate = it.edited(change)
        assert it.at_sibling(certificate) == "R8"
        assert it.instance.outcome(certificate, audit=9) in ("R8", ACCEPTED)


def edited(certificate: bytes, change: Callable[[Header, Arrays], None]) -> bytes:
    """A certificate after a change of copies of its header and arrays."""
    header, arrays = container.unpack(certificate)
    header, arrays = json.loads(json.dumps(header)), {n: a.copy() for n, a in arrays.items()}
    change(header, arrays)
    return container.pack(header, arrays)


def hashes(instance: Instance) -> dict[str, str]:
    """What the header says about the files."""
    return {
        "model_sha256": hashlib.sha256(instance.model).hexdigest(),
        "spec_sha256": hashlib.sha256(instance.spec).hexdigest(),
    }


def bound_to(instance: Instance, certificate: bytes) -> bytes:
    """A certificate that names the files of an instance; unreadable ones stay as they are."""
    try:
        members = dict(members_of(certificate))
        header = json.loads(members["header.json"])
        header |= hashes(instance)
        members["header.json"] = json.dumps(header).encode()
    except Exception:  # noqa: BLE001 - damaged in any way
        return certificate
    return archive(list(members.items()))


def members_of(certificate: bytes) -> list[tuple[str, bytes]]:
    """Names and contents of the members of an archive."""
    with zipfile.ZipFile(io.BytesIO(certificate)) as file:
        return [(info.filename, file.read(info)) for info in file.infolist()]


def archive(members: Sequence[tuple[str, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive of any members."""
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w") as file:
        for name, data in members:
            file.writestr(zipfile.ZipInfo(name), data, compression)
    return result.getvalue()


def saved(array: np.ndarray) -> bytes:
    """An array as ``np.save`` writes it, objects and all."""
    result = io.BytesIO()
    np.save(result, array, allow_pickle=True)
    return result.getvalue()


def by_hand(
    instance: Instance,
    arrays: Mapping[str, Any] | None = None,
    *,
    layers: Sequence[str] = (),
    semantics: str = REAL,
) -> bytes:
    """A certificate of given arrays; without any, that plain bounds refute the only case."""
    arrays = arrays or {"group": [[0, 1, 1, 0, 0, 0]], "case": [0], "op": [0]}
    full = {n: np.zeros((0, w) if w else 0, kind) for n, (kind, w) in container.ARRAYS.items()}
    known = container.ARRAYS | container.EXTRA
    full |= {n: np.asarray(a, known[n][0]) for n, a in arrays.items()}
    header = {
        "format": container.FORMAT,
        "verdict": "unsat",
        "semantics": semantics,
        "tool": {},
        "layers": list(layers),
        **hashes(instance),
    }
    return container.pack(header, full)


def witness_by_hand(
    instance: Instance, x: Any, decimals: object = MappingProxyType({}), **changes: Any
) -> bytes:
    """A witness for a model with one input."""
    header = {
        "format": container.FORMAT,
        "verdict": "sat",
        "semantics": REAL,
        "tool": {},
        "decimals": dict(decimals) if isinstance(decimals, Mapping) else decimals,
        **hashes(instance),
        **changes,
    }
    return container.pack(header, {"x0": np.asarray(x)})


def coarse(value: float) -> int:
    """A multiplier or weight as it is stored, rounded down."""
    return int(np.float32(value).view(np.uint32) >> 16)


def prove(
    instance: Instance, *, semantics: str = REAL, timeout: float = 60, **settings: Any
) -> bytes:
    """The engine's certificate, of either verdict."""
    with tempfile.TemporaryDirectory() as directory:
        path, out = Path(directory) / "spec.vnnlib", Path(directory) / "proof.onnxcert"
        path.write_bytes(instance.spec)
        result = onnxcert.verify(
            onnx.ModelProto.FromString(instance.model),
            path,
            timeout=timeout,
            settings=Settings(**settings),
            semantics=semantics,
            certificate=out,
        )
        assert result.word in ("sat", "unsat"), result.verdict
        assert result.proof is not None
        assert result.proof.accepted, result.proof.message
        return out.read_bytes()


@dataclass(frozen=True)
class _Plan:
    """How a member of the zoo is made.

    Attributes:
        model: the network.
        disjuncts: threshold -> what is asked for; more of it the larger the threshold.
        thresholds: one that has no solution, and one that has.
        solution: of the latter.
        settings: of the search.
        semantics: of the claim.
        mixed: whether boxes of input splits are handed to neuron splits.
    """

    model: onnx.ModelProto
    disjuncts: Callable[[float], Sequence[Disjunct]]
    thresholds: tuple[float, float]
    solution: tuple[float, ...]
    outputs: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    semantics: str = REAL
    mixed: bool = False

    def make(self) -> Made:
        """Run the search."""
        data = self.model.SerializeToString()
        asked = [
            Instance(data, spec(*self.disjuncts(t), outputs=self.outputs)) for t in self.thresholds
        ]
        with early() if self.mixed else nullcontext():
            certificate = prove(asked[0], semantics=self.semantics, **self.settings)
        return Made(asked[0], certificate, asked[1], self.solution)


@contextmanager
def processor_seconds(limit: float) -> Iterator[None]:
    """Raise `TimeoutError` where a block takes more processor time; in the main thread."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {limit} s of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def convolution() -> onnx.ModelProto:
    """Two windows of a 1 x 1 x 2 x 3 image, padded below; then the sum of both."""
    rng = np.random.default_rng(3)
    constants = {
        "w": (np.round(8 * rng.normal(size=(2, 1, 2, 2))) / 8).astype(np.float32),
        "b": np.array([0.25, -0.5], np.float32),
        "v": (np.round(8 * rng.normal(size=(8, 1))) / 8).astype(np.float32),
        "shape": np.array([1, 8]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["z"], pads=[0, 0, 1, 0]),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("Reshape", ["h", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "v"], ["y"]),
    ]
    return model_of(nodes, {"x": [1, 1, 2, 3]}, ["y"], constants)


def tables(
    weight: np.ndarray, knots: np.ndarray, order: np.ndarray | None = None
) -> onnx.ModelProto:
    """Two inputs through a layer, three curves of which each is a sum of relus, and a layer.

    Args:
        weight: (K,) of the relus of all curves, or (K, 3) of each.
        knots: (K,) or (K, 3), where they begin.
        order: of the curves behind the sums, for weights of each.
    """
    count = len(knots)
    constants = {
        "w": np.array([[1.0, -0.5, 0.75], [0.5, 1.0, -1.0]], np.float32),
        "b": np.array([0.125, -0.25, 0.5], np.float32),
        "u": np.array([[1.0, 0.5], [-1.0, 0.25], [0.5, 1.0]], np.float32),
        "c": np.array([0.25], np.float32),
        "axis": np.array([2 if weight.ndim == 1 else 1]),
        "knots": knots.astype(np.float32),
        "weight": weight.astype(np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
        helper.make_node("Unsqueeze", ["z", "axis"], ["column"]),
        helper.make_node("Sub", ["column", "knots"], ["from"]),
        helper.make_node("Relu", ["from"], ["parts"]),
        helper.make_node("MatMul", ["parts", "weight"], ["total"]),
        helper.make_node("Add", ["total", "c"], ["h"]),
        helper.make_node("MatMul", ["h", "u"], ["y"]),
    ]
    if weight.ndim == 2:  # the relus of one number lie apart, in a matrix that is mostly zero
        columns = np.arange(3) if order is None else order
        matrix = weight[:, :, None] * np.eye(3)[:, columns]
        constants["weight"] = matrix.reshape(-1, 3).astype(np.float32)
        constants["flat"] = np.array([1, 3 * count])
        if knots.ndim == 1:
            constants["knots"] = constants["knots"][:, None]
        nodes[4] = helper.make_node("MatMul", ["row", "weight"], ["total"])
        nodes.insert(4, helper.make_node("Reshape", ["parts", "flat"], ["row"]))
    return model_of(nodes, {"x": [1, 2]}, ["y"], constants)


def lattice(seed: int, outputs: int = 1) -> onnx.ModelProto:
    """Two layers of relus of which many read equal or opposite numbers, and one a constant.

    Sums between them are equal, too, so that numbers behind those are.
    """
    rng = np.random.default_rng(seed)
    first = np.round(8 * rng.normal(size=(3, 3))) / 8
    first = np.concatenate([first, [[0.0], [0.0], [0.5]]], axis=1)
    columns, signs = [0, 1, 0, 3, 0, 2, 1, 2], [1, 1, -1, 1, 1, -1, -1, 1]
    first = first[:, columns] * signs
    total = (np.round(8 * rng.normal(size=(9, 4))) / 8)[:, [0, 1, 0, 2, 3]]
    second = np.zeros((5, 6))
    second[[0, 1, 1, 0, 2, 3, 2, 4], [0, 0, 1, 1, 2, 2, 3, 5]] = [1, -1, 1, -1, 1, 0.5, 1, 1]
    second[1, 3], second[3, 4] = -1, 1
    constants = {
        "w": first[:2],
        "b": first[2],
        "v": total[:8],
        "c": total[8],
        "u": second,
        "m": np.round(8 * rng.normal(size=(6, outputs))) / 8,
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("Gemm", ["h", "v", "c"], ["t"]),
        helper.make_node("MatMul", ["t", "u"], ["s"]),
        helper.make_node("Relu", ["s"], ["k"]),
        helper.make_node("MatMul", ["k", "m"], ["y"]),
    ]
    arrays = {name: array.astype(np.float32) for name, array in constants.items()}
    return model_of(nodes, {"x": [1, 2]}, ["y"], arrays)


def products(*, share: bool = False) -> onnx.ModelProto:
    """relu(A x + a) times B x + b, or shares of relu(A x + a) + 1; then a weighted sum."""
    rng = np.random.default_rng(5)
    shapes = {"w0": (2, 4), "b0": (4,), "w1": (2, 4), "b1": (4,), "w2": (4, 1)}
    constants = {
        name: (np.round(8 * rng.normal(size=shape)) / 8).astype(np.float32)
        for name, shape in shapes.items()
    }
    constants |= {"one": np.ones(1, np.float32), "axis": np.array([1], np.int64)}
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["z0"]),
        helper.make_node("Relu", ["z0"], ["h0"]),
    ]
    if share:
        nodes += [
            helper.make_node("Add", ["h0", "one"], ["above"]),
            helper.make_node("ReduceSum", ["above", "axis"], ["total"], keepdims=1),
            helper.make_node("Div", ["above", "total"], ["p"]),
        ]
    else:
        nodes += [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["z1"]),
            helper.make_node("Mul", ["h0", "z1"], ["p"]),
        ]
    nodes.append(helper.make_node("MatMul", ["p", "w2"], ["y"]))
    return model_of(nodes, {"x": [1, 2]}, ["y"], constants)


_SQUARE = ([-1.0, -1.0], [1.0, 1.0])
_CUBE = ([-1.0] * 3, [1.0] * 3)
_HALVES = ([-1.0, -1.0], [1.0, 0.0]), ([-1.0, 0.0], [1.0, 1.0])


def _four(t: float) -> list[Disjunct]:
    """Two questions on each half of the square."""
    rows: list[Rows] = [[([1, 0], t)], [([0, -1], t - 0.890625)]]
    lower, upper = _HALVES
    return [(*lower, rows[0]), (*lower, rows[1]), (*upper, rows[1]), (*upper, rows[0])]


_INPUT, _PLANES = {"splitting": "input"}, {"splitting": "neuron", "narrowing": "off"}
_NEURON = _PLANES | {"planes": "off"}

PLANS = {
    "inputs": _Plan(
        dense([2, 4, 3, 1], 2),
        lambda t: [(*_SQUARE, [([1], t)])],
        (-5.90625, -5.875),
        (-1.0, 0.0),
        settings=_INPUT,
    ),
    "boxes": _Plan(
        dense([2, 4, 3, 2], 3),
        _four,
        (0.140625, 0.1875),
        (0.765625, -1.0),
        outputs=2,
        settings=_INPUT,
    ),
    "combined": _Plan(
        dense([2, 4, 3, 2], 3),
        lambda t: [(*_SQUARE, [([1, 0], 2.5 + t), ([0, 1], -0.75 + t)])],
        (-0.28125, -0.234375),
        (-0.171875, -1.0),
        outputs=2,
        settings=_INPUT,
    ),
    "sums": _Plan(
        dense([3, 6, 6, 2], 0),
        lambda t: [(*_CUBE, [([1, 0], -1.5625 + t), ([0, 1], 2.0625 + t)])],
        (0.9375, 0.96875),
        (-1.0, 1.0, -0.15625),
        outputs=2,
        settings=_INPUT,
    ),
    "mixed": _Plan(
        dense([3, 5, 4, 1], 4),
        lambda t: [(*_CUBE, [([1], t)])],
        (0.484375, 0.5),
        (1.0, 1.0, 1.0),
        settings=_INPUT,
        mixed=True,
    ),
    "neurons": _Plan(
        dense([3, 5, 4, 1], 4),
        lambda t: [(*_CUBE, [([1], t)])],
        (0.46875, 0.515625),
        (0.9921875, 0.984375, 0.96484375),
        settings=_NEURON,
    ),
    "groups": _Plan(
        dense([2, 4, 3, 2], 3),
        _four,
        (0.140625, 0.1875),
        (0.765625, -1.0),
        outputs=2,
        settings=_NEURON,
    ),
    "weights": _Plan(
        dense([3, 4, 4, 2], 4),
        lambda t: [(*_CUBE, [([1, 0], -1.5 + t), ([0, 1], -1.5 + t)])],
        (-0.546875, -0.46875),
        (-0.890625, -0.96875, -1.0),
        outputs=2,
        settings=_NEURON,
    ),
    "convolution": _Plan(
        convolution(),
        lambda t: [([0.0] * 6, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0], [([1], t)])],
        (-1.171875, -1.15625),
        (1.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        settings=_INPUT,
    ),
    "products": _Plan(
        products(),
        lambda t: [(*_SQUARE, [([1], t)])],
        (-6.03125, -6.015625),
        (-1.0, 1.0),
        settings=_INPUT,
    ),
    "shares": _Plan(
        products(share=True),
        lambda t: [(*_SQUARE, [([1], t)])],
        (-0.296875, -0.28125),
        (1.0, -1.0),
        settings=_INPUT,
    ),
    "executed_shares": _Plan(
        products(share=True),
        lambda t: [(*_SQUARE, [([1], t)])],
        (-0.296875, -0.28125),
        (1.0, -1.0),
        settings=_INPUT,
        semantics=EXECUTED,
    ),
    "executed": _Plan(
        dense([2, 4, 3, 1], 2),
        lambda t: [(*_SQUARE, [([1], t)])],
        (-5.90625, -5.875),
        (-1.0, 0.0),
        settings=_INPUT,
        semantics=EXECUTED,
    ),
    "executed_neurons": _Plan(
        dense([3, 4, 4, 1], 0),
        lambda t: [(*_CUBE, [([1], t)])],
        (-1.984375, -1.921875),
        (0.9921875, 0.9765625, -1.0),
        settings=_NEURON,
        semantics=EXECUTED,
    ),
    "planes": _Plan(
        dense([4, 6, 1], 5),
        lambda t: [([-1.0] * 4, [1.0] * 4, [([1], t)])],
        (-6.25, -6.21875),
        (-1.0, -1.0, -1.0, -1.0),
        settings=_PLANES,
    ),
    "executed_planes": _Plan(
        dense([4, 6, 1], 3),
        lambda t: [([-1.0] * 4, [1.0] * 4, [([1], t)])],
        (-4.859375, -4.8125),
        (1.0, -1.0, 1.0, 1.0),
        settings=_PLANES,
        semantics=EXECUTED,
    ),
    "split_planes": _Plan(
        dense([4, 6, 1], 7),
        lambda t: [([-1.0] * 4, [1.0] * 4, [([1], t)])],
        (-4.84375, -4.8125),
        (-1.0, -1.0, 1.0, -1.0),
        settings=_PLANES,
    ),
    "sigmoid": _Plan(
        dense([2, 3, 3, 1], 3, curve="Sigmoid"),
        lambda t: [(*_SQUARE, [([1], t)])],
        (0.875, 0.921875),
        (-1.0, 1.0),
        # Optimised tangents need no split here.
        settings={**_NEURON, "slope_steps": 0, "layer_steps": 0, "branch_steps": 1},
    ),
    "waves": _Plan(
        dense([2, 3, 1], 4, curve="Cos"),
        lambda t: [(*_SQUARE, [([1], t)])],
        (-1.1875, -1.125),
        (-0.921875, -1.0),
        settings=_NEURON,
    ),
    "tables": _Plan(
        tables(
            np.array([3.0, -3.875, 0.625, -0.875, -0.625, -0.375]),
            np.array([-1.0, -0.75, -0.25, 0.25, 0.75, 1.0]),
        ),
        lambda t: [(*_SQUARE, [([0, 1], t)])],
        (-3.171875, -3.140625),
        (1.0, -1.0),
        outputs=2,
        settings=_NEURON,
    ),
    "lattice": _Plan(
        lattice(3),
        lambda t: [(*_SQUARE, [([1], t)])],
        (-0.5625, -0.53125),
        (-1.0, -0.125),
        settings=_NEURON,
    ),
    "softmax": _Plan(
        dense([2, 4, 1], 7, curve="Softmax"),
        lambda t: [(*_SQUARE, [([1], t)])],
        (-1.71875, -1.6875),
        (1.0, -1.0),
        settings=_INPUT,
    ),
}


@cache
def made(name: str) -> Made:
    """A member of the zoo, made once."""
    return PLANS[name].make()
