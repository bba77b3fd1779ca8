"""Cases, nodes and neurons as the checker counts them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxcert
from onnxcert.checker import Unusable, container
from onnxcert.checker.spec import read_spec
from onnxcert.frontend.lower import lower_query
from onnxcert.frontend.write import format_vnnlib
from onnxcert.proof.trace import NOTHING, InputTrees, Trace
from onnxcert.proof.writer import CaseNumbers, Writer
from onnxcert.spec import Problem
from tests import hasty
from tests.checker.makers import Rows, spec
from tests.frontend.onnx_models import model_of
from tests.proof.networks import CUBE, Files, least
from tests.strategies import make_problem

SQUARE = ([-1.0, -1.0], [1.0, 1.0])
HALF = ([-1.0, -1.0], [1.0, 0.0])
FIRST: Rows = [([1.0, 0.0], 0.5), ([0.0, 1.0], -0.25), ([1.0, -1.0], 2.0)]
SECOND: Rows = [([1.0, 0.0], -0.5)]

Disjuncts = list[tuple[tuple[list[float], list[float]], Rows]]


def numbered(disjuncts: Disjuncts) -> CaseNumbers:
    text = spec(*((*box, rows) for box, rows in disjuncts), outputs=2)
    return CaseNumbers(read_spec(text))


def problem(disjuncts: Disjuncts, numbers: list[int] | None = None) -> Problem:
    """The search's view of the same: ``row . y - bound <= 0``; boxes and rows stand once."""
    boxes = [SQUARE, HALF]
    made = make_problem(
        [SQUARE, HALF],
        [
            (boxes.index(box), [(list(row), -bound) for row, bound in rows])
            for box, rows in disjuncts
        ],
    )
    made.case_disjunct[:] = range(len(disjuncts)) if numbers is None else numbers
    return made


def test_cases_are_paired_by_what_they_say() -> None:
    """Neither the order of cases nor that of their rows is the checker's."""
    order = [2, 0, 1]
    cases: Disjuncts = [(SQUARE, FIRST), (HALF, FIRST), (SQUARE, SECOND)]
    known = numbered(cases)
    turned: Disjuncts = [(cases[k][0], list(reversed(cases[k][1]))) for k in order]
    known.add(problem(turned))
    assert [known[disjunct].number for disjunct in range(3)] == order
    assert [known[disjunct].box for disjunct in range(3)] == [0, 0, 1]
    assert [known[disjunct].order.tolist() for disjunct in range(3)] == [[0], [2, 1, 0], [2, 1, 0]]
    assert known.disjuncts(np.array([2, 1])) == {0, 2}


def test_equal_cases_are_numbered_apart() -> None:
    known = numbered([(SQUARE, FIRST), (SQUARE, SECOND), (SQUARE, FIRST)])
    known.add(problem([(SQUARE, FIRST)], [5]))
    known.add(problem([(SQUARE, FIRST), (SQUARE, SECOND)], [7, 6]))
    assert [known[disjunct].number for disjunct in (5, 6, 7)] == [0, 1, 2]
    with pytest.raises(Unusable, match="no case like disjunct 8"):
        known.add(problem([(SQUARE, FIRST)], [8]))


@pytest.mark.parametrize(
    "other",
    [
        (HALF, SECOND),
        (SQUARE, [([1.0, 0.0], -0.25)]),
        (SQUARE, [([1.0, 0.0], -0.5), ([0.0, 1.0], 0.0)]),
        (SQUARE, [([-1.0, 0.0], -0.5)]),
    ],
    ids=["box", "bound", "rows", "sign"],
)
def test_cases_that_the_checker_does_not_read_are_no_cases(
    other: tuple[tuple[list[float], list[float]], Rows],
) -> None:
    with pytest.raises(Unusable, match="no case like disjunct 0"):
        numbered([(SQUARE, SECOND)]).add(problem([other]))


