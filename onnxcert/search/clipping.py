"""What linear bounds over the input say beyond a single number: smaller boxes, combined rows.

For a box and a form ``g(x) >= a . x + c`` that has to be <= 0 for a counterexample, the bound
``lower = min (a . x + c)`` over the box leaves to x_i only a distance of ``-lower / |a_i|`` from
the end where the form is smallest. Applied to every row of a conjunction this clips the box (Zhou
et al., *Clip-and-Verify*, 2025). And non-negative combinations of the rows may be positive where
no row is; their weights follow the values of the rows at the minimiser.
"""

from __future__ import annotations

from onnxcert.arrays import UNIT_ROUNDOFF, Array, array_module
from onnxcert.bounds.hints import round_multipliers
from onnxcert.ops.base import TINY, gamma
from onnxcert.sets import Box

_COMBINATION_STEPS = 12


def clip_box(box: Box, coefficients: Array, lower: Array, used: Array) -> Box:
    """The part of each box where all forms can be <= 0; empty boxes come back with lower > upper.

    Args:
        box: (B, n).
        coefficients: (B, R, n).
        lower: (B, R), rigorous lower bounds of the forms over the box, attained by `coefficients`.
        used: (B, R), False for padding.
    """
    xp = array_module(lower)
    room = xp.where(used, -lower, xp.inf)[:, :, None]
    size = abs(coefficients)
    reach = xp.where(size > 0, room / xp.where(size > 0, size, 1.0), xp.inf)
    reach = reach * (1.0 + 8.0 * UNIT_ROUNDOFF) + TINY
    rising = coefficients > 0
    high = xp.where(rising, reach, xp.inf).min(axis=1)
    low = xp.where(coefficients < 0, reach, xp.inf).min(axis=1)
    slack = 4.0 * UNIT_ROUNDOFF * box.magnitude
    return Box(
        xp.maximum(box.lower, box.upper - low - slack),
        xp.minimum(box.upper, box.lower + high + slack),
    )


def combine_rows(
    box: Box, coefficients: Array, lower: Array, used: Array
) -> tuple[Array, Array, Array]:
    """The best bound found for a convex combination of the forms, and its coefficients.

    Args:
        box: (B, n).
        coefficients: (B, R, n).
        lower: (B, R) rigorous lower bounds over the box.
        used: (B, R), False for padding.

    Returns:
        (B,) bounds, rounding included, (B, n) coefficients and (B, R) weights, which are coarse
        numbers that a certificate can hold.
    """
    xp = array_module(lower)
    used = used & xp.isfinite(lower)  # a form without a bound has no part in a combination
    lower = xp.where(used, lower, 0.0)
    count, forms, size = coefficients.shape
    center = 0.5 * (box.lower + box.upper)
    radius = xp.maximum(box.upper - center, center - box.lower)
    # The constant of each form such that a . x + constant has the minimum ``lower`` over the box.
    constant = lower - (coefficients @ center[:, :, None])[:, :, 0]
    constant += (abs(coefficients) @ radius[:, :, None])[:, :, 0]
    scale = (abs(coefficients) @ (abs(center) + radius)[:, :, None])[:, :, 0] + abs(lower)
    constant -= 4.0 * gamma(size + forms + 8, UNIT_ROUNDOFF) * scale
    constant = xp.where(used, constant, 0.0)

    each = xp.arange(count)
    start = xp.where(used, lower, -xp.inf).argmax(axis=1)
    weights = xp.zeros((count, forms))
    weights[each, start] = 1.0
    best, best_row, best_weights = lower[each, start], coefficients[each, start], weights.copy()
    for number in range(_COMBINATION_STEPS):
        coarse = round_multipliers(weights)
        row = (coarse[:, None] @ coefficients)[:, 0]
        bound = (row * center).sum(axis=1) - (abs(row) * radius).sum(axis=1)
        bound += (coarse * constant).sum(axis=1)
        bound -= gamma(size + forms + 8, UNIT_ROUNDOFF) * (coarse * scale).sum(axis=1)
        better = bound > best
        best = xp.where(better, bound, best)
        best_row = xp.where(better[:, None], row, best_row)
        best_weights = xp.where(better[:, None], coarse, best_weights)
        minimiser = center - xp.sign(row) * radius
        value = (coefficients @ minimiser[:, :, None])[:, :, 0] + constant
        value = xp.where(used, value, -xp.inf)
        # Move towards the row that the minimiser violates most (Frank and Wolfe, 1956).
        target = value.argmax(axis=1)
        step = 2.0 / (number + 3.0)
        weights = (1.0 - step) * weights
        weights[each, target] += step
    return xp.where(used.any(axis=1), best, -xp.inf), best_row, best_weights
