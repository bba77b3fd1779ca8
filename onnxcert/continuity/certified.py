"""Certified accuracy of whole data sets: global constants, linear bounds over balls, or both.

Global constants cost one forward pass per input and win at large radii; backward linear bounds
(CROWN over the Euclidean ball) see which neurons are stable near one input and win at small ones.
Either proves an input robust by itself, so their union does.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcert.arrays import Array, BoolArray, FloatArray, IntArray
from onnxcert.bounds.backward import pull_back
from onnxcert.bounds.crown import crown_bounds
from onnxcert.continuity.bound import (
    LipschitzBound,
    ModelSource,
    as_batch,
    lipschitz,
    margins,
    norm_name,
    radii,
)
from onnxcert.errors import InputError, UsageError
from onnxcert.frontend.onnx import Model, load_model
from onnxcert.graph import Graph
from onnxcert.sets import Ball, Box

METHODS = ("lipschitz", "backward", "union")

_BATCH_NUMBERS = 1 << 22
"""Numbers in the rows of one batch of linear bounds."""


@dataclass(frozen=True, eq=False)
class Certification:
    """What is proved of N inputs at E radii, over the reals.

    Attributes:
        eps: the radii (E,); norm: theirs.
        method: ``lipschitz``, ``backward`` or ``union``.
        predicted: (N,) the class that is larger than all others, or -1 for a tie.
        labels: (N,) or None.
        radius: (N,) certified by the global constants; None for ``backward``.
        robust: (E, N) whether no input within the radius has another class.
        bound: the global constants, or None.
    """

    eps: tuple[float, ...]
    norm: str
    method: str
    predicted: IntArray
    labels: IntArray | None
    radius: FloatArray | None
    robust: BoolArray
    bound: LipschitzBound | None

    @property
    def correct(self) -> BoolArray:
        """(N,) inputs classified as labelled; without labels all that have a class."""
        if self.labels is None:
            return np.asarray(self.predicted >= 0)
        return np.asarray(self.predicted == self.labels)

    @property
    def accuracy(self) -> float:
        """The share of correct inputs."""
        return float(self.correct.mean())

    @property
    def certified(self) -> FloatArray:
        """(E,) the share of inputs that are correct and robust (VRA)."""
        shares: FloatArray = (self.robust & self.correct).mean(axis=1)
        return shares


def certify(  # noqa: PLR0913 - all but three are keywords with defaults
    model: ModelSource,
    x: Array,
    labels: Array | None = None,
    *,
    eps: float | Sequence[float],
    norm: str | float = "2",
    method: str = "union",
    domain: tuple[float, float] | None = None,
    bound: LipschitzBound | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Certification:
    """Prove inputs robust.

    Args:
        model: path of an ONNX file, a model object, or a model that has been read: a classifier.
        x: (N, ...) inputs, one after the other.
        labels: (N,) classes, or None.
        eps: radii.
        norm: 2, inf, or 1 (``lipschitz`` only).
        method: global constants, linear bounds over each ball, or the union.
        domain: (low, high): linear bounds look at the part of the ball in there only.
        bound: global constants of the same model and norm, if they are known.
        cache: for `lipschitz`, if they are not.
        progress: called with how many inputs are done, of how many.

    Raises:
        UsageError: the arguments make no sense.
        ModelError: the model cannot be read or has no constants.
    """
    norm = norm_name(norm)
    wanted = tuple(float(e) for e in ([eps] if isinstance(eps, (int, float)) else eps))
    _check_options(wanted, norm, method, domain)
    read = model if isinstance(model, Model) else load_model(model)
    points, given = _checked(read, x, labels)
    robust = np.zeros((len(wanted), len(points)), dtype=bool)
    radius = None
    if method != "backward":
        bound = bound or lipschitz(read, norm=norm, cache=cache)
        if bound.norm != norm or bound.domain is not None or bound.model.sha256 != read.sha256:
            raise UsageError("the constants are of another model or norm, or hold on a domain only")
        radius = radii(bound, points)
        robust |= radius[None] > np.array(wanted)[:, None]
    predicted = _predicted(read, points)
    if method != "lipschitz":
        unproved = ~robust & (predicted >= 0)
        done, total = 0, int(unproved.sum())
        step = max(1, _BATCH_NUMBERS // (max(read.graph.sizes.values()) * 128))
        for number, e in enumerate(wanted):
            rows = np.flatnonzero(unproved[number])
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                proved = _linear(read.graph, points[part], predicted[part], e, norm, domain)
                robust[number, part] = proved
                done += len(part)
                progress(done, total)
    return Certification(wanted, norm, method, predicted, given, radius, robust, bound)


def _check_options(
    eps: Sequence[float], norm: str, method: str, domain: tuple[float, float] | None
) -> None:
    if method not in METHODS:
        raise UsageError(f"there is no method {method!r}", help=", ".join(METHODS))
    if not eps or not all(0.0 <= e < np.inf for e in eps):
        raise UsageError("radii are finite numbers of at least 0")
    if norm == "1" and method != "lipschitz":
        raise UsageError("linear bounds are for the norms 2 and inf", help="use lipschitz")
    if domain is not None and not domain[0] <= domain[1]:
        raise UsageError(f"[{domain[0]:g}, {domain[1]:g}] is no domain")


def _checked(model: Model, x: Array, labels: Array | None) -> tuple[FloatArray, IntArray | None]:
    """The inputs as rows, and the labels; refuses what does not fit the model."""
    points, classes = as_batch(model, x), model.graph.output_size
    if np.ndim(x) > 1 and len(points) != len(x):
        raise UsageError(
            f"the model has {model.graph.input_size} inputs, and x has shape {list(np.shape(x))}",
            help="the first axis of x counts the inputs",
        )
    if classes < 2:
        raise UsageError("the model has one output, so there are no classes")
    if labels is None:
        return points, None
    if np.shape(labels) != (len(points),):
        raise UsageError(f"there are {np.size(labels)} labels for {len(points)} inputs")
    labels = np.asarray(labels)
    wrong = np.flatnonzero(~((labels >= 0) & (labels < classes)))
    if len(wrong):
        raise UsageError(
            f"label {labels[wrong[0]]} of input {wrong[0]} is not one of {classes} classes",
            help="classes are numbered from 0",
        )
    return points, labels.astype(np.int64)


def _predicted(model: Model, points: FloatArray, chunk: int = 256) -> IntArray:
    """The class that is proved to be largest, -1 for ties, (N,)."""
    parts = []
    for start in range(0, len(points), chunk):
        winner, lead = margins(model.graph, points[start : start + chunk])
        parts.append(np.where((lead > 0.0).all(axis=1), winner, -1))
    return np.concatenate([*parts, np.zeros(0, dtype=np.int64)])


def _linear(
    graph: Graph,
    points: FloatArray,
    classes: IntArray,
    eps: float,
    norm: str,
    domain: tuple[float, float] | None,
) -> BoolArray:
    """Whether linear bounds prove the class of each point within eps, (B,)."""
    radius = np.full(len(points), np.nextafter(eps, np.inf))
    ball = Ball.around(points, radius)
    box: Box = ball if norm == "2" else Box(ball.lower, ball.upper)
    outside: Array = np.zeros(len(points), dtype=bool)
    if domain is not None:
        outside = np.asarray(((points < domain[0]) | (points > domain[1])).any(axis=1))
        box = box.intersect(Box(*(np.full((1, points.shape[1]), end) for end in domain)))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        found = crown_bounds(graph, box)
        rows = np.eye(graph.output_size)[classes][:, None] - np.eye(graph.output_size)
        lower = pull_back(found.relaxation, graph.output, rows).lower
    np.put_along_axis(lower, classes[:, None], np.inf, axis=1)
    result: BoolArray = (lower > 0.0).all(axis=1) & ~outside
    return result


def read_data(path: str | os.PathLike[str], limit: int | None = None) -> tuple[Array, Array | None]:
    """Inputs and labels from an ``.npz`` file.

    Args:
        path: of a file with the array ``x``, one input after the other in its first axis, and ``y``
            (N,) labels, if there are any.
        limit: take only so many.

    Raises:
        InputError: the file cannot be read, or does not hold that.
    """

    def refuse(cause: str) -> InputError:
        return InputError(cause, place=os.fspath(path), help="an .npz file with arrays x and y")

    try:
        with open(path, "rb") as file:
            stored = np.load(file, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise refuse("this is a single array")
            if "x" not in stored:
                raise refuse(f"there is no array x, but {', '.join(stored.files) or 'nothing'}")
            x, y = stored["x"], stored.get("y")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise refuse(f"the data cannot be read: {' '.join(str(error).split())}") from error
    if x.ndim < 1 or x.dtype.kind not in "fiub" or len(x) == 0:
        raise refuse(f"x has type {x.dtype} and shape {list(x.shape)}")
    if y is not None and (y.dtype.kind not in "iu" or y.shape != (len(x),)):
        raise refuse(f"y has type {y.dtype} and shape {list(y.shape)}, x {list(x.shape)}")
    return x[:limit], None if y is None else y[:limit]
