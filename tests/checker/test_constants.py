"""Rule R14: constants are above every slope, as exact arithmetic has them, and cannot be forged."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

import onnxcert
from onnxcert import ModelError, UnsupportedModel, UsageError
from onnxcert.arrays import Array
from onnxcert.checker import Rejected, Unusable, lipschitz
from onnxcert.checker.certificate import check_constants
from onnxcert.checker.container import CONSTANTS, FORMAT, pack, unpack
from onnxcert.checker.lipschitz import bounds
from onnxcert.checker.model import read_network
from onnxcert.checker.network import Curve, Network
from onnxcert.checker.quadratic import WIDEST, Quadratic, slope_range
from onnxcert.continuity import bound as engine
from onnxcert.continuity import certificate as writer
from onnxcert.continuity import ellipsoid
from tests import strategies
from tests.checker.makers import edited, processor_seconds
from tests.frontend.onnx_models import model_of

KINDS = ("Relu", "Relu", "LeakyRelu", "Abs", "Sigmoid", "Tanh")
EXACT = ("Relu", "Relu", "LeakyRelu", "Abs")
LAYERS = ("dense", "dense", "residual", "concat", "sorted", "maximum", "convolution", "scaled")


@dataclass
class Maker:
    """A random model under construction; ``now`` is the tensor (1, size) made last."""

    rng: np.random.Generator
    kinds: tuple[str, ...]
    size: int

    def __post_init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.stored: dict[str, Array] = {}
        self.now, self.start = "x", self.size

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0]

    def store(self, values: Array) -> str:
        name = f"c{len(self.stored)}"
        self.stored[name] = values if values.dtype.kind == "i" else values.astype(np.float32)
        return name

    def curve(self, name: str) -> str:
        kind = str(self.rng.choice(self.kinds))
        return self.node(kind, name, **({"alpha": 0.25} if kind == "LeakyRelu" else {}))

    def dense(self, name: str, size: int, into: int) -> str:
        weight = self.store(self.rng.normal(size=(size, into)) * 10.0 ** self.rng.integers(-1, 2))
        return self.node("Gemm", name, weight, self.store(self.rng.normal(size=into)))

    def layer(self, kind: str) -> None:
        into, before = int(self.rng.integers(1, 5)), self.now
        if kind == "residual":
            inner = self.curve(self.dense(before, self.size, into))
            self.now = self.node("Add", before, self.dense(inner, into, self.size))
            return
        if kind == "concat":
            parts = self.curve(self.dense(before, self.size, into)), self.curve(before)
            self.now, self.size = self.node("Concat", *parts, axis=1), into + self.size
            return
        if kind == "scaled":
            factor = self.store(self.rng.normal(size=self.size))
            self.now = self.curve(self.node("Mul", before, factor))
            return
        if kind == "convolution":
            image = self.node("Reshape", before, self.store(np.array([1, 1, self.size])))
            kernel = self.store(self.rng.normal(size=(2, 1, 3)))
            made = self.curve(self.node("Conv", image, kernel, pads=[1, 1]))
            self.now = self.node("Reshape", made, self.store(np.array([1, 2 * self.size])))
            self.size *= 2
            return
        if kind in ("sorted", "maximum"):
            wide = self.dense(before, self.size, 2 * into)
            halves = [self.node("Gather", wide, self.store(np.arange(into) + k), axis=1)
                      for k in (0, into)]  # fmt: skip
            parts = [self.node(k, *halves) for k in ("Max", "Min")]
            self.now, self.size = parts[0], into
            if kind == "sorted":
                self.now, self.size = self.node("Concat", *parts, axis=1), 2 * into
            return
        self.now, self.size = self.curve(self.dense(before, self.size, into)), into

    def model(self) -> onnx.ModelProto:
        inputs: dict[str, Any] = {"x": (1, self.start)}
        return model_of(self.nodes, inputs, [self.now], self.stored)


@st.composite
def models(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS) -> tuple[onnx.ModelProto, int]:
    """A model and a seed for what else is random."""
    seed = draw(strategies.seeds)
    maker = Maker(np.random.default_rng(seed), kinds, draw(st.integers(1, 4)))
    for layer in draw(st.lists(st.sampled_from(LAYERS), min_size=1, max_size=4)):
        maker.layer(layer)
    maker.now, maker.size = maker.dense(maker.now, maker.size, 2), 2
    return maker.model(), seed


def read(model: onnx.ModelProto) -> Network:
    return read_network(model.SerializeToString())


def change(network: Network, first: Array, second: Array) -> list[Fraction]:
    """How far the outputs move, exactly where the curves allow it."""
    exact = all(b.kind not in ("sigmoid", "tanh") for b in network.blocks if isinstance(b, Curve))
    if not exact:
        values = network.forward(np.stack([first, second]))
        return [Fraction(float(a)) - Fraction(float(b)) for a, b in zip(*values, strict=True)]
    runs = [network.evaluate([Fraction(float(v)) for v in x]) for x in (first, second)]
    return [a - b for a, b in zip(*runs, strict=True)]


def assert_above(network: Network, made: tuple[Array, Array], norm: str, pairs: Array) -> None:
    """No pair of points (P, 2, n) moves an output, or a difference of two, further than bounded."""
    for first, second in pairs:
        step = [Fraction(float(a)) - Fraction(float(b)) for a, b in zip(first, second, strict=True)]
        square = sum((s * s for s in step), Fraction(0))
        sizes = [abs(s) for s in step]
        reach = {"2": square, "inf": max(sizes) ** 2, "1": sum(sizes, Fraction(0)) ** 2}[norm]
        moved = change(network, first, second)
        smooth = any(b.kind in ("sigmoid", "tanh") for b in network.blocks if isinstance(b, Curve))
        # float64 values of smooth curves are off by some 1e-15 of what is summed.
        slack = Fraction(1e-11) * (1 + Fraction(float(made[0].max()))) if smooth else Fraction(0)
        forms = [
            (moved[0], made[0][0]),
            (moved[1], made[0][1]),
            (moved[0] - moved[1], made[1][0, 1]),
        ]
        for value, limit in forms:
            most = Fraction(float(limit)) ** 2 * reach
            assert max(abs(value) - slack, Fraction(0)) ** 2 <= most, (float(value), float(limit))


def proved(network: Network, rng: np.random.Generator, norm: str, domain: Any = None) -> Any:
    """Constants for random multipliers, falling from curve to curve ever faster until some do."""
    form = Quadratic(network)
    weights = rng.uniform(0.2, 2.0, size=network.n_inputs)
    sizes = [block.size for block in form.curves]
    depth = np.repeat(np.arange(len(sizes)), sizes)
    multipliers = 10.0 ** rng.uniform(-1, 1, size=form.neurons)
    for power in range(8):
        try:
            return bounds(network, norm, domain, multipliers * 0.03 ** (power * depth), weights)
        except Rejected:
            multipliers = multipliers * 0.2
    return None


@given(case=models(), norm=st.sampled_from(lipschitz.NORMS), near=st.booleans())
def test_constants_are_above_all_slopes(
    case: tuple[onnx.ModelProto, int], norm: str, near: bool
) -> None:
    model, seed = case
    network, rng = read(model), np.random.default_rng(seed)
    made = proved(network, rng, norm)
    assert made is not None
    pairs = rng.normal(size=(8, 2, network.n_inputs)) * 10.0 ** rng.integers(-2, 3, size=(8, 1, 1))
    if near:  # slopes are steepest between neighbours
        pairs[:, 1] = pairs[:, 0] + 1e-3 * rng.normal(size=pairs[:, 0].shape)
    assert_above(network, made, norm, pairs)


@given(case=models(), ends=st.tuples(st.floats(-3, 3), st.floats(0, 2)))
def test_constants_on_a_domain(
    case: tuple[onnx.ModelProto, int], ends: tuple[float, float]
) -> None:
    model, seed = case
    network, rng = read(model), np.random.default_rng(seed)
    domain = [ends[0], ends[0] + ends[1]]
    made = proved(network, rng, "2", domain)
    assert made is not None
    pairs = rng.uniform(*domain, size=(8, 2, network.n_inputs))
    pairs[0], pairs[1, 0] = domain[0], domain[1]
    assert_above(network, made, "2", np.clip(pairs, *domain))
    wide = proved(network, np.random.default_rng(seed), "2")
    assert wide is not None


def chain(rng: np.random.Generator, sizes: list[int]) -> tuple[onnx.ModelProto, list[Array]]:
    """A chain of rectifiers, and its matrices (out, in)."""
    maker = Maker(rng, ("Relu",), sizes[0])
    for into in sizes[1:-1]:
        maker.now, maker.size = maker.curve(maker.dense(maker.now, maker.size, into)), into
    maker.now = maker.dense(maker.now, maker.size, sizes[-1])
    model = maker.model()
    return model, [v.T.astype(np.float64) for v in maker.stored.values() if v.ndim == 2]


def solved(matrix: list[list[Fraction]], right: list[Fraction]) -> tuple[list[Fraction], bool]:
    """The solution of a system over the rationals, and whether all pivots are positive."""
    rows = [[*line, value] for line, value in zip(matrix, right, strict=True)]
    positive = True
    for k, line in enumerate(rows):
        positive &= line[k] > 0
        if not positive:
            return [], False
        for other in rows[:k] + rows[k + 1 :]:
            factor = other[k] / line[k]
            if factor:
                other[k:] = [a - factor * b for a, b in zip(other[k:], line[k:], strict=True)]
    return [line[-1] / line[k] for k, line in enumerate(rows)], positive


@pytest.mark.parametrize("seed", range(6))
def test_exact_arithmetic_agrees(seed: int) -> None:
    """P and c P^-1 c of a chain, written down here and solved over the rationals."""
    rng = np.random.default_rng(seed)
    sizes = [int(rng.integers(1, 5)) for _ in range(int(rng.integers(3, 6)))]
    model, weights = chain(rng, sizes)
    count = sum(sizes[:-1])
    multipliers = 10.0 ** rng.uniform(-6, -4, size=count - sizes[0])
    shares = rng.uniform(0.5, 2.0, size=sizes[0])
    exact = [[Fraction(0)] * count for _ in range(count)]
    for i, share in enumerate(shares):
        exact[i][i] = Fraction(float(share))
    before, now = 0, sizes[0]
    for weight in weights[:-1]:
        for i in range(len(weight)):
            t = Fraction(float(multipliers[now - sizes[0] + i]))
            exact[now + i][now + i] += t
            for j in range(weight.shape[1]):
                part = t * Fraction(float(weight[i, j])) / 2
                exact[now + i][before + j] -= part
                exact[before + j][now + i] -= part
        before, now = now, now + len(weight)
    network = read(model)
    forms = [[Fraction(0)] * before + [Fraction(float(w)) for w in row] for row in weights[-1]]
    _, positive = solved(exact, forms[0])
    if not positive:
        with pytest.raises(Rejected):
            bounds(network, "inf", None, multipliers, shares)
        return
    outputs, pairs = bounds(network, "inf", None, multipliers, shares)
    reach = sum((Fraction(float(share)) for share in shares), Fraction(0))

    def square(form: list[Fraction]) -> Fraction:
        found, _ = solved(exact, form)
        return reach * sum((a * b for a, b in zip(form, found, strict=True)), Fraction(0))

    for i, form in enumerate(forms):
        assert 0 <= float(Fraction(float(outputs[i])) ** 2 / square(form) - 1) < 1e-9
        for j in range(i):
            both = [a - b for a, b in zip(form, forms[j], strict=True)]
            assert 0 <= float(Fraction(float(pairs[i, j])) ** 2 / square(both) - 1) < 1e-9


@pytest.mark.parametrize("kind", ["sigmoid", "tanh"])
@given(ends=strategies.intervals(60.0), share=st.floats(0, 1))
def test_slopes_of_smooth_curves(kind: str, ends: tuple[float, float], share: float) -> None:
    low, high = (np.array([end]) for end in ends)
    block = Curve(0, 1, "", kind, np.zeros(1, np.int64), None, "")
    least, most = slope_range(block, low, high)
    x = np.longdouble(ends[0]) + np.longdouble(share) * (
        np.longdouble(ends[1]) - np.longdouble(ends[0])
    )
    x = min(max(x, np.longdouble(ends[0])), np.longdouble(ends[1]))
    inner = x / 2 if kind == "sigmoid" else x
    slope = 1 / np.cosh(inner) ** 2 / (4 if kind == "sigmoid" else 1)
    assert least[0] <= slope <= most[0]
    assert most[0] <= (0.25 if kind == "sigmoid" else 1.0)


# Known answers


def constants_of(model: onnx.ModelProto, **options: Any) -> tuple[Any, Any]:
    """(what the engine says, what the checker says of its certificate)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "proof"
        bound = onnxcert.lipschitz(model, certificate=path, **options)
        return bound, check_constants(path.read_bytes(), model.SerializeToString())


