"""Witnesses without a graph: even cover, moves, limits, and whole runs on models without rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxcert
from onnxcert.arrays import Array, Device
from onnxcert.errors import ModelError
from onnxcert.frontend.replay import Replayer
from onnxcert.search import sampling
from onnxcert.search.candidates import Candidates
from onnxcert.search.cases import Cases
from onnxcert.search.deadline import Deadline
from onnxcert.search.sampling import Sampling
from onnxcert.verdict import Counterexample
from tests.strategies import make_problem

Function = Callable[[Array], Array]


def search(
    function: Function, size: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[Counterexample | None, int, Array]:
    """Points of [0, 1]^size until function(x) <= 0 for one of them, and all that were evaluated."""
    monkeypatch.setattr(sampling, "MOST_POINTS", most)
    problem = make_problem([([0.0] * size, [1.0] * size)], [(0, [([1.0], 0.0)])])
    seen: list[Array] = []

    def forward(points: Array) -> Array:
        seen.append(points)
        return function(points)[:, None]

    def confirm(point: Array, decimals: object) -> Counterexample | None:
        found = function(point[None].astype(float))[0] <= 0
        return Counterexample({"X": point}, {}) if found else None

    candidates = Candidates(forward, Cases.build(problem, Device()), confirm, np.float64)
    found, tried = Sampling(candidates, np.random.default_rng(0), Deadline(math.inf)).run()
    return found, tried, np.concatenate(seen)


def test_boxes_of_two_inputs_are_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three points for each cell of a grid leave one in a hundred unseen; random ones five."""
    cells = 30
    found, tried, seen = search(lambda x: np.ones(len(x)), 2, 3 * cells**2, monkeypatch)
    assert found is None
    assert tried == len(seen) == 3 * cells**2
    columns, rows = np.minimum(np.floor(cells * seen), cells - 1).astype(int).T
    missing = cells**2 - len(set(zip(columns.tolist(), rows.tolist(), strict=True)))
    assert missing <= 0.01 * cells**2
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert (seen == corner).all(axis=1).any()


def test_a_cell_of_a_constant_function_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def function(x: Array) -> Array:
        hit = (np.floor(20 * x) == (3, 17)).all(axis=1)
        return 1.0 - 2.0 * hit

    found, tried, _ = search(function, 2, 4000, monkeypatch)
    assert found is not None
    assert tried < 4000


def test_moves_find_a_corner_of_many_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2^60 corners half a dozen inputs may differ from the one that is looked for."""
    signs = np.where(np.random.default_rng(1).random(60) < 0.5, -1.0, 1.0)

    def function(x: Array) -> Array:
        return 24.0 - (x - 0.5) @ signs  # type: ignore[no-any-return]

    found, _, seen = search(function, 60, 6000, monkeypatch)
    assert found is not None
    assert ((seen >= 0.0) & (seen <= 1.0)).all()


def test_inputs_that_do_not_vary(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem([([0.5, 0.0], [0.5, 1.0])], [(0, [([1.0], 0.0)])])
    monkeypatch.setattr(sampling, "MOST_POINTS", 50)
    seen: list[Array] = []

    def forward(points: Array) -> Array:
        seen.append(points)
        return np.full((len(points), 1), 1.0 - points[:, 1:])

    candidates = Candidates(forward, Cases.build(problem, Device()), lambda p, d: None, np.float64)
    assert Sampling(candidates, np.random.default_rng(0), Deadline(math.inf)).run()[0] is None
    points = np.concatenate(seen)
    assert (points[:, 0] == 0.5).all()
    assert len(np.unique(points[:, 1])) > 10


def test_values_that_are_undefined_are_no_witness(monkeypatch: pytest.MonkeyPatch) -> None:
    found, tried, _ = search(lambda x: np.full(len(x), np.nan), 3, 40, monkeypatch)
    assert (found, tried) == (None, 40)


def test_nothing_is_begun_late(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem([([0.0], [1.0])], [(0, [([1.0], 0.0)])])
    cases = Cases.build(problem, Device())
    candidates = Candidates(lambda points: points, cases, lambda p, d: None, np.float64)
    assert Sampling(candidates, np.random.default_rng(0), Deadline(0.0)).run() == (None, 0)


def steps(path: Path) -> Path:
    """Y = 1 where X, cut to whole numbers, is (3, 17), else 0; there is no rule for the cut of
    what is no input."""
    nodes = [
        helper.make_node("Relu", ["X"], ["R"]),
        helper.make_node("Cast", ["R"], ["I"], "cut", to=TensorProto.INT64),
        helper.make_node("Equal", ["I", "wanted"], ["E"]),
        helper.make_node("Cast", ["E"], ["F"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMin", ["F"], ["Y"], axes=[1], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "steps",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [1])],
        [helper.make_tensor("wanted", TensorProto.INT64, [2], [3, 17])],
    )
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def spec(condition: str, path: Path) -> Path:
    declared = ["X_0", "X_1", "Y_0"]
    lines = [f"(declare-const {name} Real)" for name in declared]
    lines += [f"(assert (>= {x} 0.0))\n(assert (<= {x} 20.0))" for x in declared[:2]]
    path.write_text("\n".join([*lines, f"(assert {condition})"]))
    return path


def test_models_without_rules_can_be_falsified(tmp_path: Path) -> None:
    model = steps(tmp_path / "m.onnx")
    result = onnxcert.verify(model, spec("(>= Y_0 0.5)", tmp_path / "s.vnnlib"), timeout=60)
    assert isinstance(result.verdict, onnxcert.Sat)
    found = result.verdict.counterexample
    np.testing.assert_array_equal(np.floor(found.inputs["X"]).ravel(), (3, 17))
    assert result.query is not None
    assert result.seconds["attack"] > 0


def test_without_a_witness_the_operators_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "MOST_POINTS", 300)
    model = steps(tmp_path / "m.onnx")
    with pytest.raises(onnxcert.UnsupportedModel) as caught:
        onnxcert.verify(model, spec("(>= Y_0 1.5)", tmp_path / "s.vnnlib"))
    assert "none of 300 points is a witness" in caught.value.help
    assert "cut" in caught.value.place


def test_a_runtime_that_cannot_help_is_not_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(replayer: Replayer, point: Array) -> Array:
        raise ModelError("onnxruntime cannot run the model")

    monkeypatch.setattr(Replayer, "run_flat", refuse)
    model = steps(tmp_path / "m.onnx")
    with pytest.raises(onnxcert.UnsupportedModel) as caught:
        onnxcert.verify(model, spec("(>= Y_0 0.5)", tmp_path / "s.vnnlib"))
    assert "cut" in caught.value.place
