"""Better multipliers for the recursion of `onnxcert.continuity.ellipsoid`, by gradients.

The multipliers D, one for every bent neuron, are free as long as D - A stays positive definite; at
the best ones the recursion gives what the semidefinite program of LipSDP-Neuron gives. Here the
mean of log K^2 over the pairs of outputs is minimised over log D. Its gradient is the recursion
run backward: with G the derivative with respect to Q', an affine step sends T^T G T on, and a curve
with Y = (D - A)^-1 B sends

    G + E^T Y G + (Y G)^T E + E^T Y G Y^T E,      and      diag(G_gg) - diag(Y G Y^T)      to D.

The optimum often lies where some D - A is singular in directions that do not matter to the outputs,
and a descent would crawl along that boundary. So a barrier ``-mu log det (I - D^-1 A)`` keeps it
away, and mu falls in a few stages, each of which is minimised by L-BFGS (Nocedal, 1980) with
backtracking. Nothing here is charged with rounding and nothing has to be: `ellipsoid.enclose` runs
the recursion again with the numbers found.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from onnxcert.arrays import Array, FloatArray
from onnxcert.continuity.ellipsoid import Plan, State, Step, affine, input_diagonal

_BARRIERS, _STEPS = (1e-1, 1e-2, 1e-3, 1e-4), 60
"""Weights of the barrier, to be shared by all multipliers, and steps at each. On five networks the
last is within 1e-4 of the optimum, and other stages were not better."""

_MEMORY = 16
_ARMIJO = 1e-4
_HALVINGS = 30
_LONGEST = 2.0
"""Largest change of a log multiplier in one step."""

_ENOUGH = 2e-6
"""A step that lowers the objective by less, several times in a row, ends the descent."""

_PATIENCE = 5


@dataclass(eq=False)
class _Tape:
    """What a forward run leaves for the way back: per step the state before and what it solved."""

    steps: list[tuple[Step, State, _Bend | None]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Bend:
    """Numbers of one curve's step."""

    z: Array
    needed: Array
    bent: Array
    solved: FloatArray
    scales: FloatArray
    inverse: FloatArray | None


