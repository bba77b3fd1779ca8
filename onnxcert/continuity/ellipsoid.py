"""All constants of a network from one recursion over matrices (LipSDP in closed form).

Let s be the differences of all live values for two inputs at distance 1. If every such s lies in
the ellipsoid ``s s^T <= Q`` (in the order of symmetric matrices), then ``|c^T s|^2 <= c^T Q c`` for
every linear form c, so the constants of all outputs and all differences of outputs are entries of
the last Q. It is carried through the graph:

* An affine map s' = T s gives ``Q' = T Q T^T``.
* A curve f(z) = mid z + rad g with |g_i| <= |z_i|: for any diagonal D with D - A positive definite,
  A the block of z in Q, the differences (s, g) lie in

      [ Q + B^T (D - A)^-1 B    0 ]
      [ 0                       D ]      B the rows of z in Q,

  because g^T D^-1 g <= z^T D^-1 z may be charged to s^T Q^-1 s <= 1 with multiplier 1 (S-procedure)
  and (Q^-1 - E^T D^-1 E)^-1 is the upper block.

For a chain of rectifiers this is the recursion M = L - L A L / 4 with L = 4 D^-1 (Xu, Sivaranjani,
*ECLipsE*, NeurIPS 2024; the constraints are those of LipSDP, Fazlyab et al., NeurIPS 2019). Here
nothing is inverted but D - A, so branches, skip connections and shared neurons need no case of
their own, and slopes may lie in any range. D = (1 + mid / rad) lambda_max(A) is the best multiple
of the identity when A is one; `onnxcert.continuity.refine` improves on it neuron by neuron.

Rounding. A larger Q is as good: every step is monotone in Q. So each step adds to the diagonal what
its rounding may have cost: a symmetric E is at most the diagonal of ``sum_j |E_ij| w_j / w_i`` for
any positive w, and ``w_i = Q_ii^(-1/2)`` (before anything cancels) keeps small neurons from paying
for large ones. For the inverse let Y be any matrix, computed as (D - A)^-1 B: with R = B - (D - A)
Y,

    B^T (D - A)^-1 B = B^T Y + Y^T R + R^T (D - A)^-1 R,

and the last two terms are below what they are charged with, |Y| |R| and |R W|^2 / lambda_min, where
a Cholesky factor of D - A - sigma I shows lambda_min >= sigma less its residual.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcert.arrays import UNIT_ROUNDOFF, Array, FloatArray
from onnxcert.continuity.network import Network
from onnxcert.continuity.norms import UP, WEIGHT_ROUNDINGS, cholesky_residual, largest_estimate
from onnxcert.errors import UsageError
from onnxcert.graph import Graph
from onnxcert.ops import Affine, Elementwise
from onnxcert.ops.base import TINY, gamma

WIDEST = 6000
"""Most entries that the live values may have together: 288 MB a matrix."""

_SORTED = 0.03
"""(D / lambda_max) - 1 for sorted pairs: best of six values on a network of two such layers."""

_LEAST = 1e-200
"""Multiplier where nothing changes: far from underflow, and of no weight."""

_LIFTS = (0.0, 1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""What multipliers of an optimisation are raised by, relatively."""


@dataclass(frozen=True, eq=False)
class Step:
    """One node of the graph.

    Attributes:
        name: the value it makes.
        inputs: what it reads; for a curve of a twin: z and the twin's absolute value.
        op: the affine operator, or None for a curve.
        keep: names of the values that live on after it, without its own.
        gate: of a curve: the name of g where it is made here; None where a twin has made it.
        gate_lives: whether g is needed later.
        live: entries of all values that are live before it, or after it if those are more.
    """

    name: str
    inputs: tuple[str, ...]
    op: Affine | None
    keep: tuple[str, ...]
    gate: str | None
    gate_lives: bool
    live: int


