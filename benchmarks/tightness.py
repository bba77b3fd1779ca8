"""Our bounds beside stored reference bounds: equal boxes, equal rows, how tight and how long?

::

    python benchmarks/tightness.py FOLDER

FOLDER holds, per network, ``NET.onnx``, ``NET.npz`` (boxes ``xL``, ``xU``, margin rows ``C``) and
the reference ``lb_NET_b1_METHOD.npy``, lower bounds of all margins over the first box, for
``CROWN`` and ``alpha-CROWN``. Sums of all margins are printed: higher is tighter. The references
are binary32 without outward rounding, ours float64 with all rounding charged.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from onnxcert.arrays import Array
from onnxcert.bounds.backward import pull_back
from onnxcert.bounds.crown import crown_bounds
from onnxcert.bounds.intermediate import tighten
from onnxcert.bounds.optimised import Forms, FreeRelaxation, Start, optimise
from onnxcert.frontend.onnx import load_model
from onnxcert.graph import Graph
from onnxcert.passes import drop_dead_neurons
from onnxcert.sets import Box

REPEATS = 3
STEPS = 20


def crown(graph: Graph, box: Box, rows: Array) -> Array:
    """CROWN bounds of all layers, then of the margins."""
    relaxation = crown_bounds(graph, box).relaxation
    return pull_back(relaxation, graph.output, rows[None]).lower[0]


def optimised(graph: Graph, box: Box, rows: Array) -> Array:
    """CROWN, then slopes of every unstable neuron and of every margin optimised."""
    graph, boxes = drop_dead_neurons(graph, crown_bounds(graph, box).boxes)
    boxes = tighten(graph, boxes, steps=STEPS)
    count = len(rows)
    forms = Forms(rows[:, None], None, np.zeros((count, 1)), np.ones((count, 1), dtype=bool))
    start = Start.at_form(np.zeros(count, dtype=int), forms)
    free = FreeRelaxation.build(graph, boxes)
    return optimise(free, forms, boxes[graph.output], start, steps=STEPS).lower


METHODS: dict[str, Callable[[Graph, Box, Array], Array]] = {
    "CROWN": crown,
    "alpha-CROWN": optimised,
}


def main() -> None:
    folder = Path(sys.argv[1])
    print("| network | method | reference sum | our sum | our median s |")
    print("| --- | --- | ---: | ---: | ---: |")
    for name, method in METHODS.items():
        for path in sorted(folder.glob(f"lb_*_b1_{name}.npy")):
            network = path.name.removeprefix("lb_").removesuffix(f"_b1_{name}.npy")
            data = np.load(folder / f"{network}.npz")
            graph = load_model(folder / f"{network}.onnx").graph
            box = Box(*(data[side][:1].reshape(1, -1).astype(float) for side in ("xL", "xU")))
            rows = data["C"][0].astype(float)
            seconds = []
            for _ in range(REPEATS):
                started = time.monotonic()
                lower = method(graph, box, rows)
                seconds.append(time.monotonic() - started)
            reference = float(np.load(path).sum())
            ours = float(lower.sum())
            print(f"| {network} | {name} | {reference:.6g} | {ours:.6g} | {median(seconds):.3f} |")


if __name__ == "__main__":
    main()
