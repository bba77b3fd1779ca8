"""Sums of computed values, and products with constants."""

from __future__ import annotations

import numpy as np

from onnxcert.frontend.rules.registry import Call, reads
from onnxcert.frontend.tensors import Constant, NoRule, Operand, Tensor


@reads("Add", since=7)
def add(call: Call) -> Operand:
    """x + y, broadcast."""
    return _sum([call.operand(0), call.operand(1)], (1, 1), call)


@reads("Sub", since=7)
def subtract(call: Call) -> Operand:
    """x - y, broadcast."""
    return _sum([call.operand(0), call.operand(1)], (1, -1), call)


@reads("Sum")
def total(call: Call) -> Operand:
    """The sum of any number of values, broadcast."""
    operands = [call.operand(i) for i in range(len(call.inputs))]
    return _sum(operands, (1,) * len(operands), call)


@reads("Mean")
def mean(call: Call) -> Operand:
    """The mean of any number of values, broadcast."""
    operands = [call.operand(i) for i in range(len(call.inputs))]
    summed = _sum(operands, (1,) * len(operands), call)
    return call.build.scale(summed, np.array(1.0 / len(operands)), None)


def _sum(operands: list[Operand], signs: tuple[int, ...], call: Call) -> Tensor:
    """Computed values first, then each constant as an offset: constants are not added up, so
    that nothing is rounded here.

    An executor may add up in another order, so each piece is charged with all roundings.
    """
    build = call.build
    # Two operands are told from the graph: a constant behind a product may be its bias.
    roundings = len(operands) - 1 if len(operands) > 2 else None
    pairs = list(zip(operands, signs, strict=True))
    computed = [(operand, sign) for operand, sign in pairs if isinstance(operand, Tensor)]
    if len(computed) == 1:
        ((result, sign),) = computed
        result = result if sign > 0 else build.negative(result)
    else:
        tensors = [tensor for tensor, _ in computed]
        result = build.sum(tensors, [sign for _, sign in computed], roundings=roundings)
    for operand, sign in pairs:
        if isinstance(operand, Constant):
            result = build.scale(result, None, sign * operand.numbers, roundings=roundings)
    return result


@reads("Neg")
def negative(call: Call) -> Operand:
    """-x."""
    return call.build.negative(call.tensor(0))


@reads("Mul", since=7, note="by a constant")
def multiply(call: Call) -> Operand:
    """x c, broadcast."""
    first, second = call.operand(0), call.operand(1)
    if isinstance(first, Constant):
        first, second = second, first
    if isinstance(first, Tensor) and isinstance(second, Constant):
        return call.build.scale(first, second.numbers, None)
    raise NoRule("product of two computed values")


@reads("Div", since=7, note="by a constant")
def divide(call: Call) -> Operand:
    """x / c as the product with 1 / c, which is rounded once; `Scale` accounts for that."""
    divisor = call.numbers(1, "the divisor")
    if (divisor == 0.0).any():
        raise ValueError("division by zero")
    return call.build.scale(call.tensor(0), 1.0 / divisor, None)


@reads("Pow", since=7, note="with exponent 1")
def power(call: Call) -> Operand:
    """x^1."""
    exponent = call.numbers(1, "the exponent")
    if (exponent != 1.0).any():
        raise NoRule("power other than one")
    operand = call.tensor(0)
    return call.build.broadcast(operand, np.broadcast_shapes(operand.shape, exponent.shape))
