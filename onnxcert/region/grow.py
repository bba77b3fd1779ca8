"""Growth of certified boxes against the complete verifier, with witnesses of why they stop.

Linear bounds give up where boxes could still be larger. Here whole boxes, then groups of faces,
then single faces are moved outward, and the verifier is asked each time. What it proves is kept; a
group that it refutes, or cannot decide in its share of the time, is tried with a smaller step and
then in halves. A counterexample that lies beyond one face only, and within ``delta`` of it, settles
that face: there is no box that contains this one and reaches further there. Where the time suffices
the result is *delta-maximal*: every face lies at the domain or has such a witness (the end state of
inflated explanations, Izza et al. 2024, with intervals for all features at once).

Faces are halved in the order of what moving them costs to first order, the cheap ones first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from onnxcert.arrays import FloatArray
from onnxcert.region.prove import Statement, round_inward
from onnxcert.search.deadline import Deadline
from onnxcert.settings import Settings

DELTA = 0.01
"""How near a witness is to its face: a share of the width of the input (of the mean width where
that is zero)."""

_FACTORS = (1.3, 1.1, 1.03, 1.0 + DELTA)
"""By how much widths are tried to grow; the last one is tried before a group is halved."""

_SHARE = 0.1
"""Of the time that one question may take."""

_LEAST_SECONDS = 1.0

_SETTINGS = Settings(watch="off", attack_restarts=32)


@dataclass(frozen=True, eq=False)
class Witness:
    """A point outside a box, beyond one face only, where the condition is violated.

    Attributes:
        input: number of the input whose face it is.
        upper: which of its two faces.
        distance: how far beyond it.
        point: (n,), as the runtime ran it.
    """

    input: int
    upper: bool
    distance: float
    point: FloatArray


@dataclass(frozen=True, eq=False)
class Grown:
    """What became of a box.

    Attributes:
        statement: about the larger box, which the verifier has answered ``unsat``.
        witnesses: at most one for each face.
        settled: (n, 2), lower and upper faces that lie at the domain or have a witness.
        questions: asked of the verifier.
    """

    statement: Statement
    witnesses: tuple[Witness, ...]
    settled: np.ndarray
    questions: int


def grow(
    statement: Statement,
    point: FloatArray,
    domain: tuple[FloatArray, FloatArray],
    cost: FloatArray,
    deadline: Deadline,
    *,
    device: str = "auto",
    seed: int = 0,
    report: Callable[[int], None] = lambda questions: None,
) -> Grown:
    """Grow a proved box until the time is up or every face is settled or undecided.

    Args:
        statement: about the box.
        point: (n,) inside it.
        domain: (n,) faces that it may not pass.
        cost: (n, 2) of moving the lower and upper faces, to first order.
        deadline: of all questions.
        device, seed: as for `onnxcert.verify`.
        report: called with the number of questions asked.
    """
    growth = _Growth(statement, point, domain, deadline, device, seed, report)
    growth.run(cost)
    witnesses = tuple(growth.witnesses[key] for key in sorted(growth.witnesses))
    settled = growth.at_domain()
    for found in witnesses:
        settled[found.input, int(found.upper)] = True
    return Grown(growth.statement, witnesses, settled, growth.questions)


@dataclass
class _Growth:
    statement: Statement
    point: FloatArray
    domain: tuple[FloatArray, FloatArray]
    deadline: Deadline
    device: str
    seed: int
    report: Callable[[int], None]
    witnesses: dict[tuple[int, bool], Witness] = field(default_factory=dict)
    questions: int = 0

    def __post_init__(self) -> None:
        self.patience = max(_LEAST_SECONDS, _SHARE * self.deadline.remaining)
        self.stopped = np.zeros((len(self.point), 2), dtype=bool)

    def at_domain(self) -> np.ndarray:
        """(n, 2) faces at the end of the domain."""
        lower = self.statement.lower == self.domain[0]
        return np.stack([lower, self.statement.upper == self.domain[1]], axis=1)

    def run(self, cost: FloatArray) -> None:
        """Groups with steps wait in a queue: large steps of large groups come first."""
        order = np.argsort(cost, axis=None, kind="stable")
        waiting = deque([(order, 0)])
        while waiting and not self.deadline.expired():
            faces, step = waiting.popleft()
            movable = ~(self.stopped | self.at_domain()).ravel()
            faces = faces[movable[faces]]
            if len(faces) == 0:
                continue
            if self._try(faces, _FACTORS[step]):
                waiting.appendleft((faces, step))
            elif step + 1 < len(_FACTORS):
                waiting.append((faces, step + 1))
            elif len(faces) > 1:
                middle = len(faces) // 2
                waiting.extend([(faces[:middle], 1), (faces[middle:], 1)])
            else:
                self.stopped.ravel()[faces] = True

    def _try(self, faces: np.ndarray, factor: float) -> bool:
        """Whether the box with these faces moved is proved; it is kept then."""
        moved = np.zeros((len(self.point), 2), dtype=bool)
        moved.ravel()[faces] = True
        old = self.statement
        width = old.upper - old.lower
        mean = np.exp(np.log(width[width > 0]).mean()) if (width > 0).any() else 1.0
        reach = (factor - 1.0) * np.where(width > 0, width, mean)
        lower = np.where(moved[:, 0], np.maximum(old.lower - reach, self.domain[0]), old.lower)
        upper = np.where(moved[:, 1], np.minimum(old.upper + reach, self.domain[1]), old.upper)
        low, high = round_inward(self.point, lower, upper, self.domain)
        low = np.where(moved[:, 0], np.minimum(low, old.lower), old.lower)
        high = np.where(moved[:, 1], np.maximum(high, old.upper), old.upper)
        if (low == old.lower).all() and (high == old.upper).all():
            self.stopped.ravel()[faces] = True
            return False
        wished = replace(old, lower=low, upper=high)
        self.questions += 1
        self.report(self.questions)
        answer = wished.ask(
            timeout=min(self.patience, max(self.deadline.remaining, 1e-3)),
            device=self.device,
            seed=self.seed + self.questions,
            settings=_SETTINGS,
            certified=False,
        )
        if answer.holds:
            self.statement = wished
            return True
        found = answer.counterexample
        if found is not None:
            parts = [np.asarray(array, dtype=np.float64).ravel() for array in found.inputs.values()]
            # Inputs that are fixed at a number that is no float stand for that number.
            run = np.where(low == high, low, np.concatenate(parts))
            self._witness(run, DELTA * np.where(width > 0, width, mean))
        return False

    def _witness(self, point: FloatArray, near: FloatArray) -> None:
        """Keep a counterexample that lies beyond one face only, and near it."""
        below, above = self.statement.lower - point, point - self.statement.upper
        beyond = np.stack([below, above], axis=1)
        faces = np.argwhere(beyond > 0)
        if len(faces) != 1:
            return
        number, side = int(faces[0, 0]), bool(faces[0, 1])
        distance = float(beyond[number, int(side)])
        if distance <= near[number]:
            self.witnesses[number, side] = Witness(number, side, distance, point)
            self.stopped[number, int(side)] = True
