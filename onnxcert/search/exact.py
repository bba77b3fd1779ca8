"""Branch and bound over neurons by linear programs, for networks that are small enough.

Where `onnxcert.search.neuron_split` bounds thousands of subproblems roughly, this takes one after
the other, depth first, and solves its relaxation exactly (`onnxcert.search.linear`); the dual
solution becomes slopes, multipliers and weights, and a leaf is closed only when those, rounded to
the grid, are bounded again with all rounding. Three things keep the trees small:

Tightening. The bounds of neurons on a path are those of the root, cut by the path's splits. So a
bound that follows from the splits and from ``g <= 0`` is made a split of its own, at a point p
beyond which nothing lies: one side is a leaf, the other goes on with tighter triangles. For neurons
that are linear in the inputs these bounds are programs over the inputs alone, with the splits and
the node's own bound of g as rows (domain reduction as in mixed-integer programming, Savelsbergh
1994; the bound of g is what dual solution and reduced costs say). On networks with one hidden layer
of 128 this takes trees from millions of leaves to hundreds.

Influence. In encodings of logic the least t is zero until a conflict is found, and no choice raises
it. There the neuron is split whose sides shrink the ranges of most others, as in look-ahead solvers
for satisfiability (Heule and van Maaren, *Look-Ahead Based SAT Solvers*, 2009).

Witnesses. Where a program is attained is a point worth testing.

Tried: strong branching with pseudo-costs (on the same networks no fewer leaves than the plain
choice, violation times dual of the chord).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxcert.arrays import FloatArray, IntArray, to_host
from onnxcert.bounds.hints import encode_positions
from onnxcert.graph import Graph
from onnxcert.proof.trace import Leaves, NeuronTrees
from onnxcert.search.bab import Statistics
from onnxcert.search.candidates import Candidates
from onnxcert.search.deadline import Deadline
from onnxcert.search.frontier import Batch
from onnxcert.search.linear import Polytope, Program, Solution, Triangles, available
from onnxcert.search.neuron_split import NeuronSplit
from onnxcert.sets import Ball, Box
from onnxcert.verdict import Counterexample, Reason

_LARGEST = 1_000_000
"""Entries of the matrix of pre-activations up to which programs take milliseconds."""

_STEPS = 8
"""Ascent steps from a dual solution, should rounding it to the grid have cost too much."""

_PENDING = 32
"""Leaves that are bounded together."""

_GAIN = 0.05
"""Share of a neuron's range that a tightening must take away."""

_SLACK = 0.01
"""Share of the range by which a tightening stays behind what the program says."""

_PATIENCE = 8
"""Tightenings that may fail in a row at one subproblem."""

_AGAIN = 0.25
"""Share of its distance from zero that the least t must have risen to tighten once more."""

_LEAST_VISITS = 50
"""Subproblems that must fit into the time given: sat_relu and safenlp end after 150 to 450, while
with 20 mnist_fc 256x4 prop 13 lost 36 of 120 seconds to programs of 1.5 seconds each."""

_FLAT = 1e-7
"""A least t this near to zero says nothing, relative to the size of the rows."""

_EXACT = 1e-9
"""Relative: inputs this near to a side of the box are on it, and violations this small none."""

Split = tuple[int, float, float]
"""Neuron, as a position in `Program.number`; sign of the side; point."""


def applicable(graph: Graph, boxes: Mapping[str, Box]) -> bool:
    """Whether a network over a box (bounds of all values) is for this search."""
    return (
        available()
        and isinstance(boxes[graph.input].lower, np.ndarray)
        and not isinstance(boxes[graph.input], Ball)  # a linear program knows no ellipsoid
        and Program.expressible(graph)
        and 0 < Program.size(graph, boxes) <= _LARGEST
    )


@dataclass(frozen=True, eq=False)
class _Open:
    """A subproblem: its node, its path, the bounds of its neurons, and its share of the whole.

    ``before`` is the least t with which its bounds were tightened last, ``decided`` says that its
    program has been refuted, but not with hints on the grid.
    """

    node: int
    path: tuple[Split, ...]
    lower: FloatArray
    upper: FloatArray
    share: float
    before: float = -np.inf
    decided: bool = False


