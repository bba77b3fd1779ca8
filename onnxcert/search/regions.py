"""Regions: neuron splits after which the bounds of all layers are tightened again.

Below one input box `onnxcert.search.neuron_split` bounds thousands of subproblems a second because
all of them share the root's bounds of intermediate layers. Splits in the last layers lose nothing
by that. A split in an early layer does: most of what it is worth are tighter bounds of the layers
behind it. In a fully connected network with 37 unstable neurons in its first layer and 250 in its
fourth one such split raised the bound as much as a dozen splits of the last layer, once the layers
between were bounded again.

So there are two levels. A region is a path of splits with bounds of its own for every layer; inside
it the fast search runs for about as long as making the region took. Cases that it does not close
are handed to the two halves of the region, made by the neuron whose split promises most when
the layers behind it are bounded again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np

from onnxcert.arrays import Array, IntArray, array_module
from onnxcert.bounds.intermediate import Refinement, tighten
from onnxcert.bounds.optimised import (
    MOST_PLANES,
    FreeRelaxation,
    Optimised,
    Splits,
    Start,
    optimise,
)
from onnxcert.graph import Graph
from onnxcert.proof.trace import NeuronTrees, free_neurons
from onnxcert.search.cases import Cases
from onnxcert.search.deadline import Deadline
from onnxcert.search.frontier import Batch
from onnxcert.search.halving import Cut, Halving
from onnxcert.search.narrowing import Narrower
from onnxcert.search.neuron_split import NeuronSplit
from onnxcert.sets import Box
from onnxcert.verdict import Counterexample, Reason

_log = logging.getLogger(__name__)

_FEWEST = 10
"""Regions for which there must be time."""

_FAVOUR = 4.0
"""How much more time the search gets that will be done sooner."""

_PATIENCE = 1.0
"""How many times as long as making a region neuron splits may take in it.

With 2, and 0.2 seconds at least, mnist_fc 256x6 prop 9 took 147 CPU seconds of regions for 114 and
256x4 prop 13 53 for 44.
"""

_LEAST_SECONDS = 0.1
"""Seconds of neuron splits in a region, at least."""


@dataclass(frozen=True, eq=False)
class Path:
    """Splits, (D,) each: numbers of neurons in the count of the graph, sides and points."""

    neuron: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    sign: Array = field(default_factory=lambda: np.zeros(0))
    point: Array = field(default_factory=lambda: np.zeros(0))

    def then(self, neuron: int, sign: float, point: float) -> Path:
        """One more split."""
        return Path(
            np.append(self.neuron, neuron),
            np.append(self.sign, sign),
            np.append(self.point, point),
        )


@dataclass(eq=False)
class Region:
    """Part of an input box, and the cases open there.

    Attributes:
        boxes: bounds of every value that hold there (a batch of one).
        cases: (K,) open cases.
        start: where their ascents begin.
        path: the splits that make it.
    """

    boxes: Mapping[str, Box]
    cases: IntArray
    start: Start
    path: Path = field(default_factory=Path)

    def only(self, chosen: Array) -> Region:
        """The same with some of its cases, by a mask on the host."""
        start = self.start
        there = array_module(start.weights).asarray(chosen)
        positions = {name: value[there] for name, value in start.positions.items()}
        multipliers = {name: value[there] for name, value in start.multipliers.items()}
        kept = Start(positions, multipliers, start.weights[there], start.anchor[there])
        return replace(self, cases=self.cases[chosen], start=kept)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a region.

    Attributes:
        answer: None where all its cases are refuted, in it or by the halves to come; INCOMPLETE
            where no neuron can be split; TIMEOUT when the time of the run was over; or a witness.
        trees: of the region; they hand over to the halves.
        halves: of the region, the lower one first; none or two.
    """

    answer: Counterexample | Reason | None
    trees: NeuronTrees
    halves: tuple[Region, ...] = ()


Keep = Callable[[NeuronTrees], None]
"""Notes the trees of a region where it belongs."""

Search = Callable[[NeuronSplit, Batch, Callable[[], bool]], Counterexample | Reason | None]
"""Searches by neuron splits from given roots until it is told to stop."""


class Others(Protocol):
    """Those who take part in a search: `onnxcert.search.crew.Crew`.

    Attributes:
        reserved: whether they shall do nothing but regions.
    """

    reserved: bool

    @property
    def size(self) -> int:
        """How many there are."""

    @property
    def vacancies(self) -> int:
        """How many tasks they can take."""

    @property
    def found(self) -> Counterexample | None:
        """A witness that one of them has found."""

    def submit(self, task: Region, done: Callable[[Settled | None], None]) -> None:
        """Hand them a region; ``done`` hears what became of it, or None if nothing did."""

    def poll(self, *, wait: bool = False) -> None:
        """Hear of what was handed out."""


