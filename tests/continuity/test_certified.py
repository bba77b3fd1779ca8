"""Data sets: what is proved holds, and the union proves the most."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnxcert
from onnxcert import InputError, UsageError, certified_radius, certify, lipschitz
from onnxcert.bounds.backward import pull_back
from onnxcert.bounds.crown import crown_bounds
from onnxcert.continuity.certified import read_data
from onnxcert.graph import Graph
from onnxcert.sets import Ball, Box
from tests import strategies
from tests.continuity.test_bottom import classifier, grid, run
from tests.oracles import dot, exact_values


@given(
    graph=strategies.graphs(smooth=True),
    seed=strategies.seeds,
    radius=st.sampled_from([0.0, 1e-9, 0.3, 20.0]),
    cut=st.booleans(),
)
def test_bounds_over_balls(graph: Graph, seed: int, radius: float, cut: bool) -> None:
    """Exact values at points of the ball, on its surface too, are never below the bounds."""
    rng = np.random.default_rng(seed)
    center = np.round(64.0 * rng.normal(size=(2, graph.input_size))) / 64.0
    ball = Ball.around(center, np.full(2, radius))
    if cut:
        ball = ball.intersect(Box(np.full((1, graph.input_size), -0.5), np.full((1, 1), 0.75)))
    with np.errstate(all="ignore"):
        found = crown_bounds(graph, ball)
        rows = np.eye(graph.output_size)[None].repeat(2, axis=0)
        lower = pull_back(found.relaxation, graph.output, rows).lower
    for number in range(2):
        direction = rng.normal(size=graph.input_size)
        direction /= np.linalg.norm(direction) * (1.0 + 1e-12)
        for share in (1.0, -1.0, 0.5):
            x = center[number] + share * radius * direction
            if cut:
                x = np.clip(x, -0.5, 0.75)
            exact = [
                Fraction(float(v)) - Fraction(float(c))
                for v, c in zip(x, center[number], strict=True)
            ]
            if sum((v * v for v in exact), Fraction(0)) > Fraction(radius) ** 2:
                continue
            values = exact_values(graph, x)[graph.output]
            for row, bound in zip(np.eye(graph.output_size), lower[number], strict=True):
                if np.isfinite(bound):
                    assert Fraction(float(bound)) <= dot(row, values)


def test_balls_are_tighter_than_their_boxes(rng: np.random.Generator) -> None:
    graph = strategies.relu_network(rng, [6, 8, 8, 2])
    center = rng.normal(size=(1, 6))
    ball = Ball.around(center, np.array([0.5]))
    lowers = []
    for box in (ball, Box(ball.lower, ball.upper)):
        found = crown_bounds(graph, box)
        lowers.append(pull_back(found.relaxation, graph.output, np.eye(2)[None]).lower)
    assert (lowers[0] > lowers[1]).all()


def test_certified_radius_holds() -> None:
    model, x = classifier(), grid(31)
    radius = certified_radius(model, x)
    label = run(model, x=x)[0].argmax(axis=1)
    distance = np.linalg.norm(x[:, None].astype(float) - x.astype(float), axis=2)
    nearest = np.where(label[:, None] != label, distance, np.inf).min(axis=1)
    assert (nearest >= radius).all()
    assert (radius > 0.0).mean() > 0.9
    inside = certified_radius(model, x, domain=(0.0, 0.5))
    assert (inside[(x > 0.5).any(axis=1)] == 0.0).all()


@pytest.mark.parametrize("norm", ["2", "inf"])
def test_union_is_at_least_each_part(norm: str) -> None:
    model, x = classifier(), grid(9)
    label = run(model, x=x)[0].argmax(axis=1)
    eps = (0.01, 0.05, 0.1, 0.2)
    found = {
        m: certify(model, x, label, eps=eps, norm=norm, method=m)
        for m in ("lipschitz", "backward", "union")
    }
    union = found["union"].robust
    assert (union == (found["lipschitz"].robust | found["backward"].robust)).all()
    assert found["union"].accuracy == 1.0
    assert (np.diff(found["union"].certified) <= 0.0).all()
    order = 2 if norm == "2" else np.inf
    distance = np.linalg.norm(x[:, None].astype(float) - x.astype(float), order, axis=2)
    nearest = np.where(label[:, None] != label, distance, np.inf).min(axis=1)
    for number, e in enumerate(eps):
        assert (nearest[union[number]] > e).all()


def test_wrong_labels_do_not_count() -> None:
    model, x = classifier(), grid(5)
    label = (run(model, x=x)[0].argmax(axis=1) + 1) % 3
    done = certify(model, x, label, eps=0.0)
    assert done.accuracy == 0.0
    assert done.certified[0] == 0.0
    assert certify(model, x, eps=0.0).certified[0] > 0.9


def test_arguments_without_meaning() -> None:
    model, x = classifier(), grid(3)
    for options in (
        {"eps": -1.0},
        {"eps": ()},
        {"eps": 0.1, "method": "guess"},
        {"eps": 0.1, "norm": "1"},
        {"eps": 0.1, "domain": (1.0, 0.0)},
        {"eps": 0.1, "bound": lipschitz(model, norm="inf")},
        {"eps": 0.1, "bound": lipschitz(classifier(width=5))},
    ):
        with pytest.raises(UsageError):
            certify(model, x, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="labels"):
        certify(model, x, np.zeros(3, int), eps=0.1)
    for wrong in (3, -1):
        with pytest.raises(UsageError, match="of 3 classes"):
            certify(model, x, np.full(9, wrong), eps=0.1)
    with pytest.raises(UsageError, match="first axis"):
        certify(model, x.T, eps=0.1)
    with pytest.raises(UsageError, match="no classes"):
        certify(classifier(classes=1), x, eps=0.1, method="backward")
    with pytest.raises(UsageError, match="inputs"):
        certified_radius(model, np.zeros(3))
    with pytest.raises(UsageError, match="finite"):
        certified_radius(model, np.array([[np.nan, 0.0]]))


def test_data_that_cannot_be_used(tmp_path: Path) -> None:
    good = tmp_path / "good.npz"
    np.savez(good, x=np.zeros((4, 2)), y=np.arange(4))
    x, y = read_data(good, 3)
    assert x.shape == (3, 2)
    assert y is not None
    assert y.tolist() == [0, 1, 2]
    bad = {
        "text": b"no archive",
        "empty": b"",
        "cut": good.read_bytes()[:100],
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    np.savez(tmp_path / "names.npz", a=np.zeros(3))
    np.savez(tmp_path / "words.npz", x=np.array(["a"]))
    np.savez(tmp_path / "labels.npz", x=np.zeros((4, 2)), y=np.zeros(3, int))
    np.savez(tmp_path / "objects.npz", x=np.array([None], dtype=object))
    np.save(tmp_path / "single.npy", np.zeros(3))
    names = [*bad, "names.npz", "words.npz", "labels.npz", "objects.npz", "single.npy", "absent"]
    for name in names:
        with pytest.raises(InputError):
            read_data(tmp_path / name)


def test_the_function_is_not_hidden_by_a_module() -> None:
    assert callable(onnxcert.lipschitz)