@dataclass(frozen=True, eq=False)
class _Claim:
    """That nothing lies on a path: positions of free lines, multipliers by neuron, weights."""

    path: tuple[Split, ...]
    positions: FloatArray
    multipliers: FloatArray
    weights: FloatArray


@dataclass(eq=False)
class _Tree:
    """The tree of one case while it grows; leaves are batches, and positions in them."""

    children: dict[int, tuple[int, int, int, float]] = field(default_factory=dict)
    leaves: list[tuple[IntArray, Leaves]] = field(default_factory=list)
    count: int = 1

    def split(self, node: int, neuron: int, point: float) -> tuple[int, int]:
        """Numbers of the lower and the upper half."""
        low, high = self.count, self.count + 1
        self.count += 2
        self.children[node] = (low, high, neuron, point)
        return low, high

    def write(self, trees: NeuronTrees, disjunct: int, number: IntArray) -> None:
        """Add to the trees of the box, level by level."""
        place = np.full(self.count, -1)
        place[0] = trees.plant(np.array([disjunct]))[0]
        level = [0]
        while inner := [node for node in level if node in self.children]:
            low, high, neuron, point = zip(*map(self.children.__getitem__, inner), strict=True)
            halves = trees.split(place[inner], number[list(neuron)], np.array(point))
            for side, numbers in zip((low, high), halves, strict=True):
                place[list(side)] = numbers
            level = [*low, *high]
        for nodes, leaves in self.leaves:
            trees.add(replace(leaves, nodes=place[nodes]))


@dataclass(eq=False)
class LinearSearch:
    """Refutes the open cases of a `NeuronSplit` one after the other.

    Attributes:
        brancher: the network, the cases, the bounds at the root, and where leaves go.
        candidates: tests points.
        statistics: updated in place.
        report: called now and then.
        record: told a case and its worst leaf when it is refuted.
        done: share of all trees that is closed, if cases and halves are equally hard.
        visits: programs solved, but for those of tightening.
    """

    brancher: NeuronSplit
    candidates: Candidates
    statistics: Statistics = field(default_factory=Statistics)
    report: Callable[[Statistics], None] = lambda statistics: None
    record: Callable[[int, float], None] = lambda case, lower: None
    done: float = 0.0
    visits: int = 0

    def __post_init__(self) -> None:
        brancher = self.brancher
        self._program = Program.build(brancher.graph, brancher.root)

    def run(
        self, deadline: Deadline, patience: Deadline | None = None
    ) -> Counterexample | Reason | None:
        """Refute everything, find a witness, or say why neither was possible.

        Trees of refuted cases are added to those of the brancher; what stays open adds nothing.

        Args:
            deadline: when to stop.
            patience: when to stop if the rest, at the pace so far, would not be done in time; at
                once where programs turn out to take long.

        Returns:
            None when all cases are refuted, a confirmed witness, or a reason.
        """
        trees: list[tuple[_Tree, int]] = []
        started = deadline.elapsed

        def expired() -> bool:
            if deadline.expired():
                return True
            if patience is None:
                return False
            spent = deadline.elapsed - started
            if patience.expired():
                return self.done * (deadline.limit - started) < spent
            return _LEAST_VISITS * spent > max(self.visits, 1) * (patience.limit - started)

        for position, case in enumerate(self.brancher.open_cases.tolist()):
            tree = _Tree()
            search = _CaseSearch(self, position, case, tree, expired)
            answer = search.run()
            if answer is not None:
                return answer
            trees.append((tree, case))
            self.record(case, search.lowest)
        brancher = self.brancher
        for tree, case in trees:
            disjunct = int(brancher.cases.problem.case_disjunct[case])
            tree.write(brancher.trees, disjunct, self._program.number)
        return None