@dataclass(eq=False)
class Objective:
    """Mean log K^2 as a function of log D, and of log weights of the inputs for l_inf.

    Args:
        plan: of the network.
        norm: of the input.
        barrier: weight of the barrier; may be changed between descents.
    """

    plan: Plan
    norm: str
    barrier: float = 0.0

    def __post_init__(self) -> None:
        network = self.plan.network
        self.bent = {
            name: np.flatnonzero(network.slopes[name].rad != 0.0) for name in self.plan.gates
        }
        self.weights = self.plan.graph.input_size if self.norm == "inf" else 0
        self.size = self.weights + sum(map(len, self.bent.values()))
        self.first, self.start = 0, self._input_state(np.zeros(self.weights))
        if self.norm == "inf":
            return
        for step in self.plan.steps:  # what comes before the first curve never changes
            if step.op is None:
                break
            self.start = affine(self.start, step, rigorous=False)
            self.first += 1

    def _input_state(self, logs: FloatArray) -> State:
        weights = np.exp(logs) if self.norm == "inf" else None
        diagonal = input_diagonal(self.plan.graph.input_size, self.norm, weights)
        return State.at_input(self.plan.graph, diagonal)

    def pack(self, multipliers: dict[str, FloatArray]) -> FloatArray:
        """The variables of given multipliers."""
        logs = [np.log(multipliers[name][bent]) for name, bent in self.bent.items()]
        return np.concatenate([np.zeros(self.weights), *logs])

    def unpack(self, variables: FloatArray) -> tuple[dict[str, FloatArray], FloatArray]:
        """(D of each curve, diagonal of the input ellipsoid)."""
        result: dict[str, FloatArray] = {}
        begin = self.weights
        for name, bent in self.bent.items():
            values = np.zeros(len(self.plan.network.slopes[name].rad))
            values[bent] = np.exp(variables[begin : begin + len(bent)])
            result[name] = values
            begin += len(bent)
        logs = variables[: self.weights]
        weights = np.exp(logs) if self.norm == "inf" else None
        return result, input_diagonal(self.plan.graph.input_size, self.norm, weights)

    def value(self, variables: FloatArray) -> tuple[float, FloatArray]:
        """The objective, infinite where a step fails, and its gradient."""
        multipliers, diagonal = self.unpack(variables)
        state = self.start
        if self.norm == "inf":
            state = State.at_input(self.plan.graph, diagonal)
        tape = _Tape()
        self._volume = 0.0
        for step in self.plan.steps[self.first :]:
            advanced = self._forward(state, step, multipliers, tape)
            if advanced is None:
                return math.inf, np.zeros(self.size)
            state = advanced
        value, gradient = _mean_log(state.matrix)
        value += self.barrier * self._volume
        if not math.isfinite(value):
            return math.inf, np.zeros(self.size)
        return value, self._backward(gradient, tape, diagonal, variables)

    def _forward(
        self, state: State, step: Step, multipliers: dict[str, FloatArray], tape: _Tape
    ) -> State | None:
        if step.op is not None:
            tape.steps.append((step, state, None))
            return affine(state, step, rigorous=False)
        slopes = self.plan.network.slopes[step.name]
        kept = state.rows(step.keep)
        if step.gate is None:
            z, g = (state.rows([name]) for name in step.inputs)
            wide = state.matrix[:, z] * slopes.mid + state.matrix[:, g] * slopes.rad
            corner = wide[z] * slopes.mid[:, None] + wide[g] * slopes.rad[:, None]
            tape.steps.append((step, state, None))
            return _joined(state, step, wide[kept], corner, state.matrix[np.ix_(kept, kept)])
        z = state.rows([step.inputs[0]])
        needed = np.concatenate([z, kept])
        before = state.matrix[np.ix_(needed, needed)]
        bent, count = self.bent[step.name], len(z)
        scales = multipliers[step.name]
        found = _solve(
            scales[bent], before[np.ix_(bent, bent)], before[bent], invert=self.barrier > 0.0
        )
        if found is None:
            return None
        solved, inverse, volume = found
        self._volume += volume
        tape.steps.append((step, state, _Bend(z, needed, bent, solved, scales, inverse)))
        after = before + before[bent].T @ solved
        corner = slopes.mid[:, None] * after[:count, :count] * slopes.mid
        corner[np.arange(count), np.arange(count)] += slopes.rad**2 * scales
        made = _joined(
            state, step, after[count:, :count] * slopes.mid, corner, after[count:, count:]
        )
        if step.gate_lives:
            own, gate = (made.rows([name]) for name in (step.name, str(step.gate)))
            made.matrix[gate, gate] = scales
            made.matrix[gate, own] = made.matrix[own, gate] = slopes.rad * scales
        return made

    def _backward(
        self, gradient: FloatArray, tape: _Tape, diagonal: FloatArray, variables: FloatArray
    ) -> FloatArray:
        result = np.zeros(self.size)
        places, begin = {}, self.weights
        for name, bent in self.bent.items():
            places[name] = slice(begin, begin + len(bent))
            begin += len(bent)
        for step, state, bend in reversed(tape.steps):
            if bend is None:
                gradient = self._through_affine(gradient, step, state)
                continue
            gradient, for_scales = self._through_bend(gradient, step, state, bend)
            result[places[step.name]] = for_scales * bend.scales[bend.bent]
        if self.norm == "inf":
            weights = np.exp(variables[: self.weights])
            own = np.diagonal(gradient)
            result[: self.weights] = weights * float((own / weights).sum()) - own * diagonal
        return result

    def _through_affine(self, gradient: FloatArray, step: Step, state: State) -> FloatArray:
        """T^T G T."""
        kept = state.rows(step.keep)
        size = len(kept)
        wide = np.zeros((len(gradient), len(state.matrix)))
        wide[:, kept] = gradient[:, :size]
        self._add_transposed(wide, gradient[:, size:], step, state)
        result = np.zeros((len(state.matrix), len(state.matrix)))
        result[:, kept] = wide[:size].T
        self._add_transposed(result, wide[size:].T, step, state)
        return result

    def _add_transposed(self, target: FloatArray, rows: Array, step: Step, state: State) -> None:
        """Add ``rows A`` to the columns of what the step read."""
        if step.op is None:
            slopes = self.plan.network.slopes[step.name]
            parts = [rows * slopes.mid, rows * slopes.rad]
        else:
            parts = step.op.transpose(np.ascontiguousarray(rows))
        for name, part in zip(step.inputs, parts, strict=True):
            target[:, state.slices[name]] += part

    def _through_bend(
        self, gradient: FloatArray, step: Step, state: State, bend: _Bend
    ) -> tuple[FloatArray, FloatArray]:
        slopes = self.plan.network.slopes[step.name]
        count, size = len(bend.z), len(bend.needed) - len(bend.z)
        own = len(gradient) - count + np.arange(count)
        inner = np.zeros((count + size, count + size))
        corner = gradient[np.ix_(own, own)]
        inner[:count, :count] = slopes.mid[:, None] * corner * slopes.mid
        inner[count:, count:] = gradient[:size, :size]
        inner[count:, :count] = gradient[:size][:, own] * slopes.mid
        inner[:count, count:] = inner[count:, :count].T
        for_scales = slopes.rad**2 * np.diagonal(corner)
        if step.gate_lives:
            gate = size + np.arange(count)
            for_scales = for_scales + gradient[gate, gate] + 2.0 * slopes.rad * gradient[gate, own]
        bent = bend.bent
        moved = bend.solved @ inner
        square = moved @ bend.solved.T
        direct: FloatArray = np.zeros(len(bent))
        if bend.inverse is not None:
            square += self.barrier * bend.inverse
            direct = self.barrier / bend.scales[bent]
        inner[bent] += moved
        inner[:, bent] += moved.T
        inner[np.ix_(bent, bent)] += square
        result = np.zeros_like(state.matrix)
        # A value that lives on after the curve that reads it stands in there twice.
        parts = (bend.z, slice(None, count)), (bend.needed[count:], slice(count, None))
        for rows, here in parts:
            for columns, there in parts:
                result[np.ix_(rows, columns)] += inner[here, there]
        return result, for_scales[bent] - np.diagonal(square) + direct


