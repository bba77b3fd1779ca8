"""A whole specification, and the exact test that decides whether values are a counterexample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from onnxcert.arrays import FloatArray, IntArray
from onnxcert.errors import UsageError
from onnxcert.spec.tree import (
    And,
    Atom,
    Formula,
    Leaf,
    Network,
    Or,
    Tensor,
    TensorKind,
    Variable,
    atoms,
    fold,
)

Values: TypeAlias = Mapping[str, ArrayLike]
Decimals: TypeAlias = Mapping[str, Mapping[int, Fraction]]
"""Tensor name -> flat index -> the exact value where it is no floating-point number."""


@dataclass(frozen=True, eq=False)
class Query:
    """Are there values of the declared tensors that satisfy all assertions?

    Attributes:
        version: of VNN-LIB, such as ``1.0`` or ``2.1``; decides the form of a witness.
        networks: in the order of declaration.
        assertions: all must hold.
        source: the file, or a word for where the query comes from; used in messages.
    """

    version: str
    networks: tuple[Network, ...]
    assertions: tuple[Formula, ...]
    source: str = "<query>"

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """All declared tensors; ``Variable.tensor`` counts in this order."""
        return tuple(tensor for network in self.networks for tensor in network.tensors)

    def of_kind(self, *kinds: TensorKind) -> tuple[Tensor, ...]:
        """The tensors of some kinds, kind by kind: as flat vectors have them."""
        return tuple(tensor for kind in kinds for tensor in self.tensors if tensor.kind == kind)

    @cached_property
    def is_linear(self) -> bool:
        """Whether no assertion multiplies variables."""
        return all(atom.polynomial.is_linear for atom in atoms(self.assertions))

    def label(self, variable: Variable) -> str:
        """The variable as the file writes it: ``X_3`` or ``X[0,3]``."""
        tensor = self.tensors[variable.tensor]
        if self.version == "1.0":
            return f"{tensor.name}_{variable.element}"
        return tensor.label(variable.element)

    def product(self, variables: Sequence[Variable]) -> str:
        """A product of variables, as in ``X[0]*X[0]*Y[1]``."""
        return "*".join(map(self.label, variables))

    def holds(self, values: Values, decimals: Decimals | None = None) -> bool:
        """Whether the values satisfy every assertion, with no tolerance at all.

        Floating-point values are exact rationals, and the comparisons are evaluated over the
        rationals. Infinite and undefined values satisfy nothing.

        Args:
            values: by name of the tensor, any shape with the declared number of elements.
            decimals: exact values that replace some of those, where no float is exact.

        Raises:
            UsageError: a tensor that the assertions mention has no value, or the wrong size.
        """
        point = _Point(self.tensors, values, decimals or {})
        if not all(np.isfinite(array).all() for array in point.arrays.values()):
            return False
        return all(fold(formula, point.leaf, _combine) for formula in self.assertions)


def _combine(node: And | Or, results: list[bool]) -> bool:
    return all(results) if isinstance(node, And) else any(results)


def _as_doubles(tensor: Tensor, values: ArrayLike) -> FloatArray:
    """The values as float64, which must not round them."""
    array = np.asarray(values).ravel()
    if array.size != tensor.size:
        raise UsageError(f"{tensor.name} has {tensor.size} elements, {array.size} were given")
    is_small_float = array.dtype.kind == "f" and array.dtype.itemsize <= 8
    is_small_integer = array.dtype.kind in "iub" and not (np.abs(array) > 2**53).any()
    if not (is_small_float or is_small_integer):
        raise UsageError(f"the values of {tensor.name} are not exact in float64: {array.dtype}")
    return array.astype(np.float64)


class _Point:
    """Exact values of variables, converted when they are first asked for."""

    def __init__(self, tensors: Sequence[Tensor], values: Values, decimals: Decimals) -> None:
        self.tensors = tensors
        self.arrays: dict[int, FloatArray] = {}
        for position, tensor in enumerate(tensors):
            if tensor.name in values:
                self.arrays[position] = _as_doubles(tensor, values[tensor.name])
        self.known = {
            Variable(position, index): value
            for position, tensor in enumerate(tensors)
            for index, value in decimals.get(tensor.name, {}).items()
        }
        self.rounded = frozenset(self.known)

    def array(self, tensor: int) -> FloatArray:
        if tensor not in self.arrays:
            raise UsageError(f"no values were given for {self.tensors[tensor].name}")
        return self.arrays[tensor]

    def value(self, variable: Variable) -> Fraction:
        exact = self.known.get(variable)
        if exact is None:
            exact = Fraction(self.array(variable.tensor)[variable.element].item())
            self.known[variable] = exact
        return exact

    def leaf(self, leaf: Leaf) -> bool:
        value_of: Callable[[Variable], Fraction] = self.value
        if isinstance(leaf, Atom):
            return leaf.holds(value_of)
        rounded = np.zeros(len(leaf.columns), np.bool_)
        if self.rounded:
            pairs = map(tuple, leaf.columns.tolist())
            rounded = np.array([Variable(*pair) in self.rounded for pair in pairs], np.bool_)
        return leaf.holds(self._columns(leaf.columns), rounded, value_of)

    def _columns(self, columns: IntArray) -> FloatArray:
        point = np.empty(len(columns))
        for tensor in np.unique(columns[:, 0]):
            chosen = columns[:, 0] == tensor
            point[chosen] = self.array(int(tensor))[columns[chosen, 1]]
        return point
