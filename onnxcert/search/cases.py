"""The cases of a problem as the search sees them: gathered rows, and what refutes a case."""

from __future__ import annotations

from dataclasses import dataclass

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
    def build(cls, problem: Problem, device: Device) -> Cases:
        """Move the rows to the device."""
        rows = problem.input_rows
        return cls(
            problem,
            to_device(problem.output_rows, device),
            None if rows is None else to_device(rows, device),
            to_device(problem.offset, device),
            to_device(problem.strict, device),
            to_device(problem.case_rows, device),
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