@dataclass(frozen=True)
class Settled:
    """What another process made of a region.

    Attributes:
        outcome: of the search in it.
        seconds: that it took.
    """

    outcome: Outcome
    seconds: float


@dataclass(eq=False)
class RegionSearch:
    """Depth-first search through regions, one at a time, and some in other hands.

    Attributes:
        graph: the network, or what is left of it on the input box.
        cases: what is to be refuted.
        layer_steps, slope_steps, branch_steps: ascent steps for each row of a layer, for the cases
            of a region, and for its subproblems.
        deadline: when to stop.
        search: searches a region.
        execution_unit: see `onnxcert.search.neuron_split.NeuronSplit`.
        narrowing: whether cases of regions may be refuted by narrowing.
        others: who else takes regions.
        seconds: spent here so far.
        work: the same, with what others spent.
        done: share of the tree that is closed, counting a region at depth d as 2^-d.
    """

    graph: Graph
    cases: Cases
    layer_steps: int
    slope_steps: int
    branch_steps: int
    deadline: Deadline
    search: Search
    execution_unit: float = 0.0
    narrowing: bool = True
    others: Others | None = None
    seconds: float = 0.0
    work: float = 0.0
    done: float = 0.0
    _waiting: list[tuple[Region, Keep]] = field(default_factory=list)
    _away: int = 0
    _answer: Counterexample | Reason | None = None

    def __post_init__(self) -> None:
        self._narrower = Narrower(
            self.graph,
            self.cases,
            self.layer_steps if self.narrowing else 0,
            self.slope_steps,
            self.deadline.expired,
            self.execution_unit,
        )

    def begin(self, region: Region, trees: NeuronTrees) -> bool:
        """Halve the first region; False if it has no neuron to split."""
        started = self.deadline.elapsed
        outcome = self._halve(region, self._bounds(region), trees)
        self._wait_for(trees, outcome.halves)
        self._charge(started)
        return bool(self._waiting)

    def advance(self) -> Counterexample | Reason | None:
        """Close one more region, or halve it; if all are in other hands, wait for a moment.

        Returns:
            None when all regions are closed, a witness, INCOMPLETE when a region could be neither
            closed nor halved, TIMEOUT when there is more to do.
        """
        if self._waiting:
            region, keep = self._waiting.pop()
            started = self.deadline.elapsed
            outcome = self.process(region)
            self._charge(started)
            self._settle(region, keep, outcome)
            self.hand_out(more=True)
        elif self.others is not None:
            self.others.poll(wait=True)
        if self.others is not None and self.others.found:
            return self.others.found
        if self._answer is not None or self._waiting or self._away:
            return self._answer or Reason.TIMEOUT
        return None

    @property
    def ready(self) -> bool:
        """Whether there is a region that is not in other hands."""
        return bool(self._waiting)

    @property
    def over(self) -> bool:
        """Whether `advance` has an answer; the last region in other hands may have brought it."""
        return self._answer is not None or not (self._waiting or self._away)

    def hand_out(self, *, more: bool) -> None:
        """Hear of regions in other hands; hand out all but one if there shall be more of them."""
        if self.others is None:
            return
        self.others.poll()
        self.others.reserved = more
        while more and len(self._waiting) > 1 and self.others.vacancies:
            region, keep = self._waiting.pop()
            self._away += 1
            self.others.submit(region, partial(self._receive, region, keep))

    def process(self, region: Region) -> Outcome:
        """Bound the layers of a region again, search in it, and halve it if that is not enough."""
        started = self.deadline.elapsed
        _log.debug("region at depth %d", len(region.path.neuron))
        trees = self._tighten(region)
        brancher = self._brancher(region, trees)
        roots = self._roots(region, brancher)
        if _is_empty(region.boxes):  # any hints do
            every = array_module(roots["node"]).arange(len(region.cases))
            trees.close(roots["node"], region.start, every, 0.0 * roots["multiplier"])
            return Outcome(None, trees)
        now = self.deadline.elapsed
        limit = now + max(_LEAST_SECONDS, _PATIENCE * (now - started))
        answer = self.search(brancher, roots, lambda: self.deadline.elapsed > limit)
        if answer is None or isinstance(answer, Counterexample):
            return Outcome(answer, trees)
        if self.deadline.expired():
            return Outcome(Reason.TIMEOUT, trees)
        nodes, disjuncts = trees.roots.pop()
        closed = trees.closed(nodes)
        trees.roots.append((nodes[closed], disjuncts[closed]))
        region, found = self.narrow(region.only(~closed), trees, self.deadline.elapsed - started)
        return self._halve(region, found, trees) if len(region.cases) else Outcome(None, trees)

    def _receive(self, region: Region, keep: Keep, settled: Settled | None) -> None:
        self._away -= 1
        if settled is None:
            self._waiting.append((region, keep))
        else:
            self.work += settled.seconds
            self._settle(region, keep, settled.outcome)

    def _settle(self, region: Region, keep: Keep, outcome: Outcome) -> None:
        keep(outcome.trees)
        if outcome.answer is not None:
            self._answer = self._answer or outcome.answer
        elif outcome.halves:
            self._wait_for(outcome.trees, outcome.halves)
        else:
            self.done += 0.5 ** len(region.path.neuron)

    def _wait_for(self, trees: NeuronTrees, halves: Sequence[Region]) -> None:
        for side, half in enumerate(halves):
            assert trees.halves is not None  # or there would be none
            self._waiting.append((half, partial(trees.halves.keep, side)))

    def _charge(self, started: float) -> None:
        seconds = self.deadline.elapsed - started
        self.seconds += seconds
        self.work += seconds

    def _tighten(self, region: Region) -> NeuronTrees:
        """Bound all layers again; the trees of a region."""
        free = FreeRelaxation.build(
            self.graph, region.boxes, self.execution_unit, planes=MOST_PLANES
        )
        columns = free_neurons(free, region.boxes)
        refined = list[Refinement]()
        region.boxes = tighten(
            self.graph,
            region.boxes,
            steps=self.layer_steps,
            expired=self.deadline.expired,
            record=refined.append,
            execution_unit=self.execution_unit,
            behind=self._last(region),
        )
        return NeuronTrees(self.cases.problem, self.graph, columns, (self.graph, refined))

    def _brancher(self, region: Region, trees: NeuronTrees) -> NeuronSplit:
        return NeuronSplit(
            self.graph,
            self.cases,
            region.cases,
            region.boxes,
            region.start,
            self.branch_steps,
            trees,
            self.execution_unit,
        )

    @staticmethod
    def _roots(region: Region, brancher: NeuronSplit) -> Batch:
        """The open cases of a region with its path."""
        batch = brancher.roots()
        xp = array_module(batch["weight"])
        count, path = len(region.cases), region.path
        for name, value in (
            ("neuron", path.neuron),
            ("sign", path.sign),
            ("point", path.point),
            ("multiplier", 0.0 * path.sign),
        ):
            batch[name] = xp.tile(xp.asarray(value), (count, 1))
        for at, neuron in enumerate(path.neuron.tolist()):
            name, place = brancher.graph.locate(neuron)
            if name in region.start.multipliers:
                batch["multiplier"][:, at] = region.start.multipliers[name][:, place]
        return batch

    def narrow(self, region: Region, trees: NeuronTrees, cost: float) -> tuple[Region, Optimised]:
        """Refute cases of a region, if that takes less than its halves would; see `Narrower`.

        Returns:
            What is left of it, and bounds of its cases.
        """
        found, path = self._bounds(region), (region.path.neuron, self._splits(region))
        refuted = self._narrower.run(region.boxes, region.cases, found, path, trees, cost)
        if not refuted.any():
            return region, found
        return region.only(~refuted), found.take(np.flatnonzero(~refuted))

    def _halve(self, region: Region, found: Optimised, trees: NeuronTrees) -> Outcome:
        """Hand the cases of a region to its halves; there are none if no neuron can be split in
        time."""
        splits = self._splits(region)
        halving = Halving(self.graph, self.cases, self.deadline.expired, self.execution_unit)
        cut = halving.choose(region.boxes, region.cases, found, splits)
        if cut is None:
            return Outcome(Reason.INCOMPLETE, trees)
        region = replace(region, start=found.best)
        halves = tuple(self._half(region, cut, sign) for sign in (-1.0, 1.0))
        cases = self.cases.problem.case_disjunct[region.cases]
        trees.halve(int(halves[0].path.neuron[-1]), cut.point, cases)
        return Outcome(None, trees, halves)

    def _bounds(self, region: Region) -> Optimised:
        """Bounds of the cases of a region."""
        free = FreeRelaxation.build(
            self.graph, region.boxes, self.execution_unit, planes=MOST_PLANES
        )
        return optimise(
            free,
            self.cases.forms(array_module(region.start.weights).asarray(region.cases)[:, None]),
            region.boxes[self.graph.output],
            region.start,
            splits=self._splits(region),
            steps=self.slope_steps,
            expired=self.deadline.expired,
        )

    def _splits(self, region: Region) -> Splits:
        """The constraints of a path, for every case of the region."""
        signs: dict[str, Array] = {}
        points: dict[str, Array] = {}
        xp = array_module(region.start.weights)
        for neuron, sign, point in zip(
            region.path.neuron.tolist(), region.path.sign, region.path.point, strict=True
        ):
            name, place = self.graph.locate(neuron)
            shape = (len(region.cases), self.graph.sizes[name])
            signs.setdefault(name, xp.zeros(shape))[:, place] = sign
            points.setdefault(name, xp.zeros(shape))[:, place] = point
        return Splits(signs, points)

    def _last(self, region: Region) -> str:
        """The pre-activation that the last split of a path is in."""
        return self.graph.locate(int(region.path.neuron[-1]))[0]

    def _half(self, region: Region, cut: Cut, sign: float) -> Region:
        """One side of a cut, with the bounds that follow without any ascent."""
        box = region.boxes[cut.name]
        sides = box.lower.copy(), box.upper.copy()
        sides[sign < 0][0, cut.neuron] = cut.point
        boxes = dict(region.boxes) | {cut.name: box.within(Box(*sides))}
        neuron = int(self.graph.numbering[cut.name].start) + cut.neuron
        return replace(region, boxes=boxes, path=region.path.then(neuron, sign, cut.point))