def test_a_sum_of_both_is_two() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("Add", ["h", "h"], ["y"]),
    ]
    bound, verified = constants_of(model_of(nodes, {"x": (1, 1)}, ["y"]))
    assert verified.claims[:3] == ("real", "norm 2", "for all inputs")
    assert 2.0 <= bound.outputs[0] < 2.0 + 1e-6


def test_sorted_pairs_keep_lengths() -> None:
    maker = Maker(np.random.default_rng(0), ("Relu",), 8)
    for _ in range(3):
        halves = [
            maker.node("Gather", maker.now, maker.store(np.arange(k, 8, 2)), axis=1) for k in (0, 1)
        ]
        parts = [maker.node(kind, *halves) for kind in ("Max", "Min")]
        both = maker.node("Concat", *parts, axis=1)
        turn = np.linalg.qr(maker.rng.normal(size=(8, 8)))[0]
        maker.now = maker.node("Gemm", both, maker.store(turn), maker.store(np.zeros(8)))
    bound, _ = constants_of(maker.model(), method="refined")
    assert (bound.outputs >= 1.0 - 1e-6).all()
    assert (bound.outputs < 1.02).all()
    form = Quadratic(read(maker.model()))
    assert (form.count, form.neurons, len(form.twin)) == (8 + 12, 24, 12)


