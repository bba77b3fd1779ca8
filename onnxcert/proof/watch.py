"""Checking while the search runs: the checker's functions on the second processor.

A child process gets every step of the trees over inputs as it happens and bounds the same boxes
with the checker's own arithmetic; a single root at the same time as the search, for the first
bounds of a wide network may take longer than all others together, and be all that it needs. Of
trees over neurons it gets the bounds of the box once these are settled, then splits and closed
leaves, whoever found them; regions and trees of narrowed cases when they are complete. When the
search is done the child is given the certificate and checks it like any other, but for what it has
refuted already: trees over inputs are compared with what it walked, bounds and leaves of trees over
neurons are those that it remembers (`onnxcert.proof.memory`). Nothing is believed that the child
did not do itself, and nothing is lost where it lags behind, or was told too little or too much: the
rest is refuted in the end.

Messages are pickled tuples on pipes; the child is started by ``python -m onnxcert.proof.watch``.
"""

from __future__ import annotations

import logging
import math
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from onnxcert.arrays import Array, FloatArray, IntArray
from onnxcert.checker.audit import Auditor
from onnxcert.checker.certificate import EXECUTED, Session, Verified
from onnxcert.checker.errors import Expired, Rejected, Unusable
from onnxcert.checker.forward import varies
from onnxcert.checker.model import Models
from onnxcert.checker.needed import Unread
from onnxcert.checker.proof import Combined, Prover, Rows
from onnxcert.checker.spec import Case, read_spec
from onnxcert.checker.trees import Arrays, Group, InputGroup, Refusal, Region, Walked
from onnxcert.errors import InputError
from onnxcert.processes import Child, IdleProcessors, end_with_parent, read, write
from onnxcert.proof.leaves import GrowingTrees
from onnxcert.proof.memory import Memory
from onnxcert.proof.trace import (
    NOTHING,
    Follower,
    Halves,
    InputTrees,
    Leaves,
    NeuronTrees,
    Step,
)
from onnxcert.proof.walks import WatchedTrees
from onnxcert.proof.writer import CaseNumbers, Writer, neurons_of
from onnxcert.spec import Problem

_PATIENCE = 1.0
"""Seconds of search before a child is started, which itself takes half a second to be ready."""

_LONGEST_WAIT = 10.0
"""Seconds after which no child is started any more."""

_IDLE_ENOUGH = 0.7
"""Processors without work from which on a child does not take away what the search needs."""

_LATER = 0.5
"""Seconds for which neurons must have been split before a child is started for them: many searches
are over soon once they begin."""

_MOST_WAITING = 1 << 26
"""Bytes of messages that wait for the child; leaves beyond are for the end."""

_GRACE = 0.0
"""Seconds to wait in the end for a child that is not ready yet: it has done nothing so far."""

_GLANCE = 0.05
"""Seconds between looks at the clock."""

_log = logging.getLogger(__name__)


Reply: TypeAlias = "tuple[Verified | Rejected | Unusable, list[Refusal]]"


class _Memory(Memory):
    """What the child has refuted.

    Attributes:
        trees: over inputs, by their numbers.
        groups: of the certificate: numbers of trees (-1 for others) and their nodes.
    """

    def __init__(self, executed: bool, whole: bool) -> None:
        super().__init__(executed, whole)
        self.trees: dict[int, WatchedTrees] = {}
        self.groups: Sequence[tuple[int, IntArray]] = ()

    def walked(self, place: int, group: InputGroup) -> Walked | None:
        """What a group hands on, if just this one was walked."""
        uid, order = self.groups[place]
        return self.trees[uid].known(order, group) if uid in self.trees else None


