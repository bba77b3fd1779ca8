"""Splits of inputs over folded networks: below a box that most neurons are stable on.

Bounds of a wide network cost a backward row for every unstable neuron, through all of its layers.
Where few inputs vary, boxes soon leave most relus stable. Then the network is folded
(`onnxcert.bounds.folding`), once, and all boxes below are bounded over the folded one, which is
folded again when enough of its neurons have become stable. The certificate says on which boxes, and
the checker does the same (rule R22). From the second fold on every row of a layer takes lower lines
of its own (`onnxcert.bounds.row_slopes`), which are learned on the box that is folded. There bounds
rise steadily from cut to cut, so that a box is cut up to three times before its parts are bounded,
by the search and by the checker.

CPU seconds and leaves of cifar_biasfield 23, in one process without the check: 91 and 300, 113
before rows were pulled back in one block (`onnxcert.bounds.layered`), and 150 before products left
out zeros (`onnxcert.ops.bands`), where it took 290 and 637 with few boxes folded again, slopes
learned in 3 steps from those of the box around, 16 steps of ascent from rate 0.5, and one cut at a
time. Folding where 0.6 to 0.9 of the neurons are unstable, learning in one
step less or twice as many, and folding boxes that are nearer or further from refuted all end at the
same or a fifth more: what is learned more often is paid with passes.

What else was tried there. The forms of a box's rows hold in its halves and cost nothing to bound,
but gain a fifth of what new rows do; those of its parent gain less. Cutting another input than the
steepest gains less for each of the other 15. Neurons that are nearly stable carry little of the gap
(the least 60 % carry 7 %), but replacing the least tenth of them by lines and errors, so that they
can be folded away, makes -1.1 to -1.9: errors lose what rows have in common. Rows for the 60 % of
neurons that carry 98 % of the gap lose a fifth of a cut. The half space where the best form of a
case is negative cuts rows only where the box is nearly refuted: -0.11 to a proof, -0.3 to -0.3,
for a second pass. Rows in binary32 with their errors charged lose a third of a cut. Rows of the
last layer are not needed for a third of the leaves, but without them no other box is bounded well
enough, and to try costs the others what it saves. Optimised slopes and splits of neurons below
nearly refuted boxes of 62 ended with 197 boxes instead of 353, and took as long because most tries
failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from onnxcert.arrays import Array, array_module, concatenate, to_host
from onnxcert.bounds.crown import Bounds, subset
from onnxcert.bounds.folding import can_fold, fold, unstable_relus
from onnxcert.bounds.layered import Layered
from onnxcert.bounds.row_slopes import learn
from onnxcert.proof.trace import Cut
from onnxcert.search.branching import Bounded, Brancher, Children
from onnxcert.search.frontier import Batch, take
from onnxcert.search.input_split import InputSplit, cuts_left, gain_of_cuts
from onnxcert.sets import Box

LEAST_WORK = 1 << 25
"""Unstable neurons times values of the network from which on it is folded."""

AGAIN, LEAST_LEFT = 0.7, 0.5
"""A folded network is folded again where a smaller share of its neurons is unstable and, going by
what the last cuts gained, more cuts than that are needed."""

FRESH = 0.5
"""What a cut gains once a folded network has slopes of its own, as a share of what it did."""

STEPS, RATE = 8, 0.25
"""Of ascents over folded networks, as the checker has them."""

MOST_CUTS = 3
"""Of a box over a folded network before its parts are bounded."""

MOST_BYTES = 1 << 31
"""What folded networks may take all together; then boxes keep that of their parents."""


@dataclass(eq=False)
class _Fold:
    """A folded network, and who is bounded over it.

    Attributes:
        brancher: splits over it.
        neurons: how many there are.
        place: (K,) of what its boxes remember in what those of the whole network do.
        bytes: that it takes.
        waiting: boxes that are not split yet.
    """

    brancher: InputSplit
    neurons: int
    place: Array
    bytes: int
    waiting: int = 0


@dataclass(frozen=True, eq=False)
class _Part:
    """The boxes of a batch that are bounded over the same network.

    Attributes:
        number: of the fold, -1 for none.
        index: (M,) which boxes.
        batch: what the brancher was given.
        bounded: what it made of that.
        expired: whether the time is up.
    """

    number: int
    index: Array
    batch: Batch
    bounded: Bounded
    expired: Callable[[], bool]


@dataclass(frozen=True)
class FoldedSplit(Brancher):
    """Boxes, cut at the middle of one input, and folded where that pays.

    Attributes:
        whole: splits over the network itself.
    """

    whole: InputSplit
    _folds: dict[int, _Fold] = field(default_factory=dict)

    @staticmethod
    def over(whole: InputSplit) -> FoldedSplit | InputSplit:
        """What splits so, if the network can be folded; over executions it cannot.

        Nor is it where boxes remember nothing, as they would of the folded network.
        """
        possible = not whole.execution_unit and can_fold(whole.graph) and whole.layers
        return FoldedSplit(whole) if possible else whole

    @property
    def bytes_per_subproblem(self) -> int:
        """Those of the network itself."""
        return self.whole.bytes_per_subproblem

    def roots(self) -> Batch:
        """Boxes that nothing is folded on."""
        return self._unfolded(self.whole.roots())

    def reopen(self, nodes: Array, lower: Array, upper: Array, cases: Array) -> Batch:
        """See `InputSplit.reopen`."""
        return self._unfolded(self.whole.reopen(nodes, lower, upper, cases))

    @staticmethod
    def _unfolded(batch: Batch) -> Batch:
        xp = array_module(batch["lower"])
        return batch | {"fold": xp.full(len(batch["lower"]), -1)}

    def bound(self, batch: Batch, expired: Callable[[], bool]) -> Bounded:
        """As `InputSplit.bound`, over one network after the other."""
        xp = array_module(batch["lower"])
        numbers, parts = to_host(batch["fold"]), []
        for number in np.unique(numbers).tolist():
            index = xp.asarray(np.flatnonzero(numbers == number))
            part, brancher = take(batch, index), self.whole
            if number >= 0:
                brancher = self._folds[number].brancher
                place = self._folds[number].place
                known = {f"known_{s}": part[f"known_{s}"][:, place] for s in ("lower", "upper")}
                part = part | known
            parts.append(_Part(number, index, part, brancher.bound(part, expired), expired))
        return _joined(parts, len(numbers), batch["cases"])

    def split(self, batch: Batch, bounded: Bounded) -> Children:
        """As `InputSplit.split`; boxes that are worth it are folded for their halves."""
        parts = bounded.state
        assert isinstance(parts, list)
        batches, scores, stuck = [], [], 0
        for part in parts:
            children = self._split_part(part, take(batch, part.index))
            self._leave(part.number, len(part.index))
            scores.append(children.score)
            stuck += children.stuck
            if children.batch is not None:
                batches.append(children.batch)
        if not batches:
            return Children(None, concatenate(scores), stuck)
        width = max(b["cases"].shape[1] for b in batches)
        for b in batches:
            missing = width - b["cases"].shape[1]
            xp = array_module(b["cases"])
            b["cases"] = xp.pad(b["cases"], ((0, 0), (0, missing)), constant_values=-1)
        made = {name: concatenate([b[name] for b in batches]) for name in batches[0]}
        return Children(made, concatenate(scores), stuck)

    def _split_part(self, part: _Part, before: Batch) -> Children:
        xp = array_module(before["lower"])
        brancher = self._brancher(part.number)
        numbers = np.full(len(part.index), part.number)
        for place, count in self._worth_folding(part):
            numbers[place] = self._fold(part, place, count)
        fresh = xp.asarray(numbers != part.number)
        batch = part.batch | {
            "fold": xp.asarray(numbers),
            "how": xp.where(fresh, Cut.FOLDED, Cut.BOUNDED),
        }
        sides = [side for side in ("known_lower", "known_upper") if side in before]
        if part.number >= 0:
            batch |= {f"all_{side}": before[side] for side in sides}
        children = brancher.split(batch, part.bounded)
        if children.batch is None:
            return children
        made = dict(children.batch)
        # What is gained by new slopes says nothing of the cuts that follow.
        fresh = made["fold"] != part.number
        made["gain"] = xp.where(fresh, FRESH * made["gain"], made["gain"])
        made["above"] = xp.where(fresh, -xp.inf, made["above"])
        if part.number >= 0:
            for side in sides:
                every = made.pop(f"all_{side}")
                every[:, self._folds[part.number].place] = made[side]
                made[side] = every
        taken, counts = np.unique(to_host(made["fold"]), return_counts=True)
        for number, count in zip(taken.tolist(), counts.tolist(), strict=True):
            if number >= 0:
                self._folds[number].waiting += count
        for number in set(numbers.tolist()) - set(taken.tolist()):
            self._leave(number, 0)
        return Children(made, children.score, children.stuck)

    def _brancher(self, number: int) -> InputSplit:
        return self._folds[number].brancher if number >= 0 else self.whole

    def _leave(self, number: int, count: int) -> None:
        """Some boxes need a fold no more."""
        if number in self._folds:
            self._folds[number].waiting -= count
            if self._folds[number].waiting <= 0:
                del self._folds[number]

    def _worth_folding(self, part: _Part) -> Iterator[tuple[int, int]]:
        """Which open boxes of a batch are worth it, and how many neurons are unstable there."""
        brancher = self._brancher(part.number)
        counts = to_host(unstable_relus(brancher.bounds_of(part.bounded)))
        if part.number < 0:
            worth = counts * sum(brancher.graph.sizes.values()) >= LEAST_WORK
        else:
            score = part.bounded.score
            left = cuts_left(score, gain_of_cuts(part.batch, score))
            few = counts < AGAIN * self._folds[part.number].neurons
            worth = to_host(left >= LEAST_LEFT) & few
        for place in np.flatnonzero(worth & to_host(~part.bounded.closed)).tolist():
            yield place, int(counts[place])

    def _fold(self, part: _Part, place: int, count: int) -> int:
        """Fold a box of a batch, if there is room; the number of what its halves have."""
        taken = 8 * count * count
        if taken + sum(f.bytes for f in self._folds.values()) > MOST_BYTES:
            return part.number
        brancher = self._brancher(part.number)
        bounds = brancher.bounds_of(part.bounded)
        index = array_module(part.index).asarray([place])
        boxes = {name: box.take(index) for name, box in bounds.boxes.items()}
        bounds = Bounds(boxes, subset(bounds.relaxation, index), bounds.empty[index])
        folded = fold(bounds, part.expired)
        if folded is None:
            return part.number
        whole = self.whole
        slopes = {}
        if part.number >= 0:  # the first bounds gain less from them than they take
            box = boxes[brancher.graph.input]
            inputs = Box(box.lower[0], box.upper[0])
            slopes = learn(folded.layers, folded.boxes(bounds), inputs, part.expired)
        inner = InputSplit(
            folded.graph,
            whole.cases,
            whole.open_cases,
            whole.trees,
            steps=STEPS,
            rate=RATE,
            most_cuts=MOST_CUTS,
            layered=Layered(folded.graph.input_size, folded.layers, slopes),
        )
        places = [brancher.layers[name].start + folded.kept[name] for name in inner.layers]
        position = concatenate([*places, index[:0]])
        if part.number >= 0:
            position = self._folds[part.number].place[position]
        number = max(self._folds, default=-1) + 1
        self._folds[number] = _Fold(inner, folded.neurons, position, taken)
        return number


def _joined(parts: list[_Part], count: int, cases: Array) -> Bounded:
    """One for all parts of a batch."""
    index = concatenate([part.index for part in parts])
    xp = array_module(index)
    order = xp.empty(count, dtype=index.dtype)
    order[index] = xp.arange(count)

    def every(name: str) -> Array:
        made: Array = concatenate([getattr(part.bounded, name) for part in parts])
        return made[order]  # type: ignore[no-any-return]

    points = concatenate([part.bounded.points for part in parts])
    of_points = concatenate([part.bounded.point_cases for part in parts])
    return Bounded(
        every("closed"), every("score"), points, of_points, cases, every("case_lower"), parts
    )
