"""Products of matrices, of which one is constant or both are computed."""

from __future__ import annotations

import math

import numpy as np

from onnxcert.arrays import Array, FloatArray
from onnxcert.frontend.builder import Builder
from onnxcert.frontend.rules.registry import Call, reads
from onnxcert.frontend.tensors import Constant, NoRule, Operand, Shape, Tensor
from onnxcert.ops import Linear, SparseLinear
from onnxcert.ops.sparse import pays_sparse

_MOST_PRODUCTS = 1 << 20
"""Products of two computed numbers in one product of matrices: each is a pair of planes."""


def matrix_product(build: Builder, rows: Tensor, weight: Constant, scale: float = 1.0) -> Tensor:
    """``scale`` X W for X of r x k and W of k x m; a tensor of r x m.

    The density is measured in the element type of the file, so that a matrix of zeros never
    exists in float64.
    """
    matrix = weight.array
    if matrix.ndim != 2 or rows.shape[1:] != matrix.shape[:1]:
        raise ValueError(f"a product of shapes {rows.shape} and {matrix.shape}")
    op: Linear | SparseLinear
    entries = _entries_if_sparse(matrix) if rows.shape[0] == 1 else None
    if entries is not None:
        row, column = entries
        values = scale * Constant(matrix[row, column]).numbers
        op = SparseLinear(row, column, values, (matrix.shape[0], matrix.shape[1]))
    else:
        numbers = np.ascontiguousarray(weight.numbers)
        op = Linear(numbers if scale == 1.0 else scale * numbers, None, rows.shape[0])
    name = build.apply(op, build.flat(rows))
    return Tensor.whole(name, (rows.shape[0], matrix.shape[1]))


def _entries_if_sparse(matrix: Array) -> tuple[Array, Array] | None:
    if not pays_sparse(matrix.size, int(np.count_nonzero(matrix))):
        return None
    row, column = np.nonzero(matrix)
    return row, column


def _reshaped(build: Builder, tensor: Tensor, shape: Shape) -> Tensor:
    return build.moved([tensor], lambda x: x.reshape(shape))


def _swapped(build: Builder, tensor: Tensor) -> Tensor:
    """Exchange the last two axes."""
    return build.moved([tensor], lambda x: np.swapaxes(x, -1, -2))


@reads("MatMul")
def matmul(call: Call) -> Operand:
    """NumPy's product: the last two axes, the others broadcast."""
    build = call.build
    first, second = call.operand(0), call.operand(1)
    a, b = first.shape, second.shape
    if not a or not b:
        raise ValueError("a product with a scalar")
    shape = (*np.broadcast_shapes(a[:-2], b[:-2]), *a[-2:-1], *(b[-1:] if len(b) > 1 else ()))
    if len(a) == 1:
        first = build.rearrange([first], lambda x: x[None, :])
    if len(b) == 1:
        second = build.rearrange([second], lambda x: x[:, None])
    if isinstance(first, Tensor) and isinstance(second, Constant):
        return _reshaped(build, _times(build, first, second.array), shape)
    if isinstance(first, Constant) and isinstance(second, Tensor):
        # W X = (X^T W^T)^T
        weight = np.swapaxes(first.array, -1, -2)
        product = _swapped(build, _times(build, _swapped(build, second), weight))
        return _reshaped(build, product, shape)
    assert isinstance(first, Tensor)  # constants are folded
    assert isinstance(second, Tensor)
    return _reshaped(build, computed_product(build, first, second), shape)


def computed_product(build: Builder, first: Tensor, second: Tensor) -> Tensor:
    """X Y for computed X (.., m, k) and Y (.., k, l), leading axes broadcast.

    ``C_ij = sum_k X_ik Y_kj`` as products of two numbers and sums of k of them. An executor adds
    them up in any order, and may fuse a product with an addition.

    Raises:
        NoRule: it would be more than `_MOST_PRODUCTS` products.
    """
    (*lead, m, depth), (*others, height, width) = first.shape, second.shape
    if depth != height:
        raise ValueError(f"a product of shapes {first.shape} and {second.shape}")
    shared = np.broadcast_shapes(tuple(lead), tuple(others))
    count = math.prod((*shared, m, width))
    if count * depth > _MOST_PRODUCTS:
        raise NoRule(f"{count * depth} products of two computed numbers")
    if not count * depth:
        raise ValueError("a product of empty matrices")
    rows = build.moved([first], lambda x: x[..., :, None, :])
    columns = build.moved([second], lambda y: np.swapaxes(y, -1, -2)[..., None, :, :])
    products = build.product(rows, columns)
    if depth == 1:
        return _reshaped(build, products, (*shared, m, width))
    total = Linear(np.ones((depth, 1)), None, count)
    return Tensor.whole(build.apply(total, build.flat(products)), (*shared, m, width))


def _times(build: Builder, tensor: Tensor, weight: Array) -> Tensor:
    """X W with both of two axes at least; the result may lack leading axes of length one."""
    *stack, height, width = weight.shape
    if all(n == 1 for n in stack):
        rows = _reshaped(build, tensor, (-1, tensor.shape[-1]))
        product = matrix_product(build, rows, Constant(weight.reshape(height, width)))
        return _reshaped(build, product, (*tensor.shape[:-1], width))
    shared = np.broadcast_shapes(tensor.shape[:-2], tuple(stack))
    matrices = np.broadcast_to(weight, (*shared, height, width)).reshape(-1, height, width)
    wide = build.broadcast(tensor, (*shared, *tensor.shape[-2:]))
    layers = _reshaped(build, wide, (len(matrices), *tensor.shape[-2:]))
    parts = [
        matrix_product(build, build.moved([layers], lambda x, i=i: x[i]), Constant(matrix))
        for i, matrix in enumerate(matrices)
    ]
    joined = build.moved(parts, lambda *items: np.stack(items))
    return _reshaped(build, joined, (*shared, tensor.shape[-2], width))


@reads("Gemm", since=7)
def gemm(call: Call) -> Operand:
    """alpha A' B' + beta C, where ' is an optional transposition."""
    build = call.build
    alpha = float(call.attributes.get("alpha", 1.0))
    turned = [bool(call.attributes.get(name, 0)) for name in ("transA", "transB")]
    first, second = (
        build.rearrange([call.operand(i)], np.transpose) if turn else call.operand(i)
        for i, turn in enumerate(turned)
    )
    terms = first.shape[-1]
    if isinstance(first, Tensor) and isinstance(second, Constant):
        product = matrix_product(build, first, second, alpha)
    elif isinstance(first, Constant) and isinstance(second, Tensor):
        flipped = _swapped(build, second)
        product = matrix_product(build, flipped, Constant(first.array.T), alpha)
        product = _swapped(build, product)
    elif isinstance(first, Constant):
        raise NoRule("only C depends on the input")
    else:
        assert isinstance(second, Tensor)
        product = computed_product(build, first, second)
        product = build.scale(product, np.array(alpha), None)
    return _with_offset(call, product, terms)


def _with_offset(call: Call, product: Tensor, terms: int) -> Tensor:
    """Add beta C, with which the executor may begin each sum of ``terms`` products."""
    if not call.has(2):
        return product
    beta = np.array(float(call.attributes.get("beta", 1.0)))
    offset = call.operand(2)
    if isinstance(offset, Constant):
        numbers: FloatArray = offset.numbers if beta == 1.0 else beta * offset.numbers
        return call.build.scale(product, None, numbers)
    offset = call.build.scale(offset, beta, None)
    return call.build.sum([product, offset], (1, 1), roundings=terms + 2)
