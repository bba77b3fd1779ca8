"""The table of rules: which ONNX operators are read, from which version on, and by what.

Exporters write dozens of operator versions, but few of them differ in meaning. A rule therefore
says the oldest version whose form it reads (attributes or inputs alike), and only models with a
node older than that go through ONNX's version converter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from onnxcert.arrays import Array, FloatArray
from onnxcert.frontend.builder import Builder
from onnxcert.frontend.tables import Table
from onnxcert.frontend.tensors import Constant, NoRule, Operand, Tensor


@dataclass(frozen=True, eq=False)
class Call:
    """One node of the file as its rule sees it.

    Attributes:
        operator: the ONNX operator.
        version: the oldest operator set with this version of it.
        attributes: name -> int, float, str, list or array.
        inputs: what is read; None for an optional input that is left out.
        kinds: of each input, whether it is computed as floating-point numbers ("f", also for what
            is not computed), as whole numbers ("i") or as truths ("b"), which are 0 or 1.
        outputs: how many outputs the node has.
        build: where to put what it becomes.
    """

    operator: str
    version: int
    attributes: Mapping[str, Any]
    inputs: tuple[Operand | None, ...]
    kinds: tuple[str, ...]
    outputs: int
    build: Builder

    def has(self, position: int) -> bool:
        """Whether the input is there."""
        return position < len(self.inputs) and self.inputs[position] is not None

    def operand(self, position: int) -> Operand:
        """The input, known or computed.

        Raises:
            ValueError: it is left out.
        """
        found = self.inputs[position] if position < len(self.inputs) else None
        if found is None:
            raise ValueError(f"input {position} is missing")
        return found

    def tensor(self, position: int) -> Tensor:
        """The input, which must depend on the input of the model.

        Raises:
            NoRule: it is a constant.
        """
        found = self.operand(position)
        if isinstance(found, Constant):
            raise NoRule(f"input {position} is a constant")
        return found

    def constant(self, position: int, meaning: str) -> Array:
        """The input's value, which must be known.

        Raises:
            NoRule: it depends on the input of the model; ``meaning`` says what it is.
        """
        found = self.operand(position)
        if isinstance(found, Tensor):
            raise NoRule(f"{meaning} depends on the input")
        return found.array

    def numbers(self, position: int, meaning: str) -> FloatArray:
        """As `constant`, in float64 and finite."""
        return Constant(self.constant(position, meaning)).numbers

    def integers(self, position: int, attribute: str) -> list[int] | None:
        """Integers that are an input in newer versions and an attribute in older ones.

        None if they are neither.
        """
        if self.has(position):
            return [int(value) for value in self.constant(position, attribute).ravel()]
        value = self.attributes.get(attribute)
        return None if value is None else [int(item) for item in np.atleast_1d(value)]

    def refuse(self, attribute: str, *allowed: object) -> None:
        """Refuse any value of an attribute but the allowed ones; the first is the default.

        Raises:
            NoRule: it has another value.
        """
        value = self.attributes.get(attribute, allowed[0])
        if value not in allowed:
            raise NoRule(f"{attribute}={value}")


Rule = Callable[[Call], Operand | Table | Sequence[Operand]]
_Rule = TypeVar("_Rule", bound=Rule)


@dataclass(frozen=True)
class Entry:
    """A rule and what it covers.

    Attributes:
        rule: the function.
        since: the oldest operator version whose form it reads.
        moves: whether it takes constants too; other rules only see nodes that compute something.
        whole: whether it takes whole numbers and truths that are computed.
        makes: whole numbers ("i") or truths ("b"), whatever it reads; empty for what it reads.
        note: what is not covered, for the table of supported operators.
    """

    rule: Rule
    since: int
    moves: bool
    whole: bool
    makes: str
    note: str


RULES: dict[str, Entry] = {}
"""ONNX operator of the default domain -> its rule."""


def reads(
    *operators: str,
    since: int = 1,
    moves: bool = False,
    whole: bool = False,
    makes: str = "",
    note: str = "",
) -> Callable[[_Rule], _Rule]:
    """Decorate a rule with the operators it reads; the arguments are those of `Entry`."""

    def enter(rule: _Rule) -> _Rule:
        for operator in operators:
            RULES[operator] = Entry(rule, since, moves, moves or whole, makes, note)
        return rule

    return enter


def normal_axis(axis: int, rank: int) -> int:
    """Count a negative axis from the end.

    Raises:
        ValueError: there is no such axis.
    """
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} of a tensor with {rank} axes")
    return axis % rank
