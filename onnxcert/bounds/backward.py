"""Backward linear bounds (CROWN, DeepPoly): linear forms pulled back from a value to the input.

A row block ``A h + c`` over an activation h = f(z) becomes one over z by taking, at each neuron,
the line below f where A >= 0 and the line above it where A < 0 (Zhang et al., *Efficient Neural
Network Robustness Certification with General Activation Functions*, 2018). With the mean m and the
half difference d of the two slopes this is ``A m - |A| d``, so one absolute value serves the sign
split of slopes and offsets and the rounding term below. At the input box the form is minimised in
closed form. There are lower bounds only: an upper bound is the lower bound of the negation.

Rounding. The rows are computed in floating point, so what arrives at the input is a form p with
errors in each coefficient. If ``|value| <= H`` holds, replacing a row a by any float row p costs
at most ``sum |a - p| H``, and with ``|a - p| <= gamma_n |A| |W|`` that is ``|A| v`` for the one
vector ``v = gamma_n (|W| H + |b|)`` of the node: a matrix-vector product per node makes every
bound rigorous. Where a value feeds activations only, its v is charged there, with the absolute
rows at hand. What binary32 executions of the network round is charged in the same vectors
(`onnxcert.bounds.execution`), so that one bound holds for the reals and for all of them.

Products. A function of two computed values lies between two planes (`onnxcert.ops.multiply`), of
which a row takes the lower or the upper one, like a line, and becomes one row over each of the two.

Constants. Where all that a value depends on is fixed by the specification, or nearly so, its bounds
are a number and its roundings in every subproblem. Rows over it end there, with the middle and the
radius of those bounds: a part of a network that does not vary costs nothing behind that point.

Inputs that hardly vary end before the product of an affine node that reads them: where
``|x_i - c_i| <= r_i`` for these i in F, ``A W_F x_F >= A . (W_F c_F) - |A| . (|W_F| r_F)``, two
vectors of the node, and only the columns of the others are multiplied (`FixedInputs`).

Splits. A constraint ``s (z - p) >= 0`` with multiplier beta >= 0 may be subtracted, ``A z - beta s
(z - p)``, when the pass reaches z (Wang et al., *Beta-CROWN*, 2021); signed multipliers ``beta s``
and points p arrive as dense arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from onnxcert.arrays import UNIT_ROUNDOFF, Array, Device, array_module, single, singles
from onnxcert.bounds.execution import execution_error
from onnxcert.graph import Graph, MatrixProduct, Node
from onnxcert.ops.base import TINY, Affine, Bivariate, Elementwise, gamma
from onnxcert.sets import Ball, Box, Lines, Planes

_FIXED = 2.0**-36
"""An entry whose range is no larger than this share of the value's largest one is a number and its
roundings."""

_UNDERFLOWN = 1e-150
"""More than a length loses where squares underflow."""

_NARROW = 0.5
"""Rows with more than this share of columns are stored densely."""

_FEW = 0.5
"""Inputs are ended before products where no larger share of them varies."""

_PER_NODE = 12
"""At most so many times a pass adds to its constant on its way through a node."""

SLACK = 1.0 + 1e-9
"""Covers the rounding of the error terms themselves."""


def unstable_neurons(graph: Graph, name: str, box: Box) -> Array:
    """Neurons of a pre-activation that some curve reading it does not see as a line: (B, n)."""
    unstable = array_module(box.lower).zeros(box.lower.shape, dtype=bool)
    for reader in graph.pre_activations[name]:
        assert isinstance(reader.op, Elementwise)
        unstable |= reader.op.unstable(box)
    return unstable  # type: ignore[no-any-return]


@dataclass
class Curve:
    """The lines of one elementwise node, in the form the backward pass uses; arrays (B, n).

    Attributes:
        mean, half: mean and half difference of lower and upper slope.
        mean_offset: mean of the offsets, None when all offsets are zero.
        half_offset: half difference of the offsets plus the rounding vector of this node (and of
            the value it reads, where that is charged here).
    """

    mean: Array
    half: Array
    mean_offset: Array
    half_offset: Array

    def single(self) -> Curve:
        """The same in binary32."""
        parts = (self.mean, self.half, self.mean_offset, self.half_offset)
        return Curve(*map(single, parts))


@dataclass
class Surface:
    """The planes of one function of two values, in the form of `Curve`; arrays (B, n).

    Attributes:
        mean, half: of both slopes, by input.
        mean_offset, half_offset: as those of `Curve`.
    """

    mean: tuple[Array, Array]
    half: tuple[Array, Array]
    mean_offset: Array
    half_offset: Array

    def single(self) -> Surface:
        """The same in binary32."""
        mean, half = ((single(a), single(b)) for a, b in (self.mean, self.half))
        return Surface(mean, half, single(self.mean_offset), single(self.half_offset))

    def take(self, index: Array) -> Surface:
        """Those of some subproblems."""
        mean = self.mean[0][index], self.mean[1][index]
        half = self.half[0][index], self.half[1][index]
        return Surface(mean, half, self.mean_offset[index], self.half_offset[index])

    def of_matrices(self, found: MatrixProduct) -> PlanesOfSums | None:
        """The same for sums of products; None where lower and upper planes are not parallel."""
        if not self.parallel:
            return None
        groups, rows, columns, depth = found.shape
        each = -1, groups, rows, columns, depth
        first, second = (mean.reshape(each) for mean in self.mean)
        sums = [v.reshape(each).sum(axis=4) for v in (self.mean_offset, self.half_offset)]
        offset, gap = (v.reshape(len(v), -1) for v in sums)
        return PlanesOfSums(
            found,
            first.reshape(-1, groups * rows, columns, depth),
            second.transpose(0, 1, 3, 2, 4).reshape(-1, groups * columns, rows, depth),
            offset,
            SLACK * gap,
        )

    @cached_property
    def parallel(self) -> bool:
        """Whether each lower plane has the slopes of the upper one."""
        return not any(half.any() for half in self.half)

    def taken(self, row: Array, values: Sequence[Array]) -> Array:
        """The plane that a row (B, n) takes, at values of both inputs (B, n)."""
        sign = array_module(row).where(row >= 0, 1.0, -1.0).astype(row.dtype)
        result = self.mean_offset - sign * self.half_offset
        for mean, half, value in zip(self.mean, self.half, values, strict=True):
            result = result + (mean - sign * half) * value
        return result  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Tilt:
    """Upper planes of some neurons of a relu, over what their affine map reads.

    See `onnxcert.bounds.tilts`.

    Attributes:
        source: the value that is read.
        neurons: (N,).
        factors: of the planes of K cases, dense or in compressed rows: (m, N) and (N, m).
        offset: (B, N) of the planes, with what rounding adds, or (1, N).
        active: (B, N) which neurons take their plane where their row is negative; or (1, N).
        meeting: (1, m) rounding of one addition of rows over the source.
        case: (B,) whose planes a subproblem takes, -1 for nobody's; None where there is one case.
    """

    source: str
    neurons: Array
    factors: Sequence[tuple[Any, Any]]
    offset: Array
    active: Array
    meeting: Array
    case: Array | None = None

    def single(self) -> Tilt:
        """The same in binary32."""
        offset, meeting = single(self.offset), single(self.meeting)
        factors = [(single(rows), single(columns)) for rows, columns in self.factors]
        return replace(self, factors=factors, offset=offset, meeting=meeting)

    def negative(self, rows: Array) -> Array:
        """What planes take of rows (B, R, n): (B, R, N)."""
        xp = array_module(rows)
        return xp.minimum(rows[:, :, self.neurons], 0.0) * self.active[:, None]  # type: ignore[no-any-return]

    def spread(self, below: Array, size: int) -> Array:
        """Rows over the planes (B, R, N) -> rows over the source (B, R, size)."""
        rows = array_module(below).zeros((*below.shape[:2], size), below.dtype)
        for part, (matrix, _) in self._by_case():
            mine = below[part]
            made = matrix @ mine.reshape(-1, mine.shape[2]).T
            rows[part] = made.T.reshape(*mine.shape[:2], size)
        return rows  # type: ignore[no-any-return]

    def _by_case(self) -> Iterator[tuple[Array | slice, tuple[Any, Any]]]:
        """Which subproblems take which factors."""
        if self.case is None:
            yield slice(None), self.factors[0]
            return
        xp = array_module(self.case)
        order = xp.argsort(self.case, kind="stable")
        numbers, starts = xp.unique(self.case[order], return_index=True)
        ends = [*starts.tolist()[1:], len(order)]
        for number, start, end in zip(numbers.tolist(), starts.tolist(), ends, strict=True):
            if number >= 0:
                yield order[start:end], self.factors[number]

    def taken(self, row: Array, line: Array, source: Array) -> Array:
        """Values on what a row (B, n) took: the planes, or a line's values (B, n)."""
        xp = array_module(row)
        plane = xp.zeros((len(row), len(self.neurons)), row.dtype)
        for part, (_, matrix) in self._by_case():
            plane[part] = (matrix @ source[part].T).T
        plane += self.offset
        chosen = (row[:, self.neurons] < 0) & self.active
        value = line.copy()
        value[:, self.neurons] = xp.where(chosen, plane, value[:, self.neurons])
        return value


