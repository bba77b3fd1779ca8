"""Largest certified boxes beside the method of Liu, Tomioka and Cevher (2019).

    python benchmarks/regions.py DATA [--only b1,b2,b3,b4] [--images 50] [--paper-images 50]

DATA is a folder with ``mnist.npz`` (x_test (N, 28, 28) uint8, y_test) and ``mnist_nets.npz``
(``NAME/W0``, ``NAME/b0``, ...: dense layers, y = W x + b, of relu_nat, relu_pgd, tanh_nat). The
nets become ONNX files in a scratch folder. Two more are trained here with scikit-learn (extra
``dev``) and a fixed seed: ``sigmoid``, three layers of 60, and ``conv``, two convolutions with
random filters and two dense layers that are trained behind them.

b1: a 2-10-10-10 net on ten Voronoi cells of the square, 100 points, beside the box of largest area
    that an 801 x 801 grid has. b2: MNIST, first correct test images. b3: growth, 60 s for each
    image. b4: the convolutional net. Seconds are CPU seconds of this process, on one thread.

``--method paper`` computes the bounds of the paper with our own backward rows (the same numbers as
its forward matrices), so its seconds here are fewer than those of the authors' programs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from sklearn.neural_network import MLPClassifier

import onnxcert
from onnxcert.region.options import Options
from onnxcert.region.regions import Region

Floats = NDArray[np.floating[Any]]
LAYERS = {"relu_nat": "Relu", "relu_pgd": "Relu", "tanh_nat": "Tanh"}
TABLE_IMAGES = 8
GRID = 801


def save(
    nodes: list[onnx.NodeProto], weights: Sequence[Floats], sizes: tuple[list[int], int], path: Path
) -> Path:
    """Write nodes from ``x`` to ``y`` with weights ``w0``, ``w1``, ..."""
    stored = [numpy_helper.from_array(w.astype(np.float32), f"w{k}") for k, w in enumerate(weights)]
    infos = [
        helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, sizes[0]),
        helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, sizes[1]]),
    ]
    graph = helper.make_graph(nodes, path.stem, infos[:1], infos[1:], stored)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def dense(layers: Sequence[tuple[Floats, Floats]], activation: str, path: Path) -> Path:
    """Layers (W (k, m), b (m,)) with an activation between them."""
    nodes, weights, value = [], [], "x"
    for number, (matrix, offset) in enumerate(layers):
        last = number == len(layers) - 1
        names = f"w{len(weights)}", f"w{len(weights) + 1}"
        weights += [matrix, offset]
        target = "y" if last else f"a{number}"
        nodes.append(helper.make_node("Gemm", [value, *names], [target]))
        if not last:
            value = f"h{number}"
            nodes.append(helper.make_node(activation, [target], [value]))
    return save(nodes, weights, ([1, len(layers[0][0])], len(layers[-1][1])), path)


def fit(classifier: MLPClassifier, x: Floats, y: NDArray[Any]) -> list[tuple[Floats, Floats]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it might train longer
        classifier.fit(x, y)
    return list(zip(classifier.coefs_, classifier.intercepts_, strict=True))


def sigmoid_net(x: Floats, y: NDArray[Any], path: Path) -> Path:
    classifier = MLPClassifier((60, 60, 60), activation="logistic", max_iter=12, random_state=0)
    return dense(fit(classifier, x, y), "Sigmoid", path)


def conv_net(x: Floats, y: NDArray[Any], path: Path) -> Path:
    """Conv 8 x 4 x 4, Conv 16 x 4 x 4, both of stride 2, Gemm 100, Gemm 10."""
    rng = np.random.default_rng(0)
    filters = [rng.normal(size=(8, 1, 4, 4)) / 4.0, rng.normal(size=(16, 8, 4, 4)) / 11.0]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], strides=[2, 2]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Flatten", ["r1"], ["y"]),
    ]
    front = save(nodes, filters, ([1, 1, 28, 28], 400), path.with_name("front.onnx"))
    features = onnxcert.load_model(front).graph.forward(x)
    layers = fit(MLPClassifier((100,), max_iter=15, random_state=0), features, y)
    nodes[-1] = helper.make_node("Flatten", ["r1"], ["f"])
    (first, shift), (second, offset) = layers
    nodes += [
        helper.make_node("Gemm", ["f", "w2", "w3"], ["g"]),
        helper.make_node("Relu", ["g"], ["h"]),
        helper.make_node("Gemm", ["h", "w4", "w5"], ["y"]),
    ]
    return save(nodes, [*filters, first, shift, second, offset], ([1, 1, 28, 28], 10), path)


def mean_width(regions: Sequence[Region]) -> float:
    """Mean over images of the geometric mean width."""
    return float(np.mean([region.mean_width for region in regions]))


def timed(model: Path, points: Floats, **options: Any) -> tuple[list[Region], float]:
    """Boxes without their proofs, and CPU seconds for each."""
    start = time.process_time()
    regions = onnxcert.largest_regions(
        model, list(points), options=Options(certified=False, device="cpu", **options)
    )
    return regions, (time.process_time() - start) / len(points)


def correct(model: Path, images: Floats, labels: NDArray[Any], count: int) -> NDArray[Any]:
    """Numbers of the first images that the model answers correctly."""
    graph = onnxcert.load_model(model).graph
    right = graph.forward(images[: 3 * count]).argmax(axis=1) == labels[: 3 * count]
    return np.flatnonzero(right)[:count]


def say(**record: Any) -> None:
    """A JSON line, numbers with few digits."""
    print(
        json.dumps(
            {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in record.items()}
        ),
        flush=True,
    )


def compare(name: str, model: Path, x: Floats, y: NDArray[Any], count: int, papers: int) -> None:
    """b2 and b4: one net."""
    points = x[correct(model, x, y, count)]
    pixels = (0.0, 1.0)
    free, seconds = timed(model, points, domain=pixels)
    level, _ = timed(model, points, domain=pixels, shape="uniform")
    first = x[:TABLE_IMAGES]
    open_air = {shape: timed(model, first, shape=shape)[0] for shape in ("symmetric", "uniform")}
    start = time.process_time()
    proved = onnxcert.largest_regions(model, list(points), domain=pixels, device="cpu")
    both = (time.process_time() - start) / count
    gains = [a.mean_width / b.mean_width for a, b in zip(free, level, strict=True)]
    better = sum(a.log_volume > b.log_volume for a, b in zip(free, level, strict=True))
    say(
        net=name,
        images=count,
        certified=sum(region.status.word == "certified" for region in proved),
        width=mean_width(proved),
        uniform_width=mean_width(level),
        gain=float(np.mean(gains)),
        beats_uniform=better,
        seconds=seconds,
        seconds_with_proof=both,
        half_width_8=0.5 * mean_width(open_air["symmetric"]),
        uniform_half_width_8=0.5 * mean_width(open_air["uniform"]),
    )
    if papers:
        paper, paper_seconds = timed(model, points[:papers], domain=pixels, method="paper")
        say(
            net=name,
            paper_images=papers,
            paper_width=mean_width(paper),
            paper_seconds=paper_seconds,
            width_ratio=mean_width(free[:papers]) / mean_width(paper),
            seconds_ratio=paper_seconds / seconds,
        )


def growth(name: str, model: Path, x: Floats, y: NDArray[Any], count: int, limit: float) -> None:
    """b3: one net."""
    points = list(x[correct(model, x, y, count)])
    before = onnxcert.largest_regions(model, points, domain=(0, 1), device="cpu")
    after = onnxcert.largest_regions(model, points, domain=(0, 1), device="cpu", grow=limit)
    ratios = [b.mean_width / a.mean_width for a, b in zip(before, after, strict=True)]
    faces = [np.mean(region.settled) for region in after]
    say(
        net=name,
        grown_images=count,
        seconds_each=limit,
        certified=sum(region.status.word == "certified" for region in after),
        growth=float(np.mean(ratios)),
        least_growth=float(min(ratios)),
        settled_faces=float(np.mean(faces)),
        witnesses=sum(len(region.witnesses) for region in after),
    )


def square(folder: Path) -> None:
    """b1: two inputs."""
    rng = np.random.default_rng(0)
    cells = rng.uniform(-1, 1, (10, 2))
    x = rng.uniform(-1, 1, (10000, 2))
    y = ((x[:, None] - cells) ** 2).sum(axis=2).argmin(axis=1)
    layers = fit(
        MLPClassifier((10, 10), max_iter=300, random_state=0, learning_rate_init=3e-3), x, y
    )
    model = dense(layers, "Relu", folder / "square.onnx")
    graph = onnxcert.load_model(model).graph
    axis = np.linspace(-1, 1, GRID)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    labels = graph.forward(grid).argmax(axis=1).reshape(GRID, GRID)
    points = rng.uniform(-1, 1, (100, 2))
    best = [optimum(labels, point) for point in points]
    # The grid says nothing of points whose cell it does not see.
    keep = [k for k, box in enumerate(best) if box is not None and min(box) > 0.01]
    regions, seconds = timed(model, points, domain=(-1.0, 1.0))
    paper, _ = timed(model, points, domain=(-1.0, 1.0), method="paper")
    start = time.process_time()
    proved = onnxcert.largest_regions(model, list(points), domain=(-1, 1), device="cpu")
    both = time.process_time() - start
    for name, found in (("ours", regions), ("paper", paper)):
        sizes = [region.widths.sum(axis=0) if region.found else np.zeros(2) for region in found]
        say(
            net="square",
            method=name,
            points=len(keep),
            width_share=float(np.mean([sizes[k].mean() / np.mean(best[k]) for k in keep])),
            area_share=float(np.mean([sizes[k].prod() / np.prod(best[k]) for k in keep])),
        )
    say(
        net="square",
        seconds_of_all=seconds * len(points),
        seconds_with_proofs=both,
        certified=sum(region.status.word == "certified" for region in proved),
    )


def optimum(labels: NDArray[Any], point: Floats) -> tuple[float, float] | None:
    """Sides of the box of largest area round a point in the cells of the grid with its label."""
    i, j = (round((value + 1) / 2 * (GRID - 1)) for value in point)
    same = labels == labels[i, j]

    def reach(rows: range) -> tuple[NDArray[Any], NDArray[Any]]:
        left, right = [], []
        low, high = j, GRID - 1 - j
        for row in rows:
            if not same[row, j]:
                break
            before = np.flatnonzero(~same[row, :j])
            after = np.flatnonzero(~same[row, j:])
            low = min(low, j - before[-1] - 1) if len(before) else low
            high = min(high, after[0] - 1) if len(after) else high
            left.append(low)
            right.append(high)
        return np.array(left), np.array(right)

    (up_left, up_right), (down_left, down_right) = reach(range(i, -1, -1)), reach(range(i, GRID))
    step = 2.0 / (GRID - 1)
    wide = np.minimum(up_left[:, None], down_left) + np.minimum(up_right[:, None], down_right)
    high = np.arange(len(up_left))[:, None] + np.arange(len(down_left))
    k = (wide * high).argmax()
    sides = float(wide.ravel()[k] * step), float(high.ravel()[k] * step)
    return sides if min(sides) > 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", default="b1,b2,b3,b4")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--paper-images", type=int, default=50)
    parser.add_argument("--grown-images", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--nets", default="relu_nat,relu_pgd,tanh_nat,sigmoid")
    options = parser.parse_args()
    parts, nets = options.only.split(","), options.nets.split(",")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if "b1" in parts:
            square(folder)
        if not {"b2", "b3", "b4"} & set(parts):
            return
        images = np.load(options.data / "mnist.npz")
        x = images["x_test"].reshape(len(images["x_test"]), -1) / 255.0
        y = images["y_test"]
        train = images["x_train"][:10000].reshape(10000, -1) / 255.0, images["y_train"][:10000]
        stored = np.load(options.data / "mnist_nets.npz")
        models = {}
        for name, activation in LAYERS.items():
            count = sum(key.startswith(f"{name}/W") for key in stored)
            layers = [(stored[f"{name}/W{k}"].T, stored[f"{name}/b{k}"]) for k in range(count)]
            models[name] = dense(layers, activation, folder / f"{name}.onnx")
        if "b2" in parts:
            if "sigmoid" in nets:
                models["sigmoid"] = sigmoid_net(*train, folder / "sigmoid.onnx")
            for name in nets:
                fewer = options.paper_images if name.startswith("relu") else 8
                papers = min(fewer, options.paper_images)
                compare(name, models[name], x, y, options.images, papers)
        if "b4" in parts:
            model = conv_net(*train, folder / "conv.onnx")
            compare("conv", model, x, y, min(options.images, 10), 0)
        if "b3" in parts:
            for name in ("relu_nat", "relu_pgd"):
                count = options.grown_images
                growth(name, models[name], x, y, count, options.seconds)


if __name__ == "__main__":
    main()
