"""Rule R22: folded networks have the values of the others on a box, and bounds that hold."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from onnxcert.checker import bands, container, folding
from onnxcert.checker.audit import Auditor
from onnxcert.checker.balls import Balls
from onnxcert.checker.bounds import Bounder
from onnxcert.checker.certificate import EXECUTED
from onnxcert.checker.folding import Folded, fold, possible
from onnxcert.checker.network import Affine
from onnxcert.checker.proof import Prover
from onnxcert.search import folded_split
from tests.checker.makers import ACCEPTED, Instance, bound_to, dense, edited, prove, spec
from tests.checker.test_bounds import EXACT_MODELS, boxes, question, residual, scalars, windows

MODELS = {
    "dense": lambda seed: dense([2, 8, 6, 5, 2], seed),
    "residual": lambda seed: residual(seed, "Relu"),
    "windows": windows,
}


def folded(
    model: onnx.ModelProto, low: Any, high: Any, *, times: int = 1
) -> tuple[Bounder, Folded | None]:
    """A network folded on a box, and again if asked for."""
    bounder = whole = Bounder(question(model, low, high).session.network, executed=False)
    made: Folded | None = None
    origin = np.arange(bounder.network.size)
    for number in range(times):
        r = bounder.bound(np.array([low]), np.array([high]))
        if not possible(bounder, r) or (made := fold(bounder, r, again=number > 0)) is None:
            return whole, None
        bounder, origin = made.bounder, origin[made.origin]
    assert made is not None
    return whole, Folded(made.bounder, origin, made.place)


@pytest.fixture(autouse=True, scope="module")
def narrow_bands() -> Iterator[None]:
    """Small networks have bands, too."""
    with mock.patch.multiple(bands, _SMALLEST=1, _WIDTH=3, _GAP=1):
        yield


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("name", MODELS)
@given(data=st.data(), seed=st.integers(0, 30))
def test_values_are_those_of_the_network(
    name: str, times: int, data: st.DataObject, seed: int
) -> None:
    """Every block of sums, from the exact values of what it reads, up to its error."""
    low, high, points = data.draw(boxes(4 if name == "windows" else 2))
    whole, made = folded(MODELS[name](seed), low, high, times=times)
    event(f"folded: {made is not None}")
    if made is None:
        return
    inner = np.array([low]) * 0.75 + np.array([high]) * 0.25, np.array([high])
    r, halved = (made.bounder.bound(*ends) for ends in ((np.array([low]), np.array([high])), inner))
    for x in points:
        exact = np.array(scalars(whole, x), object)
        values = np.append(exact[made.origin], Fraction(0))
        for block in made.bounder.network.blocks:
            span = slice(block.start, block.start + block.size)
            if isinstance(block, Affine):
                assert block.offset_error is not None
                off = abs(block.values(values) - values[span])
                assert (off <= [Fraction(float(e)) for e in block.offset_error]).all()
                # An error that says nothing would hold as well.
                assert (block.offset_error < 1e-9).all()
        inside = all(a <= x_i <= b for a, x_i, b in zip(inner[0][0], x, inner[1][0], strict=True))
        for bounds in (r, halved) if inside else (r,):
            for value, a, b in zip(values, bounds.lower[0], bounds.upper[0], strict=True):
                assert Fraction(float(a)) <= value <= Fraction(float(b))
        outputs = [exact[i] for i in whole.network.output]
        assert outputs == [values[i] for i in made.bounder.network.output]


def any_slopes(rng: np.random.Generator) -> Any:
    """Slopes of rows that nobody learned."""

    def anything(layers: Any, *others: Any) -> list[Any]:
        sizes = [len(layer.offset) for layer in layers]
        return [rng.random((2, n, sum(sizes[:k]))) < 0.5 for k, n in enumerate(sizes)]

    return mock.patch.object(folding, "learn", anything)


def check_inside(whole: Bounder, made: Folded, ends: Any, points: Any) -> None:
    """Exact values at points (B, P, n) of B boxes are within the bounds of a folded network."""
    r = made.bounder.bound(*ends)
    for some, lower, upper in zip(points, r.lower, r.upper, strict=True):
        for x in some:
            values = np.append(np.array(scalars(whole, x), object)[made.origin], Fraction(0))
            for value, a, b in zip(values, lower, upper, strict=True):
                assert Fraction(float(a)) <= value <= Fraction(float(b))


@pytest.mark.parametrize("name", MODELS)
@given(data=st.data(), seed=st.integers(0, 30))
def test_any_slopes_of_rows_are_right(name: str, data: st.DataObject, seed: int) -> None:
    low, high, points = data.draw(boxes(4 if name == "windows" else 2))
    with any_slopes(np.random.default_rng(seed)):
        whole, made = folded(MODELS[name](seed), low, high, times=2)
    if made is not None:
        check_inside(whole, made, (np.array([low]), np.array([high])), [points])


@given(scale=st.sampled_from([0, 8, 25]), width=st.sampled_from([0.5, 1e-9]), seed=st.integers(0))
def test_several_boxes_and_weights_of_all_sizes(scale: int, width: float, seed: int) -> None:
    """Sums cancel, and on the smaller boxes rounding is all that is lost."""
    rng = np.random.default_rng(seed)
    model = dense([2, 9, 7, 6, 5, 2], seed)
    for weight in model.graph.initializer:
        values = onnx.numpy_helper.to_array(weight)
        factors = 2.0 ** rng.integers(-scale, scale + 1, len(values))
        factors = factors.reshape(-1, *[1] * (values.ndim - 1)).astype(np.float32)
        weight.CopyFrom(onnx.numpy_helper.from_array(values * factors, weight.name))
    with any_slopes(rng):
        whole, made = folded(model, [-1.0] * 2, [1.0] * 2, times=2)
    event(f"folded: {made is not None}")
    if made is None:
        return
    low = rng.uniform(-1.0, 0.5, (3, 2))
    high = low + width
    check_inside(whole, made, (low, high), np.stack([low, high, 0.5 * (low + high)], axis=1))


@pytest.mark.parametrize("name", [n for n in EXACT_MODELS if n not in ("relu", "residual")])
def test_other_curves_are_not_folded(name: str) -> None:
    whole = Bounder(
        question(EXACT_MODELS[name](3), [-1] * 2, [1] * 2).session.network, executed=False
    )
    kinds = {getattr(block, "kind", "relu") for block in whole.blocks}
    r = whole.bound(-np.ones((1, 2)), np.ones((1, 2)))
    assert possible(whole, r) == (kinds == {"relu"})


def test_executions_and_ellipsoids_are_not_folded() -> None:
    network = question(dense([2, 4, 3, 2], 0), [-1] * 2, [1] * 2).session.network
    ends = -np.ones((1, 2)), np.ones((1, 2))
    for executed in (False, True):
        bounder = Bounder(network, executed=executed)
        assert possible(bounder, bounder.bound(*ends)) == (not executed)
    ball = Balls(np.zeros((1, 2)), np.ones((1, 2)))
    bounder = Bounder(network, executed=False, spherical=True)
    assert not possible(bounder, bounder.bound(*ends, balls=ball))


def test_a_line_that_is_not_the_relu_is_refused() -> None:
    """Lines of a larger box than the bounds that say which relus are stable."""
    model = dense([2, 8, 6, 2], 0)
    bounder = Bounder(question(model, [-1] * 2, [1] * 2).session.network, executed=False)
    r = bounder.bound(np.full((1, 2), 0.25), np.full((1, 2), 0.5))
    assert fold(bounder, r) is not None
    r.curves = bounder.bound(-np.ones((1, 2)), np.ones((1, 2))).curves
    assert fold(bounder, r) is None


def always() -> Any:
    """Fold every box, and again whenever a neuron has become stable."""
    return mock.patch.multiple(folded_split, LEAST_WORK=0, AGAIN=1.0, LEAST_LEFT=0.0)


def asked(margin: float) -> Instance:
    """Whether the output may be less than it was seen to be by that; the tree is over inputs."""
    model, box = dense([4, 16, 12, 1], 4), ([-1.0] * 4, [1.0] * 4)
    network = question_of(model, box, 0.0).session.network
    seen = network.forward(np.random.default_rng(0).uniform(-1, 1, (2000, 4)))
    return question_of(model, box, float(seen.min()) - margin)


def question_of(model: onnx.ModelProto, box: Any, bound: float) -> Instance:
    """Whether the output may be at most a number."""
    return Instance(model.SerializeToString(), spec((*box, [([1.0], bound)])))


@pytest.fixture(scope="module")
def proof() -> tuple[Instance, bytes]:
    """A tree whose boxes are all folded, and that needs it: without, one leaf is not refuted."""
    instance = asked(3.0)
    with always():
        return instance, prove(instance, splitting="input", watch="off")


def test_trees_with_folds(proof: tuple[Instance, bytes]) -> None:
    instance, certificate = proof
    op = container.unpack(certificate)[1]["op"]
    assert (op == 3).sum() > 3
    made: list[Folded] = []

    def has_slopes(found: Folded) -> bool:
        assert found.bounder.layered is not None
        return bool(found.bounder.layered.slopes)

    def noted(*arguments: Any, again: bool) -> Folded | None:
        found = fold(*arguments, again=again)
        assert found is None or has_slopes(found) == again
        made.extend([] if found is None else [found])
        return found

    with mock.patch.object(folding, "fold", noted):
        assert instance.outcome(certificate) == ACCEPTED
    assert len(made) == (op == 3).sum()
    assert instance.session.check(certificate, audit=3).audited > 0
    assert instance.outcome(certificate, jobs=2) == ACCEPTED


def test_certificates_that_say_otherwise(proof: tuple[Instance, bytes]) -> None:
    """Less splits are refused with folds, and folds of what cannot be folded are not made."""
    instance, certificate = proof

    def root_only(header: Any, arrays: Any) -> None:
        arrays["op"], arrays["arg"] = np.zeros(1, np.uint8), arrays["arg"][:0]
        arrays["combine"], arrays["weight"] = arrays["combine"][:0], arrays["weight"][:0]
        arrays["group"][0, 2:4] = 1, 0

    def one_split(header: Any, arrays: Any) -> None:
        root_only(header, arrays)
        arrays["op"], arrays["arg"] = np.array([3, 0, 0], np.uint8), np.zeros(1, np.uint32)
        arrays["group"][0, 2] = 3

    def unknown(header: Any, arrays: Any) -> None:
        arrays["op"] = np.where(arrays["op"] == 3, 5, arrays["op"]).astype(np.uint8)

    assert instance.outcome(edited(certificate, root_only)) == "R8"
    assert instance.outcome(edited(certificate, one_split)) == "R8"
    assert instance.outcome(edited(certificate, unknown)) == "R10"

    def executed(header: Any, arrays: Any) -> None:
        header["semantics"] = EXECUTED

    with mock.patch.object(folding, "fold", side_effect=AssertionError("folded")):
        assert instance.outcome(edited(certificate, executed)) in (ACCEPTED, "R8")


def test_boxes_that_are_cut_at_once(proof: tuple[Instance, bytes]) -> None:
    """They are not bounded; to bound them does no harm, and to bound none proves nothing false."""
    instance, certificate = proof
    op = container.unpack(certificate)[1]["op"]
    assert (op == 4).sum() > 3
    counts: list[int] = []
    right = Prover.boxes

    def counted(prover: Prover, ids: Any, *arguments: Any) -> Any:
        counts.append(len(ids))
        return right(prover, ids, *arguments)

    with mock.patch.object(Prover, "boxes", counted):
        assert instance.outcome(certificate) == ACCEPTED
    assert sum(counts) == (op != 4).sum()

    def bounded(header: Any, arrays: Any) -> None:
        arrays["op"][arrays["op"] == 4] = 1

    def unbounded(header: Any, arrays: Any) -> None:
        arrays["op"][arrays["op"] == 1] = 4

    assert instance.outcome(edited(certificate, bounded)) == ACCEPTED
    sibling = asked(-1.0)
    for change in (bounded, unbounded):
        assert sibling.outcome(bound_to(sibling, edited(certificate, change))) == "R8"


def test_a_fold_that_is_wrong_is_seen(proof: tuple[Instance, bytes]) -> None:
    """With a solution in the box no tree is accepted, whatever is folded where."""
    _, certificate = proof
    sibling = asked(-1.0)
    assert sibling.outcome(bound_to(sibling, certificate)) == "R8"


def test_auditors_of_folds_share_their_count() -> None:
    bounder = Bounder(
        question(dense([2, 4, 3, 2], 0), [-1] * 2, [1] * 2).session.network, executed=False
    )
    auditor = Auditor(bounder, 5, 1)
    other = auditor.over(bounder)
    other.choose(np.arange(3))
    assert auditor.done == other.done == 3