@dataclass(frozen=True)
class PlanesOfSums:
    """Parallel planes of all products that make a product of matrices, summed up.

    The sums of their offsets are off by less than what each half offset holds for rounding, which
    counts one rounding for each of all products, and so are those of coefficients.

    Attributes:
        of: who is multiplied; its lengths are g, i, j and k.
        first: slopes of A, (B, g i, j, k).
        second: slopes of B, (B, g j, i, k).
        offset, gap: sums of mean and of half offsets, (B, g i j).
    """

    of: MatrixProduct
    first: Array
    second: Array
    offset: Array
    gap: Array

    def rows(self, rows: Array, sizes: Sequence[int]) -> list[Array]:
        """Rows (B, R, g i j) over the sums as rows over what A and B are picked from."""
        groups, height, width, _ = self.of.shape
        batch, count, _ = rows.shape
        table = rows.reshape(batch, count, groups, height, width)
        parts = (
            (table.reshape(batch, count, -1, width), self.first),
            (table.swapaxes(3, 4).reshape(batch, count, -1, height), self.second),
        )
        found = []
        for (given, slopes), index, size in zip(parts, self.of.index, sizes, strict=True):
            # Where subproblems share planes, one product serves all.
            shared = len(slopes) == 1
            part = given.reshape(1, batch * count, *given.shape[2:]) if shared else given
            made = (part.swapaxes(1, 2) @ slopes).swapaxes(1, 2).reshape(batch, count, -1)
            found.append(_scattered(made, index.ravel(), size))
        return found

    def values(self, read: Sequence[Array], signs: Array) -> Array:
        """Sums (B, g i j) at values of what A and B are picked from, by the planes taken.

        Args:
            read: (B, n) each.
            signs: (B, g i j): above zero for lower planes.
        """
        groups, height, width, _ = self.of.shape
        made = []
        for values, slopes, index in zip(
            read, (self.first, self.second), self.of.index, strict=True
        ):
            picked = values[:, index].reshape(len(values), -1, 1, index.shape[-1])
            if len(slopes) == 1:
                picked = picked.transpose(2, 1, 0, 3)
                made.append((picked @ slopes.swapaxes(2, 3))[0].swapaxes(0, 1))
            else:
                made.append((picked @ slopes.swapaxes(2, 3))[:, :, 0])
        shape = len(signs), groups, height, width
        total = made[0].reshape(shape) + made[1].reshape(-1, groups, width, height).swapaxes(2, 3)
        return total.reshape(signs.shape) + self.offset - signs * self.gap  # type: ignore[no-any-return]


