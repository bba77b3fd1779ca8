"""Stored verdicts and bounds of the quick list, which a later change must reproduce or improve.

`benchmarks/run.py quick` uses it. A line of ``regression.csv`` is one instance: the verdict (empty
where there was none within the limit) and sums of lower bounds at the root, over at most sixteen
cases of the first box, each by its best row: ``crown`` with plain lines, ``slopes`` after twenty
steps on the slopes of the rows. Networks too large for a second or two have no bounds.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from onnxcert.arrays import Device
from onnxcert.bounds.backward import pull_back
from onnxcert.bounds.crown import crown_bounds
from onnxcert.bounds.optimised import Forms, FreeRelaxation, Start, optimise
from onnxcert.errors import OnnxcertError
from onnxcert.instance import Instance
from onnxcert.search.cases import Cases
from onnxcert.sets import Box

STORED = Path(__file__).with_name("regression.csv")

STEPS = 20
MOST_CASES = 16

LARGEST = 60_000
"""Values in the widest network that is bounded."""

BELOW = 10.0
"""By how many times its size a bound is lowered for the ascent."""

TOLERANCES = {"crown": 1e-6, "slopes": 1e-2}
"""Share of a bound's size that sums in another order may lose; an ascent makes more of it."""

ANSWERS = ("sat", "unsat")


@dataclass(frozen=True)
class Line:
    """What is stored of an instance; bounds are empty where there are none."""

    instance: str
    verdict: str
    crown: float | None = None
    slopes: float | None = None


def load() -> dict[str, Line]:
    """Instance -> what is stored of it."""
    with STORED.open(newline="", encoding="utf-8") as stream:
        return {row["instance"]: _line(row) for row in csv.DictReader(stream)}


def _line(row: Mapping[str, str]) -> Line:
    crown, slopes = (float(row[name]) if row[name] else None for name in ("crown", "slopes"))
    return Line(row["instance"], row["verdict"], crown, slopes)


def store(lines: Mapping[str, Line]) -> None:
    """Replace what is stored."""
    with STORED.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Line)], lineterminator="\n")
        writer.writeheader()
        for _, line in sorted(lines.items()):
            values = asdict(line).items()
            writer.writerow({k: f"{v:.10g}" if isinstance(v, float) else v for k, v in values})


def measure(name: str, verdict: str, model: str, spec: str) -> Line:
    """An instance's verdict with its bounds."""
    try:
        crown, slopes = root_bounds(model, spec)
    except OnnxcertError:  # operators without rules
        return Line(name, verdict)
    return Line(name, verdict, crown, slopes)


def root_bounds(model: str, spec: str) -> tuple[float | None, float | None]:
    """Plain and optimised lower bounds, summed over cases."""
    instance = Instance.read(model, spec)
    graph = instance.model.graph
    if sum(graph.sizes.values()) > LARGEST:
        return None, None
    problem = next(iter(instance.lowered.cases))
    cases = Cases.build(problem, Device())
    numbers = np.flatnonzero(problem.case_box == problem.case_box[0])[:MOST_CASES]
    first = problem.case_box[:1]
    with np.errstate(all="ignore"):
        bounds = crown_bounds(graph, Box(problem.lower[first], problem.upper[first]))
        rows = cases.forms(numbers[None])
        plain = pull_back(bounds.relaxation, graph.output, rows.rows, input_rows=rows.input_rows)
        lower = np.where(rows.used, plain.lower + rows.offset, -np.inf).reshape(len(numbers), -1)
        best = np.arange(lower.size).reshape(lower.shape)[np.arange(len(lower)), lower.argmax(1)]
        # No bound is positive, for an ascent ends where it is.
        below = lower.max(axis=1) + BELOW * (1.0 + abs(lower.max(axis=1)))
        forms = Forms(
            rows.rows[0, best, None],
            None if rows.input_rows is None else rows.input_rows[0, best, None],
            (rows.offset[0, best] - below)[:, None],
            np.ones((len(best), 1), dtype=bool),
        )
        free = FreeRelaxation.build(graph, bounds.boxes)
        start = Start.at_form(np.zeros(len(best), dtype=int), forms)
        raised = optimise(free, forms, bounds.boxes[graph.output], start, steps=STEPS)
    return float(lower.max(axis=1).sum()), float((raised.lower + below).sum())


def failures(found: Mapping[str, Line], *, allow_lost: bool) -> Iterator[str]:
    """What became worse.

    Args:
        found: of this run.
        allow_lost: a verdict may be missing, as on a slow machine; it may never be another one.
    """
    for name, old in load().items():
        new = found.get(name)
        if new is None:
            yield f"{name}: not run"
            continue
        tolerated = not new.verdict and allow_lost
        if old.verdict in ANSWERS and new.verdict != old.verdict and not tolerated:
            yield f"{name}: {old.verdict} before, {new.verdict or 'no answer'} now"
        for kind, tolerance in TOLERANCES.items():
            before, now = getattr(old, kind), getattr(new, kind)
            if before is not None and (now is None or now < before - tolerance * (1 + abs(before))):
                yield f"{name}: {kind} bound {before} before, {now} now"
