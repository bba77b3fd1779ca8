"""The brancher seam: what branch and bound asks of a way to split.

A brancher owns the meaning of a batch (boxes, paths of neuron splits, ...); the loop in
`onnxcert.search.bab` only moves batches between it and the frontier.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from onnxcert.arrays import Array
from onnxcert.search.frontier import Batch


@dataclass(frozen=True)
class Bounded:
    """A batch after bounding.

    Attributes:
        closed: (B,) nothing is left to refute.
        score: (B,) lower bound of the case that is furthest from refuted; orders the frontier.
        points: (P, n_in) inputs worth testing, and
        point_cases: (P, C) the cases to test them against.
        cases: (B, C) the cases that were open before, -1 for none, and
        case_lower: (B, C) the lower bounds found for them; infinite where nothing is left of one.
        state: what the brancher needs to split the open ones.
    """

    closed: Array
    score: Array
    points: Array
    point_cases: Array
    cases: Array
    case_lower: Array
    state: object


@dataclass(frozen=True)
class Children:
    """What `Brancher.split` made of the open subproblems of a batch.

    Attributes:
        batch: the children, or None.
        score: (children,) the parents' scores.
        stuck: how many subproblems could not be split any further.
    """

    batch: Batch | None
    score: Array
    stuck: int


class Brancher(ABC):
    """One way to split: over inputs or over neurons."""

    @property
    @abstractmethod
    def bytes_per_subproblem(self) -> int:
        """Memory of one subproblem while it is bounded."""

    @abstractmethod
    def roots(self) -> Batch:
        """The first subproblems; together they cover all open cases."""

    @abstractmethod
    def bound(self, batch: Batch, expired: Callable[[], bool]) -> Bounded:
        """Bound a batch."""

    @abstractmethod
    def split(self, batch: Batch, bounded: Bounded) -> Children:
        """Split every open subproblem; the children of each cover it."""