def _scattered(rows: Array, index: Array, size: int) -> Array:
    """Rows (B, R, E) over entries ``index`` (E,) of a value as rows over the value."""
    xp = array_module(rows)
    made = xp.zeros((*rows.shape[:2], size), rows.dtype)
    order = xp.argsort(xp.asarray(index), kind="stable")
    targets, starts = xp.unique(index[order], return_index=True)
    if len(targets) == len(index):
        made[:, :, index] = rows
    else:
        made[:, :, targets] = xp.add.reduceat(rows[:, :, order], starts, axis=2)
    return made  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Fixed:
    """A value that hardly varies in some of its entries, or in all.

    Attributes:
        center, radius: (B, n) of those entries, with what rounding adds; zero for the others.
        others: (B, n) which these are. What a subproblem ends there must not depend on the others
            in its batch, because a proof is repeated in other batches.
    """

    center: Array
    radius: Array
    others: Array

    @property
    def whole(self) -> bool:
        """Whether it is all of the value in all subproblems."""
        return not self.others.any()

    def single(self) -> Fixed:
        """The same in binary32."""
        return Fixed(single(self.center), single(self.radius), self.others)

    def take(self, index: Array) -> Fixed:
        """The same for some subproblems."""
        return Fixed(self.center[index], self.radius[index], self.others[index])


@dataclass(frozen=True)
class FixedInputs:
    """What an affine node that reads the inputs makes of those that hardly vary.

    The rounding vector of the node holds that of the products with the others, and says nothing of
    the order used here: first ``t = A_F c_F``, which is off by ``gamma_n |A_F| |c_F|`` for n
    products in a sum, then the rows times t, off by ``gamma_m |rows| |A_F| |c_F|`` for m outputs.
    Both, and the additions to a pass's constant, are charged in the radius.

    Attributes:
        center, radius: (B, m) of the sums over the inputs that hardly vary, radius with rounding.
        others: (c,) the inputs that vary in some subproblem, increasing.
        op: the products with those.
    """

    center: Array
    radius: Array
    others: Array
    op: Affine

    def single(self) -> FixedInputs:
        """The same in binary32."""
        op = self.op.to(Device(), np.float32)
        return FixedInputs(single(self.center), single(self.radius), self.others, op)

    def take(self, index: Array) -> FixedInputs:
        """The same for some subproblems."""
        return replace(self, center=self.center[index], radius=self.radius[index])


