"""Make the small model, the image and the two specifications that README and the tests use.

A 64-32-32-10 relu network on the 8 x 8 digits of scikit-learn (extra ``dev``), trained with a fixed
seed. ``digits_robust.vnnlib`` asks for a change of the prediction in a ball so small that there is
none, ``digits_broken.vnnlib`` in one that is too large. Run it from the root of the repository::

    python benchmarks/make_models.py

The files are checked in, so nobody needs to: it shows where they come from. Training is
repeatable on one machine; another BLAS may give other weights, hence the check at the end.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import onnxcert

FOLDER = Path(__file__).resolve().parent / "models"
HELD_OUT = 300
IMAGE = 8
"""Number of the held-out image that both specifications are about."""
ROBUST_RADIUS, BROKEN_RADIUS = Fraction(6, 100), Fraction(1, 10)


def train(
    images: NDArray[np.float64], labels: NDArray[np.int64]
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Fit the network and return (weight (k, m), offset (m,)) per layer in single precision."""
    classifier = MLPClassifier((32, 32), alpha=0.01, max_iter=600, random_state=0)
    classifier.fit(images, labels)
    layers = zip(classifier.coefs_, classifier.intercepts_, strict=True)
    return [(weight.astype(np.float32), offset.astype(np.float32)) for weight, offset in layers]


def build(layers: list[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> onnx.ModelProto:
    """Gemm and Relu by turns; the outputs are logits."""
    nodes, weights, value = [], [], "pixels"
    for number, (weight, offset) in enumerate(layers, start=1):
        is_last = number == len(layers)
        names = f"weight_{number}", f"offset_{number}"
        target = "logits" if is_last else f"sum_{number}"
        nodes.append(onnx.helper.make_node("Gemm", [value, *names], [target], f"dense_{number}"))
        if not is_last:
            value = f"hidden_{number}"
            nodes.append(onnx.helper.make_node("Relu", [target], [value], f"relu_{number}"))
        for name, array in zip(names, (weight, offset), strict=True):
            weights.append(onnx.numpy_helper.from_array(array, name))
    infos = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, size])
        for name, size in (("pixels", 64), ("logits", 10))
    ]
    graph = onnx.helper.make_graph(nodes, "digits", infos[:1], infos[1:], weights)
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    model.producer_name = "benchmarks/make_models.py"
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    """Train, write the four files, and check that they mean what their names say."""
    digits = load_digits()
    images, labels = digits.data / 16.0, digits.target
    order = np.random.default_rng(0).permutation(len(images))
    test, training = order[:HELD_OUT], order[HELD_OUT:]
    model = build(train(images[training], labels[training]))
    FOLDER.mkdir(exist_ok=True)
    onnx.save(model, FOLDER / "digits.onnx")
    image, label = images[test[IMAGE]], int(labels[test[IMAGE]])
    np.save(FOLDER / "digit.npy", image.reshape(8, 8).astype(np.float32))  # sixteenths: exact
    for word, name, radius in (
        ("unsat", "robust", ROBUST_RADIUS),
        ("sat", "broken", BROKEN_RADIUS),
    ):
        ball = onnxcert.linf_ball(image, radius, label=label, domain=(0, 1))
        path = FOLDER / f"digits_{name}.vnnlib"
        onnxcert.save_vnnlib(ball.to_query([(1, 64)], [(1, 10)]), path, "1.0")
        result = onnxcert.verify(FOLDER / "digits.onnx", path, timeout=60)
        if result.word != word:
            raise SystemExit(f"{path.name} is {result.word}, not {word}: choose another image")
        print(f"{path.name}: {result.word} in {result.seconds['total']:.2f} s")


if __name__ == "__main__":
    main()
