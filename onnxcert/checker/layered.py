"""Forms over a folded network (rule R22), pulled back in one block.

A form over a layer of a folded network is a row over the inputs and all neurons before. Every layer
on the way back takes the part over its neurons through their lines (R4) and adds what it makes of
it to what lies before (R2, R3), in place. A coefficient is a sum of products, one for each neuron
that reads the scalar, in some order; these are counted by what `Bounder.gamma` is made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxcert.checker.bands import Bands
from onnxcert.checker.coefficients import times
from onnxcert.checker.curves import Array


@dataclass(frozen=True, eq=False)
class Layer:
    """Scalars that read the inputs and all neurons before, with a relu on each.

    Attributes:
        weight, offset: (n, inputs + neurons before) and (n,).
    """

    weight: Array
    offset: Array

    @cached_property
    def bands(self) -> Bands:
        """Where the weight is not zero."""
        return Bands(self.weight)


@dataclass(frozen=True, eq=False)
class Layered:
    """A folded network without its outputs: blocks of sums and relus by turns, behind the inputs.

    Attributes:
        layers: in order; that with number i is block 2 i + 1, and its relus are the next block.
        slopes: for each layer (2, n, neurons before) booleans: the slope of the lower lines that
            rows of lower and of upper bounds take at unstable relus. Empty for the default.
    """

    layers: Sequence[Layer]
    slopes: Sequence[Array]

    def number(self, k: int) -> int | None:
        """Which layer a block of sums is; None for the outputs."""
        return k // 2 if k % 2 and k // 2 < len(self.layers) else None

    def pull(
        self, lines: Mapping[int, Sequence[Array]], number: int, index: Array, sign: Array
    ) -> tuple[Array, Array, Array]:
        """Pull forms ``sign * scalar`` of a layer back: indices and signs (B, R).

        Args:
            lines: block of relus -> mean and half difference of slopes and of offsets, the last
                with what rounding may cost, (B, n) or (1, n) each.

        Returns:
            Rows over the inputs (B, R, n_in), what is added to the constants of the forms on the
            way (B, R), and the sizes of all that is added to them, summed up (B, R).
        """
        shape, numbers, layer = index.shape, index.ravel(), self.layers[number]
        rows = layer.weight[numbers] * sign.reshape(-1, 1)
        own = self.slopes[number][(sign.ravel() < 0).astype(int), numbers] if self.slopes else None
        constant, size = np.zeros(shape), np.zeros(shape)
        before = self.layers[:number]
        longest = max((len(other.offset) for other in before), default=0)
        scratch, end = np.empty((2, len(rows) * longest)), rows.shape[1]
        inputs = end - sum(len(other.offset) for other in before)
        for i in range(number - 1, -1, -1):
            first = end - len(before[i].offset)
            mean, half, middle, gap = lines[2 * i + 2]
            part = rows[:, first:end].reshape(*shape, -1)
            negative, other = (some[: part.size].reshape(part.shape) for some in scratch)
            np.minimum(part, 0.0, out=negative)
            np.subtract(part, negative, out=other)
            lower, upper = mean - half, (mean + half)[:, None]
            added = [times(other, middle - gap), times(negative, middle + gap)]
            if own is None:
                other *= lower[:, None]
            else:
                # A row > 0 may take either y >= 0 or y >= z, which have no offset, as the default
                # line has none; others go by the upper line. A stable relu has one line.
                bent = (upper > 0) & (upper < 1)
                mine = own[:, first - inputs : end - inputs].reshape(part.shape)
                other *= (mine & bent) | ((lower > 0)[:, None] & ~bent)
            negative *= upper
            other += negative
            added.append(other @ before[i].offset)
            constant, size = constant + sum(added), size + sum(map(abs, added))
            before[i].bands.add_after(other.reshape(len(rows), -1), rows[:, :first])
            end = first
        return rows[:, :inputs].reshape(*shape, -1), constant, size
