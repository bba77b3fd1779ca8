"""Constants as a pass of the search: sound, proved, and harmless where they decide nothing."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

import onnxcert
from onnxcert import Settings, Specification, Unsat, linf_ball
from onnxcert.arrays import Array
from onnxcert.checker.container import unpack
from onnxcert.continuity import first_pass
from onnxcert.continuity.first_pass import CasesByConstants
from onnxcert.graph import Graph
from tests.frontend.onnx_models import model_of
from tests.oracles import satisfied_case, smallest_violation
from tests.strategies import Row, make_problem, relu_network, seeds


@given(seed=seeds, shift=st.sampled_from([0.0, 0.1, 0.5, 2.0, 10.0]), size=st.integers(-3, 0))
def test_what_is_refuted_has_no_solution(seed: int, shift: float, size: int) -> None:
    rng = np.random.default_rng(seed)
    graph = relu_network(rng, [2, 3, 3, 2])
    centre, half = rng.normal(size=2), 10.0**size * rng.uniform(size=2)
    low, high = centre - half, centre + half
    outputs = graph.forward(rng.uniform(low, high, size=(50, 2)))
    cases: list[tuple[int, list[Row]]] = []
    for _ in range(2):
        rows: list[Row] = []
        for _ in range(int(rng.integers(1, 3))):
            row = np.round(4.0 * rng.normal(size=2)) / 4.0
            rows.append((row.tolist(), float(shift - (outputs @ row).min())))
        cases.append((0, rows))
    problem = make_problem([(low.tolist(), high.tolist())], cases)
    by_constants = CasesByConstants(graph)
    found = by_constants(problem, np.arange(2))
    assert found.all() == found.any()  # all of a box or none
    assert by_constants.refuted == int(found.sum())
    if found.all():
        for case in range(2):
            assert smallest_violation(graph, problem, case) > 0.0
        for x in rng.uniform(low, high, size=(20, 2)):
            assert satisfied_case(graph, problem, map(Fraction, x.tolist())) is None
    if shift == 10.0 and size == -3:
        assert found.all()


def test_cases_without_rows_are_never_refuted(rng: np.random.Generator) -> None:
    graph = relu_network(rng, [2, 3, 2])
    box = ([0.0, 0.0], [0.1, 0.1])
    only = make_problem([box], [(0, [])], outputs=2)
    assert not CasesByConstants(graph)(only, np.arange(1)).any()
    far: Row = ([1.0, 0.0], 1e6)
    both = make_problem([box], [(0, [far]), (0, [])])
    assert not CasesByConstants(graph)(both, np.arange(2)).any()
    assert CasesByConstants(graph)(both, np.arange(1)).all()


def test_nothing_is_computed_where_gradients_say_no(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("constants were computed")

    monkeypatch.setattr(first_pass, "enclose", fail)
    graph = relu_network(rng, [2, 8, 2])
    value = graph.forward(np.zeros((1, 2)))[0]
    near: Row = ([1.0, 0.0], 1e-6 - float(value[0]))
    problem = make_problem([([-1.0, -1.0], [1.0, 1.0])], [(0, [near])])
    assert not CasesByConstants(graph)(problem, np.arange(1)).any()
    wide: Row = ([1.0, 0.0], 1e6)
    problem = make_problem([([-1.0, -1.0], [1.0, 1.0])], [(0, [wide])])
    with pytest.raises(AssertionError, match="were computed"):
        CasesByConstants(graph)(problem, np.arange(1))


# A network with small constants over which linear bounds grow from layer to layer


def isometric(seed: int = 0, *, size: int = 8, layers: int = 6) -> onnx.ModelProto:
    """Sorted pairs between rotations: every output moves no further than the input."""
    rng = np.random.default_rng(seed)
    nodes, stored, now = [], dict[str, Array](), "x"
    stored["even"], stored["odd"] = np.arange(0, size, 2), np.arange(1, size, 2)
    for k in range(layers):
        stored[f"w{k}"] = np.linalg.qr(rng.normal(size=(size, size)))[0].astype(np.float32)
        stored[f"b{k}"] = (0.1 * rng.normal(size=size)).astype(np.float32)
        nodes.append(helper.make_node("Gemm", [now, f"w{k}", f"b{k}"], [f"z{k}"]))
        for half in ("even", "odd"):
            nodes.append(helper.make_node("Gather", [f"z{k}", half], [f"{half}{k}"], axis=1))
        for kind in ("Max", "Min"):
            nodes.append(helper.make_node(kind, [f"even{k}", f"odd{k}"], [f"{kind}{k}"]))
        nodes.append(helper.make_node("Concat", [f"Max{k}", f"Min{k}"], [f"h{k}"], axis=1))
        now = f"h{k}"
    stored["w"] = np.eye(size, 3, dtype=np.float32)
    nodes.append(helper.make_node("MatMul", [now, "w"], ["y"]))
    return model_of(nodes, {"x": (1, size)}, ["y"], stored)


def ball(model: onnx.ModelProto, share: float) -> Specification:
    """A ball with so large a share of the radius that constants certify."""
    rng = np.random.default_rng(1)
    graph = onnxcert.load_model(model).graph
    points = rng.normal(size=(200, graph.input_size))
    values = np.sort(graph.forward(points), axis=1)
    x = points[(values[:, -1] - values[:, -2]).argmax()]
    bound = onnxcert.lipschitz(model, method="recursion", samples=2)
    radius = float(onnxcert.certified_radius(model, x, bound=bound)[0])
    label = int(graph.forward(x[None])[0].argmax())
    return linf_ball(x, round(share * radius / np.sqrt(graph.input_size), 6), label=label)


def kinds(path: Path) -> set[int]:
    """Kinds of groups in a certificate."""
    return set(unpack(path.read_bytes())[1]["group"][:, 0].tolist())


def test_constants_decide_what_linear_bounds_leave(tmp_path: Path) -> None:
    model, path = isometric(), tmp_path / "proof"
    onnx.save(model, tmp_path / "model.onnx")
    spec = ball(model, 0.9)
    onnxcert.save_vnnlib(spec.to_query([(1, 8)], [(1, 3)]), tmp_path / "spec.vnnlib")
    files = tmp_path / "model.onnx", tmp_path / "spec.vnnlib"
    result = onnxcert.verify(*files, certificate=path)
    assert isinstance(result.verdict, Unsat)
    assert result.proof is not None
    assert result.proof.accepted
    assert 3 in kinds(path)
    assert str(onnxcert.check(path, *files)) == "VERIFIED UNSAT (real)"


def test_they_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("the pass was asked")

    monkeypatch.setattr(CasesByConstants, "__call__", fail)
    model = isometric(layers=2)
    settings = Settings(constants="off")
    result = onnxcert.verify(model, ball(model, 0.9), settings=settings, timeout=60)
    assert isinstance(result.verdict, Unsat)


def test_executions_are_not_proved_by_constants(tmp_path: Path) -> None:
    """Constants are those of the reals; they may not stand in a proof for every execution."""
    model, path = isometric(layers=3), tmp_path / "proof"
    spec = ball(model, 0.5)
    result = onnxcert.verify(model, spec, semantics="ieee32-any-order", certificate=path)
    if isinstance(result.verdict, Unsat):
        assert 3 not in kinds(path)


def test_bug_the_pass_says_yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checker refuses its cases, and they are proved in another way."""

    def yes(self: CasesByConstants, problem: Any, cases: Array) -> Array:
        self._constants  # noqa: B018 - computed for the hints
        return np.ones(len(cases), dtype=bool)

    monkeypatch.setattr(CasesByConstants, "__call__", yes)
    model, path = isometric(layers=2), tmp_path / "proof"
    result = onnxcert.verify(model, ball(model, 1.1), certificate=path, timeout=120)
    assert isinstance(result.verdict, Unsat)
    assert result.proof is not None
    assert result.proof.accepted
    assert 3 not in kinds(path)


def test_bug_hints_are_worthless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = isometric(), tmp_path / "proof"
    worthless: Any = lambda self, network: np.ones(8 + 48)  # noqa: E731
    monkeypatch.setattr(CasesByConstants, "hints", worthless)
    result = onnxcert.verify(model, ball(model, 0.3), certificate=path, timeout=120)
    assert isinstance(result.verdict, Unsat)
    assert path.exists()
    assert 3 not in kinds(path)


def test_networks_that_are_not_continuous_are_left_alone(rng: np.random.Generator) -> None:
    model = model_of([helper.make_node("Sign", ["x"], ["y"])], {"x": (1, 2)}, ["y"])
    graph: Graph = onnxcert.load_model(model).graph
    row: Row = ([1.0, 0.0], 1e6)
    problem = make_problem([([-1.0, -1.0], [1.0, 1.0])], [(0, [row])])
    assert not CasesByConstants(graph)(problem, np.arange(1)).any()
