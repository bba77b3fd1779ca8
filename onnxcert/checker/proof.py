"""Rules R0, R8, R10 and R11: a tree of cases whose leaves are all refuted.

R0   The certificate names the SHA-256 of the model and the specification, which are read again
     here, and every case of the specification belongs to exactly one group. The union of the cases
     is the specification.
R8   A case asks for g_m <= 0 for all its rows m. It has no solution on a set where one row, or a
     sum of rows with weights >= 0, has a positive lower bound (for a strict row, one that is >= 0):
     that of a linear form over the inputs, or for one row that of intervals of what it reads.
     At leaves, and for the sums that the certificate names, R4 lets the checker look for lines of
     its own (`onnxcert.checker.ascent`).
     Where a row g(x) >= a . x + c must be <= 0, x_i keeps a distance of at most -min(g) / |a_i|
     from the end where the form is least: the box is clipped to the hull over its open cases.
R10  A set is split into x_d <= p and x_d >= p with p the middle of the box, clipped if it was
     bounded, or into z <= p and z >= p for a scalar z: closed halves, nothing is lost. The tree is
     walked from its root and the halves are made here, so that a certificate cannot express a gap.
     A node of a tree over inputs may be cut without being bounded, or handed on to trees over
     neurons: one for each case that is open there, over its box and with the bounds known there.
R11  Bounds of a set hold for its subsets.
R12  (Reserved: derived cuts.)
R13  A witness lies in the specification exactly, with the outputs that exact rational arithmetic
     gives (exact-replay) or those that onnxruntime computes (ort-replay).
R14  Lipschitz constants (`onnxcert.checker.lipschitz`).
R15  Products and quotients (`onnxcert.checker.pairs`), and R16 (`onnxcert.checker.bounds`).
R18  Planes above relus (`onnxcert.checker.tilts`), and R19, sums of relus of one number as curves
     (`onnxcert.checker.pieces`). R21, scalars that no row depends on (`onnxcert.checker.needed`).
R20  A case asks for g_m <= 0 for all its rows m, so where it holds, s z >= s z + sum_m w_m g_m
     - sum_d beta_d s_d (z_d - p_d) for a scalar z, s = +1 or -1, weights w_m >= 0, and splits
     s_d (z_d - p_d) >= 0 of the set with beta_d >= 0. The right side is a linear form, whose lower
     bound over the set bounds s z at all points of the case in it. Bounds found so hold for that
     case only: they are handed on to groups in which no other case is refuted. Those of one scalar
     may be used for the next, as all of them hold at the points that are left; where they
     contradict each other there are none. The form is bounded like that of a leaf of a tree over
     neurons, with s z as a constraint z >= 0 or z <= 0 whose multiplier is -1, and is charged with
     the same roundings: adding 1 to a row is no less exact than subtracting beta.
R22  Folded networks (`onnxcert.checker.folding`): a box may be bounded with the network of any box
     that it is a part of. The certificate says on which boxes it is folded.
R23  Equal and opposite scalars (`onnxcert.checker.equals`).
R24  Whole inputs. Where nothing but floors reads an input (`onnxcert.checker.network.floored`), no
     row is about it and no ellipsoid, an input x and the one with floor(x_i) in place of x_i give
     the same values to all scalars but x_i and to all rows. So a case has a solution in a box only
     if it has one with x_i whole, from the floor of its lower end to that of its upper end. Such an
     x_i is split into x_i <= k and x_i >= k + 1 with k the floor of the middle, and ends are
     rounded inwards to whole numbers after clipping.
R17  Over the reals a share exp(x_i) / sum_j exp(x_j) is larger than another one of its row if and
     only if its x_i is. Where a specification only compares shares of one row with each other, x
     takes their place among the outputs (`onnxcert.checker.network.Network.compared`). Executions
     may round both to one number, so that it does not hold for those.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from functools import cached_property
from types import MappingProxyType

import numpy as np

from onnxcert.checker import folding
from onnxcert.checker.ascent import FOLDED_RATE, FOLDED_STEPS, RATE, STEPS, Ascent
from onnxcert.checker.audit import Auditor
from onnxcert.checker.balls import Balls, Ellipsoid
from onnxcert.checker.bounds import Bounder, Columns, Form, Relaxation, gamma
from onnxcert.checker.coefficients import Pending, add
from onnxcert.checker.curves import TINY, Array, U
from onnxcert.checker.network import Curve, distinct
from onnxcert.checker.spec import Case
from onnxcert.checker.tilts import Tilt

_NUMBERS = 1 << 18
"""Float64 numbers of bounds in one batch of ascents; its temporaries stay in cache."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of some cases of a specification as arrays; see `onnxcert.checker.spec.Row`."""

    outputs: Array
    inputs: Array
    offset: Array
    strict: Array
    used: Array

    @classmethod
    def of(cls, cases: Sequence[Case], n_inputs: int, n_outputs: int) -> Rows:
        """(C, R, .) arrays padded to the longest case; a case without rows is ``-1 <= 0``."""
        count, width = len(cases), max(1, *(len(case.rows) for case in cases))
        made = cls(
            np.zeros((count, width, n_outputs)),
            np.zeros((count, width, n_inputs)),
            np.full((count, width), -1.0),
            np.zeros((count, width), bool),
            np.zeros((count, width), bool),
        )
        for c, case in enumerate(cases):
            for r, row in enumerate(case.rows):
                for terms, target in ((row.outputs, made.outputs), (row.inputs, made.inputs)):
                    for position, coefficient in terms:
                        target[c, r, position] = coefficient
                made.offset[c, r], made.strict[c, r] = row.offset, row.strict
                made.used[c, r] = True
        return made


