"""One problem from attack to answer: the order in which the parts of the search are tried.

A short attack comes first because a counterexample is the cheapest answer; then the root bounds,
which close most cases of most problems; then, only for what is left, a longer attack and branch and
bound. Optimised bounds of all neurons wait until a few splits over plain ones have been tried:
sri_resnet_a 4091 and _b 5594 take 4 CPU seconds so and 16 otherwise, resnet_2b prop 47 3.8 and 3.6.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from onnxcert.arrays import Array, Device, array_module, to_device, to_host
from onnxcert.bounds.crown import Bounds, crown_bounds
from onnxcert.bounds.intermediate import Refinement, tighten
from onnxcert.bounds.optimised import MOST_PLANES, FreeRelaxation, Optimised, Start, optimise
from onnxcert.bounds.tilts import Tilts, tiltings
from onnxcert.graph import Graph
from onnxcert.passes import drop_dead_neurons
from onnxcert.proof.trace import InputTrees, NeuronTrees, Trace, free_neurons, planes_of
from onnxcert.search.attack import Falsifier, GradientAttack
from onnxcert.search.auto import Plan, choose_plan
from onnxcert.search.bab import BranchAndBound, Statistics
from onnxcert.search.branching import Brancher
from onnxcert.search.candidates import Candidates, Confirm
from onnxcert.search.cases import Cases
from onnxcert.search.crew import Brief, Crew, Lending
from onnxcert.search.deadline import Deadline
from onnxcert.search.exact import LinearSearch, applicable
from onnxcert.search.folded_split import FoldedSplit
from onnxcert.search.frontier import Batch, Frontier, batch_length, take
from onnxcert.search.input_split import InputSplit
from onnxcert.search.linear import Program
from onnxcert.search.mixing import BoxCloser, Mixing
from onnxcert.search.neuron_split import NeuronSplit
from onnxcert.search.regions import Region, RegionSearch, Turns
from onnxcert.search.whole_split import WholeSplit
from onnxcert.sets import Ball, Box
from onnxcert.settings import Settings
from onnxcert.spec import Problem
from onnxcert.verdict import Counterexample, Progress, Reason

_log = logging.getLogger(__name__)

_FIRST_ATTACK_SHARE = 0.05
"""Share of the time limit that the attack before any bounds may take; one round is the aim."""

_INTERMEDIATE_SHARE = 0.25
"""Share of the time left that optimised bounds of intermediate layers may take."""

_LEAST_SECONDS = 1.0
"""Seconds of a search before another one is tried beside it, at least."""

_REGION_COST = 1.5
"""How many times as long as the root's optimised bounds a region takes, roughly: half of the steps
for each row, a search for as long as these take, and the choice of the neuron that halves it."""

_ROUGH_SHARE = 0.02
"""Share of the time left for neuron splits of a small network before linear programs."""

_LEAST_ROUGH, _QUICK_PROGRAM = 0.3, 100_000
"""At least so many seconds, and the whole share from so many entries of a linear program on.

