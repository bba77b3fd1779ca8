"""Softmax: shares of exponentials.

With differences, no product and no quotient of two computed values is needed,

    exp(x_i) / sum_j exp(x_j) = 1 / (1 + sum over j != i of exp(x_j - x_i)),

the greatest common shift of all x is gone before anything is estimated, and nothing overflows
where it matters: an infinite sum makes a share of zero.

Executions. No executor works like this, so the steps make no roundings, and what executors round is
charged at the end. They compute t_j = x_j - max x <= 0 or leave it out, e_j = exp(t_j), the sum of
these and a quotient or the product with a reciprocal. Let u be the unit roundoff, p_i the real
share, m the length, and let an exponential be off by c units. The rounding of t_j changes e_j by a
factor within 1 +- 1.01 u |t_j|, and p_j |t_j| <= exp(t_j) |t_j| <= 1/e, so that it changes the sum
by m u / e at most in proportion and p_i by that and another u / e. With m roundings of the sum and
c + 2 of the rest twice, the share is off by at most u (2 m + 2 c + 5); `_EXTRA` covers c = 32.
"""

from __future__ import annotations

import numpy as np

from onnxcert.frontend.builder import Builder
from onnxcert.frontend.rules.registry import Call, normal_axis, reads
from onnxcert.frontend.tensors import Constant, NoRule, Operand, Tensor
from onnxcert.ops import Exp, Linear, Reciprocal, Scale

_EXTRA = 80
"""Roundings of a share beside two for each entry of the sum."""

_MOST_DIFFERENCES = 1 << 22

_FLAT_BEFORE = 13
"""Versions before this one treat all axes from the given one on as one."""


@reads("Softmax")
def softmax(call: Call) -> Operand:
    """Shares along an axis."""
    tensor, move = call.tensor(0), call.build.moved
    rank = len(tensor.shape)
    flat = call.version < _FLAT_BEFORE
    axis = normal_axis(int(call.attributes.get("axis", 1 if flat else -1)), rank)
    order = list(range(rank)) if flat else [*(i for i in range(rank) if i != axis), axis]
    turned = move([tensor], lambda x: x.transpose(order))
    length = int(np.prod(tensor.shape[axis:] if flat else tensor.shape[axis]))
    if length < 1:
        raise ValueError("shares of nothing")
    if length == 1:
        return Constant(np.ones(tensor.shape))
    shares = _shares(call.build, move([turned], lambda x: x.reshape(-1, length)))
    return move([shares], lambda x: x.reshape(turned.shape).transpose(np.argsort(order)))


def _shares(build: Builder, rows: Tensor) -> Tensor:
    """Shares along the rows of (r, m), in the same shape."""
    count, length = rows.shape
    if count * length * (length - 1) > _MOST_DIFFERENCES:
        raise NoRule(f"{count} times {length} shares")
    others = np.array([[j for j in range(length) if j != i] for i in range(length)])
    other = build.moved([rows], lambda x: x[:, others])
    own = build.moved([rows], lambda x: np.repeat(x[:, :, None], length - 1, axis=2))
    powers = build.elementwise(build.sum([other, own], [1, -1], roundings=0), Exp)
    size = count * length
    total = Linear(np.ones((length - 1, 1)), np.ones(1), size)
    made = Tensor.whole(build.apply(total, build.flat(powers), roundings=0), rows.shape)
    shares = build.elementwise(made, Reciprocal)
    executed = Scale(size, None, np.zeros(size), np.ones(size))
    name = build.apply(executed, build.flat(shares), roundings=2 * length + _EXTRA)
    build.shares[name] = rows
    return Tensor.whole(name, rows.shape)
