"""Many specifications of one model put to its global constants, before anything else is tried.

A case asks for rows g(y) <= 0 over a box with centre c and half widths d. Every g is above
``g(f(c)) - K |d|``, K the Euclidean constant of g, so one forward pass over the centres decides all
cases whose centre is far enough from the boundary. The constants are computed once for a model.

This pays where thousands of specifications share a model that was trained to have small constants:
then it is several hundred times as fast as linear bounds and decides more at large radii. |d| grows
with the square root of the number of inputs, so of other models it decides small radii only
(`benchmarks/screening.py` has the numbers). `onnxcert.verify` asks constants by itself, where its
linear bounds leave something open: `onnxcert.continuity.first_pass`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxcert.arrays import UNIT_ROUNDOFF, BoolArray, FloatArray
from onnxcert.bounds.interval import interval_bounds
from onnxcert.checker import Rejected, Unusable, Verified
from onnxcert.continuity.bound import LipschitzBound
from onnxcert.continuity.certificate import LIFTS, Hints, multipliers_for
from onnxcert.continuity.network import Network
from onnxcert.errors import SpecError, UnsupportedModel, UnsupportedSpec, UsageError
from onnxcert.files import check_writable, write_file
from onnxcert.frontend.lower import Lowered, lower_plain
from onnxcert.frontend.vnnlib import read_query
from onnxcert.frontend.write import format_vnnlib
from onnxcert.graph import Graph
from onnxcert.ops.base import TINY, gamma
from onnxcert.proof.certify import (
    EXECUTED,
    REAL,
    TOOL,
    Certificate,
    Certifier,
    natural_semantics,
)
from onnxcert.sets import Box
from onnxcert.spec import Problem, Query
from onnxcert.spec.build import Specification

SpecSource = str | os.PathLike[str] | Query | Specification

_BATCH = 1024
"""Centres of one forward pass."""


@dataclass(frozen=True, eq=False)
class Screen:
    """What the constants of a model decide.

    Attributes:
        bound: Euclidean constants for all inputs.
    """

    bound: LipschitzBound

    def __post_init__(self) -> None:
        if self.bound.norm != "2" or self.bound.domain is not None:
            raise UsageError("specifications need constants of norm 2 for all inputs")

    def decides(self, spec: SpecSource) -> bool:
        """Whether the constants show that a query about the reals has no solution.

        Raises:
            SpecError: it cannot be read, or does not fit the model.
        """
        query = self._query(spec)
        if natural_semantics(query) == EXECUTED:
            return False
        return all(self.refuted(problem).all() for problem in self._lowered(query).cases)

    def _query(self, spec: SpecSource) -> Query:
        if isinstance(spec, Query):
            return spec
        if isinstance(spec, Specification):
            model = self.bound.model
            shapes = ([info.shape for info in part] for part in (model.inputs, model.outputs))
            return spec.to_query(*shapes)
        return read_query(spec)

    def _lowered(self, query: Query) -> Lowered:
        lowered, graph = lower_plain(query), self.bound.model.graph
        if (lowered.n_inputs, lowered.n_outputs) != (graph.input_size, graph.output_size):
            raise SpecError(
                f"the specification has {lowered.n_inputs} inputs and {lowered.n_outputs} outputs, "
                f"the model {graph.input_size} and {graph.output_size}",
                place=query.source,
            )
        if lowered.layout.products:
            raise UnsupportedSpec(
                "constants say nothing of products of variables", place=query.source
            )
        return lowered

    def refuted(self, problem: Problem) -> BoolArray:
        """Which cases of a problem have no solution over the reals, (K,).

        Problems with thousands of boxes are as good as those of one specification.
        """
        if len(problem.offset) == 0:  # cases without rows have solutions
            return np.zeros(len(problem), dtype=bool)
        lengths = row_lengths(self.bound, problem.output_rows, problem.input_rows)
        centre, reach = balls_around(problem)
        with np.errstate(over="ignore", invalid="ignore"):
            change = lengths[problem.case_rows] * reach[problem.case_box, None]
            change = change * (1.0 + 8.0 * UNIT_ROUNDOFF)
            values = values_at_centres(self.bound.model.graph, problem, centre)
            above = (values > change) & (problem.case_rows >= 0)  # NaN is no proof
        return np.asarray(above.any(axis=1))

    def prove(self, spec: SpecSource, certificate: str | os.PathLike[str]) -> Verified:
        """Write a certificate of ``unsat`` that rests on constants, once the checker accepts it.

        Raises:
            SpecError: the specification cannot be read.
            UsageError: the constants do not decide it, or the file cannot be written.
            UnsupportedModel: the checker does not know an operator, or the model is too large.
        """
        check_writable(certificate)
        query = self._query(spec)
        if not self.decides(query):
            raise UsageError("the constants do not decide this query")
        data = format_vnnlib(query).encode()
        if isinstance(spec, str | os.PathLike):
            data = Path(spec).read_bytes()
        model = self.bound.model
        folder = None if model.proto else Path(model.source).parent
        certifier = Certifier(model.stored(), data, folder, REAL, TOOL)
        try:
            proof, verified = _accepted(certifier, self.bound)
        except (Rejected, Unusable) as error:
            raise UnsupportedModel(
                f"the checker does not accept the constants: {error}", place=model.source
            ) from error
        write_file(certificate, proof.data)
        return verified


def _accepted(certifier: Certifier, bound: LipschitzBound) -> tuple[Certificate, Verified]:
    network = Network.read(bound.model.graph)
    shares = np.ones(bound.model.graph.input_size)
    hints = Hints(bound.multipliers, shares)
    known = multipliers_for(certifier.session.network, network, hints)
    for number, lift in enumerate(LIFTS, 1):
        proof = certifier.by_constants(shares, known * lift)
        try:
            return proof, certifier.check(proof)
        except Rejected:
            if number == len(LIFTS):
                raise
    raise AssertionError("there is at least one lift")


def row_lengths(
    bound: LipschitzBound, rows: FloatArray, inputs: FloatArray | None = None
) -> FloatArray:
    """Euclidean constants of sums of outputs (T, m), and of inputs (T, n): (T,), rounded up.

    A multiple of a difference of two outputs has that of the pair; others add up.
    """
    sizes = np.abs(rows)
    slack = 1.0 + gamma(rows.shape[1] + 8, UNIT_ROUNDOFF)
    with np.errstate(invalid="ignore"):
        result = np.where(sizes > 0.0, sizes * bound.outputs, 0.0).sum(axis=1) * slack
    opposite = (np.count_nonzero(rows, axis=1) == 2) & (rows.max(axis=1) == -rows.min(axis=1))
    at = np.flatnonzero(opposite)
    first, second = rows[at].argmax(axis=1), rows[at].argmin(axis=1)
    pair = sizes[at, first] * bound.pairs[first, second] * slack
    result[at] = np.minimum(result[at], pair)
    if inputs is not None:
        square = np.square(inputs).sum(axis=1) * (1.0 + gamma(inputs.shape[1] + 8, UNIT_ROUNDOFF))
        result += np.sqrt(square + TINY)
    final: FloatArray = result * slack + TINY
    return final


def balls_around(problem: Problem) -> tuple[FloatArray, FloatArray]:
    """Centres (B, n) of the boxes, and radii (B,), rounded up, of balls that hold the boxes."""
    centre = 0.5 * problem.lower + 0.5 * problem.upper
    apart = np.maximum(problem.upper - centre, centre - problem.lower)
    up = 1.0 + gamma(centre.shape[1] + 8, UNIT_ROUNDOFF)
    with np.errstate(over="ignore", invalid="ignore"):
        reach: FloatArray = np.sqrt(np.square(apart).sum(axis=1) * up + TINY) * up
    return centre, reach


def values_at_centres(graph: Graph, problem: Problem, centre: FloatArray) -> FloatArray:
    """Lower bounds of the rows of each case at the centre of its box, (K, R)."""
    boxes = [
        interval_bounds(graph, Box(part, part))[graph.output]
        for part in np.split(centre, range(_BATCH, len(centre), _BATCH))
    ]
    low, high = (
        np.concatenate([getattr(box, side) for box in boxes]) for side in ("lower", "upper")
    )
    rows, at = problem.case_rows, problem.case_box
    factors = problem.output_rows[rows]
    ends = np.where(factors > 0.0, low[at, None], high[at, None])
    value = (factors * ends).sum(axis=2) + problem.offset[rows]
    size = (np.abs(factors) * np.abs(ends)).sum(axis=2) + np.abs(problem.offset[rows])
    if problem.input_rows is not None:
        inputs = problem.input_rows[rows]
        value = value + (inputs * centre[at, None]).sum(axis=2)
        size = size + (np.abs(inputs) * np.abs(centre[at, None])).sum(axis=2)
    count = factors.shape[2] + centre.shape[1] + 16
    result: FloatArray = value - 2.0 * gamma(count, UNIT_ROUNDOFF) * size - TINY
    return result