@dataclass(frozen=True, eq=False)
class Plan:
    """The steps of a network, and what stays live between them."""

    network: Network
    steps: tuple[Step, ...]

    @classmethod
    def of(cls, network: Network) -> Plan:
        """Lay out the recursion; nothing is computed yet."""
        graph = network.graph
        reads: list[tuple[str, ...]] = []
        gates: dict[str, str] = {}
        for node in graph.nodes:
            inputs = node.inputs
            if isinstance(node.op, Elementwise):
                if node.name in network.twins:
                    inputs = (*inputs, gates[network.twins[node.name]])
                else:
                    gates[node.name] = f"remainder of {node.name}"
            reads.append(inputs)
        last = {graph.output: len(reads)}
        for number, inputs in enumerate(reads):
            for name in inputs:
                last[name] = max(last.get(name, -1), number)
        steps: list[Step] = []
        alive: tuple[str, ...] = (graph.input,)
        sizes = dict(graph.sizes) | {g: graph.sizes[n] for n, g in gates.items()}
        for number, (node, inputs) in enumerate(zip(graph.nodes, reads, strict=True)):
            op = node.op if isinstance(node.op, Affine) else None
            keep = tuple(name for name in alive if last.get(name, -1) > number)
            gate = gates.get(node.name)
            lives = gate is not None and last.get(gate, -1) > number
            made = (node.name, gate) if lives and gate is not None else (node.name,)
            width = max(sum(sizes[name] for name in part) for part in (alive, (*keep, *made)))
            steps.append(Step(node.name, inputs, op, keep, gate, lives, width))
            alive = (*keep, *(name for name in made if last.get(name, -1) > number))
        return cls(network, tuple(steps))

    @property
    def graph(self) -> Graph:
        """The network's graph."""
        return self.network.graph

    @property
    def width(self) -> int:
        """The most entries live at once."""
        return max((step.live for step in self.steps), default=self.graph.input_size)

    @property
    def gates(self) -> list[str]:
        """Names of the curves that have multipliers, in order."""
        return [step.name for step in self.steps if step.gate is not None]

    def require_feasible(self) -> None:
        """Refuse what no memory holds.

        Raises:
            UsageError: the matrices would be too large.
        """
        if self.width > WIDEST:
            raise UsageError(
                f"the matrices of the recursion would have {self.width} rows; the most is {WIDEST}",
                help="use --method product",
            )


@dataclass(eq=False)
class State:
    """The matrix Q over live values.

    Attributes:
        slices: value -> its rows.
        matrix: (N, N) symmetric.
    """

    slices: dict[str, slice]
    matrix: FloatArray

    def rows(self, names: Sequence[str]) -> Array:
        """Numbers of the rows of some values, one after the other."""
        ranges = [np.arange(s.start, s.stop) for s in (self.slices[name] for name in names)]
        return np.concatenate([*ranges, np.zeros(0, dtype=np.int64)])

    @classmethod
    def at_input(cls, graph: Graph, diagonal: FloatArray) -> State:
        """The ellipsoid of the input differences."""
        return cls({graph.input: slice(0, graph.input_size)}, np.diag(diagonal))


def input_diagonal(size: int, norm: str, weights: FloatArray | None = None) -> FloatArray:
    """An ellipsoid around the unit ball of the norm, (n,).

    Of the l_inf ball: q with sum 1 / q_i <= 1, all equal or as ``weights`` (positive) say.
    """
    if norm != "inf":
        return np.ones(size)
    share = np.ones(size) if weights is None else weights
    total = float(share.sum()) * (1.0 + gamma(size + 8, UNIT_ROUNDOFF))
    result: FloatArray = total / share * UP
    return result


Chooser = Callable[[str, FloatArray, Array], FloatArray]
"""From a curve's name, A on its bent neurons and their numbers to D there."""


def choose_closed_form(network: Network) -> Chooser:
    """D = (1 + mid / rad) lambda_max(A), entry by entry; near lambda_max(A) for sorted pairs.

    Sorting a pair leaves its sum and takes the absolute value of its difference, which keeps
    lengths; the larger D of a rectifier would lose that.
    """
    shared = set(network.twins.values())

    def choose(name: str, block: FloatArray, bent: Array) -> FloatArray:
        slopes = network.slopes[name]
        top = largest_estimate(block)
        ratio = np.abs(slopes.mid[bent] / slopes.rad[bent])
        if name in shared:
            ratio = np.full(len(bent), _SORTED)
        result: FloatArray = np.maximum(top, _LEAST) * (1.0 + np.maximum(ratio, 1e-3))
        return result

    return choose


def choose_given(multipliers: Mapping[str, FloatArray]) -> Chooser:
    """The D of an optimisation, (n,) for each curve."""

    def choose(name: str, block: FloatArray, bent: Array) -> FloatArray:
        del block
        return multipliers[name][bent]

    return choose


