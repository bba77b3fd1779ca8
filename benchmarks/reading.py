"""How long does reading take at the largest sizes seen in competitions, and how much memory?

::

    python benchmarks/reading.py

Makes two files in a temporary folder: a specification of 11,074 boxes of 308 inputs (the shape of
the largest cardinality query of nn4sys) and a model with a dense matrix of 4,096 x 16,384 numbers
of which 1 in 1,000 is not zero (the shape of the largest lattice network of tllverifybench). Each
is read in a process of its own; wall seconds and peak memory are printed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

BOXES, INPUTS = 11_074, 308
ROWS, COLUMNS = 4_096, 16_384

READ = """
import resource, sys, time
started = time.monotonic()
{statement}
seconds = time.monotonic() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(f"{{seconds:.1f}} s, {{peak:.2f}} GB")
"""
SPEC = "from onnxcert.frontend.vnnlib import read_query; read_query(sys.argv[1])"
MODEL = "from onnxcert.frontend.onnx import load_model; load_model(sys.argv[1])"


def write_spec(path: Path) -> None:
    """An ``or`` of boxes, most inputs fixed, two comparisons per input."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(INPUTS):
            file.write(f"(declare-const X_{i} Real)\n")
        file.write("(declare-const Y_0 Real)\n(assert (or\n")
        for _ in range(BOXES):
            lower = np.round(rng.random(INPUTS), 6)
            parts = [f"(>= X_{i} {v}) (<= X_{i} {v})" for i, v in enumerate(lower)]
            file.write(f"(and {' '.join(parts)} (>= Y_0 {rng.random():.6f}))\n")
        file.write("))\n")


def write_model(path: Path) -> None:
    """Two inputs, a dense matrix, a sparse one stored densely, a relu, one output."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(2, ROWS)).astype(np.float32)
    second = np.zeros((ROWS, COLUMNS), np.float32)
    used = rng.integers(0, ROWS * COLUMNS, size=ROWS * COLUMNS // 1000)
    second.ravel()[used] = rng.choice(np.array([-1.0, 1.0], np.float32), size=len(used))
    third = rng.normal(size=(COLUMNS, 1)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"]),
        helper.make_node("MatMul", ["p", "b"], ["q"]),
        helper.make_node("Relu", ["q"], ["r"]),
        helper.make_node("MatMul", ["r", "c"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 2]), ("y", [1, 1]))
    ]
    weights = [
        numpy_helper.from_array(array, name)
        for name, array in (("a", first), ("b", second), ("c", third))
    ]
    graph = helper.make_graph(nodes, "lattice", ends[:1], ends[1:], weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def measure(statement: str, path: Path) -> str:
    """Run one statement on one file in a new interpreter."""
    program = READ.format(statement=statement)
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        spec, model = Path(folder) / "boxes.vnnlib", Path(folder) / "lattice.onnx"
        write_spec(spec)
        print(f"{BOXES} boxes, {spec.stat().st_size / 1e6:.0f} MB: {measure(SPEC, spec)}")
        write_model(model)
        print(f"{ROWS} x {COLUMNS}, {model.stat().st_size / 1e6:.0f} MB: {measure(MODEL, model)}")


if __name__ == "__main__":
    main()
