"""Curves that rise from one asymptote to another: convex left of zero, concave right of it.

Any slope k gives a valid upper line once its offset is t = max over [l, u] of f(z) - k z. The
maximum lies at an end or where f'(z) = k on the concave side, a point with a closed form; an error
in that point changes t only in second order, so a small slack makes the line rigorous. The slope
itself is chosen for tightness only: the tangent at the middle where the curve is concave, the
chord where it is convex, and in between the line from (l, f(l)) that touches the concave side.
Lower lines follow from the symmetry f(-z) = 2 c - f(z).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from onnxcert.arrays import UNIT_ROUNDOFF, Array, array_module
from onnxcert.ops.base import Elementwise
from onnxcert.sets import Box, Lines

_BISECTIONS = 24
_ULPS = 32
"""Charged to each evaluation of f: libm stays within a few; onnxruntime's binary32 within this."""


class SShaped(Elementwise):
    """f odd about (0, center), f' even and falling on z >= 0."""

    center: ClassVar[float]
    """f(0)."""

    steepest: ClassVar[float]
    """f'(0), the largest slope."""

    piecewise_linear: ClassVar[bool] = False
    roundings: ClassVar[int] = _ULPS

    @abstractmethod
    def inverse_derivative(self, slope: Array) -> Array:
        """The z >= 0 with f'(z) = slope, for slopes in (0, steepest]."""

    def interval(self, boxes: Sequence[Box], unit: float) -> Box:
        """End values, widened by an absolute error because |f| <= 1."""
        box = boxes[0]
        xp = array_module(box.lower)
        slack = _ULPS * unit
        floor, ceiling = 2 * self.center - 1.0, 1.0
        return Box(
            xp.maximum(self.value(box.lower) - slack, floor - slack),
            xp.minimum(self.value(box.upper) + slack, ceiling + slack),
        )

    def relax(self, box: Box, slope: Array | None = None) -> Lines:
        """Upper line directly, lower line by symmetry."""
        del slope
        upper_slope, upper_offset = self._line_above(box.lower, box.upper)
        lower_slope, mirrored = self._line_above(-box.upper, -box.lower)
        return Lines(lower_slope, 2 * self.center - mirrored, upper_slope, upper_offset)

    def _line_above(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        xp = array_module(lower)
        width = upper - lower
        at_lower, at_upper = self.value(lower), self.value(upper)
        chord = (at_upper - at_lower) / xp.where(width > 0, width, 1.0)
        slope = xp.where(
            lower >= 0,
            self.derivative(0.5 * (lower + upper)),
            xp.where(upper <= 0, chord, self._touching_slope(lower, upper, chord)),
        )
        slope = xp.clip(slope, 0.0, self.steepest)
        touching = self.inverse_derivative(xp.maximum(slope, 1e-300))
        touching = xp.clip(touching, xp.maximum(lower, 0.0), xp.maximum(upper, 0.0))
        candidates = [(lower, at_lower), (upper, at_upper), (touching, self.value(touching))]
        candidates[2] = (
            xp.where(upper >= 0, touching, upper),
            xp.where(upper >= 0, candidates[2][1], at_upper),
        )
        offset = xp.full_like(lower, -xp.inf)
        for point, height in candidates:
            error = _ULPS * UNIT_ROUNDOFF * (1.0 + xp.abs(slope * point))
            offset = xp.maximum(offset, height - slope * point + error)
        return slope, offset

    def _touching_slope(self, lower: Array, upper: Array, chord: Array) -> Array:
        """Slope of the line from (l, f(l)) that touches the concave side, or the chord."""
        xp = array_module(lower)
        at_lower = self.value(lower)
        near, far = xp.zeros_like(lower), xp.maximum(upper, 0.0)
        for _ in range(_BISECTIONS):
            point = 0.5 * (near + far)
            tangent = self.value(point) + self.derivative(point) * (lower - point)
            above = tangent >= at_lower
            near, far = xp.where(above, near, point), xp.where(above, point, far)
        # If even the tangent at u passes below (l, f(l)), the chord is the hull.
        hull = self.value(upper) + self.derivative(upper) * (lower - upper) < at_lower
        return xp.where(hull, chord, self.derivative(far))  # type: ignore[no-any-return]
