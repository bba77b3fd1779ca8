"""Small models and specifications, and ways to run the command line on them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

SAT = "(assert (>= Y_0 0.5))"
UNSAT = "(assert (>= Y_0 5.0))"


def dense_model(layers: Sequence[np.ndarray], path: Path) -> Path:
    """Gemm layers without bias, with Relu between them; input ``X``, output ``Y``."""
    nodes, stored = [], []
    value = "X"
    for number, weights in enumerate(layers):
        if number:
            nodes.append(helper.make_node("Relu", [value], [f"relu{number}"], f"relu{number}"))
            value = f"relu{number}"
        stored.append(numpy_helper.from_array(weights.astype(np.float32), f"w{number}"))
        output = "Y" if number == len(layers) - 1 else f"gemm{number}"
        nodes.append(helper.make_node("Gemm", [value, f"w{number}"], [output], f"gemm{number}"))
        value = output
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, len(layers[0])])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [1, layers[-1].shape[1]])],
        stored,
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def small_model(path: Path) -> Path:
    """Y = Relu(X), two values."""
    return dense_model([np.eye(2), np.eye(2)], path)


def hard_model(path: Path) -> Path:
    """40 inputs and three layers of 60 neurons: the search of `hard_spec` takes hours."""
    rng = np.random.default_rng(7)
    sizes = (40, 60, 60, 60, 1)
    layers = [
        rng.standard_normal((rows, columns)) / np.sqrt(rows / 2)
        for rows, columns in pairwise(sizes)
    ]
    return dense_model(layers, path)


def spec_1(condition: str, path: Path, *, inputs: int = 2, outputs: int = 2) -> Path:
    """VNN-LIB 1.0 over the unit box."""
    lines = [f"(declare-const X_{k} Real)" for k in range(inputs)]
    lines += [f"(declare-const Y_{k} Real)" for k in range(outputs)]
    for k in range(inputs):
        lines += [f"(assert (>= X_{k} 0.0))", f"(assert (<= X_{k} 1.0))"]
    path.write_text("\n".join([*lines, condition, ""]))
    return path


def hard_spec(path: Path) -> Path:
    """Far above what an attack finds, far below what bounds prove."""
    return spec_1("(assert (>= Y_0 6.0))", path, inputs=40, outputs=1)


def spec_2(condition: str, path: Path, element_type: str = "real") -> Path:
    """VNN-LIB 2.0 over the unit box, for `small_model`."""
    text = f"""(vnnlib-version <2.0>)
(declare-network net
    (declare-input A {element_type} [1,2])
    (declare-output B {element_type} [1,2]))
(assert (and (>= A[0,0] 0.0) (<= A[0,0] 1.0)))
(assert (and (>= A[0,1] 0.0) (<= A[0,1] 1.0)))
{condition}
"""
    path.write_text(text)
    return path


def command(*arguments: str | Path) -> list[str]:
    """The command line as a process."""
    return [sys.executable, "-m", "onnxcert", *map(str, arguments)]


def run(*arguments: str | Path, **options: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own.

    Args:
        arguments: of the command line.
        options: further environment variables.
    """
    return subprocess.run(
        command(*arguments),
        env=ENVIRONMENT | options,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
