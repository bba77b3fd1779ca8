"""A checker that refuses more than it has to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from onnxcert.checker.certificate import Session
from onnxcert.checker.proof import Boxes, Prover

LACKING = 2.0**-7
"""By how much the bound of a refused leaf is too small."""


@dataclass
class Skeptic:
    """A checker that refuses every third leaf in its first rounds, whatever their bounds.

    Attributes:
        rounds: in how many.
        seen: rounds so far.
        lowest: per round the smallest bound of a leaf of trees over neurons.
        refused: how many leaves in all.
    """

    rounds: int
    seen: int = 0
    refused: int = 0
    lowest: list[float] = field(default_factory=list)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put this in the place of the checker."""
        check, boxes, paths = Session.check, Prover.boxes, Prover.paths

        def doubtful_check(session: Session, *arguments: Any, **options: Any) -> object:
            self.seen += 1
            self.lowest.append(np.inf)
            return check(session, *arguments, **options)

        def doubtful_boxes(
            prover: Prover, ids: np.ndarray, nodes: Boxes, leaf: np.ndarray, *rest: Any
        ) -> tuple[np.ndarray, Boxes, np.ndarray]:
            left, still, worst = boxes(prover, ids, nodes, leaf, *rest)
            doubted = np.setdiff1d(np.flatnonzero(leaf), left)[self._doubts]
            worst = np.concatenate([worst, np.full(len(doubted), -LACKING)])
            return np.concatenate([left, doubted]), Boxes.joined([still, nodes[doubted]]), worst

        def doubtful_paths(prover: Prover, *arguments: Any) -> np.ndarray:
            lower = paths(prover, *arguments)
            if self.lowest:
                self.lowest[-1] = min(self.lowest[-1], lower.min())
            lower[self._doubts] = -LACKING
            return lower

        monkeypatch.setattr(Session, "check", doubtful_check)
        monkeypatch.setattr(Prover, "boxes", doubtful_boxes)
        monkeypatch.setattr(Prover, "paths", doubtful_paths)

    @property
    def _doubts(self) -> slice:
        return slice(0, None, 3) if self.seen <= self.rounds else slice(0, 0)
