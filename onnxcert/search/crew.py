"""Other processes that take part in a search over neurons.

The parent owns the search: the frontier, the trees, the regions, every replay. A child gets a copy
of the root (network, cases, bounds) once and then tasks, each a few seconds of work:

* Subtrees: some open subproblems of the whole box. The child searches below them for a while and
  hands back the trees it grew, what is still open, and points worth a replay.
* Regions: bounds of all layers again, and a search inside (`onnxcert.search.regions`).

Nothing depends on a child: the task of one that dies is done by somebody else. Children begin only
after the search has taken a moment, and only as many as there are processors without work.

BLAS threads are no alternative: the products of a batch take microseconds, and most of the time
lies between them.
"""

from __future__ import annotations

import logging
import math
import queue
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import numpy as np

from onnxcert.arrays import Array, FloatArray, IntArray
from onnxcert.processes import Child, IdleProcessors
from onnxcert.proof.trace import NeuronTrees
from onnxcert.search.bab import Statistics
from onnxcert.search.deadline import Deadline
from onnxcert.search.frontier import Batch, Frontier
from onnxcert.search.neuron_split import NeuronSplit
from onnxcert.search.regions import Region
from onnxcert.verdict import Counterexample

_log = logging.getLogger(__name__)

_PATIENCE = 1.0
"""Seconds for which processors must be idle before children are started on them."""

_SPARE = 0.3
"""Of a processor: what others may use of it before it does not count as idle."""

_AHEAD = 2
"""Tasks that a child has at a time, so that it need not wait for the next one."""

_GLANCE = 0.05
"""Seconds between looks at the clock while waiting."""

_TASK_SECONDS = 1.5
"""Of a search below subproblems: long beside the tenth of a second that sending them may take."""

_BATCHES = 4
"""Batches of subproblems in such a task, at most."""

_FEWEST = 8
"""Subproblems in such a task, at least."""

MEMBER = "onnxcert.search.member"
"""The module that children run."""


@dataclass(frozen=True)
class Brief:
    """What a child is told first.

    Attributes:
        brancher: the root of the search, with trees that hold no nodes.
        layer_steps, slope_steps: for regions.
        batch_limit, memory_bytes: of one batch.
        dtype: element type of the model's inputs.
        deadline: of the run; the clock of a system is the same for all its processes.
        narrowing: see `onnxcert.search.regions.RegionSearch`.
    """

    brancher: NeuronSplit
    layer_steps: int
    slope_steps: int
    batch_limit: int
    memory_bytes: float
    dtype: type[np.floating]
    deadline: Deadline
    narrowing: bool = True


def shared(brancher: NeuronSplit) -> list[object]:
    """What both sides have, so that no message needs to hold it."""
    cases, trees = brancher.cases, brancher.trees
    values = brancher.root.values()
    return [brancher.graph, cases.problem, trees.columns, trees.refined, *values]


Point = tuple[FloatArray, int, IntArray]
"""Arguments of `Candidates.replay`."""


@dataclass(frozen=True)
class Subtrees:
    """A task: search below open subproblems.

    Attributes:
        batch: them, "node" being their place.
        score: (B,).
        seconds: how long, at most.
    """

    batch: Batch
    score: Array
    seconds: float


@dataclass(frozen=True)
class Grown:
    """What became of `Subtrees`.

    Attributes:
        trees: the first nodes are those of the task.
        batch, score: what is open; None if nothing is.
        statistics: of this search.
        refuted: case -> the lowest bound that refuted a part of it.
    """

    trees: NeuronTrees
    batch: Batch | None
    score: Array
    statistics: Statistics
    refuted: dict[int, float]


Done = Callable[[Any], None]
"""Takes what became of a task, `Grown` or `Settled`; None if its child has died."""


@dataclass(eq=False)
class _Member:
    child: Child
    tasks: list[Done] = field(default_factory=list)


