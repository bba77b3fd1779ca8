"""Spectral norms that are upper bounds under rounding.

The largest eigenvalue of a symmetric G is at most t if t I - G is positive semidefinite, and that
is shown by a Cholesky factor: whatever the estimate t came from, with S = fl(t I - G) and its
computed factor L there is an E with S + E = L L^T and |E| <= gamma_(n+1) |L| |L^T| (Higham,
*Accuracy and Stability of Numerical Algorithms*, theorem 10.3; Rump, *Verification of positive
definiteness*, BIT 2006). A symmetric E is at most the diagonal of its absolute row sums, so the
bound is t plus the largest of those. Estimates come from an eigenvalue solver, which only decides
how tight the result is. Power iteration converges from below and is never evidence.

Weights of a simplified graph may have been rounded since the file (`onnxcert.passes.base`); every
norm covers that too.
"""

from __future__ import annotations

import math
from functools import singledispatch

import numpy as np

from onnxcert.arrays import UNIT_ROUNDOFF, Array, FloatArray
from onnxcert.continuity.torus import transfer_matrices
from onnxcert.ops import Adjoint, Affine, Convolution, Linear, Scale, Select
from onnxcert.ops.base import TINY, gamma

WEIGHT_ROUNDINGS = 8
"""Relative roundings that a stored number may have met since the file."""

UP = 1.0 + 8.0 * UNIT_ROUNDOFF
"""Times a positive result of a few operations: an upper bound of the exact one."""

DENSE_SIDE, DENSE_NUMBERS = 1024, 1 << 23
"""A map is written out as a matrix where its smaller side and its size are at most this."""

_WIDEST_GRAM = 4608
"""Side of the largest matrix whose eigenvalues are bounded by a factorisation."""

_LANCZOS_SIDE = 300
"""From this side on one eigenvalue by iteration is cheaper than all of them."""

_STEPS = (1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1.0)
"""Relative increases of the estimate, tried in turn."""


def row_sums_of_product(first: Array, second: Array) -> Array:
    """Upper bounds of the row sums of ``|first| |second|``, (n,)."""
    return np.abs(first) @ (np.abs(second) @ np.ones(second.shape[1])) * (1.0 + 1e-9) + TINY


def cholesky_residual(factor: Array) -> float:
    """Bounds the norm of L L^T - S for a computed factor L of S, by the theorem above."""
    absolute = np.abs(factor)
    count = 2 * len(factor) + 16
    sums = absolute @ (absolute.T @ np.ones(len(factor)))
    return gamma(count, UNIT_ROUNDOFF) * (1.0 + 1e-9) * float(sums.max(initial=0.0)) + TINY


def largest_eigenvalue(gram: FloatArray) -> float:
    """An upper bound of the largest eigenvalue of a symmetric positive semidefinite matrix.

    Args:
        gram: (n, n); only the lower triangle is read. Rounding that made it is the caller's.
    """
    size = len(gram)
    if size == 0:
        return 0.0
    scale = float(np.abs(gram).max())
    if scale == 0.0 or not math.isfinite(scale):
        return scale
    estimate = largest_estimate(gram)
    for step in _STEPS:
        top = estimate * (1.0 + step) + TINY
        shifted = -gram
        shifted[np.diag_indices(size)] += top
        try:
            factor = np.linalg.cholesky(shifted)
        except np.linalg.LinAlgError:
            continue
        rounding = 2.0 * UNIT_ROUNDOFF * (top + scale)
        return (top + rounding + cholesky_residual(factor)) * UP
    return float(np.abs(gram).sum(axis=1).max()) * (1.0 + gamma(size + 8, UNIT_ROUNDOFF))


