"""Rule R18: planes above relus hold exactly, and no hint makes a false claim true."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnxcert.checker import tilts
from onnxcert.checker.bounds import Bounder
from onnxcert.checker.errors import Rejected
from onnxcert.checker.model import read_network
from onnxcert.checker.network import Curve, Entries, Network
from onnxcert.checker.tilts import Tilt
from onnxcert.frontend.onnx import load_model
from tests import strategies
from tests.bounds.executions import Execution
from tests.checker.makers import ACCEPTED, Arrays, Header, dense, made
from tests.frontend.onnx_models import model_of
from tests.oracles import exact_values

PLANES = ["planes", "executed_planes", "split_planes"]


def single(array: Any) -> np.ndarray:
    return np.asarray(array, np.float32)


def _gemm(rng: np.random.Generator) -> onnx.ModelProto:
    return dense([4, 5, 1], int(rng.integers(1 << 30)))


def _image(rng: np.random.Generator) -> onnx.ModelProto:
    """Windows that stick out of the image, with two groups."""
    constants = {
        "w": single(rng.normal(size=(4, 1, 2, 2))),
        "b": single(rng.normal(size=4)),
        "v": single(rng.normal(size=(24, 1))),
        "shape": np.array([1, 24]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["z"], pads=[1, 0, 0, 0], group=2),
        helper.make_node("Relu", ["z"], ["h0"]),
        helper.make_node("Reshape", ["h0", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "v"], ["y"]),
    ]
    return model_of(nodes, {"x": [1, 2, 2, 4]}, ["y"], constants)


def _normalised(rng: np.random.Generator) -> onnx.ModelProto:
    """Scaled before and after the product."""
    constants = {
        "mean": single(rng.normal(size=4)),
        "std": single(rng.uniform(0.5, 2.0, size=4)),
        "w": single(rng.normal(size=(4, 5))),
        "f": single(rng.normal(size=5)),
        "o": single(rng.normal(size=5)),
        "v": single(rng.normal(size=(5, 1))),
    }
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["c"]),
        helper.make_node("Div", ["c", "std"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["p"]),
        helper.make_node("Mul", ["p", "f"], ["q"]),
        helper.make_node("Add", ["q", "o"], ["z"]),
        helper.make_node("Relu", ["z"], ["h0"]),
        helper.make_node("MatMul", ["h0", "v"], ["y"]),
    ]
    return model_of(nodes, {"x": [1, 4]}, ["y"], constants)


def _sparse(rng: np.random.Generator) -> onnx.ModelProto:
    """A matrix that is stored by its entries."""
    weight = np.zeros((80, 80))
    for row in range(80):
        weight[(row + np.arange(2)) % 80, row] = rng.normal(size=2)
    constants = {"w": single(weight), "v": single(rng.normal(size=(80, 1)))}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Relu", ["z"], ["h0"]),
        helper.make_node("MatMul", ["h0", "v"], ["y"]),
    ]
    return model_of(nodes, {"x": [1, 80]}, ["y"], constants)


MODELS = [_gemm, _image, _normalised, _sparse]


def planes(
    network: Network, low: np.ndarray, high: np.ndarray, rng: np.random.Generator, *, executed: bool
) -> tuple[Bounder, Curve, Tilt]:
    """Planes above all neurons of the first relu, with random shares."""
    bounder = Bounder(network, executed=executed)
    root = bounder.bound(low[None], high[None])
    k, block = next((k, b) for k, b in enumerate(bounder.blocks) if isinstance(b, Curve))
    position = np.arange(block.size)
    kept = tilts_possible(bounder, root, k, position)
    reads = tilts.find_reads(bounder, root, k, kept)
    codes = rng.integers(0, 256, size=int(reads.used.sum())).astype(np.uint8)
    return bounder, block, Tilt.build(bounder, root, k, kept, codes)


def tilts_possible(bounder: Bounder, root: Any, k: int, position: np.ndarray) -> np.ndarray:
    """Those that read anything."""
    kept = []
    for neuron in position.tolist():
        try:
            tilts.find_reads(bounder, root, k, np.array([neuron]))
        except Rejected:
            continue
        kept.append(neuron)
    return np.array(kept)


@pytest.mark.parametrize("executed", [False, True])
@pytest.mark.parametrize("make", MODELS)
@given(seed=strategies.seeds)
def test_planes_are_above_relus(
    make: Callable[[np.random.Generator], onnx.ModelProto], executed: bool, seed: int
) -> None:
    """At corners of the box, in exact arithmetic and in executions of binary32."""
    rng = np.random.default_rng(seed)
    model = make(rng)
    network = read_network(model.SerializeToString())
    graph = load_model(model).lowered if executed else load_model(model).graph
    center, radius = rng.normal(size=network.n_inputs), rng.uniform(0, 2, size=network.n_inputs)
    low, high = (single(center + sign * radius).astype(float) for sign in (-1, 1))
    with np.errstate(all="ignore"):
        bounder, block, tilt = planes(network, low, high, rng, executed=executed)
    assert isinstance(tilt.part.term, Entries)
    (hidden,) = (node for node in graph.nodes if node.neurons and node.neurons.label == "h0")
    place = {int(p): i for i, p in enumerate(hidden.neurons.at(np.arange(block.size)).tolist())}
    for _ in range(4):
        x = np.where(rng.random(len(low)) < 0.5, low, high)
        if executed:
            values: Any = Execution(rng).run(graph, x)
        else:
            values = exact_values(graph, x)
        scalars = scalars_of(bounder, x, values, graph, executed=executed)
        for row, neuron in enumerate(tilt.position.tolist()):
            used = tilt.reads.used[row]
            plane = Fraction(float(tilt.offset[row]))
            for j, factor in zip(tilt.reads.ids[row, used], tilt.factor[row, used], strict=True):
                plane += Fraction(float(factor)) * scalars[int(j)]
            assert Fraction(values[hidden.name][place[neuron]]) <= plane


def scalars_of(
    bounder: Bounder, x: np.ndarray, values: Any, graph: Any, *, executed: bool
) -> dict[int, Fraction]:
    """What planes may be about: the inputs, or what one product reads, in their order."""
    found = {i: Fraction(float(v)) for i, v in enumerate(x)}
    behind = [b for b in bounder.blocks[1:] if b.size == len(x)]
    if not executed:
        exact = np.array([*map(Fraction, x.tolist()), *[Fraction(0)] * bounder.network.size])
        for block in bounder.blocks[1:]:
            if not isinstance(block, Curve):
                exact[block.start : block.start + block.size] = block.values(exact)
            else:
                break
        return found | {b.start + i: exact[b.start + i] for b in behind for i in range(b.size)}
    named = {block.name: block for block in behind}
    for node in graph.nodes:
        if node.name in named:
            start = named[node.name].start
            found |= {start + i: Fraction(float(v)) for i, v in enumerate(values[node.name])}
    return found


@given(share=st.lists(st.floats(0, 1), min_size=3, max_size=3), top=st.floats(-1, 4))
def test_shares_stay_shares(share: list[float], top: float) -> None:
    with np.errstate(all="ignore"):  # as in a check
        moved = tilts._balanced(np.array([share]), np.array([[0.0, 1.0, 2.0]]), np.array([top]))
    assert ((moved >= 0) & (moved <= 1)).all()


@pytest.mark.parametrize("name", PLANES)
def test_the_certificate_needs_its_planes(name: str) -> None:
    def change(header: Header, arrays: Arrays) -> None:
        for array in ("tilt", "tilt_row", "tilt_share", "tilt_leaf"):
            del arrays[array]

    assert "tilt" in made(name).parts[1]
    assert made(name).instance.outcome(made(name).edited(change)) == "R8"


@pytest.mark.parametrize("name", PLANES)
def test_leaves_need_to_take_them(name: str) -> None:
    def change(header: Header, arrays: Arrays) -> None:
        arrays["tilt_leaf"][:] = 0

    assert made(name).instance.outcome(made(name).edited(change)) == "R8"


@pytest.mark.parametrize("name", PLANES)
def test_no_shares_prove_what_is_false(name: str, rng: np.random.Generator) -> None:
    for _ in range(20):
        shares = rng.integers(0, 256, size=made(name).parts[1]["tilt_share"].shape)

        def change(header: Header, arrays: Arrays, shares: np.ndarray = shares) -> None:
            arrays["tilt_share"] = shares.astype(np.uint8)

        assert made(name).at_sibling(made(name).edited(change)) == "R8"
        assert made(name).instance.outcome(made(name).edited(change), audit=9) in ("R8", ACCEPTED)


def _field(column: int, value: int) -> Callable[[Header, Arrays], None]:
    def change(header: Header, arrays: Arrays) -> None:
        arrays["tilt"][0, column] = value

    return change


def _one_neuron_twice(header: Header, arrays: Arrays) -> None:
    arrays["tilt_row"][1] = arrays["tilt_row"][0]


def _out_of_order(header: Header, arrays: Arrays) -> None:
    arrays["tilt_row"][:2] = arrays["tilt_row"][1::-1]


def _again(header: Header, arrays: Arrays) -> None:
    for name in ("tilt", "tilt_row", "tilt_share"):
        arrays[name] = np.concatenate([arrays[name]] * 2)


def _one_share_less(header: Header, arrays: Arrays) -> None:
    arrays["tilt"][0, 4] -= 1
    arrays["tilt_share"] = arrays["tilt_share"][1:]


def _no_neurons(header: Header, arrays: Arrays) -> None:
    arrays["tilt"][0, 3:] = 0
    arrays["tilt_row"], arrays["tilt_share"] = arrays["tilt_row"][:0], arrays["tilt_share"][:0]


def _no_such_neuron(header: Header, arrays: Arrays) -> None:
    arrays["tilt_row"][-1] = 10**6


def _neither(header: Header, arrays: Arrays) -> None:
    arrays["tilt_leaf"][0] = 2


def _one_leaf_less(header: Header, arrays: Arrays) -> None:
    arrays["tilt_leaf"] = arrays["tilt_leaf"][1:]


CHANGES = [
    (_neither, {"R18"}),
    (_one_leaf_less, {"container"}),
    (_field(0, 1), {"R8", "container"}),
    (_field(0, -1), {"R8", "container"}),
    (_field(1, 1), {"R18"}),
    (_field(1, -1), {"R18"}),
    (_field(2, 1), {"R10"}),
    (_field(2, -1), {"R18"}),
    (_field(2, 2**40), {"R10"}),
    (_field(3, -1), {"container"}),
    (_field(3, 10**6), {"container"}),
    (_field(4, -1), {"container"}),
    (_field(4, 2**62), {"container"}),
    (_one_neuron_twice, {"R18"}),
    (_out_of_order, {"R18"}),
    (_again, {"R18"}),
    (_one_share_less, {"R18"}),
    (_no_neurons, {"R18"}),
    (_no_such_neuron, {"R10"}),
]


@pytest.mark.parametrize("name", PLANES)
@pytest.mark.parametrize(("change", "rules"), CHANGES)
def test_planes_that_cannot_be(
    name: str, change: Callable[[Header, Arrays], None], rules: set[str]
) -> None:
    it = made(name)
    assert it.instance.outcome(it.edited(change)) in rules
    assert it.at_sibling(it.edited(change)) != ACCEPTED


@pytest.mark.parametrize("curve", ["Sigmoid", "LeakyRelu"])
def test_other_curves_have_no_planes(curve: str) -> None:
    model = dense([3, 4, 1], 0, curve=curve)
    bounder = Bounder(read_network(model.SerializeToString()), executed=False)
    root = bounder.bound(-np.ones((1, 3)), np.ones((1, 3)))
    k = next(k for k, b in enumerate(bounder.blocks) if isinstance(b, Curve))
    with pytest.raises(Rejected, match="R18"):
        tilts.find_reads(bounder, root, k, np.array([0]))


@pytest.mark.parametrize("name", PLANES)
def test_an_audit_tests_planes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plane that crosses its relu by little, and a bound that is none the worse for it."""
    it = made(name)
    assert it.instance.outcome(it.certificate, audit=9) == ACCEPTED
    right = Tilt.build.__func__  # type: ignore[attr-defined]

    def build(cls: Any, *arguments: Any) -> Tilt:
        tilt: Tilt = right(cls, *arguments)
        return replace(tilt, offset=tilt.offset - 1e-3)

    monkeypatch.setattr(Tilt, "build", classmethod(build))
    assert it.instance.outcome(it.certificate) == ACCEPTED
    assert it.instance.outcome(it.certificate, audit=9) == "R18"
