"""Training itself, on networks of a few neurons; needs PyTorch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcert import InputError, UsageError, certify, lipschitz, train
from onnxcert.training.architecture import Architecture, Dense
from onnxcert.training.export import to_onnx
from onnxcert.training.options import Options
from tests.continuity.test_bottom import run
from tests.training.test_files import NETS

torch = pytest.importorskip("torch")

from onnxcert.training.loop import augmented, fit  # noqa: E402
from onnxcert.training.losses import emma, gloro, trades, with_bottom  # noqa: E402
from onnxcert.training.network import Affine, Network  # noqa: E402

QUICK: dict[str, Any] = {"net": "mlp:8", "epochs": 6, "batch": 16, "learning_rate": 0.02}


def blobs(count: int = 320, gap: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Two classes in the plane, with a strip of this width between them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, size=count)
    x = rng.uniform(size=(count, 2)).astype(np.float32)
    x[:, 0] += np.where(labels == 1, 0.5 * gap, -1.0 - 0.5 * gap)
    return x, labels


def images(count: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Bright above, or below."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, size=count)
    x = rng.uniform(size=(count, 1, 8, 8)).astype(np.float32) * 0.2
    for half in (0, 1):
        x[labels == half, :, 4 * half : 4 * half + 4] += 0.7
    return x, labels


@pytest.mark.parametrize("activation", ["minmax", "relu"])
@pytest.mark.parametrize(("net", "shape"), NETS)
def test_the_file_is_the_network(net: str, shape: tuple[int, ...], activation: str) -> None:
    """PyTorch and onnxruntime agree, and the power method is below the certified constants."""
    architecture = Architecture.of(net, shape, 3, activation)
    network = Network.fresh(architecture, 0, "cpu")
    x = np.random.default_rng(1).normal(size=(4, *shape)).astype(np.float32)
    model = to_onnx(architecture, network.exported(), {})
    (logits,) = run(model, input=x)
    with torch.no_grad():
        ours = network.logits(torch.from_numpy(x)).numpy()
        pairs = network.pairs(500).numpy()
    np.testing.assert_allclose(logits, ours, rtol=1e-5, atol=1e-5)
    bound = lipschitz(model, method="product")
    away = ~np.eye(3, dtype=bool)
    assert (bound.seen_pairs <= pairs * (1.0 + 1e-3))[away].all()
    assert (pairs <= 1.2 * np.maximum(bound.pairs, 1e-3))[away].all()


@pytest.mark.parametrize(("net", "shape"), NETS)
def test_fresh_layers_have_norm_one(net: str, shape: tuple[int, ...]) -> None:
    """By singular values of the matrix that the layer multiplies with."""
    for layer in Network.fresh(Architecture.of(net, shape, 3, "relu"), 0, "cpu").layers:
        start = layer.layer.inputs if isinstance(layer.layer, Dense) else layer.layer.shape
        rows = torch.eye(int(np.prod(start))).reshape(-1, *np.atleast_1d(start))
        with torch.no_grad():
            matrix = (layer.apply(rows) - layer.apply(torch.zeros_like(rows))).reshape(
                len(rows), -1
            )
            exact = float(torch.linalg.matrix_norm(matrix, ord=2))
            assert float(layer.norm(500)) == pytest.approx(exact, rel=1e-3)
            if not getattr(layer.layer, "residual", None):
                assert exact == pytest.approx(1.0, rel=1e-2)


def test_norms_have_gradients() -> None:
    layer = Affine.fresh(Dense(5, 4), torch.Generator().manual_seed(0), "cpu")
    with torch.no_grad():
        layer.weight += 0.3 * torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(layer.norm(2000), layer.weight)
    left, _, right = torch.linalg.svd(layer.weight.detach())
    wanted = torch.outer(left[:, 0], right[0])
    np.testing.assert_allclose(gradient.numpy(), wanted.numpy(), atol=1e-3)


PAIRS = torch.tensor([[0.0, 2.0, 3.0], [2.0, 0.0, 4.0], [3.0, 4.0, 0.0]])
LOGITS = torch.tensor([[3.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
LABELS = torch.tensor([0, 1])


def test_the_bottom_logit() -> None:
    extended = with_bottom(LOGITS, PAIRS, 0.5)
    assert extended[:, :-1].equal(LOGITS)
    assert extended[:, -1].tolist() == [2.0, 2.0]  # the second row is a tie


def test_losses() -> None:
    extended = torch.tensor([[3.0, 1.0, 0.0, 2.0], [1.0, 1.0, 0.0, 2.0]])
    answers = torch.log_softmax(extended, dim=1)
    wanted = -(answers[0, 0] + answers[1, 1]) / 2.0
    assert float(gloro(LOGITS, LABELS, PAIRS, 0.5, 1.0)) == pytest.approx(float(wanted))
    clean = torch.log_softmax(LOGITS, dim=1)
    plain = -(clean[0, 0] + clean[1, 1]) / 2.0
    divergence = (clean.exp() * (clean - answers[:, :-1])).sum(dim=1).mean()
    found = trades(LOGITS, LABELS, PAIRS, 0.5, 3.0)
    assert float(found) == pytest.approx(float(plain + 3.0 * divergence))
    # Leads 2, 3 and 0, 1 over constants 2, 3 and 2, 4: the radii are 0.5, 0.5 and 0.005, 0.25.
    raised = torch.tensor([[3.0, 2.0, 1.5], [1.01, 1.0, 1.0]])
    wanted = torch.nn.functional.cross_entropy(raised, LABELS)
    assert float(emma(LOGITS, LABELS, PAIRS, 0.5, 1.0)) == pytest.approx(float(wanted))
    for loss in (gloro, emma):
        assert float(loss(LOGITS, LABELS, PAIRS, 0.0, 1.0)) >= float(plain) * (1.0 - 1e-6)


@pytest.mark.parametrize("loss", ["gloro", "trades", "emma"])
def test_what_can_be_learned_is_learned(loss: str) -> None:
    """Classes a strip of width 1 apart are certified at 0.4, and figures come from the file."""
    data = blobs()
    done = train(*data, eps=0.4, test=data, loss=loss, **QUICK)
    assert done.certification.accuracy == 1.0
    assert done.certification.certified[0] > 0.9
    again = certify(done.model, *data, eps=[0.4, 0.51], method="lipschitz")
    assert (again.robust[0] == done.certification.robust[0]).all()
    # No classifier has both sides of the strip right beyond half of its width, and this one not.
    near = np.abs(data[0][:, 0]) < 0.55
    assert near.any()
    moved = data[0][near].copy()
    moved[:, 0] -= np.sign(moved[:, 0]) * 0.6
    assert not again.robust[1][near].all()


def test_figures_are_of_inputs_held_back() -> None:
    x, labels = blobs()
    done = train(x, labels, eps=0.1, **QUICK)
    assert done.certification.predicted.shape == (32,)
    assert done.options == Options(0.1, **QUICK)


def test_seeds_decide_everything() -> None:
    data = images()
    options: dict[str, Any] = {
        "net": "2C2F",
        "epochs": 2,
        "batch": 16,
        "method": "product",
        "shift": 1,
        "warp": 0.1,
        "flip": True,
    }
    first, same, other = (
        train(*data, eps=0.1, test=data, seed=seed, **options).model for seed in (0, 0, 1)
    )
    assert first.graph.SerializeToString() == same.graph.SerializeToString()
    assert first.graph.SerializeToString() != other.graph.SerializeToString()


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    """The weights are those of a run that was not."""
    x, labels = blobs()
    architecture = Architecture.of("mlp:8", (2,), 2, "minmax")
    options = replace(Options(0.2, **QUICK), shift=0)
    whole = fit(architecture, x, labels, options, device="cpu").exported()
    state = tmp_path / "state.npz"
    reports = []

    def cut(epoch: Any) -> None:
        reports.append(epoch.epoch)
        if epoch.epoch == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(architecture, x, labels, options, device="cpu", state=state, progress=cut)
    reports.clear()
    rest = fit(
        architecture,
        x,
        labels,
        options,
        device="cpu",
        state=state,
        progress=lambda epoch: reports.append(epoch.epoch),
    )
    assert min(reports) == 4
    for pair, other in zip(whole, rest.exported(), strict=True):
        for part, same in zip(pair, other, strict=True):
            assert np.array_equal(part, same)
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]


def test_states_that_are_refused(tmp_path: Path) -> None:
    data, state = blobs(), tmp_path / "state.npz"
    train(*data, eps=0.2, test=data, state=state, **QUICK)
    with pytest.raises(UsageError, match="other options or data"):
        train(*data, eps=0.3, test=data, state=state, **QUICK)
    with pytest.raises(UsageError, match="other options or data"):
        train(data[0] + 1.0, data[1], eps=0.2, test=data, state=state, **QUICK)
    whole = state.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"junk"):
        state.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            train(*data, eps=0.2, test=data, state=state, **QUICK)
    state.write_bytes(whole)
    with np.load(state) as stored:
        arrays = dict(stored)
    arrays["0/weight"] = arrays["0/weight"][:1]
    np.savez(state, **arrays)
    with pytest.raises(InputError, match="not whole"):
        train(*data, eps=0.2, test=data, state=state, **QUICK)
    np.savez(state, x=np.zeros(3))
    with pytest.raises(InputError, match="no state"):
        train(*data, eps=0.2, test=data, state=state, **QUICK)


def test_divergence_is_said() -> None:
    x, labels = blobs()
    with pytest.raises(UsageError, match="diverges"):
        train(x * 1e30, labels, eps=0.1, learning_rate=1e30, net="mlp:8", batch=16)


@pytest.mark.parametrize(
    ("chosen", "cause"),
    [
        ({"x": np.zeros(3)}, "inputs along its first axis"),
        ({"x": np.full((320, 2), np.nan)}, "not all finite"),
        ({"x": np.full((320, 2), 1e200)}, "not all finite"),
        ({"labels": np.zeros(320)}, "labels have type float64"),
        ({"labels": np.full(320, -1)}, "labels lie from -1"),
        ({"labels": np.full(320, 400)}, "labels lie from 400"),
        ({"test": (np.zeros((3, 3)), np.zeros(3, int))}, "tests \\[3\\]"),
        ({"shift": 1}, "only images"),
        ({"device": "cuda:99"}, "no device"),
        ({"net": "4C3F"}, "takes images"),
        ({"state": "no/such/folder/state.npz"}, "cannot be written"),
    ],
)
def test_calls_that_make_no_sense(chosen: dict[str, Any], cause: str) -> None:
    x, labels = blobs()
    call = {"x": x, "labels": labels, "eps": 0.1, "epochs": 1, **chosen}
    with pytest.raises(UsageError, match=cause):
        train(call.pop("x"), call.pop("labels"), **call)


def test_warped_images() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(200, 9, 9)
    x[:, 4, 4] = 1.0
    moved = augmented(x, Options(0.1, shift=2), generator)
    assert moved.shape == x.shape
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    for place in (rows, columns):
        centre = (moved * place).sum(dim=(1, 2)) / moved.sum(dim=(1, 2))
        assert 1.5 < float((centre - 4.0).abs().max()) <= 2.0 + 1e-4
    assert augmented(x, Options(0.1), generator) is x
    left = torch.rand(50, 3, 4, 4, generator=generator)
    flipped = augmented(left, Options(0.1, flip=True), generator)
    mirrored = (flipped == left.flip(3)).all(dim=3).all(dim=2).all(dim=1)
    assert 5 < int(mirrored.sum()) < 45
    assert (flipped[~mirrored] == left[~mirrored]).all()
