"""Linear programs over one input box: triangles for unstable neurons, solved by HiGHS.

Every curve with two slopes is ``h = a z + (b - a) v`` with ``v = max(z, 0)``. With ``r = v - z``
the triangle (Ehlers 2017) over ``l <= z <= u`` reads

    z = v - r,    v >= 0,    r >= 0,    v / u + r / -l <= 1,

so a split at the kink fixes one of two columns at zero (``r`` above it, ``v`` below) and lifts the
chord; no coefficient changes, and the basis of one subproblem serves the next. Stable neurons are
substituted; the columns are the inputs, v, r, and t, which is minimised over ``g_m <= t`` for all
rows m of a case: where the least t is positive, the case is refuted.

The dual solution is a bound by backward substitution (Salman et al., *A Convex Relaxation Barrier*,
2019): weights of the rows are the duals of ``g_m <= t``, the free line of an unstable neuron lies
between those through ``v >= 0`` and ``r >= 0`` as their duals say, and the multiplier of a split is
the dual of the column that it leaves free. Here these are hints only: floating point solves the
program, and whoever uses them bounds again.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcert.arrays import FloatArray, IntArray, to_host
from onnxcert.graph import Graph
from onnxcert.ops.base import Affine, Elementwise
from onnxcert.ops.two_slope import TwoSlope
from onnxcert.sets import Box

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from onnxcert.bounds.optimised import Forms


def available() -> bool:
    """Whether HiGHS is installed (the extra ``lp``)."""
    return find_spec("highspy") is not None


@dataclass(frozen=True, eq=False)
class Program:
    """The network over one box as linear maps of its inputs and of ``v`` of its unstable neurons.

    Attributes:
        box: the inputs, (n,) each side.
        number: (K,) of the unstable neurons, as `onnxcert.proof.trace.NeuronTrees` counts.
        layers: elementwise node -> its neurons here (a slice of K), and their positions in it.
        lower, upper: (K,) their bounds over the box.
        pre: (K, n + K + 1) pre-activations: coefficients of inputs and v, then constants.
        output: (m, n + K + 1) likewise.
    """

    box: tuple[FloatArray, FloatArray]
    number: IntArray
    layers: Mapping[str, tuple[slice, IntArray]]
    lower: FloatArray
    upper: FloatArray
    pre: FloatArray
    output: FloatArray

    @staticmethod
    def expressible(graph: Graph) -> bool:
        """Whether all curves have two slopes, each pre-activation has one reader, and no computed
        values are multiplied."""
        curves = [node.op for node in graph.nodes if isinstance(node.op, Elementwise)]
        single = all(graph.consumers[name] == 1 for name in graph.pre_activations)
        bent = any(not isinstance(curve, TwoSlope) for curve in curves)
        return single and not bent and not graph.factors

    @classmethod
    def size(cls, graph: Graph, boxes: Mapping[str, Box]) -> int:
        """Entries of the matrix of pre-activations, K (n + K)."""
        count = sum(len(_unstable(boxes[name])) for name in graph.pre_activations)
        return count * (graph.input_size + count)

    @classmethod
    def build(cls, graph: Graph, boxes: Mapping[str, Box]) -> Program:
        """Push the columns through the network; ``boxes`` bound every value (batches of one)."""
        inputs = graph.input_size
        layers: dict[str, tuple[slice, IntArray]] = {}
        numbers, begin = [], 0
        for name, (node,) in graph.pre_activations.items():
            index = _unstable(boxes[name])
            layers[node.name] = slice(begin, begin + len(index)), index
            numbers.append(graph.numbering[name].start + index)
            begin += len(index)
        values: dict[str, FloatArray] = {graph.input: np.eye(inputs + begin + 1, inputs)}
        lower, upper = np.zeros(begin), np.zeros(begin)
        pre = np.zeros((begin, inputs + begin + 1))
        for node in graph.nodes:
            read = [values[name] for name in node.inputs]
            if isinstance(node.op, Affine):
                values[node.name] = _through_affine(node.op, read)
                continue
            here, index = layers[node.name]
            box = boxes[node.inputs[0]]
            lower[here], upper[here] = to_host(box.lower)[0, index], to_host(box.upper)[0, index]
            pre[here] = read[0][:, index].T
            assert isinstance(node.op, TwoSlope)
            left, right = (
                np.broadcast_to(np.asarray(side), (node.op.size,)) for side in node.op.slopes
            )
            value = read[0] * np.where(to_host(box.lower)[0] >= 0, right, left)
            value[:, index] = read[0][:, index] * left[index]
            columns = inputs + np.arange(here.start, here.stop)
            value[columns, index] += (right - left)[index]
            values[node.name] = value
        ends = boxes[graph.input]
        return cls(
            (to_host(ends.lower)[0], to_host(ends.upper)[0]),
            np.concatenate([np.zeros(0, np.int64), *numbers]),
            layers,
            lower,
            upper,
            pre,
            values[graph.output].T,
        )

    @cached_property
    def direct(self) -> IntArray:
        """Which neurons are linear in the inputs, as positions in K."""
        inputs = len(self.box[0])
        return np.flatnonzero(~self.pre[:, inputs:-1].any(axis=1))

    def rows(self, forms: Forms) -> FloatArray:
        """The used rows of a case (a batch of one) over the columns and one: (R, n + K + 1)."""
        used = to_host(forms.used)[0]
        rows: FloatArray = to_host(forms.rows)[0][used] @ self.output
        if forms.input_rows is not None:
            rows[:, : len(self.box[0])] += to_host(forms.input_rows)[0][used]
        rows[:, -1] += to_host(forms.offset)[0][used]
        return rows


def _unstable(box: Box) -> IntArray:
    return np.flatnonzero((to_host(box.lower)[0] < 0) & (to_host(box.upper)[0] > 0))


def _through_affine(op: Affine, read: list[FloatArray]) -> FloatArray:
    """The maps of what an affine node makes: its linear part of columns, itself of constants."""
    value = np.array(op.apply(read), dtype=float)
    value[-1] = op.forward([part[-1:] for part in read])[0]
    return value


@dataclass(frozen=True, eq=False)
class Solution:
    """The least t and where it is attained, with its dual.

    Attributes:
        value: the least t; infinite where no point lies on the path.
        point, above, below: (n,) inputs, (K,) v and r; not to be used where the value is infinite.
        weights: (R,) duals of the rows.
        reduced: (n,) reduced costs of the inputs.
        flat, steep: (K,) duals of ``v >= 0`` and of ``r >= 0``.
        chord: (K,) duals of the chords.
    """

    value: float
    point: FloatArray
    above: FloatArray
    below: FloatArray
    weights: FloatArray
    reduced: FloatArray
    flat: FloatArray
    steep: FloatArray
    chord: FloatArray

    @property
    def violation(self) -> FloatArray:
        """How far each v is from max(z, 0)."""
        return np.minimum(self.above, self.below)


@cache
def _highs() -> Any:
    """The module, once it is needed.

    HiGHS 1.16 greets on standard output when the first solver is made, before it can be asked not
    to; but verdicts go there, and messages between processes.
    """
    import highspy  # noqa: PLC0415 - optional

    with _nothing_printed():
        highspy.Highs()
    return highspy


@contextmanager
def _nothing_printed() -> Iterator[None]:
    """Whatever libraries write to standard output meanwhile is lost."""
    try:
        kept = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _solver() -> Any:
    solver = _highs().Highs()
    for option, value in {
        "output_flag": False,
        "threads": 1,
        "presolve": "off",
        "solver": "simplex",
    }.items():
        solver.setOptionValue(option, value)
    return solver


def _pass(
    solver: Any,
    cost: FloatArray,
    columns: tuple[FloatArray, FloatArray],
    rows: tuple[FloatArray, FloatArray],
    matrix: FloatArray,
) -> None:
    """Hand over ``min cost x`` with bounds of columns and rows; the matrix is dense."""
    program = _highs().HighsLp()
    program.num_row_, program.num_col_ = matrix.shape
    program.col_cost_ = cost
    program.col_lower_, program.col_upper_ = columns
    program.row_lower_, program.row_upper_ = rows
    row, column = np.nonzero(matrix)
    program.a_matrix_.format_ = _highs().MatrixFormat.kRowwise
    program.a_matrix_.start_ = np.searchsorted(row, np.arange(len(matrix) + 1))
    program.a_matrix_.index_ = column
    program.a_matrix_.value_ = matrix[row, column]
    solver.passModel(program)


class Triangles:
    """The program of one case; its neurons may be restricted again and again.

    Args:
        program: the network.
        rows: (R, n + K + 1) of the case (`Program.rows`).
    """

    def __init__(self, program: Program, rows: FloatArray) -> None:
        self._inputs, self._count = len(program.box[0]), len(program.number)
        inputs, count = self._inputs, self._count
        each = np.arange(count)
        matrix = np.zeros((2 * count + len(rows), inputs + 2 * count + 1))
        matrix[:count, : inputs + count] = -program.pre[:, :-1]
        matrix[each, inputs + each] += 1.0
        matrix[each, inputs + count + each] -= 1.0
        above, below, self._ends_of_chords = _chords(program.lower, program.upper)
        matrix[count + each, inputs + each] = above
        matrix[count + each, inputs + count + each] = below
        matrix[2 * count :, : inputs + count] = rows[:, :-1]
        matrix[2 * count :, -1] = -1.0
        free = np.full(count + len(rows), -np.inf)
        cost = np.zeros(inputs + 2 * count + 1)
        cost[-1] = 1.0
        self._matrix, self._cost = matrix, cost
        self._ends = (
            np.concatenate([program.box[0], np.zeros(2 * count), [-np.inf]]),
            np.concatenate([program.box[1], np.full(2 * count + 1, np.inf)]),
        )
        self._sides = (
            np.concatenate([program.pre[:, -1], free]),
            np.concatenate([program.pre[:, -1], self._ends_of_chords, -rows[:, -1]]),
        )
        self._solver = _solver()
        _pass(self._solver, cost, self._ends, self._sides, matrix)
        self._lower, self._upper = program.lower, program.upper

    def restrict(self, lower: FloatArray, upper: FloatArray) -> None:
        """Set the bounds of the neurons, (K,) each: one side zero for a split at the kink."""
        inputs, count = self._inputs, self._count
        moved = np.flatnonzero((lower != self._lower) | (upper != self._upper))
        if len(moved) == 0:
            return
        self._lower, self._upper = lower, upper
        low, high = lower[moved], upper[moved]
        on, off = low >= 0, (high <= 0) & (low < 0)
        self._bound_columns(inputs + moved, np.where(off, 0.0, np.inf))
        self._bound_columns(inputs + count + moved, np.where(on, 0.0, np.inf))
        above, below, ends = _chords(np.where(on, -1.0, low), np.where(off, 1.0, high))
        self._ends_of_chords[moved] = ends
        self._sides[1][count + moved] = np.where(on | off, np.inf, ends)
        self._solver.changeRowsBounds(
            len(moved), count + moved, np.full(len(moved), -np.inf), self._sides[1][count + moved]
        )
        for position in np.flatnonzero(~(on | off)):
            row = count + moved[position]
            for column, values in ((row - count, above), (row, below)):
                self._matrix[row, inputs + column] = values[position]
                self._solver.changeCoeff(int(row), int(inputs + column), float(values[position]))

    def _bound_columns(self, columns: IntArray, upper: FloatArray) -> None:
        self._ends[1][columns] = upper
        self._solver.changeColsBounds(len(columns), columns, np.zeros(len(columns)), upper)

    def minimise(self) -> Solution | None:
        """The least t; None where the solver gives up, which it may in floating point."""
        status_of = _highs().HighsModelStatus
        done = {status_of.kOptimal, status_of.kInfeasible}
        self._solver.run()
        if self._solver.getModelStatus() not in done:
            self._solver.clearSolver()
            self._solver.run()
        status = self._solver.getModelStatus()
        if status not in done:
            return None
        if status == status_of.kInfeasible:
            return self._infeasible()
        found = self._solver.getSolution()
        return self._solution(
            float(self._solver.getInfo().objective_function_value),
            np.array(found.col_value),
            np.array(found.col_dual),
            np.array(found.row_dual),
        )

    def _infeasible(self) -> Solution | None:
        """A ray of the dual (Farkas): a sum of constraints that no point of the box satisfies."""
        _, known, ray = self._solver.getDualRay()
        if not known:
            return None
        for dual in (np.array(ray), -np.array(ray)):
            cost = -(dual @ self._matrix)
            terms = [
                _least(dual, *self._sides),
                _least(cost, *self._ends),
            ]
            if sum(terms) > 0:
                scale = max(1e-30, float(abs(dual).max()))
                nowhere = np.zeros(len(cost))
                return self._solution(np.inf, nowhere, cost / scale, dual / scale)
        return None

    def _solution(
        self, value: float, primal: FloatArray, reduced: FloatArray, dual: FloatArray
    ) -> Solution:
        inputs, count = self._inputs, self._count
        return Solution(
            value,
            primal[:inputs],
            primal[inputs : inputs + count],
            primal[inputs + count : inputs + 2 * count],
            np.maximum(-dual[2 * count :], 0.0),
            reduced[:inputs],
            np.maximum(reduced[inputs : inputs + count], 0.0),
            np.maximum(reduced[inputs + count : inputs + 2 * count], 0.0),
            np.maximum(-dual[count : 2 * count], 0.0) * self._ends_of_chords,
        )


def _chords(lower: FloatArray, upper: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The rows ``v / u + r / -l <= 1`` times the number that makes their larger entry one.

    Bounds may differ in size by more than the solver can bear: neurons that are unstable by no more
    than a rounding error are common.
    """
    size = np.maximum(upper, -lower)
    return -lower / size, upper / size, -lower * upper / size