class Crew:
    """The children of one search, none at first; a context manager that ends them.

    Args:
        brief: what they are told first.
        replay: confirms a point that they have found.
        most: how many there may be.

    Attributes:
        found: a witness.
        reserved: whether they are for regions, and take no subtrees.
    """

    def __init__(
        self,
        brief: Brief,
        replay: Callable[[FloatArray, int, IntArray], Counterexample | None],
        most: float = math.inf,
    ) -> None:
        self._brief, self._replay, self._most = brief, replay, most
        self._members: list[_Member] = []
        self._idle = IdleProcessors()
        self._staffed = False
        self.found: Counterexample | None = None
        self.reserved = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for member in self._members:
            member.child.close()

    @property
    def size(self) -> int:
        """How many children there are."""
        return len(self._members)

    @property
    def vacancies(self) -> int:
        """How many tasks can be handed out; starts children once it is time."""
        if not self._staffed and self._idle.seconds > _PATIENCE:
            count = int(min(self._idle.count() + _SPARE, self._most))
            self._staffed = count > 0
            self._staff(count)
            self._idle = IdleProcessors()
        return sum(_AHEAD - len(member.tasks) for member in self._members)

    def submit(self, task: Subtrees | Region, done: Done) -> None:
        """Hand a task to the child with the fewest; ``done`` is called from `poll`."""
        member = min(self._members, key=lambda member: len(member.tasks))
        member.tasks.append(done)
        member.child.tell(task)

    def poll(self, *, wait: bool = False) -> None:
        """Pass on what has become of tasks; if told to and there is nothing, wait for a moment."""
        for member in list(self._members):
            seconds = _GLANCE if wait and member.tasks else 0.0
            try:
                while True:
                    answer, points = member.child.answer(seconds)
                    for point in points:
                        self.found = self.found or self._replay(*point)
                    member.tasks.pop(0)(answer)
                    seconds = 0.0
            except queue.Empty:
                pass
            except EOFError:
                _log.warning("a process of the search has died; its work is done by the others")
                self._members.remove(member)
                member.child.close()
                for done in member.tasks:
                    done(None)

    def _staff(self, count: int) -> None:
        if count == 0:
            return
        _log.info("%d more processes take part in the search", count)
        brancher = self._brief.brancher
        portable = replace(
            self._brief,
            brancher=replace(
                brancher,
                cases=replace(brancher.cases, problem=brancher.cases.problem.portable()),
                trees=brancher.trees.replanted(),
            ),
            memory_bytes=self._brief.memory_bytes / (1 + count),
        )
        try:
            for _ in range(count):
                child = Child(MEMBER, shared(brancher))
                self._members.append(_Member(child))
                child.tell(portable)
        except OSError as error:
            _log.info("no process can be started: %s", error)


@dataclass(eq=False)
class Lending:
    """Subproblems of one search in other hands.

    Attributes:
        crew: who takes them.
        brancher, frontier, statistics: of the search.
        record: told of cases (K, 1) and the bounds that refuted a part of each (K, 1).
        stuck: subproblems that they could not split any further.
    """

    crew: Crew
    brancher: NeuronSplit
    frontier: Frontier
    statistics: Statistics
    record: Callable[[Array, Array], None]
    stuck: int = 0
    _lent: dict[int, tuple[int, float]] = field(default_factory=dict)
    _count: int = 0
    _over: bool = False

    @property
    def out(self) -> int:
        """How many were lent."""
        return sum(count for count, _ in self._lent.values())

    @property
    def lowest(self) -> float:
        """The lowest score of them, infinity when there are none."""
        return min((score for _, score in self._lent.values()), default=float("inf"))

    @property
    def found(self) -> Counterexample | None:
        """A witness found there."""
        return self.crew.found

    def exchange(self, size: int) -> None:
        """Take back what was returned, and lend more.

        Args:
            size: subproblems in a batch of this search.
        """
        self.crew.poll(wait=not len(self.frontier))
        while not self.crew.reserved and (vacancies := self.crew.vacancies):
            # All that are open are shared out evenly, but no more than a few batches at a time.
            share = min(_BATCHES * size, len(self.frontier) // (1 + vacancies))
            if share < _FEWEST:
                return
            batch, score = self.frontier.pop_half(share)
            nodes = batch["node"]
            batch["node"] = np.arange(len(nodes))
            self._count += 1
            self._lent[self._count] = len(score), float(score.min())
            back = partial(self._take_back, self._count, dict(batch) | {"node": nodes}, score)
            self.crew.submit(Subtrees(batch, score, _TASK_SECONDS), back)

    def end(self) -> None:
        """Whatever comes back later is not wanted."""
        self._over = True

    def _take_back(self, number: int, batch: Batch, score: Array, grown: Grown | None) -> None:
        if self._over:
            return
        del self._lent[number]
        if grown is None:
            self.frontier.push(batch, score)
            return
        numbers = self.brancher.trees.graft(grown.trees, batch["node"])
        if grown.batch is not None:
            grown.batch["node"] = numbers[grown.batch["node"]]
            self.frontier.push(grown.batch, grown.score)
        self.stuck += grown.statistics.stuck
        self.statistics.add(grown.statistics)
        if grown.refuted:
            cases, lower = np.array(list(grown.refuted)), np.array(list(grown.refuted.values()))
            self.record(cases[:, None], lower[:, None])