def test_strict_rows_are_other_rows() -> None:
    made = problem([(SQUARE, SECOND)])
    made.strict[:] = True
    with pytest.raises(Unusable, match="no case"):
        numbered([(SQUARE, SECOND)]).add(made)


def test_minus_zero_is_zero() -> None:
    made = problem([(HALF, SECOND)])
    made.upper[made.upper == 0] = -0.0
    known = numbered([(HALF, SECOND)])
    known.add(made)
    assert known[0].number == 0


def written(trace: Trace, known: CaseNumbers) -> tuple[Writer, dict[str, np.ndarray]]:
    writer = Writer(known)
    return writer, writer.arrays(trace)


def test_plain_bounds_are_leaves_one_for_each_box() -> None:
    """Only sums of rows need words: single rows are all tried."""
    cases: Disjuncts = [(SQUARE, FIRST), (HALF, FIRST), (SQUARE, SECOND), (HALF, SECOND)]
    known = numbered(cases)
    made = problem([(box, list(reversed(rows))) for box, rows in cases])
    known.add(made)
    trace = Trace()
    trace.refuted(made, np.array([3, 1]), np.array([[1.0, 0, 0], [0.0, 2.0, 0.5]]))
    trace.refuted(made, np.array([], int))
    trace.refuted(made, np.array([2, 0]))
    writer, arrays = written(trace, known)
    assert arrays["group"].tolist() == [[0, 4, 2, 1, 0, 0]]
    assert arrays["case"].tolist() == [0, 1, 2, 3]
    assert arrays["op"].tolist() == [0, 0]
    assert arrays["combine"].tolist() == [[1, 1]]
    weights = (arrays["weight"].astype(np.uint32) << 16).view(np.float32)
    assert weights.tolist() == [0.5, 2.0, 0.0]
    assert (writer.leaves, [group for group, _, _ in writer.groups]) == (2, [None])


def test_nodes_are_in_preorder_below_roots_in_the_order_of_boxes() -> None:
    """The search makes nodes breadth first and plants roots in any order."""
    cases: Disjuncts = [(SQUARE, FIRST), (HALF, SECOND), (SQUARE, SECOND)]
    known, made = numbered(cases), problem(cases)
    known.add(made)
    trees = InputTrees(made)
    second, first = trees.plant(np.array([[1, -1], [2, 0]])).tolist()
    low, high = trees.step(NOTHING, np.array([first]), np.array([1]))
    inner = trees.step(NOTHING, np.array([high[0], second]), np.array([0, 1]))
    (high_low, second_low), (high_high, second_high) = (side.tolist() for side in inner)
    nodes, numbers = np.array([second_low, low[0]]), np.array([1, 0])
    sums = nodes, numbers, np.array([[3.0, 0, 0], [0.5, 0.25, 4.0]])
    trees.step(
        np.array([low[0], high_low, high_high, *inner[0][1:], second_high]), *[NOTHING] * 2, sums
    )
    trace = Trace(groups=[trees])
    writer, arrays = written(trace, known)
    assert writer.groups[0][1].tolist() == [
        *(first, low[0], high[0], high_low, high_high),
        *(second, second_low, second_high),
    ]
    assert arrays["group"].tolist() == [[0, 3, 8, 2, 0, 0]]
    assert arrays["op"].tolist() == [1, 0, 1, 0, 0, 1, 0, 0]
    assert arrays["arg"].tolist() == [1, 0, 1]
    assert arrays["combine"].tolist() == [[1, 0], [6, 1]]
    weights = (arrays["weight"].astype(np.uint32) << 16).view(np.float32)
    assert weights.tolist() == [0.5, 0.25, 4.0, 3.0]
    assert writer.leaves == 5