class _Child:
    """The child's side: answers messages until the certificate comes."""

    def __init__(self, model: Models, spec: bytes, directory: Path | None, semantics: str) -> None:
        self.session = Session(model, spec, directory)
        self.executed = semantics == EXECUTED
        self.numbers = CaseNumbers(self.session.query)
        self.cases = list(self.session.query.cases())
        self.places = {id(case): number for number, case in enumerate(self.cases)}
        self._forget(whole=False)

    def _forget(self, *, whole: bool) -> None:
        """Bound what the specification reads of the network, or all of it, from now on."""
        self.bounder = self.session.bounder(executed=self.executed, whole=whole)
        self.memory = _Memory(self.executed, whole)
        self.trees = self.memory.trees
        self.growing: dict[int, GrowingTrees] = {}
        self.regions: dict[tuple[int, int], Region] = {}

    def problem(self, problem: Problem) -> None:
        """A problem is about to be solved."""
        self.numbers.add(problem)

    def plant(self, uid: int, nodes: IntArray, disjuncts: IntArray) -> None:
        """Trees begin at boxes: nodes (R,) with their cases (R, C)."""
        known = [[self.numbers[d].number for d in row[row >= 0]] for row in disjuncts]
        numbers = np.unique([number for row in known for number in row])
        cases = [self.cases[number] for number in numbers]
        auditor = Auditor(self.bounder, 0, 0)
        trees = WatchedTrees(self._prover(cases), numbers, cases, auditor)
        roots = trees.prover.roots(cases)
        place = {frozenset(numbers[r[r >= 0]].tolist()): k for k, r in enumerate(roots.cases)}
        for node, row in zip(nodes.tolist(), known, strict=True):
            trees.roots[node] = frozenset(row)
            number = place[frozenset(row)]
            trees.boxes[node] = roots[number : number + 1]
        # The search does not bound boxes of whole inputs that it goes down from to single points.
        inner = varies(roots.low, roots.high) & ~trees.prover.whole
        if len(nodes) == 1 and inner.any():
            trees.prover.bounds(roots, backward=True)
        self.trees[uid] = trees

    def _prover(self, cases: Sequence[Case]) -> Prover:
        network = self.session.network
        return Prover(self.bounder, Rows.of(cases, network.n_inputs, len(network.output)))

    def box(self, disjuncts: IntArray) -> None:
        """The search bounds all neurons over the box of some cases."""
        cases = [self.cases[self.numbers[number].number] for number in disjuncts.tolist()]
        prover = replace(self._prover(cases), ahead=self.memory.ahead)
        roots = prover.roots(cases)
        if len(roots.low) == 1:
            prover.bounds(roots, backward=True)

    def step(self, uid: int, step: Step) -> None:
        """The search has bounded a batch."""
        trees = self.trees.get(uid)
        if trees is None:
            return
        if not trees.reopen(step):  # refused in the end for something else that the child had seen
            del self.trees[uid]
            return
        node, disjuncts, weights = step.combined
        width = trees.prover.rows.used.shape[1]
        table = np.zeros((len(node), width))
        position = np.zeros(len(node), np.int64)
        for row, (n, disjunct) in enumerate(zip(node, disjuncts, strict=True)):
            case = self.numbers[disjunct]
            table[row, : len(case.order)] = weights[row, case.order]
            position[row] = np.searchsorted(trees.numbers, case.number)
            trees.sums[int(n), case.number] = table[row].tobytes()
        order = np.lexsort((position, node))
        trees.step(step, Combined(node[order], position[order], table[order]))
        trees.prover.ahead.clear()

    def hand(self, uid: int, node: int, arrays: Mapping[str, Array], layers: Sequence[str]) -> None:
        """The search has handed a node on."""
        region = self.trees[uid].hand(node) if uid in self.trees else None
        if region is not None:
            self._check(arrays, layers, region)

    def bounds(
        self,
        uid: int,
        neurons: Mapping[int, tuple[str, IntArray]],
        arrays: Mapping[str, Array],
        layers: Sequence[str],
    ) -> None:
        """Trees over neurons are about to grow over some bounds."""
        group = self._check(arrays, layers)
        if group is not None:
            numbers = arrays["case"].astype(np.int64)
            self.growing[uid] = GrowingTrees(group, numbers, self.memory, neurons)
            self._expect(uid, group)

    def planted(self, uid: int, nodes: IntArray, disjuncts: IntArray) -> None:
        """They have new roots."""
        if uid in self.growing:
            self.growing[uid].plant(nodes, [self.numbers[number] for number in disjuncts])

    def split(self, uid: int, *splits: Any) -> None:
        """Some of their nodes are split."""
        if uid in self.growing:
            self.growing[uid].split(*splits)

    def closed(self, uid: int, leaves: Leaves) -> None:
        """Some of their leaves are closed."""
        if uid in self.growing:
            self.growing[uid].close(leaves)

    def halved(self, uid: int, arrays: Mapping[str, Array], layers: Sequence[str]) -> None:
        """They hand cases on to halves."""
        group = self._check(arrays, layers) if uid in self.growing else None
        if group is not None:
            self._expect(uid, group)

    def handed(
        self, uid: int, place: int, part: int, arrays: Mapping[str, Array], layers: Sequence[str]
    ) -> None:
        """Trees of a half, or of a case that narrows, are there; they are a part themselves."""
        region = self.regions.pop((uid, place if place < 0 else self.numbers[place].number), None)
        if region is not None and (group := self._check(arrays, layers, region)) is not None:
            self._expect(part, group)

    def _expect(self, uid: int, group: Group) -> None:
        """Note where those are open that a group has handed on."""
        for region in group.regions:
            if region.narrowed:
                place = self.places[id(region.cases[0])]
            else:
                place = -1 if region.side[-1] < 0 else -2
            self.regions[uid, place] = region

    def _check(
        self, arrays: Mapping[str, Array], layers: Sequence[str], region: Region | None = None
    ) -> Group | None:
        """Check groups over neurons, of a region or a box; None if they cannot be checked now."""
        stream, auditor = Arrays(dict(arrays)), Auditor(self.bounder, 0, 0)
        try:
            group = Group(self.bounder, layers, stream, auditor, 1, [], lambda: False, self.memory)
            group.regions += [] if region is None else [region]
            for place, header in enumerate(stream.take("group", len(arrays["group"]))):
                numbers = stream.take("case", int(header[1])).astype(np.int64)
                group.refute([self.cases[n] for n in numbers], numbers, header, place)
            stream.finish()
        except Rejected as error:
            _log.info("trees over neurons are not refuted: %s", error)
            return None
        except Unread:
            # As in the end, where nothing counts that was refuted with less of the network. What is
            # to be checked in a region or in halves hangs on bounds that do not count either.
            if not self.memory.whole:
                self._forget(whole=True)
                return self._check(arrays, layers) if region is None else None
            return None
        return group

    def finish(self, data: bytes, groups: Sequence[tuple[int, IntArray]]) -> Reply:
        """Check the certificate; groups are numbers of trees (-1 for others) and their nodes."""
        self.memory.groups = groups
        refused: list[Refusal] = []
        try:
            return self.session.check(data, refused=refused, known=self.memory), refused
        except (Rejected, Unusable) as error:
            return error, refused