@pytest.mark.parametrize("factor", [-1.0, -1.0 - 2.0**-23, 1.0, 2.0])
def test_only_exact_opposites_are_twins(factor: float) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["other"]),
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["other"], ["b"]),
        helper.make_node("Sub", ["a", "b"], ["y"]),
    ]
    constants = {"factor": np.array([factor], np.float32)}
    model = model_of(nodes, {"x": (1, 3)}, ["y"], constants)
    form = Quadratic(read(model))
    assert bool(form.twin) == (abs(factor) == 1)
    made = proved(read(model), np.random.default_rng(0), "2")
    points = np.random.default_rng(1).normal(size=(16, 2, 3))
    for first, second in points:
        moved = change(read(model), first, second)
        length = Fraction(float(np.square(first - second).sum())) * Fraction(1 + 1e-12)
        for value, limit in zip(moved, made[0], strict=True):
            assert value**2 <= Fraction(float(limit)) ** 2 * length


@pytest.mark.parametrize("kind", ["Sign", "Sqrt", "Floor"])
def test_jumps_and_strangers_are_refused(kind: str) -> None:
    model = model_of([helper.make_node(kind, ["x"], ["y"])], {"x": (1, 2)}, ["y"])
    with pytest.raises(Unusable):
        bounds(read(model), "2", None, np.ones(2), np.ones(2))
    if kind == "Sign":  # a constant where it does not jump
        outputs, _ = bounds(read(model), "2", [1.0, 2.0], np.ones(2), np.ones(2))
        assert (outputs < 1e-100).all()


