"""Sums, products, quotients and whole powers of computed values."""

from __future__ import annotations

import numpy as np

from onnxcert.frontend.rules.registry import Call, reads
from onnxcert.frontend.tensors import Constant, NoRule, Operand, Tensor
from onnxcert.ops import Power, Reciprocal
from onnxcert.ops.power import MOST


@reads("Add", since=7, whole=True)
def add(call: Call) -> Operand:
    """x + y, broadcast."""
    return _sum([call.operand(0), call.operand(1)], (1, 1), call)


@reads("Sub", since=7, whole=True)
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


@reads("Mul", since=7)
def multiply(call: Call) -> Operand:
    """x c or x y, broadcast; the product of a value with itself is a square."""
    first, second = call.operand(0), call.operand(1)
    if isinstance(first, Constant):
        first, second = second, first
    if isinstance(first, Tensor) and isinstance(second, Constant):
        return call.build.scale(first, second.numbers, None)
    assert isinstance(first, Tensor)  # constants are folded
    assert isinstance(second, Tensor)
    return call.build.product(first, second)


@reads("Div", since=7)
def divide(call: Call) -> Operand:
    """x / c as the product with 1 / c, which is rounded once; `Scale` accounts for that.

    c / y is the product of c with the reciprocal of y, which is taken before it is broadcast.
    """
    first, second = call.operand(0), call.operand(1)
    if isinstance(second, Constant):
        divisor = second.numbers
        if (divisor == 0.0).any():
            raise ValueError("division by zero")
        return call.build.scale(call.tensor(0), 1.0 / divisor, None)
    if isinstance(first, Constant):
        inverse = call.build.elementwise(second, Reciprocal)
        return call.build.scale(inverse, first.numbers, None)
    return call.build.quotient(first, second)


@reads("Reciprocal")
def reciprocal(call: Call) -> Operand:
    """1 / x."""
    return call.build.elementwise(call.tensor(0), Reciprocal)


@reads("Pow", since=7, note="constant whole exponent other than zero")
def power(call: Call) -> Operand:
    """x^n, and for negative n the reciprocal of x^-n."""
    exponents = call.numbers(1, "the exponent")
    exponent = float(exponents.flat[0]) if exponents.size else 1.0
    if (exponents != exponent).any() or exponent != round(exponent) or exponent == 0.0:
        raise NoRule("a power that is not the same whole number for all entries, or is zero")
    if abs(exponent) > MOST:
        raise NoRule(f"a power of more than {MOST}")
    build, operand = call.build, call.tensor(0)
    operand = build.broadcast(operand, np.broadcast_shapes(operand.shape, exponents.shape))
    factors = abs(int(exponent))
    if factors > 1:
        operand = build.elementwise(operand, lambda size: Power(size, factors))
    return operand if exponent > 0 else build.elementwise(operand, Reciprocal)
