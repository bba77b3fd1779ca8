"""`onnxcert.largest_region`: from a model and points to boxes with certificates."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from onnxcert.arrays import Device, FloatArray, select_device, to_device, to_host
from onnxcert.errors import UnsupportedModel, UsageError
from onnxcert.frontend.onnx import Model, load_model
from onnxcert.graph import Graph
from onnxcert.ops import Bivariate
from onnxcert.region.condition import Condition, from_specification, keep_class, stack
from onnxcert.region.grow import grow
from onnxcert.region.options import (
    Options,
    check_fit,
    check_options,
    read_domain,
    read_labels,
    read_vector,
)
from onnxcert.region.paper import paper_boxes
from onnxcert.region.prove import Answer, Statement, ellipsoid_inward, round_inward
from onnxcert.region.regions import Region, Status
from onnxcert.region.solver import STRETCHED, Found, Solver
from onnxcert.region.task import Task, Widths
from onnxcert.search.deadline import Deadline
from onnxcert.sets import Ball, Box
from onnxcert.verdict import Progress

if TYPE_CHECKING:
    import onnx

_BATCH = 8
"""Points that are solved together; more share no more work, and wait for each other."""

_FEW_NUMBERS = 1 << 14
"""Numbers in the rows of one point of a network so small that more points share a batch."""

_BATCH_NUMBERS = 1 << 25
"""Numbers in the backward rows of one batch: 256 MB."""

_CUTS = {1: 8, 2: 3, 3: 2}
"""Inputs -> parts that each side of a box is cut into before it is bounded."""

_CUT_PACE = 0.25
"""Size of the first steps for ellipsoids that the domain cuts, see `Solver`."""

_SHRINK = (0.99, 0.95, 0.8)
"""Tried in turn for a box that the verifier does not prove in its time."""

_DESCENT = 4
"""Further boxes on the way down to one inside the best uniform box: without a domain boxes may be
so wide that only lines found for them alone hold them."""

_PATIENCE, _PATIENCE_SEARCHES = 10.0, 20.0
"""Seconds, and times what the search took, that the first proof may take: the bounds hold, so that
a long proof is one that has lost its way. Each next one gets half, but no less than an eighth."""


def largest_region(
    model: str | os.PathLike[str] | onnx.ModelProto,
    x: ArrayLike,
    *,
    progress: Callable[[Progress], None] | None = None,
    options: Options | None = None,
    **changes: Any,
) -> Region:
    """The largest certified box round one point; see `largest_regions`."""
    points = [np.asarray(x)]
    return largest_regions(model, points, progress=progress, options=options, **changes)[0]


def largest_regions(
    model: str | os.PathLike[str] | onnx.ModelProto,
    points: Sequence[ArrayLike],
    *,
    progress: Callable[[Progress], None] | None = None,
    found: Callable[[int, Region], None] | None = None,
    options: Options | None = None,
    **changes: Any,
) -> list[Region]:
    """The largest certified boxes round points.

    Args:
        model: path of an ``.onnx`` file, or a model object.
        points: each of any shape with one number per input.
        progress: called now and then.
        found: called with the number of each point and its region as soon as that is there, and
            again when it has grown.
        options: all of the following at once; single ones may be given by name:

            * ``label``: the class to keep, one or one for each point; None for the model's own.
            * ``margin``: by how much it must stay above the others.
            * ``spec``: a VNN-LIB file whose output condition takes the place of the label, and
              whose box is the domain unless one is given.
            * ``domain``: smallest and largest value of every input, numbers or arrays.
            * ``shape``: ``free``, ``symmetric`` or ``uniform``.
            * ``norm``: ``2`` for ellipsoids with axes along the inputs; what is certified is the
              part of them in the domain.
            * ``shared``: one vector of widths for all points.
            * ``freeze``: (n,) inputs that do not move.
            * ``weights``: (n,) positive, of each input in the log-volume.
            * ``method``: ``paper`` is that of Liu, Tomioka and Cevher (2019).
            * ``grow``: seconds for each point to enlarge its box against the complete verifier.
            * ``certified``: False leaves out the proof; the status is ``BOUNDED`` then.
            * ``device``, ``timeout`` (seconds for all), ``seed``: as for `onnxcert.verify`.

    Returns:
        One region per point, in order. A point without a box has a status that says why.

    Raises:
        InputError: a file cannot be read or is not supported.
        UsageError: the arguments make no sense.
    """
    unknown = changes.keys() - Options.__dataclass_fields__.keys()
    if unknown:
        raise UsageError(f"there is no option {sorted(unknown)[0]!r}")
    chosen = replace(options or Options(), **changes)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        run = _Run.begin(model, chosen, progress or (lambda moment: None))
        return run.answer(points, found or (lambda number, region: None))


def _refuse_products(graph: Graph, model: Model) -> None:
    """Derivatives of bounds by the box know lines, but no planes."""
    nodes = [node for node in graph.nodes if isinstance(node.op, Bivariate)]
    if nodes:
        named = [f"{node.source or node.name} ({type(node.op).__name__})" for node in nodes]
        raise UnsupportedModel(
            "regions of models that multiply or divide computed values are not supported",
            place="\n  --> ".join([model.source, *named]),
        )


@dataclass
class _Run:
    """One call of `largest_regions`."""

    source: str | os.PathLike[str] | onnx.ModelProto
    options: Options
    report: Callable[[Progress], None]
    deadline: Deadline
    model: Model
    device: Device
    graph: Graph
    spec: Condition | None
    domain: tuple[FloatArray, FloatArray]
    weights: FloatArray
    total: int = 0
    done: int = 0

    @classmethod
    def begin(
        cls,
        source: str | os.PathLike[str] | onnx.ModelProto,
        options: Options,
        report: Callable[[Progress], None],
    ) -> _Run:
        """Read everything and find out whether it fits together."""
        check_options(options)
        deadline = Deadline(math.inf if options.timeout is None else options.timeout)
        report(Progress(0.0, "reading"))
        device = select_device(options.device)
        model = load_model(source)
        graph = model.graph
        _refuse_products(graph, model)
        spec = None
        if options.spec is not None:
            spec = from_specification(options.spec, options.margin)
            check_fit(spec, graph, options.spec)
        elif graph.output_size < 2:
            raise UsageError(
                "a model with one output has no classes", help="give its condition with a spec"
            )
        domain = read_domain(options, spec, graph.input_size)
        weights = read_vector(options.weights, graph.input_size, "weights", 1.0)
        if not (np.isfinite(weights).all() and (weights > 0).all()):
            raise UsageError("weights are positive numbers", help="freeze inputs instead")
        return cls(
            source,
            options,
            report,
            deadline,
            model,
            device,
            graph.to(device),
            spec,
            domain,
            weights,
        )

    def answer(
        self, points: Sequence[ArrayLike], tell: Callable[[int, Region], None]
    ) -> list[Region]:
        """Refuse what cannot have a box, solve the others in batches, and prove what was found."""
        labels = read_labels(self.options.label, len(points))
        regions: dict[int, Region] = {}
        conditions: dict[int, Condition] = {}
        for number, (x, label) in enumerate(zip(points, labels, strict=True)):
            regions[number], condition = self._admit(x, label)
            if condition is None:
                tell(number, regions[number])
            else:
                conditions[number] = condition
        self.total, self.done = len(points), len(points) - len(conditions)
        for batch in self._batches(list(conditions)):
            found = self._solve([regions[n] for n in batch], [conditions[n] for n in batch])
            for number, region in zip(batch, found, strict=True):
                regions[number] = region
                tell(number, region)
                if self.options.grow > 0 and region.status is Status.CERTIFIED:
                    regions[number] = self._grow(region, conditions[number])
                    tell(number, regions[number])
                self.done += 1
        return [regions[number] for number in range(len(points))]

    def _admit(self, x: ArrayLike, label: int | None) -> tuple[Region, Condition | None]:
        """A region to be filled and its condition, or a region that says why there is none."""
        try:
            point = np.asarray(x, dtype=np.float64).ravel()
        except (TypeError, ValueError) as error:
            raise UsageError("the inputs are no numbers") from error
        outputs = self.model.graph.output_size
        region = Region(Status.WRONG_SHAPE, point, label)
        if len(point) != self.model.graph.input_size:
            return region, None
        if not np.isfinite(point).all():
            return replace(region, status=Status.NOT_FINITE), None
        if (point < self.domain[0]).any() or (point > self.domain[1]).any():
            return replace(region, status=Status.OUTSIDE), None
        if label is not None and not 0 <= label < outputs:
            return replace(region, status=Status.NO_SUCH_LABEL), None
        values = self.model.graph.forward(point[None])[0]
        if self.spec is not None:
            good = (self.spec.bounds(values) > 0).all()
            return replace(region, status=Status.VIOLATED), self.spec if good else None
        own = int(values.argmax())
        if label not in (None, own):
            return replace(region, status=Status.MISCLASSIFIED), None
        condition = keep_class(own, outputs, self.options.margin)
        good = (condition.bounds(values) > 0).all()
        region = replace(region, label=own, status=Status.VIOLATED)
        return region, condition if good else None

    def _batches(self, numbers: list[int]) -> Iterator[list[int]]:
        """Points by batches; all together where they share their widths."""
        neurons = sum(self.graph.sizes[name] for name in self.graph.pre_activations)
        rows = neurons * (self.graph.input_size + neurons)
        most = _BATCH if rows > _FEW_NUMBERS else 16 * _BATCH
        size = max(1, min(most, _BATCH_NUMBERS // max(rows, 1)))
        if self.options.shared:
            size = max(len(numbers), 1)
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]

    def _solve(self, regions: list[Region], conditions: list[Condition]) -> Iterator[Region]:
        """Boxes of one batch, one after the other as they are proved."""
        if self.deadline.expired():
            yield from (replace(region, status=Status.TIMEOUT) for region in regions)
            return
        started = time.monotonic()
        task = self._task(regions, conditions)
        room = to_host(task.evaluate(task.nothing).worst) > 0
        if self.options.shared and not room.all():
            room[:] = False
        chosen = np.flatnonzero(room)
        boxes: dict[int, tuple[Region, FloatArray, FloatArray]] = {}
        if len(chosen):
            part = task if room.all() else task.take(to_device(chosen, self.device))
            found = self._search(part)
            share = (time.monotonic() - started) / len(chosen)
            filled = self._filled([regions[n] for n in chosen], part, found, share)
            boxes = dict(zip(chosen.tolist(), filled, strict=True))
        for number, region in enumerate(regions):
            if number not in boxes:
                yield replace(region, status=Status.UNDECIDED)
                continue
            self._tell("checking")
            yield self._prove(*boxes[number], conditions[number])

    def _filled(
        self, regions: list[Region], task: Task, found: Found, seconds: float
    ) -> Iterator[tuple[Region, FloatArray, FloatArray]]:
        """Regions with what the search says of them, and faces that are not proved yet."""
        box = task.box(found.widths)
        names = ("uniform", "uniform_log_volume", "margin", "rounds")
        uniform, level, margin, rounds = (to_host(getattr(found, name)) for name in names)
        sides = box.lower, box.upper
        if isinstance(box, Ball):
            sides = box.center - box.axes, box.center + box.axes
        free, lower, upper = (to_host(array) for array in (task.free, *sides))
        for k, region in enumerate(regions):
            filled = replace(
                region,
                free=free[k],
                uniform=float(uniform[k]),
                uniform_width=math.exp(float(level[k]) / max(int(free[k].sum()), 1)),
                margin=float(margin[k]),
                seconds={"search": seconds},
                rounds=int(rounds[k]),
            )
            yield filled, lower[k], upper[k]

    def _tell(self, phase: str) -> None:
        self.report(Progress(self.deadline.elapsed, phase, self.total - self.done, self.done))

    def _search(self, task: Task) -> Found:
        def show(number: int, volume: object) -> None:
            del number, volume
            self._tell("bounds")

        if self.options.method == "paper":
            return paper_boxes(task, expired=self.deadline.expired, report=show)
        size = task.points.shape[1]
        thorough = Solver(rounds=150, tolerance=1e-3, settled=0.05, slowest=1 / 16)
        solver = replace(
            thorough if size <= STRETCHED else Solver(),
            shape=self.options.shape,
            shared=self.options.shared,
        )
        if self.options.norm == "2":
            if solver.shape == "free":
                solver = replace(solver, shape="symmetric")
            if np.isfinite(self.domain).any():
                solver = replace(solver, pace=_CUT_PACE, slowest=min(solver.slowest, 0.5))
        else:
            task = replace(task, cuts=_CUTS.get(size, 1))
        return solver.solve(task, expired=self.deadline.expired, report=show)

    def _task(self, regions: list[Region], conditions: list[Condition]) -> Task:
        points = np.stack([region.point for region in regions])
        lower, upper = self._reach(regions)
        rows, offset = stack(conditions)
        arrays = (to_device(a, self.device) for a in (points, lower, upper, rows, offset))
        points, lower, upper, rows, offset = arrays
        weights = to_device(self.weights, self.device)
        domain = Box(lower, upper)
        if self.options.norm != "2":
            return Task(self.graph, points, domain, weights, rows, offset)
        # From wall to wall: longer axes would hardly add to what is left in the domain.
        longest = upper - lower
        reach = Box(points - longest, points + longest)
        return Task(self.graph, points, reach, weights, rows, offset, cut=domain)

    def _reach(self, regions: list[Region]) -> tuple[FloatArray, FloatArray]:
        """The domain, (B, n), which is the point itself where an input is frozen."""
        points = np.stack([region.point for region in regions])
        frozen = read_vector(self.options.freeze, points.shape[1], "freeze", 0.0) != 0
        lower, upper = self.domain
        return np.where(frozen, points, lower), np.where(frozen, points, upper)

    def _prove(
        self, region: Region, first: FloatArray, last: FloatArray, condition: Condition
    ) -> Region:
        """Round the faces inward and have the verifier prove the box; smaller ones if it fails."""
        started = time.monotonic()
        point, status = region.point, Status.UNPROVED
        patience = max(_PATIENCE, _PATIENCE_SEARCHES * region.seconds["search"])
        sizes = _factors(region, max((point - first).max(), (last - point).max()))
        for number, factor in enumerate(sizes):
            lower, upper = first, last
            if factor < 1.0:
                lower, upper = point + factor * (lower - point), point + factor * (upper - point)
            box = self._stated(region, lower, upper, condition)
            assert box.statement is not None
            if not self.options.certified:
                return replace(box, status=Status.BOUNDED, certified_by="bounds")
            answer = self._ask(box.statement, patience / 2.0 ** min(number, 3))
            seconds = region.seconds | {"proof": time.monotonic() - started}
            if answer is not None and answer.holds and answer.certificate:
                return replace(
                    box,
                    status=Status.CERTIFIED,
                    certified_by="bounds",
                    certificate=answer.certificate,
                    seconds=seconds,
                )
            if self.deadline.expired():
                status = Status.TIMEOUT
                break
        return replace(region, status=status, seconds=seconds)

    def _stated(
        self, region: Region, lower: FloatArray, upper: FloatArray, condition: Condition
    ) -> Region:
        """The region with faces that are rounded inward, and what is to be proved of it."""
        point = region.point
        if self.options.norm != "2":
            lower, upper = round_inward(point, lower, upper, self.domain)
            statement = Statement(self.model, self.source, condition, lower, upper)
            return replace(region, statement=statement, lower=lower, upper=upper)
        # Halves of differences of rounded faces are off by their rounding.
        axes = 0.5 * (upper - lower) - 2.0**-50 * (abs(point) + abs(upper) + abs(lower))
        weights, low, high = ellipsoid_inward(point, np.maximum(axes, 0.0), self.domain)
        squares = point, weights
        statement = Statement(self.model, self.source, condition, low, high, squares)
        axes = np.where(weights > 0, 1.0 / np.sqrt(np.where(weights > 0, weights, 1.0)), 0.0)
        axes *= 1.0 - 2.0**-50
        lower, upper = point - axes, point + axes
        return replace(region, statement=statement, lower=lower, upper=upper, ball=True)

    def _grow(self, region: Region, condition: Condition) -> Region:
        """A larger box where the verifier finds one; its proof is repeated with a certificate."""
        started = time.monotonic()
        assert region.statement is not None
        low, high = self._reach([region])
        grown = grow(
            region.statement,
            region.point,
            (low[0], high[0]),
            self._cost(region, condition),
            self.deadline.slice(self.options.grow),
            device=self.options.device,
            seed=self.options.seed,
            report=lambda questions: self._tell("growth"),
        )
        seconds = region.seconds | {"growth": time.monotonic() - started}
        region = replace(region, seconds=seconds)
        certificate, by = region.certificate, region.certified_by
        if grown.statement is not region.statement:
            answer = self._ask(grown.statement)
            if answer is None or not answer.certificate:
                return region
            certificate, by = answer.certificate, "growth"
        return replace(
            region,
            statement=grown.statement,
            lower=grown.statement.lower,
            upper=grown.statement.upper,
            certificate=certificate,
            certified_by=by,
            witnesses=grown.witnesses,
            settled=grown.settled,
        )

    def _cost(self, region: Region, condition: Condition) -> FloatArray:
        """What moving each face costs by its share of the width, to first order: (n, 2)."""
        task = self._task([region], [condition])
        low, high = (to_device(face, self.device) for face in region.widths)
        widths = Widths(low[None], high[None])
        margins = task.evaluate(widths, trace=True)
        cases = to_host(margins.cases)
        near = np.exp(-10.0 * (cases - cases.min()) / max(float(np.ptp(cases)), 1e-290))
        slope = margins.differentiate(to_device(near / near.sum(), self.device))
        prices = np.stack([to_host(slope.lower)[0], -to_host(slope.upper)[0]], axis=1)
        cost: FloatArray = np.maximum(prices, 0.0) * to_host(widths.total)[0][:, None]
        return cost

    def _ask(self, statement: Statement, patience: float = math.inf) -> Answer | None:
        left = min(self.deadline.remaining, patience)
        if left <= 0:
            return None
        return statement.ask(
            timeout=None if math.isinf(left) else left,
            device=self.options.device,
            seed=self.options.seed,
        )


def _factors(region: Region, largest: float) -> Iterator[float]:
    """Sizes, relative to a box whose longest side is given, at which a proof is tried in turn."""
    yield 1.0
    yield from _SHRINK
    inside = region.uniform / largest if largest > 0 else 1.0
    if inside < _SHRINK[-1]:
        step = (0.9 * inside / _SHRINK[-1]) ** (1.0 / _DESCENT)
        yield from (_SHRINK[-1] * step ** (number + 1) for number in range(_DESCENT))
        yield 0.5 * inside
