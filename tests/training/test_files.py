"""What needs no PyTorch: sizes of networks, schedules, and the written model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxcert import UsageError, certify, lipschitz, load_model, with_bottom_logit
from onnxcert.arrays import Array
from onnxcert.training.architecture import PAPER, Architecture, Conv
from onnxcert.training.export import to_onnx
from onnxcert.training.options import Options
from tests.continuity.test_bottom import run

NETS = [
    ("mlp:6,4", (3, 4)),
    ("mlp:8", (5,)),
    ("2C2F", (1, 6, 5)),
    ("2C2F", (7, 7)),
    ("liresnet:2x4", (2, 8, 8)),
]


def random_weights(architecture: Architecture, seed: int = 0) -> list[tuple[Array, Array]]:
    rng = np.random.default_rng(seed)
    pairs = []
    for layer in architecture.layers:
        shape = layer.weight_shape
        weight = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        pairs.append((weight.astype(np.float32), rng.normal(size=shape[0]).astype(np.float32)))
    return pairs


def windows(x: Array, layer: Conv) -> Array:
    """(B, height, width, channels, kernel, kernel) of padded images, one window at a time."""
    above, left, below, right = layer.padding
    padded = np.pad(x, ((0, 0), (0, 0), (above, below), (left, right)))
    _, height, width = layer.output_shape
    side, step = layer.kernel, layer.stride
    return np.array(
        [
            [
                padded[:, :, step * i : step * i + side, step * j : step * j + side]
                for j in range(width)
            ]
            for i in range(height)
        ]
    ).transpose(2, 0, 1, 3, 4, 5)


def reference(architecture: Architecture, weights: list[tuple[Array, Array]], x: Array) -> Array:
    """The network by its definition, in float64."""
    value = x.astype(np.float64)
    if isinstance(architecture.layers[0], Conv):
        value = value.reshape(len(x), *architecture.layers[0].shape)
    for k, (layer, (weight, bias)) in enumerate(zip(architecture.layers, weights, strict=True)):
        if isinstance(layer, Conv):
            made = np.einsum("bhwcij,ocij->bohw", windows(value, layer), weight.astype(float))
            value = made + bias[None, :, None, None]
        else:
            value = value.reshape(len(x), -1) @ weight.T.astype(float) + bias
        if k < len(weights) - 1:
            if architecture.activation == "relu":
                value = np.maximum(value, 0.0)
            else:
                first, second = np.split(value, 2, axis=1)
                sides = np.minimum(first, second), np.maximum(first, second)
                value = np.concatenate(sides, axis=1)
    return value


@pytest.mark.parametrize("activation", ["minmax", "relu"])
@pytest.mark.parametrize(("net", "shape"), NETS)
def test_written_models(net: str, shape: tuple[int, ...], activation: str) -> None:
    architecture = Architecture.of(net, shape, 3, activation)
    weights = random_weights(architecture)
    model = to_onnx(architecture, weights, {"onnxcert.training": "{}"})
    x = np.random.default_rng(1).normal(size=(4, *shape)).astype(np.float32)
    wanted = reference(architecture, weights, x)
    (logits,) = run(model, input=x)
    np.testing.assert_allclose(logits, wanted, rtol=2e-4, atol=2e-4)
    read = load_model(model).graph.forward(x.reshape(4, -1).astype(float))
    np.testing.assert_allclose(read, wanted, rtol=1e-9, atol=1e-9)
    assert [(entry.key, entry.value) for entry in model.metadata_props] == [
        ("onnxcert.training", "{}")
    ]
    bound = lipschitz(load_model(model), method="product")
    assert certify(model, x, eps=0.01, method="lipschitz", bound=bound).robust.shape == (1, 4)


def test_sorted_pairs_are_read_as_such() -> None:
    """Orthogonal layers and sorted pairs: no constant is above that of the last layer."""
    architecture = Architecture.of("mlp:8,8", (8,), 2, "minmax")
    rng = np.random.default_rng(0)
    weights = [
        (np.linalg.qr(rng.normal(size=(8, 8)))[0].astype(np.float32), bias)
        for _, bias in random_weights(architecture)[:-1]
    ]
    weights.append((np.eye(2, 8, dtype=np.float32), np.zeros(2, np.float32)))
    bound = lipschitz(to_onnx(architecture, weights, {}), method="product")
    assert bound.pairs[0, 1] == pytest.approx(np.sqrt(2.0), rel=1e-6)


def test_models_keep_an_open_batch() -> None:
    architecture = Architecture.of("2C2F", (5, 6), 3, "minmax")
    plain = to_onnx(architecture, random_weights(architecture), {})
    model = with_bottom_logit(plain, 0.1, method="product")
    x = np.random.default_rng(1).uniform(size=(7, 5, 6)).astype(np.float32)
    logits, certified, radius = run(model, input=x)
    assert (logits.shape, certified.shape, radius.shape) == ((7, 4), (7,), (7,))


@pytest.mark.parametrize(
    ("net", "side", "sizes"),
    [
        ("2C2F", 28, [16 * 14**2, 32 * 7**2, 100, 10]),
        ("4C3F", 28, [32 * 28**2, 32 * 14**2, 64 * 14**2, 64 * 7**2, 512, 512, 10]),
        (
            "6C2F",
            32,
            [32 * 32**2] * 2 + [32 * 16**2] + [64 * 16**2] * 2 + [64 * 8**2, 512, 10],
        ),
        (
            "8C2F",
            64,
            [64 * 64**2] * 2
            + [64 * 32**2]
            + [128 * 32**2] * 2
            + [128 * 16**2, 256 * 16**2, 256 * 8**2, 256, 10],
        ),
        ("liresnet:3x16", 32, [16 * 16**2] * 4 + [32 * 4**2, 512, 10]),
    ],
)
def test_sizes(net: str, side: int, sizes: list[int]) -> None:
    channels = 1 if side == 28 else 3
    architecture = Architecture.of(net, (channels, side, side), 10, "minmax")
    assert [layer.size for layer in architecture.layers] == sizes
    assert architecture.classes == 10


def test_the_names_are_those_of_the_paper() -> None:
    assert list(PAPER) == ["2C2F", "4C3F", "6C2F", "8C2F"]
    for name, (convolutions, dense) in PAPER.items():
        assert name == f"{len(convolutions)}C{len(dense) + 1}F"


@pytest.mark.parametrize(
    ("net", "shape", "cause"),
    [
        ("mlp:", (4,), "no network 'mlp:'"),
        ("mlp:0", (4,), "no network 'mlp:0'"),
        ("mlp:8,", (4,), "no network 'mlp:8,'"),
        ("liresnet:4", (1, 8, 8), "no network 'liresnet:4'"),
        ("3C3F", (1, 8, 8), "no network '3C3F'"),
        ("2C2F", (784,), "takes images"),
        ("mlp:5", (4,), "a layer of 5"),
    ],
)
def test_networks_that_there_are_not(net: str, shape: tuple[int, ...], cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        Architecture.of(net, shape, 3, "minmax")


def test_odd_widths_have_rectifiers() -> None:
    assert Architecture.of("mlp:5", (4,), 3, "relu").classes == 3


def test_schedules() -> None:
    options = Options(0.3, learning_rate=1.0, ramp=0.25)
    assert options.radius_at(0.0) == 0.0
    assert options.radius_at(0.125) == pytest.approx(0.225)
    assert options.radius_at(0.25) == options.radius_at(1.0) == pytest.approx(0.45)
    assert Options(0.3, train_eps=0.4, ramp=0.0).radius_at(0.0) == 0.4
    assert options.weight_at(0.125) == 0.5 * options.weight
    rates = [options.learning_rate_at(share) for share in np.linspace(0.0, 1.0, 101)]
    assert rates[0] == 0.0
    assert rates[-1] == pytest.approx(0.0)
    assert np.argmax(rates) == 5
    slower = Options(0.3, learning_rate=1.0, decay="exponential")
    assert slower.learning_rate_at(0.5) == 1.0
    assert slower.learning_rate_at(1.0) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("chosen", "cause"),
    [
        ({"loss": "hinge"}, "loss is one of"),
        ({"activation": "tanh"}, "activation is one of"),
        ({"decay": "none"}, "decay is one of"),
        ({"eps": 0.0}, "eps is a radius"),
        ({"eps": float("nan")}, "eps is a radius"),
        ({"train_eps": -1.0}, "train_eps is a radius"),
        ({"epochs": 0}, "epochs is a whole number"),
        ({"batch": 1.5}, "batch is a whole number"),
        ({"learning_rate": float("inf")}, "learning_rate is a number"),
        ({"ramp": 2.0}, "ramp is a share"),
        ({"warp": 0.6}, "warp is a share"),
        ({"seed": "x"}, "seed is a whole number"),
        ({"depth": 3}, "no option 'depth'"),
    ],
)
def test_options_that_make_no_sense(chosen: dict[str, object], cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        Options.of({"eps": 0.1} | chosen)


def test_a_model_is_whole() -> None:
    architecture = Architecture.of("liresnet:1x2", (1, 8, 8), 4, "relu")
    model = to_onnx(architecture, random_weights(architecture), {})
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == [
        *["Conv", "Relu"] * 3,
        *["Flatten", "Gemm", "Relu", "Gemm"],
    ]