def _is_empty(boxes: Mapping[str, Box]) -> bool:
    return any(bool(box.empty.any()) for box in boxes.values())


@dataclass(eq=False)
class Turns:
    """Two searches of one input box by turns: neuron splits with its bounds, and regions.

    Which of them is better differs by orders of magnitude between networks, so both are tried, and
    the one that will be done sooner gets four fifths of the time. Regions are done when they have
    closed all of their tree. Neuron splits are taken to go on as they began: if N subproblems have
    raised the lowest bound by p, N^(d/p) will raise it by d.

    Attributes:
        regions: not begun.
        whole: the box as a region, with all cases that are open.
        trees: what the neuron splits of the whole box grow.
        missing: by how much the lowest bound of the cases must rise.
        patience: seconds before regions are begun.
        cost: seconds that one region will take, roughly; regions are begun only if there is time
            for several of them.
        answer: of the regions; TIMEOUT as long as they have none.
    """

    regions: RegionSearch
    whole: Region
    trees: NeuronTrees
    missing: float
    patience: float
    cost: float
    answer: Counterexample | Reason | None = Reason.TIMEOUT
    _lowest: float = -np.inf

    def __post_init__(self) -> None:
        self._started = self.regions.deadline.elapsed

    def enough(self, lowest: float) -> bool:
        """Give the regions their turn; whether they have found the answer."""
        self._lowest = lowest
        if self._elapsed < self.patience or self.answer is not Reason.TIMEOUT:
            return False
        if self.trees.halves is None:
            if _FEWEST * self.cost > self.regions.deadline.remaining:
                self.answer = Reason.INCOMPLETE
                return False
            open_cases = ~self.trees.closed(self.trees.roots[-1][0])
            if not self.regions.begin(self.whole.only(open_cases), self.trees):
                self.answer = Reason.INCOMPLETE
        self.regions.hand_out(more=self._share >= 1.0)
        found = self._advance(
            lambda: (
                self.regions.over
                or (self.regions.ready and self.regions.seconds < self._share * self._elapsed)
            )
        )
        if self.answer is Reason.INCOMPLETE:  # nobody is needed for regions any more
            self.regions.hand_out(more=False)
        return found

    def finish(self, answer: Counterexample | Reason | None) -> Counterexample | Reason | None:
        """What the answer of the neuron splits means, with the regions'."""
        if self.trees.halves is None:
            return answer
        if answer is Reason.INCOMPLETE and self.answer is Reason.TIMEOUT:
            self._advance(lambda: True)
        if isinstance(self.answer, Counterexample):
            return self.answer
        if isinstance(answer, Reason) and self.answer is None:
            nodes, disjuncts = self.trees.roots.pop()
            kept = ~np.isin(disjuncts, self.trees.halves.cases)
            self.trees.roots.append((nodes[kept], disjuncts[kept]))
            return None
        self.trees.halves = None
        return answer

    def _advance(self, wanted: Callable[[], bool]) -> bool:
        while self.answer is Reason.TIMEOUT and wanted():
            if self.regions.deadline.expired():
                return False
            self.answer = self.regions.advance()
        return self.answer is None or isinstance(self.answer, Counterexample)

    @property
    def _elapsed(self) -> float:
        """Seconds that the neuron splits of the whole box have taken."""
        return self.regions.deadline.elapsed - self._started - self.regions.seconds

    @property
    def _share(self) -> float:
        """Seconds for the regions, for each second of the neuron splits."""
        if self.regions.done == 0.0:
            return 1.0
        raised = max(self._lowest + self.missing, 1e-3 * self.missing)
        growth = np.log(max(2, self.trees.nodes.count)) * max(0.0, self.missing / raised - 1.0)
        inside = np.log(max(self._elapsed, 1e-3)) + growth
        others = self.regions.others
        regions = self.regions.work / self.regions.done / (1 + (others.size if others else 0))
        return _FAVOUR if np.log(regions) < inside else 1 / _FAVOUR
