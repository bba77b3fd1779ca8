"""Rule R21: what no row depends on is left out, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnxcert.checker import container
from onnxcert.checker.bounds import Bounder
from onnxcert.checker.certificate import EXECUTED, REAL, Session
from onnxcert.checker.errors import Unusable
from onnxcert.checker.model import read_network
from onnxcert.checker.needed import needed
from onnxcert.checker.network import Affine, Curve, Entries, Network, Pair, Product
from onnxcert.checker.trees import Refusal
from tests.checker.makers import ACCEPTED, Instance, by_hand, coarse, prove, spec
from tests.checker.test_bounds import EXACT_MODELS, boxes, scalars, windows
from tests.frontend.onnx_models import model_of


def towers(seed: int, *, sparse: bool = False) -> onnx.ModelProto:
    """Two outputs: squares of relus of the first half of a layer, and relus of the second."""
    rng = np.random.default_rng(seed)
    size = 200 if sparse else 8
    wide = (np.round(8 * rng.normal(size=(2, size))) / 8).astype(np.float32)
    apart = np.zeros((size, size), np.float32)
    half = size // 2
    if sparse:
        apart[np.arange(size), np.arange(size)] = 1.0
        apart[0, 1], apart[half, half + 1] = -0.5, 0.25
    else:
        apart[:half, :half], apart[half:, half:] = (
            np.round(4 * rng.normal(size=(2, half, half))) / 4
        )
    constants = {
        "w": wide,
        "a": apart,
        "halves": np.array([half, half]),
        "one": np.ones((half, 1), np.float32),
        "quarter": np.full(1, 0.25, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Add", ["z", "quarter"], ["b"]),
        helper.make_node("MatMul", ["b", "a"], ["c"]),
        helper.make_node("Relu", ["c"], ["h"]),
        helper.make_node("Split", ["h", "halves"], ["left", "right"], axis=1),
        helper.make_node("LeakyRelu", ["left"], ["l"]),
        helper.make_node("Mul", ["l", "left"], ["p"]),
        helper.make_node("MatMul", ["p", "one"], ["first"]),
        helper.make_node("Abs", ["right"], ["s"]),
        helper.make_node("MatMul", ["s", "one"], ["second"]),
        helper.make_node("Concat", ["first", "second"], ["y"], axis=1),
    ]
    return model_of(nodes, {"x": [1, 2]}, ["y"], constants)


def images(seed: int) -> onnx.ModelProto:
    """Convolutions of two groups, a stride, a shortcut and one transposed; images are the output.

    Every output is seen by windows of its own.
    """
    rng = np.random.default_rng(seed)
    shapes = {"w": (2, 1, 3, 3), "v": (2, 2, 1, 1), "u": (2, 1, 2, 2), "b": (2,)}
    constants = {
        name: (np.round(4 * rng.normal(size=shape)) / 4).astype(np.float32)
        for name, shape in shapes.items()
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["z"], pads=[1, 1, 1, 1], group=2),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("Conv", ["h", "v"], ["c"]),
        helper.make_node("Add", ["c", "z"], ["s"]),
        helper.make_node("Relu", ["s"], ["k"]),
        helper.make_node("Conv", ["k", "v"], ["d"], strides=[2, 2]),
        helper.make_node("Relu", ["d"], ["l"]),
        helper.make_node("ConvTranspose", ["l", "u"], ["t"], strides=[2, 2]),
        helper.make_node("Flatten", ["t"], ["y"]),
    ]
    return model_of(nodes, {"x": [1, 2, 4, 4]}, ["y"], constants)


MODELS = {
    **EXACT_MODELS,
    "images": images,
    "windows": windows,
    "towers": towers,
    "sparse": lambda seed: towers(seed, sparse=True),
}


def network_of(model: onnx.ModelProto) -> Network:
    return read_network(model.SerializeToString())


def exact_outputs(network: Network, x: Sequence[float]) -> list[Fraction]:
    return network.evaluate([Fraction(value) for value in x])


@pytest.mark.parametrize("executed", [False, True])
@pytest.mark.parametrize("name", MODELS)
@given(data=st.data(), seed=st.integers(0, 30))
def test_the_same_outputs(name: str, data: st.DataObject, seed: int, executed: bool) -> None:
    network = network_of(MODELS[name](seed))
    read = np.array([data.draw(st.booleans()) for _ in network.output])
    smaller = needed(network, read, executed=executed)
    x = [data.draw(st.integers(-16, 16)) / 8 for _ in range(network.n_inputs)]
    try:
        before, after = exact_outputs(network, x), exact_outputs(smaller, x)
    except Unusable:  # smooth
        before, after = (list(n.forward(np.array([x]))[0]) for n in (network, smaller))
        np.testing.assert_allclose(np.where(read, before, 0), after, rtol=1e-12)
    else:
        assert after == [y if r else 0 for y, r in zip(before, read, strict=True)]


@pytest.mark.parametrize("executed", [False, True])
@pytest.mark.parametrize("name", MODELS)
@given(data=st.data(), seed=st.integers(0, 30))
def test_bounds_of_what_is_left(name: str, data: st.DataObject, seed: int, executed: bool) -> None:
    network = network_of(MODELS[name](seed))
    low, high, points = data.draw(boxes(network.n_inputs))
    read = np.array([True, data.draw(st.booleans())] + [True] * (len(network.output) - 2))
    bounder = Bounder(network, executed=executed, read=read)
    with np.errstate(all="ignore"):
        r = bounder.bound(np.array([low]), np.array([high]))
    for x in points:
        for value, a, b in zip(scalars(bounder, x), r.lower[0], r.upper[0], strict=True):
            assert Fraction(float(a)) <= value <= Fraction(float(b))


def sizes(network: Network) -> dict[str, int]:
    """Neurons and pairs by label."""
    return {b.label: b.size for b in network.blocks if isinstance(b, Curve | Pair)}


@pytest.mark.parametrize("sparse", [False, True])
def test_each_tower_by_itself(sparse: bool) -> None:
    network, half = network_of(towers(0, sparse=sparse)), 100 if sparse else 4
    first, second = (
        needed(network, np.array(read), executed=False) for read in ([True, False], [False, True])
    )
    assert sizes(first) == {"h": half, "l": half, "p": half}
    assert sizes(second) == {"h": half, "s": half}
    kind = Entries if sparse else Product
    inner = [t for b in first.blocks if isinstance(b, Affine) for t in b.terms]
    assert any(isinstance(term, kind) for term in inner)
    (relu,) = (b for b in second.blocks if isinstance(b, Curve) and b.label == "h")
    assert relu.positions == 2 * half
    expected = [-1] * half + list(range(half))
    assert relu.at(np.arange(2 * half)).tolist() == expected


def test_executions_multiply_by_zero() -> None:
    """What has overflowed times zero is no number: over the dense matrix both towers read all."""
    network = network_of(towers(0))
    read = np.array([True, False])
    assert needed(network, read, executed=True).blocks[1].size == 8
    assert needed(network, read, executed=False).blocks[1].size == 4


def test_what_is_seen_through_a_matrix_stays_whole() -> None:
    network = network_of(windows(0))
    assert needed(network, np.array([True, False]), executed=False).size == network.size - 1


@pytest.mark.parametrize("executed", [False, True])
def test_positions_go_that_no_window_sees(executed: bool) -> None:
    """An entry at a corner is made from one position of the last layer, of the others from one too,
    and of the first convolution from that under its kernel."""
    network = network_of(images(0))
    read = np.arange(len(network.output)) == 0
    made = needed(network, read, executed=executed)
    assert sizes(network) == {"h": 32, "k": 32, "l": 8}
    assert sizes(made) == {"h": 2, "k": 2, "l": 2}
    seen = [
        t.image
        for b in made.blocks
        if isinstance(b, Affine)
        for t in b.terms
        if isinstance(t, Product)
    ]
    assert seen[0] is not None
    assert seen[0].shape == (2, 1, 4)  # two by two pixels under the kernel at the corner


def test_a_factor_that_is_zero_but_not_exactly_counts() -> None:
    network = network_of(towers(0))
    (at,) = (k for k, b in enumerate(network.blocks) if isinstance(b, Affine) and b.name == "c")
    block = network.blocks[at]
    assert isinstance(block, Affine)
    (term,) = block.terms
    assert isinstance(term, Product)
    blocks = list(network.blocks)
    unsure = Product(term.ids, term.weight, error=np.full(term.weight.shape, 1e-9))
    blocks[at] = Affine(block.start, block.size, block.name, (unsure,), None, None, 0)
    other = Network(
        blocks, network.inputs, 2, network.output, network.size, network.outputs, binary32=True
    )
    made = needed(other, np.array([True, False]), executed=False)
    (part,) = (b for b in made.blocks if isinstance(b, Affine) and b.name == "c")
    assert isinstance(part.terms[0], Product)
    assert part.terms[0].weight.shape == (1, 4, 8)
    assert part.terms[0].error is not None
    assert part.terms[0].error.shape == (1, 4, 8)


def asked(bound: float, *, output: int, sign: float = 1.0) -> Instance:
    """Is an output, or minus that, at most a bound?"""
    row = [0.0, 0.0]
    row[output] = sign
    model = towers(3).SerializeToString()
    return Instance(model, spec(([-1.0, -1.0], [1.0, 1.0], [(row, bound)]), outputs=2))


@contextmanager
def never_whole() -> Iterator[None]:
    """Checks that need the whole network fail."""
    bounder = Session.bounder

    def refuse(session: Session, **options: Any) -> Bounder:
        assert not options.get("whole")
        return bounder(session, **options)

    with mock.patch.object(Session, "bounder", refuse):
        yield


@pytest.mark.parametrize("semantics", [REAL, EXECUTED])
@pytest.mark.parametrize("output", [0, 1])
def test_one_output_is_asked_for(output: int, semantics: str) -> None:
    """Both are sums of what is not negative."""
    instance = asked(-0.5, output=output)
    with never_whole():
        assert instance.outcome(prove(instance, semantics=semantics)) == ACCEPTED
    solved = asked(1000.0, output=output)
    assert solved.outcome(by_hand(solved, semantics=semantics)) == "R8"


@pytest.mark.parametrize("semantics", [REAL, EXECUTED])
@pytest.mark.parametrize("splitting", ["neuron", "input"])
def test_one_pixel_is_asked_for(splitting: str, semantics: str) -> None:
    """It is made from nine pixels of each channel; a bound that an input reaches is not proved."""
    network = network_of(images(3))
    row = [0.0] * len(network.output)
    row[5] = 1.0
    inputs = np.random.default_rng(0).uniform(-1.0, 1.0, (1000, network.n_inputs))
    reached = network.forward(inputs)[:, 5]
    box = [-1.0] * network.n_inputs, [1.0] * network.n_inputs
    model = images(3).SerializeToString()

    def question(bound: float) -> Instance:
        return Instance(model, spec((*box, [(row, bound)]), outputs=len(row)))

    below = question(float(reached.min() - 3.0 * np.ptp(reached)) - 0.01)
    with never_whole():
        certificate = prove(below, splitting=splitting, semantics=semantics)
        assert below.outcome(certificate) == ACCEPTED
        solved = question(float(reached.min()))
        assert solved.outcome(by_hand(solved, semantics=semantics)) == "R8"


@pytest.mark.parametrize("splitting", ["neuron", "input"])
def test_neurons_keep_the_positions_of_the_file(splitting: str) -> None:
    """The second half of a layer is read, and has to be split: a sum of relus ends at a corner."""
    corners = np.array([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)])
    most = network_of(towers(3)).forward(corners)[:, 1].max()
    instance = asked(-1.001 * float(most), output=1, sign=-1.0)
    with never_whole():
        certificate = prove(instance, splitting=splitting)
        assert instance.outcome(certificate) == ACCEPTED
    header, arrays = container.unpack(certificate)
    assert (arrays["op"] == 1).any()
    if splitting == "neuron":
        rows = arrays["column"][arrays["column"][:, 0] == header["layers"].index("h")]
        assert len(rows)
        assert (rows[:, 1] >= 4).all()


HINTED = {"group": [[1, 1, 1, 0, 1, 0]], "case": [0], "op": [0], "slope": [255]}
HINTED |= {"weight": [coarse(1.0)]}


@pytest.mark.parametrize(("layer", "position"), [("h", 3), ("h", 4), ("l", 1), ("p", 3)])
def test_neurons_that_are_left_out_may_be_named(layer: str, position: int) -> None:
    """A certificate does not have to know what is left out, and proves as much as without."""
    arrays = HINTED | {"column": [[0, position]]}
    for bound, outcome in ((-1000.0, ACCEPTED), (1000.0, "R8")):
        instance = asked(bound, output=1)
        assert instance.outcome(by_hand(instance, arrays, layers=[layer])) == outcome
    refused: list[Refusal] = []
    instance.session.check(by_hand(instance, arrays, layers=[layer]), refused=refused)
    assert len(refused) == 1


@pytest.mark.parametrize(("layer", "position"), [("h", 8), ("l", 4), ("none", 0)])
def test_neurons_that_are_not_there_may_not_be_named(layer: str, position: int) -> None:
    instance = asked(-1000.0, output=1)
    arrays = HINTED | {"column": [[0, position]]}
    assert instance.outcome(by_hand(instance, arrays, layers=[layer])) == "R10"
