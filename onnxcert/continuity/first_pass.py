"""Global constants as a pass of the search: cases that they decide need no splits.

Round a point whose neurons are nearly all unstable in the box, linear bounds lose what a network
was trained to have, small constants; splits then take very long. `CasesByConstants` is asked where
plain linear bounds have left cases open. It first asks what costs next to nothing: no constant is
below the length of the gradient at the centre, so where even that length, times the half
diagonal, reaches the value there, nothing is computed. Networks trained as usual end here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from onnxcert.arrays import UNIT_ROUNDOFF, BoolArray, FloatArray, IntArray
from onnxcert.checker.network import Network as CheckedNetwork
from onnxcert.continuity.certificate import Hints, multipliers_for
from onnxcert.continuity.ellipsoid import (
    Plan,
    choose_closed_form,
    constants,
    enclose,
    input_diagonal,
)
from onnxcert.continuity.network import Network
from onnxcert.continuity.screen import balls_around, values_at_centres
from onnxcert.errors import UnsupportedModel
from onnxcert.graph import Graph
from onnxcert.ops.base import TINY, gamma
from onnxcert.spec import Problem

_log = logging.getLogger(__name__)

_WIDEST = 3000
"""Most inputs and neurons: the constants take about a second, and the checker as long."""

_MOST_ROWS = 1024
"""Of all cases: each is a gradient."""

_CAUTION = 1.0 + 1e-6
"""The checker's constants are larger by less."""


@dataclass(eq=False)
class CasesByConstants:
    """Refutes cases of one network over the reals, all of a box or none.

    Attributes:
        graph: the network, in host memory.
        asked, refuted: how many cases it was asked about, and how many it refuted.
    """

    graph: Graph
    asked: int = field(default=0, init=False)
    refuted: int = field(default=0, init=False)

    def __call__(self, problem: Problem, cases: IntArray) -> BoolArray:
        """Which of some cases, all in one box, have no solution: (K,)."""
        self.asked += len(cases)
        nothing: BoolArray = np.zeros(len(cases), dtype=bool)
        rows = problem.case_rows[cases]
        if not 0 < rows.size <= _MOST_ROWS or len(problem.offset) == 0 or self._size > _WIDEST:
            return nothing
        box = slice(problem.case_box[cases[0]], problem.case_box[cases[0]] + 1)
        part = replace(
            problem,
            lower=problem.lower[box],
            upper=problem.upper[box],
            case_box=np.zeros(len(cases), dtype=np.int64),
            case_rows=rows,
            case_disjunct=problem.case_disjunct[cases],
        )
        centre, (reach,) = balls_around(part)
        used = rows >= 0
        values = np.where(used, values_at_centres(self.graph, part, centre), -np.inf)
        steep = self._gradients(part, centre)
        if not (values > reach * steep).any(axis=1).all():
            return nothing
        lengths = self._lengths(part)
        if lengths is None:
            return nothing
        decided = (values > _CAUTION * reach * lengths).any(axis=1)
        if not decided.all():
            return nothing
        self.refuted += len(cases)
        return np.asarray(decided)

    def _gradients(self, part: Problem, centre: FloatArray) -> FloatArray:
        """Lengths of the gradients of all rows at the centre, (K, R); in floating point."""
        rows = part.case_rows
        forms = part.output_rows[rows].reshape(rows.size, -1)
        points = np.repeat(centre, rows.size, axis=0)
        _, gradient = self.graph.gradient(points, lambda values: forms)
        if part.input_rows is not None:
            gradient = gradient + part.input_rows[rows].reshape(rows.size, -1)
        result: FloatArray = np.sqrt(np.square(gradient).sum(axis=1)).reshape(rows.shape)
        return result

    def _lengths(self, part: Problem) -> FloatArray | None:
        """Constants of all rows, (K, R)."""
        if self._constants is None:
            return None
        rows = part.case_rows
        result = constants(part.output_rows[rows].reshape(rows.size, -1), self._constants[0])
        if part.input_rows is not None:
            inputs = part.input_rows[rows].reshape(rows.size, -1)
            square = np.square(inputs).sum(axis=1) + TINY
            result = result + np.sqrt(square) * (1.0 + gamma(inputs.shape[1], UNIT_ROUNDOFF))
        return result.reshape(rows.shape)

    @cached_property
    def _network(self) -> Network | None:
        try:
            return Network.read(self.graph)
        except UnsupportedModel:
            return None

    @cached_property
    def _size(self) -> float:
        if self._network is None:
            return np.inf
        bent = sum(int((s.rad != 0.0).sum()) for s in self._network.slopes.values())
        return self.graph.input_size + bent

    @cached_property
    def _constants(self) -> tuple[FloatArray, Mapping[str, FloatArray]] | None:
        """The matrix of all constants, and its multipliers."""
        assert self._network is not None
        plan, diagonal = Plan.of(self._network), input_diagonal(self.graph.input_size, "2")
        if plan.width > _WIDEST:
            return None
        _log.info("global constants may decide cases; they are computed")
        return enclose(plan, choose_closed_form(self._network), diagonal)

    def hints(self, checked: CheckedNetwork) -> FloatArray:
        """What a certificate says of the cases refuted: weights of inputs, then multipliers."""
        shares = np.ones(self.graph.input_size)
        if self._network is None or self._constants is None:
            return np.zeros(0)
        multipliers = multipliers_for(checked, self._network, Hints(self._constants[1], shares))
        return np.concatenate([shares, multipliers])
