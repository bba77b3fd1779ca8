"""The start-up test: is the arithmetic of this process what the rules assume?

Rounding to nearest or at least to a neighbour, no flushing of small numbers, and matrix products
that are sums of products in some order: no algorithm that subtracts large intermediate sums
(Strassen, Winograd), no products in fewer bits.
"""

from __future__ import annotations

from functools import cache

import numpy as np

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
    rng = np.random.default_rng(0)
    for shape in ((3, 5, 7), (64, 64, 64), (130, 300, 90), (1, 1000, 1)):
        # Rows of very different size: a sum that mixes them loses the small ones.
        scale = 2.0 ** rng.integers(-40, 40, size=shape[0])[:, None]
        a = rng.integers(-(2**20), 2**20, size=shape[:2]).astype(np.float64)
        b = rng.integers(-(2**20), 2**20, size=shape[1:]).astype(np.float64)
        exact = a.astype(np.int64) @ b.astype(np.int64)
        if not np.array_equal((scale * a) @ b, scale * exact):
            raise Unusable("matrix products are not sums of products in float64")
