"""Products that leave zeros out, in the search and in the checker, against dense ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.checker import bands as checker_bands
from onnxcert.ops import BandedLinear, bands
from tests.strategies import seeds


def matrix(draw: Callable[..., Any], dtype: Any) -> np.ndarray:
    """Whole numbers, in some blocks, so that sums are exact in any order."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(seeds))
    made = np.zeros((height, width), dtype)
    for _ in range(draw(st.integers(0, 3))):
        a, c = rng.integers(height), rng.integers(width)
        block = made[a : a + rng.integers(1, 12), c : c + rng.integers(1, 12)]
        block[...] = rng.integers(-3, 4, block.shape)
    return made


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@given(data=st.data())
def test_products_are_those_of_the_matrix(dtype: Any, data: st.DataObject) -> None:
    dense = matrix(data.draw, dtype)
    rng = np.random.default_rng(data.draw(seeds))
    rows, values = (rng.integers(-3, 4, (5, n)).astype(dtype) for n in dense.shape)
    width, gap = data.draw(st.sampled_from([1, 3, 64])), data.draw(st.sampled_from([1, 4]))
    with (
        mock.patch.multiple(bands, _BAND=width, _GAP=gap),
        mock.patch.multiple(checker_bands, _WIDTH=width, _GAP=gap, _SMALLEST=1),
    ):
        found, checked = bands.Bands.of(dense), checker_bands.Bands(dense)
        products = found.after(rows), checked.after(rows)
        others = found.before(values), checked.before(values)
    for made in products:
        assert made.dtype == dtype
        assert np.array_equal(made, rows @ dense)
    for made in others:
        assert np.array_equal(made, values @ dense.T)
    onto = np.arange(5.0 * dense.shape[1]).reshape(5, -1).astype(dtype)
    for way in (found, checked):
        total = onto.copy()
        way.add_after(rows, total)
        assert np.array_equal(total, onto + rows @ dense)


def test_what_pays() -> None:
    diagonal, full = np.eye(300), np.ones((300, 300))
    assert bands.Bands.of(diagonal).pays
    assert not bands.Bands.of(full).pays
    assert not bands.Bands.of(full[:, :1]).pays
    nothing = bands.Bands.of(np.zeros((300, 200)))
    assert not nothing.after(np.ones((2, 300))).any()
    assert not nothing.before(np.ones((2, 200))).any()


def test_the_operator_leaves_out_what_is_zero() -> None:
    """NaN where nothing is read would show."""
    op, _ = BandedLinear.examples(np.random.default_rng(0))
    x = np.full((1, 192), np.nan)
    x[:, :80] = 1.0
    assert np.isfinite(op.apply([x])[:, :64]).all()
    rows = np.full((1, 128), np.nan)
    rows[:, :64] = 1.0
    assert np.isfinite(op.transpose(rows)[0][:, :80]).all()
