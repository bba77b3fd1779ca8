"""The search by linear programs: against enumeration, against the checker, and what it leaves."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxcert import Result
from onnxcert.arrays import Device
from onnxcert.bounds.crown import crown_bounds
from onnxcert.bounds.optimised import FreeRelaxation, Start, optimise
from onnxcert.graph import Graph, Node
from onnxcert.ops import LeakyRelu, Linear, Relu, Sigmoid, Sum
from onnxcert.proof.trace import NeuronTrees, free_neurons
from onnxcert.search import exact, linear
from onnxcert.search.bab import BranchAndBound
from onnxcert.search.candidates import Candidates
from onnxcert.search.cases import Cases
from onnxcert.search.deadline import Deadline
from onnxcert.search.exact import LinearSearch, _Tree, applicable
from onnxcert.search.linear import Polytope, Program, Triangles
from onnxcert.search.neuron_split import NeuronSplit
from onnxcert.sets import Box
from onnxcert.spec import Problem
from onnxcert.verdict import Counterexample, Reason, Sat
from tests.checker.makers import dense, spec
from tests.frontend.onnx_models import model_of
from tests.oracles import confirm_exactly, satisfied_case, smallest_violation
from tests.proof.networks import Files, least
from tests.strategies import Row, make_problem, relu_network, seeds

pytest.importorskip("highspy", reason="linear programs need HiGHS: pip install onnxcert[lp]")

_CLEAR = 1e-3
"""A margin that neither the linear programs nor the search may miss."""


def brancher(graph: Graph, problem: Problem) -> NeuronSplit:
    """All cases of a problem with one box, with bounds at the root as the search has them."""
    cases = Cases.build(problem, Device())
    open_cases = np.arange(len(problem))
    boxes = crown_bounds(graph, Box(problem.lower, problem.upper), backward=True).boxes
    free = FreeRelaxation.build(graph, boxes)
    forms = cases.forms(open_cases[:, None])
    start = Start.at_form(np.zeros(len(open_cases), dtype=int), forms)
    root = optimise(free, forms, boxes[graph.output], start, steps=0)
    trees = NeuronTrees(problem, graph, free_neurons(free, boxes), (graph, []))
    return NeuronSplit(graph, cases, open_cases, boxes, root.best, 4, trees)


def search(graph: Graph, problem: Problem) -> LinearSearch:
    whole = brancher(graph, problem)
    confirm = confirm_exactly(graph, problem)
    return LinearSearch(whole, Candidates(graph.forward, whole.cases, confirm, np.float64))


@st.composite
def instances(draw: st.DrawFn, *, leaky: bool = False) -> tuple[Graph, Problem]:
    """Up to six neurons, relus or leaky ones; offsets put the least value near zero."""
    rng = np.random.default_rng(draw(seeds))
    graph = relu_network(rng, [3, *draw(st.sampled_from([[4], [6], [3, 3]])), 2])
    if leaky:
        slope = np.array(draw(st.sampled_from([0.25, -0.5, 1.5])))
        nodes = [
            replace(n, op=LeakyRelu(n.op.size, slope)) if isinstance(n.op, Relu) else n
            for n in graph.nodes
        ]
        graph = replace(graph, nodes=tuple(nodes))
    outputs = graph.forward(rng.uniform(-1.0, 1.0, size=(200, 3)))
    cases: list[tuple[int, list[Row]]] = []
    for _ in range(draw(st.integers(1, 2))):
        rows: list[Row] = []
        for _ in range(draw(st.integers(1, 2))):
            row = np.round(4.0 * rng.normal(size=2)) / 4.0
            shift = draw(st.sampled_from([-0.3, -0.05, 0.02, 0.1, 0.3]))
            rows.append((row.tolist(), float(shift - (outputs @ row).min())))
        cases.append((0, rows))
    return graph, make_problem([([-1.0] * 3, [1.0] * 3)], cases)


@settings(max_examples=30)
@given(instance=instances())
def test_agrees_with_enumeration(instance: tuple[Graph, Problem]) -> None:
    graph, problem = instance
    margin = min(smallest_violation(graph, problem, case) for case in range(len(problem)))
    answer = search(graph, problem).run(Deadline(30.0 if abs(margin) > _CLEAR else 0.2))
    if isinstance(answer, Counterexample):
        assert satisfied_case(graph, problem, answer.inputs["X"]) is not None
    if margin > _CLEAR:
        assert answer is None
    if margin < -_CLEAR:
        assert isinstance(answer, Counterexample)
    if margin <= -1e-7:  # the accuracy of the linear programs
        assert answer is not None


@settings(max_examples=30)
@given(instance=instances() | instances(leaky=True), data=st.data())
def test_programs_relax_every_path(instance: tuple[Graph, Problem], data: st.DataObject) -> None:
    """Points of a path are points of its program, and without unstable neurons nothing else is."""
    graph, problem = instance
    whole = brancher(graph, problem)
    program = Program.build(graph, whole.root)
    rows = program.rows(whole.cases.forms(np.array([[0]])))
    triangles = Triangles(program, rows)
    rng = np.random.default_rng(data.draw(seeds))
    x = rng.uniform(-1.0, 1.0, size=3)
    columns = np.concatenate([x, np.zeros(len(program.number)), [1.0]])
    for here, _ in program.layers.values():
        columns[3:-1][here] = np.maximum(program.pre[here] @ columns, 0.0)
    np.testing.assert_allclose(program.output @ columns, graph.forward(x[None])[0], atol=1e-9)
    split = rng.random(len(program.number)) < data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    above = program.pre @ columns >= 0
    lower = np.where(split & above, 0.0, program.lower)
    upper = np.where(split & ~above, 0.0, program.upper)
    triangles.restrict(lower, upper)
    solution = triangles.minimise()
    assert solution is not None
    assert solution.value <= (rows @ columns).max() + 1e-7
    if split.all():
        attained = np.concatenate([solution.point, solution.above, [1.0]])
        np.testing.assert_allclose((rows @ attained).max(), solution.value, atol=1e-6)
        assert solution.violation.max(initial=0.0) < 1e-7
    triangles.restrict(program.lower, program.upper)
    again, fresh = triangles.minimise(), Triangles(program, rows).minimise()
    assert again is not None
    assert fresh is not None
    assert again.value == pytest.approx(fresh.value, abs=1e-7)


def test_a_path_without_points_has_a_ray() -> None:
    """z = x and w = x + 3 over [-5, 5]: z >= 0 and w <= 0 contradict each other."""
    nodes = (
        Node("z", Linear(np.array([[1.0, 1.0]]), np.array([0.0, 3.0])), ("x",)),
        Node("h", Relu(2), ("z",)),
        Node("y", Linear(np.ones((2, 1))), ("h",)),
    )
    graph = Graph("x", 1, nodes, "y")
    whole = brancher(graph, make_problem([([-5.0], [5.0])], [(0, [([1.0], -1.0)])]))
    program = Program.build(graph, whole.root)
    triangles = Triangles(program, program.rows(whole.cases.forms(np.array([[0]]))))
    triangles.restrict(np.array([0.0, -2.0]), np.array([5.0, 0.0]))
    solution = triangles.minimise()
    assert solution is not None
    assert solution.value == np.inf
    assert not solution.weights.any()
    # flat z - steep' w with both multipliers alike: z - (x + 3) ... = -3 < 0 is what must be >= 0
    assert solution.flat[0] == pytest.approx(solution.steep[1])
    assert solution.flat[0] > 0


def test_polytope_multipliers_are_those_of_duality(rng: np.random.Generator) -> None:
    box = -np.ones(4), np.ones(4)
    rows, ends = rng.normal(size=(3, 4)), rng.uniform(0.1, 0.5, size=3)
    polytope = Polytope(box, rows, ends)
    for row in rng.normal(size=(5, 4)):
        answer = polytope.maximise(row)
        assert answer is not None
        value, point, multipliers = answer
        assert (rows @ point <= ends + 1e-7).all()
        assert value == pytest.approx(row @ point)
        bound = multipliers @ ends + abs(row - multipliers @ rows).sum()
        assert bound == pytest.approx(value)


def _two_readers() -> Graph:
    nodes = (
        Node("z", Linear(np.array([[1.0, -1.0]])), ("x",)),
        Node("h", Relu(2), ("z",)),
        Node("k", LeakyRelu(2, np.array(0.5)), ("z",)),
        Node("y", Sum(2, (1, 1)), ("h", "k")),
    )
    return Graph("x", 1, nodes, "y")


def _sigmoid() -> Graph:
    return Graph("x", 1, (Node("y", Sigmoid(1), ("x",)),), "y")


def test_what_it_is_for(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    def fits(graph: Graph) -> bool:
        box = Box(-np.ones((1, graph.input_size)), np.ones((1, graph.input_size)))
        return applicable(graph, crown_bounds(graph, box).boxes)

    small = relu_network(rng, [3, 6, 2])
    assert fits(small)
    assert not fits(_two_readers())
    assert not fits(_sigmoid())
    with monkeypatch.context() as patch:
        patch.setattr(exact, "_LARGEST", 8)
        assert not fits(small)
    monkeypatch.setattr(linear, "find_spec", lambda name: None)
    assert not fits(small)


def test_no_time_leaves_the_trees_alone(rng: np.random.Generator) -> None:
    graph = relu_network(rng, [3, 6, 2])
    problem = make_problem([([-1.0] * 3, [1.0] * 3)], [(0, [([1.0, 1.0], 0.0)])])
    run = search(graph, problem)
    assert run.run(Deadline(0.0)) is Reason.TIMEOUT
    trees = run.brancher.trees
    assert not trees.roots
    assert not trees.splits
    assert not trees.leaves


def test_patience_ends_before_the_deadline(rng: np.random.Generator) -> None:
    graph = relu_network(rng, [3, 6, 2])
    problem = make_problem([([-1.0] * 3, [1.0] * 3)], [(0, [([1.0, 1.0], 0.0)])])
    deadline = Deadline(1e9)
    assert search(graph, problem).run(deadline, deadline.slice(0.0)) is Reason.TIMEOUT


def test_a_boundary_is_left_open() -> None:
    """The least output over [0, 1] is zero, and y < 0 has no solution that bounds could exclude."""
    nodes = (
        Node("z", Linear(np.array([[1.0, -1.0]])), ("x",)),
        Node("h", Relu(2), ("z",)),
        Node("y", Linear(np.ones((2, 1))), ("h",)),
    )
    graph = Graph("x", 1, nodes, "y")
    problem = make_problem([([-1.0], [1.0])], [(0, [([1.0], 0.0, True)])])
    assert search(graph, problem).run(Deadline(30.0)) is Reason.INCOMPLETE


# Certificates


@pytest.fixture
def only_programs(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Take the ordinary search of neuron splits away; the answers of the programs."""
    answers: list[object] = []
    ordinary, programs = BranchAndBound.run, LinearSearch.run

    def run(loop: BranchAndBound, brancher: object, *arguments: object) -> object:
        if isinstance(brancher, NeuronSplit):
            return Reason.TIMEOUT
        return ordinary(loop, brancher, *arguments)  # type: ignore[arg-type]

    def noted(whole: LinearSearch, *arguments: object) -> object:
        answers.append(programs(whole, *arguments))  # type: ignore[arg-type]
        return answers[-1]

    monkeypatch.setattr(BranchAndBound, "run", run)
    monkeypatch.setattr(LinearSearch, "run", noted)
    return answers


