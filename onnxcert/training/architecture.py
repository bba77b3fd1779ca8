"""What a network is made of: layers with their sizes, without weights.

A name such as ``2C2F`` or ``mlp:256,128`` stands for a list of layers. Convolutions keep the image
size up to their stride ("same" padding, the odd pixel after); between affine layers stands the
activation. The names of the paper (Leino, Wang, Fredrikson, ICML 2021) are its networks;
``liresnet:LxW`` is that of Hu, Zou, Wang, Leino, Fredrikson (*Unlocking deterministic robustness
certification on ImageNet*, NeurIPS 2023): L blocks ``x + C x / sqrt(L)`` of width W that are linear
but for the activation behind, so that a block is one convolution and the sum costs nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from onnxcert.errors import UsageError

Convolutions: TypeAlias = tuple[tuple[int, int, int], ...]

PAPER: dict[str, tuple[Convolutions, tuple[int, ...]]] = {
    "2C2F": (((16, 4, 2), (32, 4, 2)), (100,)),
    "4C3F": (((32, 3, 1), (32, 4, 2), (64, 3, 1), (64, 4, 2)), (512, 512)),
    "6C2F": (
        ((32, 3, 1), (32, 3, 1), (32, 4, 2), (64, 3, 1), (64, 3, 1), (64, 4, 2)),
        (512,),
    ),
    "8C2F": (
        (
            ((64, 3, 1),) * 2
            + ((64, 4, 2),)
            + ((128, 3, 1),) * 2
            + ((128, 4, 2), (256, 3, 1), (256, 4, 2))
        ),
        (256,),
    ),
}
"""(channels, kernel, stride) of the convolutions, and the widths of the dense layers behind."""

EXAMPLES = (*PAPER, "mlp:256,128", "liresnet:4x32")


@dataclass(frozen=True)
class Dense:
    """``y = W x + b``, from ``inputs`` to ``outputs`` numbers."""

    inputs: int
    outputs: int

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(outputs, inputs)."""
        return (self.outputs, self.inputs)

    @property
    def size(self) -> int:
        """How many numbers come out."""
        return self.outputs


@dataclass(frozen=True)
class Conv:
    """A convolution with zero padding.

    Attributes:
        shape: (channels, height, width) of what comes in.
        channels: that come out; kernel: its side; stride: in both directions.
        residual: the share of the kernel that is added to the identity; None where it stands
            alone.
    """

    shape: tuple[int, int, int]
    channels: int
    kernel: int
    stride: int
    residual: float | None = None

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(channels out, channels in, kernel, kernel)."""
        return (self.channels, self.shape[0], self.kernel, self.kernel)

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Pixels above, left, below and right."""
        before, after = [], []
        for side in self.shape[1:]:
            total = max((-(-side // self.stride) - 1) * self.stride + self.kernel - side, 0)
            before.append(total // 2)
            after.append(total - total // 2)
        return (*before, *after)  # type: ignore[return-value]

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what comes out."""
        height, width = (-(-side // self.stride) for side in self.shape[1:])
        return (self.channels, height, width)

    @property
    def size(self) -> int:
        """How many numbers come out."""
        return math.prod(self.output_shape)


Layer: TypeAlias = Dense | Conv


@dataclass(frozen=True)
class Architecture:
    """A network without its weights.

    Attributes:
        name: as it was asked for.
        input_shape: of one input.
        layers: affine; the activation stands between them. Images become rows before the first
            dense one.
        activation: ``minmax`` or ``relu``.
    """

    name: str
    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    activation: str

    @property
    def classes(self) -> int:
        """How many logits there are."""
        return self.layers[-1].size

    @classmethod
    def of(
        cls, name: str, input_shape: Sequence[int], classes: int, activation: str
    ) -> Architecture:
        """Look up a name.

        Args:
            name: one of the paper's, ``mlp:WIDTH,...`` or ``liresnet:BLOCKSxWIDTH``.
            input_shape: of one input: channels, height and width for convolutions, or height and
                width for a single channel.
            classes: how many logits.
            activation: ``minmax`` or ``relu``.

        Raises:
            UsageError: there is no such network, or it does not fit the inputs.
        """
        shape = tuple(int(side) for side in input_shape)
        kind, _, rest = name.partition(":")
        if kind == "mlp":
            layers: list[Layer] = _dense([math.prod(shape), *_widths(rest, name), classes])
        elif kind == "liresnet":
            layers = _liresnet(*_blocks(rest, name), _image(shape, name), classes)
        elif name in PAPER:
            convolutions, widths = PAPER[name]
            layers = _stacked(convolutions, _image(shape, name))
            layers += _dense([layers[-1].size, *widths, classes])
        else:
            raise _unknown(name)
        made = cls(name, shape, tuple(layers), activation)
        made._check()
        return made

    def _check(self) -> None:
        if self.activation != "minmax":
            return
        for layer in self.layers[:-1]:
            width = layer.outputs if isinstance(layer, Dense) else layer.channels
            if width % 2:
                raise UsageError(
                    f"MinMax sorts pairs, and {self.name} has a layer of {width}",
                    help="use even widths, or the activation relu",
                )


def _dense(widths: Sequence[int]) -> list[Layer]:
    return [Dense(n, m) for n, m in pairwise(widths)]


def _stacked(convolutions: Convolutions, shape: tuple[int, int, int]) -> list[Layer]:
    layers: list[Layer] = []
    for channels, kernel, stride in convolutions:
        layer = Conv(shape, channels, kernel, stride)
        layers.append(layer)
        shape = layer.output_shape
    return layers


def _liresnet(blocks: int, width: int, shape: tuple[int, int, int], classes: int) -> list[Layer]:
    stem = Conv(shape, width, 5, 2)
    share = 1.0 / math.sqrt(blocks)
    body = Conv(stem.output_shape, width, 3, 1, residual=share)
    neck = Conv(stem.output_shape, 2 * width, 4, 4)
    return [stem, *[body] * blocks, neck, *_dense([neck.size, 512, classes])]


def _image(shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    whole = (1, *shape) if len(shape) == 2 else shape
    if len(whole) != 3:
        raise UsageError(
            f"{name} takes images, and one input has shape {list(shape)}",
            help="store x as (N, channels, height, width), or use mlp:256,128",
        )
    return (whole[0], whole[1], whole[2])


def _widths(text: str, name: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d{0,4}(,[1-9]\d{0,4})*", text):
        raise _unknown(name)
    return [int(part) for part in text.split(",")]


def _blocks(text: str, name: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,2})x([1-9]\d{0,3})", text)
    if found is None:
        raise _unknown(name)
    return int(found[1]), int(found[2])


def _unknown(name: str) -> UsageError:
    return UsageError(f"there is no network {name!r}", help=f"for example {', '.join(EXAMPLES)}")
