"""The competition's models: each is read and agrees with onnxruntime, or names what it lacks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from onnxcert.errors import UnsupportedModel
from onnxcert.frontend.onnx import inspect_model, load_model
from onnxcert.frontend.replay import check_lowering
from onnxcert.ops import Divide

FOLDER = Path(os.environ.get("ONNXCERT_BENCHMARKS", ""))
MODELS = sorted(FOLDER.glob("*/**/*.onnx*")) if "ONNXCERT_BENCHMARKS" in os.environ else []

LACKING = {
    "carvana_unet_2022",  # ArgMax, OneHot
    "cctsdb_yolo_2023",  # indices that depend on inputs, of which no limits are given here
    "vit_2023",  # products of computed matrices
}


@pytest.mark.benchmarks
@pytest.mark.skipif(not MODELS, reason="ONNXCERT_BENCHMARKS is not set")
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_model_of_the_competition(path: Path) -> None:
    try:
        model = load_model(path)
    except UnsupportedModel:
        assert path.relative_to(FOLDER).parts[0] in LACKING
        assert inspect_model(path).unsupported
        return
    size = model.graph.input_size
    rng = np.random.default_rng(0)
    # Where something is divided, zero must be no divisor.
    divides = any(isinstance(node.op, Divide) for node in model.graph.nodes)
    lower = np.full(size, 0.25 if divides else -1.0)
    check_lowering(model, lower, np.ones(size), rng, points=3)
