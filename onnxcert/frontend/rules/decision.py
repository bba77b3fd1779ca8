"""Comparisons, truths and the place of an extremum: composites of Sign, Relu and sums.

A truth is 0 or 1. Where numbers are compared, the sign of a difference decides, which is exact but
jumps: on a range with zero inside it may be anything. Of whole numbers it is taken half a unit
away from zero, or replaced by a curve that is right for these, so that roundings do not matter.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxcert.arrays import Array
from onnxcert.frontend.builder import Builder
from onnxcert.frontend.rules.registry import Call, normal_axis, reads
from onnxcert.frontend.tensors import Constant, NoRule, Operand, Tensor, checked_size
from onnxcert.ops import Absolute, Linear, Relu, Sign

_MOST_PAIRS = 1 << 16
"""Of entries that ArgMax compares."""


_COMPARISONS: dict[str, Callable[..., Array]] = {
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
}


@reads(*_COMPARISONS, since=7, whole=True, makes="b")
def compare(call: Call) -> Operand:
    """x == y, x > y and the like; inputs that may have one value only count as constants.

    relu(sign(x - y)) for x > y, and 1 less that of y - x for x >= y; 1 - |sign(x - y)| for x == y,
    and relu(1 - |x - y|) of whole numbers.
    """
    build, operator = call.build, call.operator
    x, y = (build.fixed(call.operand(i)) for i in range(2))
    if isinstance(x, Constant) and isinstance(y, Constant):
        return Constant(_COMPARISONS[operator](x.numbers, y.numbers))
    if operator in ("Less", "GreaterOrEqual"):
        x, y = y, x
    gap = build.difference(x, y)
    if operator == "Equal":
        return build.is_zero(gap) if build.is_whole(gap) else _not(build, _apart(build, gap))
    if build.is_whole(gap):
        gap = build.scale(gap, None, np.array(-0.5), roundings=0)
    above = build.elementwise(build.elementwise(gap, Sign), Relu)
    return above if operator in ("Greater", "Less") else _not(build, above)


def _apart(build: Builder, gap: Tensor) -> Tensor:
    return build.elementwise(build.elementwise(gap, Sign), Absolute)


@reads("Not", whole=True, makes="b")
def negation(call: Call) -> Operand:
    """1 - x."""
    return _not(call.build, call.tensor(0))


def _not(build: Builder, truth: Tensor) -> Tensor:
    return build.scale(truth, np.array(-1.0), np.array(1.0), roundings=0)


@reads("And", "Or", since=7, whole=True, makes="b")
def junction(call: Call) -> Operand:
    """relu(x + y - 1), and 1 - relu(1 - x - y)."""
    build = call.build
    pair = [build.computed(call.operand(i)) for i in range(2)]
    if call.operator == "And":
        return build.all_of(pair)
    return _not(build, build.all_of([_not(build, x) for x in pair]))


@reads("ArgMax", "ArgMin", makes="i", note="of few entries")
def extremum(call: Call) -> Operand:
    """The place of the first (or last) largest or smallest entry.

    Of entries i < j, j is the place rather than i where r = [x_j > x_i], or [x_j >= x_i] if the
    last one counts; r = relu(sign(x_j - x_i)), or 1 - relu(sign(x_i - x_j)). So i is the place
    where relu(1 - (sum of r over pairs (i, j)) - (sum of 1 - r over pairs (j, i))) is 1.
    """
    build, tensor = call.build, call.tensor(0)
    axis = normal_axis(call.attributes.get("axis", 0), len(tensor.shape))
    last, count = bool(call.attributes.get("select_last_index", 0)), tensor.shape[axis]
    kept = tuple(1 if i == axis else n for i, n in enumerate(tensor.shape))
    shape = kept if call.attributes.get("keepdims", 1) else kept[:axis] + kept[axis + 1 :]
    if count == 0:
        raise ValueError("the place of an extremum among nothing")
    rest = tensor.index.size // count
    checked_size((rest, count, count))
    if count == 1:
        return Constant(np.zeros(shape, np.int64))
    first, second = np.triu_indices(count, 1)
    if len(first) * rest > _MOST_PAIRS:
        raise NoRule(f"more than {_MOST_PAIRS} pairs of entries are compared")
    lines = build.moved([tensor], lambda x: np.moveaxis(x, axis, -1).reshape(rest, count))
    i, j = (build.moved([lines], lambda x, at=at: x[:, at]) for at in (first, second))
    smallest = call.operator == "ArgMin"
    # x_j - x_i for the first largest; the last one of two equal ones counts if it is not less.
    upper, lower = (i, j) if smallest != last else (j, i)
    above = build.elementwise(build.elementwise(build.difference(upper, lower), Sign), Relu)
    each = np.arange(len(first))
    weight, offset = np.zeros((len(first), count)), np.zeros(count)
    sign = -1.0 if last else 1.0  # r is above, or 1 less that
    weight[each, first], weight[each, second] = -sign, sign
    np.add.at(offset, first if last else second, -1.0)
    places = build.apply(Linear(weight, offset + 1.0, rest), build.flat(above), roundings=0)
    chosen = build.elementwise(Tensor.whole(places, (rest, count)), Relu)
    numbers = Linear(np.arange(float(count))[:, None], None, rest)
    return Tensor.whole(build.apply(numbers, build.flat(chosen), roundings=0), shape)