def _joined(
    state: State, step: Step, cross: FloatArray, corner: FloatArray, kept: FloatArray
) -> State:
    """The state of kept values, the remainder g if it lives on (zero here), and the new value."""
    slices: dict[str, slice] = {}
    end = 0
    for name in step.keep:
        width = state.slices[name].stop - state.slices[name].start
        slices[name] = slice(end, end + width)
        end += width
    size, count = end, len(corner)
    if step.gate_lives and step.gate is not None:
        slices[step.gate] = slice(end, end + count)
        end += count
    slices[step.name] = slice(end, end + count)
    matrix = np.zeros((end + count, end + count))
    matrix[:size, :size] = kept
    matrix[:size, end:], matrix[end:, :size] = cross, cross.T
    matrix[end:, end:] = corner
    return State(slices, matrix)


def _solve(
    scales: FloatArray, block: FloatArray, rows: FloatArray, *, invert: bool
) -> tuple[FloatArray, FloatArray | None, float] | None:
    """((D - A)^-1 B, (D - A)^-1 if asked for, -log det (I - D^-1 A)).

    None where D - A is not positive definite.
    """
    from scipy.linalg import LinAlgError, cho_factor, cho_solve  # noqa: PLC0415 - slow to import

    if not len(scales):
        return np.zeros_like(rows), None, 0.0
    matrix = np.diag(scales) - block
    if not np.isfinite(matrix).all():
        return None
    try:
        factor = cho_factor(matrix, lower=True, check_finite=False)
    except LinAlgError:
        return None
    solved: FloatArray = cho_solve(factor, rows, check_finite=False)
    inverse = None
    if invert:
        inverse = cho_solve(factor, np.eye(len(scales)), check_finite=False)
    volume = float(np.log(scales).sum() - 2.0 * np.log(np.diagonal(factor[0])).sum())
    return solved, inverse, volume


