"""Specifications that constants decide: nothing that has a solution, and the checker agrees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

import onnxcert
from onnxcert import Screen, SpecError, UsageError, linf_ball
from onnxcert.arrays import Array
from onnxcert.checker import Rejected
from onnxcert.checker.certificate import Session
from onnxcert.continuity.screen import row_lengths
from onnxcert.frontend.lower import lower_query
from onnxcert.frontend.vnnlib import parse_query
from onnxcert.proof.certify import REAL, Certifier
from tests import strategies
from tests.checker.makers import dense, edited, spec
from tests.checker.test_constants import models, read
from tests.frontend.onnx_models import model_of


def screen_of(model: onnx.ModelProto) -> Screen:
    return Screen(onnxcert.lipschitz(model, method="recursion", samples=2))


@given(case=models(), size=st.integers(-4, 1))
def test_nothing_is_refuted_that_has_a_solution(
    case: tuple[onnx.ModelProto, int], size: int
) -> None:
    """Rows are placed round the values at a point of the box, as close as constants allow."""
    model, seed = case
    screen, rng = screen_of(model), np.random.default_rng(seed)
    graph = screen.bound.model.graph
    centre = rng.normal(size=graph.input_size)
    half = 10.0**size * rng.uniform(size=graph.input_size) * (rng.random(graph.input_size) < 0.8)
    x = centre + half * rng.uniform(-1, 1, size=half.shape)
    value = read(model).forward(x[None])[0]
    rows = rng.integers(1, 3, size=(3, 2)) * rng.choice([-1.0, 1.0], size=(3, 2))
    slack = 1e-9 * (1.0 + np.abs(rows) @ np.abs(value))
    low, high = centre - half - 1e-12, centre + half + 1e-12
    disjuncts = [
        (low.tolist(), high.tolist(), [(row.tolist(), float(row @ value + s))])
        for row, s in zip(rows, slack, strict=True)
    ]
    (problem,) = lower_query(parse_query(spec(*disjuncts, outputs=2))).cases
    assert not screen.refuted(problem).any()
    # Far enough away each is refuted.
    away = np.abs(rows).sum(axis=1) * screen.bound.outputs.max() * (np.linalg.norm(half) + 1e-9)
    beyond = 4.0 * away + 100.0 * slack + 1e-6
    far = replace(problem, offset=problem.offset + beyond.max())
    assert screen.refuted(far).all()


@given(case=models())
def test_constants_of_rows(case: tuple[onnx.ModelProto, int]) -> None:
    """Differences, multiples of them, other sums, and inputs among them."""
    model, seed = case
    screen, rng = screen_of(model), np.random.default_rng(seed)
    graph = screen.bound.model.graph
    rows = np.array([[1.0, -1.0], [-2.5, 2.5], [1.0, 1.0], [0.0, 3.0], [0.0, 0.0], [1.0, -2.0]])
    inputs = rng.normal(size=(6, graph.input_size)) * (rng.random(6) < 0.5)[:, None]
    lengths = row_lengths(screen.bound, rows, inputs)
    network = read(model)
    points = rng.normal(size=(6, 2, graph.input_size))
    for first, second in points:
        values = network.forward(np.stack([first, second]))
        moved = np.abs(rows @ (values[0] - values[1]) + inputs @ (first - second))
        slack = 1e-11 * (1.0 + np.abs(values).max())
        assert (moved <= lengths * np.linalg.norm(first - second) * (1.0 + 1e-12) + slack).all()
    alone = row_lengths(screen.bound, rows)
    assert alone[1] <= 2.5 * screen.bound.pairs[0, 1] * (1.0 + 1e-12)
    assert alone[4] < 1e-100


def margin_of(model: onnx.ModelProto, x: Array) -> tuple[int, float]:
    """The class of a point, and how far from it the constants say no other class is."""
    bound = onnxcert.lipschitz(model)
    return int(read(model).forward(x[None])[0].argmax()), float(
        onnxcert.certified_radius(model, x, bound=bound)[0]
    )


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return dense([3, 8, 6, 4], 1)


POINT = np.array([0.7, -0.4, 0.9])


def test_the_checker_accepts_what_constants_decide(model: onnx.ModelProto, tmp_path: Path) -> None:
    label, radius = margin_of(model, POINT)
    screen, path = Screen(onnxcert.lipschitz(model)), tmp_path / "proof"
    inside, outside = (
        linf_ball(POINT, round(share * radius / np.sqrt(3.0), 8), label=label)
        for share in (0.99, 1.01)
    )
    assert screen.decides(inside)
    assert not screen.decides(outside)
    assert str(screen.prove(inside, path)) == "VERIFIED UNSAT (real)"
    onnx.save(model, tmp_path / "model.onnx")
    onnxcert.save_vnnlib(inside.to_query([(3,)], [(4,)]), tmp_path / "inside.vnnlib")
    again = Screen(onnxcert.lipschitz(tmp_path / "model.onnx"))
    verified = again.prove(tmp_path / "inside.vnnlib", path)
    assert verified.cases == 3
    checked = onnxcert.check(path, tmp_path / "model.onnx", tmp_path / "inside.vnnlib")
    assert str(checked) == "VERIFIED UNSAT (real)"
    path.unlink()
    with pytest.raises(UsageError, match="do not decide"):
        screen.prove(outside, path)
    assert not path.exists()


def test_wrong_specifications(model: onnx.ModelProto) -> None:
    screen = Screen(onnxcert.lipschitz(model))
    with pytest.raises(SpecError, match="the specification has"):
        screen.decides(linf_ball(np.zeros(2), 0.1, label=0).to_query([(2,)], [(4,)]))
    with pytest.raises(UsageError, match="norm 2"):
        Screen(onnxcert.lipschitz(model, norm="inf"))
    with pytest.raises(UsageError, match="for all inputs"):
        Screen(onnxcert.lipschitz(model, domain=(0, 1)))


# The checker's groups of kind 3


@pytest.fixture(scope="module")
def proved(
    model: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Session, bytes]:
    path = tmp_path_factory.mktemp("proof") / "proof"
    label, radius = margin_of(model, POINT)
    low, high = POINT - 0.5 * radius, POINT + 0.5 * radius
    rows = [[float((i == label) - (i == other)) for i in range(4)] for other in range(4)]
    disjuncts = [
        (low.tolist(), high.tolist(), [(row, 0.0)]) for n, row in enumerate(rows) if n != label
    ]
    text = spec(*disjuncts, outputs=4)
    query = parse_query(text)
    screen = Screen(onnxcert.lipschitz(model))
    assert screen.decides(query)
    file = path.with_suffix(".vnnlib")
    file.write_bytes(text)
    screen.prove(file, path)
    return Session(screen.bound.model.stored(), text), path.read_bytes()


def rule(proved: tuple[Session, bytes], change: Any) -> str:
    session, data = proved
    try:
        return str(session.check(edited(data, change)))
    except Rejected as rejected:
        return rejected.rule


def put(name: str, position: Any, value: Any) -> Any:
    def change(header: dict[str, Any], arrays: dict[str, Array]) -> None:
        arrays[name][position] = value

    return change


def test_groups_of_constants(proved: tuple[Session, bytes]) -> None:
    assert rule(proved, lambda header, arrays: None) == "VERIFIED UNSAT (real)"
    for value in (-1.0, np.nan, np.inf, 0.0, 1e-300, 1e300):
        for position in (0, 3, -1):
            assert rule(proved, put("constant", position, value)) == "R14"
    assert rule(proved, put("constant", slice(3, None), 1e-9)) == "R14"
    for column in range(2, 6):
        assert rule(proved, put("group", (0, column), 1)) == "container"
    assert rule(proved, put("group", (0, 1), 2)) in ("container", "R0")
    assert rule(proved, put("group", (0, 0), 6)) == "container"
    assert rule(proved, put("group", (0, 0), 4)) in ("R0", "R10")
    assert rule(proved, put("group", (0, 0), 0)) == "R10"
    assert rule(proved, put("group", (0, 0), 2)) in ("R0", "R10")

    def executed(header: dict[str, Any], arrays: dict[str, Array]) -> None:
        header["semantics"] = "ieee32-any-order"

    assert rule(proved, executed) == "R14"

    def twice(header: dict[str, Any], arrays: dict[str, Array]) -> None:
        arrays["group"] = np.array([[3, 1, 0, 0, 0, 0], [3, 2, 0, 0, 0, 0]])
        arrays["constant"] = np.tile(arrays["constant"], 2)

    assert rule(proved, twice) == "R14"
    for cut in (slice(0, -1), slice(0, 0)):

        def short(header: dict[str, Any], arrays: dict[str, Array], cut: slice = cut) -> None:
            arrays["constant"] = arrays["constant"][cut]

        assert rule(proved, short) == "container"

    def more(header: dict[str, Any], arrays: dict[str, Array]) -> None:
        arrays["constant"] = np.append(arrays["constant"], 1.0)

    assert rule(proved, more) == "container"


@given(seed=strategies.seeds)
def test_what_has_a_solution_is_never_accepted(seed: int) -> None:
    """The checker alone: rows that hold at a point of the box, and any multipliers."""
    rng = np.random.default_rng(seed)
    model = dense([2, 5, 4, 2], int(rng.integers(1000)))
    network = read(model)
    centre, half = rng.normal(size=2), 10.0 ** rng.uniform(-6, 0) * rng.uniform(size=2)
    x = centre + half * rng.uniform(-1, 1, size=2)
    value = network.forward(x[None])[0]
    row = rng.normal(size=2)
    limit = float(row @ value + 1e-9 * (1.0 + np.abs(value).sum()))
    low, high = centre - half - 1e-12, centre + half + 1e-12
    text = spec((low.tolist(), high.tolist(), [(row.tolist(), limit)]), outputs=2)
    data = model.SerializeToString()
    certifier = Certifier(data, text, None, REAL, {})
    multipliers = 10.0 ** rng.uniform(-4, -1, size=9) * np.repeat([1.0, 0.05], [5, 4])
    certificate = certifier.by_constants(10.0 ** rng.uniform(-2, 2, size=2), multipliers)
    with pytest.raises(Rejected, match="R14"):
        certifier.check(certificate)


@pytest.mark.parametrize("weight", [1.0, 1e150, 1e300])
def test_boxes_whose_squares_underflow(weight: float) -> None:
    """y = 1e170 x reaches -1 where |x| <= 1e-170, whatever weight the input is given."""
    nodes = [helper.make_node("MatMul", ["x", "steep"], ["y"])]
    stored = {"steep": np.array([[1e170]])}
    model = model_of(nodes, {"x": (1, 1)}, ["y"], stored, element=TensorProto.DOUBLE)
    text = spec(([-1e-170], [1e-170], [([1.0], -0.5)]))
    certifier = Certifier(model.SerializeToString(), text, None, REAL, {})
    with pytest.raises(Rejected, match="R14"):
        certifier.check(certifier.by_constants(np.full(1, weight), np.zeros(0)))