def enclose(
    plan: Plan, choose: Chooser, diagonal: FloatArray, *, behind: str = ""
) -> tuple[FloatArray, dict[str, FloatArray]] | None:
    """Run the recursion with all rounding charged.

    Args:
        plan: of the network.
        choose: the multipliers.
        diagonal: of the ellipsoid of differences, at the input or at another value.
        behind: the value that differs while all others that live beside it are the same; the
            input by default.

    Returns:
        (Q of the output (m, m), the multipliers used); None where some D - A is not positive
        definite, or a number overflows.
    """
    plan.require_feasible()
    state = State.at_input(plan.graph, diagonal)
    used: dict[str, FloatArray] = {}
    started = not behind
    for step in plan.steps:
        if started:
            advanced = _advanced(plan, state, step, choose, used)
            if advanced is None:
                return None
            state = advanced
        elif step.name == behind:
            started, state = True, _state_behind(plan, step, diagonal)
    output = state.slices[plan.graph.output]
    matrix = state.matrix[output, output]
    return (matrix, used) if np.isfinite(matrix).all() else None


def _advanced(
    plan: Plan, state: State, step: Step, choose: Chooser, used: dict[str, FloatArray]
) -> State | None:
    if step.op is not None:
        return affine(state, step, rigorous=True)
    if step.gate is None:
        return _mix(plan, state, step)
    slopes = plan.network.slopes[step.name]
    bent = np.flatnonzero(slopes.rad != 0.0)
    rows = state.rows([step.inputs[0]])[bent]
    scales = choose(step.name, state.matrix[np.ix_(rows, rows)], bent)
    used[step.name] = np.zeros(len(slopes.rad))
    used[step.name][bent] = scales
    return _bend(plan, state, step, scales, bent)


def _state_behind(plan: Plan, step: Step, diagonal: FloatArray) -> State:
    """What lives after a step, where its own value alone differs."""
    sizes = dict(plan.graph.sizes)
    sizes |= {s.gate: sizes[s.name] for s in plan.steps if s.gate is not None}
    slices, end = {}, 0
    gate = (step.gate,) if step.gate_lives and step.gate is not None else ()
    for name in (*step.keep, *gate, step.name):
        slices[name] = slice(end, end + sizes[name])
        end += sizes[name]
    state = State(slices, np.zeros((end, end)))
    own = state.rows([step.name])
    state.matrix[own, own] = diagonal
    return state


def affine(state: State, step: Step, *, rigorous: bool) -> State:
    """Q' = T Q T^T, where T keeps some values and appends one."""
    op = step.op
    assert op is not None
    matrix = state.matrix
    kept = state.rows(step.keep)
    wide = op.apply([matrix[:, state.slices[name]] for name in step.inputs])
    corner = op.apply([wide[state.slices[name]].T for name in step.inputs])
    made = _assembled(state, step.keep, {step.name: op.output_size})
    size = len(kept)
    made.matrix[:size, :size] = matrix[np.ix_(kept, kept)]
    made.matrix[size:, :size] = wide[kept].T
    made.matrix[:size, size:] = wide[kept]
    made.matrix[size:, size:] = 0.5 * (corner + corner.T)
    if rigorous:
        _charge_affine(made.matrix, state, step, kept)
    return made


def _charge_affine(result: FloatArray, state: State, step: Step, kept: Array) -> None:
    """Add to the diagonal what the products and the rounding of weights may have cost.

    Row sums of |T| |Q| |T|^T need no matrix product.
    """
    op = step.op
    assert op is not None
    share = gamma(op.error_terms + WEIGHT_ROUNDINGS + 8, UNIT_ROUNDOFF)
    size = len(kept)
    absolute = np.abs(state.matrix)
    # |Q_ij| is at most q_i q_j, so |A| q is the size of the new entries before they cancel.
    lengths = np.sqrt(np.maximum(np.diagonal(state.matrix), 0.0))
    reach = op.magnitude.apply([lengths[state.slices[name]][None] for name in step.inputs])[0]
    weights = _weights(np.concatenate([np.square(lengths[kept]), np.square(reach)]))
    parts = op.magnitude.transpose(weights[None, size:])
    columns = np.zeros(len(absolute))
    for name, part in zip(step.inputs, parts, strict=True):
        columns[state.slices[name]] += part[0]
    across = absolute @ columns  # |Q| |A|^T w, at every live entry
    down = op.magnitude.apply([across[state.slices[name]][None] for name in step.inputs])[0]
    sums = np.zeros(len(result))
    sums[:size] = across[kept]
    sums[size:] = 2.1 * down
    if size:
        totals = absolute[:, kept] @ weights[:size]
        sums[size:] += op.magnitude.apply([totals[state.slices[n]][None] for n in step.inputs])[0]
    diagonal = np.arange(len(result))
    result[diagonal, diagonal] += (1.0 + 1e-6) * share * sums / weights + TINY


def _weights(sizes: FloatArray) -> FloatArray:
    """w of the module's docstring for a matrix of this diagonal, before anything cancels."""
    floor = max(float(sizes.max(initial=0.0)) * 1e-20, 1e-280)
    result: FloatArray = 1.0 / np.sqrt(np.maximum(sizes, floor))
    return result


