"""The start-up test: is the arithmetic of this process what the rules assume?

Rounding to nearest or at least to a neighbour, no flushing of small numbers, and matrix products
that are sums of products in some order: no algorithm that subtracts large intermediate sums
(Strassen, Winograd), no products in fewer bits.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from onnxcert.checker.errors import Unusable


@cache
def test() -> None:
    """Test once per process.

    Raises:
        Unusable: an assumption does not hold.
    """
    one, tiny = np.float64(1.0), np.float64(2.0**-1074)
    if (one + 2.0**-53, one - 2.0**-54, tiny * 0.75) != (1.0, 1.0, tiny):
        raise Unusable("float64 arithmetic does not round to nearest")
    if not (np.array([2.0**-1022]) * 0.5 == 2.0**-1023).all():
        raise Unusable("small numbers are flushed to zero")
    for rows, depth, columns in ((3, 5, 7), (64, 64, 64), (130, 300, 90), (1, 1000, 1)):
        # Rows of very different size: a sum that mixes them loses the small ones.
        scale = 2.0 ** (_scattered(rows, 1) % 80 - 40)
        a, b = (_scattered(*shape) % 2**21 - 2**20 for shape in ((rows, depth), (depth, columns)))
        # NumPy multiplies integers slowly; what mixes rows spoils more than it spares.
        some = slice(None, None, 1 + rows // 64)
        if not np.array_equal(((scale * a) @ b.astype(float))[some], scale[some] * (a[some] @ b)):
            raise Unusable("matrix products are not sums of products in float64")


def _scattered(rows: int, columns: int) -> NDArray[np.int64]:
    """Integers that look random; to load numpy.random would take longer than the test."""
    numbers = np.arange(1, rows * columns + 1, dtype=np.int64) * 2_654_435_761 % 2**32
    return (numbers >> 8).reshape(rows, columns)