def _verify(files: Files, **options: object) -> Result:
    """Without planes and narrowing, which leave little to do."""
    off = {"planes": "off", "narrowing": "off"}
    few = {"splitting": "neuron", "attack_restarts": 0} | off
    return files.verify(**few | options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sizes", "curve"),
    [
        ([4, 8, 1], "Relu"),
        ([6, 24, 1], "Relu"),
        ([4, 6, 6, 1], "Relu"),
        ([4, 8, 1], "LeakyRelu"),
    ],
)
@pytest.mark.parametrize("seed", [1, 4, 5])
def test_the_checker_accepts(
    sizes: list[int], curve: str, seed: int, tmp_path: Path, only_programs: list[object]
) -> None:
    model, box = dense(sizes, seed, curve=curve), ([-1.0] * sizes[0], [1.0] * sizes[0])
    low, spread = least(model, [1.0], *box)
    files = Files.write(tmp_path, model, spec((*box, [([1.0], low - 0.01 * spread)])))
    assert _verify(files).word == "unsat"
    assert only_programs == [None]
    assert "VERIFIED UNSAT" in files.check()


@pytest.mark.parametrize("seed", [1, 4, 5])
def test_witnesses_are_found(seed: int, tmp_path: Path, only_programs: list[object]) -> None:
    model, box = dense([6, 24, 1], seed), ([-1.0] * 6, [1.0] * 6)
    low, spread = least(model, [1.0], *box)
    files = Files.write(tmp_path, model, spec((*box, [([1.0], low + 0.001 * spread)])))
    assert _verify(files).word == "sat"
    assert isinstance(only_programs[0], Counterexample)


