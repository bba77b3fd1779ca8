"""The array seam: NumPy, or CuPy on an NVIDIA GPU, behind a few functions.

Engine code never imports CuPy. It asks ``xp = array_module(x)`` for the namespace that owns an
array and calls the common names of NumPy on it; what the two libraries do not share stands here:
choosing and checking the device, moving arrays, the geometry of windows, summing columns that share
a source. All of these are deterministic (the adjoints gather, they never use atomics), so a run can
be repeated bit for bit on the same device.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from onnxcert.errors import UsageError

Array = NDArray[Any]
FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]
BoolArray = NDArray[np.bool_]

UNIT_ROUNDOFF = 2.0**-53
"""Half the distance from 1 to the next binary64 number."""

UNIT_ROUNDOFF_FLOAT32 = 2.0**-24
"""Half the distance from 1 to the next binary32 number."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """Where arrays live: ``cpu``, or ``cuda`` with the number of the card."""

    kind: str = "cpu"
    index: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"

    @property
    def xp(self) -> ModuleType:
        """The array namespace of this device."""
        return np if self.kind == "cpu" else _cupy()


def keep_freed_memory() -> None:
    """Have the C library keep freed arrays of up to 32 megabytes for the next ones.

    glibc maps large blocks and gives them back to the system, which zeroes them anew for the next
    array, until a block of that size has been freed once; then it keeps them.
    """
    np.empty(2**25 - 2**13, np.uint8)


def select_device(name: str) -> Device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device that can be used.

    ``auto`` takes the first GPU if CuPy is installed and sees one, else the CPU.

    Raises:
        UsageError: the name is none of these, or a GPU was asked for and cannot be used.
    """
    kind, _, number = name.partition(":")
    if name == "cpu":
        return Device()
    if kind not in ("auto", "cuda") or (number and (kind == "auto" or not number.isdecimal())):
        raise UsageError(f"no such device: {name!r}", help="use auto, cpu, cuda or cuda:N")
    reason, count = _count_gpus()
    index = int(number or 0)
    if index < count:
        _cupy().cuda.Device(index).use()
        return Device("cuda", index)
    if kind == "auto":
        return Device()
    reason = reason or f"there are {count} GPUs, numbered from 0"
    raise UsageError(
        f"the device {name!r} cannot be used: {reason}",
        help="install onnxcert[cuda12] or onnxcert[cuda13], or use --device cpu",
    )


def _count_gpus() -> tuple[str, int]:
    try:
        cupy = _cupy()
    except ImportError:
        return "CuPy is not installed", 0
    try:
        return "", int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"the CUDA driver says {error}", 0


def _cupy() -> ModuleType:
    import cupy  # noqa: PLC0415 - optional, and half a second to import

    return cast(ModuleType, cupy)


def array_module(*arrays: object) -> ModuleType:
    """The namespace (NumPy or CuPy) that owns the arrays."""
    for array in arrays:
        if type(array).__module__.startswith("cupy"):
            return _cupy()
    return np


def sparse_module(*arrays: object) -> ModuleType:
    """The namespace of sparse matrices (of SciPy or CuPy) for the arrays.

    It is imported here, because importing SciPy takes longer than verifying a small network.
    """
    if array_module(*arrays) is np:
        from scipy import sparse  # noqa: PLC0415
    else:
        from cupyx.scipy import sparse  # noqa: PLC0415
    return cast(ModuleType, sparse)


def to_device(array: Array, device: Device) -> Array:
    """Copy an array of the host to the device; on the CPU it is returned as it is."""
    return array if device.kind == "cpu" else cast(Array, device.xp.asarray(array))


def to_host(array: Array) -> Array:
    """Copy an array to the host; an array already there is returned as it is."""
    return array if isinstance(array, np.ndarray) else cast(Array, array.get())


def single(array: Array) -> Array:
    """An array in binary32."""
    return array.astype(np.float32)


