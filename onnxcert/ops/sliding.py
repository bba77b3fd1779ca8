"""Products with a sliding window, forward and transposed, over many images at once.

The padded image is cut into cells as large as the stride. Pixels at one place of their cell (a
phase) form a small image on which the window moves by one, so that a tap of the kernel meets, at
all positions, one contiguous run of the flat small image: im2col is a few long copies, and what it
copies beyond the end of a row is dropped afterwards. The transpose is either the same thing with
the kernel turned round, one set of outputs per phase (a strided transpose is several of stride
one), or products first and then long sums (col2im); the smaller buffer decides. Products are one
BLAS call per image and group, so a result does not depend on which images share a call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np

from onnxcert.arrays import Array, Window, array_module

_CHUNK_NUMBERS = 1 << 17
"""Numbers in one buffer on the host: one megabyte, so that its neighbours stay in cache."""

_DEVICE_NUMBERS = 1 << 26
"""The same where launching a kernel costs more than memory does."""

_SUM = 2
"""What adding a number to another costs, in copies of one."""

Pair = tuple[int, int]


@dataclass(frozen=True)
class Cells:
    """A window's geometry in cells.

    Attributes:
        window: the window.
    """

    window: Window

    @cached_property
    def taps(self) -> list[tuple[int, Pair]]:
        """For each tap the number of its phase, and by how many cells it is shifted."""
        (sy, sx), (dy, dx) = self.window.stride, self.window.dilation
        rows, columns = self.window.kernel
        places = [(i * dy, j * dx) for i in range(rows) for j in range(columns)]
        return [(self.phases.index((y % sy, x % sx)), (y // sy, x // sx)) for y, x in places]

    @cached_property
    def phases(self) -> list[Pair]:
        """Places in a cell that some tap meets."""
        axes = zip(self.window.kernel, self.window.dilation, self.window.stride, strict=True)
        rows, columns = (sorted({i * d % s for i in range(k)}) for k, d, s in axes)
        return [(y, x) for y in rows for x in columns]

    @cached_property
    def reach(self) -> Pair:
        """The largest shifts."""
        return max(y for _, (y, _) in self.taps), max(x for _, (_, x) in self.taps)

    @cached_property
    def size(self) -> Pair:
        """Rows and columns of cells that are met."""
        (rows, columns), (down, right) = self.window.positions, self.reach
        return rows + down, columns + right

    @cached_property
    def pixels(self) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
        """For each phase its pixels in the image, and their cells."""
        result = []
        for phase in self.phases:
            image, cells = [], []
            for axis in range(2):
                step, before = self.window.stride[axis], self.window.padding[axis]
                first = (phase[axis] - before) % step
                cell = (first + before) // step
                count = min(
                    -((first - self.window.image[1 + axis]) // step), self.size[axis] - cell
                )
                count = max(count, 0)
                image.append(slice(first, first + step * count, step))
                cells.append(slice(cell, cell + count))
            result.append(((image[0], image[1]), (cells[0], cells[1])))
        return result

    @cached_property
    def used(self) -> tuple[slice, slice]:
        """Rows and columns of cells that have pixels."""
        met = [cells for _, cells in self.pixels if all(part.start < part.stop for part in cells)]
        rows, columns = (
            slice(
                min((c[a].start for c in met), default=0), max((c[a].stop for c in met), default=0)
            )
            for a in range(2)
        )
        return rows, columns

    @cached_property
    def covered(self) -> bool:
        """Whether every pixel is in some cell that is met."""
        sizes = [
            (cells[0].stop - cells[0].start) * (cells[1].stop - cells[1].start)
            for _, cells in self.pixels
        ]
        return int(sum(sizes)) == self.window.image[1] * self.window.image[2]


class Correlation:
    """The product of a kernel with what a window sees, at every position.

    Args:
        weight: (groups, outputs per group, inputs per group x taps).
        window: the geometry.
    """

    def __init__(self, weight: Array, window: Window) -> None:
        self.weight = weight
        self.window = window
        self.cells = Cells(window)
        # The zeros left of a row serve the row above as well.
        (rows, columns), (_, right) = self.cells.size, self.cells.reach
        left = window.padding[1] // window.stride[1]
        end = -(-(window.padding[1] + window.image[2]) // window.stride[1])
        self.width = columns - max(0, min(left, columns - end, right))
        self.run_length = window.positions[0] * self.width
        self.flat = rows * self.width + right

    def __call__(self, images: Array) -> Array:
        """(K, channels, height, width) -> (K, outputs x positions)."""
        xp, cells = array_module(images), self.cells
        groups, outputs, fan_in = self.weight.shape
        channels, taps = self.window.image[0], len(cells.taps)
        rows, columns = self.window.positions
        dtype = np.result_type(images.dtype, self.weight.dtype)
        result = xp.empty((len(images), groups * outputs, rows, columns), dtype=dtype)
        step = _step(images, channels * taps * self.run_length)
        padded = xp.zeros((step, channels, len(cells.phases), self.flat), dtype=images.dtype)
        grid = padded[..., : cells.size[0] * self.width].reshape(
            step, channels, len(cells.phases), cells.size[0], self.width
        )
        unfolded = xp.empty((step, channels, taps, self.run_length), dtype=images.dtype)
        product = xp.empty((step, groups, outputs, self.run_length), dtype=dtype)
        for start in range(0, len(images), step):
            part = images[start : start + step]
            count = len(part)
            for phase, ((y, x), (i, j)) in enumerate(cells.pixels):
                grid[:count, :, phase, i, j] = part[:, :, y, x]
            for tap, (phase, (down, right)) in enumerate(cells.taps):
                first = down * self.width + right
                unfolded[:count, :, tap] = padded[:count, :, phase, first : first + self.run_length]
            seen = unfolded[:count].reshape(count, groups, fan_in, -1)
            found = xp.matmul(self.weight, seen, out=product[:count])
            found = found.reshape(count, groups * outputs, rows, self.width)
            result[start : start + count] = found[..., :columns]
        return cast(Array, result.reshape(len(images), -1))


class Transposition:
    """The transpose of a `Correlation`, with the same arguments."""

    def __init__(self, weight: Array, window: Window) -> None:
        self.window = window
        self.cells = Cells(window)
        self.groups, self.per_group, fan_in = weight.shape
        taps = len(self.cells.taps)
        self.channels = fan_in // taps * self.groups
        self.shifts = sorted({shift for _, shift in self.cells.taps})
        height, width = window.positions
        (down, right), (rows, columns) = self.cells.reach, self.cells.used
        # The zeros left of a row serve the row above as well.
        self.left = max(right - columns.start, columns.stop - width, 0)
        self.above = max(down - rows.start, 0)
        self.pitch = width + self.left
        self.run_length = (rows.stop - rows.start) * self.pitch
        outputs = self.groups * self.per_group
        gathered = outputs * len(self.shifts) * self.run_length
        scattered = self.channels * taps * height * self.cells.size[1]
        self.gathers = gathered <= (1 + _SUM) * scattered
        self.numbers = max(gathered if self.gathers else scattered, outputs * height * width)
        self.weight = self._turned(weight) if self.gathers else weight.transpose(0, 2, 1)

    def _turned(self, weight: Array) -> Array:
        """(groups, inputs per group x phases, outputs per group x shifts)."""
        xp = array_module(weight)
        taps, phases = self.cells.taps, len(self.cells.phases)
        inputs = self.channels // self.groups
        old = weight.reshape(self.groups, self.per_group, inputs, len(taps))
        shape = (self.groups, inputs, phases, self.per_group, len(self.shifts))
        new = xp.zeros(shape, dtype=weight.dtype)
        for tap, (phase, shift) in enumerate(taps):
            new[:, :, phase, :, self.shifts.index(shift)] = old[..., tap].transpose(0, 2, 1)
        return cast(Array, new.reshape(self.groups, inputs * phases, -1))

    def __call__(self, rows: Array) -> Array:
        """(K, outputs, positions) -> (K, channels x height x width)."""
        xp = array_module(rows)
        dtype = np.result_type(rows.dtype, self.weight.dtype)
        shape = (len(rows), *self.window.image)
        # Where phases stand for all pixels, every number is written.
        result = (xp.empty if self.cells.covered else xp.zeros)(shape, dtype=dtype)
        if self.run_length == 0:  # the window sees nothing but padding
            return cast(Array, result.reshape(len(rows), -1))
        step = _step(rows, self.numbers)
        run = self._gather(step, rows) if self.gathers else self._scatter(step, rows)
        origin = [part.start if self.gathers else 0 for part in self.cells.used]
        for start in range(0, len(rows), step):
            found = run(rows[start : start + step])
            part = result[start : start + step]
            for phase, (pixels, cells) in enumerate(self.cells.pixels):
                i, j = (slice(c.start - o, c.stop - o) for c, o in zip(cells, origin, strict=True))
                part[:, :, pixels[0], pixels[1]] = found[:, :, phase, i, j]
        return cast(Array, result.reshape(len(rows), -1))

    def _gather(self, step: int, rows: Array) -> Callable[[Array], Array]:
        """Each cell that has pixels collects from the positions that meet it."""
        xp = array_module(rows)
        height, width = self.window.positions
        top, left = self.cells.used[0].start, self.cells.used[1].start
        below = max(self.cells.used[0].stop - height, 0)
        outputs, inputs = self.groups * self.per_group, self.weight.shape[1]
        body, first = height * self.pitch, self.above * self.pitch + self.left
        padded = xp.zeros((step, outputs, first + body + below * self.pitch + left), rows.dtype)
        inner = padded[..., first : first + body].reshape(step, outputs, height, self.pitch)
        unfolded = xp.empty((step, outputs, len(self.shifts), self.run_length), rows.dtype)
        dtype = np.result_type(rows.dtype, self.weight.dtype)
        product = xp.empty((step, self.groups, inputs, self.run_length), dtype)
        shape = (self.channels, len(self.cells.phases), -1, self.pitch)

        def run(part: Array) -> Array:
            count = len(part)
            inner[:count, ..., :width] = part.reshape(count, outputs, height, width)
            for number, (y, x) in enumerate(self.shifts):
                start = first + (top - y) * self.pitch + left - x
                unfolded[:count, :, number] = padded[:count, :, start : start + self.run_length]
            seen = unfolded[:count].reshape(count, self.groups, -1, self.run_length)
            found = xp.matmul(self.weight, seen, out=product[:count])
            return cast(Array, found.reshape(count, *shape))

        return run

    def _scatter(self, step: int, rows: Array) -> Callable[[Array], Array]:
        """Each position adds to the cells that it meets."""
        xp, (down, right) = array_module(rows), self.cells.reach
        height, width = self.window.positions
        outputs, inputs = self.groups * self.per_group, self.weight.shape[1]
        row = width + right
        body = height * row
        widened = xp.zeros((step, outputs, height, row), rows.dtype)
        dtype = np.result_type(rows.dtype, self.weight.dtype)
        product = xp.empty((step, self.groups, inputs, body), dtype)
        shape = (self.channels, len(self.cells.phases))
        sums = xp.empty((step, *shape, body + down * row + right), dtype)

        def run(part: Array) -> Array:
            count = len(part)
            widened[:count, ..., :width] = part.reshape(count, outputs, height, width)
            columns = widened[:count].reshape(count, self.groups, self.per_group, body)
            found = xp.matmul(self.weight, columns, out=product[:count])
            found = found.reshape(count, self.channels, len(self.cells.taps), body)
            sums[:count] = 0.0
            for tap, (phase, (y, x)) in enumerate(self.cells.taps):
                first = y * row + x
                sums[:count, :, phase, first : first + body] += found[:, :, tap]
            found = sums[:count, ..., : body + down * row]
            return cast(Array, found.reshape(count, *shape, height + down, row))

        return run


def _step(images: Array, numbers: int) -> int:
    """How many images a buffer holds that takes as many numbers for each."""
    most = _CHUNK_NUMBERS if isinstance(images, np.ndarray) else _DEVICE_NUMBERS
    return max(1, min(len(images), most // max(1, numbers)))