def test_networks_that_are_too_large_are_refused() -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": (1, WIDEST + 1)}, ["y"])
    with pytest.raises(Unusable, match="the most is"):
        Quadratic(read(model))
    repeated = {"count": np.array([WIDEST + 1, 1])}
    wide = [helper.make_node("Expand", ["x", "count"], ["y"])]
    with pytest.raises(Unusable, match="the most is"):
        Quadratic(read(model_of(wide, {"x": (1, 1)}, ["y"], repeated)))
    with pytest.raises(UnsupportedModel, match="the most is"):
        onnxcert.lipschitz(model_of([helper.make_node("Relu", ["x"], ["h"]),
            helper.make_node("ReduceSum", ["h"], ["y"], keepdims=0)], {"x": (1, WIDEST)}, ["y"]),
            certificate="/dev/null")  # fmt: skip


def test_forms_of_many_blocks_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    shift = {"one": np.ones((1, 8), np.float32), "two": np.full((1, 8), 2.0, np.float32)}
    nodes = [helper.make_node("Mul", ["x", "two"], [f"h{i}"]) for i in range(6)]
    nodes.append(helper.make_node("Sum", [f"h{i}" for i in range(6)], ["y"]))
    form = Quadratic(read(model_of(nodes, {"x": (1, 8)}, ["y"], shift)))
    form.assemble(np.zeros(0))
    monkeypatch.setattr("onnxcert.checker.quadratic._MOST_HELD", 5 * 8 * 8)
    with pytest.raises(Unusable, match="forms at once"):
        form.assemble(np.zeros(0))


