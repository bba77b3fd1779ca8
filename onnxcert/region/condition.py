"""What must stay impossible inside a box, as rows over the outputs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from onnxcert.arrays import FloatArray
from onnxcert.errors import SpecError, UnsupportedSpec
from onnxcert.frontend.lower import lower_plain
from onnxcert.frontend.vnnlib import read_query
from onnxcert.spec.build import Specification, box

Case = tuple[tuple[FloatArray, float], ...]
"""Rows (m,) and offsets; the case happens where all ``row . y + offset <= 0``."""


@dataclass(frozen=True, eq=False)
class Condition:
    """Cases of which none may happen.

    Attributes:
        cases: each with at least one row.
        lower, upper: (n,) the inputs that a specification speaks of, rounded outward; None where
            the condition did not come from a file.
    """

    cases: tuple[Case, ...]
    lower: FloatArray | None = None
    upper: FloatArray | None = None

    def forms(self) -> tuple[FloatArray, FloatArray]:
        """Rows (K, R, m) and offsets (K, R), padded with -inf."""
        most = max(len(case) for case in self.cases)
        size = len(self.cases[0][0][0])
        rows = np.zeros((len(self.cases), most, size))
        offset = np.full((len(self.cases), most), -np.inf)
        for k, case in enumerate(self.cases):
            for r, (row, constant) in enumerate(case):
                rows[k, r], offset[k, r] = row, constant
        return rows, offset

    def bounds(self, outputs: FloatArray) -> FloatArray:
        """The largest form of each case at outputs (m,): (K,), positive where it is ruled out."""
        rows, offset = self.forms()
        return (rows @ outputs + offset).max(axis=1)  # type: ignore[no-any-return]

    def specification(self, lower: FloatArray, upper: FloatArray) -> Specification:
        """The box as inputs, the cases as what is unsafe; every number as it is."""
        result = box(lower, upper)
        for case in self.cases:
            rows = [[Fraction(float(c)) for c in row] for row, _ in case]
            result = result.unsafe(rows, [-Fraction(constant) for _, constant in case])
        return result


def keep_class(label: int, outputs: int, margin: float = 0.0) -> Condition:
    """Output ``label`` stays more than ``margin`` above every other one."""
    cases = []
    for other in range(outputs):
        if other != label:
            row = np.zeros(outputs)
            row[label], row[other] = 1.0, -1.0
            cases.append(((row, -margin),))
    return Condition(tuple(cases))


def from_specification(path: str | os.PathLike[str], margin: float = 0.0) -> Condition:
    """The output condition of a VNN-LIB file, and its box.

    Offsets are rounded so that what is unsafe in the file is unsafe here.

    Raises:
        SpecError: the file cannot be read, or has no condition on outputs.
        UnsupportedSpec: its cases have different boxes, mix inputs and outputs, or multiply them.
    """
    query = read_query(path)
    cases: list[Case] = []
    box_of_all: tuple[FloatArray, FloatArray] | None = None
    lowered = lower_plain(query)
    if lowered.layout.products:
        raise UnsupportedSpec(
            "a condition with products of variables has no largest box", place=query.source
        )
    for problem in lowered.cases:
        if problem.input_rows is not None:
            raise UnsupportedSpec(
                "a condition of inputs and outputs together has no largest box",
                place=query.source,
            )
        if any(problem.ellipsoids):
            raise UnsupportedSpec("an ellipsoid is no domain of boxes", place=query.source)
        if len(problem.lower) > 1 or (
            box_of_all is not None
            and not (
                np.array_equal(problem.lower[0], box_of_all[0])
                and np.array_equal(problem.upper[0], box_of_all[1])
            )
        ):
            raise UnsupportedSpec(
                "the cases of the specification have different boxes", place=query.source
            )
        box_of_all = problem.lower[0], problem.upper[0]
        cases += _cases(problem.output_rows, _lowered(problem.offset, margin), problem.case_rows)
    if box_of_all is None:
        raise SpecError("nothing satisfies the specification anywhere", place=query.source)
    if any(not case for case in cases):
        raise SpecError("the specification has no condition on outputs", place=query.source)
    return Condition(tuple(cases), *box_of_all)


def _cases(rows: FloatArray, offset: FloatArray, table: np.ndarray) -> list[Case]:
    return [tuple((rows[t], float(offset[t])) for t in case[case >= 0]) for case in table]


def _lowered(offset: FloatArray, margin: float) -> FloatArray:
    """Offsets less the margin, rounded down, so that every unsafe output stays unsafe."""
    return np.nextafter(offset - margin, -np.inf) if margin else offset


def stack(conditions: Sequence[Condition]) -> tuple[FloatArray, FloatArray]:
    """Rows (B, K, R, m) and offsets (B, K, R) of conditions with as many cases and rows each."""
    forms = [condition.forms() for condition in conditions]
    return np.stack([rows for rows, _ in forms]), np.stack([offset for _, offset in forms])