Smaller ones are solved in milliseconds, while rough splits of 128 neurons of 30 inputs (safenlp)
lead nowhere: 1.5 of 16 CPU seconds."""

_EXACT_SHARE = 0.3
"""Share of the time left that linear programs may take without being on the way to an end."""

_ROOT_BATCH = 256

_FEW_BOXES = 16
"""At most so many boxes whose inputs are split are put to constants, one by one."""

_MOST_SHARES = 1 << 22
"""Shares of planes in one ascent, of all cases together: 32 MB for each of a dozen arrays."""

_FIRST_STEPS = 5
"""Which share of the steps of planes is taken before most cases are given up."""

_WORTH_PLANES = 0.1
"""Share of what a bound lacks that planes must bring: subproblems are tried with both. With 0.07 an
mnist_fc row took 1.9 times as long, with 0.15 an oval21 row 0.6 times."""

_BRIEF_TRIAL = 0.4
"""Share of the time for splits over the first bounds after which they must promise to be done."""

_MANY_NEURONS = 1 << 16
"""From so many on, few open cases are assumed before the bounds of all neurons are optimised, which
takes a minute then. Where it takes a second, splits are quicker: oval21 base 8194 3.0 CPU seconds
for 4.9, resnet_2b 47 5.7 for 6.6."""

_MARGIN = 1e-9
"""A proof that failed by a hair is repaired with bounds above this."""


def promises(first: float, lowest: float, spent: float, whole: float) -> bool:
    """Whether a bound that went from ``first`` < 0 to ``lowest`` in the time spent will be positive
    after the whole of it, if it goes on like this."""
    return (lowest - first) * whole >= -first * spent


@dataclass(frozen=True, eq=False)
class Failure:
    """Something that the search counted as refuted and the checker did not.

    Attributes:
        problem: where the cases come from.
        cases: their numbers in the problem.
        lower: the checker's bound.
        trees, node: a leaf of trees over inputs; None for cases that were refuted otherwise.
        low, high: the box of that leaf.
    """

    problem: Problem
    cases: Array
    lower: float
    trees: InputTrees | None
    node: int
    low: Array
    high: Array


@dataclass(frozen=True, eq=False)
class _Root:
    """Where neuron splits over one box begin: with what optimised bounds leave open.

    Attributes:
        trees: of the network without neurons that are dead on the box; refuted cases are in them.
        boxes: bounds of the network's values.
        start: slopes of the cases that are open.
        open_cases: their numbers, (K,).
        rows_lower: plain bounds of their rows, (K, R).
        lower: their optimised bounds, (K,).
        seconds: what the bounds of the layers took.
        tilts: upper planes of some of the open cases.
    """

    trees: NeuronTrees
    boxes: dict[str, Box]
    start: Start
    open_cases: Array
    rows_lower: Array
    lower: Array
    seconds: float
    tilts: Tilts | None = None


class _WorstLeaves:
    """The lowest bound of a leaf for each case of a problem.

    Args:
        problem: of the cases.
        keep: told of cases and their bounds on the whole of their boxes.
        parts: whether the search begins with parts of boxes, so that there are none.
    """

    def __init__(
        self, problem: Problem, keep: Callable[[Array, Array], None], *, parts: bool
    ) -> None:
        self._keep = keep
        self.lower = np.full(len(problem), np.inf)
        self._seen = np.full(len(problem), parts)

    def record(self, cases: Array, lower: Array) -> None:
        """Take bounds (B, C) of cases (B, C), -1 for none, of subproblems."""
        cases, lower = to_host(cases), to_host(lower)
        known = cases >= 0
        first = known & ~self._seen[cases]  # a case is first bounded on the whole of its box
        self._keep(cases[first], lower[first])
        self._seen[cases[first]] = True
        refuted = known & (lower > 0)
        np.minimum.at(self.lower, cases[refuted], lower[refuted])


@dataclass
class Solver:
    """Solves the problems of one query, one after the other.

    Attributes:
        graph: the network, in double precision on the device of the run.
        confirm: replays a point on the original file.
        settings, device, deadline, rng: as given to the run.
        dtype: element type of the model's inputs.
        report: called with every `Progress`.
        trace: what refuted each case, for the certificate.
        follow: told of trees over inputs before they grow.
        follow_box: told of cases of one box before all neurons are bounded over it.
        follow_neurons: told of trees over neurons of a whole box, and of cases open there.
        by_constants: says which cases of one box Lipschitz constants refute.
        execution_unit: unit roundoff of executions that the answer must hold for, 0 for the reals;
            then the graph must be the one that is executed, node by node.
    """

    graph: Graph
    confirm: Confirm
    settings: Settings
    device: Device
    deadline: Deadline
    rng: np.random.Generator
    dtype: type[np.floating] = np.float32
    report: Callable[[Progress], None] = lambda progress: None
    statistics: Statistics = field(default_factory=Statistics)
    bounds: dict[int, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    plan: Plan | None = None
    unconfirmed: int = 0
    trace: Trace = field(default_factory=Trace)
    execution_unit: float = 0.0
    follow: Callable[[InputTrees], None] = lambda trees: None
    follow_box: Callable[[Array], None] = lambda cases: None
    follow_neurons: Callable[[NeuronTrees, Array], None] = lambda trees, cases: None
    by_constants: Callable[[Problem, Array], Array] | None = None

    def __post_init__(self) -> None:
        settings, attacked = self.settings, self.graph.to(self.device, GradientAttack.precision)
        attack = GradientAttack(settings.attack_restarts, settings.attack_steps)
        self._falsifier = Falsifier(
            attack, attacked, self.rng, self.deadline, settings.attack_share
        )
        self._seen = 0
        self._planes = settings.planes == "auto"
        self._narrowing = settings.narrowing == "auto"
        self._phase = "attack"
        self._open_disjuncts = 0
        self._lap = self.deadline.elapsed

    def solve(self, problem: Problem) -> Counterexample | Reason | None:
        """Answer one problem: a witness, why there is no answer, or None when it is refuted."""
        self.plan = plan = choose_plan(self.graph, problem, self.settings)
        _log.info("%s", plan.why)
        cases = Cases.build(problem, self.device)
        candidates = Candidates(self.graph.forward, cases, self.confirm, self.dtype)
        candidates.follow = partial(self._falsifier.follow, candidates)
        self._seen += len(problem)
        open_cases = np.arange(len(problem))
        try:
            return self._solve(problem, cases, candidates, plan, open_cases)
        finally:
            self.unconfirmed += candidates.unconfirmed

    def _solve(
        self,
        problem: Problem,
        cases: Cases,
        candidates: Candidates,
        plan: Plan,
        open_cases: Array,
    ) -> Counterexample | Reason | None:
        self._enter("attack", len(open_cases))
        seconds = _FIRST_ATTACK_SHARE * self.deadline.limit
        # What plain bounds of a box refute needs no more, and other rounds will be due.
        begin = self._falsifier.glance if len(problem.lower) == 1 else self._falsifier.sweep
        if found := begin(candidates, open_cases, seconds):
            return found
        return self._refute(problem, cases, candidates, plan, open_cases)

    def repair(self, failures: Sequence[Failure]) -> Counterexample | Reason | None:
        """Prove again, with a margin, what the checker did not accept.

        Leaves of trees over inputs are split further; other cases are proved anew.

        Returns:
            None when the trace is complete again, else as `solve`.
        """
        self._enter("repair", len(failures))
        # What the checker did not accept of these, it never will.
        self.by_constants, self._planes, self._narrowing = None, False, False
        answer: Counterexample | Reason | None = None
        groups: dict[int, list[Failure]] = {}
        for failure in failures:
            groups.setdefault(id(failure.trees or failure.problem), []).append(failure)
        for members in groups.values():
            problem, trees = members[0].problem, members[0].trees
            # Halves of a box have better bounds by themselves; a proof of the same kind must be
            # better by what it lacked.
            lacking = 0.0 if trees else max(-failure.lower for failure in members)
            cases = Cases.build(problem, self.device, _MARGIN + 2.0 * max(0.0, lacking))
            candidates = Candidates(self.graph.forward, cases, self.confirm, self.dtype)
            numbers = np.unique(np.concatenate([failure.cases for failure in members]))
            if trees is not None:
                answer = self._split_further(trees, cases, candidates, members, numbers)
            else:
                self.trace.forget(set(problem.case_disjunct[numbers].tolist()))
                plan = choose_plan(self.graph, problem, self.settings)
                answer = self._refute(problem, cases, candidates, plan, numbers)
            if answer is not None:
                return answer
        return None

    def _split_further(
        self,
        trees: InputTrees,
        cases: Cases,
        candidates: Candidates,
        failures: Sequence[Failure],
        numbers: Array,
    ) -> Counterexample | Reason | None:
        brancher = FoldedSplit.over(
            InputSplit(self.graph, cases, numbers, trees, self.execution_unit)
        )
        table = np.full((len(failures), max(len(f.cases) for f in failures)), -1)
        for row, failure in enumerate(failures):
            table[row, : len(failure.cases)] = failure.cases
        lower, upper = (np.stack([getattr(f, side) for f in failures]) for side in ("low", "high"))
        nodes = np.array([failure.node for failure in failures])
        roots = brancher.reopen(nodes, lower, upper, table)
        return self._branch(brancher, candidates, numbers, roots)

    def _refute(
        self,
        problem: Problem,
        cases: Cases,
        candidates: Candidates,
        plan: Plan,
        open_cases: Array,
    ) -> Counterexample | Reason | None:
        """Everything but the attack."""
        if plan.splitting == "input":
            return self._split_inputs(self.graph, cases, candidates, open_cases)
        self._enter("bounds", len(open_cases))
        if len(problem.lower) > 1:
            open_cases = self._refute_boxes(cases, open_cases)
        result: Reason | None = None
        for box in np.unique(problem.case_box[open_cases]):
            if self.deadline.expired():
                return Reason.TIMEOUT
            here = open_cases[problem.case_box[open_cases] == box]
            answer = self._solve_box(problem, cases, candidates, plan, int(box), here)
            if isinstance(answer, Counterexample):
                return answer
            result = answer or result
        return result

    def _solve_box(
        self,
        problem: Problem,
        cases: Cases,
        candidates: Candidates,
        plan: Plan,
        number: int,
        open_cases: Array,
    ) -> Counterexample | Reason | None:
        """Root bounds, constants, optimised root bounds, a longer attack, neuron splits; for a box.

        Optimised bounds of every neuron take many times as long as CROWN's. Before them the slopes
        of the rows are optimised over those, and neurons are split for about as long as that took,
        or as long as that promises to be enough. Few cases that are open still are assumed
        then in large networks: TinyYOLO 336 (yolo_2023) takes 106 seconds so for 156.
        """
        started = self.deadline.elapsed
        box = problem.inputs.take(np.array([number])).to(self.device)
        for backward in (False, True):  # what intervals refute needs no rows for every neuron
            self._enter("bounds", len(open_cases))
            if backward and len(problem.lower) == 1:
                self.follow_box(problem.case_disjunct[open_cases])
            expired = self.deadline.expired
            bounds = self._root_bounds(box, backward, expired)
            if bounds.empty[0]:
                self.trace.refuted(problem, open_cases)
                return None
            open_cases, lower = self._bound_cases(cases, bounds, open_cases)
            if len(open_cases) == 0:
                return None
        if self._refute_by_constants(problem, open_cases):
            return None
        splits = plan.splitting != "none"
        root: _Root | None = None
        for steps in sorted({0, self.settings.layer_steps}):
            found = self._optimise_root(cases, candidates, bounds, open_cases, lower, steps)
            if not isinstance(found, _Root):
                return found
            root, open_cases, lower = found, found.open_cases, found.rows_lower
            if splits and steps < self.settings.layer_steps:
                limit = 2.0 * self.deadline.elapsed - started
                answer = self._split_briefly(cases, root, candidates, limit)
                if not isinstance(answer, Reason):
                    return answer
                open_cases, lower = self._narrow(cases, root, candidates)
                if len(open_cases) == 0:
                    return None
        assert root is not None  # there was a step
        self._enter("attack", len(open_cases))
        if witness := self._falsifier.catch_up(candidates, open_cases):
            return witness
        if not splits:
            return Reason.INCOMPLETE
        brancher = self._neuron_split(cases, root, root.trees)
        return self._split_neurons(brancher, root, candidates)

    def _refute_by_constants(self, problem: Problem, open_cases: Array) -> bool:
        """Whether Lipschitz constants refute all open cases of a few boxes."""
        boxes = problem.case_box[open_cases]
        numbers = np.unique(boxes)
        if self.by_constants is None or len(numbers) > _FEW_BOXES:
            return False
        if not all(self.by_constants(problem, open_cases[boxes == n]).all() for n in numbers):
            return False
        self.trace.constant.update(problem.case_disjunct[open_cases].tolist())
        return True

    def _split_briefly(
        self, cases: Cases, root: _Root, candidates: Candidates, limit: float
    ) -> Counterexample | Reason | None:
        """Neuron splits until a time; what they do not finish leaves no trace.

        The lowest open bound rises ever more slowly: what it does not promise to reach after a part
        of the time, it will not.
        """
        trees, begun = root.trees.replanted(), self.deadline.elapsed
        first = float(root.rows_lower.max(axis=1).min())

        def enough(lowest: float) -> bool:
            spent, whole = self.deadline.elapsed - begun, limit - begun
            tried = spent > _BRIEF_TRIAL * whole
            return spent > whole or (tried and not promises(first, lowest, spent, whole))

        answer = self._branch(
            self._neuron_split(cases, root, trees), candidates, root.open_cases, enough=enough
        )
        if answer is None:
            self.trace.groups.append(trees)
        return answer

    def _narrow(self, cases: Cases, root: _Root, candidates: Candidates) -> tuple[Array, Array]:
        """Refute cases over the first bounds by assuming them: what is open, and its rows."""
        neurons = sum(map(root.trees.graph.sizes.__getitem__, root.trees.graph.pre_activations))
        if neurons < _MANY_NEURONS:
            return root.open_cases, root.rows_lower
        self._enter("bounds", len(root.open_cases))
        brancher = self._neuron_split(cases, root, root.trees)
        whole = Region(brancher.root, root.open_cases, brancher.start)
        # Regions have cost nothing yet; of any cost the number of cases decides what is too dear.
        rest, _ = self._regions(brancher, candidates).narrow(whole, root.trees, cost=1.0)
        still = np.isin(root.open_cases, rest.cases)
        if not still.all():
            self._record(cases.problem, root.open_cases[~still], np.zeros(int(np.sum(~still))))
            if not any(trees is root.trees for trees in self.trace.groups):
                self.trace.groups.append(root.trees)
        return root.open_cases[still], root.rows_lower[array_module(root.rows_lower).asarray(still)]

    def _neuron_split(self, cases: Cases, root: _Root, trees: NeuronTrees) -> NeuronSplit:
        return NeuronSplit(
            root.trees.graph,
            cases,
            root.open_cases,
            root.boxes,
            root.start,
            self.settings.branch_steps,
            trees,
            self.execution_unit,
            root.tilts,
        )

    def _split_neurons(
        self, brancher: NeuronSplit, root: _Root, candidates: Candidates
    ) -> Counterexample | Reason | None:
        """Narrow bounds; linear programs where the network is small; splits and regions by turns.

        Args:
            brancher: splits neurons below the root.
            root: bounds over the box.
            candidates: tests points.
        """
        self._enter("bounds", self._open_disjuncts)
        regions = self._regions(brancher, candidates)
        whole = Region(brancher.root, brancher.open_cases, brancher.start)
        cost = _REGION_COST * root.seconds
        whole, found = regions.narrow(whole, brancher.trees, cost)
        narrowed = np.setdiff1d(brancher.open_cases, whole.cases)
        self._record(brancher.cases.problem, narrowed, np.zeros(len(narrowed)))
        if len(whole.cases) == 0:
            return None
        missing = -float(found.lower.min())
        brancher = replace(brancher, open_cases=whole.cases, start=whole.start)
        patience = max(_LEAST_SECONDS, self.deadline.elapsed)
        if applicable(brancher.graph, brancher.root):
            answer = self._search_exactly(brancher, candidates)
            if not isinstance(answer, Reason) or self.deadline.expired():
                return answer
        with self._crew(brancher, candidates) as crew:
            regions.others = crew
            turns = Turns(regions, whole, brancher.trees, missing, patience, cost)
            answer = self._branch(
                brancher, candidates, brancher.open_cases, enough=turns.enough, crew=crew
            )
            answer = turns.finish(answer)
        if answer is Reason.INCOMPLETE:
            brancher.trees.roots.pop()
            # Leaves without unstable neurons are linear programs that the ascent left undecided;
            # halving inputs decides what is not decided exactly at a boundary.
            graph, cases = brancher.graph, brancher.cases
            return self._split_inputs(graph, cases, candidates, brancher.open_cases)
        return answer

    def _crew(self, brancher: NeuronSplit, candidates: Candidates) -> Crew:
        """Other processes for a search, of which none is begun if it is over soon."""
        settings = self.settings
        brief = Brief(
            brancher,
            settings.layer_steps // 2,
            settings.slope_steps,
            settings.batch_limit,
            settings.memory_gigabytes * 1e9,
            self.dtype,
            self.deadline,
            self._narrowing,
        )
        alone = settings.parallel == "off" or array_module(candidates.cases.offset) is not np
        return Crew(brief, candidates.replay, most=0 if alone else math.inf)

    def _regions(self, brancher: NeuronSplit, candidates: Candidates) -> RegionSearch:
        """The search through regions below the root of a search by neuron splits."""
        settings = self.settings

        def search(
            inner: NeuronSplit, roots: Batch, enough: Callable[[], bool]
        ) -> Counterexample | Reason | None:
            self.statistics.regions += 1
            cases = inner.open_cases
            return self._branch(inner, candidates, cases, roots, lambda lowest: enough())

        return RegionSearch(
            brancher.graph,
            brancher.cases,
            settings.layer_steps // 2,
            settings.slope_steps,
            settings.branch_steps,
            self.deadline,
            search,
            self.execution_unit,
            self._narrowing,
        )

    def _split_inputs(
        self, graph: Graph, cases: Cases, candidates: Candidates, open_cases: Array
    ) -> Counterexample | Reason | None:
        trees = InputTrees(cases.problem)
        self.follow(trees)
        whole = InputSplit(graph, cases, open_cases, trees, self.execution_unit)
        few = WholeSplit.over(whole)
        brancher: Brancher = few or FoldedSplit.over(whole)
        frontier = Frontier(brancher.roots())
        worst = self._worst_leaves(candidates, parts=False)
        mixing = None if few else self._mixing(whole, brancher, candidates, frontier, worst)
        calls = itertools.count()

        def enough(lowest: float) -> bool:
            """After the first batch, which are the boxes themselves, constants are asked once."""
            del lowest
            if next(calls) == 1 and self._refute_by_constants(cases.problem, open_cases):
                return True
            return mixing is not None and mixing.enough()

        answer = self._run(brancher, candidates, frontier, worst, enough)
        if mixing is not None and mixing.found is not None:
            return mixing.found
        if answer is None and mixing is not None and mixing.stuck:
            return Reason.INCOMPLETE
        if self.trace.constant.issuperset(cases.problem.case_disjunct[open_cases].tolist()):
            return None
        if answer is None:
            self.trace.groups.append(trees)
            self._record(cases.problem, open_cases, worst.lower[open_cases])
        return answer

    def _mixing(
        self,
        whole: InputSplit,
        brancher: Brancher,
        candidates: Candidates,
        frontier: Frontier,
        worst: _WorstLeaves,
    ) -> Mixing | None:
        """Neuron splits in boxes of a search by input splits; None where there are ellipsoids."""
        if self.settings.mixing == "off" or isinstance(whole.cases.problem.inputs, Ball):
            return None

        def search(
            inner: NeuronSplit, roots: Batch, expired: Callable[[], bool]
        ) -> Counterexample | Reason | None:
            begin = Frontier(roots)
            return self._run(inner, candidates, begin, worst, lambda lowest: expired())

        def race(rivals: Frontier, seconds: float) -> Counterexample | Reason | None:
            limit, calls = self.deadline.slice(seconds), itertools.count()
            stuck = self.statistics.stuck

            def enough(lowest: float) -> bool:
                del lowest
                return next(calls) > 0 and limit.expired()

            answer = self._run(brancher, candidates, rivals, worst, enough)
            if isinstance(answer, Reason) and self.statistics.stuck > stuck:
                return Reason.INCOMPLETE
            return answer

        steps = self.settings.slope_steps, self.settings.branch_steps
        closer = BoxCloser(whole, *steps, worst.record, search)
        return Mixing(frontier, closer, race, self.deadline)

    def _search_exactly(
        self, brancher: NeuronSplit, candidates: Candidates
    ) -> Counterexample | Reason | None:
        """Split neurons of a small network: roughly for a while, then by linear programs.

        Rough splits go on as long as they promise to be done before linear programs would be given
        up, closing their trees as quickly as since they were last asked.
        """
        problem, open_cases = candidates.cases.problem, brancher.open_cases
        begun, done = self.deadline.elapsed, 0.0
        size = min(1.0, Program.size(brancher.graph, brancher.root) / _QUICK_PROGRAM)
        seconds = max(_LEAST_SECONDS, _ROUGH_SHARE * self.deadline.remaining)
        turn = self.deadline.slice(max(_LEAST_ROUGH, size * seconds))

        def enough(lowest: float) -> bool:
            nonlocal turn, begun, done
            del lowest
            if not turn.expired():
                return False
            now, share = self.deadline.elapsed, brancher.trees.share()
            closed, spent = share - done, now - begun
            turn, begun, done = self.deadline.slice(0.5 * spent), now, share
            return spent * (1.0 - share) > closed * _EXACT_SHARE * self.deadline.remaining

        answer = self._branch(brancher, candidates, open_cases, None, enough)
        if not isinstance(answer, Reason) or self.deadline.expired():
            return answer
        brancher.trees.roots.pop()

        def record(case: int, lower: float) -> None:
            self._record(problem, np.array([case]), np.array([lower]))

        search = LinearSearch(
            brancher, candidates, self.statistics, lambda statistics: self._progress(), record
        )
        patience = self.deadline.slice(_EXACT_SHARE * self.deadline.remaining)
        return search.run(self.deadline, patience)

    def _root_bounds(self, box: Box, backward: bool, expired: Callable[[], bool]) -> Bounds:
        return crown_bounds(
            self.graph,
            box,
            backward=backward,
            decide=True,
            expired=expired,
            execution_unit=self.execution_unit,
        )

    def _bound_cases(self, cases: Cases, bounds: Bounds, open_cases: Array) -> tuple[Array, Array]:
        """Bound the rows of cases over one box.

        Returns:
            The cases that are still open (K,), and lower bounds of their rows (K, R).
        """
        column = to_device(open_cases, self.device)[:, None]
        forms, boxes = cases.forms(column), bounds.boxes
        lower = forms.pull(bounds.relaxation).lower
        over = forms.over(boxes[self.graph.output], boxes[self.graph.input])
        lower = array_module(lower).maximum(lower, over)
        self._record(cases.problem, open_cases, lower.max(axis=1))
        still = ~cases.refuted(column, lower)[:, 0]
        closed = open_cases[to_host(~still)]
        self.trace.refuted(cases.problem, closed)
        return open_cases[to_host(still)], lower[still]

    def _specialise(
        self, bounds: Bounds, steps: int
    ) -> tuple[Graph, dict[str, Box], tuple[Graph, list[Refinement]]]:
        """Drop neurons that are dead on the box, tighten the bounds of the others, and again."""
        graph, boxes = self._simplify(self.graph, bounds.boxes)
        if not steps:
            return graph, boxes, (graph, [])
        share = _INTERMEDIATE_SHARE * self.deadline.remaining
        limit = self.deadline.slice(share).expired
        refined = list[Refinement]()
        boxes = tighten(
            graph,
            boxes,
            steps=steps,
            expired=limit,
            record=refined.append,
            execution_unit=self.execution_unit,
        )
        return *self._simplify(graph, boxes), (graph, refined)

    def _simplify(self, graph: Graph, boxes: Mapping[str, Box]) -> tuple[Graph, dict[str, Box]]:
        """Drop dead neurons, unless the graph must stay what is executed."""
        if self.execution_unit:
            return graph, dict(boxes)
        return drop_dead_neurons(graph, boxes)

    def _optimise_root(
        self,
        cases: Cases,
        candidates: Candidates,
        bounds: Bounds,
        open_cases: Array,
        rows_lower: Array,
        steps: int,
    ) -> Counterexample | _Root | None:
        """Optimise bounds of the layers, then slopes for every open case; None if that refutes all.

        Args:
            open_cases: (K,).
            rows_lower: plain bounds of their rows, (K, R); a case is anchored at its lowest row.
            steps: those for each neuron of the layers; 0 leaves the bounds as they are.
        """
        self._enter("bounds", len(open_cases))
        started = self.deadline.elapsed
        graph, boxes, refined = self._specialise(bounds, steps)
        seconds = self.deadline.elapsed - started
        column = to_device(open_cases, self.device)[:, None]
        forms, xp = cases.forms(column), array_module(rows_lower)
        free = FreeRelaxation.build(graph, boxes, self.execution_unit, planes=MOST_PLANES)
        found = optimise(
            free,
            forms,
            boxes[graph.output],
            Start.at_form(xp.where(forms.used, rows_lower, xp.inf).argmin(axis=1), forms),
            steps=self.settings.slope_steps,
            expired=self.deadline.expired,
        )
        found, tilts = self._tilt(cases, free, boxes, open_cases, found)
        problem = cases.problem
        trees = NeuronTrees(problem, graph, free_neurons(free, boxes), refined)
        if tilts is not None:
            trees.planes.update(planes_of(tilts, problem.case_disjunct))
        refuted = to_host(found.lower > 0)
        if not refuted.all():
            self.follow_neurons(trees, problem.case_disjunct[open_cases])
        nodes = trees.plant(problem.case_disjunct[open_cases[refuted]])
        tilted = xp.zeros(len(open_cases), dtype=bool)
        if tilts is not None:
            tilted = xp.isin(column[:, 0], tilts.cases)
        which = np.flatnonzero(refuted)
        trees.close(nodes, found.best, which, np.zeros((len(nodes), 0)), tilted[which])
        if steps == self.settings.layer_steps or refuted.any():
            self.trace.groups.append(trees)
        if witness := candidates.test(found.minimiser, column):
            return witness
        self._record(problem, open_cases, found.lower)
        if refuted.all():
            return None
        still, best = ~(found.lower > 0), found.best
        positions = {name: value[still] for name, value in best.positions.items()}
        start = Start(positions, {}, best.weights[still], best.anchor[still])
        open_cases = open_cases[~refuted]
        lower = found.lower[still]
        if tilts is not None:
            tilts = tilts.take(array_module(still).isin(tilts.cases, column[still]))
        return _Root(trees, boxes, start, open_cases, rows_lower[still], lower, seconds, tilts)

    def _tilt(
        self,
        cases: Cases,
        free: FreeRelaxation,
        boxes: Mapping[str, Box],
        open_cases: Array,
        found: Optimised,
    ) -> tuple[Optimised, Tilts | None]:
        """Raise bounds of cases that are still open by planes in place of chords.

        Returns:
            The bounds, slopes and weights of all cases, and the planes of those that have them:
            cases whose bounds rise by much of what they lack.
        """
        xp = array_module(found.lower)
        rest = xp.flatnonzero(~(found.lower > 0))
        wanted = self._planes and len(rest)
        tilting = tiltings(free.relaxation.graph, boxes, free.relaxation) if wanted else {}
        size = len(rest) * sum(planes.index.size for planes in tilting.values())
        if not 0 < size <= _MOST_SHARES:
            return found, None
        numbers = to_device(open_cases, self.device)[rest]
        begun = better = found.take(rest)
        steps = self.settings.slope_steps
        # Few steps tell which cases are worth more.
        for count in (max(1, steps // _FIRST_STEPS), steps):
            better = optimise(
                free.tilted(tilting),
                cases.forms(numbers[:, None]),
                boxes[free.relaxation.graph.output],
                better.best,
                steps=min(count, steps),
                expired=self.deadline.expired,
            )
            kept = better.lower - begun.lower >= _WORTH_PLANES * -begun.lower
            rest, numbers, begun, better = (
                rest[kept],
                numbers[kept],
                begun.take(kept),
                better.take(kept),
            )
            if len(rest) == 0:
                return found, None
            if (better.lower > 0).all():
                break
        return found.replaced(rest, better), Tilts(tilting, numbers, better.best.shares)

    def _refute_boxes(self, cases: Cases, open_cases: Array) -> Array:
        """Bound many boxes in batches and return the cases that stay open."""
        trees = InputTrees(cases.problem)  # of no use: what is refuted goes to the trace directly
        brancher = InputSplit(self.graph, cases, open_cases, trees, self.execution_unit)
        roots = brancher.roots()
        most = int(self.settings.memory_gigabytes * 1e9 / brancher.bytes_per_subproblem)
        step = max(1, min(_ROOT_BATCH, most))
        left = []
        for start in range(0, batch_length(roots), step):
            if self.deadline.expired():
                left.append(to_host(roots["cases"][start:]).ravel())
                break
            batch = take(roots, slice(start, start + step))
            bounded = brancher.bound(batch, self.deadline.expired)
            numbers, lower = to_host(bounded.cases), to_host(bounded.case_lower)
            self._record(cases.problem, numbers[numbers >= 0], lower[numbers >= 0])
            left.append(to_host(bounded.point_cases).ravel())
            refuted = (numbers >= 0) & ~np.isin(numbers, left[-1])
            weights = to_host(brancher.weights(bounded))[refuted]
            self.trace.refuted(cases.problem, numbers[refuted], weights)
        remaining = np.concatenate(left)
        return np.sort(remaining[remaining >= 0])

    def _branch(
        self,
        brancher: Brancher,
        candidates: Candidates,
        open_cases: Array,
        roots: Batch | None = None,
        enough: Callable[[float], bool] = lambda lowest: False,
        crew: Crew | None = None,
    ) -> Counterexample | Reason | None:
        """Branch and bound; when it refutes everything, the bound of a case is its worst leaf."""
        worst = self._worst_leaves(candidates, parts=roots is not None)
        frontier = Frontier(brancher.roots() if roots is None else roots)
        lending: Lending | None = None
        if crew is not None and isinstance(brancher, NeuronSplit):
            lending = Lending(crew, brancher, frontier, self.statistics, worst.record)
        answer = self._run(brancher, candidates, frontier, worst, enough, lending)
        if answer is None and roots is None:
            self._record(candidates.cases.problem, open_cases, worst.lower[open_cases])
        return answer

    def _worst_leaves(self, candidates: Candidates, *, parts: bool) -> _WorstLeaves:
        problem = candidates.cases.problem
        return _WorstLeaves(problem, partial(self._record, problem), parts=parts)

    def _run(
        self,
        brancher: Brancher,
        candidates: Candidates,
        frontier: Frontier,
        worst: _WorstLeaves,
        enough: Callable[[float], bool],
        lending: Lending | None = None,
    ) -> Counterexample | Reason | None:
        """The loop of branch and bound, from what is open."""
        self._enter("search", self._open_disjuncts)
        loop = BranchAndBound(
            self.settings.batch_limit,
            self.settings.memory_gigabytes * 1e9,
            lambda statistics: self._progress(),
            worst.record,
            self.statistics,
        )
        answer = loop.run(brancher, candidates, self.deadline, frontier, enough, lending)
        self._enter("search", self._open_disjuncts)
        return answer

    def _record(self, problem: Problem, cases: Array, lower: Array) -> None:
        """Keep the best known bound of each disjunct."""
        for case, value in zip(cases, to_host(lower), strict=True):
            number = int(problem.case_disjunct[case])
            self.bounds[number] = max(self.bounds.get(number, -np.inf), float(value))

    def _enter(self, phase: str, open_disjuncts: int) -> None:
        """Charge the time since the last change of phase, and show the new one."""
        now = self.deadline.elapsed
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._lap
        self._phase, self._lap, self._open_disjuncts = phase, now, open_disjuncts
        self._progress()

    def _progress(self) -> None:
        self.report(
            Progress(
                self.deadline.elapsed,
                self._phase,
                self.statistics.open,
                self.statistics.closed,
                self.statistics.lowest,
                self._open_disjuncts,
                self._seen,
            )
        )
