"""What is asked for: points, how far each input may move, and the forms that must stay positive."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnxcert.arrays import Array, array_module
from onnxcert.bounds.sensitivity import (
    CROWN,
    Derivatives,
    FormBounds,
    LineRule,
    Positions,
    bound_forms,
    bound_layers,
    differentiate,
)
from onnxcert.graph import Graph
from onnxcert.sets import Box


@dataclass(frozen=True, eq=False)
class Widths:
    """How far boxes reach below and above their points; arrays (B, n), not negative."""

    lower: Array
    upper: Array

    @property
    def total(self) -> Array:
        """Widths of the boxes, (B, n)."""
        return self.lower + self.upper

    def scaled(self, factor: Array) -> Widths:
        """Both sides times a factor per point, (B,)."""
        return Widths(factor[:, None] * self.lower, factor[:, None] * self.upper)

    def capped(self, caps: Widths) -> Widths:
        """Neither side beyond its cap."""
        xp = array_module(self.lower)
        return Widths(xp.minimum(self.lower, caps.lower), xp.minimum(self.upper, caps.upper))

    def where(self, chosen: Array, other: Widths) -> Widths:
        """These for some of the points (B,), others elsewhere."""
        xp = array_module(self.lower)
        choice = chosen[:, None]
        return Widths(
            xp.where(choice, self.lower, other.lower), xp.where(choice, self.upper, other.upper)
        )

    def take(self, index: Array) -> Widths:
        """Those of some points."""
        return Widths(self.lower[index], self.upper[index])


@dataclass(frozen=True, eq=False)
class Task:
    """Boxes round B points in which every case stays impossible.

    Case k is ruled out where one of its forms is positive, ``max_r (rows[k, r] . y + offset[k, r])
    > 0``: for a class, the case of each other class has one form, the difference of two outputs.

    Attributes:
        graph: the network.
        points: (B, n).
        domain: the faces that no box passes, (B, n); a face of its point where an input is fixed.
        weights: (n,) of each input in the objective, ``sum_i weights_i log width_i``.
        rows: (B, K, R, m) forms over the output.
        offset: (B, K, R); -inf for padding.
        rule: the lines of every curve.
    """

    graph: Graph
    points: Array
    domain: Box
    weights: Array
    rows: Array
    offset: Array
    rule: LineRule = CROWN

    def __len__(self) -> int:
        return len(self.points)

    @property
    def caps(self) -> Widths:
        """How far each side may reach."""
        return Widths(self.points - self.domain.lower, self.domain.upper - self.points)

    @property
    def free(self) -> Array:
        """Inputs that may move at all, (B, n)."""
        return self.domain.lower < self.domain.upper

    def take(self, index: Array) -> Task:
        """The same for some of the points."""
        return replace(
            self,
            points=self.points[index],
            domain=Box(self.domain.lower[index], self.domain.upper[index]),
            rows=self.rows[index],
            offset=self.offset[index],
        )

    @property
    def nothing(self) -> Widths:
        """Boxes that are their points."""
        zero = array_module(self.points).zeros(self.points.shape)
        return Widths(zero, zero)

    def box(self, widths: Widths) -> Box:
        """The box that is evaluated and reported: each face rounded towards its point.

        The difference of two floats is rounded to nearest, which may be outward; two units of
        roundoff of the larger operand are given away. At its cap a face is that of the domain.
        """
        xp = array_module(self.points)
        unit = 2.0**-52
        low = self.points - widths.lower
        high = self.points + widths.upper
        low = low + unit * xp.maximum(abs(self.points), abs(low))
        high = high - unit * xp.maximum(abs(self.points), abs(high))
        caps, domain = self.caps, self.domain
        low = xp.where(widths.lower >= caps.lower, domain.lower, xp.maximum(low, domain.lower))
        high = xp.where(widths.upper >= caps.upper, domain.upper, xp.minimum(high, domain.upper))
        return Box(xp.minimum(low, self.points), xp.maximum(high, self.points))

    def log_volume(self, widths: Widths) -> Array:
        """``sum_i weights_i log width_i`` over the inputs that may move, (B,)."""
        xp = array_module(self.points)
        total = xp.where(self.free, widths.total, 1.0)
        with np.errstate(divide="ignore"):
            return (self.weights * xp.log(total)).sum(axis=1)  # type: ignore[no-any-return]

    def evaluate(
        self, widths: Widths, positions: Positions | None = None, *, trace: bool = False
    ) -> Margins:
        """Certified lower bounds of every case over the boxes."""
        layers = bound_layers(self.graph, self.box(widths), positions, trace=trace, rule=self.rule)
        batch, cases, forms, size = self.rows.shape
        xp = array_module(self.rows)
        known = xp.isfinite(self.offset)
        offset = xp.where(known, self.offset, 0.0)
        bounds = bound_forms(
            layers,
            self.rows.reshape(batch, cases * forms, size),
            offset.reshape(batch, cases * forms),
            positions,
        )
        lower = xp.where(known, bounds.lower.reshape(batch, cases, forms), -xp.inf)
        return Margins(bounds, lower.max(axis=2), lower.argmax(axis=2))


@dataclass(frozen=True, eq=False)
class Margins:
    """Lower bounds of the cases over boxes.

    Attributes:
        bounds: of all forms.
        cases: (B, K): positive rules the case out.
        chosen: (B, K) the form of each case with the best bound.
    """

    bounds: FormBounds
    cases: Array
    chosen: Array

    @property
    def worst(self) -> Array:
        """(B,): positive where the box is certified; NaN counts as minus infinity."""
        xp = array_module(self.cases)
        return xp.nan_to_num(self.cases, nan=-xp.inf).min(axis=1)  # type: ignore[no-any-return]

    def differentiate(self, multipliers: Array) -> Derivatives:
        """Derivatives of the sum of cases with these multipliers, (B, K)."""
        xp = array_module(multipliers)
        batch, cases = multipliers.shape
        forms = self.bounds.lower.shape[1] // cases
        weights = xp.zeros((batch, cases, forms))
        here = xp.arange(batch)[:, None], xp.arange(cases)[None]
        weights[(*here, self.chosen)] = multipliers
        return differentiate(self.bounds, weights.reshape(batch, cases * forms))