@dataclass(frozen=True, eq=False)
class Boxes:
    """Nodes of a tree over inputs.

    Attributes:
        low, high: (B, n_in) input boxes.
        cases: (B, C) cases still open, as positions in `Rows`, -1 for none.
        known: bounds of ``Bounder.known_ids`` that hold there, (B, .) each.
        balls: ellipsoids that cut the boxes; None if none does.
        folds: (B,) the `Fold` that each is bounded with, or None; None if all are.
    """

    low: Array
    high: Array
    cases: Array
    known: tuple[Array, Array]
    balls: Balls | None = None
    folds: Array | None = None

    def __getitem__(self, index: Array | slice) -> Boxes:
        known = self.known[0][index], self.known[1][index]
        balls = self.balls and self.balls[index]
        folds = None if self.folds is None else self.folds[index]
        return Boxes(self.low[index], self.high[index], self.cases[index], known, balls, folds)

    def bounded_like(self, other: Boxes) -> bool:
        """Whether the bounds of one batch are those of the other: the same boxes without balls."""
        mine, theirs = (self.low, self.high, *self.known), (other.low, other.high, *other.known)
        return self.balls is None and other.balls is None and all(map(np.array_equal, mine, theirs))

    @staticmethod
    def joined(parts: Sequence[Boxes]) -> Boxes:
        """All batches in one."""
        width = max(part.cases.shape[1] for part in parts)
        cases = [
            np.pad(p.cases, ((0, 0), (0, width - p.cases.shape[1])), constant_values=-1)
            for p in parts
        ]
        balls = [part.balls for part in parts if part.balls is not None]
        folded = any(part.folds is not None for part in parts)
        return Boxes(
            np.concatenate([part.low for part in parts]),
            np.concatenate([part.high for part in parts]),
            np.concatenate(cases),
            (
                np.concatenate([part.known[0] for part in parts]),
                np.concatenate([part.known[1] for part in parts]),
            ),
            # All are parts of the boxes of one group.
            Balls.joined(balls) if balls else None,
            np.concatenate([part.of_each for part in parts]) if folded else None,
        )

    @property
    def of_each(self) -> Array:
        """The fold of every box, (B,)."""
        return np.full(len(self.low), None) if self.folds is None else self.folds


@dataclass(frozen=True, eq=False)
class Combined:
    """Sums of rows that refute a case at a node of a tree over inputs: sorted by node.

    Attributes:
        node, case: (M,) number of the node in its group, position of the case.
        weights: (M, R).
    """

    node: Array
    case: Array
    weights: Array

    def at(self, nodes: Array, cases: Array) -> tuple[Array, Array, Array]:
        """The entries for a batch of nodes (B,) with cases (B, C): rows, columns, weights."""
        order = np.argsort(nodes)
        place = np.searchsorted(nodes[order], self.node)
        place = np.minimum(place, len(nodes) - 1)
        entry = np.flatnonzero(nodes[order][place] == self.node)
        row = order[place[entry]]
        match = cases[row] == self.case[entry, None]
        there = match.any(axis=1)
        return row[there], match[there].argmax(axis=1), self.weights[entry[there]]


