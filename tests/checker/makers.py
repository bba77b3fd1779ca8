"""Certificates of small generated models, and siblings of theirs about which nothing is proved.

Every member of the zoo is refuted by the engine and accepted by the checker. Its *sibling* has the
same tensors but a solution, and that solution is known: whatever certificate is accepted for the
sibling proves what is false.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

import onnxcert
from onnxcert import Settings
from onnxcert.checker import container
from onnxcert.checker.certificate import EXECUTED, REAL, Session
from onnxcert.checker.errors import Rejected, Unusable
from onnxcert.frontend.lower import lower_query
from onnxcert.frontend.onnx import load_model
from onnxcert.frontend.vnnlib import read_query
from onnxcert.graph import Graph
from onnxcert.spec import Problem
from tests.frontend.onnx_models import model_of
from tests.oracles import exact_values, satisfied_case, smallest_violation

Rows = Sequence[tuple[Sequence[float], float]]
"""(coefficients of the outputs, bound): their sum is at most the bound."""

Disjunct = tuple[Sequence[float], Sequence[float], Rows]
"""Lower ends, upper ends and rows."""

Header = dict[str, Any]
Arrays = dict[str, np.ndarray]


def spec(*disjuncts: Disjunct, outputs: int = 1) -> bytes:
    """VNN-LIB 1.0 text: a solution of one of the disjuncts is asked for."""
    count = len(disjuncts[0][0])
    lines = [f"(declare-const X_{i} Real)" for i in range(count)]
    lines += [f"(declare-const Y_{i} Real)" for i in range(outputs)]
    formulas = [_formula(*disjunct) for disjunct in disjuncts]
    lines += formulas if len(formulas) == 1 else [f"(or {' '.join(formulas)})"]
    lines[-1] = f"(assert {lines[-1]})"
    return "\n".join(lines).encode() + b"\n"


def _formula(low: Sequence[float], high: Sequence[float], rows: Rows) -> str:
    parts = [
        f"(>= X_{i} {_text(a)}) (<= X_{i} {_text(b)})"
        for i, (a, b) in enumerate(zip(low, high, strict=True))
    ]
    for coefficients, bound in rows:
        terms = " ".join(f"(* {_text(c)} Y_{i})" for i, c in enumerate(coefficients) if c)
        parts.append(f"(<= (+ {terms} 0.0) {_text(bound)})")
    return f"(and {' '.join(parts)})"


def _text(value: float) -> str:
    """The exact decimal of a float."""
    return format(Fraction(value).limit_denominator(2**40), "f") if False else _decimal(value)


def _decimal(value: float) -> str:
    from decimal import Decimal  # noqa: PLC0415

    return format(Decimal(value), "f")