def _mean_log(matrix: FloatArray) -> tuple[float, FloatArray]:
    """Mean log K^2 over pairs (over the one output if there is no other), and its derivative."""
    count = len(matrix)
    if count == 1:
        return math.log(max(matrix[0, 0], 1e-300)), 1.0 / np.maximum(matrix, 1e-300)
    diagonal = np.diagonal(matrix)
    squares = diagonal[:, None] + diagonal - 2.0 * matrix
    pairs = ~np.eye(count, dtype=bool)
    squares = np.where(pairs, np.maximum(squares, 1e-300), 1.0)
    share = np.where(pairs, 1.0 / squares, 0.0) / (count * (count - 1))
    gradient = -2.0 * share
    gradient[np.arange(count), np.arange(count)] = 2.0 * share.sum(axis=1)
    return float(np.log(squares).sum()) / (count * (count - 1)), gradient


def refined(
    objective: Objective, start: FloatArray, expired: Callable[[], bool] = lambda: False
) -> Iterator[FloatArray]:
    """Better and better variables, by descents with a falling barrier.

    Later ones are nearer to the boundary, where rounding is charged with more: in deep networks the
    first of them may give the best bounds.
    """
    for weight in _BARRIERS if objective.size else ():
        objective.barrier = weight / objective.size
        start = descend(objective.value, start, _STEPS, expired)
        yield start


def descend(
    objective: Callable[[FloatArray], tuple[float, FloatArray]],
    start: FloatArray,
    steps: int,
    expired: Callable[[], bool] = lambda: False,
) -> FloatArray:
    """Minimise by L-BFGS with backtracking; where it is infinite it is not entered."""
    x = start
    value, gradient = objective(x)
    if not math.isfinite(value):
        return x
    pairs: deque[tuple[FloatArray, FloatArray, float]] = deque(maxlen=_MEMORY)
    small = 0
    for _ in range(steps):
        if small >= _PATIENCE or expired():
            break
        direction = -_inverse_times(pairs, gradient)
        slope = float(direction @ gradient)
        if not slope < 0.0:
            pairs.clear()
            direction, slope = -gradient, -float(gradient @ gradient)
            if slope == 0.0:
                break
        longest = float(np.abs(direction).max())
        size = min(1.0, _LONGEST / longest) if pairs else min(1.0, 0.3 / longest)
        for _ in range(_HALVINGS):
            moved, at = objective(x + size * direction)
            if moved <= value + _ARMIJO * size * slope:
                break
            size *= 0.5
        else:
            if not pairs:
                break
            pairs.clear()
            continue
        change, turn = size * direction, at - gradient
        curvature = float(change @ turn)
        if curvature > 1e-12 * float(turn @ turn):
            pairs.append((change, turn, 1.0 / curvature))
        small = small + 1 if value - moved < _ENOUGH else 0
        x, value, gradient = x + change, moved, at
    return x


def _inverse_times(
    pairs: deque[tuple[FloatArray, FloatArray, float]], gradient: FloatArray
) -> FloatArray:
    """The two-loop recursion."""
    result = gradient.copy()
    weights = []
    for change, turn, rho in reversed(pairs):
        weight = rho * float(change @ result)
        result -= weight * turn
        weights.append(weight)
    if pairs:
        change, turn, rho = pairs[-1]
        result *= 1.0 / (rho * float(turn @ turn))
    for (change, turn, rho), weight in zip(pairs, reversed(weights), strict=True):
        result += (weight - rho * float(turn @ result)) * change
    return result