@dataclass(frozen=True, eq=False)
class Paths:
    """Leaves of trees over neurons.

    Attributes:
        case: (B,) positions in `Rows`.
        scalar: (B, D) split scalars, -1 for none; with side +1 (above) or -1, point, multiplier.
        slopes: (B, C) positions of free lines in 255ths.
        weights: (B, R) of the rows of the case.
        tilted: (B,) whether they take the planes of their case.
    """

    case: Array
    scalar: Array
    side: Array
    point: Array
    multiplier: Array
    slopes: Array
    weights: Array
    tilted: Array

    def __getitem__(self, index: slice) -> Paths:
        return Paths(*(getattr(self, part.name)[index] for part in fields(self)))


@dataclass(frozen=True, eq=False)
class _Splits:
    """What is subtracted from rows over scalars, M entries.

    Attributes:
        leaf, scalar, signed, point: number of the form, scalar, multiplier times side, and the
            point of the split.
    """

    leaf: Array
    scalar: Array
    signed: Array
    point: Array


@dataclass(frozen=True, eq=False)
class Narrowing:
    """Scalars to bound from one side where a case holds (rule R20).

    Attributes:
        layer: the number of the block of their layer.
        ids, sign: (K,) scalars of one block, and +1 for lower bounds, -1 for upper ones.
        paths: for each the case, the splits of its set, slopes, multipliers and weights.
    """

    layer: int
    ids: Array
    sign: float
    paths: Paths


@dataclass(frozen=True, eq=False)
class Fold:
    """A folded network (rule R22).

    Attributes:
        prover: refutes the same cases with it.
        place: (K,) which of the ``known_ids`` of the network itself its own are.
    """

    prover: Prover
    place: Array

    def enter(self, nodes: Boxes) -> Boxes:
        """Boxes with the bounds that are known of the folded network."""
        low, high = (side[:, self.place] for side in nodes.known)
        return replace(nodes, known=(low, high), folds=None)

    def leave(self, nodes: Boxes, before: Boxes) -> Boxes:
        """Boxes with those of the network itself: ``before`` and what was found since."""
        known = [side.copy() for side in before.known]
        for side, found in zip(known, nodes.known, strict=True):
            side[:, self.place] = found
        folds = nodes.of_each
        for number, fold in enumerate(folds):
            if fold is None:
                folds[number] = self
        return replace(nodes, known=(known[0], known[1]), folds=folds)


