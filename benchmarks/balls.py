"""Euclidean balls round images: what linear bounds certify, and what the whole verifier decides.

::

    python benchmarks/balls.py MODEL.onnx... --data DATA.npz [--count N] [--eps E,E] [--seconds S]
    python benchmarks/balls.py MODEL.onnx... --data DATA.npz [--count N] --regions

DATA.npz holds ``x`` (inputs as the models want them) and ``y`` (labels). The inputs are those of
the ball that lie in [0, 1]. Of the images that a model classifies rightly, a line for each radius:

ball: certified by linear bounds over the ball alone, without the domain. better: for each linear
form the better of its bounds over the ball and over the box. both: for their intersection, as
`onnxcert.sets.Ball.divide` does. unsat, sat: answers of the verifier in ``--seconds``, each
unsat with a certificate that the checker has accepted, each sat replayed. CPU seconds,
``OMP_NUM_THREADS=1``.

regions: the largest ellipsoids, without and with the domain, each proved from its file: the mean of
the logarithmic gain in mean axis over the best ball, as a factor, and the geometric mean axis.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from unittest import mock

import numpy as np

from onnxcert import certify, l2_ball, largest_regions, load_model, verify
from onnxcert.arrays import Array
from onnxcert.region.regions import Status
from onnxcert.sets import Ball


def over_the_ball(ball: Ball, rows: Array) -> tuple[Array, Array]:
    """In the place of `Ball.divide`: all of every form for the ellipsoid."""
    return np.where(ball.axes[:, None] > 0, rows, 0.0), rows


def linear_shares(path: str, x: Array, y: Array, eps: float) -> list[str]:
    """How many images linear bounds certify, with the seconds for all of them."""
    cells = []
    for domain, divides in ((None, True), ((0.0, 1.0), False), ((0.0, 1.0), True)):
        started = time.process_time()
        with mock.patch.object(Ball, "divide", Ball.divide if divides else over_the_ball):
            found = certify(path, x, y, eps=eps, method="backward", domain=domain)
        certified = round(float(found.certified[0]) * len(x))
        cells.append(f"{certified} ({time.process_time() - started:.1f} s)")
    return cells


def answers(path: str, x: Array, y: Array, eps: Decimal, seconds: float) -> list[str]:
    """The verdicts of whole runs."""
    words: Counter[str] = Counter()
    spent: list[float] = []
    for image, label in zip(x, y, strict=True):
        started = time.process_time()
        ball = l2_ball(image, eps, label=int(label), domain=(0, 1))
        result = verify(path, ball, timeout=seconds)
        assert result.word != "unsat" or (result.proof and result.proof.accepted)
        words[result.word] += 1
        if result.word in ("sat", "unsat"):
            spent.append(time.process_time() - started)
    rest = len(x) - words["unsat"] - words["sat"]
    return [
        str(words["unsat"]),
        str(words["sat"]),
        str(rest),
        f"{np.median(spent or [np.nan]):.1f}",
    ]


def regions(path: str, x: Array) -> None:
    """A line without the domain, and one with it."""
    for domain in (None, (0.0, 1.0)):
        started = time.process_time()
        found = largest_regions(path, list(x), norm="2", domain=domain)
        seconds = (time.process_time() - started) / len(x)
        certified = [region for region in found if region.status is Status.CERTIFIED]
        gain, width = (
            np.exp(np.mean([np.log(getattr(region, name)) for region in certified]))
            for name in ("gain", "mean_width")
        )
        least = min(region.gain for region in certified)
        cells = Path(path).stem, "[0, 1]" if domain else "none", len(x), len(certified)
        numbers = f"{gain:.3f}", f"{least:.3f}", f"{width / 2:.3f}", f"{seconds:.1f}"
        print(f"| {' | '.join(map(str, (*cells, *numbers)))} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--eps", default="0.3,0.5,1.0")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--regions", action="store_true")
    options = parser.parse_args()
    with np.load(options.data) as stored:
        x, y = stored["x"][: options.count], stored["y"][: options.count].astype(np.int64)
    header = "net | radius | images | ball | better | both | unsat | sat | open | median s"
    if options.regions:
        header = "net | domain | images | certified | gain | least gain | mean axis | s each"
    print(f"| {header} |\n|{'---|' * len(header.split('|'))}", flush=True)
    for path in options.models:
        outputs = load_model(path).graph.forward(x.reshape(len(x), -1).astype(np.float64))
        right = outputs.argmax(axis=1) == y
        if options.regions:
            regions(path, x[right].reshape(int(right.sum()), -1))
            continue
        for eps in options.eps.split(","):
            some = x[right].reshape(int(right.sum()), -1), y[right]
            cells = linear_shares(path, *some, float(eps))
            cells += answers(path, *some, Decimal(eps), options.seconds)
            print(f"| {' | '.join([Path(path).stem, eps, str(right.sum()), *cells])} |", flush=True)


if __name__ == "__main__":
    main()
