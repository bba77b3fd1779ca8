"""Specifications that global constants decide, beside linear bounds and whole runs.

::

    python benchmarks/screening.py radii MODEL.onnx... --data DATA.npz [--count N]
    python benchmarks/screening.py files MODEL.onnx SPEC.vnnlib...
    python benchmarks/screening.py speed MODEL.onnx --data DATA.npz [--count N]
    python benchmarks/screening.py runs MODEL.onnx... --data DATA.npz [--count N] [--timeout S]
    python benchmarks/screening.py certificates MODEL.onnx...

DATA.npz holds ``x`` (inputs as the models want them) and ``y`` (labels). Times are CPU seconds; set
``OMP_NUM_THREADS=1``.

radii: l_inf balls in [0, 1] round correctly classified inputs: the share that constants decide, and
that plain linear bounds at the root decide. files: the same for specifications as they are. speed:
specifications per second, from arrays and from files, beside linear bounds at the root and whole
runs. runs: whole runs with constants as a pass and without. certificates: time and size of
certificates of constants, beside computing those.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from measuring import row, timed

import onnxcert
from onnxcert import (
    Screen,
    Settings,
    Specification,
    check,
    linf_ball,
    lipschitz,
    load_model,
    verify,
)
from onnxcert.arrays import Array
from onnxcert.bounds.backward import pull_back
from onnxcert.bounds.crown import crown_bounds
from onnxcert.frontend.lower import lower_query
from onnxcert.frontend.onnx import Model
from onnxcert.sets import Box
from onnxcert.spec import Problem

RADII = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05)
BATCH = 64


def correct(model: Model, path: str, count: int) -> tuple[Array, Array]:
    """The first inputs of a data set that are classified as labelled."""
    with np.load(path) as stored:
        x, y = stored["x"][: 2 * count].reshape(-1, model.graph.input_size), stored["y"]
    values = model.graph.forward(x.astype(np.float64))
    right = np.flatnonzero(values.argmax(axis=1) == y[: len(x)])[:count]
    return x[right].astype(np.float64), y[right].astype(np.int64)


def balls(x: Array, labels: Array, eps: float, classes: int) -> Problem:
    """One case for each input and each other class, as the specifications together would be."""
    lower, upper = np.maximum(x - eps, 0.0), np.minimum(x + eps, 1.0)
    first, second = np.nonzero(~np.eye(classes, dtype=bool))
    rows = np.eye(classes)[first] - np.eye(classes)[second]
    number = np.flatnonzero(first[None] == labels[:, None])
    return Problem(
        lower=lower,
        upper=upper,
        output_rows=rows,
        input_rows=None,
        offset=np.zeros(len(rows)),
        strict=np.zeros(len(rows), dtype=bool),
        case_box=np.repeat(np.arange(len(x)), classes - 1),
        case_rows=(number % len(rows))[:, None],
        case_disjunct=np.arange(len(number)),
        inner_lower=lower,
        inner_upper=upper,
        exact_bounds=lambda box, i: (lower[box, i], upper[box, i]),
    )


def by_linear_bounds(model: Model, problem: Problem) -> Array:
    """Which cases plain linear bounds over the whole box refute, (K,)."""
    refuted = np.zeros(len(problem), dtype=bool)
    for start in range(0, len(problem.lower), BATCH):
        boxes = np.arange(start, min(start + BATCH, len(problem.lower)))
        found = crown_bounds(model.graph, Box(problem.lower[boxes], problem.upper[boxes]))
        rows = np.broadcast_to(problem.output_rows, (len(boxes), *problem.output_rows.shape))
        lower = pull_back(found.relaxation, model.graph.output, rows).lower + problem.offset
        cases = np.flatnonzero(np.isin(problem.case_box, boxes))
        at = problem.case_box[cases, None] - start, problem.case_rows[cases]
        refuted[cases] = ((lower[at] > 0.0) & (at[1] >= 0)).any(axis=1)
    return refuted


def whole(problem: Problem, refuted: Array) -> Array:
    """Which boxes have all their cases refuted."""
    result = np.ones(len(problem.lower), dtype=bool)
    np.logical_and.at(result, problem.case_box, refuted)
    return result


def radii(options: argparse.Namespace) -> None:
    row("model", "radius", "specifications", "constants", "linear bounds", "constants alone")
    for path in options.files:
        screen = Screen(lipschitz(path))
        model = screen.bound.model
        x, y = correct(model, options.data, options.count)
        for eps in RADII:
            problem = balls(x, y, eps, model.graph.output_size)
            decided = whole(problem, screen.refuted(problem))
            linear = whole(problem, by_linear_bounds(model, problem))
            alone = int((decided & ~linear).sum())
            row(Path(path).name, eps, len(x), int(decided.sum()), int(linear.sum()), alone)


def files(options: argparse.Namespace) -> None:
    model, *specs = options.files
    screen = Screen(lipschitz(model, method="recursion"))
    decided = [spec for spec in specs if screen.decides(spec)]
    row("model", "specifications", "constants decide")
    row(Path(model).name, len(specs), len(decided))


def speed(options: argparse.Namespace) -> None:
    (path,) = options.files
    bound, first = timed(lambda: lipschitz(path), 1)
    screen, model = Screen(bound), bound.model
    x, y = correct(model, options.data, options.count)
    problem = balls(x, y, 0.01, model.graph.output_size)
    refuted, seconds = timed(lambda: screen.refuted(problem))
    _, linear = timed(lambda: by_linear_bounds(model, problem), 1)
    count = len(x)
    row("what", "specifications", "s", "specifications / s")
    row("constants of the model, once", "", f"{first:.2f}", "")
    row("constants, arrays", count, f"{seconds:.3f}", f"{count / seconds:.0f}")
    row("linear bounds, arrays", count, f"{linear:.3f}", f"{count / linear:.0f}")
    some = np.flatnonzero(whole(problem, refuted))[:20]
    with tempfile.TemporaryDirectory() as folder:
        _files(screen, path, [_ball(x[i], int(y[i])) for i in some], Path(folder))


def _ball(x: Array, label: int, eps: float = 0.01) -> Specification:
    return linf_ball(x, eps, label=label, domain=(0, 1))


def _files(screen: Screen, path: str, balls: Sequence[Specification], folder: Path) -> None:
    model, proof = screen.bound.model, folder / "proof"
    shapes = [[info.shape for info in part] for part in (model.inputs, model.outputs)]
    specs = [folder / f"{number}.vnnlib" for number in range(len(balls))]
    for spec, ball in zip(specs, balls, strict=True):
        onnxcert.save_vnnlib(ball.to_query(*shapes), spec)
    runs: dict[str, Callable[[Path], object]] = {
        "files, read": lambda spec: list(lower_query(onnxcert.read_query(spec)).cases),
        "files, constants": screen.decides,
        "files, constants and a certificate": lambda spec: screen.prove(spec, proof),
        "files, verify without a certificate": lambda spec: verify(path, spec, certified=False),
        "files, verify": lambda spec: verify(path, spec, certificate=proof),
    }
    for what, run in runs.items():
        _, seconds = timed(lambda run=run: [run(spec) for spec in specs], 1)
        row(what, len(specs), f"{seconds:.3f}", f"{len(specs) / seconds:.1f}")


def runs(options: argparse.Namespace) -> None:
    row("model", "radius", "runs", "pass", "unsat", "sat", "no answer", "s")
    for path in options.files:
        model = load_model(path)
        x, y = correct(model, options.data, options.count)
        for eps in (0.01, 0.03, 0.05):
            specs = [_ball(point, int(label), eps) for point, label in zip(x, y, strict=True)]
            for chosen in ("off", "auto"):
                settings = Settings(constants=chosen)
                answers, seconds = timed(
                    lambda p=path, q=specs, s=settings: [
                        verify(p, spec, settings=s, timeout=options.timeout).word for spec in q
                    ],
                    1,
                )
                counts = [answers.count(word) for word in ("unsat", "sat")]
                row(
                    *(Path(path).name, eps, len(x), chosen, *counts, len(x) - sum(counts)),
                    f"{seconds:.1f}",
                )


def certificates(options: argparse.Namespace) -> None:
    row("model", "method", "norm", "constants, s", "check, s", "bytes", "certified / computed")
    with tempfile.TemporaryDirectory() as folder:
        proof = Path(folder) / "proof"
        for path in options.files:
            for method in ("product", "recursion", "refined"):
                for norm in ("2", "inf"):
                    plain, seconds = timed(
                        lambda p=path, m=method, n=norm: lipschitz(p, method=m, norm=n), 1
                    )
                    sure = lipschitz(path, method=method, norm=norm, certificate=proof)
                    _, checking = timed(lambda p=path: check(proof, p), 1)
                    ratio = float((sure.outputs / plain.outputs).max())
                    row(
                        *(Path(path).name, method, norm, f"{seconds:.2f}", f"{checking:.2f}"),
                        *(proof.stat().st_size, f"{ratio:.8f}"),
                    )


COMMANDS = {f.__name__: f for f in (radii, files, speed, runs, certificates)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--data")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--timeout", type=float, default=20.0)
    options = parser.parse_args()
    COMMANDS[options.command](options)


if __name__ == "__main__":
    main()
