"""Certified boxes: what is known of one, and why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from onnxcert.arrays import FloatArray
from onnxcert.errors import UsageError
from onnxcert.region.grow import Witness
from onnxcert.region.prove import Statement


class Status(Enum):
    """What became of a point; the value is the sentence shown to the user."""

    CERTIFIED = "the box is certified, and the checker accepted its certificate"
    BOUNDED = "the box is certified by bounds with all rounding charged, without a certificate"
    MISCLASSIFIED = "the model gives this input another label"
    VIOLATED = "the condition does not hold at the input itself"
    UNDECIDED = "the bounds at the input itself leave no room for a box"
    NOT_FINITE = "the input holds NaN or infinity"
    OUTSIDE = "the input lies outside the domain"
    WRONG_SHAPE = "the input has another number of elements than the model"
    NO_SUCH_LABEL = "the label is not among the outputs"
    TIMEOUT = "the time limit was reached"
    UNPROVED = "the verifier did not prove the box"

    @property
    def word(self) -> str:
        """The name in the style of the command line."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True, eq=False)
class Region:
    """A certified box round a point, or why there is none.

    Attributes:
        status: ``CERTIFIED`` or ``BOUNDED`` where there is a box.
        point: (n,), as given, flat.
        label: the class that is kept; None for conditions from a file.
        lower, upper: (n,) faces of the box; None without one. Of an ellipsoid, those of the box
            that it touches: all ``point + a * v`` with a half their distance and ``|v| <= 1``. What
            is certified is its part in the domain.
        ball: whether it is an ellipsoid.
        free: (n,) inputs that might move: neither fixed nor held by the domain.
        uniform: radius of the largest uniform box that was found on the way.
        uniform_width: geometric mean width of that box, cut at the domain.
        margin: the smallest certified bound of any case, by linear bounds over the box.
        certified_by: what found it: ``bounds``, or ``growth`` for boxes that the verifier enlarged.
        certificate: that the checker accepted, of the file that `to_vnnlib` gives.
        witnesses: points just outside, (face, point); see `onnxcert.region.grow.Witness`.
        settled: (n, 2) faces that lie at the domain or have a witness; None unless grown.
        seconds: wall seconds by phase.
        rounds: of the solver.
    """

    status: Status
    point: FloatArray
    label: int | None = None
    lower: FloatArray | None = None
    upper: FloatArray | None = None
    ball: bool = False
    free: np.ndarray | None = None
    uniform: float = math.nan
    uniform_width: float = math.nan
    margin: float = math.nan
    certified_by: str = ""
    certificate: bytes = b""
    witnesses: tuple[Witness, ...] = ()
    settled: np.ndarray | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    rounds: int = 0
    statement: Statement | None = None

    @property
    def found(self) -> bool:
        """Whether there is a box."""
        return self.lower is not None

    @property
    def widths(self) -> FloatArray:
        """(2, n): how far the box reaches below and above the point.

        Raises:
            UsageError: there is no box.
        """
        if self.lower is None or self.upper is None:
            raise UsageError(f"there is no box: {self.status.value}")
        return np.stack([self.point - self.lower, self.upper - self.point])

    @property
    def log_volume(self) -> float:
        """The sum of the logarithms of all widths that are free; NaN without a box.

        The volume of an ellipsoid is that of the box that it touches times a constant.
        """
        if self.lower is None or self.upper is None or self.free is None:
            return math.nan
        with np.errstate(divide="ignore"):
            return float(np.log((self.upper - self.lower)[self.free]).sum())

    @property
    def mean_width(self) -> float:
        """Geometric mean of the widths that are free."""
        count = 0 if self.free is None else int(self.free.sum())
        return math.exp(self.log_volume / count) if count else math.nan

    @property
    def gain(self) -> float:
        """`mean_width` over that of the best uniform box."""
        return self.mean_width / self.uniform_width if self.uniform_width > 0 else math.nan

    def to_vnnlib(self) -> str:
        """The box, or the ellipsoid in its domain, and the negated condition as a VNN-LIB file.

        Its answer is ``unsat``.

        Raises:
            UsageError: there is no box.
        """
        if self.statement is None:
            raise UsageError(f"there is no box: {self.status.value}")
        return self.statement.text