def _formula(clauses: list[list[int]], variables: int) -> onnx.ModelProto:
    """y0 <= 0 asks for all clauses, y1 <= 0 for variables in {0, 1}; -3 is the negation of 3.

    y0 = sum of max(1 - literals, 0), y1 = sum of x - max(2 x - 1, 0).
    """
    weight = np.zeros((variables, len(clauses) + 2 * variables), np.float32)
    bias = np.zeros(weight.shape[1], np.float32)
    for number, clause in enumerate(clauses):
        bias[number] = 1 - sum(literal < 0 for literal in clause)
        for literal in clause:
            weight[abs(literal) - 1, number] = -np.sign(literal)
    each = np.arange(variables)
    weight[each, len(clauses) + each], weight[each, len(clauses) + variables + each] = 1, 2
    bias[len(clauses) + variables :] = -1
    second = np.zeros((weight.shape[1], 2), np.float32)
    second[: len(clauses), 0] = 1
    second[len(clauses) : len(clauses) + variables, 1] = 1
    second[len(clauses) + variables :, 1] = -1
    nodes = [
        helper.make_node("Gemm", ["x", "a", "b"], ["z"]),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("MatMul", ["h", "c"], ["y"]),
    ]
    return model_of(nodes, {"x": [1, variables]}, ["y"], {"a": weight, "b": bias, "c": second})