class _Listener(Follower):
    """Tells the child what becomes of trees over neurons.

    Args:
        watch: has the child.
        uid: their number.
        trees: that have the bounds.
        cases: that may be open there, as the search numbers them; none of regions.
    """

    def __init__(self, watch: Watch, uid: int, trees: NeuronTrees, cases: IntArray) -> None:
        self._watch, self._uid, self._trees, self._cases = watch, uid, trees, cases

    def planted(self, nodes: IntArray, cases: IntArray) -> None:
        self._watch.tell("planted", self._uid, nodes, cases)

    def split(
        self, parents: IntArray, neurons: IntArray, points: FloatArray, halves: IntArray
    ) -> None:
        self._watch.tell("split", self._uid, parents, neurons, points, halves)

    def closed(self, leaves: Leaves) -> None:
        self._watch.tell("closed", self._uid, leaves)

    def halved(self, halves: Halves) -> None:
        trees, cases = self._trees, self._cases
        self._watch.describe(
            "halved",
            self._uid,
            make=lambda writer: writer.arrays_of_bounds(trees, cases, halves),
        )

    def handed(self, place: int, trees: NeuronTrees) -> None:
        if all(trees.closed(nodes).all() for nodes, _ in trees.roots):
            self._watch.follow_part((self._uid, place), trees)


_Parts = Callable[[], "tuple[Any, ...] | None"]
"""Makes what a message says; None if that is not possible."""