# Forgeries


def header_of(model: onnx.ModelProto, domain: list[float] | None = None) -> dict[str, object]:
    return {
        "format": FORMAT,
        "verdict": "lipschitz",
        "semantics": "real",
        "model_sha256": hashlib.sha256(model.SerializeToString()).hexdigest(),
        "tool": {},
        "norm": "2",
        "domain": domain,
    }


@cache
def honest() -> tuple[onnx.ModelProto, bytes]:
    """A model and its certificate, whose constants are the checker's own."""
    model, _ = chain(np.random.default_rng(5), [4, 6, 5, 3])
    found = constants_of(model, method="recursion")[0]
    network = read(model)
    t = writer._known(
        network,
        engine.Network.read(found.model.graph),
        writer.Hints(found.multipliers, np.ones(4)),
    )
    outputs, pairs = bounds(network, "2", None, t, np.ones(4))
    arrays = {
        "multiplier": t,
        "share": np.ones(4),
        "outputs": outputs,
        "pairs": pairs[np.tril_indices(3, -1)],
    }
    return model, pack(header_of(model), arrays)


def answer(certificate: bytes) -> str:
    """``VERIFIED ...``, or the rule that is broken."""
    try:
        return str(check_constants(certificate, honest()[0].SerializeToString()))
    except Rejected as rejected:
        return rejected.rule
    except Unusable as unusable:
        return str(unusable)


def altered(name: str, change: Callable[[Array], Array]) -> str:
    def edit(header: dict[str, Any], arrays: dict[str, Array]) -> None:
        arrays[name] = change(arrays[name].copy())

    return answer(edited(honest()[1], edit))


def restated(**values: object) -> str:
    return answer(edited(honest()[1], lambda header, arrays: header.update(values)))


def at(position: int, value: float) -> Callable[[Array], Array]:
    def put(array: Array) -> Array:
        array[position] = value
        return array

    return put


def test_the_honest_one_is_accepted() -> None:
    assert answer(honest()[1]).startswith("VERIFIED LIPSCHITZ (real, norm 2, for all inputs")


@pytest.mark.parametrize("name", ["outputs", "pairs"])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_38_claims_below_what_is_proved(name: str, position: int) -> None:
    for share in (1e-6, 1e-9, 0.1, 1.0):
        low = lambda a: at(position, a[position] * (1 - share))(a)  # noqa: B023, E731
        assert altered(name, low) == "R14"
    assert altered(name, lambda a: np.nextafter(a, 0)) == "R14"
    assert altered(name, lambda a: a * 1.5).startswith("VERIFIED")


