"""What follows from rule R14: claims of Lipschitz constants, and cases that constants refute.

A case asks for g_m <= 0 for all its rows m over a box with centre c and half widths d. Where g_m(c)
is above what g_m can change within the box, sqrt(sum_i p_i d_i^2) times the length of its form, it
has no solution. The value at the centre is that of rule R1 to R3 over the box that is a point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcert.checker.bounds import gamma
from onnxcert.checker.curves import TINY, Array, U
from onnxcert.checker.errors import Rejected
from onnxcert.checker.network import Network
from onnxcert.checker.proof import Prover
from onnxcert.checker.quadratic import Inverse, Quadratic
from onnxcert.checker.spec import Case

_NUMBERS = 1 << 22
"""Float64 numbers of bounds in one batch of boxes."""

NORMS = ("2", "inf", "1")

_LARGEST, _FAINT = 1e308, 1e-200


def domain_box(network: Network, domain: Any) -> tuple[Array, Array] | None:
    """The box that a header names: null or two numbers, the same for all inputs."""
    if domain is None:
        return None
    right = isinstance(domain, list) and [type(end) for end in domain] == [float, float]
    if not right or not -math.inf < domain[0] <= domain[1] < math.inf:
        raise Rejected("R14", "domain", "not null or two numbers in order")
    low, high = (np.full(network.n_inputs, end) for end in domain)
    return low, high


def bounds(
    network: Network, norm: Any, domain: Any, multipliers: Array, weights: Array
) -> tuple[Array, Array]:
    """Constants of all outputs (m,) and of all their differences (m, m).

    Args:
        norm: of input differences, one of `NORMS`.
        domain: [low, high] of every input, or None.
        multipliers, weights: t and p.

    Raises:
        Rejected: they make no sense, or prove nothing.
        Unusable: the network is too large, or not Lipschitz continuous on the domain.
    """
    if norm not in NORMS:
        raise Rejected("R14", "norm", f"not one of {NORMS}")
    with np.errstate(all="ignore"):
        form = Quadratic(network, domain_box(network, domain))
        inverse = _inverse(form, multipliers, weights)
        reach = _sum(weights) if norm == "inf" else float(weights.max(initial=0.0))
        up = math.sqrt(reach) * (1 + 8 * U)
        return inverse.lengths(form.outputs) * up, inverse.differences(form.outputs) * up


def _sum(weights: Array) -> float:
    """Rounded to nearest; infinity for what is nearly too much for float64."""
    return math.fsum(weights) if weights.sum() < _LARGEST else math.inf


def _inverse(form: Quadratic, multipliers: Array, weights: Array) -> Inverse:
    """P^-1 for hints that make sense."""
    for name, hint, count in (
        ("multiplier", multipliers, form.neurons),
        ("share", weights, form.network.n_inputs),
    ):
        if len(hint) != count:
            raise Rejected("R14", name, f"{len(hint)} numbers instead of {count}")
        if not (np.isfinite(hint) & (hint >= 0)).all():
            raise Rejected("R14", name, "one is negative or not a number")
    # Products of smaller ones would underflow; none at all is as right.
    form.assemble(np.where(multipliers < _FAINT, 0.0, multipliers))
    return form.inverse(weights)


def verify(network: Network, header: dict[str, Any], arrays: dict[str, Array]) -> tuple[str, ...]:
    """Check the constants of a certificate; what is proved, in words.

    Raises:
        Rejected: they are smaller than what its multipliers prove.
        Unusable: as `bounds`.
    """
    size = len(network.output)
    outputs, pairs = arrays["outputs"], arrays["pairs"]
    if (len(outputs), len(pairs)) != (size, size * (size - 1) // 2):
        raise Rejected("R14", "outputs, pairs", f"not as many as {size} outputs have")
    hints = arrays["multiplier"], arrays["share"]
    proved = bounds(network, header["norm"], header["domain"], *hints)
    for name, claims, least in (
        ("outputs", outputs, proved[0]),
        ("pairs", pairs, proved[1][np.tril_indices(size, -1)]),
    ):
        wrong = np.flatnonzero(~((claims >= least) & (claims < np.inf)))
        if len(wrong):
            reason = f"{float(claims[wrong[0]])!r} is below {float(least[wrong[0]])!r}"
            raise Rejected("R14", f"{name} {wrong[0]}", reason)
    domain = header["domain"]
    where = "for all inputs" if domain is None else f"for inputs in {domain}"
    most = f"outputs up to {outputs.max(initial=0.0):.6g}, pairs up to {pairs.max(initial=0.0):.6g}"
    return ("real", f"norm {header['norm']}", where, most)


def refute(
    prover: Prover, cases: Sequence[Case], form: Quadratic, multipliers: Array, weights: Array
) -> Array:
    """Which cases constants refute, (C,).

    Args:
        prover: of these cases, over the reals.
        form: of the network, for all inputs.
        multipliers, weights: t and p.

    Raises:
        Rejected: they make no sense, or prove nothing.
    """
    rows, network = prover.rows, prover.bounder.network
    count, width = rows.offset.shape
    inverse = _inverse(form, multipliers, weights)
    outputs, inputs = (part.reshape(count * width, -1) for part in (rows.outputs, rows.inputs))
    lengths = inverse.lengths(form.mixed(outputs, inputs)).reshape(count, width)
    boxes = prover.roots(cases)
    refuted = np.zeros(count, bool)
    step = max(1, _NUMBERS // network.size)
    for start in range(0, len(boxes.low), step):
        part = boxes[slice(start, start + step)]
        center = 0.5 * part.low + 0.5 * part.high
        apart = np.maximum(part.high - center, center - part.low) * (1 + 4 * U)
        # Not d^2 p: squares of small d vanish, however large p is.
        square = np.square(apart * np.sqrt(weights)).sum(axis=1)
        square = square * (1 + gamma(network.n_inputs + 16)) + TINY
        r = prover.bounder.bound(center, center, backward=False)
        _, lower, _ = prover.refute(r, part.cases, center, center)
        some = np.maximum(part.cases, 0)
        change = lengths[some] * np.sqrt(square)[:, None, None] * (1 + 8 * U)
        beyond = (rows.used[some] & (lower > change)).any(axis=2)
        refuted[part.cases[beyond & (part.cases >= 0)]] = True
    return refuted
