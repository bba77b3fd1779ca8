"""What certificates cost: leaves, bytes, solving seconds and checking seconds for each ``unsat``.

::

    python benchmarks/certificates.py INSTANCES.csv --out DIR [--timeout 60] [--jobs 1]

Every row whose expected verdict is not sat is solved by the command line with ``--certificate`` and
without a second process watching; then ``python -m onnxcert.checker`` checks the file in a process
of its own. Solving counts everything but the solver's own check; checking counts everything from
reading the files to the answer. Neither counts the start of Python.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

_CHECK = """
import sys, time
from onnxcert.checker import check
started = time.perf_counter()
verified = check(*sys.argv[1:])
print(f"{time.perf_counter() - started}\\t{verified}")
"""


@dataclass(frozen=True)
class Cost:
    """One certified instance; seconds are wall seconds."""

    instance: str
    splits: str
    leaves: int
    bytes: int
    solve: float
    check: float
    line: str


def measure(row: Mapping[str, str], folder: Path, out: Path, timeout: float) -> Cost | str:
    """Solve and check one row; a word instead of a cost where there is no ``unsat``."""
    model, spec = folder / row["onnx"], folder / row["vnnlib"]
    name = f"{row['benchmark']} {Path(row['onnx']).name} {Path(row['vnnlib']).name}"
    stem = "__".join(name.replace("/", "_").split())
    proof, record = out / f"{stem}.onnxcert", out / f"{stem}.json"
    options = [f"--timeout={timeout}", f"--certificate={proof}", f"--json={record}", "-q"]
    command = [sys.executable, "-m", "onnxcert", str(model), str(spec), *options]
    run = subprocess.run(
        [*command, "--set", "watch=off", "--semantics", "real"],
        capture_output=True,
        text=True,
        check=False,
    )
    word = (run.stdout.split() or [f"exit {run.returncode}"])[0]
    if word != "unsat":
        return f"{name}: {word}"
    result = json.loads(record.read_text(encoding="utf-8"))
    seconds = result["seconds"]
    checked = subprocess.run(
        [sys.executable, "-c", _CHECK, str(proof), str(model), str(spec)],
        capture_output=True,
        text=True,
        check=True,
    )
    check, line = checked.stdout.strip().split("\t")
    return Cost(
        name,
        "neuron" if "neuron splits" in str(result["statistics"]["plan"]) else "input",
        result["proof"]["leaves"],
        proof.stat().st_size,
        seconds["total"] - seconds.get("checking", 0.0),
        float(check),
        line,
    )


def table(costs: Sequence[Cost]) -> str:
    """Rows in Markdown, and medians for each way to split."""
    head = "| instance | splits | leaves | bytes | solve s | check s | check / solve |"
    lines = [head, "|---" * 7 + "|"]
    for cost in costs:
        ratio = cost.check / cost.solve
        lines.append(
            f"| {cost.instance} | {cost.splits} | {cost.leaves} | {cost.bytes} "
            f"| {cost.solve:.2f} | {cost.check:.2f} | {ratio:.2f} |"
        )
    for splits in ("input", "neuron"):
        chosen = [cost for cost in costs if cost.splits == splits]
        if chosen:
            ratio = median(cost.check / cost.solve for cost in chosen)
            size = median(cost.bytes for cost in chosen)
            lines.append(f"| median of {len(chosen)} | {splits} | | {size:.0f} | | | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("instances", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with arguments.instances.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["expected"] != "sat"]
    rows = [row for row in rows if not row["onnx"].startswith("[")]
    folder = arguments.instances.parent
    costs: list[Cost] = []
    began = time.monotonic()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        work = [pool.submit(measure, r, folder, arguments.out, arguments.timeout) for r in rows]
        for number, future in enumerate(work):
            cost = future.result()
            place = f"[{number + 1}/{len(rows)}, {time.monotonic() - began:.0f} s]"
            print(place, cost if isinstance(cost, str) else cost.instance, file=sys.stderr)
            if isinstance(cost, Cost):
                costs.append(cost)
    text = json.dumps([asdict(cost) for cost in costs], indent=1)
    (arguments.out / "costs.json").write_text(text, encoding="utf-8")
    print(table(costs))


if __name__ == "__main__":
    main()
