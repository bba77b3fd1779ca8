"""Affine operators against their definitions, written out with loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onnxcert.arrays import Array, Gather, Window
from onnxcert.ops import Adjoint, Convolution, Linear, Scale, Select, SparseLinear, sliding
from tests.strategies import seeds


@st.composite
def windows(draw: st.DrawFn, channels: int) -> Window:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    window = Window(
        (channels, draw(st.integers(1, 6)), draw(st.integers(1, 6))),
        pair(1, 3),
        pair(1, 3),
        pair(1, 2),
        (*pair(0, 2), *pair(0, 2)),
    )
    spans = [d * (k - 1) + 1 for d, k in zip(window.dilation, window.kernel, strict=True)]
    assume(all(span <= size for span, size in zip(spans, window.padded, strict=True)))
    return window


def naive_convolution(op: Convolution, image: Array) -> Array:
    """The sum in the ONNX definition of Conv, term by term."""
    window, (groups, per_group, fan_in) = op.window, op.weight.shape
    rows, columns = window.positions
    members = window.image[0] // groups
    weight = op.weight.reshape(groups, per_group, members, *window.kernel)
    result = np.zeros((groups * per_group, rows, columns))
    for out, row, column in np.ndindex(result.shape):
        group, member = divmod(out, per_group)
        total = 0.0 if op.offset is None else op.offset[out]
        for channel, i, j in np.ndindex(members, *window.kernel):
            y = row * window.stride[0] + i * window.dilation[0] - window.padding[0]
            x = column * window.stride[1] + j * window.dilation[1] - window.padding[1]
            if 0 <= y < window.image[1] and 0 <= x < window.image[2]:
                pixel = image[group * members + channel, y, x]
                total += weight[group, member, channel, i, j] * pixel
        result[out, row, column] = total
    assert fan_in == members * window.kernel[0] * window.kernel[1]
    return result


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Convolution, np.random.Generator]:
    groups, members, per_group = (draw(st.integers(1, 2)) for _ in range(3))
    window = draw(windows(groups * members))
    rng = np.random.default_rng(draw(seeds))
    taps = window.kernel[0] * window.kernel[1]
    weight = rng.integers(-9, 9, size=(groups, per_group, members * taps)).astype(float)
    offset = rng.integers(-9, 9, size=groups * per_group).astype(float)
    images = draw(st.integers(1, 2))
    return Convolution(weight, window, offset if draw(st.booleans()) else None, images), rng


@given(drawn=convolutions())
def test_convolution(drawn: tuple[Convolution, np.random.Generator]) -> None:
    op, rng = drawn
    x = rng.integers(-9, 9, size=(2, op.images, *op.window.image)).astype(float)
    expected = [[naive_convolution(op, image) for image in sample] for sample in x]
    result = op.forward([x.reshape(2, -1)])
    np.testing.assert_array_equal(result, np.array(expected).reshape(2, -1))


@given(drawn=convolutions())
def test_transposed_convolution_and_its_narrow_rows(
    drawn: tuple[Convolution, np.random.Generator],
) -> None:
    op, rng = drawn
    unit = np.eye(op.input_sizes[0])
    linear = op.apply([unit])  # (n, m): column i is the image of the i-th pixel
    rows = rng.integers(-9, 9, size=(3, op.output_size)).astype(float)
    np.testing.assert_array_equal(op.transpose(rows)[0], rows @ linear.T)
    np.testing.assert_array_equal(Adjoint(op).forward([rows]), rows @ linear.T)
    columns = np.unique(rng.integers(op.output_size, size=4))
    rows[:, np.setdiff1d(np.arange(op.output_size), columns)] = 0.0
    ((values, sources),) = op.transpose_on(rows[:, columns], columns)
    dense = np.zeros((3, op.input_sizes[0]))
    dense[:, slice(None) if sources is None else sources] = values
    np.testing.assert_array_equal(dense, rows @ linear.T)


def test_convolution_in_chunks_is_the_convolution(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    op = Convolution.examples(rng)[0]
    x = rng.normal(size=(7, op.input_sizes[0]))
    whole, back = op.forward([x]), op.transpose(op.forward([x]))[0]
    monkeypatch.setattr(sliding, "_CHUNK_NUMBERS", 1)
    np.testing.assert_array_equal(op.forward([x]), whole)
    np.testing.assert_array_equal(op.transpose(whole)[0], back)


@given(drawn=convolutions(), gathers=st.booleans())
def test_sums_are_gathered_or_scattered(
    drawn: tuple[Convolution, np.random.Generator], gathers: bool
) -> None:
    op, rng = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sliding, "_SUM", 1000 if gathers else -2)
        transposition = sliding.Transposition(op.weight, op.window)
    assert transposition.gathers == gathers
    rows = rng.integers(-9, 9, size=(3, op.output_channels, int(np.prod(op.window.positions))))
    images = rng.integers(-9, 9, size=(2, *op.window.image)).astype(float)
    products = sliding.Correlation(op.weight, op.window)(images)
    sums = transposition(rows.astype(float))
    np.testing.assert_array_equal(products @ rows.reshape(3, -1).T, images.reshape(2, -1) @ sums.T)


@given(size=st.integers(1, 5), length=st.integers(1, 8), seed=seeds)
def test_gather_and_its_adjoint(size: int, length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    index = rng.integers(-1, size, size=length)
    gather = Gather.build(index, size)
    x = rng.integers(-9, 9, size=(2, size)).astype(float)
    g = rng.integers(-9, 9, size=(2, length)).astype(float)
    expected = np.where(index < 0, 0.0, x[:, np.maximum(index, 0)])
    np.testing.assert_array_equal(gather.apply(x), expected)
    back = np.zeros_like(x)
    for j, source in enumerate(index):
        if source >= 0:
            back[:, source] += g[:, j]
    np.testing.assert_array_equal(gather.adjoint(g), back)


def test_select_fills_what_it_does_not_read() -> None:
    op = Select.of(np.array([1, -1, 0]), 2, fill=2.5)
    np.testing.assert_array_equal(op.forward([np.array([[3.0, 4.0]])]), [[4.0, 2.5, 3.0]])


def test_linear_acts_on_each_row(rng: np.random.Generator) -> None:
    weight, offset = rng.normal(size=(3, 2)), rng.normal(size=2)
    x = rng.normal(size=(4, 5, 3))
    result = Linear(weight, offset, rows=5).forward([x.reshape(4, 15)])
    np.testing.assert_allclose(result, (x @ weight + offset).reshape(4, 10), rtol=1e-14)


def test_scale_defaults_to_the_identity(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3))
    np.testing.assert_array_equal(Scale(3).forward([x]), x)


@given(seed=seeds)
def test_sparse_is_the_dense_product(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dense = rng.integers(-2, 3, size=(5, 4)).astype(float)
    row, column = np.nonzero(dense)
    op = SparseLinear(row, column, dense[row, column], dense.shape)
    x = rng.integers(-9, 9, size=(3, 5)).astype(float)
    np.testing.assert_array_equal(op.forward([x]), x @ dense)
    g = rng.integers(-9, 9, size=(3, 4)).astype(float)
    np.testing.assert_array_equal(op.transpose(g)[0], g @ dense.T)
    terms = [(dense != 0).sum(axis=axis).max() for axis in (0, 1)]
    assert op.error_terms >= max(terms)
