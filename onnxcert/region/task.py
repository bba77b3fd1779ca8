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
from onnxcert.sets import Ball, Box


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
        cut: for ellipsoids round the points instead of boxes, whose semi-axes are the widths, what
            cuts them, (B, n); the domain then says how long the axes may be.
        cuts: how many parts every side of a box is cut into before it is bounded.
    """

    graph: Graph
    points: Array
    domain: Box
    weights: Array
    rows: Array
    offset: Array
    rule: LineRule = CROWN
    cut: Box | None = None
    cuts: int = 1

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
            cut=self.cut and self.cut.take(index),
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

        The semi-axes of ellipsoids are taken as they are.
        """
        xp = array_module(self.points)
        if self.cut is not None:
            axes = xp.minimum(widths.lower, widths.upper)
            low, high = (xp.where(axes > 0, self.points + s * axes, self.points) for s in (-1, 1))
            around = Box(
                xp.where(axes > 0, xp.nextafter(low, -xp.inf), low),
                xp.where(axes > 0, xp.nextafter(high, xp.inf), high),
            )
            box = around.intersect(self.cut)
            return Ball(box.lower, box.upper, self.points, axes)
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
        """Certified lower bounds of every case over the boxes, cell by cell."""
        cells = Cells.of(self.box(widths), self.cuts)
        layers = bound_layers(self.graph, cells.box, positions, trace=trace, rule=self.rule)
        xp = array_module(self.rows)
        batch, cases, forms, size = self.rows.shape
        rows, offset = (xp.repeat(array, cells.count, axis=0) for array in (self.rows, self.offset))
        known = xp.isfinite(offset)
        bounds = bound_forms(
            layers,
            rows.reshape(-1, cases * forms, size),
            xp.where(known, offset, 0.0).reshape(-1, cases * forms),
            positions,
        )
        lower = xp.where(known, bounds.lower.reshape(-1, cases, forms), -xp.inf)
        by_cell = lower.max(axis=2).reshape(batch, cells.count, cases)
        worst = by_cell.argmin(axis=1)
        chosen = lower.argmax(axis=2).reshape(batch, cells.count, cases)
        here = xp.arange(batch)[:, None], worst, xp.arange(cases)[None]
        return Margins(bounds, by_cell[here], worst, chosen[here], cells)


@dataclass(frozen=True, eq=False)
class Cells:
    """Boxes cut into cells, along every input at the same shares; few inputs only.

    Attributes:
        box: the cells, (B x C, n).
        lower, upper: (C, n) where a cell begins and ends, as shares of the width.
    """

    box: Box
    lower: Array
    upper: Array

    @property
    def count(self) -> int:
        """Cells per box."""
        return len(self.lower)

    @classmethod
    def of(cls, box: Box, cuts: int) -> Cells:
        """Cut every side into ``cuts`` parts; neighbours share their faces, so nothing is lost."""
        xp = array_module(box.lower)
        size = box.lower.shape[1]
        if cuts == 1:
            return cls(box, xp.zeros((1, size)), xp.ones((1, size)))
        place = xp.stack(xp.unravel_index(xp.arange(cuts**size), (cuts,) * size), axis=1)
        shares = xp.arange(cuts + 1) / cuts
        edges = box.lower[:, None] + (box.upper - box.lower)[:, None] * shares[:, None]
        edges[:, -1] = box.upper
        column = xp.arange(size)[None]
        lower, upper = (edges[:, place + k, column] for k in (0, 1))
        return cls(
            Box(lower.reshape(-1, size), upper.reshape(-1, size)),
            shares[place],
            shares[place + 1],
        )


@dataclass(frozen=True, eq=False)
class Margins:
    """Lower bounds of the cases over boxes.

    Attributes:
        bounds: of all forms over all cells.
        cases: (B, K): positive rules the case out.
        cell: (B, K) the cell where the case has its smallest bound.
        chosen: (B, K) the form of each case with the best bound there.
        cells: what the boxes were cut into.
    """

    bounds: FormBounds
    cases: Array
    cell: Array
    chosen: Array
    cells: Cells

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
        weights = xp.zeros((batch, self.cells.count, cases, forms))
        here = xp.arange(batch)[:, None], self.cell, xp.arange(cases)[None], self.chosen
        weights[here] = multipliers
        found = differentiate(self.bounds, weights.reshape(-1, cases * forms))
        if self.cells.count == 1:
            return found
        # The faces of a cell lie between those of its box.
        shape = (batch, self.cells.count, -1)
        by_lower, by_upper = found.lower.reshape(shape), found.upper.reshape(shape)
        below, above = self.cells.lower, self.cells.upper
        upper = (by_lower * below + by_upper * above).sum(axis=1)
        return replace(found, lower=(by_lower + by_upper).sum(axis=1) - upper, upper=upper)