def _least(cost: FloatArray, lower: FloatArray, upper: FloatArray) -> float:
    """The least of ``cost x`` over a box; coefficients that are noise do not meet infinite ends."""
    cost = np.where(abs(cost) > 1e-9, cost, 0.0)
    end = np.where(cost > 0, lower, upper)
    return float(np.where(cost == 0, 0.0, cost * np.where(cost == 0, 0.0, end)).sum())


class Polytope:
    """A part of the input box: linear functions are maximised over it, one after the other.

    Args:
        box: its sides, (n,) each.
        rows, ends: (m, n) and (m,): ``rows x <= ends``.
    """

    def __init__(
        self, box: tuple[FloatArray, FloatArray], rows: FloatArray, ends: FloatArray
    ) -> None:
        inputs = len(box[0])
        self._every = np.arange(inputs)
        self._solver = _solver()
        self._solver.setOptionValue("simplex_strategy", 4)  # primal: only the objective changes
        _pass(
            self._solver,
            np.zeros(inputs),
            box,
            (np.full(len(ends), -np.inf), ends),
            rows,
        )

    def maximise(self, row: FloatArray) -> tuple[float, FloatArray, FloatArray] | None:
        """The largest value of a row (n,), where it is attained, and multipliers (m,) of the rows.

        None where the solver gives up.
        """
        self._solver.changeColsCost(len(row), self._every, -row)
        self._solver.run()
        if self._solver.getModelStatus() != _highs().HighsModelStatus.kOptimal:
            return None
        found = self._solver.getSolution()
        value = -float(self._solver.getInfo().objective_function_value)
        multipliers = np.maximum(-np.array(found.row_dual), 0.0)
        return value, np.array(found.col_value), multipliers