class _CaseSearch:
    """The search for one case; see `LinearSearch`."""

    def __init__(
        self,
        whole: LinearSearch,
        position: int,
        case: int,
        tree: _Tree,
        expired: Callable[[], bool],
    ) -> None:
        self._whole, self._case, self._tree, self._expired = whole, case, tree, expired
        self._program = program = whole._program
        brancher = whole.brancher
        forms = brancher.cases.forms(np.array([[case]]))
        self._rows = program.rows(forms)
        self._used = to_host(forms.used)[0]
        self._triangles = Triangles(program, self._rows)
        self._flat = _FLAT * (1.0 + abs(self._rows).sum(axis=1).max())
        self._slopes = {
            name: encode_positions(to_host(value)[position : position + 1])
            for name, value in brancher.start.positions.items()
        }
        self._pending: list[tuple[_Open, _Claim]] = []
        self._stack: list[_Open] = []
        self._stuck = False
        self.lowest = np.inf

    def run(self) -> Counterexample | Reason | None:
        """Depth first until nothing is open."""
        program, whole = self._program, self._whole
        share = 1.0 / len(whole.brancher.open_cases)
        self._stack = [_Open(0, (), program.lower, program.upper, share)]
        while self._stack or self._pending:
            if self._expired():
                return Reason.TIMEOUT
            if self._stuck:
                return Reason.INCOMPLETE
            if not self._stack or len(self._pending) >= _PENDING:
                self._settle()
                continue
            if found := self._visit(self._stack.pop()):
                return found
            statistics = whole.statistics
            statistics.open = len(self._stack) + len(self._pending)
            whole.report(statistics)
        return Reason.INCOMPLETE if self._stuck else None

    def _visit(self, item: _Open) -> Counterexample | None:
        """Solve a subproblem, then close it, tighten it, split it."""
        self._triangles.restrict(item.lower, item.upper)
        solution = self._triangles.minimise()
        self._whole.visits += 1
        if solution is None:
            self._stuck = True
            return None
        if solution.value > 0 and not item.decided:
            self._pending.append((item, self._claim(item, solution)))
            return None
        if np.isfinite(solution.value):
            if found := self._test(solution):
                return found
            if solution.value <= 0 and solution.violation.max() <= _EXACT:
                self._stuck = True  # the network is here, and its rows are zero or so
                return None
        if not item.decided and (1.0 - _AGAIN) * item.before < solution.value < -self._flat:
            tightened = self._tighten(item, solution)
            if tightened is not item:
                return self._visit(tightened)
        self._split(item, solution)
        return None

    def _test(self, solution: Solution) -> Counterexample | None:
        """Test the point where a program is attained, and the same moved to sides of the box."""
        point, box = solution.point, self._program.box
        near = _EXACT * (1.0 + abs(point))
        moved = np.where(point - box[0] < near, box[0], point)
        moved = np.where(box[1] - point < near, box[1], moved)
        here = np.full((2, 1), self._case)
        return self._whole.candidates.test(np.stack([moved, point]), here)

    # Leaves

    def _claim(self, item: _Open, solution: Solution) -> _Claim:
        """What a positive bound says, as hints: weights with a one as the largest."""
        scale = float(solution.weights.max(initial=0.0)) or 1.0
        return _Claim(
            item.path,
            self._positions(item, solution),
            self._multipliers(item, solution) / scale,
            solution.weights / scale,
        )

    @staticmethod
    def _positions(item: _Open, solution: Solution) -> FloatArray:
        """Between the lines ``v >= 0`` and ``v >= z`` as their duals say."""
        total = solution.flat + solution.steep
        default = (item.upper > -item.lower).astype(float)
        return np.where(total > 0, solution.steep / np.where(total > 0, total, 1.0), default)

    @staticmethod
    def _multipliers(item: _Open, solution: Solution) -> FloatArray:
        """Of the splits at the kink, (K,), zero for unstable neurons."""
        result: FloatArray = np.where(item.lower >= 0, solution.flat, 0.0)
        return np.where((item.upper <= 0) & (item.lower < 0), solution.steep, result)

    def _settle(self) -> None:
        """Bound the pending leaves; what fails is split after all."""
        items, claims = zip(*self._pending, strict=True)
        self._pending = []
        lower, leaves = self._bound(claims)
        closed = lower > 0
        self._close([item.node for item in items], leaves)
        self._note(lower[closed])
        self._whole.done += sum(i.share for i, good in zip(items, closed, strict=True) if good)
        for item, good in zip(items, closed, strict=True):
            if not good:
                self._stack.append(replace(item, decided=True))

    def _close(self, nodes: Sequence[int], leaves: Sequence[Leaves]) -> None:
        """Attach leaves to nodes, given by the numbers of their claims."""
        place = np.array(nodes, np.int64)
        self._tree.leaves += [(place[batch.nodes], batch) for batch in leaves]

    def _note(self, lower: FloatArray) -> None:
        self.lowest = min(self.lowest, float(lower.min(initial=np.inf)))
        self._whole.statistics.closed += len(lower)
        self._whole.statistics.batches += 1

    def _bound(self, claims: Sequence[_Claim]) -> tuple[FloatArray, list[Leaves]]:
        """Lower bounds of claims on the grid (C,), and the leaves of those that are positive."""
        if not claims:
            return np.zeros(0), []
        brancher = self._whole.brancher
        old = brancher.trees
        scratch = old.replanted()
        bounder = replace(brancher, trees=scratch, steps=_STEPS)
        bounded = bounder.bound(self._batch(claims), self._expired)
        return to_host(bounded.score), scratch.leaves

    def _batch(self, claims: Sequence[_Claim]) -> Batch:
        """Claims as subproblems of the brancher, with their own numbers as nodes."""
        count, depth = len(claims), max(len(claim.path) for claim in claims)
        batch: Batch = {
            "node": np.arange(count),
            "case": np.full((count, 1), self._case),
            "neuron": np.full((count, depth), -1),
            "sign": np.zeros((count, depth)),
            "point": np.zeros((count, depth)),
            "multiplier": np.zeros((count, depth)),
            "weight": np.zeros((count, len(self._used))),
            "tilted": np.zeros(count, dtype=bool),  # the programs know chords
        }
        for row, claim in enumerate(claims):
            batch["weight"][row, self._used] = claim.weights
            if not claim.path:
                continue
            here = slice(0, len(claim.path))
            neuron, sign, point = map(np.array, zip(*claim.path, strict=True))
            batch["neuron"][row, here] = self._program.number[neuron]
            batch["sign"][row, here], batch["point"][row, here] = sign, point
            batch["multiplier"][row, here] = sign * claim.multipliers[neuron]
        batch["anchor"] = batch["weight"].argmax(axis=1)
        positions = np.stack([claim.positions for claim in claims])
        for name, slopes in self._slopes.items():
            columns, index = self._program.layers[name]
            batch[f"slope:{name}"] = np.repeat(slopes, count, axis=0)
            batch[f"slope:{name}"][:, index] = encode_positions(positions[:, columns])
        return batch

    # Splits

    def _split(self, item: _Open, solution: Solution) -> None:
        neuron = self._choose(item, solution)
        if neuron is None:
            self._stuck = True
            return
        nodes = self._tree.split(item.node, neuron, 0.0)
        self._whole.statistics.split += 1
        signs = -1.0, 1.0
        sides = [self._half(item, node, neuron, s) for node, s in zip(nodes, signs, strict=True)]
        if solution.above[neuron] < solution.below[neuron]:
            sides.reverse()
        self._stack += sides

    @staticmethod
    def _half(item: _Open, node: int, neuron: int, sign: float) -> _Open:
        lower, upper = item.lower.copy(), item.upper.copy()
        (lower if sign > 0 else upper)[neuron] = 0.0
        path = (*item.path, (neuron, sign, 0.0))
        return _Open(node, path, lower, upper, 0.5 * item.share)

    def _choose(self, item: _Open, solution: Solution) -> int | None:
        """The neuron to split: what its chord costs, or where that says nothing its influence."""
        unstable = (item.lower < 0) & (item.upper > 0)
        if not unstable.any():
            return None
        score: FloatArray = solution.violation * solution.chord
        if abs(solution.value) <= self._flat:
            influence = self._influence(item)
            if (influence[unstable] > 0).any():
                score = influence
        if not (score[unstable] > 0).any():
            score = solution.violation
        return int(np.where(unstable, score, -1.0).argmax())

    def _influence(self, item: _Open) -> FloatArray:
        """By how much, relative to their ranges, a split shrinks other neurons: (K,).

        The product of both sides; only neurons that are linear in the inputs have any.
        """
        program, result = self._program, np.zeros(len(item.lower))
        direct = program.direct
        low, high = self._clip(item)
        rows, constant = program.pre[direct, : len(low)], program.pre[direct, -1]
        center = rows @ (0.5 * (low + high)) + constant
        radius = abs(rows) @ (0.5 * (high - low))
        moving = abs(center) < (1.0 - _FLAT) * radius
        moving &= (item.lower[direct] < 0) & (item.upper[direct] > 0)
        weight = abs(rows[moving] / radius[moving, None]).sum(axis=0)
        sides = []
        for room in (radius + center, radius - center):
            reach = room[:, None] / np.where(rows == 0, np.nan, abs(rows))
            lost = np.nan_to_num(np.maximum(high - low - reach, 0.0))
            sides.append(lost @ weight)
        result[direct] = np.where(moving, sides[0] * sides[1], 0.0)
        return result

    def _clip(self, item: _Open) -> tuple[FloatArray, FloatArray]:
        """The box of inputs, clipped to what the splits and the rows of the case leave."""
        program = self._program
        low: FloatArray = program.box[0].copy()
        high: FloatArray = program.box[1].copy()
        rows, ends = self._path_rows(item)
        pulled = self._pulled_rows(item)
        rows = np.concatenate([rows, pulled[:, :-1]])
        ends = np.concatenate([ends, -pulled[:, -1]])
        size = np.where(rows == 0, np.nan, abs(rows))
        for _ in range(2):
            least = np.where(rows > 0, rows * low, rows * high).sum(axis=1)
            reach = np.maximum(ends - least, 0.0)[:, None] / size
            from_low = np.where(rows > 0, low + reach, np.inf)
            from_high = np.where(rows < 0, high - reach, -np.inf)
            high = np.minimum(high, from_low.min(axis=0, initial=np.inf))
            low = np.minimum(np.maximum(low, from_high.max(axis=0, initial=-np.inf)), high)
        return low, high

    def _path_rows(self, item: _Open) -> tuple[FloatArray, FloatArray]:
        """Splits at the kink of neurons that are linear in the inputs: ``rows x <= ends``."""
        neurons = self._path_neurons(item)
        sign = np.where(item.lower[neurons] >= 0, -1.0, 1.0)
        rows = sign[:, None] * self._program.pre[neurons]
        return rows[:, : len(self._program.box[0])], -rows[:, -1]

    def _path_neurons(self, item: _Open) -> IntArray:
        direct = self._program.direct
        return direct[(item.lower[direct] >= 0) | (item.upper[direct] <= 0)]

    def _pulled_rows(self, item: _Open) -> FloatArray:
        """The rows of the case with default lines: (R, n + 1) over inputs and one."""
        program = self._program
        inputs = len(program.box[0])
        on, off = item.lower >= 0, item.upper <= 0
        width = np.where(on | off, 1.0, item.upper - item.lower)
        chord = np.where(on, 1.0, np.where(off, 0.0, item.upper / width))
        offset = np.where(on | off, 0.0, -chord * item.lower)
        free = np.where(on, 1.0, np.where(off, 0.0, item.upper > -item.lower))
        rows = self._rows.copy()
        for columns, _ in reversed([*program.layers.values()]):
            row = rows[:, inputs:-1][:, columns].copy()
            rows[:, inputs:-1][:, columns] = 0.0
            slope = np.where(row < 0, chord[columns], free[columns])
            rows += (row * slope) @ program.pre[columns]
            rows[:, -1] += np.where(row < 0, row * offset[columns], 0.0).sum(axis=1)
        return np.concatenate([rows[:, :inputs], rows[:, -1:]], axis=1)

    # Tightening

    def _tighten(self, item: _Open, solution: Solution) -> _Open:
        """Cut the ranges of neurons where the splits and the bound of the rows allow it."""
        found = self._beyond(item, solution)
        bounds, leaves = self._bound(_in_turn(item.path, found))
        while not (bounds > 0).all():
            # Each path holds the splits before; without those that failed there are new paths.
            found = [claim for claim, low in zip(found, bounds, strict=True) if low > 0]
            bounds, leaves = self._bound(_in_turn(item.path, found))
        if not found:
            return item
        node, path, nodes = item.node, item.path, []
        low, high = item.lower.copy(), item.upper.copy()
        for claim in found:
            ((neuron, sign, point),) = claim.path
            halves = self._tree.split(node, neuron, point)
            node, leaf = halves if sign > 0 else halves[::-1]
            nodes.append(leaf)
            path = (*path, (neuron, -sign, point))
            (high if sign > 0 else low)[neuron] = point
        self._close(nodes, leaves)
        self._note(bounds)
        return _Open(node, path, low, high, item.share, solution.value)

    def _beyond(self, item: _Open, solution: Solution) -> list[_Claim]:
        """Claims that neurons stay within new bounds, each with a path of its own split only."""
        program = self._program
        box = program.box
        inputs = len(box[0])
        score = solution.chord * (solution.violation + 1e-6 * (item.upper - item.lower))
        order = program.direct[np.argsort(-score[program.direct], kind="stable")]
        order = order[(score[order] > 0) & (item.lower[order] < 0) & (item.upper[order] > 0)]
        rows, ends = self._path_rows(item)
        # Lagrange: t >= value + reduced . (x - corner), and t <= 0 is wanted.
        corner = np.where(solution.reduced > 0, *box)
        rows = np.concatenate([rows, solution.reduced[None]])
        ends = np.append(ends, solution.reduced @ corner - solution.value)
        polytope = Polytope(box, rows, ends)
        forms, constants = program.pre[:, :inputs], program.pre[:, -1]
        least = most = forms @ solution.point + constants
        found: list[_Claim] = []
        failures = 0
        for neuron in order.tolist():
            width = item.upper[neuron] - item.lower[neuron]
            missed = False
            for sign in (1.0, -1.0):
                end = item.upper[neuron] if sign > 0 else -item.lower[neuron]
                seen = most[neuron] if sign > 0 else -least[neuron]
                if seen > end - (_GAIN + _SLACK) * width:
                    continue
                answer = polytope.maximise(sign * forms[neuron])
                missed = True
                if answer is None:
                    continue
                value, point, duals = answer
                there = forms @ point + constants
                least, most = np.minimum(least, there), np.maximum(most, there)
                value += sign * constants[neuron] + _SLACK * width
                if value > end - _GAIN * width:
                    continue
                missed = False
                split = neuron, sign, sign * max(value, 0.0)
                found.append(self._beyond_claim(item, solution, split, duals))
                if value <= 0:
                    break
            failures = failures + 1 if missed else 0
            if failures > _PATIENCE or self._expired():
                break
        # Hints of the others know nothing of neurons that become stable here: these come last.
        return sorted(found, key=lambda claim: claim.path[0][2] == 0.0)

    def _beyond_claim(
        self, item: _Open, solution: Solution, split: Split, duals: FloatArray
    ) -> _Claim:
        """The hints that refute one side of a split, from multipliers of the polytope's rows."""
        neuron, sign, _ = split
        times = float(duals[-1])
        multipliers = times * self._multipliers(item, solution)
        multipliers[self._path_neurons(item)] += duals[:-1]
        # The neuron is a line there and was not one in the program: what its row A then passes on
        # is more or less by what the split's own multiplier takes.
        chord = solution.chord[neuron]
        passed = solution.steep[neuron] + chord / item.lower[neuron]
        row = solution.flat[neuron] + solution.steep[neuron]
        row -= chord * (1.0 / item.upper[neuron] - 1.0 / item.lower[neuron])
        own = 1.0 + times * ((row - passed) if sign > 0 else passed)
        multipliers[neuron] = max(own, 0.0)
        weights = times * solution.weights
        scale = float(weights.max(initial=0.0)) or 1.0
        positions = self._positions(item, solution)
        return _Claim((split,), positions, multipliers / scale, weights / scale)


def _in_turn(path: tuple[Split, ...], claims: Sequence[_Claim]) -> list[_Claim]:
    """Claims about one split each as claims about paths: each follows the sides that are left."""
    result = []
    for claim in claims:
        ((neuron, sign, point),) = claim.path
        result.append(replace(claim, path=(*path, *claim.path)))
        path = (*path, (neuron, -sign, point))
    return result
