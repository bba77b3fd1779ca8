"""The cases of a problem as the search sees them: gathered rows, and what refutes a case."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcert.arrays import Array, Device, array_module, to_device
from onnxcert.bounds.optimised import Forms
from onnxcert.spec import Problem


@dataclass(frozen=True)
class Cases:
    """A `Problem` with its arrays on the device of the search.

    A case is a conjunction of rows ``g(x, y) <= 0`` (or ``< 0``) over one box; it is refuted on a
    set as soon as one row, or a non-negative combination of rows, has a positive lower bound
    there.
    """

    problem: Problem
    output_rows: Array
    input_rows: Array | None
    offset: Array
    strict: Array
    rows: Array

    @classmethod
    def build(cls, problem: Problem, device: Device, margin: float = 0.0) -> Cases:
        """Move the rows to the device.

        Args:
            problem: the cases.
            device: where to.
            margin: subtracted from every row, so that only bounds above it refute; for proofs that
                failed by less.
        """
        # A case without rows is true everywhere; as a row that is says the same, all cases have
        # at least one, and nothing that follows has to think of none.
        rowless = ~(problem.case_rows >= 0).any(axis=1)
        extra = int(rowless.any())
        rows = np.pad(problem.output_rows, ((0, extra), (0, 0)))
        input_rows = problem.input_rows
        if input_rows is not None:
            input_rows = to_device(np.pad(input_rows, ((0, extra), (0, 0))), device)
        case_rows = problem.case_rows
        if extra:
            lacking = max(0, 1 - case_rows.shape[1])
            case_rows = np.pad(case_rows, ((0, 0), (0, lacking)), constant_values=-1)
            case_rows[rowless, 0] = len(rows) - 1
        return cls(
            problem,
            to_device(rows, device),
            input_rows,
            to_device(np.pad(problem.offset, (0, extra), constant_values=-1.0) - margin, device),
            to_device(np.pad(problem.strict, (0, extra)), device),
            to_device(case_rows, device),
        )

    def forms(self, cases: Array) -> Forms:
        """The rows of cases (B, C), C x R of them for each subproblem; -1 is no case."""
        xp = array_module(cases)
        index = self.rows[xp.maximum(cases, 0)]
        used = (index >= 0) & (cases >= 0)[:, :, None]
        count = len(cases)
        index = xp.maximum(index, 0).reshape(count, -1)
        return Forms(
            self.output_rows[index],
            None if self.input_rows is None else self.input_rows[index],
            self.offset[index],
            used.reshape(count, -1),
        )

    def refuted(self, cases: Array, lower: Array) -> Array:
        """Which cases (B, C) some row refutes, given lower bounds (B, C x R) of their forms."""
        xp = array_module(lower)
        index = self.rows[xp.maximum(cases, 0)]
        strict = self.strict[xp.maximum(index, 0)]
        lower = lower.reshape(index.shape)
        positive = (lower > 0) | (strict & (lower >= 0))
        return (positive & (index >= 0)).any(axis=2) | (cases < 0)  # type: ignore[no-any-return]

    def violation(self, inputs: Array, outputs: Array, cases: Array) -> Array:
        """The largest row of each case at points: (P, n_in), (P, n_out), (P, C) -> (P, C).

        Zero or less means that the point satisfies the case, up to floating point.
        """
        xp = array_module(outputs)
        forms = self.forms(cases)
        value = xp.where(forms.used, forms.value(outputs, inputs), -xp.inf)
        worst = value.reshape(*cases.shape, -1).max(axis=2)
        return xp.where(cases >= 0, worst, xp.inf)  # type: ignore[no-any-return]