def singles(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Arrays by name, in binary32."""
    return {name: single(array) for name, array in arrays.items()}


def cast_floats(array: Array, dtype: Any) -> Array:
    """An array of floating-point numbers in another precision, on the device where it is."""
    return array.astype(dtype) if np.issubdtype(array.dtype, np.floating) else array


@dataclass(frozen=True)
class Window:
    """Geometry of a sliding window over images of ``channels`` x ``height`` x ``width``.

    Attributes:
        image: (channels, height, width) of the input.
        kernel: (rows, columns) of the window.
        stride, dilation: per axis.
        padding: (top, left, bottom, right), zeros.
    """

    image: tuple[int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    @cached_property
    def padded(self) -> tuple[int, int]:
        """Height and width of the image with its padding."""
        top, left, bottom, right = self.padding
        return self.image[1] + top + bottom, self.image[2] + left + right

    @cached_property
    def positions(self) -> tuple[int, int]:
        """Rows and columns of window positions (the output image)."""
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        sizes = zip(self.padded, spans, self.stride, strict=True)
        height, width = ((size - span) // step + 1 for size, span, step in sizes)
        return height, width

    def crop(
        self, top: int, left: int, rows: int, columns: int
    ) -> tuple[Window, tuple[int, int]] | None:
        """The window restricted to a rectangle of its positions.

        Returns:
            The same kernel over just the pixels that those positions read, with exactly ``rows`` x
            ``columns`` positions, and the place (row, column) of its image in the old one; None
            if those positions read nothing but padding.
        """
        starts, sizes, before, after = [], [], [], []
        for axis, (first, count) in enumerate(((top, rows), (left, columns))):
            span = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            begin = first * self.stride[axis] - self.padding[axis]
            end = begin + (count - 1) * self.stride[axis] + span
            low, high = max(begin, 0), min(end, self.image[1 + axis])
            if low >= high:
                return None
            starts.append(low)
            sizes.append(high - low)
            before.append(low - begin)
            after.append(end - high)
        image = (self.image[0], sizes[0], sizes[1])
        padding = (before[0], before[1], after[0], after[1])
        window = Window(image, self.kernel, self.stride, self.dilation, padding)
        return window, (starts[0], starts[1])

    def _taps(self) -> list[tuple[slice, slice]]:
        """For each tap of the kernel, the slice of the padded image it meets at all positions."""
        taps = []
        for i in range(self.kernel[0]):
            for j in range(self.kernel[1]):
                starts = (i * self.dilation[0], j * self.dilation[1])
                rows, columns = (
                    slice(start, start + (count - 1) * step + 1, step)
                    for start, count, step in zip(starts, self.positions, self.stride, strict=True)
                )
                taps.append((rows, columns))
        return taps

    def unfold(self, images: Array) -> Array:
        """im2col: (K, channels, height, width) -> (K, channels, taps, positions)."""
        xp = array_module(images)
        top, left, _, _ = self.padding
        channels, height, width = self.image
        padded = images
        if any(self.padding):
            padded = xp.zeros((len(images), channels, *self.padded), dtype=images.dtype)
            padded[:, :, top : top + height, left : left + width] = images
        taps = self._taps()
        rows, columns = self.positions
        result = xp.empty((len(images), channels, len(taps), rows, columns), dtype=images.dtype)
        for number, (i, j) in enumerate(taps):
            result[:, :, number] = padded[:, :, i, j]
        return cast(Array, result.reshape(len(images), channels, len(taps), rows * columns))


@dataclass(frozen=True)
class Gather:
    """The map ``y[j] = x[index[j]]`` on the last axis and its adjoint; index -1 reads zero.

    The adjoint sums all ``g[j]`` that read the same source. Sources are grouped by how often
    they are read, so that each group is one gather and one sum: no scatter, no atomics.
    """

    index: IntArray
    size: int
    groups: tuple[tuple[IntArray, IntArray], ...]

    @classmethod
    def build(cls, index: IntArray, size: int) -> Gather:
        """Prepare both directions; ``size`` is the length of x."""
        index = np.asarray(index, dtype=np.int64)
        order = np.argsort(index, kind="stable")
        order = order[index[order] >= 0]
        sources, starts, counts = np.unique(index[order], return_index=True, return_counts=True)
        groups = []
        for count in np.unique(counts):
            chosen = counts == count
            table = order[starts[chosen][:, None] + np.arange(count)]
            groups.append((sources[chosen], table))
        return cls(index, size, tuple(groups))

    def to(self, device: Device) -> Gather:
        """The same map with its tables on the device."""
        groups = tuple((to_device(s, device), to_device(t, device)) for s, t in self.groups)
        return Gather(to_device(self.index, device), self.size, groups)

    def apply(self, x: Array) -> Array:
        """(K, size) -> (K, len(index))."""
        y = x[:, self.index]
        if (self.index < 0).any():
            y[:, self.index < 0] = 0
        return y

    def adjoint(self, g: Array) -> Array:
        """(K, len(index)) -> (K, size)."""
        result = array_module(g).zeros((len(g), self.size), dtype=g.dtype)
        for sources, table in self.groups:
            part = g[:, table]
            result[:, sources] = part[:, :, 0] if table.shape[1] == 1 else part.sum(axis=2)
        return cast(Array, result)


def concatenate(arrays: Sequence[Array], axis: int = 0) -> Array:
    """Join arrays of one device along an axis."""
    return cast(Array, array_module(*arrays).concatenate(arrays, axis=axis))