@dataclass(frozen=True, eq=False)
class Prover:
    """Refutes cases over boxes and over paths of neuron splits.

    Attributes:
        bounder, rows: the network and the cases.
        quickly: how many leaves were tried without rows for every neuron, and how many closed so.
        ahead: the last box of which nothing was known, with its bounds; none or one.
        place: that of the `Fold` that it belongs to; None for the network itself.
    """

    bounder: Bounder
    rows: Rows
    quickly: list[int] = field(default_factory=lambda: [0, 0])
    ahead: list[tuple[Boxes, Relaxation]] = field(default_factory=list)
    place: Array | None = None

    @cached_property
    def whole(self) -> Array:
        """Which inputs count as whole numbers (rule R24), (n_in,)."""
        floored = self.bounder.network.floored
        return floored & ~self.rows.inputs.any(axis=(0, 1)) if floored.any() else floored

    def forms(
        self, r: Relaxation, cases: Array, weights: Array | None = None
    ) -> tuple[Pending, Array]:
        """Rows of cases (B, C), or of cases (B, 1) their sum with weights (B, R).

        Returns:
            What `Bounder.pull` takes: the rows by block, and their constants (B, C x R) or (B, 1).
        """
        network = self.bounder.network
        some = np.maximum(cases, 0)
        outputs, inputs, offset = (
            array[some].reshape(len(cases), -1, *array.shape[2:])
            for array in (self.rows.outputs, self.rows.inputs, self.rows.offset)
        )
        lost = abs(outputs) @ r.reach[:, network.output, None]
        lost = (lost + abs(inputs) @ r.reach[:, : network.n_inputs, None])[:, :, 0] + abs(offset)
        if weights is not None:
            mixed = weights[:, None]
            outputs, inputs, offset = mixed @ outputs, mixed @ inputs, mixed @ offset[:, :, None]
            lost, offset = (mixed @ lost[:, :, None])[:, :, 0], offset[:, :, 0]
        lost = 2 * gamma(self.rows.offset.shape[1] + len(network.output) + 8) * lost + TINY
        pending: Pending = {}
        self.bounder.outputs.push(pending, outputs.reshape(-1, len(network.output)))
        if inputs.any():
            inputs = inputs.reshape(-1, network.n_inputs)
            add(pending, 0, inputs, None, network.n_inputs)
        return pending, offset - lost

    def refute(
        self, r: Relaxation, cases: Array, low: Array, high: Array
    ) -> tuple[Form, Array, Array]:
        """Bound all rows of cases (B, C): the forms, their bounds, and which cases are refuted."""
        form = self.bounder.pull(r, *self.forms(r, cases))
        some = np.maximum(cases, 0)
        lower = form.least(low, high, r.balls).reshape(*cases.shape, -1)
        best = np.maximum(lower, self._over(r, some))
        positive = (best > 0) | (self.rows.strict[some] & (best >= 0))
        refuted = (positive & self.rows.used[some]).any(axis=2) | r.empty[:, None] | (cases < 0)
        return form, lower, refuted

    def _over(self, r: Relaxation, cases: Array) -> Array:
        """Lower bounds of the rows of cases (B, C) by intervals, (B, C, R)."""
        network = self.bounder.network
        lower = self.rows.offset[cases]
        size, count = abs(lower), network.n_inputs + len(network.output) + 8
        for rows, ids in (
            (self.rows.outputs, network.output),
            (self.rows.inputs, np.arange(network.n_inputs)),
        ):
            some = rows[cases]
            if not some.any():
                continue
            low, high = r.lower[:, None, None, ids], r.upper[:, None, None, ids]
            # Zero times infinity is zero here.
            parts = some * np.where(some > 0, low, np.where(some < 0, high, 0.0))
            lower, size = lower + parts.sum(axis=3), size + abs(parts).sum(axis=3)
        lower = lower - 2 * gamma(count) * size - TINY
        return np.where(np.isnan(lower), -np.inf, lower)

    # Trees over inputs

    def roots(self, cases: Sequence[Case]) -> Boxes:
        """One node per distinct set of inputs of the cases, in order of appearance."""
        boxes: dict[tuple[bytes, Ellipsoid | None], list[int]] = {}
        for position, case in enumerate(cases):
            sides = case.lower.tobytes() + case.upper.tobytes()
            boxes.setdefault((sides, case.ball), []).append(position)
        width = max(map(len, boxes.values()))
        table = np.full((len(boxes), width), -1)
        for number, members in enumerate(boxes.values()):
            table[number, : len(members)] = members
        firsts = [cases[members[0]] for members in boxes.values()]
        nothing = np.full((len(boxes), len(self.bounder.known_ids)), np.inf)
        low, high = np.stack([c.lower for c in firsts]), np.stack([c.upper for c in firsts])
        balls = Balls.of([c.ball for c in firsts], low.shape[1])
        if balls is None:
            low, high = (np.where(self.whole, np.floor(side), side) for side in (low, high))
        return Boxes(low, high, table, (-nothing, nothing), balls)

    def boxes(
        self,
        ids: Array,
        nodes: Boxes,
        leaf: Array,
        combined: Combined,
        auditor: Auditor,
        folded: Array | None = None,
    ) -> tuple[Array, Boxes, Array]:
        """Bound a batch of boxes, each with its network.

        Args:
            ids: (B,) numbers of the nodes, by which ``combined`` knows them.
            nodes: the boxes.
            leaf: (B,) whether a node is a leaf.
            combined: sums of rows.
            auditor: bounds some refuted cases again.
            folded: (B,) nodes on which the network is folded, where it can be, for what is left of
                them; None for none.

        Returns:
            The nodes that are not refuted completely, as positions (S,) in the batch; what is left
            of each (the clipped box, the open cases, the bounds known there); and the bound of the
            worst case of each (S,).
        """
        folded = np.zeros(len(ids), bool) if folded is None else folded
        if nodes.folds is None:
            return self._of_one(ids, nodes, leaf, combined, auditor, folded)
        left, rests, worst = [], list[Boxes](), []
        for fold in {id(fold): fold for fold in nodes.folds}.values():
            here = np.flatnonzero(np.array([each is fold for each in nodes.folds]))
            some, prover, audits = replace(nodes[here], folds=None), self, auditor
            if fold is not None:
                prover, audits = fold.prover, auditor.over(fold.prover.bounder)
            inner = some if fold is None else fold.enter(some)
            found = prover._of_one(ids[here], inner, leaf[here], combined, audits, folded[here])
            left.append(here[found[0]])
            rests.append(found[1] if fold is None else fold.leave(found[1], some[found[0]]))
            worst.append(found[2])
        order = np.argsort(positions := np.concatenate(left))
        return positions[order], Boxes.joined(rests)[order], np.concatenate(worst)[order]

    def _of_one(
        self,
        ids: Array,
        nodes: Boxes,
        leaf: Array,
        combined: Combined,
        auditor: Auditor,
        folded: Array,
    ) -> tuple[Array, Boxes, Array]:
        """As `boxes` for boxes with the same network.

        Leaves are tried without rows for every neuron first: what is known from above, and linear
        forms over the smaller box, are often enough there; if not often enough, that is given up.
        Where nothing is known, at roots, other lines are left to the second trial.
        """
        left = np.arange(len(ids))
        tried, closed = self.quickly
        if leaf.any() and (tried < 200 or 4 * closed > tried):
            quick = np.flatnonzero(leaf)
            sums = combined.at(ids[quick], nodes.cases[quick])
            at_leaf = np.asarray(np.isfinite(nodes.known[0][quick]).any(axis=1))
            done, *_ = self._boxes(nodes[quick], at_leaf, sums, auditor, backward=False)
            left = np.delete(left, quick[done])
            self.quickly[:] = tried + len(quick), closed + int(done.sum())
        if not len(left):
            return left, nodes[left], np.zeros(0)
        sums = combined.at(ids[left], nodes.cases[left])
        done, rest, worst, r = self._boxes(nodes[left], leaf[left], sums, auditor, backward=True)
        rest = replace(rest, folds=self._folded(r, folded[left] & ~done))
        return left[~done], rest[~done], worst[~done]

    def _boxes(
        self,
        nodes: Boxes,
        leaf: Array,
        combined: tuple[Array, Array, Array],
        auditor: Auditor,
        *,
        backward: bool,
    ) -> tuple[Array, Boxes, Array, Relaxation]:
        """Refuted nodes, what is left, worst bounds, and bounds of all scalars.

        ``combined`` are rows, columns, weights.

        What a sum does not refute by its bound is tried with better lines (`ascend`). At leaves a
        case without a sum is tried with the row that has the best bound.
        """
        r = self.bounds(nodes, backward=backward)
        form, lower, refuted = self.refute(r, nodes.cases, nodes.low, nodes.high)
        shape = (*lower.shape, -1)
        coefficients = form.wide(nodes.low.shape[1]).reshape(shape)
        constant = form.constant.reshape(lower.shape)
        node, column, weights = combined
        if len(node):
            lost = 4 * gamma(weights.shape[1] + 8)
            mixed = (weights[:, None] @ coefficients[node, column])[:, 0]
            size = np.maximum(abs(nodes.low), abs(nodes.high))[node]
            wobble = ((weights[:, None] @ abs(coefficients[node, column]))[:, 0] * size).sum(axis=1)
            total = weights * constant[node, column]
            kept = total.sum(axis=1) - lost * (wobble + abs(total).sum(axis=1)) - TINY
            there = nodes[node]
            least = Form(mixed[:, None], kept[:, None]).least(there.low, there.high, there.balls)
            used = self.rows.used[np.maximum(nodes.cases, 0)[node, column]]
            right = ((weights == 0) | used).all(axis=1) & (least[:, 0] > 0)
            refuted[node[right], column[right]] = True
        some = np.maximum(nodes.cases, 0)
        positive = self.rows.used[some] & (lower > 0)
        for number, at in auditor.choose(np.argwhere(positive.any(axis=2) & (nodes.cases >= 0))):
            weight = np.eye(lower.shape[2])[lower[number, at].argmax()]
            self._audit(auditor, r, number, nodes.cases[number, at], weight, nodes)
        clipped_low, clipped_high = self._clip(nodes, coefficients, lower)
        refuted |= (clipped_low > clipped_high).any(axis=2)
        weight = np.zeros(lower.shape)
        at_leaf, at = np.nonzero(leaf[:, None] & ~refuted)
        best = np.where(self.rows.used[some], lower, -np.inf)[at_leaf, at].argmax(axis=1)
        weight[at_leaf, at, best] = 1.0
        weight[node, column] = weights
        number, at = np.nonzero(weight.any(axis=2) & ~refuted)
        one = replace(nodes[number], cases=nodes.cases[number, at][:, None])
        refuted[number, at] = self._ascend(r, number, one, weight[number, at], auditor)
        still = ~refuted[:, :, None]
        low = np.where(still, clipped_low, np.inf).min(axis=1)
        high = np.where(still, clipped_high, -np.inf).max(axis=1)
        known = r.lower[:, self.bounder.known_ids], r.upper[:, self.bounder.known_ids]
        worst = np.where(refuted, np.inf, lower.max(axis=2)).min(axis=1)
        cases = np.where(refuted, -1, nodes.cases)
        used = np.asarray((cases >= 0).any(axis=0))
        cases = cases[:, used] if used.any() else cases[:, :1]
        done = np.asarray(refuted.all(axis=1))
        return done, Boxes(low, high, cases, known, nodes.balls), worst, r

    def _folded(self, r: Relaxation, wanted: Array) -> Array | None:
        """Folds for some boxes of a batch (B,); None if there are none."""
        if not wanted.any() or not folding.possible(self.bounder, r):
            return None
        folds = np.full(len(wanted), None)
        again = self.place is not None  # slopes of rows pay below the first fold
        for number in np.flatnonzero(wanted):
            made = folding.fold(self.bounder, r.at(np.array([number])), again=again)
            if made is not None:
                place = made.place if self.place is None else self.place[made.place]
                prover = Prover(made.bounder, self.rows, self.quickly, [], place)
                folds[number] = Fold(prover, place)
        return folds

    def bounds(self, nodes: Boxes, *, backward: bool) -> Relaxation:
        """Bounds of all scalars; those of one box of which nothing is known are kept."""
        for same, r in self.ahead if backward else ():
            if nodes.bounded_like(same):
                return r.copy()
        r = self.bounder.bound(
            nodes.low, nodes.high, nodes.known, backward=backward, balls=nodes.balls
        )
        if backward and len(nodes.low) == 1 and not np.isfinite(nodes.known[0]).any():
            self.ahead[:] = [(nodes, r.copy())]
        return r

    def _ascend(
        self, r: Relaxation, index: Array, nodes: Boxes, weights: Array, auditor: Auditor
    ) -> Array:
        """Which sums of rows other choices of lines refute: (P,); see `onnxcert.checker.ascent`.

        Args:
            r: a batch of boxes.
            index: (P,) which of them.
            nodes: those, each with one case: ``cases`` has the shape (P, 1).
            weights: (P, R) of the rows of that case.
            auditor: bounds some refuted cases again.
        """
        refuted = np.zeros(len(index), bool)
        tried = np.flatnonzero(
            ((weights == 0) | self.rows.used[nodes.cases[:, 0]]).all(axis=1)  # no row that is none
        )
        step = max(1, _NUMBERS // self.bounder.network.size)
        for start in range(0, len(tried), step):
            part = tried[start : start + step]
            some = r.at(index[part], lines=False)
            refuted[part] = self._passes(some, nodes[part], weights[part], auditor)
        return refuted

    def _passes(self, r: Relaxation, nodes: Boxes, weights: Array, auditor: Auditor) -> Array:
        """`_ascend` for bounds ``r`` of just these nodes."""
        refuted, case = np.zeros(len(weights), bool), nodes.cases[:, 0]
        plan = (STEPS, RATE) if self.place is None else (FOLDED_STEPS, FOLDED_RATE)
        ascent = Ascent(self.bounder, r, *plan)
        for chosen, lower in ascent.passes(
            lambda r: self.forms(r, nodes.cases, weights), nodes.low, nodes.high
        ):
            found = (lower > 0) & ~refuted
            for number in auditor.choose(np.flatnonzero(found)):
                self._audit(auditor, chosen, number, case[number], weights[number], nodes)
            refuted |= found
            if refuted.all():
                break
        return refuted

    def _audit(
        self,
        auditor: Auditor,
        r: Relaxation,
        number: int,
        case: int,
        weights: Array,
        nodes: Boxes,
        splits: Sequence[tuple[int, float, float]] = (),
        found: float = 0.0,
    ) -> None:
        """Hand a sum of rows over one leaf, less what was found, to the auditor.

        Splits are scalar, beta, point.
        """
        network = self.bounder.network
        rows: dict[int, Fraction] = defaultdict(Fraction)
        constant = -Fraction(found)
        for row in np.flatnonzero(weights):
            weight = Fraction(float(weights[row]))
            constant += weight * Fraction(float(self.rows.offset[case, row]))
            for i in np.flatnonzero(self.rows.outputs[case, row]):
                coefficient = Fraction(float(self.rows.outputs[case, row, i]))
                rows[int(network.output[i])] += weight * coefficient
            for i in np.flatnonzero(self.rows.inputs[case, row]):
                rows[int(i)] += weight * Fraction(float(self.rows.inputs[case, row, i]))
        for scalar, beta, point in splits:
            rows[scalar] -= Fraction(beta)
            constant += Fraction(beta) * Fraction(point)
        low, high = (side[number % len(side)].tolist() for side in (nodes.low, nodes.high))
        auditor.audit(r, number, rows, constant, (low, high))

    def _clip(self, nodes: Boxes, coefficients: Array, lower: Array) -> tuple[Array, Array]:
        """Per case the part of the box where all its rows can be <= 0, (B, C, n_in) each.

        In an ellipsoid the bounds are not those over the box, and nothing is clipped.
        """
        if nodes.balls is not None:
            shape = (*nodes.cases.shape, nodes.low.shape[1])
            low, high = nodes.low[:, None], nodes.high[:, None]
            return np.broadcast_to(low, shape), np.broadcast_to(high, shape)
        used = self.rows.used[np.maximum(nodes.cases, 0)]
        room = np.where(used, -lower, np.inf)[..., None]
        size = abs(coefficients)
        reach = np.where(size > 0, room / np.where(size > 0, size, 1.0), np.inf)
        reach = reach * (1 + 8 * U) + TINY
        from_low = np.where(coefficients > 0, reach, np.inf).min(axis=2)
        from_high = np.where(coefficients < 0, reach, np.inf).min(axis=2)
        low, high = nodes.low[:, None], nodes.high[:, None]
        slack = 8 * U * np.maximum(abs(low), abs(high))
        low, high = (
            np.maximum(low, high - from_high - slack),
            np.minimum(high, low + from_low + slack),
        )
        if self.whole.any():
            low, high = (
                np.where(self.whole, np.ceil(low), low),
                np.where(self.whole, np.floor(high), high),
            )
        return low, high

    def halves(self, nodes: Boxes, dimension: Array) -> tuple[Boxes, Boxes]:
        """Rule R10 for inputs, and R24."""
        each = np.arange(len(dimension))
        middle = 0.5 * nodes.low[each, dimension] + 0.5 * nodes.high[each, dimension]
        whole = self.whole[dimension] & (nodes.balls is None)
        end = np.where(whole, np.floor(middle), middle)
        low, high = nodes.low.copy(), nodes.high.copy()
        high[each, dimension], low[each, dimension] = end, np.where(whole, end + 1.0, end)
        return replace(nodes, high=high), replace(nodes, low=low)

    # Trees over neurons

    def paths(
        self,
        root: Relaxation,
        paths: Paths,
        columns: Columns,
        auditor: Auditor,
        tilts: Mapping[int, Mapping[int, Tilt]] = MappingProxyType({}),
    ) -> Array:
        """Bounds of leaves (B,), positive where refuted, over an input box (a batch of one).

        Args:
            root: bounds over that box.
            paths: the leaves.
            columns: whose slopes they have.
            auditor: bounds some of them again.
            tilts: case -> block -> planes over the box (rule R18).
        """
        lower, r, splits = self._along(root, paths, columns, tilts)
        used = self.rows.used[paths.case] | (paths.weights == 0)
        positive = (lower > 0) & used.all(axis=1)
        for number in auditor.choose(np.flatnonzero(positive)):
            self._audit_path(auditor, r, number, paths, splits)
        return np.where(r.empty, np.inf, np.where(positive, lower, np.minimum(lower, 0.0)))

    def narrow(
        self, root: Relaxation, wanted: Iterable[Narrowing], columns: Columns, auditor: Auditor
    ) -> None:
        """Rule R20: tighten bounds (a batch of one) to what holds for one case.

        Args:
            root: bounds over the set; they are changed when all rows are bounded, so that the lines
                of all are those that the slopes were made for.
            wanted: rows of that case only.
            columns: whose slopes they have.
            auditor: bounds some of them again.
        """
        step = max(1, _NUMBERS // self.bounder.network.size)
        bounds = []
        for rows in wanted:
            for start in range(0, len(rows.ids), step):
                part = slice(start, start + step)
                ids, paths = rows.ids[part], rows.paths[part]
                lower, r, splits = self._along(root, paths, columns, {}, (ids, rows.sign))
                for number in auditor.choose(np.flatnonzero(np.isfinite(lower) & ~r.empty)):
                    self._audit_path(auditor, r, number, paths, splits, float(lower[number]))
                bounds.append((ids, rows.sign, rows.sign * lower))
        for ids, sign, found in bounds:
            if sign > 0:
                np.maximum.at(root.lower[0], ids, found)
            else:
                np.minimum.at(root.upper[0], ids, found)

    def _along(
        self,
        root: Relaxation,
        paths: Paths,
        columns: Columns,
        tilts: Mapping[int, Mapping[int, Tilt]],
        wanted: tuple[Array, float] | None = None,
    ) -> tuple[Array, Relaxation, _Splits]:
        """Bounds (B,) of forms over parts of an input box; see `paths`.

        Args:
            wanted: scalars (B,) that are added to the forms, with a sign.

        Returns:
            The bounds, the relaxation of the parts, and what was subtracted from the rows.
        """
        bounder, count = self.bounder, len(paths.case)
        free = {k: columns.positions(k, paths.slopes) for k in columns.of}
        leaf, split = np.nonzero(paths.scalar >= 0)
        scalar, point = paths.scalar[leaf, split], paths.point[leaf, split]
        beta, above = paths.multiplier[leaf, split], paths.side[leaf, split] > 0
        r = bounder.replicate(root, count)
        np.maximum.at(r.lower, (leaf[above], scalar[above]), point[above])
        np.minimum.at(r.upper, (leaf[~above], scalar[~above]), point[~above])
        bounder.set_planes(r)
        bounder.set_lines(r, len(bounder.blocks), free)
        r.tilts = {}
        for case in distinct(paths.case):
            for k, tilt in tilts.get(int(case), {}).items():
                block, of_case = bounder.blocks[k], paths.tilted & (paths.case == case)
                assert isinstance(block, Curve)  # or it would have no planes
                if not r.ends(k):
                    active = of_case[:, None] & tilt.active(r, block)
                    r.tilts.setdefault(k, []).append((tilt, active))
        signed = np.where(above, beta, -beta)
        if wanted is not None:
            ids, sign = wanted
            leaf, scalar = np.append(leaf, np.arange(count)), np.append(scalar, ids)
            point, signed = np.append(point, np.zeros(count)), np.append(signed, 0.0 * ids - sign)
        size = root.reach[0, scalar] + abs(point)
        moved, lost = np.zeros(count), np.zeros(count)
        np.add.at(moved, leaf, signed * point)
        # Sums over a path have as many terms as the path, beside those that the bounder counts.
        unit = 2 * bounder.gamma + 4 * gamma(paths.scalar.shape[1] + 33)
        np.add.at(lost, leaf, abs(signed) * (unit * size + root.noise[0, scalar]))
        multipliers = {}
        for k in distinct(bounder.block_of(scalar)):
            block = bounder.blocks[k]
            here = (scalar >= block.start) & (scalar < block.start + block.size)
            multipliers[int(k)] = np.zeros((count, block.size))
            target = leaf[here], scalar[here] - block.start
            np.add.at(multipliers[int(k)], target, signed[here])
        pending, start = self.forms(root, paths.case[:, None], paths.weights)
        start = start + (moved - lost * (1 + 1e-6))[:, None]
        form = bounder.pull(r, pending, start, multipliers)
        n = bounder.network.n_inputs
        lower = form.least(root.lower[:, :n], root.upper[:, :n], root.balls)[:, 0]
        return lower, r, _Splits(leaf, scalar, signed, point)

    def _audit_path(
        self,
        auditor: Auditor,
        r: Relaxation,
        number: int,
        paths: Paths,
        splits: _Splits,
        found: float = 0.0,
    ) -> None:
        """Hand the form of a path to the auditor, which must be above what was found."""
        here, n = splits.leaf == number, self.bounder.network.n_inputs
        low, high = r.lower[:, :n], r.upper[:, :n]
        box = Boxes(low, high, paths.case[:, None], (low, high))
        parts = (splits.scalar, splits.signed, splits.point)
        terms = zip(*(part[here].tolist() for part in parts), strict=True)
        self._audit(
            auditor, r, number, paths.case[number], paths.weights[number], box, [*terms], found
        )
