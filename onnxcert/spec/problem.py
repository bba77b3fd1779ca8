"""What the engine is asked: batches of boxes with linear conditions on the output.

A specification becomes a stream of these; `onnxcert.frontend.lower` makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from onnxcert.arrays import BoolArray, FloatArray, IntArray
from onnxcert.sets import Box
from onnxcert.spec.ellipsoid import Ellipsoid, enclosing


@dataclass(frozen=True, eq=False)
class Problem:
    """Is there a case k and a point x in its box with all its rows true?

    A box may be cut by an ellipsoid with axes along the inputs; then x is in both.

    The engine sees one flat input vector x (all declared inputs of the network, concatenated in
    order, row-major) and one flat output vector y (outputs, then hidden tensors, likewise, then the
    products of variables in the query). Row t is ``g_t(x, y) = output_rows[t] @ y + input_rows[t] @
    x + offset[t]``, and asks for ``g_t <= 0``, or ``g_t < 0`` where ``strict``. Boxes and offsets
    are rounded so that every solution of the exact query satisfies a case here; coefficients are
    exact.

    Attributes:
        lower: (N, n_in) float64, rounded down.
        upper: (N, n_in) float64, rounded up.
        output_rows: (T, n_out) float64.
        input_rows: (T, n_in) float64; ``None`` when no row touches inputs.
        offset: (T,) float64, rounded down.
        strict: (T,).
        case_box: (K,) the box of each case.
        case_rows: (K, R) the rows of each case, padded with -1; a case without rows is satisfied
            by every point of its box.
        case_disjunct: (K,) running number over the whole query, for reports.
        inner_lower: (N, n_in) float64, the bounds rounded up: where a witness may lie.
        inner_upper: (N, n_in) float64, rounded down.
        exact_bounds: box and input -> both bounds as written; for inputs whose interval contains
            no floating-point number at all.
        ellipsoids: (N,) what cuts each box, None for nothing; empty where nothing cuts any.
    """

    lower: FloatArray
    upper: FloatArray
    output_rows: FloatArray
    input_rows: FloatArray | None
    offset: FloatArray
    strict: BoolArray
    case_box: IntArray
    case_rows: IntArray
    case_disjunct: IntArray
    inner_lower: FloatArray
    inner_upper: FloatArray
    exact_bounds: Callable[[int, int], tuple[Fraction, Fraction]]
    ellipsoids: tuple[Ellipsoid | None, ...] = ()

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.case_box)

    @cached_property
    def inputs(self) -> Box:
        """The inputs of every box, (N, n_in): a `Ball` if there are ellipsoids."""
        if not any(self.ellipsoids):
            return Box(self.lower, self.upper)
        return enclosing(self.ellipsoids, self.lower, self.upper)

    def portable(self) -> Problem:
        """The same without `exact_bounds`, a closure: for another process."""
        return replace(self, exact_bounds=_no_bounds)


def _no_bounds(box: int, column: int) -> tuple[Fraction, Fraction]:
    raise NotImplementedError
