"""The proof of a finished box: an ordinary instance, answered by the verifier from its file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxcert.arrays import FloatArray
from onnxcert.frontend.onnx import Model
from onnxcert.frontend.write import format_vnnlib
from onnxcert.region.condition import Condition
from onnxcert.settings import Settings
from onnxcert.spec import Squares
from onnxcert.verdict import Counterexample, Progress, Reason, Result, Sat, Unknown, Unsat
from onnxcert.verifier import verify

if TYPE_CHECKING:
    import onnx

_GRID = 2.0**-20
"""Faces are multiples of this share of the width, rounded to a power of two."""

QUICK = Settings(attack_restarts=0, watch="off")
"""The bounds hold already: there is nothing to be attacked, and no search to be watched."""


@dataclass(frozen=True, eq=False)
class Statement:
    """A box, or its part in an ellipsoid, and what cannot happen in it.

    Attributes:
        model: of whom it speaks.
        source: that model, as a path or an object.
        condition: what cannot happen.
        lower, upper: (n,), exactly the numbers that are written.
        squares: center and weights (n,) of the ellipsoid ``sum weights (x - center)^2 <= 1``, also
            as written; None for the whole box.
    """

    model: Model
    source: str | os.PathLike[str] | onnx.ModelProto
    condition: Condition
    lower: FloatArray
    upper: FloatArray
    squares: tuple[FloatArray, FloatArray] | None = None

    @property
    def text(self) -> str:
        """The VNN-LIB file: 1.0 for boxes with one input and one output, else 2.0."""
        inputs, outputs = self.model.inputs, self.model.outputs
        asked = self.condition.specification(self.lower, self.upper)
        if self.squares is not None:
            center, weights = (tuple(map(Fraction, part.tolist())) for part in self.squares)
            asked = replace(asked, squares=Squares(weights, center, Fraction(1)))
        query = asked.to_query([info.shape for info in inputs], [info.shape for info in outputs])
        old = len(inputs) == len(outputs) == 1 and self.squares is None
        return format_vnnlib(query, "1.0" if old else "2.0")

    def ask(
        self,
        *,
        timeout: float | None = None,
        device: str = "auto",
        seed: int = 0,
        settings: Settings = QUICK,
        certified: bool = True,
        progress: Callable[[Progress], None] | None = None,
    ) -> Answer:
        """Write the file, have it answered, and take the certificate that the checker accepted.

        Raises:
            KeyboardInterrupt: that is how the verifier was interrupted.
        """
        with tempfile.TemporaryDirectory(prefix="onnxcert-") as folder:
            spec, proof = Path(folder) / "region.vnnlib", Path(folder) / "region.onnxcert"
            spec.write_text(self.text, encoding="utf-8")
            result = verify(
                self.source,
                spec,
                timeout=timeout,
                device=device,
                seed=seed,
                settings=settings,
                progress=progress,
                certificate=proof if certified else None,
                certified=certified,
            )
            if result.verdict == Unknown(Reason.INTERRUPTED):
                raise KeyboardInterrupt
            data = proof.read_bytes() if certified and proof.exists() else b""
        return Answer(result, data if isinstance(result.verdict, Unsat) else b"")


@dataclass(frozen=True, eq=False)
class Answer:
    """What the verifier said of a statement.

    Attributes:
        result: its result; ``Unsat`` is the wish.
        certificate: accepted by the checker; empty where there is none.
    """

    result: Result
    certificate: bytes

    @property
    def holds(self) -> bool:
        """Whether the statement is true."""
        return isinstance(self.result.verdict, Unsat)

    @property
    def counterexample(self) -> Counterexample | None:
        """A point of the box where the condition is violated, as the runtime computed it."""
        verdict = self.result.verdict
        return verdict.counterexample if isinstance(verdict, Sat) else None


def round_inward(
    point: FloatArray, lower: FloatArray, upper: FloatArray, domain: tuple[FloatArray, FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """Faces with few binary digits, so that their exact decimals are short; never outward.

    Args:
        point: (n,) inside the box.
        lower, upper: (n,) faces.
        domain: faces that stay as they are where the box reaches them.
    """
    width = upper - lower
    grid = np.where(width > 0, 2.0 ** np.floor(np.log2(np.where(width > 0, width, 1.0))), 0) * _GRID
    grid = np.maximum(grid, 1e-290)
    # Beyond 2^52 multiples rounding would not be exact; those faces are kept.
    coarse = (width > 0) & (np.maximum(abs(lower), abs(upper)) < grid * 2.0**52)
    low = np.where(coarse & (lower != domain[0]), np.ceil(lower / grid) * grid, lower)
    high = np.where(coarse & (upper != domain[1]), np.floor(upper / grid) * grid, upper)
    return np.minimum(low, point), np.maximum(high, point)


def ellipsoid_inward(
    point: FloatArray, axes: FloatArray, domain: tuple[FloatArray, FloatArray]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """An ellipsoid with weights of few binary digits inside one with given semi-axes.

    Args:
        point: (n,) the centre.
        axes: (n,) semi-axes; zero for inputs that do not move.
        domain: faces that cut it.

    Returns:
        Its weights, zero for inputs that do not move, and a box that contains the part of it in the
        domain: faces (n,) of short decimals, too, where they are not those of the domain.
    """
    moving = axes > 0
    exact = 1.0 / np.where(moving, axes, 1.0) ** 2
    grid = 2.0 ** np.floor(np.log2(exact)) * _GRID
    weights = np.where(moving, (np.floor(exact / grid) + 2.0) * grid, 0.0)
    step = np.where(moving, 2.0 ** np.floor(np.log2(np.where(moving, axes, 1.0))), 0.0) * _GRID
    # Beyond 2^52 multiples rounding would not be exact; those faces are rounded as they are.
    coarse = moving & (abs(point) + axes < step * 2.0**52)
    step = np.where(coarse, step, 1.0)
    low, high = point - axes, point + axes
    low = np.where(coarse, (np.floor(low / step) - 1.0) * step, np.nextafter(low, -np.inf))
    high = np.where(coarse, (np.ceil(high / step) + 1.0) * step, np.nextafter(high, np.inf))
    low, high = (np.where(moving, face, point) for face in (low, high))
    return weights, np.maximum(low, domain[0]), np.minimum(high, domain[1])
