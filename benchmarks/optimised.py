"""Our bounds beside those of auto_LiRPA, measured by turns: how tight, and at what CPU time?

::

    python benchmarks/optimised.py MODEL=BOXES ... --peer-python PYTHON [--batch 1,128]
        [--methods pass,crown,fixed,joint] [--repeats 5] [--device cpu|cuda] [--out DIR]

MODEL is an ``.onnx`` file, ``.gz`` or not. BOXES is a ``.vnnlib`` file, ``.gz`` or not, whose first
box and rows are taken, or an ``.npz`` file with boxes ``xL``, ``xU`` and margin rows ``C``, of
which the first are taken. A batch of more than one box has copies of it, each with its centre moved
by up to a tenth of the radius in every input. Rows are bounded from below, without their offsets.
PYTHON has torch, auto_LiRPA, onnx and onnx2pytorch installed; without it only our bounds are
measured.

Methods:

- ``pass``: one backward pass of the rows. Bounds of all layers are given, to all tools those that
  our CROWN has, which keeps interval bounds where they are tighter; lines are not.
- ``crown``: CROWN, that is bounds of all layers, then that pass.
- ``fixed``: ascent on the slopes of every row, bounds of the layers given as above: as many
  passes and gradient steps as asked for, and a last pass. Nothing stops early.
- ``joint``: CROWN, then slopes of the layers and of the rows. auto_LiRPA optimises all of them at
  once for the sum of the row bounds: each step bounds all layers again, each of their neurons with
  slopes of its own. We take the layers in order, and each unstable neuron by itself: bounds of the
  layers before are final by then, and a neuron that became stable takes no more steps
  (`onnxcert.bounds.intermediate`). Steps are as many per neuron and per row, and the loops differ.

Tools: ``onnxcert`` over the graph as it was read, and ``onnxcert-small`` without neurons that are
dead on the whole batch, as the search has it, dropped beforehand and not timed (``joint`` drops
them itself, and that is timed); both in float64 with rounding charged, and auto_LiRPA in float64
and float32. Every tool is a process of its own with one thread, and they take turns, so that all
see the same machine. CPU seconds are the least of all repeats after one warm-up run, on a GPU wall
seconds. Reading models, converting them and, for ``fixed``, initial slopes are not timed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from serving import Method, Worker, WorkerLostError, end_in_order, serve

from onnxcert.arrays import (
    Array,
    array_module,
    concatenate,
    keep_freed_memory,
    select_device,
    to_device,
)
from onnxcert.bounds.backward import Relaxation, pull_back
from onnxcert.bounds.crown import crown_bounds
from onnxcert.bounds.intermediate import tighten
from onnxcert.bounds.optimised import ASCENT_NUMBERS, Forms, FreeRelaxation, Start, optimise
from onnxcert.frontend.onnx import load_model
from onnxcert.graph import Graph
from onnxcert.instance import Instance
from onnxcert.ops.base import Elementwise
from onnxcert.passes import drop_dead_neurons
from onnxcert.sets import Box

METHODS = ("pass", "crown", "fixed", "joint")
SHIFT = 0.1
"""Copies of a box move by up to this share of its radius."""

Boxes = Mapping[str, Box]


def lines(graph: Graph, boxes: Boxes) -> Relaxation:
    """The relaxation with default slopes for given bounds of all values."""
    relaxation = Relaxation(graph, boxes[graph.input])
    for node in graph.nodes:
        if isinstance(node.op, Elementwise):
            relaxation.add_elementwise(node, boxes, node.op.relax(boxes[node.inputs[0]]))
        else:
            relaxation.add_affine(node, boxes)
    return relaxation


def one_pass(graph: Graph, boxes: Boxes, rows: Array) -> Array:
    """Lower bounds of rows (R, m) over B boxes by one backward pass: (B, R)."""
    batch = array_module(rows).broadcast_to(rows, (len(boxes[graph.input]), *rows.shape))
    return pull_back(lines(graph, boxes), graph.output, batch).lower


def crown(graph: Graph, box: Box, rows: Array) -> Array:
    """Likewise, with CROWN bounds of the layers."""
    found = crown_bounds(graph, box)
    batch = array_module(rows).broadcast_to(rows, (len(box), *rows.shape))
    return pull_back(found.relaxation, graph.output, batch).lower


def ascent(graph: Graph, boxes: Boxes, rows: Array, steps: int) -> Array:
    """Optimised lower bounds of every row over every box, with slopes of its own: (B, R)."""
    count, number, xp = len(boxes[graph.input]), len(rows), array_module(rows)
    if count == 1:
        return _ascent(graph, boxes, rows, steps)[None]
    slopes = sum(n.op.output_size for n in graph.nodes if isinstance(n.op, Elementwise))
    step = max(1, ASCENT_NUMBERS // (slopes * number))
    parts = []
    for start in range(0, count, step):
        chosen = slice(start, start + step)
        repeated = {
            name: Box(*(xp.repeat(side[chosen], number, axis=0) for side in (box.lower, box.upper)))
            for name, box in boxes.items()
        }
        here = len(repeated[graph.input]) // number
        found = _ascent(graph, repeated, xp.tile(rows, (here, 1)), steps)
        parts.append(found.reshape(here, number))
    return concatenate(parts)


def _ascent(graph: Graph, boxes: Boxes, rows: Array, steps: int) -> Array:
    output = boxes[graph.output]
    # A form that is never positive never stops the ascent; its offset is no variable.
    shift = 1.0 + (abs(rows) * output.magnitude).sum(axis=1)
    count, xp = len(rows), array_module(rows)
    used = xp.ones((count, 1), dtype=bool)
    forms = Forms(rows[:, None], None, -shift[:, None], used)
    start = Start.at_form(xp.zeros(count, dtype=int), forms)
    free = FreeRelaxation.build(graph, boxes)
    return optimise(free, forms, output, start, steps=steps).lower + shift


def joint(graph: Graph, box: Box, rows: Array, steps: int) -> Array:
    """CROWN, optimised bounds of the layers, then of the rows; one box after the other."""
    parts = []
    for number in range(len(box)):
        single = Box(box.lower[number : number + 1], box.upper[number : number + 1])
        small, boxes = drop_dead_neurons(graph, crown_bounds(graph, single).boxes)
        boxes = tighten(small, boxes, steps=steps)
        small, boxes = drop_dead_neurons(small, boxes)
        parts.append(ascent(small, boxes, rows, steps))
    return concatenate(parts)


def prepare(task: Mapping[str, Any]) -> dict[str, Method]:
    """Our methods.

    Args:
        task: ``onnx``, the model; ``data``, an ``.npz`` file with boxes ``lower``, ``upper``, (B,
            n), and rows ``C``, (R, m), beside bounds of the layers for peers; ``steps``; ``shape``
            of the model's input; ``small``, whether to drop dead neurons; ``device``.
    """
    keep_freed_memory()  # as `onnxcert.verifier` does
    device = select_device(task["device"])
    with np.load(task["data"]) as data:
        lower, upper, rows = (to_device(data[key], device) for key in ("lower", "upper", "C"))
    box, steps = Box(lower, upper), task["steps"]
    graph = load_model(task["onnx"], input_elements=lower.shape[1]).graph.to(device)
    boxes = crown_bounds(graph, box).boxes
    late: dict[str, Callable[[], Array]] = {
        "crown": partial(crown, graph, box, rows),
        "joint": partial(joint, graph, box, rows, steps),
    }
    if task["small"]:
        hull = {
            name: Box(known.lower.min(axis=0)[None], known.upper.max(axis=0)[None])
            for name, known in boxes.items()
        }
        graph, _ = drop_dead_neurons(graph, hull)
        boxes = crown_bounds(graph, box).boxes
        late = {}
    early: dict[str, Callable[[], Array]] = {
        "pass": partial(one_pass, graph, boxes, rows),
        "fixed": partial(ascent, graph, boxes, rows, steps),
    }
    return {name: partial(_same, run) for name, run in (early | late).items()}


def _same(run: Callable[[], Array]) -> Callable[[], Array]:
    return run


@dataclass(frozen=True)
class Task:
    """A network with a box and rows.

    Attributes:
        name: of the model, and of the specification if that is where the box is from.
        onnx: the model, not compressed.
        shape: of its input.
        box: a batch of one.
        rows: (R, m).
    """

    name: str
    onnx: Path
    shape: Sequence[int]
    box: Box
    rows: Array

    @classmethod
    def read(cls, model: Path, boxes: Path, folder: Path) -> Task:
        """Read a model and the first box and rows of a file; unpack what is compressed."""
        name = model.name.removesuffix(".gz").removesuffix(".onnx")
        if model.suffix == ".gz":
            target = folder / f"{name}.onnx"
            target.write_bytes(gzip.decompress(model.read_bytes()))
            model = target
        if boxes.suffix == ".npz":
            data = np.load(boxes)
            sides = (data[side][:1].reshape(1, -1).astype(float) for side in ("xL", "xU"))
            box, rows = Box(*sides), data["C"][0].astype(float)
        else:
            problem = next(iter(Instance.read(model, boxes).lowered.cases))
            box = Box(problem.lower[:1], problem.upper[:1])
            numbers = np.unique(problem.case_rows[problem.case_box == 0])
            rows = problem.output_rows[numbers[numbers >= 0]]
            name = f"{name}:{boxes.name.partition('.vnnlib')[0]}"
        read = load_model(model, input_elements=box.lower.shape[1])
        return cls(name, model.resolve(), read.inputs[0].shape, box, rows)

    def store(self, batch: int, folder: Path) -> Path:
        """Write as many boxes as asked for, the rows, and bounds of what each curve reads."""
        rng = np.random.default_rng(0)
        radius = 0.5 * (self.box.upper - self.box.lower)
        moved = SHIFT * radius * rng.uniform(-1.0, 1.0, (batch, radius.shape[1]))
        moved[0] = 0.0
        path = folder / f"{self.name}_{batch}.npz"
        box = Box(self.box.lower + moved, self.box.upper + moved)
        layers = layer_bounds(load_model(self.onnx, input_elements=box.lower.shape[1]).graph, box)
        np.savez(path, lower=box.lower, upper=box.upper, C=self.rows, **layers)
        return path


def layer_bounds(graph: Graph, box: Box) -> dict[str, Array]:
    """``lower_K``, ``upper_K``: CROWN bounds, (B, n), of what the K-th elementwise node reads.

    Entries have the order of the file's tensors.
    """
    boxes = crown_bounds(graph, box).boxes
    curves = [node for node in graph.nodes if isinstance(node.op, Elementwise)]
    result = {}
    for number, node in enumerate(curves):
        assert node.neurons is not None
        known = boxes[node.inputs[0]]
        place = node.neurons.at(np.arange(known.lower.shape[1]))
        for side in ("lower", "upper"):
            ordered = np.empty_like(getattr(known, side))
            ordered[:, place] = getattr(known, side)
            result[f"{side}_{number}"] = ordered
    return result


@dataclass(frozen=True)
class Cell:
    """One method of one tool on one batch.

    Attributes:
        total: sum of all lower bounds; None when there are none.
        cpu, wall: least seconds of one run.
        peak: resident megabytes of the process so far.
        runs: how often it was timed.
        note: why there is no result.
    """

    network: str
    batch: int
    method: str
    tool: str
    total: float | None = None
    cpu: float = 0.0
    wall: float = 0.0
    peak: float = 0.0
    runs: int = 0
    note: str = ""


@dataclass(frozen=True)
class Limits:
    """Runs after the warm-up, seconds and address space of one run, CPU seconds of all runs."""

    repeats: int
    seconds: float
    gigabytes: float
    budget: float


def compare(
    workers: Mapping[str, Worker], network: str, batch: int, method: str, limits: Limits
) -> list[Cell]:
    """Let the tools take turns at one method.

    The warm-up counts for those to which it took all they may take.
    """
    replies: dict[str, list[dict[str, float]]] = {tool: [] for tool in workers}
    notes: dict[str, str] = {}
    spent = dict.fromkeys(workers, 0.0)
    for turn in range(limits.repeats + 1):
        for tool, worker in workers.items():
            if tool in notes or (turn > 0 and spent[tool] >= limits.budget):
                continue
            try:
                reply = worker.run(method, limits.seconds)
            except KeyError:
                notes[tool] = "-"
            except WorkerLostError as loss:
                notes[tool] = str(loss)
            else:
                spent[tool] += reply["cpu"]
                if turn > 0 or spent[tool] >= limits.budget:
                    replies[tool].append(reply)
    cells = []
    for tool, found in replies.items():
        cell = Cell(network, batch, method, tool, note=notes.get(tool, ""))
        if found:
            cpu, wall = (min(reply[key] for reply in found) for key in ("cpu", "wall"))
            last = found[-1]
            place = (network, batch, method, tool)
            cell = Cell(*place, last["sum"], cpu, wall, last["peak"], len(found))
        cells.append(cell)
    return cells


def table(cells: Sequence[Cell], tools: Sequence[str], clock: str = "cpu") -> str:
    """Markdown: sums of lower bounds (higher is tighter), seconds by one of the two clocks, and how
    many times our seconds the peers take, of our faster tool."""
    peers = [tool for tool in tools if tool not in OURS]
    head = ["network", "batch", "method", *(f"sum {tool}" for tool in tools)]
    head += [f"{clock} s {tool}" for tool in tools] + [f"{tool} / onnxcert" for tool in peers]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    known = {(cell.network, cell.batch, cell.method, cell.tool): cell for cell in cells}
    for place in dict.fromkeys((cell.network, cell.batch, cell.method) for cell in cells):
        here = [known[*place, tool] for tool in tools]
        done = {cell.tool: cell for cell in here if cell.total is not None}
        seconds = {tool: getattr(cell, clock) for tool, cell in done.items()}
        least = min((seconds[tool] for tool in OURS if tool in done), default=None)
        row = [place[0], str(place[1]), place[2]]
        row += [cell.note if cell.total is None else f"{cell.total:.6g}" for cell in here]
        row += [f"{seconds[cell.tool]:.3g}" if cell.tool in done else "" for cell in here]
        row += [f"{seconds[t] / least:.2f}" if least and t in done else "" for t in peers]
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


OURS = ("onnxcert", "onnxcert-small")


def commands(python: Path | None, conv_mode: str) -> dict[str, list[str]]:
    """Tool -> how its worker is started."""
    own = [sys.executable, __file__, "serve"]
    found = dict.fromkeys(OURS, own)
    if python is not None:
        peer = str(Path(__file__).resolve().with_name("optimised_peer.py"))
        for element in ("float64", "float32"):
            options = ["--element", element, "--conv-mode", conv_mode]
            found[f"auto_LiRPA-{element}"] = [str(python), peer, *options]
    return found


def measure(arguments: argparse.Namespace, folder: Path) -> list[Cell]:
    """All networks, batches and methods."""
    memory = arguments.memory if arguments.device == "cpu" else math.inf
    limits = Limits(arguments.repeats, arguments.limit, memory, arguments.budget)
    cells: list[Cell] = []
    for pair in arguments.networks:
        model, _, boxes = pair.partition("=")
        task = Task.read(Path(model), Path(boxes), folder)
        for batch in arguments.batch:
            request = {
                "onnx": str(task.onnx),
                "data": str(task.store(batch, folder)),
                "shape": list(task.shape),
                "steps": arguments.steps,
                "device": arguments.device,
            }
            workers = {
                tool: Worker(
                    command,
                    request | {"small": tool == "onnxcert-small"},
                    folder / f"{task.name}_{batch}_{tool}.log",
                    limits.gigabytes,
                )
                for tool, command in commands(arguments.peer_python, arguments.conv_mode).items()
            }
            try:
                for method in arguments.methods:
                    found = compare(workers, task.name, batch, method, limits)
                    print(*found, sep="\n", file=sys.stderr, flush=True)
                    cells += found
            finally:
                for worker in workers.values():
                    worker.stop()
    return cells


def main() -> None:
    if sys.argv[1:] == ["serve"]:
        serve(prepare)
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("networks", nargs="+", metavar="MODEL=BOXES")
    parser.add_argument("--peer-python", type=Path, metavar="PYTHON")
    parser.add_argument("--conv-mode", choices=("patches", "matrix"), default="patches")
    parser.add_argument(
        "--batch", type=lambda text: [int(part) for part in text.split(",")], default=[1, 128]
    )
    parser.add_argument("--methods", type=lambda text: text.split(","), default=METHODS)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--limit", type=float, default=120.0, help="wall seconds of one run")
    parser.add_argument("--budget", type=float, default=20.0, help="CPU seconds of one cell")
    parser.add_argument("--memory", type=float, default=12.0, help="gigabytes of each process")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep logs and numbers there")
    arguments = parser.parse_args()
    end_in_order()
    with TemporaryDirectory() as temporary:
        folder = arguments.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        cells = measure(arguments, folder)
        text = json.dumps([asdict(cell) for cell in cells], indent=1)
        (folder / "cells.json").write_text(text, encoding="utf-8")
    tools = list(commands(arguments.peer_python, arguments.conv_mode))
    print(table(cells, tools, "cpu" if arguments.device == "cpu" else "wall"))


if __name__ == "__main__":
    main()
