"""A picture of certified accuracy over radii (extra ``plot``)."""

from __future__ import annotations

import os

import numpy as np

from onnxcert.arrays import FloatArray
from onnxcert.continuity.certified import Certification
from onnxcert.pictures import check_format, new_figure, save_figure

_BEYOND = 1.25
"""How much further than the largest radius that was asked for the curve goes."""

_MOST_STEPS = 2000


def accuracy_curve(done: Certification) -> tuple[FloatArray, FloatArray]:
    """Certified accuracy by global constants as a step function of the radius.

    Args:
        done: by a method that has them.

    Returns:
        (radii from 0 in ascending order, the share of inputs that are correct and certified there).
    """
    assert done.radius is not None
    reached = np.sort(np.where(done.correct, done.radius, 0.0))
    end = max(_BEYOND * max(done.eps), np.finfo(float).tiny)
    inner = np.unique(reached[(reached > 0.0) & (reached < end)])
    if len(inner) > _MOST_STEPS:  # later radii and smaller shares: never above the curve
        inner = inner[:: -(-len(inner) // _MOST_STEPS)]
    radii = np.concatenate([[0.0], inner, [end]])
    above = len(reached) - np.searchsorted(reached, radii, side="right")
    return radii, above / len(reached)


def draw_accuracy(path: str | os.PathLike[str], done: Certification) -> None:
    """Draw clean accuracy, the curve of the global constants, and the radii that were asked for.

    Args:
        path: of the picture; its ending says the format; none is PNG.
        done: what was certified.

    Raises:
        UsageError: matplotlib is missing, or the file cannot be written.
    """
    check_format(path)
    figure = new_figure(figsize=(6.0, 4.0), layout="constrained")
    axis = figure.subplots()
    axis.axhline(100.0 * done.accuracy, linestyle="--", color="0.5", label="without a radius")
    if done.radius is not None:
        radii, shares = accuracy_curve(done)
        axis.step(radii, 100.0 * shares, where="post", label="global constants")
    axis.plot(done.eps, 100.0 * done.certified, "o", color="C1", label=f"method {done.method}")
    axis.set_xlim(0.0, _BEYOND * max(done.eps) or 1.0)
    axis.set_ylim(0.0, 100.0)
    axis.set_xlabel(f"radius, norm {done.norm}")
    what = "correct" if done.labels is not None else "with a class"
    axis.set_ylabel(f"{what} and robust, % of {len(done.predicted)} inputs")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower left")
    save_figure(figure, path)