@pytest.mark.parametrize("name", list(CONSTANTS))
@pytest.mark.parametrize("value", [-1.0, -0.0, math.nan, math.inf, -math.inf, 0.0, 5e-324, 1e300])
def test_39_numbers_that_are_none(name: str, value: float) -> None:
    """Multipliers and weights may be any; a wrong one proves less."""
    found = altered(name, at(1, value))
    larger = name in ("outputs", "pairs") and value == 1e300
    assert found.startswith("VERIFIED") if larger else found == "R14"


def test_40_what_was_seen_is_no_bound() -> None:
    found = onnxcert.lipschitz(honest()[0])
    assert (found.seen_outputs < found.outputs).all()
    assert altered("outputs", lambda a: found.seen_outputs) == "R14"


@given(seed=strategies.seeds)
def test_other_multipliers_prove_no_less_than_what_is_true(seed: int) -> None:
    """Whatever is accepted is above what a network does."""
    rng = np.random.default_rng(seed)
    model, data = honest()
    _, arrays = unpack(data)
    name = str(rng.choice(["multiplier", "share"]))
    chosen = rng.random(len(arrays[name])) < rng.choice([0.1, 0.5, 1.0])
    values = np.where(chosen, arrays[name] * 10.0 ** rng.uniform(-2, 2), arrays[name])
    hints = [values if key == name else arrays[key] for key in ("multiplier", "share")]
    try:
        made = bounds(read(model), "2", None, *hints)
    except Rejected:
        return
    pairs = rng.normal(size=(6, 2, 4))
    assert_above(read(model), made, "2", pairs)


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"norm": "inf"}, "R14"),
        ({"norm": 2}, "R14"),
        ({"norm": ["2"]}, "R14"),
        ({"norm": "3"}, "R14"),
        ({"domain": [1.0, 0.0]}, "R14"),
        ({"domain": [0, 1]}, "R14"),
        ({"domain": [0.0]}, "R14"),
        ({"domain": [0.0, math.nan]}, "R14"),
        ({"domain": [0.0, math.inf]}, "R14"),
        ({"domain": "everywhere"}, "R14"),
        ({"semantics": "ieee32-any-order"}, "R0"),
        ({"semantics": None}, "R0"),
        ({"model_sha256": "0" * 64}, "R0"),
        ({"model_sha256": None}, "R0"),
        ({"format": "onnxcert-2"}, "container"),
        ({"verdict": "unsat"}, "container"),
        ({"verdict": "sat"}, "container"),
        ({"verdict": ["lipschitz"]}, "container"),
        ({"spec_sha256": "0" * 64}, "container"),
        ({"layers": []}, "container"),
        ({"trusted": True}, "container"),
    ],
    ids=str,
)
def test_other_headers(values: dict[str, object], rule: str) -> None:
    assert restated(**values) == rule


def test_weaker_claims_are_accepted() -> None:
    assert restated(norm="1").startswith("VERIFIED LIPSCHITZ (real, norm 1, for all inputs")
    assert restated(domain=[-1.0, 1.0]).startswith("VERIFIED LIPSCHITZ (real, norm 2, for inputs")


def test_constants_of_a_domain_are_not_those_everywhere() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    model = model_of(nodes, {"x": (1, 2)}, ["y"])
    data, header = model.SerializeToString(), header_of(model, [-2.0, -1.0])
    tiny = np.full(2, 1e-9)
    arrays = {"multiplier": np.ones(2), "share": np.ones(2), "outputs": tiny, "pairs": tiny[:1]}
    assert "for inputs in [-2.0, -1.0]" in str(check_constants(pack(header, arrays), data))
    with pytest.raises(Rejected, match="R14"):
        check_constants(pack(header | {"domain": None}, arrays), data)


