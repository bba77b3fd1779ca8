"""What `onnxcert.largest_regions` is asked for, and whether it makes sense."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from onnxcert.arrays import FloatArray
from onnxcert.errors import SpecError, UsageError
from onnxcert.graph import Graph
from onnxcert.region.condition import Condition
from onnxcert.region.solver import Shape

Method = Literal["lagrangian", "paper"]


@dataclass(frozen=True)
class Options:
    """What `largest_regions` is asked for beside the points; see there."""

    label: int | Sequence[int | None] | None = None
    margin: float = 0.0
    spec: str | os.PathLike[str] | None = None
    domain: tuple[ArrayLike, ArrayLike] | None = None
    shape: Shape = "free"
    norm: Literal["inf", "2"] = "inf"
    shared: bool = False
    freeze: ArrayLike | None = None
    weights: ArrayLike | None = None
    method: Method = "lagrangian"
    grow: float = 0.0
    certified: bool = True
    device: str = "auto"
    timeout: float | None = None
    seed: int = 0


def check_options(options: Options) -> None:
    """Refuse options that make no sense, by themselves or together.

    Raises:
        UsageError: with the option and what it may be.
    """
    if options.timeout is not None and not (options.timeout > 0 and math.isfinite(options.timeout)):
        raise UsageError(f"the timeout is a positive number of seconds, not {options.timeout}")
    if not (math.isfinite(options.grow) and options.grow >= 0):
        raise UsageError(f"growth takes a number of seconds, not {options.grow}")
    if not (math.isfinite(options.margin) and options.margin >= 0):
        raise UsageError(f"the margin is a number from 0, not {options.margin}")
    for value, known in (
        (options.shape, ("free", "symmetric", "uniform")),
        (options.norm, ("inf", "2")),
        (options.method, ("lagrangian", "paper")),
    ):
        if value not in known:
            raise UsageError(f"there is no {value!r}", help=f"one of {', '.join(known)}")
    if options.norm == "2" and (options.shared or options.grow or options.method == "paper"):
        raise UsageError("ellipsoids do not grow or share their axes")
    if options.method == "paper" and (
        options.shared or options.shape == "uniform" or options.weights is not None
    ):
        raise UsageError("the paper's method has no weights, and no shared or uniform widths")
    if options.shared and options.shape == "free":
        raise UsageError("widths for all points are symmetric or uniform")
    if options.grow and (options.shared or options.shape != "free" or not options.certified):
        raise UsageError("only proved boxes with free widths grow")
    if options.spec is not None and options.label is not None:
        raise UsageError("a specification takes the place of a label")


def check_fit(spec: Condition, graph: Graph, source: object) -> None:
    """Compare numbers of inputs and outputs.

    Raises:
        SpecError: they differ.
    """
    rows, _ = spec.forms()
    assert spec.lower is not None
    if len(spec.lower) != graph.input_size or rows.shape[2] != graph.output_size:
        raise SpecError(
            f"the specification has {len(spec.lower)} inputs and {rows.shape[2]} outputs, "
            f"the model {graph.input_size} and {graph.output_size}",
            place=str(source),
        )


def read_domain(
    options: Options, spec: Condition | None, size: int
) -> tuple[FloatArray, FloatArray]:
    """Smallest and largest values of every input, (n,) each.

    Raises:
        UsageError: they are no numbers, too many or too few, or cross.
    """
    if options.domain is None:
        if spec is None or spec.lower is None or spec.upper is None:
            return np.full(size, -np.inf), np.full(size, np.inf)
        return spec.lower, spec.upper
    try:
        first, last = options.domain
    except (TypeError, ValueError) as error:
        raise UsageError("the domain is a pair of smallest and largest values") from error
    low, high = (read_vector(side, size, "domain", 0.0) for side in (first, last))
    if np.isnan(low).any() or np.isnan(high).any() or (low > high).any():
        raise UsageError("the domain is empty: a smallest value is above the largest one")
    return low, high


def read_vector(values: ArrayLike | None, size: int, name: str, default: float) -> FloatArray:
    """One number for each of ``size`` inputs.

    Raises:
        UsageError: there are no numbers, or too many or too few.
    """
    try:
        vector = np.asarray(default if values is None else values, dtype=np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name}: not an array of numbers") from error
    if vector.size not in (1, size):
        raise UsageError(f"{name}: {vector.size} numbers for {size} inputs")
    return np.broadcast_to(vector, size)


def read_labels(label: int | Sequence[int | None] | None, count: int) -> list[int | None]:
    """One label, or None, for each point.

    Raises:
        UsageError: there are more or fewer labels than points, or they are no whole numbers.
    """
    single = label is None or isinstance(label, int | np.integer)
    try:
        values: list[Any] = [label] * count if single else list(label)  # type: ignore[arg-type]
        labels = [None if value is None else operator.index(value) for value in values]
    except TypeError as error:
        raise UsageError("labels are whole numbers") from error
    if len(labels) != count:
        raise UsageError(f"{len(labels)} labels for {count} points")
    return labels