_SPARE = ("box", "bounds", "planted", "split", "closed", "halved", "handed")
"""Messages without which the certificate can be checked as well."""

_LARGE = ("closed", "handed")
"""Those of them that are left out when the child does not keep up."""


class Watch:
    """The parent's side.

    Args:
        begin: what the child begins with: model, spec, directory and semantics, as for
            `onnxcert.proof.certify.Certifier`; called when a child is started.
    """

    def __init__(self, begin: Callable[[], tuple[Models, bytes, Path | None, str]]) -> None:
        self._begin = begin
        self._waiting: list[tuple[str, _Parts]] = []
        self._child: Child | None = None
        self._idle = IdleProcessors()
        self._closed = threading.Event()
        self._lock = threading.RLock()
        self._starter: threading.Thread | None = None
        self._trees: dict[int, int] = {}
        self._count = 0
        self._ready = False
        self._followed = self._due = math.inf
        self._problems: list[Problem] = []
        self._numbers: CaseNumbers | None = None

    def problem(self, problem: Problem) -> None:
        """A problem is about to be solved."""
        self._problems.append(problem)
        self.tell("problem", problem.portable())

    def follow(self, trees: InputTrees) -> None:
        """Be told of every step of some trees."""
        uid = self._trees[id(trees)] = self._number(0.0)
        trees.planted = partial(self.tell, "plant", uid)
        trees.stepped = partial(self.tell, "step", uid)
        trees.handed_on = partial(self._hand, uid)

    def follow_box(self, cases: IntArray) -> None:
        """Be told of a box, the same for some cases, before its neurons are bounded."""
        self._number(_LATER)
        self.tell("box", cases)

    def follow_neurons(self, trees: NeuronTrees, cases: IntArray) -> None:
        """Be told of all that becomes of some trees over a whole box, where cases are open."""
        uid = self._number(_LATER)
        trees.follower = _Listener(self, uid, trees, cases)
        neurons = neurons_of(trees.graph)
        self.describe(
            "bounds", uid, neurons, make=lambda writer: writer.arrays_of_bounds(trees, cases)
        )

    def follow_part(self, where: tuple[int, int], trees: NeuronTrees) -> None:
        """Trees of a half, or of a case that narrows, are complete, but for halves in turn.

        Args:
            where: the number of the trees that hand on to these, and the place there.
            trees: these.
        """
        uid = self._number(_LATER)
        if trees.halves is not None:
            trees.halves.follower = _Listener(self, uid, trees, NOTHING)
        kind = 2 if where[1] < 0 else 4
        self.describe(
            "handed", *where, uid, make=lambda writer: writer.arrays_of_trees(trees, kind)
        )

    def _number(self, patience: float) -> int:
        """The number of new trees, for which a child pays after some seconds."""
        now = time.monotonic()
        self._followed, self._due = min(self._followed, now), min(self._due, now + patience)
        self._count += 1
        return self._count

    def _hand(self, uid: int, node: int, trees: NeuronTrees) -> None:
        """Send what a certificate will say of a node that is handed on."""
        self.describe("hand", uid, node, make=lambda writer: writer.arrays_of_trees(trees, 5))

    def describe(
        self, kind: str, *parts: Any, make: Callable[[Writer], Mapping[str, Array]]
    ) -> None:
        """Send a message with what a certificate will say of something."""

        def described() -> tuple[Any, ...] | None:
            numbers = self._case_numbers()
            if numbers is None:
                return None
            writer = Writer(numbers)
            arrays = make(writer)
            return *parts, arrays, tuple(writer.layers)

        self._send(kind, described)

    def _case_numbers(self) -> CaseNumbers | None:
        """How cases are numbered; None if they cannot be paired with the checker's."""
        try:
            if self._numbers is None:
                self._numbers = CaseNumbers(read_spec(self._begin()[1]))
            for problem in self._problems:
                self._numbers.add(problem)
        except (Unusable, InputError) as error:
            # The child will see that it was not told of all, and whoever certifies says why.
            _log.info("what is to be checked cannot be described: %s", error)
            self._closed.set()
            return None
        self._problems.clear()
        return self._numbers

    def tell(self, kind: str, *parts: Any) -> None:
        """Send a message."""
        self._send(kind, lambda: parts)

    def _send(self, kind: str, make: _Parts) -> None:
        """Send a message, or keep it until the search has taken long enough for a child to pay.

        Trees outlive the watch when they are repaired without a child; then nobody listens.
        """
        with self._lock:
            if self._closed.is_set():
                return
            if self._child is not None:
                self._pass_on(self._child, kind, make)
                return
            self._waiting.append((kind, make))
            # The search may be silent for long; without trees there is nothing to be checked yet.
            if not self._settled() and self._starter is None and self._followed < math.inf:
                self._starter = threading.Thread(target=self._wait, daemon=True)
                self._starter.start()

    @staticmethod
    def _pass_on(child: Child, kind: str, make: _Parts) -> None:
        if kind in _LARGE and child.waiting > _MOST_WAITING:
            return
        parts = make()
        if parts is not None:
            child.tell((kind, *parts), spare=kind in _SPARE)

    def _wait(self) -> None:
        """Start a child as soon as it would pay, whatever the search does meanwhile."""
        while not self._closed.wait(_GLANCE) and not self._settled():
            pass

    def _settled(self) -> bool:
        """Start a child if it pays now; whether there is one, or will be none."""
        with self._lock:
            if self._closed.is_set() or self._child is not None:
                return True
            now = time.monotonic()
            if now - self._followed > _LONGEST_WAIT:
                # What is kept grows, and a late child would only lag behind.
                self._closed.set()
                self._waiting.clear()
            elif (
                self._idle.seconds > _PATIENCE
                and not now < self._due < math.inf
                and self._idle.count() > _IDLE_ENOUGH
            ):
                self._start()
            return self._closed.is_set() or self._child is not None

    def _start(self) -> None:
        try:
            self._child = Child(__spec__.name)
        except OSError as error:
            _log.info("no second process: %s", error)
            self._closed.set()
            return
        self._child.tell(self._begin())
        for kind, make in self._waiting:
            self._pass_on(self._child, kind, make)
        self._waiting.clear()

    def finish(
        self,
        data: bytes,
        groups: Sequence[tuple[InputTrees | NeuronTrees | None, IntArray, IntArray]],
        expired: Callable[[], bool],
    ) -> Reply | None:
        """What the child says of the certificate; None if there is no child that can tell.

        A child that has answered goes on listening: what it did not accept may be repaired.

        Raises:
            Expired: the time is up.
        """
        with self._lock:
            child = self._child
        if child is None:
            self.close()
            return None
        known = [(self._trees.get(id(trees), -1), order) for trees, order, _ in groups]
        child.hurry()
        child.tell(("finish", data, known))
        try:
            if not self._ready:
                _answer(child, _GRACE, expired)  # that it is
                self._ready = True
            reply: Reply = _answer(child, math.inf, expired)
            return reply
        except (EOFError, queue.Empty) as error:
            _log.info("the second process has not answered: %r", error)
            self.close()
            return None
        except Expired:
            self.close()
            raise

    def close(self) -> None:
        """End the child; nothing is sent any more."""
        self._closed.set()
        if self._starter is not None:
            self._starter.join()
        with self._lock:
            self._waiting.clear()
            if self._child is not None:
                self._child.close()
                self._child = None


def _answer(child: Child, patience: float, expired: Callable[[], bool]) -> Any:
    """The next answer of a child.

    Raises:
        queue.Empty: there is none after some seconds.
        EOFError: there will be none.
        Expired: the time is up.
    """
    limit = time.monotonic() + patience
    while True:
        try:
            return child.answer(_GLANCE if patience > 0 else 0.0)
        except queue.Empty:
            if expired():
                raise Expired from None
            if time.monotonic() >= limit:
                raise


def main() -> None:
    """The child: read messages, and answer those that have a certificate."""
    end_with_parent()
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    with np.errstate(all="ignore"):
        child = _Child(*read(source))
        write(sink, "ready")
        while True:
            kind, *arguments = read(source)
            reply = getattr(child, kind)(*arguments)
            if kind == "finish":
                write(sink, reply)


if __name__ == "__main__":
    main()