@pytest.mark.parametrize("name", list(CONSTANTS))
def test_arrays_of_other_shapes(name: str) -> None:
    assert altered(name, lambda a: a[:-1]) == "R14"
    assert altered(name, lambda a: np.append(a, a[-1])) == "R14"
    assert altered(name, lambda a: a[:0]) == "R14"
    assert altered(name, lambda a: a[:, None]) == "container"
    assert altered(name, lambda a: a.astype(np.float32)) == "container"
    assert altered(name, lambda a: a.astype(">f8")) == "container"

    def drop(header: dict[str, Any], arrays: dict[str, Array]) -> None:
        del arrays[name]

    def add(header: dict[str, Any], arrays: dict[str, Array]) -> None:
        arrays["proved"] = np.ones(1)

    assert answer(edited(honest()[1], drop)) == "container"
    assert answer(edited(honest()[1], add)) == "container"


def test_huge_arrays_are_refused_quickly() -> None:
    with processor_seconds(20.0):
        for name in CONSTANTS:
            assert altered(name, lambda a: np.ones(1 << 23)) == "R14"
            assert altered(name, lambda a: np.ones((1 << 24) + 1)) == "container"


def test_truncated_files() -> None:
    data = honest()[1]
    for end in range(0, len(data), 37):
        assert answer(data[:end]) == "container"
    for at_byte in range(0, len(data), 11):
        changed = bytearray(data)
        changed[at_byte] ^= 0x20
        found = answer(bytes(changed))
        assert found in ("container", "R0", "R14") or found.startswith("VERIFIED")
        if found.startswith("VERIFIED"):  # dates and the like in the archive
            assert unpack(bytes(changed))[1].keys() == CONSTANTS.keys()
            for name, values in unpack(bytes(changed))[1].items():
                assert (values == unpack(data)[1][name]).all()


def test_another_model_is_refused() -> None:
    model, data = honest()
    other = onnx.ModelProto.FromString(model.SerializeToString())
    other.producer_name = "another"
    with pytest.raises(Rejected, match="R0"):
        check_constants(data, other.SerializeToString())


def test_a_larger_network_under_the_same_proof() -> None:
    """Hashes made to fit: the multipliers of one network prove nothing false of another."""
    _, data = honest()
    header, arrays = unpack(data)
    for seed in range(5):
        other, _ = chain(np.random.default_rng(seed + 50), [4, 6, 5, 3])
        text = other.SerializeToString()
        header["model_sha256"] = hashlib.sha256(text).hexdigest()
        truth = onnxcert.lipschitz(other).seen_outputs
        try:
            check_constants(pack(header, arrays), text)
        except Rejected:
            continue
        assert (arrays["outputs"] >= truth).all()


@pytest.mark.parametrize("size", [1e-30, 1e20, 1e38])
def test_extreme_weights(size: float) -> None:
    """Accepted with something that is true, or refused; no crash."""
    rng = np.random.default_rng(0)
    maker = Maker(rng, ("Relu",), 3)
    for _ in range(3):
        weight = maker.store(rng.normal(size=(3, 3)) * size)
        made = maker.node("MatMul", maker.now, weight)
        maker.now = maker.node("Relu", made)
    model = maker.model()
    try:
        bound, _ = constants_of(model)
    except ModelError:  # of the file's own arithmetic, too
        return
    assert (bound.outputs >= bound.seen_outputs * (1 - 1e-9)).all()


def test_a_steep_layer_behind_a_flat_line() -> None:
    """What is rounded below 1e-308 in a line counts a lot once it is multiplied by 1e308."""
    flat, steep = 5 * 2.0**-1074, 1e308
    nodes = [
        helper.make_node("MatMul", ["x", "half"], ["z"]),
        helper.make_node("PRelu", ["z", "flat"], ["h"]),
        helper.make_node("MatMul", ["h", "steep"], ["y"]),
    ]
    stored = {"half": np.array([[0.5]]), "flat": np.array([flat]), "steep": np.array([[steep]])}
    model = model_of(nodes, {"x": (1, 1)}, ["y"], stored, element=TensorProto.DOUBLE)
    outputs, _ = bounds(read(model), "2", [-1.0, -0.5], np.ones(1), np.ones(1))
    assert Fraction(float(outputs[0])) >= Fraction(1, 2) * Fraction(flat) * Fraction(steep)


