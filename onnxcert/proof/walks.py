"""Trees over inputs, as the child of `onnxcert.proof.watch` walks them while the search runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxcert.arrays import IntArray
from onnxcert.checker.audit import Auditor
from onnxcert.checker.proof import Boxes, Combined, Prover
from onnxcert.checker.spec import Case
from onnxcert.checker.trees import InputGroup, Node, Refusal, Region, Walked
from onnxcert.proof.trace import Cut, Step

_NUMBERS = 1 << 19
"""Float64 numbers of bounds in one batch of nodes."""


@dataclass(eq=False)
class WatchedTrees:
    """Trees over inputs, as the child walks them.

    Attributes:
        prover: for the cases of these trees.
        numbers, cases: (K,) the checker's numbers of those cases, in the prover's order, and they
            themselves.
        auditor: audits nothing.
        boxes: open nodes; None below a node that is refuted already.
        decision: node -> input and halves, -1 for leaves, and how it was cut (0 for leaves).
        roots: node -> numbers of its cases.
        doubts: leaves that were not refuted -> they as they were bounded, and what was left.
        sums: (node, number of a case) -> weights.
        handed: nodes that are handed on.
    """

    prover: Prover
    numbers: IntArray
    cases: Sequence[Case]
    auditor: Auditor
    boxes: dict[int, Boxes | None] = field(default_factory=dict)
    decision: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)
    roots: dict[int, frozenset[int]] = field(default_factory=dict)
    doubts: dict[int, tuple[Boxes, Refusal]] = field(default_factory=dict)
    sums: dict[tuple[int, int], bytes] = field(default_factory=dict)
    handed: dict[int, Boxes | None] = field(default_factory=dict)

    def reopen(self, step: Step) -> bool:
        """Take back what was not accepted, or handed on in vain, and is cut now.

        Returns:
            Whether all nodes of the batch are open then; else these are other trees.
        """
        for node in step.cut.tolist():
            if node in self.doubts:
                self.boxes[node], _ = self.doubts.pop(node)
            elif node in self.handed:
                self.boxes[node] = self.handed.pop(node)
        return all(node in self.boxes for part in (step.cut, step.closed) for node in part.tolist())

    def step(self, step: Step, combined: Combined) -> None:
        """Walk a batch."""
        for node in step.closed.tolist():
            self.decision[node] = (-1, -1, -1, 0)
        rows = zip(step.cut, step.inputs, step.low, step.high, step.how, strict=True)
        for node, chosen, low, high, how in rows:
            self.decision[int(node)] = (int(chosen), int(low), int(high), int(how))
        at_once = step.how == Cut.AT_ONCE
        for node in step.cut[at_once].tolist():
            self._cut(np.array([node]), self.boxes.pop(node))
        nodes = np.concatenate([step.closed, step.cut[~at_once]])
        network = self.prover.bounder.network
        width = network.size + 1 + self.prover.rows.used.shape[1] * network.n_inputs
        most = max(1, _NUMBERS // width)
        for start in range(0, len(nodes), most):
            self._bound(nodes[start : start + most], combined)

    def _bound(self, nodes: IntArray, combined: Combined) -> None:
        known = [(node, self.boxes.pop(node)) for node in nodes.tolist()]
        ids = np.array([node for node, boxes in known if boxes is not None], np.int64)
        self._cut(np.array([node for node, boxes in known if boxes is None], np.int64), None)
        parts = [boxes for _, boxes in known if boxes is not None]
        if not parts:
            return
        batch = Boxes.joined(parts)
        chosen = self._inputs(ids)
        folded = np.array([self.decision[node][3] == Cut.FOLDED for node in ids.tolist()])
        left, rest, worst = self.prover.boxes(
            ids, batch, chosen < 0, combined, self.auditor, folded
        )
        self._cut(np.setdiff1d(ids, ids[left]), None)
        inner = chosen[left] >= 0
        for place in np.flatnonzero(~inner).tolist():
            number, cases = left[place], rest.cases[place]
            box = rest.low[place], rest.high[place]
            refusal = Refusal(-1, -1, cases[cases >= 0], *box, float(worst[place]))
            self.doubts[int(ids[number])] = batch[number : number + 1], refusal
        self._cut(ids[left][inner], rest[inner])

    def _cut(self, nodes: IntArray, boxes: Boxes | None) -> None:
        """Hand the halves of nodes on; there are no boxes below what is refuted."""
        if boxes is None:
            for node in nodes.tolist():
                self._hand_on(node, None, None)
            return
        halves = self.prover.halves(boxes, self._inputs(nodes))
        for place, node in enumerate(nodes.tolist()):
            self._hand_on(node, *(half[place : place + 1] for half in halves))

    def hand(self, node: int) -> Region | None:
        """A node is handed on to trees over neurons; where, if anything is left of it."""
        self.decision[node] = (-1, -1, -1, 0)
        self.handed[node] = box = self.boxes.pop(node)
        handed = Node(0, 0, self.cases, self.numbers, box)
        return None if box is None else Region((), handed)

    def _inputs(self, nodes: IntArray) -> IntArray:
        return np.array([self.decision[node][0] for node in nodes.tolist()], np.int64)

    def _hand_on(self, node: int, low: Boxes | None, high: Boxes | None) -> None:
        _, left, right, _ = self.decision[node]
        if left >= 0:
            self.boxes[left], self.boxes[right] = low, high

    def known(self, order: IntArray, group: InputGroup) -> Walked | None:
        """What is left of the nodes, if a group says what was walked; arguments as `agrees`."""
        if not self.agrees(order, group):
            return None
        handed = np.flatnonzero(group.handed).tolist()
        doubtful = np.flatnonzero(np.isin(order, list(self.doubts))).tolist()
        return Walked(
            {number: self.handed[int(order[number])] for number in handed},
            [replace(self.doubts[int(order[number])][1], node=number) for number in doubtful],
        )

    def agrees(self, order: IntArray, group: InputGroup) -> bool:
        """Whether a group of a certificate says what was walked, no more and no less.

        Args:
            order: (nodes,) for each node of the group its number here.
            group: as the certificate has it.
        """
        tree, inputs, sums = group.tree, group.inputs, group.combined
        # Two nodes of the group that claim to be the same node here would hide one of them.
        if not len(np.unique(order)) == len(order) == len(tree) == len(self.decision):
            return False
        if self.boxes or not np.array_equal(group.numbers, self.numbers):
            return False
        if set(order[group.handed].tolist()) != self.handed.keys():
            return False
        firsts = np.flatnonzero(~np.isin(np.arange(len(tree)), tree))
        rows = [frozenset(group.numbers[row[row >= 0]].tolist()) for row in group.roots.cases]
        if self.roots != dict(zip(order[firsts].tolist(), rows, strict=True)):
            return False
        nothing = (-2, -2, -2, 0)
        seen = np.array([self.decision.get(node, nothing) for node in order.tolist()])
        split = tree[:, 0] >= 0
        same = np.where(split, inputs, -1) == seen[:, 0]
        children = np.where(split[:, None], order[tree], -1)
        how = (group.folded == (seen[:, 3] == Cut.FOLDED)) & (
            group.unbounded == (seen[:, 3] == Cut.AT_ONCE)
        )
        if not (same.all() and (children == seen[:, 1:3]).all() and how.all()):
            return False
        stored = {
            (int(order[node]), int(group.numbers[case])): weights.tobytes()
            for node, case, weights in zip(sums.node, sums.case, sums.weights, strict=True)
        }
        return stored == self.sums
