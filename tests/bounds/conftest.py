"""What all tests of bounds share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Bounds of what overflows are infinite or not numbers on the way, as in the verifier."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        yield
