"""Certified accuracy that training reaches, and what it costs.

::

    python benchmarks/training.py MNIST.npz [--runs NAME...] [--out DIR]

MNIST.npz holds ``x_train``, ``x_test`` (bytes, one image after the other) and ``y_train``,
``y_test``. Every run trains with ``onnxcert.train`` (extra ``train``) and prints clean accuracy and
certified accuracy (VRA) on all test images, by the constants of the written model: the product of
norms, and the strongest method that fits, with what that costs. Set ``OMP_NUM_THREADS=1`` where the
cores are shared.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from measuring import row

from onnxcert import certify, lipschitz, load_model, train
from onnxcert.arrays import Array

SMALL: dict[str, Any] = {"net": "mlp:256,128", "epochs": 20, "shift": 1}

RUNS: dict[str, dict[str, Any]] = {
    "short": {"net": "mlp:256,128", "epochs": 8},
    "small": SMALL,
    "small, not moved": SMALL | {"shift": 0},
    "small, relu": SMALL | {"activation": "relu"},
    "small, trades": SMALL | {"loss": "trades"},
    "small, emma": SMALL | {"loss": "emma"},
    "2C2F": {"net": "2C2F", "epochs": 10, "shift": 1},
    "liresnet": {"net": "liresnet:2x16", "epochs": 10, "shift": 1},
    "medium": {"net": "mlp:512,256,128", "epochs": 40, "shift": 1},
    "large": {"net": "mlp:1024,512,256", "epochs": 40, "shift": 1},
    "small, 1.58": SMALL | {"eps": 1.58, "train_eps": 1.75},
    "large, 1.58": {
        "net": "mlp:1024,512,256",
        "epochs": 40,
        "shift": 1,
        "eps": 1.58,
        "train_eps": 1.75,
    },
}


def read(path: str, part: str) -> tuple[Array, Array]:
    with np.load(path) as stored:
        images = stored[f"x_{part}"][:, None].astype(np.float32) / np.float32(255.0)
        return images, stored[f"y_{part}"].astype(np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=["short", "small", "large"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="a folder for the models")
    options = parser.parse_args()
    x, y = read(options.data, "train")
    test = read(options.data, "test")
    row(
        "run", "options", "eps", "CPU s", "s", "clean", "VRA product", "VRA best", "CPU s", "method"
    )
    for name in options.runs:
        chosen = {"eps": 0.3, "seed": options.seed, **RUNS[name]}
        before = time.process_time(), time.monotonic()
        model = train(x, y, test=test, method="product", **chosen).model
        used = time.process_time() - before[0], time.monotonic() - before[1]
        if options.out:
            onnx.save(model, Path(options.out) / f"{name}.onnx")
        started, shares = time.process_time(), []
        for method in ("product", "auto"):
            bound = lipschitz(load_model(model), method=method)
            done = certify(model, *test, eps=chosen["eps"], method="lipschitz", bound=bound)
            shares.append(f"{float(done.certified[0]):.4f}")
        last = f"{time.process_time() - started:.0f}", bound.method
        told = json.dumps(RUNS[name])
        row(name, told, chosen["eps"], *(f"{s:.0f}" for s in used), done.accuracy, *shares, *last)


if __name__ == "__main__":
    main()