def _assembled(state: State, keep: Sequence[str], made: Mapping[str, int]) -> State:
    """An empty state with kept values first."""
    slices: dict[str, slice] = {}
    end = 0
    sizes = {name: state.slices[name].stop - state.slices[name].start for name in keep}
    for name, size in (sizes | dict(made)).items():
        slices[name] = slice(end, end + size)
        end += size
    return State(slices, np.zeros((end, end)))


def _mix(plan: Plan, state: State, step: Step) -> State:
    """h = mid z + rad g for a g that a twin has made: an affine map."""
    slopes = plan.network.slopes[step.name]
    z, g = (state.rows([name]) for name in step.inputs)
    kept = state.rows(step.keep)
    wide = state.matrix[:, z] * slopes.mid + state.matrix[:, g] * slopes.rad
    corner = wide[z] * slopes.mid[:, None] + wide[g] * slopes.rad[:, None]
    made = _assembled(state, step.keep, {step.name: len(z)})
    size = len(kept)
    made.matrix[:size, :size] = state.matrix[np.ix_(kept, kept)]
    made.matrix[size:, :size] = wide[kept].T
    made.matrix[:size, size:] = wide[kept]
    made.matrix[size:, size:] = 0.5 * (corner + corner.T)
    # |mid| and |rad| at most double what the entries of Q may add up to, per side.
    part = np.abs(slopes.mid), np.abs(slopes.rad)
    absolute = np.abs(state.matrix)
    reach = absolute[:, z] * part[0] + absolute[:, g] * part[1]
    lengths = np.sqrt(np.maximum(np.diagonal(state.matrix), 0.0))
    sizes = lengths[z] * part[0] + lengths[g] * part[1]
    weights = _weights(np.square(np.concatenate([lengths[kept], sizes])))
    sums = np.zeros(len(made.matrix))
    sums[:size] = reach[kept] @ weights[size:]
    both = reach[z] * part[0][:, None] + reach[g] * part[1][:, None]
    sums[size:] = both @ weights[size:] + weights[:size] @ reach[kept]
    diagonal = np.arange(len(made.matrix))
    made.matrix[diagonal, diagonal] += gamma(24, UNIT_ROUNDOFF) * 1.01 * sums / weights + TINY
    return made


def _bend(plan: Plan, state: State, step: Step, scales: FloatArray, bent: Array) -> State | None:
    """The step of a curve; None where D - A is not shown to be positive definite."""
    slopes = plan.network.slopes[step.name]
    z = state.rows([step.inputs[0]])
    kept = state.rows(step.keep)
    needed = np.concatenate([z, kept])
    before = state.matrix[np.ix_(needed, needed)]
    # The diagonal is rounded once, which a slightly larger D makes up for.
    shift = before[bent, bent]
    gates = np.zeros(len(z))
    gates[bent] = scales + 4.0 * UNIT_ROUNDOFF * (np.abs(scales) + np.abs(shift)) + TINY
    block = -before[np.ix_(bent, bent)]
    block[np.arange(len(bent)), np.arange(len(bent))] += scales
    grown = _grown(block, before[bent]) if len(bent) else np.zeros_like(before)
    if grown is None:
        return None
    after = before + grown
    diagonal = np.arange(len(after))
    weights = _weights(np.diagonal(after))
    after[diagonal, diagonal] += 2.0 * UNIT_ROUNDOFF * (np.abs(after) @ weights) / weights * 1.01
    count = len(z)
    remainder = {step.gate: count} if step.gate_lives and step.gate is not None else {}
    made = _assembled(state, step.keep, remainder | {step.name: count})
    size, matrix = len(kept), made.matrix
    matrix[:size, :size] = after[count:, count:]
    own = made.rows([step.name])
    cross = after[count:, :count] * slopes.mid
    matrix[np.ix_(np.arange(size), own)] = cross
    matrix[np.ix_(own, np.arange(size))] = cross.T
    matrix[np.ix_(own, own)] = slopes.mid[:, None] * after[:count, :count] * slopes.mid
    matrix[own, own] += slopes.rad**2 * gates
    if remainder:
        gate = made.rows(list(remainder))
        matrix[gate, gate] = gates
        matrix[gate, own] = matrix[own, gate] = slopes.rad * gates
    weights = _weights(np.diagonal(matrix))
    diagonal = np.arange(len(matrix))
    matrix[diagonal, diagonal] += (
        gamma(12, UNIT_ROUNDOFF) * 1.01 * (np.abs(matrix) @ weights) / weights + TINY
    )
    return made


