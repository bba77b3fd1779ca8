"""Conv and ConvTranspose in one and two dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcert.arrays import FloatArray, Window
from onnxcert.frontend.rules.registry import Call, reads
from onnxcert.frontend.tensors import NoRule, Operand, Tensor
from onnxcert.ops import Adjoint, Convolution

Pair = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """The attributes that convolutions and poolings share, always in two dimensions.

    Attributes:
        spatial: height and width of the input; one dimension is a height of one.
        kernel, stride, dilation: per axis.
        before, after: explicit padding per axis.
        automatic: ``NOTSET``, ``VALID``, ``SAME_UPPER`` or ``SAME_LOWER``.
        dimensions: 1 or 2, as in the file.
    """

    spatial: Pair
    kernel: Pair
    stride: Pair
    dilation: Pair
    before: Pair
    after: Pair
    automatic: str
    dimensions: int

    @classmethod
    def read(cls, call: Call, shape: tuple[int, ...], kernel: tuple[int, ...]) -> Geometry:
        """Read the attributes of a node whose input has the shape (N, C, ...).

        Raises:
            NoRule: three or more dimensions.
            ValueError: attributes that do not fit the shape.
        """
        dimensions = len(shape) - 2
        if dimensions not in (1, 2):
            raise NoRule(f"{dimensions}-dimensional images")
        if len(kernel) != dimensions or min(kernel) < 1:
            raise ValueError(f"kernel {kernel} for a tensor of shape {shape}")
        pads = [int(n) for n in call.attributes.get("pads", [0] * 2 * dimensions)]
        steps = {
            name: [int(n) for n in call.attributes.get(name, [1] * dimensions)]
            for name in ("strides", "dilations")
        }
        if any(len(values) != dimensions or min(values) < 1 for values in steps.values()):
            raise ValueError("strides or dilations that are not positive")
        if len(pads) != 2 * dimensions:
            raise ValueError(f"{len(pads)} amounts of padding")
        automatic = str(call.attributes.get("auto_pad", "NOTSET") or "NOTSET")
        if automatic not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
            raise ValueError(f"auto_pad={automatic}")

        def pair(values: list[int] | tuple[int, ...], missing: int) -> Pair:
            return (missing, values[0]) if dimensions == 1 else (values[0], values[1])

        return cls(
            pair(shape[2:], 1),
            pair(kernel, 1),
            pair(steps["strides"], 1),
            pair(steps["dilations"], 1),
            pair(pads[:dimensions], 0),
            pair(pads[dimensions:], 0),
            automatic,
            dimensions,
        )

    @property
    def span(self) -> Pair:
        """Rows and columns that a dilated window covers."""
        rows, columns = (d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))
        return rows, columns

    def padding(self) -> tuple[Pair, Pair]:
        """(before, after) with ``auto_pad`` worked out.

        Raises:
            NoRule: negative padding.
        """
        if self.automatic == "VALID":
            return (0, 0), (0, 0)
        before, after = self.before, self.after
        if self.automatic != "NOTSET":
            totals = [
                max(0, (-(-size // step) - 1) * step + span - size)
                for size, step, span in zip(self.spatial, self.stride, self.span, strict=True)
            ]
            before, after = split_padding(totals, self.automatic)
        if min(before + after) < 0:
            raise NoRule("negative padding")
        return before, after


def split_padding(totals: list[int], automatic: str) -> tuple[Pair, Pair]:
    """Share out a total per axis; the odd one goes after with SAME_UPPER, before with
    SAME_LOWER.
    """
    small = (totals[0] // 2, totals[1] // 2)
    large = (totals[0] - small[0], totals[1] - small[1])
    return (large, small) if automatic == "SAME_LOWER" else (small, large)


def checked_window(channels: int, geometry: Geometry, before: Pair, after: Pair) -> Window:
    """The window of a geometry.

    Raises:
        ValueError: the window is larger than the padded image.
    """
    window = Window(
        (channels, *geometry.spatial),
        geometry.kernel,
        geometry.stride,
        geometry.dilation,
        (*before, *after),
    )
    if any(span > size for span, size in zip(geometry.span, window.padded, strict=True)):
        raise ValueError(f"a window of {geometry.span} on an image of {window.padded}")
    return window


def image_shape(images: int, channels: int, positions: Pair, dimensions: int) -> tuple[int, ...]:
    """(N, C, H, W), or (N, C, W) in one dimension."""
    return (images, channels, *positions[2 - dimensions :])


@reads("Conv", note="1-d and 2-d, constant weights")
def convolution(call: Call) -> Operand:
    """Cross-correlation, with groups."""
    tensor = call.tensor(0)
    weight = call.numbers(1, "the weight")
    groups = int(call.attributes.get("group", 1))
    channels = _check_channels(tensor, weight, groups)
    geometry = Geometry.read(call, tensor.shape, weight.shape[2:])
    if groups * weight.shape[1] != channels or weight.shape[0] % groups:
        raise ValueError(f"{channels} channels, weight {weight.shape}, {groups} groups")
    window = checked_window(channels, geometry, *geometry.padding())
    per_group = weight.shape[0] // groups
    op = Convolution(
        np.ascontiguousarray(weight.reshape(groups, per_group, -1)),
        window,
        call.numbers(2, "the bias") if call.has(2) else None,
        tensor.shape[0],
    )
    made = call.build.apply(op, call.build.flat(tensor))
    shape = image_shape(tensor.shape[0], weight.shape[0], window.positions, geometry.dimensions)
    return Tensor.whole(made, shape)


def _check_channels(tensor: Tensor, weight: FloatArray, groups: int) -> int:
    if len(tensor.shape) < 3 or len(weight.shape) != len(tensor.shape) or groups < 1:
        raise ValueError(f"input {tensor.shape}, weight {weight.shape}, {groups} groups")
    return tensor.shape[1]


@reads("ConvTranspose", note="1-d and 2-d, constant weights")
def transposed_convolution(call: Call) -> Operand:
    """The adjoint of the convolution from the output image to the input image."""
    tensor = call.tensor(0)
    weight = call.numbers(1, "the weight")
    groups = int(call.attributes.get("group", 1))
    channels = _check_channels(tensor, weight, groups)
    if weight.shape[0] != channels or channels % groups:
        raise ValueError(f"{channels} channels, weight {weight.shape}, {groups} groups")
    geometry = Geometry.read(call, tensor.shape, weight.shape[2:])
    output, before, after = _transposed_output(call, geometry)
    outputs = groups * weight.shape[1]
    window = Window(
        (outputs, *output),
        geometry.kernel,
        geometry.stride,
        geometry.dilation,
        (*before, *after),
    )
    if window.positions != geometry.spatial:
        raise NoRule("output_padding as large as the stride")
    kernels = np.ascontiguousarray(weight.reshape(groups, channels // groups, -1))
    offset = None
    if call.has(2):
        bias = np.repeat(call.numbers(2, "the bias"), output[0] * output[1])
        offset = np.tile(bias, tensor.shape[0])
    op = Adjoint(Convolution(kernels, window, None, tensor.shape[0]), offset)
    made = call.build.apply(op, call.build.flat(tensor))
    return Tensor.whole(made, image_shape(tensor.shape[0], outputs, output, geometry.dimensions))


def _transposed_output(call: Call, geometry: Geometry) -> tuple[Pair, Pair, Pair]:
    """Height and width of the output, and the padding before and after that it crops."""
    extra = [int(n) for n in call.attributes.get("output_padding", [0] * geometry.dimensions)]
    extra = [0] * (2 - len(extra)) + extra
    full = [
        step * (size - 1) + more + span
        for size, step, more, span in zip(
            geometry.spatial, geometry.stride, extra, geometry.span, strict=True
        )
    ]
    wanted = [int(n) for n in call.attributes.get("output_shape", [])][-geometry.dimensions :]
    before, after = geometry.before, geometry.after
    if wanted or geometry.automatic.startswith("SAME"):
        if not wanted:
            wanted = [s * n for s, n in zip(geometry.stride, geometry.spatial, strict=True)]
        else:
            wanted = [1] * (2 - len(wanted)) + wanted
        totals = [max(0, size - target) for size, target in zip(full, wanted, strict=True)]
        # Unlike everywhere else, only SAME_UPPER puts the odd one after the image.
        rest = "SAME_UPPER" if geometry.automatic == "SAME_UPPER" else "SAME_LOWER"
        before, after = split_padding(totals, rest)
    elif geometry.automatic == "VALID":
        before = after = (0, 0)
    if min(before + after) < 0:
        raise NoRule("negative padding")
    height, width = (
        size - first - last for size, first, last in zip(full, before, after, strict=True)
    )
    if wanted and [height, width] != wanted:
        raise NoRule(f"output_shape={wanted} beyond the image")
    if min(height, width) < 1:
        raise ValueError("an empty output")
    return (height, width), before, after
