"""BatchNormalization: one factor and one offset for each channel."""

from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np

from onnxcert.arrays import FloatArray
from onnxcert.frontend.rules.registry import Call, reads
from onnxcert.frontend.tensors import NoRule, Operand

_DIGITS = 60
"""Decimal digits of the intermediate results: products of float64 numbers nearly fit exactly."""


@reads("BatchNormalization", since=7, note="inference only")
def batch_normalization(call: Call) -> Operand:
    """scale (x - mean) / sqrt(variance + epsilon) + bias.

    Factor and offset are worked out in decimal arithmetic and rounded once: the offset is a
    difference, and in float64 it could lose all its digits.
    """
    call.refuse("training_mode", 0)
    call.refuse("spatial", 1)
    if call.outputs > 1:
        raise NoRule("training outputs")
    tensor = call.tensor(0)
    meanings = ("the scale", "the bias", "the mean", "the variance")
    scale, bias, mean, variance = (
        call.numbers(i, meaning) for i, meaning in enumerate(meanings, 1)
    )
    epsilon = float(call.attributes.get("epsilon", np.float32(1e-5)))
    if (variance + epsilon <= 0).any():
        raise ValueError("a variance that is not positive")
    factor, offset = _exact(scale, bias, mean, variance, epsilon)
    channels = (-1, *(1,) * (len(tensor.shape) - 2))
    parts = np.abs(bias) + np.abs(mean * factor)
    return call.build.scale(
        tensor,
        factor.reshape(channels),
        offset.reshape(channels),
        parts=parts.reshape(channels),
    )


def _exact(
    scale: FloatArray, bias: FloatArray, mean: FloatArray, variance: FloatArray, epsilon: float
) -> tuple[FloatArray, FloatArray]:
    """Correctly rounded scale / sqrt(variance + epsilon) and bias - mean times that."""
    factors, offsets = [], []
    with localcontext(prec=_DIGITS):
        for s, b, m, v in zip(*(x.tolist() for x in (scale, bias, mean, variance)), strict=True):
            factor = Decimal(s) / (Decimal(v) + Decimal(epsilon)).sqrt()
            factors.append(float(factor))
            offsets.append(float(Decimal(b) - Decimal(m) * factor))
    return np.array(factors), np.array(offsets)