def largest_estimate(gram: FloatArray) -> float:
    """The largest eigenvalue of a symmetric matrix, nearly; no bound."""
    if len(gram) == 0:
        return 0.0
    if len(gram) < _LANCZOS_SIDE:
        return float(np.linalg.eigvalsh(gram)[-1])
    from scipy.sparse.linalg import ArpackError, eigsh  # noqa: PLC0415 - slow to import

    start = np.random.default_rng(0).normal(size=len(gram))
    try:
        return float(eigsh(gram, k=1, tol=1e-10, v0=start, return_eigenvectors=False)[0])
    except ArpackError:
        return float(np.linalg.eigvalsh(gram)[-1])


def schur_bound(row_sums: Array, column_sums: Array) -> float:
    """sqrt(||A||_1 ||A||_inf) from (upper bounds of) the absolute row and column sums."""
    rows, columns = float(row_sums.max(initial=0.0)), float(column_sums.max(initial=0.0))
    return math.sqrt(rows) * math.sqrt(columns) * UP + TINY if rows and columns else 0.0


def matrix_norm(matrix: FloatArray, error: float = 0.0) -> float:
    """An upper bound of the spectral norm of every matrix within ``error`` of this one.

    Args:
        matrix: (n, m).
        error: in spectral norm, beside the roundings of stored weights, which are added.
    """
    absolute = np.abs(matrix)
    largest = float(absolute.max(initial=0.0))
    if largest == 0.0 or not math.isfinite(largest):
        return largest + error
    # A power of two moves everything to about 1, so nothing under- or overflows.
    unit = 2.0 ** (math.frexp(largest)[1] - 1)
    matrix, absolute = matrix / unit, absolute / unit
    sums = gamma(max(matrix.shape) + 8, UNIT_ROUNDOFF)
    frobenius = math.sqrt(float(np.square(absolute).sum())) * (1.0 + sums)
    crude = min(schur_bound(absolute.sum(axis=1), absolute.sum(axis=0)) * (1.0 + sums), frobenius)
    slack = error / unit + gamma(WEIGHT_ROUNDINGS, UNIT_ROUNDOFF) * crude + TINY
    if min(matrix.shape) > _WIDEST_GRAM:
        return (crude + slack) * UP * unit + TINY
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    gram = tall.T @ tall
    rounding = gamma(len(tall) + 8, UNIT_ROUNDOFF) * float(
        row_sums_of_product(tall.T, tall).max(initial=0.0)
    )
    square = largest_eigenvalue(gram) + rounding
    return (min(math.sqrt(square), crude) + slack) * UP * unit + TINY


def dense(op: Affine) -> tuple[FloatArray, float] | None:
    """The matrix of an affine map with one input, (n_in, n_out), and the error of its entries.

    Returns:
        The matrix and a bound of the error in spectral norm; None where it is too large.
    """
    (height,), width = op.input_sizes, op.output_size
    if min(height, width) > DENSE_SIDE or height * width > DENSE_NUMBERS:
        return None
    matrix = op.apply([np.eye(height)]) if height <= width else op.transpose(np.eye(width))[0].T
    count = gamma(op.error_terms + 4, UNIT_ROUNDOFF)
    return matrix, count * schur_bound(*absolute_sums(op))


def absolute_sums(op: Affine) -> tuple[Array, Array]:
    """Upper bounds of the absolute row and column sums of the matrix of a map, each side."""
    up = 1.0 + 2.0 * gamma(op.error_terms + 8, UNIT_ROUNDOFF)
    (height,), width = op.input_sizes, op.output_size
    columns = op.magnitude.transpose(np.ones((1, width)))[0][0]
    rows = op.magnitude.apply([np.ones((1, height))])[0]
    return rows * up, columns * up


@singledispatch
def operator_norm(op: Affine) -> float:
    """An upper bound of the spectral norm of the linear part of an operator with one input."""
    written = dense(op)
    if written is not None:
        return matrix_norm(*written)
    return schur_bound(*absolute_sums(op)) * (1.0 + gamma(WEIGHT_ROUNDINGS, UNIT_ROUNDOFF))


@operator_norm.register
def _(op: Linear) -> float:
    return matrix_norm(op.weight)


@operator_norm.register
def _(op: Adjoint) -> float:
    return operator_norm(op.operator)