@dataclass
class Relaxation:
    """A graph over a batch of subproblems with every nonlinearity replaced by lines.

    Built node by node in topological order, because the lines of a layer need its bounds and those
    need the lines of the layers before.

    Attributes:
        graph: the network.
        box: the input boxes, (B, input_size) or (1, input_size).
        execution_unit: unit roundoff of the executions that the bounds hold for beside the
            real-valued network (2^-24 for binary32), 0 for none.
        curves: elementwise node name -> its lines.
        surfaces: name of a node that reads two values -> its planes.
        errors: value name -> rounding vector v still to be charged when a pass crosses the value.
        sums: value name -> rounding of one addition of rows, for values with several readers and
            for those that split constraints may speak about.
        fixed: values of which much hardly varies in any subproblem; rows over that end there.
        fixed_inputs: nodes that read the inputs, of which few vary -> what the rest adds to them.
        tilts: relu -> upper planes of some of its neurons.
        left_out: nodes without lines or rounding vectors, because no row gets behind their value.
        to_inputs: whether all rows go on to the input, as derivatives by the box need it.
        extra_roundings: that coefficients of rows may meet beside those of one node, where they are
            pulled back by `onnxcert.bounds.layered`; 0 where none are. Their lines may be as steep
            as a relu.
    """

    graph: Graph
    box: Box
    execution_unit: float = 0.0
    curves: dict[str, Curve] = field(default_factory=dict)
    surfaces: dict[str, Surface] = field(default_factory=dict)
    errors: dict[str, Array] = field(default_factory=dict)
    sums: dict[str, Array] = field(default_factory=dict)
    fixed: dict[str, Fixed] = field(default_factory=dict)
    fixed_inputs: dict[str, FixedInputs] = field(default_factory=dict)
    tilts: dict[str, Tilt] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)
    to_inputs: bool = False
    extra_roundings: int = 0
    _at_start: dict[str, Array] = field(default_factory=dict)
    _varies: dict[str, Array] = field(default_factory=dict)
    _sums_of_planes: dict[str, tuple[Surface, PlanesOfSums | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.graph
        elementwise = {name: len(nodes) for name, nodes in graph.pre_activations.items()}
        self._deferred = {
            name
            for name, count in graph.consumers.items()
            if count and elementwise.get(name, 0) == count
        }

    def single(self, *, curves: Mapping[str, Curve]) -> Relaxation:
        """The same in binary32, with given curves: bounds without their last digits.

        They hold up to the rounding of binary32, which nobody charges.
        """
        return replace(
            self,
            graph=self.graph.single,
            box=self.box.map(single),
            curves=dict(curves),
            surfaces={name: surface.single() for name, surface in self.surfaces.items()},
            errors=singles(self.errors),
            sums=singles(self.sums),
            fixed={name: fixed.single() for name, fixed in self.fixed.items()},
            fixed_inputs={name: ended.single() for name, ended in self.fixed_inputs.items()},
            tilts={name: tilt.single() for name, tilt in self.tilts.items()},
            _at_start=singles(self._at_start),
            _varies={},
            _sums_of_planes={},
        )

    def add_affine(self, node: Node, boxes: Mapping[str, Box]) -> None:
        """Compute the rounding vector of an affine node from the bounds of what it reads.

        Those bounds must hold for the executions as well.
        """
        op = node.op
        assert isinstance(op, Affine)
        self._note_magnitude(node, boxes)
        self._end_inputs(node)
        if op.error_terms == 0 and op.bias is None and self.graph.consumers[node.name] <= 1:
            return
        magnitude = op.magnitude.forward([boxes[name].magnitude for name in node.inputs])
        error = self._gamma(node) * magnitude + TINY
        executed = execution_error(self.graph, node, boxes, self.execution_unit)
        self._at_start[node.name] = error if executed is None else error + executed
        if node.name not in self._deferred:
            self.errors[node.name] = self._at_start[node.name]

    def _end_inputs(self, node: Node) -> None:
        """Prepare to end rows at inputs that hardly vary, where a node reads these and few others.

        Which they are depends on the batch; what a row loses there is nearly the same either way.
        """
        op = node.op
        assert isinstance(op, Affine)
        if self.to_inputs or isinstance(self.box, Ball) or node.inputs != (self.graph.input,):
            return
        xp = array_module(self.box.lower)
        others = xp.flatnonzero(self._input_varies.any(axis=0))
        reduced = op.reading(others) if len(others) <= _FEW * self.graph.input_size else None
        if reduced is None:
            return
        center, radius = (part.copy() for part in self.center_and_radius)
        center[:, others] = radius[:, others] = 0.0
        count = op.error_terms + op.output_size + _PER_NODE * len(self.graph.nodes) + 16
        spread = radius + 2.0 * gamma(count, UNIT_ROUNDOFF) * (abs(center) + radius)
        radius = SLACK * (op.magnitude.apply([spread]) + TINY)
        ended = FixedInputs(op.apply([center]), radius, others, reduced)
        self.fixed_inputs[node.name] = ended

    @cached_property
    def _input_varies(self) -> Array:
        """Which inputs vary, (B, input_size)."""
        return self.box.varies

    def add_elementwise(self, node: Node, boxes: Mapping[str, Box], lines: Lines) -> None:
        """Store the lines of an elementwise node."""
        source = node.inputs[0]
        mean = 0.5 * (lines.lower_slope + lines.upper_slope)
        half = 0.5 * (lines.upper_slope - lines.lower_slope)
        mean_offset = 0.5 * (lines.lower_offset + lines.upper_offset)
        half_offset = 0.5 * (lines.upper_offset - lines.lower_offset)
        steepness = abs(mean) + abs(half)
        if self.extra_roundings:
            xp = array_module(half)
            steepness = xp.where(half != 0, xp.maximum(steepness, 1.0), steepness)
        error = steepness * boxes[source].magnitude + abs(mean_offset) + abs(half_offset)
        error = 2.0 * self._gamma(node) * error + TINY
        executed = execution_error(self.graph, node, boxes, self.execution_unit)
        if executed is not None:
            error = error + executed
        if source in self._deferred and source in self._at_start:
            error = error + steepness * self._at_start[source]
        # The slack belongs to the error alone: half an offset difference may be negative.
        self.curves[node.name] = Curve(mean, half, mean_offset, half_offset + SLACK * error)
        self._note_magnitude(node, boxes)

    def add_bivariate(self, node: Node, boxes: Mapping[str, Box], planes: Planes) -> None:
        """Store the planes of a function of two values, given the bounds of what it reads."""
        self._note_magnitude(node, boxes)
        pairs = tuple(zip(planes.lower_slopes, planes.upper_slopes, strict=True))
        (first, second) = (0.5 * (low + high) for low, high in pairs)
        halves = tuple(0.5 * (high - low) for low, high in pairs)
        mean_offset = 0.5 * (planes.lower_offset + planes.upper_offset)
        half_offset = 0.5 * (planes.upper_offset - planes.lower_offset)
        error = abs(mean_offset) + abs(half_offset)
        for name, mean, half in zip(node.inputs, (first, second), halves, strict=True):
            error = error + (abs(mean) + abs(half)) * boxes[name].magnitude
        error = 2.0 * self._gamma(node) * error + TINY
        executed = execution_error(self.graph, node, boxes, self.execution_unit)
        if executed is not None:
            error = error + executed
        self.surfaces[node.name] = Surface(
            (first, second), (halves[0], halves[1]), mean_offset, half_offset + SLACK * error
        )

    def planes_of_sums(self, name: str) -> PlanesOfSums | None:
        """Those of a product of matrices, if it is one, and passes may go by them."""
        found = self.graph.matrix_products.get(name)
        surface = None if found is None else self.surfaces.get(found.product)
        if found is None or surface is None:
            return None
        if not self.fixed.keys().isdisjoint((found.product, *found.pairs)):
            return None
        known = self._sums_of_planes.get(name)
        if known is None or known[0] is not surface:
            known = self._sums_of_planes[name] = surface, surface.of_matrices(found)
        return known[1]

    def _note_magnitude(self, node: Node, boxes: Mapping[str, Box]) -> None:
        """Prepare to charge the sums of rows that meet at what the node reads.

        A rounded sum of rows a + b is off by u |a + b|, which may be all that is left of the parts
        of a later sum; so it is charged where it happens and not to the final rows.
        """
        curve = isinstance(node.op, Elementwise)
        for name in node.inputs:
            if (curve or self.graph.consumers[name] > 1) and name not in self.sums:
                self.sums[name] = 2.0 * UNIT_ROUNDOFF * boxes[name].magnitude + TINY

    def leave_out(self, node: Node, box: Box) -> bool:
        """Note which entries of a node's value hang on nothing that varies.

        Args:
            node: the next node of the graph.
            box: bounds of its value.

        Returns:
            Whether these are all, so that the node needs nothing more.
        """
        varies = self._varying(node)
        if self.to_inputs or varies is None:
            return False
        xp, width = array_module(box.lower), box.upper - box.lower
        largest = box.magnitude.max(axis=1, keepdims=True, initial=0.0)
        others = varies | ~((width <= _FIXED * largest) & xp.isfinite(largest))
        if others.all():
            return False
        center = 0.5 * (box.lower + box.upper)
        error = 2.0 * gamma(width.shape[1] + 16, UNIT_ROUNDOFF) * box.magnitude
        radius = SLACK * (width + error + TINY)
        fixed = Fixed(xp.where(others, 0.0, center), xp.where(others, 0.0, radius), others)
        self.fixed[node.name] = fixed
        if fixed.whole:
            self.left_out.add(node.name)
        return fixed.whole

    def _varying(self, node: Node) -> Array | None:
        """Which entries (B, n) hang on inputs that vary; None where all inputs do.

        Bounds do not tell: a split may leave a neuron only its end, and then what it is made of
        still says which inputs are left.
        """
        varies = self._varies
        if not varies:
            varies[self.graph.input] = self._input_varies
        whole = varies[self.graph.input].all(axis=1, keepdims=True)
        if whole.all():
            return None
        read = [varies[name] for name in node.inputs]
        if isinstance(node.op, Affine):
            varies[node.name] = node.op.magnitude.apply([part.astype(float) for part in read]) > 0
        else:
            varies[node.name] = read[0] if len(read) == 1 else read[0] | read[1]
        # Whether anything is looked at must not depend on the others in a batch either.
        varies[node.name] = varies[node.name] | whole
        return varies[node.name]

    def _gamma(self, node: Node) -> float:
        op = node.op
        graph = self.graph
        count = max(op.error_terms, op.output_size) + _PER_NODE * len(graph.nodes) + 8
        count += self.extra_roundings
        return gamma(count + graph.consumers[node.name], UNIT_ROUNDOFF)

    @cached_property
    def center_and_radius(self) -> tuple[Array, Array]:
        """Centre of the box, and its radius with what rounding adds to it, per unit of a row."""
        lower, upper = self.box.lower, self.box.upper
        center = 0.5 * (lower + upper)
        radius = array_module(lower).maximum(upper - center, center - lower)
        error = 2.0 * gamma(lower.shape[1] + 16, UNIT_ROUNDOFF)
        return center, radius + SLACK * (error * self.box.magnitude + TINY)

    def error_of(self, name: str) -> Array | None:
        """The rounding vector of an affine node, wherever it is charged; None for none."""
        return self._at_start.get(name)

    def set_error(self, name: str, error: Array) -> None:
        """Give the last affine node the rounding vector of rows that start there."""
        self.errors[name] = self._at_start[name] = error

    def start_error(self, name: str) -> Array | None:
        """The rounding vector to charge for rows that start at this value."""
        return self._at_start.get(name) if name in self._deferred else None


@dataclass(frozen=True)
class Multipliers:
    """Signed multipliers of split constraints on one pre-activation, arrays (B, n).

    Attributes:
        value: ``beta s``: positive for ``z >= point``, negative for ``z <= point``, zero for none.
        point: where the neuron was split; zero for neurons without a split.
    """

    value: Array
    point: Array


@dataclass
class Pulled:
    """What a backward pass leaves behind.

    Attributes:
        lower: (B, R) lower bounds; NaN never, -inf where nothing is known.
        rows, columns: of the form over the input, (B, R, c) and where they may be non-zero.
        input_size: length of the input.
        activations: name of a node with lines or planes -> rows over its output, (B, R, n), if
            asked for.
    """

    lower: Array
    rows: Array
    columns: Columns
    input_size: int
    activations: dict[str, Array]

    @cached_property
    def coefficients(self) -> Array:
        """The form over all inputs, (B, R, input_size); zero where `FixedInputs` has the rest."""
        return widen(self.rows, self.columns, self.input_size)


Columns = Array | None
"""Where rows may be non-zero: increasing column numbers, or None for everywhere."""


class RowPass:
    """One backward pass: pending rows by value, and the constants collected so far.

    What rounding and relaxation may cost is charged with a negative factor, constants with a
    positive one.
    """

    def __init__(self, relaxation: Relaxation, shape: tuple[int, int]) -> None:
        self.relaxation = relaxation
        self.shape = shape
        self.pending: dict[str, tuple[Array, Columns]] = {}
        self.constant: Array | float = 0.0
        self.kept: dict[str, Array] = {}

    def push(self, name: str, rows: Array, columns: Columns = None) -> None:
        """Add rows over a value, which other consumers of the value may have reached already."""
        if columns is not None and len(columns) == 0:
            return
        size = self.relaxation.graph.sizes[name]
        if columns is not None and len(columns) > _NARROW * size:
            rows, columns = widen(rows, columns, size), None
        if name in self.pending:
            rows, columns = self._add(self.pending[name], (rows, columns), size)
            self.charge(abs(rows), _part(self._sum_error(name), columns), -SLACK)
        self.pending[name] = (rows, columns)

    def _sum_error(self, name: str) -> Array:
        relaxation = self.relaxation
        if name in relaxation.sums:
            return relaxation.sums[name]
        # At a value with one reader meet only rows over inputs, given beside those over a value,
        # and rows of planes over what their neurons read.
        for tilt in relaxation.tilts.values():
            if tilt.source == name:
                return tilt.meeting
        return 2.0 * UNIT_ROUNDOFF * relaxation.box.magnitude + TINY

    def _add(
        self, first: tuple[Array, Columns], second: tuple[Array, Columns], size: int
    ) -> tuple[Array, Columns]:
        (rows, columns), (others, where) = first, second
        if columns is None and where is None:
            return rows + others, None
        if columns is not None and where is not None:
            xp = array_module(columns)
            union = xp.unique(xp.concatenate([columns, where]))
            total = xp.zeros((*self.shape, len(union)), rows.dtype)
            total[:, :, xp.searchsorted(union, columns)] = rows
            total[:, :, xp.searchsorted(union, where)] += others
            return total, union
        return widen(rows, columns, size) + widen(others, where, size), None

    def charge(self, rows: Array, vector: Array, factor: float = 1.0) -> None:
        """Add factor x rows . vector to the constant; the vector is (n,) or (B, n)."""
        if vector.ndim == 1 or len(vector) == 1:
            product = rows @ vector.reshape(-1)
        else:
            product = (rows @ vector[:, :, None])[:, :, 0]
        self.constant = self.constant + (product if factor == 1.0 else factor * product)

    def subtract(self, name: str, rows: Array, split: Multipliers) -> Array:
        """Charge split constraints to the rows of a pre-activation."""
        size = abs(split.value)[:, None]
        self.charge(split.value[:, None], split.point)
        error = 2.0 * gamma(rows.shape[-1] + 8, UNIT_ROUNDOFF) * abs(split.point)
        deferred = self.relaxation.start_error(name)
        if deferred is not None:  # the curve charges for the rows it sends, not for these
            error = error + deferred
        self.charge(size, error, -SLACK)
        result = rows - split.value[:, None]
        self.charge(abs(result), self._sum_error(name), -SLACK)
        return result

    def end(self, fixed: Fixed, rows: Array, columns: Columns) -> tuple[Array, Columns]:
        """End rows at what does not vary; those over the rest of the value."""
        self.charge(rows, _part(fixed.center, columns))
        self.charge(abs(rows), _part(fixed.radius, columns), -1.0)
        left = _part(fixed.others, columns)
        index = array_module(left).flatnonzero(left.any(axis=0))
        rows = array_module(rows).where(left[:, None], rows, rows.dtype.type(0))
        if len(index) > _NARROW * left.shape[1]:
            return rows, columns
        return rows[:, :, index], index if columns is None else columns[index]

    def step(self, node: Node, rows: Array, columns: Columns = None, *, keep: bool = False) -> None:
        """Move rows over the node's output to its inputs; ``keep`` those that are passed over."""
        if isinstance(node.op, Elementwise):
            self._through_curve(node, rows, columns)
            return
        if isinstance(node.op, Bivariate):
            self._through_surface(node, rows, columns)
            return
        op = node.op
        assert isinstance(op, Affine)
        error = self.relaxation.errors.get(node.name)
        if error is not None:
            self.charge(abs(rows), _part(error, columns), -SLACK)
        if op.bias is not None:
            self.charge(rows, op.bias if columns is None else op.bias[columns])
        planes = self.relaxation.planes_of_sums(node.name)
        if planes is not None:
            self._through_matrices(planes, widen(rows, columns, op.output_size), keep=keep)
            return
        ended = self.relaxation.fixed_inputs.get(node.name)
        if ended is not None:
            self.charge(rows, _part(ended.center, columns))
            self.charge(abs(rows), _part(ended.radius, columns), -1.0)
            op = ended.op
        flat = rows.reshape(self.shape[0] * self.shape[1], rows.shape[-1])
        if columns is None:
            parts: list[tuple[Array, Columns]] = [(part, None) for part in op.transpose(flat)]
        else:
            parts = op.transpose_on(flat, columns)
        if ended is not None:
            others = ended.others
            parts = [(part, others if some is None else others[some]) for part, some in parts]
        self.push_all(node, parts)

    def push_all(
        self, node: Node, parts: Sequence[tuple[Array, Columns]], sign: Array | None = None
    ) -> None:
        """Hand flat rows (B x R, n), times signs (B, R, 1) if given, to the inputs of a node."""
        for name, (part, columns) in zip(node.inputs, parts, strict=True):
            rows = part.reshape(*self.shape, part.shape[1])
            self.push(name, rows if sign is None else sign * rows, columns)

    def _through_planes(self, tilt: Tilt, rows: Array) -> Array:
        """Move the negative part of rows to the planes that take it; what is left of the rows."""
        below = tilt.negative(rows)
        rows = rows.copy()
        rows[:, :, tilt.neurons] -= below
        self.charge(below, tilt.offset)
        self.push(tilt.source, tilt.spread(below, self.relaxation.graph.sizes[tilt.source]))
        return rows

    def _through_curve(self, node: Node, rows: Array, columns: Columns) -> None:
        tilt = self.relaxation.tilts.get(node.name)
        if tilt is not None:
            rows = widen(rows, columns, self.relaxation.graph.sizes[node.name])
            rows, columns = self._through_planes(tilt, rows), None
        curve = self.relaxation.curves[node.name]
        absolute = abs(rows)
        self.charge(rows, _part(curve.mean_offset, columns))
        self.charge(absolute, _part(curve.half_offset, columns), -1.0)
        result = rows * _part(curve.mean, columns)[:, None]
        absolute *= _part(curve.half, columns)[:, None]
        result -= absolute
        self.push(node.inputs[0], result, columns)

    def _through_surface(self, node: Node, rows: Array, columns: Columns) -> None:
        surface = self.relaxation.surfaces[node.name]
        absolute = abs(rows)
        self.charge(rows, _part(surface.mean_offset, columns))
        self.charge(absolute, _part(surface.half_offset, columns), -1.0)
        for name, mean, half in zip(node.inputs, surface.mean, surface.half, strict=True):
            moved = rows * _part(mean, columns)[:, None] - absolute * _part(half, columns)[:, None]
            self.push(name, moved, columns)

    def _through_matrices(self, planes: PlanesOfSums, rows: Array, *, keep: bool) -> None:
        """Rows over sums of products as rows over the two matrices, in one step."""
        found, graph = planes.of, self.relaxation.graph
        if found.factor != 1.0:
            rows = found.factor * rows
        if keep:
            self.kept[found.product] = rows.repeat(found.depth, axis=-1)
        self.charge(rows, planes.offset)
        self.charge(abs(rows), planes.gap, -1.0)
        made = planes.rows(rows, [graph.sizes[name] for name in found.sources])
        for name, part in zip(found.sources, made, strict=True):
            self.push(name, part)

    def finish(self, *, all_rows: bool) -> Pulled:
        """Minimise the form over the input box."""
        relaxation = self.relaxation
        name, size = relaxation.graph.input, relaxation.graph.input_size
        box, before = relaxation.box, self.constant
        xp = array_module(box.lower)
        nothing = xp.zeros((*self.shape, 0), box.lower.dtype), xp.arange(0)
        rows, columns = self.pending.pop(name, nothing)
        if isinstance(box, Ball):
            rows, columns = widen(rows, columns, size), None
        center, radius = relaxation.center_and_radius
        self.charge(rows, _part(center, columns))
        self.charge(abs(rows), _part(radius, columns), -1.0)
        if isinstance(box, Ball):
            self.constant, over_box = before, self.constant
            self.constant = xp.fmax(over_box, self._over_ball(box, rows))
        lower = xp.nan_to_num(self.constant, nan=-xp.inf, posinf=-xp.inf, neginf=-xp.inf)
        return Pulled(lower, rows, columns, size, self.kept if all_rows else {})

    def _over_ball(self, ball: Ball, rows: Array) -> Array:
        """The least value over the part of the box in the ellipsoid, (B, R).

        What the box is charged with rounding covers that of the difference of the rows.
        """
        xp = array_module(rows)
        share, _ = ball.divide(rows)
        rest = rows - share
        center, radius = self.relaxation.center_and_radius
        self.charge(rest, center)
        self.charge(abs(rest), radius, -1.0)
        error = 2.0 * gamma(rows.shape[-1] + 16, UNIT_ROUNDOFF)
        scaled = share * ball.axes[:, None]
        reach: Array = xp.sqrt((scaled * scaled).sum(axis=-1)) * (1.0 + error) + _UNDERFLOWN
        size: Array = (abs(share) @ abs(ball.center)[:, :, None])[:, :, 0] * error
        value: Array = self.constant + (share @ ball.center[:, :, None])[:, :, 0]
        rounding = 4.0 * UNIT_ROUNDOFF * (reach + size + abs(self.constant))
        lower: Array = value - reach - SLACK * (size + rounding + TINY)
        return lower


def pull_back(
    relaxation: Relaxation,
    start: str,
    rows: Array,
    *,
    input_rows: Array | None = None,
    multipliers: Mapping[str, Multipliers] | None = None,
    keep: bool = False,
) -> Pulled:
    """Lower bounds of linear forms ``rows . value + input_rows . x``.

    Args:
        relaxation: the relaxed network; its batch is B or 1.
        start: the value the rows speak about.
        rows: (B, R, n).
        input_rows: (B, R, input_size) added at the input, or None.
        multipliers: pre-activation name -> multipliers of its split constraints.
        keep: also return the rows over each activation.

    Returns:
        Lower bounds over each subproblem's box and relaxation, rounding included.
    """
    run = RowPass(relaxation, (rows.shape[0], rows.shape[1]))
    error = relaxation.start_error(start)
    if error is not None:
        run.charge(abs(rows), error, -SLACK)
    run.push(start, rows)
    _walk(run, multipliers or {}, keep=keep)
    if input_rows is not None:
        run.push(relaxation.graph.input, input_rows)
    return run.finish(all_rows=keep)


def pull_back_units(relaxation: Relaxation, start: str, index: Array, sign: float | Array) -> Array:
    """Lower bounds of ``sign * value[index]``: (B, R) indices and signs -> (B, R) bounds."""
    return pull_units(relaxation, start, index, sign).lower


def pull_units(
    relaxation: Relaxation, start: str, index: Array, sign: float | Array, *, keep: bool = False
) -> Pulled:
    """`pull_back` of the forms ``sign * value[index]`` for indices and signs (B, R).

    The first step writes rows of the matrix instead of multiplying unit rows by it.
    """
    graph = relaxation.graph
    producer = next(node for node in graph.nodes if node.name == start)
    xp = array_module(index)
    run = RowPass(relaxation, (index.shape[0], index.shape[1]))
    ends_at_once = start in relaxation.left_out or start in relaxation.fixed_inputs
    if not isinstance(producer.op, Affine) or ends_at_once:
        rows = xp.zeros((*index.shape, graph.sizes[start]))
        batch, row = index.shape
        rows[xp.arange(batch)[:, None], xp.arange(row), index] = sign
        return pull_back(relaxation, start, rows, keep=keep)
    error = relaxation._at_start.get(start)
    if error is not None:
        error = xp.broadcast_to(error, (len(index), error.shape[1]))
        run.constant = -SLACK * xp.take_along_axis(error, index, axis=1)
    if producer.op.bias is not None:
        run.constant = run.constant + sign * producer.op.bias[index]
    signs = None
    if not (isinstance(sign, float) and sign == 1.0):
        signs = xp.broadcast_to(xp.asarray(sign), index.shape)[:, :, None]
    run.push_all(producer, producer.op.one_hot_rows(index.ravel()), signs)
    _walk(run, {}, keep=keep)
    return run.finish(all_rows=keep)


def pull_differences(
    relaxation: Relaxation, names: tuple[str, str], index: Array, slopes: Array, sign: float
) -> Array:
    """Lower bounds of ``sign * (a[i] - c b[i])``: numbers i and slopes c (B, R) -> (B, R).

    Args:
        relaxation: the relaxed network.
        names: of the values a and b, which are as long.
    """
    graph = relaxation.graph
    xp = array_module(index)
    batch, count = index.shape
    here = xp.arange(batch)[:, None], xp.arange(count), index
    run = RowPass(relaxation, (batch, count))
    for name, factor in zip(names, (sign, -sign * slopes), strict=True):
        rows = xp.zeros((batch, count, graph.sizes[name]))
        rows[here] = factor
        error = relaxation.start_error(name)
        if error is not None:
            run.charge(abs(rows), error, -SLACK)
        run.push(name, rows)
    _walk(run, {}, keep=False)
    return run.finish(all_rows=False).lower


def _part(vector: Array, columns: Columns) -> Array:
    """The columns of a vector (B, n)."""
    return vector if columns is None else vector[:, columns]


def widen(rows: Array, columns: Columns, size: int) -> Array:
    """Rows over all columns."""
    if columns is None:
        return rows
    dense = array_module(rows).zeros((*rows.shape[:-1], size), rows.dtype)
    dense[:, :, columns] = rows
    return dense  # type: ignore[no-any-return]


def _walk(run: RowPass, multipliers: Mapping[str, Multipliers], *, keep: bool) -> None:
    graph = run.relaxation.graph
    fixed = run.relaxation.fixed
    for node in reversed(graph.nodes):
        if node.name not in run.pending:
            # A multiplier may be a row that is wanted (`Sought`), so none may be lost; but where no
            # curve that varies reads the value, none is, and constraints are as good as none.
            seen = node.name in multipliers and node.name in run.relaxation.sums
            if not seen or not multipliers[node.name].value.any():
                continue
            value = multipliers[node.name].value
            zero = array_module(value).zeros((*run.shape, value.shape[1]), value.dtype)
            run.pending[node.name] = zero, None
        rows, columns = run.pending.pop(node.name)
        if node.name in multipliers or keep:
            rows, columns = widen(rows, columns, graph.sizes[node.name]), None
        if node.name in multipliers:
            rows = run.subtract(node.name, rows, multipliers[node.name])
        bent = isinstance(node.op, Elementwise | Bivariate)
        if keep and bent and not (node.name in fixed and fixed[node.name].whole):
            run.kept[node.name] = rows
        if node.name in fixed:
            rows, columns = run.end(fixed[node.name], rows, columns)
        if columns is None or len(columns):
            run.step(node, rows, columns, keep=keep)