def test_weights_whose_sum_overflows() -> None:
    model = model_of([helper.make_node("ReduceSum", ["x"], ["y"])], {"x": (1, 2)}, ["y"])
    outputs, _ = bounds(read(model), "inf", None, np.zeros(0), np.full(2, 1.7e308))
    assert not (outputs < np.inf).any()


def test_multipliers_whose_products_underflow() -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": (1, 1)}, ["y"])
    for tiny in (0.0, 2.0**-1074, 1e-300, 1e-201):
        with pytest.raises(Rejected, match="positive definite"):
            bounds(read(model), "2", None, np.full(1, tiny), np.ones(1))


# Engines with bugs


def claims_below(monkeypatch: pytest.MonkeyPatch, model: onnx.ModelProto) -> None:
    """The engine's word is what is claimed: the checker refuses it."""
    monkeypatch.setattr(writer, "_joined", lambda known, proved: known)
    with pytest.raises(UnsupportedModel, match="R14"):
        constants_of(model, method="recursion")


def test_the_word_of_a_sound_engine_is_nearly_enough() -> None:
    found = onnxcert.lipschitz(honest()[0], method="recursion")
    claims = found.outputs * (1 + 1e-8)
    assert altered("outputs", lambda a: claims).startswith("VERIFIED")


def test_bug_slopes_are_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    true = engine.Network.read

    def read_wrongly(*arguments: Any) -> Any:
        network = true(*arguments)
        for slopes in network.slopes.values():
            slopes.high[:] *= 0.9
            slopes.mid[:] *= 0.9
            slopes.rad[:] *= 0.9
        return network

    monkeypatch.setattr(engine.Network, "read", read_wrongly)
    claims_below(monkeypatch, honest()[0])


def test_bug_a_weight_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    true = ellipsoid.pair_constants
    monkeypatch.setattr(engine, "pair_constants", lambda matrix: 0.999 * true(matrix))
    claims_below(monkeypatch, honest()[0])


def test_bug_the_inverse_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ellipsoid, "_grown", lambda block, rows: np.zeros((rows.shape[1],) * 2))
    claims_below(monkeypatch, honest()[0])


def test_a_wrong_engine_does_not_make_wrong_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is, the larger of both is claimed."""
    truth = onnxcert.lipschitz(honest()[0], method="recursion")
    monkeypatch.setattr(ellipsoid, "_grown", lambda block, rows: np.zeros((rows.shape[1],) * 2))
    bound, _ = constants_of(honest()[0], method="recursion")
    assert (bound.outputs >= truth.seen_outputs).all()
    assert (bound.pairs >= truth.seen_pairs).all()


# The command


def test_a_specification_is_missing_or_too_much(tmp_path: Path) -> None:
    model, data = honest()
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "p").write_bytes(data)
    spec = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= X_0 0))(assert (>= X_0 0))"
    (tmp_path / "s.vnnlib").write_text(spec)
    assert str(onnxcert.check(tmp_path / "p", tmp_path / "m.onnx")).startswith("VERIFIED LIPSCHITZ")
    with pytest.raises(Unusable):
        onnxcert.check(tmp_path / "p", tmp_path / "m.onnx", tmp_path / "s.vnnlib")
    with pytest.raises(Rejected):
        onnxcert.check(tmp_path / "p", tmp_path / "m.onnx", semantics="ieee32-any-order")


def test_nothing_is_written_where_nothing_is_proved(tmp_path: Path) -> None:
    path = tmp_path / "proof"
    model = model_of([helper.make_node("Sign", ["x"], ["y"])], {"x": (1, 2)}, ["y"])
    with pytest.raises(UnsupportedModel):
        onnxcert.lipschitz(model, certificate=path)
    assert not path.exists()
    with pytest.raises(UsageError):
        onnxcert.lipschitz(honest()[0], certificate=tmp_path)


def test_the_bytes_are_the_same_every_time() -> None:
    first, second = (constants_of(honest()[0], method="recursion")[0] for _ in range(2))
    assert first.proof.bytes == second.proof.bytes
    assert json.dumps(first.outputs.tolist()) == json.dumps(second.outputs.tolist())