@operator_norm.register
def _(op: Scale) -> float:
    largest = 1.0 if op.factor is None else float(np.abs(op.factor).max(initial=0.0))
    return largest * (1.0 + gamma(WEIGHT_ROUNDINGS, UNIT_ROUNDOFF))


@operator_norm.register
def _(op: Select) -> float:
    """Copies of an entry are its square root: the columns are orthogonal."""
    most = max((table.shape[1] for _, table in op.gather.groups), default=0)
    return math.sqrt(most) * (UP if most > 1 else 1.0)


@operator_norm.register
def _(op: Convolution) -> float:
    one = Convolution(op.weight, op.window)  # the images of a batch do not meet
    sizes = (one.input_sizes[0], one.output_size)
    if min(sizes) <= _LANCZOS_SIDE:
        written = dense(one)
        if written is not None:
            return matrix_norm(*written)
    return min(torus_norm(one), schur_bound(*absolute_sums(one)))


def torus_norm(op: Convolution) -> float:
    """The norm of the same convolution on a torus (`onnxcert.continuity.torus`)."""
    transfer = transfer_matrices(op)
    matrices, error = transfer.matrices, transfer.error
    largest = float(np.abs(matrices).max(initial=0.0))
    if largest == 0.0 or not math.isfinite(largest):
        return largest + error
    height, width = matrices.shape[-2:]
    # Four real operations make one complex one, and |z w| needs no more than gamma_2 beyond.
    count = 4 * (max(height, width) + 8)
    adjoint = matrices.conj().swapaxes(-1, -2)
    grams = matrices @ adjoint if height <= width else adjoint @ matrices
    sums = np.abs(matrices).sum(axis=-1).max() * np.abs(matrices).sum(axis=-2).max()
    rounding = gamma(count, UNIT_ROUNDOFF) * float(sums) * (1.0 + 1e-9)
    square = _largest_of_many(grams) + rounding
    crude = gamma(WEIGHT_ROUNDINGS, UNIT_ROUNDOFF) * math.sqrt(float(sums))
    return (math.sqrt(square) + error + crude) * transfer.factor * UP


def _largest_of_many(grams: Array) -> float:
    """As `largest_eigenvalue`, over a stack (F, n, n) of Hermitian matrices."""
    size = grams.shape[-1]
    estimate = _estimate_of_many(grams)
    diagonal = np.arange(size)
    for step in _STEPS:
        top = estimate * (1.0 + step) + TINY
        shifted = -grams
        shifted[:, diagonal, diagonal] += top
        try:
            factors = np.abs(np.linalg.cholesky(shifted))
        except np.linalg.LinAlgError:
            estimate = max(estimate, float(np.linalg.eigvalsh(grams)[:, -1].max()))
            continue
        sums = (factors @ (factors.swapaxes(-1, -2) @ np.ones(size)[:, None])).max()
        error = gamma(4 * (2 * size + 16), UNIT_ROUNDOFF) * float(sums) * (1.0 + 1e-9)
        return (top + error + 4.0 * UNIT_ROUNDOFF * (top + float(np.abs(grams).max()))) * UP
    return float(np.abs(grams).sum(axis=-1).max()) * (1.0 + gamma(size + 8, UNIT_ROUNDOFF))


def _estimate_of_many(grams: Array, finalists: int = 12) -> float:
    """The largest eigenvalue of all matrices: those that squaring finds promising, exactly."""
    if len(grams) <= finalists or grams.shape[-1] <= 4:
        return float(np.linalg.eigvalsh(grams)[:, -1].max())
    scale = float(np.abs(grams).max()) * grams.shape[-1]
    power = grams / scale
    for _ in range(3):
        power = power @ power
    # trace of the 8th power: a high mean of the eigenvalues
    scores = np.einsum("fii->f", power).real
    chosen = np.argsort(scores)[-finalists:]
    return float(np.linalg.eigvalsh(grams[chosen])[:, -1].max())
