"""What makes some entries of an operator's output makes the same there, from what it reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.arrays import Window
from onnxcert.ops import Concat, Convolution, Linear, Maximum, Operator, Select, SparseLinear
from tests import strategies
from tests.strategies import seeds

INSTANCES = [*strategies.operator_instances(), ("Maximum", Maximum(4))]
WHOLE = ("Adjoint",)
"""Operators that stay as they are."""

CLOSED = (Linear, Convolution)
"""Operators that may make all of what they make round what is wanted."""


@pytest.mark.parametrize("op", [op for _, op in INSTANCES], ids=[name for name, _ in INSTANCES])
@given(data=st.data(), seed=seeds)
def test_the_same_entries(op: Operator, data: st.DataObject, seed: int) -> None:
    whole, rng = strategies.integral(op), np.random.default_rng(seed)
    chosen = data.draw(st.sets(st.integers(0, op.output_size - 1), min_size=1))
    wanted = np.zeros(op.output_size, bool)
    wanted[list(chosen)] = True
    part = whole.part(wanted)
    assert part.makes[wanted].all()
    assert part.op.output_size == part.makes.sum()
    assert [len(reads) for reads in part.reads] == list(op.input_sizes)
    inputs = [np.round(8 * rng.uniform(0.5, 2, (3, size))) / 8 for size in op.input_sizes]
    read = [x[:, r] for x, r in zip(inputs, part.reads, strict=True) if r.any()]
    assert part.op.input_sizes == tuple(x.shape[1] for x in read)
    made = whole.forward(inputs)[:, part.makes]
    np.testing.assert_array_equal(part.op.forward(read), made)
    if type(op).__name__ not in WHOLE and len(chosen) < op.output_size:
        assert part.op.output_size < op.output_size or isinstance(op, CLOSED)


def test_a_matrix_reads_what_it_has_factors_for() -> None:
    weight = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 3.0]])
    row, column = np.nonzero(weight)
    sparse = SparseLinear(row, column, weight[row, column], weight.shape)
    for op in (Linear(weight), sparse):
        part = op.part(np.array([False, True]))
        assert part.reads[0].tolist() == [False, True, True]
        assert part.op.forward([np.array([[1.0, 1.0]])]).tolist() == [[5.0]]


def test_rows_of_a_matrix_are_left_out_as_well_as_columns() -> None:
    wanted = np.array([False, False, False, True, False, True])  # rows (0, 0), (0, 1), (0, 1)
    part = Linear(np.ones((4, 2)), None, 3).part(wanted)
    assert isinstance(part.op, Linear)
    assert (part.op.rows, part.op.weight.shape) == (2, (4, 1))
    assert part.makes.tolist() == wanted.tolist()
    assert part.reads[0].tolist() == [False] * 4 + [True] * 8


def test_a_convolution_is_cut_to_a_rectangle() -> None:
    """Two positions at the left edge of a padded image: what they see there, of all channels."""
    window = Window((2, 6, 6), (3, 3), padding=(1, 1, 1, 1))
    op = Convolution(np.ones((1, 3, 18)), window, np.arange(3.0))
    wanted = np.zeros((3, 6, 6), bool)
    wanted[1, 2, 0] = wanted[2, 3, 0] = True
    part = op.part(wanted.ravel())
    assert isinstance(part.op, Convolution)
    assert part.op.output_shape == (2, 2, 1)
    assert part.op.window.image == (2, 4, 2)
    reads = part.reads[0].reshape(2, 6, 6)
    assert np.argwhere(reads[0]).tolist() == [[y, x] for y in range(1, 5) for x in range(2)]
    whole = op.part(np.ones(108, bool))
    assert whole.makes.all()
    assert whole.reads[0].all()


def test_groups_keep_their_channels() -> None:
    op = Convolution(np.ones((2, 1, 4)), Window((2, 3, 3), (2, 2)))
    wanted = np.zeros((2, 2, 2), bool)
    wanted[1, 0, 0] = True
    part = op.part(wanted.ravel())
    assert isinstance(part.op, Convolution)
    assert part.op.output_shape == (2, 1, 1)


def test_what_sees_only_padding_stays_whole() -> None:
    op = Convolution(np.ones((1, 1, 1)), Window((1, 2, 2), (1, 1), padding=(1, 1, 1, 1)))
    wanted = np.zeros((4, 4), bool)
    wanted[0, 0] = True
    assert op.part(wanted.ravel()).op is op


@pytest.mark.parametrize(
    "op",
    [
        Linear(np.array([[1.0, 0.0]])),
        SparseLinear(np.array([0]), np.array([0]), np.array([1.0]), (1, 2)),
        Select.of(np.array([0, -1]), 1, fill=0.5),
    ],
)
def test_what_depends_on_nothing_reads_something(op: Operator) -> None:
    """Values have at least one entry."""
    part = op.part(np.array([False, True]))
    assert part.reads[0].tolist() == [True]
    expected = op.forward([np.array([[3.0]])])[:, 1:]
    np.testing.assert_array_equal(part.op.forward([np.array([[3.0]])]), expected)


def test_inputs_of_which_nothing_is_read_are_left_out() -> None:
    part = Concat((1, 2, 1)).part(np.array([True, False, False, True]))
    assert isinstance(part.op, Concat)
    assert part.op.sizes == (1, 1)
    assert [reads.any() for reads in part.reads] == [True, False, True]
