"""Boxes of largest volume that backward bounds certify: an augmented Lagrangian in closed form.

    maximise    sum_i c_i log (lo_i + up_i)    subject to    m_k(lo, up) > 0 for every case k,

with 0 <= lo, up <= caps and m_k the certified lower bound of case k. Each round evaluates the
bounds once and differentiates them once (`onnxcert.bounds.sensitivity`):

1. *Dual step*: mu_k <- max(0, mu_k - beta m_k / m_k(0)), normalised. Cases that are far from
   failing lose their multipliers, those that fail gain.
2. *Prices*: p = - d sum_k mu_k m_k / d width, one for each side of each input.
3. *Primal step*: with prices held, the conditions of Karush, Kuhn and Tucker say
   ``c_i = nu p_i (lo_i + up_i)`` for each side that is neither zero nor at its cap: every input
   spends the same share of the margin for its weight. Each side is multiplied by the root of what
   is left of that ratio, so that dear sides vanish and cheap ones grow to their caps, and nu is
   what makes the margin come out at zero to first order.
4. *Slopes*: once the box has settled, each round also moves the free slopes of all layers along
   the signs of the derivatives that the same reverse pass gives.

The gradient method of Liu, Tomioka and Cevher (2019) takes one small step on the square roots of
the widths per evaluation; here the inner problem is solved. What is returned was evaluated as
certified: default lines jump with the box, so nothing is concluded between two evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Literal

from onnxcert.arrays import Array, array_module
from onnxcert.bounds.sensitivity import FORMS
from onnxcert.region.task import Margins, Task, Widths
from onnxcert.sets import Box

Shape = Literal["free", "symmetric", "uniform"]

_STEP = 0.5
"""Share of the way to the target, in logarithms of widths."""

_FARTHEST = 8.0
"""A width grows or falls by no more than this factor in a round."""

_FLOOR = 1e-3
"""A side keeps this share of its input's width, so that it can grow when prices change."""

_SPENT = 0.9
"""Share of the margin that a step plans to spend; the bounds get worse faster than linearly."""

_PENALTY = 1.0

_SLOPE_RATE, _SLOPE_DECAY = 0.2, 0.85

_PATIENCE, _STALE = 8, 4
"""Rounds after which slopes are moved anyway, and without progress after which it is over."""

_FIRST_SCALINGS, _LAST_SCALINGS, _MOST_SCALINGS = 3, 4, 20
"""Evaluations of a search for a scale: of uniform boxes, of the last box, and while none holds."""

_NEARBY = 1e-6
"""Radius, for points of size one, at which ellipsoids are differentiated first."""

_SCALE_GAP = 1e-3

STRETCHED = 8
"""Inputs up to which single faces are tried at the end."""

_STRETCHES = (0.2, 0.1, 0.04, 0.02, 0.01)
"""Shares of the width by which they are moved."""

UNBOUNDED = 1e4
"""The cap of a side where there is no domain, in units of the uniform radius."""


@dataclass(frozen=True)
class Solver:
    """Options of the method.

    Attributes:
        shape: ``free`` for two widths per input, ``symmetric`` for one, ``uniform`` for one in all.
        shared: all points get the same widths, as far as their caps allow.
        rounds: at most so many.
        slowest: where nothing has risen for some rounds, steps are halved down to this share of
            their size, and then it is over; multipliers of several cases that are tight at once
            settle only with small steps, which pays where few inputs matter much each.
        pace: size of the first steps. It is small where the domain cuts ellipsoids: axes that it
            cuts cost nothing until other forms are tight, so that large steps go to and fro.
        tolerance: it is over when the logarithm of the mean width and the margin that is left
            change by less in two rounds running, or have not risen by more in several.
        settled: the change from when on slopes are moved.
    """

    shape: Shape = "free"
    shared: bool = False
    rounds: int = 30
    slowest: float = 1.0
    pace: float = 1.0
    tolerance: float = 5e-3
    settled: float = 0.1

    def solve(
        self,
        task: Task,
        *,
        expired: Callable[[], bool] = lambda: False,
        report: Callable[[int, Array], None] = lambda number, volume: None,
    ) -> Found:
        """Find boxes; every case must be impossible at the points themselves.

        Args:
            task: what is asked for.
            expired: asked before each evaluation but the first.
            report: called with the number of each round and the log-volumes so far.
        """
        run = _Run(self, task, expired)
        run.start()
        parts: list[_Run] = []
        for number in range(self.rounds):
            report(number, run.best.volume)
            if expired() or run.round(number):
                break
            if not self.shared and 2 * int(run.done.sum()) >= run.groups:
                # The others go on without them; smaller parts would cost more than they save.
                parts.append(run.take(run.done))
                run = run.take(~run.done)
        parts.append(run)
        for part in parts:
            part.finish()
        return _join(parts)