def _grown(block: FloatArray, rows: FloatArray) -> FloatArray | None:
    """At least B^T F^-1 B for F = ``block`` and B = ``rows``; None if F is not shown positive."""
    count = len(block)
    try:
        np.linalg.cholesky(block)
        solved = np.linalg.solve(block, rows)
        inverse_bound = float(np.abs(np.linalg.inv(block)).sum(axis=1).max())
    except np.linalg.LinAlgError:
        return None
    if not (np.isfinite(solved).all() and 0.0 < inverse_bound < math.inf):
        return None
    smallest = _smallest_eigenvalue(block, inverse_bound)
    if smallest is None:
        return None
    rest = rows - block @ solved
    wrong = gamma(count + 8, UNIT_ROUNDOFF) * (np.abs(block) @ np.abs(solved)) + TINY
    rest_bound = np.abs(rest) * (1.0 + 1e-9) + wrong + UNIT_ROUNDOFF * np.abs(rows)
    product = rows.T @ solved
    result = 0.5 * (product + product.T)
    weights = _weights((np.abs(rows) * np.abs(solved)).sum(axis=0))
    size = np.abs(rows).T @ (np.abs(solved) @ weights) + np.abs(solved).T @ (np.abs(rows) @ weights)
    sums = gamma(count + 8, UNIT_ROUNDOFF) * size
    sums += np.abs(solved).T @ (rest_bound @ weights) + rest_bound.T @ (np.abs(solved) @ weights)
    # W R^T F^-1 R W is at most |R W|_F^2 / lambda_min times the identity.
    square = float(np.square(rest_bound * weights).sum()) / smallest
    diagonal = np.arange(len(result))
    result[diagonal, diagonal] += (1.0 + 1e-6) * (sums / weights + square / weights**2) + TINY
    return result


def _smallest_eigenvalue(block: FloatArray, inverse_bound: float) -> float | None:
    """A positive lower bound of the least eigenvalue."""
    sigma = 0.5 / inverse_bound
    shifted = block.copy()
    diagonal = np.arange(len(block))
    shifted[diagonal, diagonal] -= sigma
    try:
        factor = np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        return None
    rounding = 2.0 * UNIT_ROUNDOFF * (float(np.abs(block[diagonal, diagonal]).max()) + sigma)
    bound = sigma - (cholesky_residual(factor) + rounding) * UP
    return bound if bound > 0.25 * sigma else None


def constants(forms: FloatArray, matrix: FloatArray) -> FloatArray:
    """sqrt(c^T Q c) for the rows c of ``forms`` (k, m), rounded up, (k,)."""
    squares = np.einsum("km,mn,kn->k", forms, matrix, forms, optimize=True)
    absolute = np.abs(forms)
    size = np.einsum("km,mn,kn->k", absolute, np.abs(matrix), absolute, optimize=True)
    share = gamma(2 * forms.shape[1] + 16, UNIT_ROUNDOFF) * (1.0 + 1e-6)
    result: FloatArray = np.sqrt(np.maximum(squares, 0.0) + share * size + TINY) * UP
    return result


def pair_constants(matrix: FloatArray) -> FloatArray:
    """`constants` of all differences: sqrt(Q_ii + Q_jj - Q_ij - Q_ji), rounded up, (m, m)."""
    diagonal = np.diagonal(matrix)
    own, mixed = diagonal[:, None] + diagonal, matrix + matrix.T
    size = np.abs(diagonal)[:, None] + np.abs(diagonal) + np.abs(matrix) + np.abs(matrix.T)
    charged = gamma(8, UNIT_ROUNDOFF) * size * (1.0 + 1e-6) + TINY
    result: FloatArray = np.sqrt(np.maximum(own - mixed, 0.0) + charged) * UP
    return result


def enclose_near(
    plan: Plan, multipliers: Mapping[str, FloatArray], diagonal: FloatArray
) -> tuple[FloatArray, dict[str, FloatArray]] | None:
    """`enclose` with given multipliers, raised as much as rounding asks for.

    Where D - A is nearly singular, what rounding is charged with is large; a slightly larger D
    costs next to nothing. The best of a few is taken: that of the least trace.
    """
    best, least = None, math.inf
    for lift in _LIFTS:
        raised = {name: values * (1.0 + lift) for name, values in multipliers.items()}
        found = enclose(plan, choose_given(raised), diagonal)
        size = math.inf if found is None else float(np.trace(found[0]))
        if size < least:
            best, least = found, size
        elif best is not None:
            break
    return best
