"""Rules that turn ONNX operators into those of `onnxcert.ops`, one file per family."""

from onnxcert.frontend.rules import (
    activation,
    arithmetic,
    casting,
    convolution,
    decision,
    extremum,
    linear,
    movement,
    normalisation,
    picking,
    pooling,
    reduction,
    resize,
    softmax,
)
from onnxcert.frontend.rules.registry import RULES, Call, Entry, reads

__all__ = [
    "RULES",
    "Call",
    "Entry",
    "activation",
    "arithmetic",
    "casting",
    "convolution",
    "decision",
    "extremum",
    "linear",
    "movement",
    "normalisation",
    "picking",
    "pooling",
    "reads",
    "reduction",
    "resize",
    "softmax",
]