@dataclass(frozen=True, eq=False)
class Found:
    """Certified boxes.

    Attributes:
        widths: of the best boxes.
        log_volume: of those, (B,).
        uniform: radius of the largest box with equal widths that was found, (B,).
        uniform_log_volume: of that box, (B,).
        margin: (B,) the smallest certified bound over the best box.
        rounds: of the method, (B,).
        evaluations: of the bounds of each point, (B,).
    """

    widths: Widths
    log_volume: Array
    uniform: Array
    uniform_log_volume: Array
    margin: Array
    rounds: Array
    evaluations: Array


@dataclass
class _Best:
    """The largest boxes that were evaluated as certified."""

    widths: Widths
    volume: Array
    margin: Array

    def offer(self, widths: Widths, volume: Array, worst: Array, allowed: Array) -> None:
        """Keep a box where it is certified and larger."""
        better = (worst > 0) & (volume > self.volume) & allowed
        xp = array_module(volume)
        self.widths = widths.where(better, self.widths)
        self.volume = xp.where(better, volume, self.volume)
        self.margin = xp.where(better, worst, self.margin)

    def take(self, index: Array) -> _Best:
        """Those of some points."""
        return _Best(self.widths.take(index), self.volume[index], self.margin[index])


class _Run:
    """One call of the solver.

    Widths have G rows: one for each point, or one for all of them.
    """

    def __init__(self, solver: Solver, task: Task, expired: Callable[[], bool]) -> None:
        xp = array_module(task.points)
        self.solver, self.task, self.expired = solver, task, expired
        self.groups = 1 if solver.shared else len(task)
        self.slots = xp.arange(len(task))
        self.rounds = xp.zeros(len(task), dtype=int)
        self.evaluations = xp.zeros(len(task), dtype=int)
        self.positions: dict[str, dict[str, Array]] = {}
        self.multipliers: Array | None = None
        self.settled = xp.full(self.groups, -1)
        self.trust = xp.ones(self.groups)
        self.pace = xp.full(self.groups, solver.pace)
        self.relative = xp.zeros(self.groups)
        self.done = xp.zeros(self.groups, dtype=bool)
        self.calm = xp.zeros(self.groups, dtype=int)
        self.stale = xp.zeros(self.groups, dtype=int)
        self.peak = xp.full(self.groups, -xp.inf)
        self.last = xp.full(self.groups, -xp.inf)
        ones = xp.ones((self.groups, task.points.shape[1]))
        self.unit = Widths(ones, ones)
        zero = xp.zeros(task.points.shape)
        nowhere = xp.full(len(task), -xp.inf)
        self.best = _Best(Widths(zero, zero), nowhere, nowhere)
        self.level = _Best(Widths(zero, zero), nowhere, nowhere)
        self.radius = xp.zeros(self.groups)

    def take(self, chosen: Array) -> _Run:
        """The run of some points (B,), as it stands; each has its own widths."""
        part = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Task | Widths | _Best):
                setattr(part, name, value.take(chosen))
            elif hasattr(value, "ndim"):
                setattr(part, name, value[chosen])
        part.groups = len(part.task)
        part.positions = {
            start: {name: _members(values, chosen) for name, values in nodes.items()}
            for start, nodes in self.positions.items()
        }
        return part

    def group(self, values: Array) -> Array:
        """The smallest of values (B,) in each group, (G,)."""
        return values if self.groups == len(self.task) else values.min(keepdims=True)

    def _spread(self, values: Array) -> Array:
        """Values of groups (G,) for their points, (B,)."""
        return array_module(values).broadcast_to(values, len(self.task))  # type: ignore[no-any-return]

    def actual(self, widths: Widths) -> Widths:
        """Widths of the points: those of their group, capped."""
        shape = self.task.points.shape
        xp = array_module(widths.lower)
        both = Widths(xp.broadcast_to(widths.lower, shape), xp.broadcast_to(widths.upper, shape))
        return both.capped(self.task.caps)

    def evaluate(self, widths: Widths, *, trace: bool = False) -> Margins:
        """Bounds over boxes of the points; remembers the best ones."""
        self.evaluations = self.evaluations + 1
        margins = self.task.evaluate(widths, self.positions, trace=trace)
        allowed = ~array_module(widths.lower).broadcast_to(self.done, len(self.task))
        worst = array_module(widths.lower).broadcast_to(self.group(margins.worst), len(self.task))
        self.best.offer(widths, self._sum(self.task.log_volume(widths)), worst, allowed)
        return margins

    def start(self) -> None:
        """The margins at the points, and the best uniform box."""
        xp = array_module(self.task.points)
        nothing = self.unit.scaled(xp.zeros(self.groups))
        margins = self.evaluate(self.actual(nothing), trace=True)
        self.center = margins.worst
        if self.task.cut is not None:  # the norm of a form has no derivative at the point itself
            size = _NEARBY * (1.0 + abs(self.task.points).max())
            margins = self.task.evaluate(self.unit.scaled(size * xp.ones(self.groups)), trace=True)
        near = xp.exp(-10.0 * (margins.cases / self.center[:, None] - 1.0))
        slope = margins.differentiate(near / near.sum(axis=1, keepdims=True))
        free = self.task.free
        steepness = ((abs(slope.lower) + abs(slope.upper)) * free).sum(axis=1)
        guess = self.center / xp.maximum(steepness, 1e-290)
        self.level_out(0.5 * self.group(guess), _FIRST_SCALINGS)
        reach = UNBOUNDED * xp.broadcast_to(self.radius, len(self.task))[:, None]
        points, domain = self.task.points, self.task.domain
        lower = xp.where(xp.isinf(domain.lower), points - reach, domain.lower)
        upper = xp.where(xp.isinf(domain.upper), points + reach, domain.upper)
        self.task = replace(self.task, domain=Box(lower, upper))
        caps = self.task.caps
        highest = Widths(caps.lower.max(axis=0), caps.upper.max(axis=0))
        self.caps = Widths(highest.lower[None], highest.upper[None]) if self.groups == 1 else caps
        self.widths = self.unit.scaled(self.radius).capped(self.caps)

    def level_out(self, guess: Array, most: int) -> None:
        """Search the best uniform box."""
        radius = self.scale(self.unit, guess, most)
        xp = array_module(radius)
        self.radius = xp.maximum(self.radius, radius)
        widths = self.actual(self.unit.scaled(self.radius))
        volume = self._sum(self.task.log_volume(widths))
        self.level.offer(widths, volume, xp.ones_like(volume), xp.ones_like(self.best.volume) > 0)

    def scale(self, shape: Widths, factor: Array, most: int) -> Array:
        """The largest factor (G,) at which the shape was certified; zero for none.

        Regula falsi between the largest certified and the smallest failed factor, kept away from
        both ends; before anything has failed the margin is taken for linear.
        """
        xp = array_module(factor)
        start = self.group(self.center)
        low, at_low = xp.zeros_like(factor), start
        high, at_high = xp.full_like(factor, xp.inf), -start
        for number in range(_MOST_SCALINGS):
            worst = self.group(self.evaluate(self.actual(shape.scaled(factor))).worst)
            good = worst > 0
            low, at_low = xp.where(good, factor, low), xp.where(good, worst, at_low)
            high, at_high = xp.where(good, high, factor), xp.where(good, at_high, worst)
            gap = xp.where(xp.isinf(high), xp.inf, high - low)
            close = gap <= _SCALE_GAP * low
            enough = number + 1 >= most and bool((low > 0).all())
            if bool(close.all()) or enough or self.expired():
                break
            inner = low + gap * xp.clip(at_low / (at_low - xp.maximum(at_high, -1e300)), 0.02, 0.98)
            outer = low * xp.clip(start / xp.maximum(start - at_low, 1e-9 * start), 1.05, 4.0)
            factor = xp.where(xp.isinf(gap), outer, inner)
            factor = xp.where(close, low, factor)
        return low  # type: ignore[no-any-return]

    def round(self, number: int) -> bool:
        """One evaluation and one step; whether it is over."""
        self.rounds = self.rounds + 1
        actual = self.actual(self.widths)
        margins = self.evaluate(actual, trace=True)
        worst = self.group(margins.worst)
        relative = worst / self.group(self.center)
        self._watch(number, relative)
        if bool(self.done.all()):
            return True
        derivatives = margins.differentiate(self._multipliers(margins.cases))
        self._move(actual, derivatives.lower, -derivatives.upper, self.trust * worst)
        if bool((self.settled >= 0).any()):
            self._turn(margins, derivatives.positions)
        return False

    def _watch(self, number: int, relative: Array) -> None:
        """Compare with the last round: who has settled, who is done, who steps too far."""
        xp = array_module(relative)
        volume = self.task.log_volume(self.actual(self.widths))
        total = xp.maximum((self.task.weights * self.task.free).sum(axis=1), 1e-290)
        mean = self.group(volume / total)
        change = abs(mean - self.last) + abs(relative)
        self.last = mean
        turned = relative * self.relative < 0  # the margin has crossed zero: half the step did
        self.trust = xp.clip(self.trust * xp.where(turned, 0.5, 1.2), 0.05, 1.0)
        self.relative = relative
        moving = (change > self.solver.settled) & (number < _PATIENCE)
        waiting = (self.settled < 0) & moving
        self.settled = xp.where(waiting, -1, self.settled + 1)
        calm = (change <= self.solver.tolerance) & (self.settled > 0)
        self.calm = xp.where(calm, self.calm + 1, 0)
        # To first order, what is left of the margin is left of the logarithm of the scale.
        hope = mean + relative
        rising = hope > self.peak + self.solver.tolerance
        self.peak = xp.where(rising, hope, self.peak)
        self.stale = xp.where(rising | (self.settled <= 0), 0, self.stale + 1)
        stuck = self.stale >= _STALE
        self.pace = xp.where(stuck, 0.5 * self.pace, self.pace)
        self.stale = xp.where(stuck, 0, self.stale)
        slow = self.pace < self.solver.slowest * self.solver.pace
        self.done = self.done | (self.calm >= 2) | slow

    def _multipliers(self, cases: Array) -> Array:
        """The dual step: (B, K), summing to one in each group."""
        xp = array_module(cases)
        relative = cases / self.center[:, None]
        least = self.group(relative.min(axis=1))
        least = self._spread(least)[:, None]
        if self.multipliers is None:
            mu = xp.maximum(0.0, 1.0 - (relative - least) / 0.3)
        else:
            mu = xp.maximum(
                0.0, self.multipliers - self._spread(_PENALTY * self.pace)[:, None] * relative
            )
        # Where all are far from failing, nothing is left: begin again with the nearest ones.
        total = self._sum(mu.sum(axis=1))
        mu = xp.where(total[:, None] > 0.1, mu, xp.exp(-20.0 * (relative - least)))
        self.multipliers = mu / self._sum(mu.sum(axis=1))[:, None]
        return self.multipliers

    def _sum(self, values: Array) -> Array:
        """Sums of (B,) over each group, (B,)."""
        if self.groups == len(self.task):
            return values
        return array_module(values).full(len(values), values.sum())  # type: ignore[no-any-return]

    def _move(self, actual: Widths, lower: Array, upper: Array, worst: Array) -> None:
        """The primal step, for prices (B, n) of the lower and the upper sides."""
        xp = array_module(lower)
        caps = self.task.caps
        prices = []
        for price, side, cap in (
            (lower, actual.lower, caps.lower),
            (upper, actual.upper, caps.upper),
        ):
            positive = xp.maximum(price, 0.0)
            if self.solver.shared:  # where a point is at its cap, the common width is free
                positive = xp.where(side < cap, positive, 0.0).sum(axis=0, keepdims=True)
            prices.append(positive)
        least = 1e-9 * (prices[0] + prices[1]).max(axis=1, keepdims=True) + 1e-290
        step = _Step(
            self.solver.shape,
            self.widths,
            self.caps,
            prices[0] + least,
            prices[1] + least,
            self.task.weights,
            _STEP * self.pace[:, None],
        )
        self.widths = self.widths.where(self.done, step.solve(_SPENT * worst))

    def _turn(self, margins: Margins, slopes: dict[str, dict[str, Array]]) -> None:
        """Move the positions of free lines along the signs of their derivatives."""
        xp = array_module(self.task.points)
        turning = (self.settled >= 0) & ~self.done  # whose turn is over must not depend on others
        rate = xp.where(turning, _SLOPE_RATE * _SLOPE_DECAY**self.settled, 0.0)
        rate = xp.repeat(self._spread(rate), margins.cells.count)
        waiting = xp.repeat(self._spread(self.settled < 0), margins.cells.count)
        layers = margins.bounds.layers.positions | {FORMS: dict(margins.bounds.positions)}
        for start, nodes in layers.items():
            gains = slopes.get(start, {})
            moved = {}
            for name, old in nodes.items():
                speed = xp.repeat(rate, len(old) // len(rate))[:, None]
                signs = _signs(gains.get(name, 0.0 * old))
                later = xp.repeat(waiting, len(old) // len(rate))[:, None]
                moved[name] = xp.where(later, xp.nan, xp.clip(old + speed * signs, 0.0, 1.0))
            self.positions[start] = moved

    def finish(self) -> None:
        """Scale the last box, and the uniform one with the slopes that were found."""
        self.done[:] = False
        xp = array_module(self.task.points)
        self.scale(self.widths, xp.ones(self.groups), _LAST_SCALINGS)
        if self.groups == len(self.task) and self.task.points.shape[1] <= STRETCHED:
            self._stretch()
        if self.positions and not self.expired():
            self.level_out(1.01 * self.radius, _FIRST_SCALINGS)

    def _stretch(self) -> None:
        """Move single faces of the best boxes outward."""
        if self.solver.shape != "free":
            return
        xp = array_module(self.task.points)
        for column in range(self.task.points.shape[1]):
            for upper in (False, True):
                for share in _STRETCHES:
                    if self.expired():
                        return
                    best = self.best.widths
                    sides = [best.lower.copy(), best.upper.copy()]
                    sides[upper][:, column] += share * xp.maximum(best.total[:, column], 1e-9)
                    self.evaluate(self.actual(Widths(*sides)))


def _members(values: Array, chosen: Array) -> Array:
    """Rows (B x m, n) of some of B points."""
    return values.reshape(len(chosen), -1, values.shape[1])[chosen].reshape(-1, values.shape[1])


def _join(parts: Sequence[_Run]) -> Found:
    """What runs of different points have found, in the order of the points."""
    xp = array_module(parts[0].slots)
    order = xp.argsort(xp.concatenate([part.slots for part in parts]))

    def joined(pick: Callable[[_Run], Array]) -> Array:
        return xp.concatenate([pick(part) for part in parts])[order]  # type: ignore[no-any-return]

    return Found(
        Widths(
            joined(lambda part: part.best.widths.lower),
            joined(lambda part: part.best.widths.upper),
        ),
        joined(lambda part: part.task.log_volume(part.best.widths)),
        joined(lambda part: xp.broadcast_to(part.radius, len(part.task))),
        joined(lambda part: part.task.log_volume(part.level.widths)),
        joined(lambda part: part.best.margin),
        joined(lambda part: part.rounds),
        joined(lambda part: part.evaluations),
    )


def _signs(gains: Array) -> Array:
    """-1, 0 or 1; what is nothing beside the largest of its row is a rounding error."""
    xp = array_module(gains)
    size = abs(gains)
    return xp.where(size > 1e-9 * size.max(axis=1, keepdims=True), xp.sign(gains), 0.0)  # type: ignore[no-any-return]


@dataclass
class _Step:
    """The primal step for fixed prices; arrays (G, n)."""

    shape: Shape
    old: Widths
    caps: Widths
    lower_price: Array
    upper_price: Array
    weights: Array
    pace: Array
    _changes: tuple[Array, Array] = field(init=False)

    def __post_init__(self) -> None:
        """Changes of both sides for nu = 1."""
        xp = array_module(self.lower_price)
        prices = self.lower_price, self.upper_price
        total = xp.maximum(self.old.total, 1e-290)
        if self.shape == "uniform":
            one = xp.ones_like(total)
            self._changes = one, one
        elif self.shape == "symmetric":
            moving = self.old.lower < self.caps.lower, self.old.upper < self.caps.upper
            price = sum(xp.where(side, p, 0.0) for side, p in zip(moving, prices, strict=True))
            count = moving[0].astype(float) + moving[1]
            change = (self.weights * count / (total * xp.maximum(price, 1e-290))) ** self.pace
            self._changes = change, change
        else:
            first, second = ((self.weights / (total * price)) ** self.pace for price in prices)
            self._changes = first, second

    def solve(self, budget: Array) -> Widths:
        """The step whose cost at these prices is the budget (G,), by bisection of 1 / nu."""
        xp = array_module(budget)
        low, high = xp.full_like(budget, -2.0), xp.full_like(budget, 2.0)
        if self.shape != "uniform":
            spent = self._cost(Widths(0.0 * self.old.lower, 0.0 * self.old.upper))
            middle = self.pace[:, 0] * xp.log(xp.maximum(-spent / self.old.lower.shape[1], 1e-290))
            low, high = middle - 3.0, middle + 3.0
        for _ in range(20):
            middle = 0.5 * (low + high)
            over = self._cost(self._at(xp.exp(middle))) > budget
            low, high = xp.where(over, low, middle), xp.where(over, middle, high)
        return self._at(xp.exp(low))

    def _cost(self, new: Widths) -> Array:
        lower = self.lower_price * (new.lower - self.old.lower)
        return (lower + self.upper_price * (new.upper - self.old.upper)).sum(axis=1)  # type: ignore[no-any-return]

    def _at(self, factor: Array) -> Widths:
        """Widths for a power of 1 / nu, (G,)."""
        xp = array_module(factor)
        sides = []
        for old, change, cap in (
            (self.old.lower, self._changes[0], self.caps.lower),
            (self.old.upper, self._changes[1], self.caps.upper),
        ):
            before = xp.maximum(old, xp.minimum(_FLOOR * self.old.total, cap))
            bounded = xp.clip(factor[:, None] * change, 1.0 / _FARTHEST, _FARTHEST)
            sides.append(xp.minimum(before * bounded, cap))
        return Widths(*sides)
