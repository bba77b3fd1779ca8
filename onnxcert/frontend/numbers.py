"""Decimal literals, exactly.

Both dialects write plain decimals; 1.0 files also use exponents. What ``float`` would accept beyond
that (``inf``, ``nan``, ``0x1p3``, ``1_000``) is refused, and so are literals so long or with
exponents so large that computing with them would take minutes: nothing that a network computes is
that large or that small.
"""

from __future__ import annotations

import re
from fractions import Fraction

LONGEST_LITERAL = 2000
"""Characters; a float64 written out in full has at most 1,077."""

LARGEST_EXPONENT = 2000

_LITERAL = re.compile(rb"([+-]?)(?:(\d+)(?:\.(\d*))?|\.(\d+))(?:[eE]([+-]?\d+))?")
_STRICT = re.compile(rb"-?\d+(?:\.\d+)?")


class NumberError(ValueError):
    """The literal is a number, but not one that can be computed with."""


def parse_number(text: bytes) -> Fraction | None:
    """The exact value of a literal, or ``None`` if it is no number.

    Raises:
        NumberError: it is too long, or its exponent too large.
    """
    match = _LITERAL.fullmatch(text)
    if match is None:
        return None
    if len(text) > LONGEST_LITERAL:
        raise NumberError(f"a number has {len(text)} characters, more than {LONGEST_LITERAL}")
    sign, whole, after_whole, after_point, exponent = match.groups()
    decimals = after_whole or after_point or b""
    power = int(exponent or 0)
    if abs(power) > LARGEST_EXPONENT:
        raise NumberError(f"the exponent of a number is beyond {LARGEST_EXPONENT}")
    mantissa = int((whole or b"") + decimals)
    if sign == b"-":
        mantissa = -mantissa
    power -= len(decimals)
    return Fraction(mantissa * 10**power) if power >= 0 else Fraction(mantissa, 10**-power)


def is_standard(text: bytes) -> bool:
    """Whether a literal has the form that the grammar of 2.x allows: no exponent, no bare point."""
    return _STRICT.fullmatch(text) is not None
