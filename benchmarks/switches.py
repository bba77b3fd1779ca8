"""A switch of the settings, as planes or narrowing: whole runs with it and without, by turns.

::

    python benchmarks/switches.py SWITCH SECONDS MODEL SPEC [MODEL SPEC ...]

For each question, with the switch and without: the answer, subproblems that were split, leaves
and bytes of the certificate, and CPU seconds. One process does everything.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from measuring import row

import onnxcert
from onnxcert import Settings

STATES = ("auto", "off")


def run(model: str, spec: str, seconds: float, switch: str) -> tuple[object, ...]:
    """Cells of one run."""
    settings = Settings.parse([switch, "parallel=off", "watch=off"])
    with tempfile.TemporaryDirectory() as folder:
        proof = Path(folder) / "proof.onnxcert"
        started = time.process_time()
        result = onnxcert.verify(model, spec, timeout=seconds, settings=settings, certificate=proof)
        spent = time.process_time() - started
    found = result.proof
    leaves, size = (found.leaves, found.bytes) if found and found.accepted else ("", "")
    return result.word, result.statistics["split"], leaves, size, f"{spent:.1f}"


def main() -> None:
    seconds = float(sys.argv[2])
    columns = ("answer", "split", "leaves", "bytes", "CPU s")
    row("question", *(f"{name}, {state}" for state in ("with", "without") for name in columns))
    row("---", *("---:" for _ in range(2 * len(columns))))
    pairs = zip(sys.argv[3::2], sys.argv[4::2], strict=True)
    for model, spec in pairs:
        name = f"{Path(model).name.split('.onnx')[0]} {Path(spec).name.split('.vnnlib')[0]}"
        switches = [f"{sys.argv[1]}={state}" for state in STATES]
        row(name, *(cell for switch in switches for cell in run(model, spec, seconds, switch)))


if __name__ == "__main__":
    main()
