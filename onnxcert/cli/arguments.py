"""Reading arguments: parsers whose complaints have the shape of all our errors.

Every command has its own small parser, so that none pays for the options of the others, and options
may stand anywhere among the files.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from typing import Any, NoReturn

from onnxcert.errors import UsageError

EXECUTED = "ieee32-any-order"
"""Executions in binary32 with any order of summation."""


def asks_for_settings(words: Sequence[str]) -> bool:
    """Whether ``--set help`` is among the words; it needs no files beside it."""
    return "--set=help" in words or ("--set", "help") in pairwise(words)


class Parser(argparse.ArgumentParser):
    """A parser that raises `UsageError` and never abbreviates options."""

    def __init__(self, command: str, description: str, *, usage: str | None = None) -> None:
        super().__init__(
            prog=f"onnxcert {command}".rstrip(),
            description=description,
            usage=usage,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        # Before Python 3.14 numbers such as -1e-3 are taken for options.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and exiting."""
        command = "onnxcert verify" if self.prog == "onnxcert" else self.prog
        raise UsageError(message, help=f"see `{command} --help`")

    def read(self, arguments: Sequence[str]) -> argparse.Namespace | None:
        """Read the arguments; ``None`` when they only asked for help, which has been printed.

        Raises:
            UsageError: they do not fit.
        """
        try:
            return self.parse_intermixed_args(list(arguments))
        except SystemExit:
            return None

    def add_verbosity(self) -> None:
        """``-q`` and ``-v``."""
        group = self.add_mutually_exclusive_group()
        group.add_argument(
            "-q", "--quiet", action="store_const", const=-1, dest="verbosity", help="only errors"
        )
        group.add_argument(
            "-v",
            "--verbose",
            action="count",
            dest="verbosity",
            help="show the steps on stderr; twice for everything",
        )
        self.set_defaults(verbosity=0)

    def add_domain(self, sentence: str, **more: Any) -> None:
        """``--domain LOW HIGH``, the same for every input."""
        self.add_argument(
            "--domain", nargs=2, type=float, metavar=("LOW", "HIGH"), help=sentence, **more
        )

    def add_cache(self) -> None:
        """``--no-cache``."""
        self.add_argument(
            "--no-cache",
            action="store_true",
            help="neither use nor keep the multipliers of a model's constants (in "
            "$XDG_CACHE_HOME/onnxcert; bounds are proved again in any case)",
        )

    def add_run_options(self) -> None:
        """Options of the search and its proof, shared by ``verify`` and ``bench``."""
        self.add_argument(
            "--device",
            type=device,
            default="auto",
            metavar="DEVICE",
            help="auto, cpu, cuda or cuda:N (default: auto)",
        )
        self.add_argument(
            "--seed", type=natural, default=0, metavar="N", help="of the attack (default: 0)"
        )
        self.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            dest="assignments",
            help="change a setting; `--set help` lists them",
        )
        self.add_argument(
            "--semantics",
            choices=("auto", "real", EXECUTED),
            default="auto",
            help=f"the arithmetic that unsat speaks of: real, {EXECUTED} (binary32 executions with "
            "any order of summation), or by default what the query's types ask for; naming real "
            "consents to it for a query typed float32",
        )
        self.add_argument(
            "--uncertified",
            action="store_true",
            help="print unsat without waiting for the checker, and say so",
        )


def seconds(text: str) -> float:
    """A positive, finite number of seconds."""
    return _positive_number(text, "seconds")


def gigabytes(text: str) -> float:
    """A positive, finite number of gigabytes."""
    return _positive_number(text, "gigabytes")


def from_zero(text: str) -> float:
    """A finite number, zero or above."""
    return _number_from_zero(text, "a number from 0")


def radius(text: str) -> float:
    """A finite number, at least zero."""
    return _number_from_zero(text, "a radius")


def exact(text: str) -> Decimal:
    """A finite number, exactly as it is written; not beyond 1e300, and not smaller than 1e-300."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal("nan")
    if not value.is_finite() or (value and abs(value.adjusted()) > 300) or len(text) > 400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def exact_radius(text: str) -> Decimal:
    """A finite number from 0, exactly as it is written."""
    value = exact(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a radius")
    return value


def label(text: str) -> int | None:
    """A class, or None for ``auto``."""
    return None if text == "auto" else natural(text)


def _positive_number(text: str, unit: str) -> float:
    what = f"a positive number of {unit}"
    value = _number_from_zero(text, what)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def _number_from_zero(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 <= value < math.inf):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def radii(text: str) -> tuple[float, ...]:
    """Radii with commas between them."""
    return tuple(radius(part) for part in text.split(","))


def natural(text: str) -> int:
    """A whole number, zero included."""
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def positive(text: str) -> int:
    """A whole number above zero."""
    if natural(text) == 0:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return int(text)


def device(text: str) -> str:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of auto, cpu, cuda, cuda:N")
    return text


def network(text: str) -> tuple[str, str]:
    """``NAME=MODEL``, with a name as VNN-LIB allows it."""
    name, equals, path = text.partition("=")
    if not (equals and path and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name)):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=MODEL")
    return name, path