def test_what_is_forgotten_is_in_no_group() -> None:
    cases: Disjuncts = [(SQUARE, FIRST), (HALF, FIRST), (SQUARE, SECOND)]
    known, made = numbered(cases), problem(cases)
    known.add(made)
    trace = Trace()
    trace.refuted(made, np.array([0, 1]))
    trace.refuted(made, np.array([2]))
    trace.forget({1, 2})
    _, arrays = written(trace, known)
    assert arrays["case"].tolist() == [0]
    trace.forget({0})
    assert len(written(trace, known)[1]["group"]) == 0


def _dying(tmp_path: Path) -> Files:
    """Two hidden layers of which most neurons are dead or linear on the box: few stay unstable."""
    rng = np.random.default_rng(4)
    first = np.array([-9, 0.25, 9, -9, 0.125, 0, -0.5, -0.25])
    second = np.array([-99, 0.5, -99, -1, 0, 99, -0.5, 1])
    constants = {"a": rng.normal(size=(3, 8)), "b": first, "c": rng.normal(size=(8, 8))}
    constants |= {"d": second, "e": rng.normal(size=(8, 1))}
    stored = {
        name: (np.round(8 * array) / 8).astype(np.float32) for name, array in constants.items()
    }
    nodes = [
        helper.make_node("Gemm", ["x", "a", "b"], ["z"]),
        helper.make_node("Relu", ["z"], ["first"]),
        helper.make_node("Gemm", ["first", "c", "d"], ["s"]),
        helper.make_node("Relu", ["s"], ["second"]),
        helper.make_node("MatMul", ["second", "e"], ["y"]),
    ]
    model = model_of(nodes, {"x": [1, 3]}, ["y"], stored)
    low, spread = least(model, [1.0])
    return Files.write(tmp_path, model, spec((*CUBE, [([1.0], low - 0.02 * spread)])))


def test_neurons_are_numbered_as_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dead neurons are dropped before the search; what is left keeps its place in the file."""
    hasty.skip_plain_bounds(monkeypatch)  # layers shall have hints
    files = _dying(tmp_path)
    assert files.verify(splitting="neuron").word == "unsat"
    assert files.check() == "VERIFIED UNSAT (real)"
    header, arrays = container.unpack(files.proof.read_bytes())
    unstable = [
        (layer, int(position))
        for layer, z in enumerate(_pre_activations(files))
        for position in np.flatnonzero((z.min(axis=0) < 0) & (z.max(axis=0) > 0))
    ]
    assert unstable == [(0, 1), (0, 4), (0, 5), (0, 6), (0, 7), (1, 3), (1, 6), (1, 7)]
    assert header["layers"] == ["first", "second"]
    assert arrays["column"].tolist() == [list(pair) for pair in unstable]
    splits = set(zip(arrays["layer"].tolist(), arrays["arg"].tolist(), strict=True))
    assert {layer for layer, _ in splits} == {0, 1}
    assert splits <= set(unstable)
    assert (arrays["hint"][:, 0] == 1).all()
    assert set(arrays["hint_row"].tolist()) == {3, 6, 7}
    slopes = arrays["hint_slope"].reshape(len(arrays["hint_row"]), 5)  # the columns of `first`
    assert (slopes > 0).any(axis=0).all()


def _pre_activations(files: Files) -> list[np.ndarray]:
    stored = {
        tensor.name: onnx.numpy_helper.to_array(tensor).astype(float)
        for tensor in onnx.load(files.model).graph.initializer
    }
    x = np.random.default_rng(0).uniform(*CUBE, size=(20_000, 3))
    z = x @ stored["a"] + stored["b"]
    return [z, np.maximum(z, 0) @ stored["c"] + stored["d"]]


def test_queries_are_numbered_as_the_checker_reads_what_saving_them_writes() -> None:
    built = onnxcert.linf_ball([Fraction(1, 3), 0.1, 0], Fraction(1, 10), label=0)
    query = built.to_query([(1, 3)], [(1, 2)])
    known = CaseNumbers(read_spec(format_vnnlib(query).encode()))
    for made in lower_query(query).cases:
        known.add(made)
        assert [known[d].number for d in made.case_disjunct] == [0]
