"""Norms are upper bounds, proved so in rational arithmetic, and close."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.arrays import Array, Window
from onnxcert.continuity.norms import (
    _LANCZOS_SIDE,
    largest_eigenvalue,
    matrix_norm,
    operator_norm,
    torus_norm,
)
from onnxcert.continuity.sampled import converging_norm
from onnxcert.ops import Adjoint, Convolution, Scale, Select
from tests import strategies


def is_positive_semidefinite(matrix: list[list[Fraction]]) -> bool:
    """By elimination over the rationals."""
    rows = [list(row) for row in matrix]
    for k, pivot_row in enumerate(rows):
        pivot = pivot_row[k]
        if pivot < 0:
            return False
        if pivot == 0:
            if any(pivot_row[k:]):
                return False
            continue
        for row in rows[k + 1 :]:
            factor = row[k] / pivot
            if factor:
                row[k:] = [a - factor * b for a, b in zip(row[k:], pivot_row[k:], strict=True)]
    return True


def holds(matrix: Array, bound: float) -> bool:
    """Whether ``bound^2 I - A^T A`` is positive semidefinite, exactly."""
    entries = [[Fraction(float(value)) for value in row] for row in matrix]
    columns = list(zip(*entries, strict=True))
    square = Fraction(bound) ** 2
    gram = [
        [
            (square if i == j else 0) - sum((a * b for a, b in zip(c, d, strict=True)), Fraction(0))
            for j, d in enumerate(columns)
        ]
        for i, c in enumerate(columns)
    ]
    return is_positive_semidefinite(gram)


@given(
    seed=strategies.seeds,
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kind=st.sampled_from(["any", "rank", "equal", "wild", "tiny"]),
)
def test_matrix_norm_is_above_the_exact_one(seed: int, shape: tuple[int, int], kind: str) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=shape)
    match kind:
        case "rank":
            matrix = np.outer(matrix[:, 0], matrix[0])
        case "equal":
            matrix = np.round(2.0 * np.eye(*shape))
        case "wild":
            matrix *= 2.0 ** rng.integers(-60, 60, size=shape)
        case "tiny":
            matrix *= 1e-200
    bound = matrix_norm(matrix)
    assert holds(matrix, bound)
    if bound > 0.0:
        assert not holds(matrix, bound * (1.0 - 1e-6))


@pytest.mark.parametrize("size", [24, 64])
def test_matrix_norm_at_64(size: int, rng: np.random.Generator) -> None:
    matrix = np.round(256.0 * rng.normal(size=(size, size))) / 256.0
    bound = matrix_norm(matrix)
    assert holds(matrix, bound)
    assert not holds(matrix, bound * (1.0 - 1e-6))


def test_zero_and_empty_matrices() -> None:
    assert matrix_norm(np.zeros((3, 2))) == 0.0
    assert matrix_norm(np.array([[1.7e308]])) > 1.7e308
    assert matrix_norm(np.full((2, 2), 5e-324)) >= 1e-323
    assert largest_eigenvalue(np.zeros((0, 0))) == 0.0


def test_eigenvalues_by_iteration_are_bounds_too(rng: np.random.Generator) -> None:
    matrix = rng.normal(size=(320, 340))
    gram = matrix @ matrix.T
    true = float(np.linalg.eigvalsh(gram)[-1])
    assert true * (1.0 - 1e-13) <= largest_eigenvalue(gram) <= true * (1.0 + 1e-6)


@st.composite
def convolutions(draw: st.DrawFn) -> Convolution:
    """Small ones with every kind of geometry."""
    groups, channels, outputs = (draw(st.integers(1, most)) for most in (2, 3, 3))
    kernel, stride = ((draw(st.integers(1, 3)), draw(st.integers(1, 3))) for _ in range(2))
    dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    padding = tuple(draw(st.integers(0, 3)) for _ in range(4))
    size = draw(st.integers(5, 9)), draw(st.integers(5, 9))
    window = Window((groups * channels, *size), kernel, stride, dilation, padding)  # type: ignore[arg-type]
    rng = np.random.default_rng(draw(strategies.seeds))
    weight = rng.normal(size=(groups, outputs, channels * kernel[0] * kernel[1]))
    return Convolution(weight, window, None, draw(st.integers(1, 2)))


@given(op=convolutions())
def test_torus_is_above_the_matrix(op: Convolution) -> None:
    true = float(np.linalg.norm(op.apply([np.eye(op.input_sizes[0])]), 2))
    assert torus_norm(op) >= true * (1.0 - 1e-13)
    for bound in (operator_norm(op), operator_norm(Adjoint(op))):
        assert true * (1.0 - 1e-13) <= bound
        if min(op.input_sizes[0], op.output_size) // op.images <= _LANCZOS_SIDE:
            assert bound <= true * (1.0 + 1e-9)


@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "stride", "size"),
    [(1, 16, 4, 2, 28), (16, 32, 4, 2, 14), (8, 8, 3, 1, 100), (4, 4, 5, 1, 80)],
)
def test_torus_is_close(
    channels: int, outputs: int, kernel: int, stride: int, size: int, rng: np.random.Generator
) -> None:
    """Also where the image is larger than the torus."""
    before = (kernel - stride) // 2
    after = kernel - stride - before
    window = Window(
        (channels, size, size),
        (kernel, kernel),
        (stride, stride),
        padding=(before, before, after, after),
    )
    op = Convolution(rng.normal(size=(1, outputs, channels * kernel**2)), window)
    bound, below = operator_norm(op), converging_norm(op, rng, 300)
    assert below <= bound <= 1.03 * below


def test_copies_cost_their_square_root() -> None:
    assert operator_norm(Select.of(np.array([1, 0, 2]), 3)) == 1.0
    assert operator_norm(Select.of(np.array([0, 0, 1, 0, 0]), 2)) == pytest.approx(2.0)
    assert operator_norm(Scale(2, np.array([0.5, -3.0]))) == pytest.approx(3.0)
    assert operator_norm(Scale(2, None, np.ones(2))) == pytest.approx(1.0)