def _all_clauses(prefix: list[int], free: list[int]) -> list[list[int]]:
    """The clauses that together exclude every assignment with the prefix false."""
    return [
        [*prefix, *(v * s for v, s in zip(free, signs, strict=True))]
        for signs in product((-1, 1), repeat=len(free))
    ]


def _asked(variables: int) -> bytes:
    box = [0.0] * variables, [1.0] * variables
    return spec((*box, [([1.0, 0.0], 0.0), ([0.0, 1.0], 0.0)]), outputs=2)


CLAUSES = _all_clauses([1], [2, 3, 4, 5]) + _all_clauses([-1], [6, 7, 8, 9])
"""Unsatisfiable: x1 decides which half of the variables has no value left."""


def test_logic_is_split_where_it_matters(tmp_path: Path, only_programs: list[object]) -> None:
    files = Files.write(tmp_path, _formula(CLAUSES, 9), _asked(9))
    result = _verify(files)
    assert result.word == "unsat"
    assert only_programs == [None]
    assert "VERIFIED UNSAT" in files.check()
    assert result.statistics["closed"] <= len(CLAUSES)


def test_logic_with_one_solution(tmp_path: Path, only_programs: list[object]) -> None:
    """Without one of the clauses exactly its falsification, and the other half, is left."""
    files = Files.write(tmp_path, _formula(CLAUSES[1:], 9), _asked(9))
    result = _verify(files)
    assert isinstance(result.verdict, Sat)
    (found,) = result.verdict.counterexample.inputs.values()
    assert found.ravel()[:5].tolist() == [0.0, 1.0, 1.0, 1.0, 1.0]


def test_tightenings_are_splits_beside_the_kink(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, only_programs: list[object]
) -> None:
    """They make the trees smaller, and the checker follows them."""
    model, box = dense([8, 40, 1], 3), ([-1.0] * 8, [1.0] * 8)
    low, spread = least(model, [1.0], *box)
    files = Files.write(tmp_path, model, spec((*box, [([1.0], low - 0.05 * spread)])))
    written: list[_Tree] = []
    write = _Tree.write
    monkeypatch.setattr(
        _Tree, "write", lambda tree, *others: (written.append(tree), write(tree, *others))
    )
    kinks = []
    for gain in (exact._GAIN, 2.0):
        monkeypatch.setattr(exact, "_GAIN", gain)
        assert _verify(files).word == "unsat"
        assert "VERIFIED UNSAT" in files.check()
        points = [point for *_, point in written[-1].children.values()]
        kinks.append(points.count(0.0))
        assert (len(points) > kinks[-1]) == (gain < 1)
    assert kinks[0] < kinks[1]


def test_nothing_but_verdicts_on_standard_output() -> None:
    """Some versions of HiGHS greet there when the first solver is made."""
    code = "from onnxcert.search import linear; linear._solver().run(); print('verdict')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "verdict\n"
