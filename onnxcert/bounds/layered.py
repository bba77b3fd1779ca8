"""Backward rows over a folded network, all of them in one block.

A folded network (`onnxcert.bounds.folding`) has layers of which each reads the inputs and all relus
before it. Pulled back node by node (`onnxcert.bounds.backward`), rows over relus that many layers
read are added up layer by layer in arrays of their own, which takes as long as the products. Here a
row is one vector over the inputs and all neurons before its layer, and every layer on the way back
adds what it makes of its neurons to what lies before them, in place.

Rounding. A coefficient is a sum of products, at most one for each neuron behind it and one more, in
some order. With N neurons in all it is off by ``gamma_(N + 1)`` of the sum of their sizes, which
the rounding vectors of the layers charge if they count that many roundings
(`Relaxation.extra_roundings`); partial sums that meet need no charge of their own then.

Rows in binary32, with products of at most 256 rows at a time and their errors charged, take two
fifths of the time. But the bounds of layers are wider by 0.1 % then, learned slopes
(`onnxcert.bounds.row_slopes`) are others than the checker's, and for cifar_biasfield 23 it did not
accept 2 of 304 leaves; to prove these again took longer than all that was gained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from onnxcert.arrays import Array, array_module
from onnxcert.bounds.backward import SLACK, Relaxation
from onnxcert.ops import BandedLinear


@dataclass(frozen=True, eq=False)
class Layer:
    """A pre-activation of a folded network, which reads the inputs and the relus before it.

    Attributes:
        name, relu: of the value, and of the relu that reads it.
        sums: what it makes of the inputs and all neurons before.
    """

    name: str
    relu: str
    sums: BandedLinear


@dataclass(frozen=True, eq=False)
class Layered:
    """A folded network.

    Attributes:
        inputs: how many there are.
        layers: in order.
        slopes: pre-activation -> (2, n, neurons before) booleans: the slopes, 0 or 1, that its rows
            for lower and for upper bounds take below unstable relus. Empty where all rows take the
            default.
    """

    inputs: int
    layers: tuple[Layer, ...]
    slopes: Mapping[str, Array]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {layer.name: number for number, layer in enumerate(self.layers)}

    @property
    def neurons(self) -> int:
        """How many there are."""
        return sum(layer.sums.output_size for layer in self.layers)

    def covers(self, name: str, relaxation: Relaxation) -> bool:
        """Whether rows of single neurons of a value are pulled back here.

        Not where much of a value hardly varies: rows over that end (`onnxcert.bounds.backward`).
        """
        return name in self._places and not relaxation.fixed

    def pull_back_units(
        self, relaxation: Relaxation, start: str, index: Array, sign: Array
    ) -> Array:
        """Lower bounds of ``sign * value[index]``: (B, R) indices and signs -> (B, R) bounds.

        Args:
            relaxation: of the network, which counts its neurons as `extra_roundings`.
            start: the pre-activation.
        """
        xp, shape, number = array_module(index), index.shape, self._places[start]
        layer, before = self.layers[number], self.layers[:number]
        numbers = index.ravel()
        rows = layer.sums.weight[numbers]
        rows *= sign.reshape(-1, 1)
        constant = sign * layer.sums.offset[index]
        error = relaxation.error_of(start)
        if error is not None:
            error = xp.broadcast_to(error, (len(index), error.shape[1]))
            constant = constant - SLACK * xp.take_along_axis(error, index, axis=1)
        own = None
        if start in self.slopes:
            own = self.slopes[start][(sign.ravel() < 0).astype(int), numbers]
        longest = max((other.sums.output_size for other in before), default=0)
        scratch, end = xp.empty((2, len(rows) * longest)), rows.shape[1]
        for other in reversed(before):
            first = end - other.sums.output_size
            part = rows[:, first:end].reshape(*shape, -1)
            below, above = (some[: part.size].reshape(part.shape) for some in scratch)
            # Rows take lower lines where they are positive, and upper ones where not.
            xp.minimum(part, 0.0, out=below)
            xp.subtract(part, below, out=above)
            curve = relaxation.curves[other.relu]
            lower, upper = curve.mean - curve.half, (curve.mean + curve.half)[:, None]
            constant = constant + _dot(above, curve.mean_offset - curve.half_offset)
            constant = constant + _dot(below, curve.mean_offset + curve.half_offset)
            if own is None:
                above *= lower[:, None]
            else:
                bent = (upper > 0) & (upper < 1)
                mine = own[:, first - self.inputs : end - self.inputs].reshape(part.shape)
                # Truth values take an eighth of the memory that slopes do, and either is below.
                above *= (mine & bent) | ((lower > 0)[:, None] & ~bent)
            below *= upper
            above += below
            constant = constant + above @ other.sums.offset
            other.sums.bands.add_after(above.reshape(len(rows), -1), rows[:, :first])
            end = first
        over = rows[:, : self.inputs].reshape(*shape, -1)
        center, radius = relaxation.center_and_radius
        constant = constant + _dot(over, center) - _dot(abs(over), radius)
        found: Array = xp.nan_to_num(constant, nan=-xp.inf, posinf=-xp.inf, neginf=-xp.inf)
        return found


def _dot(rows: Array, vector: Array) -> Array:
    """Rows (B, R, n) times vectors (B, n), or (1, n): (B, R)."""
    product: Array = rows @ vector[0] if len(vector) == 1 else (rows @ vector[:, :, None])[:, :, 0]
    return product
