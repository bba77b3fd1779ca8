"""Largest boxes: what is found is true, as large as promised, and proved from its file alone."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcert
from onnxcert import InputError, Settings, UsageError
from onnxcert.frontend.lower import lower_query
from onnxcert.region import api
from onnxcert.region.options import Options
from onnxcert.region.prove import round_inward
from onnxcert.region.regions import Region, Status
from onnxcert.region.similarity import similarity
from onnxcert.spec.boxes import BoxUnion
from tests.region.models import DIGITS, dense, digit, smallest_lead


def prove_from_file(model: Any, region: Region, folder: Path) -> None:
    """The file alone is unsat, its certificate is accepted, and its numbers are those reported."""
    spec, proof = folder / "region.vnnlib", folder / "region.onnxcert"
    spec.write_text(region.to_vnnlib())
    proof.write_bytes(region.certificate)
    assert onnxcert.verify(model, spec, settings=Settings(watch="off")).word == "unsat"
    assert onnxcert.check(proof, model, spec).verdict == "unsat"
    query = onnxcert.read_query(spec)
    box = next(part for part in query.assertions if isinstance(part, BoxUnion))
    assert region.lower is not None
    assert region.upper is not None
    for column, faces in enumerate(zip(region.lower, region.upper, strict=True)):
        assert box.exact_bounds(0, column) == tuple(Fraction(float(face)) for face in faces)


def test_digits(tmp_path: Path, rng: np.random.Generator) -> None:
    image = digit()
    region = onnxcert.largest_region(DIGITS, image, domain=(0, 1))
    assert region.status is Status.CERTIFIED
    assert region.lower is not None
    assert region.upper is not None
    assert (region.lower >= 0).all()
    assert (region.upper <= 1).all()
    assert (region.lower <= image).all()
    assert (region.upper >= image).all()
    assert region.gain > 1.3
    assert smallest_lead(DIGITS, region, rng) > 0
    prove_from_file(DIGITS, region, tmp_path)


@pytest.mark.parametrize("curve", ["Relu", "Tanh", "Sigmoid"])
@pytest.mark.parametrize("sizes", [[2, 8, 8, 3], [12, 16, 16, 4]])
def test_curves(curve: str, sizes: list[int], tmp_path: Path, rng: np.random.Generator) -> None:
    model = dense(sizes, curve, 1)
    points = rng.uniform(-0.5, 0.5, size=(3, sizes[0]))
    for region in onnxcert.largest_regions(model, list(points), domain=(-1, 1)):
        assert region.status is Status.CERTIFIED
        assert region.mean_width > region.uniform_width or region.mean_width == 2.0
        assert smallest_lead(model, region, rng) > 0
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    prove_from_file(path, region, tmp_path)


@pytest.mark.parametrize("domain", [(-1.0, 1.0), None])
@pytest.mark.parametrize("seed", range(3))
def test_more_freedom_is_never_smaller(seed: int, domain: tuple[float, float] | None) -> None:
    model = dense([10, 16, 16, 3], "Relu", seed)
    x = np.random.default_rng(seed).uniform(-0.5, 0.5, size=10)
    volumes = [
        onnxcert.largest_region(model, x, domain=domain, shape=shape, certified=False).log_volume
        for shape in ("uniform", "symmetric", "free")
    ]
    slack = 0.05  # each is a local optimum of its own
    assert volumes[0] <= volumes[1] + slack
    assert volumes[1] <= volumes[2] + slack
    assert volumes[2] > volumes[0] + 0.5


def test_a_batch_is_its_members() -> None:
    model = dense([10, 16, 16, 3], "Relu", 4)
    points = list(np.random.default_rng(4).uniform(-0.5, 0.5, size=(5, 10)))
    together = onnxcert.largest_regions(model, points, domain=(-1, 1), certified=False)
    for x, region in zip(points, together, strict=True):
        alone = onnxcert.largest_region(model, x, domain=(-1, 1), certified=False)
        assert region.lower is not None
        assert alone.lower is not None
        np.testing.assert_allclose(region.lower, alone.lower, atol=1e-6)
        np.testing.assert_allclose(region.upper, alone.upper, atol=1e-6)  # type: ignore[arg-type]


def plane(slope: np.ndarray) -> onnx.ModelProto:
    """y0 = 1 - slope . x and y1 = 0."""
    model = dense([len(slope), 2], "Relu", 0)
    weights = {"w0": np.stack([-slope, 0 * slope], axis=1), "b0": np.array([1.0, 0.0])}
    for stored in model.graph.initializer:
        stored.raw_data = weights[stored.name].astype(np.float32).tobytes()
    return model


def test_a_plane_has_a_known_optimum() -> None:
    """For y0 - y1 = 1 - a . x with a > 0, free of a domain below: widths c_i / (nu a_i) above."""
    slope = np.array([1.0, 2.0, 4.0])
    model = plane(slope)
    zero = np.zeros(3)
    region = onnxcert.largest_region(model, zero, domain=(0, 10))
    assert region.upper is not None
    np.testing.assert_allclose(region.upper, 1 / (3 * slope), rtol=0.02)
    region = onnxcert.largest_region(model, zero, domain=(0, 10), weights=[2.0, 1.0, 1.0])
    assert region.upper is not None
    np.testing.assert_allclose(region.upper, np.array([2, 1, 1]) / (4 * slope), rtol=0.02)
    region = onnxcert.largest_region(model, zero, domain=(0, 10), freeze=[0, 0, 1])
    assert region.upper is not None
    np.testing.assert_allclose(region.upper, np.array([1, 1, 0]) / (2 * slope), rtol=0.02)
    region = onnxcert.largest_region(model, zero, domain=(0, [0.1, 10, 10]), margin=0.5)
    assert region.upper is not None
    np.testing.assert_allclose(region.upper, [0.1, 0.1, 0.05], rtol=0.02)


def test_statuses() -> None:
    model = dense([4, 8, 3], "Relu", 0)
    x = np.full(4, 0.25)
    label = onnxcert.largest_region(model, x, domain=(0, 1), certified=False).label
    assert label is not None
    points = [x, x, x, np.full(4, 2.0), np.full(4, np.nan), np.full(4, np.inf), np.zeros(3)]
    labels = [label, (label + 1) % 3, 7, label, label, label, label]
    regions = onnxcert.largest_regions(model, points, domain=(0, 1), label=labels)
    assert [region.status for region in regions] == [
        Status.CERTIFIED,
        Status.MISCLASSIFIED,
        Status.NO_SUCH_LABEL,
        Status.OUTSIDE,
        Status.NOT_FINITE,
        Status.NOT_FINITE,
        Status.WRONG_SHAPE,
    ]
    lead = onnxcert.largest_region(model, x, domain=(0, 1), margin=1e3)
    assert lead.status is Status.VIOLATED
    for region in (*regions[1:], lead):
        assert not region.found
        assert region.certificate == b""
        with pytest.raises(UsageError, match="there is no box"):
            region.to_vnnlib()
        with pytest.raises(UsageError, match="there is no box"):
            _ = region.widths


def test_a_tie_has_no_box() -> None:
    model = dense([2, 2], "Relu", 0)
    for stored in model.graph.initializer:
        stored.raw_data = (0 * np.frombuffer(stored.raw_data, np.float32)).tobytes()
    assert onnxcert.largest_region(model, np.zeros(2)).status is Status.VIOLATED


def test_an_unproved_box_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api._Run, "_ask", lambda run, statement, patience: None)
    region = onnxcert.largest_region(dense([4, 8, 3], "Relu", 0), np.full(4, 0.25), domain=(0, 1))
    assert region.status is Status.UNPROVED
    assert not region.found


def test_a_condition_from_a_file(tmp_path: Path, rng: np.random.Generator) -> None:
    """The largest box in which y0 stays above a threshold or y1 below another."""
    model = dense([3, 8, 2], "Tanh", 2)
    graph = onnxcert.load_model(model).graph
    x = np.array([0.1, 0.2, -0.1])
    value = graph.forward(x[None])[0]
    low, high = value[0] - 0.5, value[1] + 0.5
    spec = tmp_path / "spec.vnnlib"
    lines = [f"(declare-const {name} Real)" for name in ("X_0", "X_1", "X_2", "Y_0", "Y_1")]
    lines += [f"(assert (>= X_{i} -1)) (assert (<= X_{i} 1))" for i in range(3)]
    lines.append(f"(assert (or (and (<= Y_0 {low:.6f})) (and (>= Y_1 {high:.6f}))))")
    spec.write_text("\n".join(lines))
    region = onnxcert.largest_region(model, x, spec=spec)
    assert region.status is Status.CERTIFIED
    assert region.lower is not None
    assert region.upper is not None
    assert (abs(np.stack([region.lower, region.upper])) <= 1).all()
    inside = region.lower + rng.random((2000, 3)) * (region.upper - region.lower)
    outputs = graph.forward(inside)
    assert (outputs[:, 0] > low - 1e-6).all()
    assert (outputs[:, 1] < high + 1e-6).all()
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    prove_from_file(path, region, tmp_path)
    spec.write_text("\n".join(lines[:-1]) + "\n(assert (<= Y_0 100))")
    assert onnxcert.largest_region(model, x, spec=spec).status is Status.VIOLATED


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("(assert (<= Y_0 X_0))", "inputs and outputs together"),
        ("(assert (or (and (<= X_0 0) (<= Y_0 0)) (and (<= Y_1 0))))", "different boxes"),
        ("", "no condition on outputs"),
    ],
)
def test_conditions_without_a_largest_box(condition: str, message: str, tmp_path: Path) -> None:
    spec = tmp_path / "spec.vnnlib"
    names = ("X_0", "X_1", "Y_0", "Y_1")
    lines = [f"(declare-const {name} Real)" for name in names]
    lines += [f"(assert (>= X_{i} -1)) (assert (<= X_{i} 1))" for i in range(2)]
    spec.write_text("\n".join([*lines, condition]))
    with pytest.raises(InputError, match=message):
        onnxcert.largest_region(dense([2, 2], "Relu", 0), np.zeros(2), spec=spec)


def test_growth_and_its_witnesses(tmp_path: Path) -> None:
    """In two dimensions every face ends at the domain or at a witness that breaks the next box."""
    model = dense([2, 8, 8, 3], "Relu", 3)
    graph = onnxcert.load_model(model).graph
    x = np.array([0.3, -0.2])
    before = onnxcert.largest_region(model, x, domain=(-1, 1))
    region = onnxcert.largest_region(model, x, domain=(-1, 1), grow=60.0)
    assert region.status is Status.CERTIFIED
    assert region.log_volume >= before.log_volume
    assert region.settled is not None
    assert region.settled.all()
    assert region.lower is not None
    assert region.upper is not None
    assert region.witnesses
    for found in region.witnesses:
        face = (region.upper if found.upper else region.lower)[found.input]
        beyond = found.point[found.input] - face
        assert (beyond if found.upper else -beyond) == pytest.approx(found.distance)
        assert 0 < found.distance <= 0.011 * (region.upper - region.lower)[found.input]
        others = np.arange(2) != found.input
        assert (found.point >= region.lower)[others].all()
        assert (found.point <= region.upper)[others].all()
        outputs = graph.forward(found.point[None])[0]
        assert outputs[region.label] <= np.delete(outputs, region.label).max() + 1e-5
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    prove_from_file(path, region, tmp_path)


def test_one_vector_of_widths_for_all_points() -> None:
    model = dense([6, 12, 3], "Relu", 5)
    points = np.random.default_rng(5).uniform(-0.2, 0.2, size=(3, 6))
    regions = onnxcert.largest_regions(model, list(points), shape="symmetric", shared=True)
    assert all(region.status is Status.CERTIFIED for region in regions)
    for region in regions:
        np.testing.assert_allclose(region.widths[0], regions[0].widths[1], rtol=1e-4)
        np.testing.assert_allclose(region.widths[1], regions[0].widths[1], rtol=1e-4)
    own = onnxcert.largest_regions(model, list(points), shape="symmetric")
    assert min(region.log_volume for region in own) >= regions[0].log_volume - 0.05


@pytest.mark.parametrize("curve", ["Relu", "Tanh"])
def test_the_method_of_the_paper(curve: str, rng: np.random.Generator) -> None:
    model = dense([6, 12, 12, 3], curve, 6)
    x = np.random.default_rng(6).uniform(-0.2, 0.2, size=6)
    paper = onnxcert.largest_region(model, x, method="paper")
    ours = onnxcert.largest_region(model, x)
    assert paper.status is Status.CERTIFIED
    assert smallest_lead(model, paper, rng) > 0
    np.testing.assert_allclose(*paper.widths, rtol=1e-5)
    assert ours.log_volume > paper.log_volume


def test_ellipsoids(rng: np.random.Generator) -> None:
    model = dense([8, 16, 16, 3], "Relu", 7)
    graph = onnxcert.load_model(model).graph
    x = np.random.default_rng(7).uniform(-0.2, 0.2, size=8)
    region = onnxcert.largest_region(model, x, norm="2")
    level = onnxcert.largest_region(model, x, norm="2", shape="uniform")
    box = onnxcert.largest_region(model, x, shape="symmetric")
    assert region.status is Status.CERTIFIED
    assert onnxcert.largest_region(model, x, norm="2", certified=False).status is Status.BOUNDED
    assert region.log_volume > level.log_volume
    assert (region.widths[0] > 0).all()
    assert region.mean_width > box.mean_width  # the axes of a ball are longer than the cube's sides
    directions = rng.normal(size=(5000, 8))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for axes in (region.widths[0], level.widths[0]):
        outputs = graph.forward(x + axes * directions)
        assert (outputs.argmax(axis=1) == region.label).all()


def test_an_ellipsoid_is_an_instance_like_any_other(tmp_path: Path) -> None:
    """The file is answered unsat; what is only a little larger is not proved by its certificate."""
    model = dense([8, 16, 16, 3], "Relu", 7)
    x = np.random.default_rng(7).uniform(-0.2, 0.2, size=8)
    for domain in (None, (x - 0.05, x + 0.6)):
        region = onnxcert.largest_region(model, x, norm="2", domain=domain, freeze=[1] + [0] * 7)
        spec, proof = tmp_path / "region.vnnlib", tmp_path / "region.onnxcert"
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        spec.write_text(region.to_vnnlib(), encoding="utf-8")
        proof.write_bytes(region.certificate)
        assert onnxcert.verify(path, spec).word == "unsat"
        assert onnxcert.check(proof, path, spec).verdict == "unsat"
        (problem,) = lower_query(onnxcert.read_query(spec)).cases
        (ellipsoid,) = problem.ellipsoids
        assert ellipsoid is not None
        assert ellipsoid.columns == tuple(range(1, 8))
        axes = region.widths[0][1:]
        # What is reported is no larger than what is in the file, and hardly smaller.
        for weight, axis, center in zip(ellipsoid.weights, axes, ellipsoid.center, strict=True):
            assert weight * Fraction(float(axis)) ** 2 <= 1
            assert weight * Fraction(float(axis)) ** 2 > 1 - Fraction(1, 10**9)
            assert float(center) == center
        low, high = problem.lower[0], problem.upper[0]
        assert low[0] == high[0] == x[0]
        if domain is not None:
            assert (low >= domain[0]).all()
            assert (high <= domain[1]).all()
            assert (region.widths[0] > 0.05).any()  # beyond the domain on one side


def test_a_domain_makes_room_for_longer_axes() -> None:
    """For 1 - a . x with x >= 0 nothing but the upper sides costs anything, from the same point."""
    slope = np.array([1.0, -2.0, 4.0])
    inside = onnxcert.largest_region(plane(slope), np.zeros(3), norm="2", domain=(0.0, 3.0))
    assert inside.status is Status.CERTIFIED
    # The second input can only help: its axis reaches the longest that it may be.
    expected = [1 / np.sqrt(2), 3.0, 1 / (4 * np.sqrt(2))]
    np.testing.assert_allclose(inside.widths[0], expected, rtol=0.05)


def test_an_ellipsoid_has_a_known_optimum() -> None:
    """For 1 - a . x all axes spend alike: a_i r_i = 1 / sqrt(n)."""
    slope = np.array([1.0, 2.0, 4.0])
    region = onnxcert.largest_region(plane(slope), np.zeros(3), norm="2")
    np.testing.assert_allclose(region.widths[0], 1 / (np.sqrt(3) * slope), rtol=0.02)


def test_time_runs_out() -> None:
    model = dense([6, 12, 12, 3], "Relu", 6)
    region = onnxcert.largest_region(model, np.zeros(6), timeout=1e-6)
    assert region.status is Status.TIMEOUT
    assert not region.found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": "round"}, "there is no 'round'"),
        ({"method": "magic"}, "there is no 'magic'"),
        ({"nonsense": 1}, "there is no option 'nonsense'"),
        ({"margin": -1.0}, "margin"),
        ({"margin": float("nan")}, "margin"),
        ({"timeout": 0.0}, "timeout"),
        ({"grow": -1.0}, "growth"),
        ({"domain": (1, 0)}, "empty"),
        ({"domain": (np.zeros(3), np.ones(3))}, "3 numbers for 4 inputs"),
        ({"weights": [1, 1, 0, 1]}, "positive"),
        ({"weights": "abc"}, "weights"),
        ({"freeze": [1, 0]}, "freeze"),
        ({"norm": "1"}, "there is no '1'"),
        ({"norm": "2", "grow": 1.0}, "ellipsoids"),
        ({"shared": True}, "symmetric or uniform"),
        ({"label": [0, 1]}, "2 labels for 1 points"),
        ({"label": [0.5]}, "whole numbers"),
        ({"label": "0"}, "whole numbers"),
        ({"domain": (0, 1, 2)}, "pair"),
        ({"domain": 0.0}, "pair"),
        ({"method": "paper", "shared": True, "shape": "symmetric"}, "no weights, and no shared"),
        ({"method": "paper", "shape": "uniform"}, "no weights, and no shared"),
        ({"method": "paper", "weights": [1, 2, 3, 4]}, "no weights, and no shared"),
        ({"spec": "a.vnnlib", "label": 0}, "takes the place"),
    ],
)
def test_calls_without_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        onnxcert.largest_region(dense([4, 8, 3], "Relu", 0), np.zeros(4), **changes)


def test_a_proof_that_loses_its_way_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saturated for ever: the lines that certify a box thousands wide are not the verifier's."""
    monkeypatch.setattr(api, "_PATIENCE", 1.0)
    monkeypatch.setattr(api, "_PATIENCE_SEARCHES", 0.0)
    model = dense([8, 16, 16, 4], "Sigmoid", 3)
    x = np.random.default_rng(0).uniform(-0.6, 0.6, size=8)
    region = onnxcert.largest_region(model, x)
    assert region.status is Status.CERTIFIED
    assert region.certificate


def test_sizes_of_boxes_that_are_tried_in_turn() -> None:
    wide = Region(Status.UNPROVED, np.zeros(2), uniform=0.01)
    sizes = list(api._factors(wide, 1.0))
    assert sizes[0] == 1.0
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.01
    for other, largest in ((replace(wide, uniform=np.nan), 1.0), (wide, 0.0), (wide, 0.01)):
        assert list(api._factors(other, largest)) == [1.0, 0.99, 0.95, 0.8]


def test_growth_that_is_interrupted_keeps_the_proved_box(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "grow", interrupted)
    told: list[Region] = []
    model = dense([4, 8, 3], "Relu", 0)
    with pytest.raises(KeyboardInterrupt):
        onnxcert.largest_regions(
            model, [np.full(4, 0.5)], found=lambda _, region: told.append(region), grow=1.0
        )
    assert [region.status for region in told] == [Status.CERTIFIED]


def test_labels_of_numpy() -> None:
    model = dense([4, 8, 3], "Relu", 0)
    points = [np.full(4, 0.5)] * 2
    own = onnxcert.largest_region(model, points[0], certified=False).label
    for label in (np.int64(own or 0), np.array([own, own]), [own, None]):
        regions = onnxcert.largest_regions(model, points, label=label, certified=False)
        assert [region.label for region in regions] == [own, own]


def test_numbers_of_a_file_stay_as_they_are(tmp_path: Path) -> None:
    model = dense([2, 8, 3], "Relu", 0)
    path = tmp_path / "spec.vnnlib"
    text = [f"(declare-const {name} Real)" for name in ("X_0", "X_1", "Y_0", "Y_1", "Y_2")]
    text += [f"(assert (>= X_{k} -1.0))(assert (<= X_{k} 1.0))" for k in range(2)]
    path.write_text("\n".join([*text, "(assert (>= Y_0 64.0))"]))
    region = onnxcert.largest_region(model, np.zeros(2), spec=path)
    assert "(>= Y_0 64.0)" in region.to_vnnlib()
    moved = onnxcert.largest_region(model, np.zeros(2), spec=path, margin=1.0)
    assert "(>= Y_0 62.99999999" in moved.to_vnnlib()


def test_options_as_a_value() -> None:
    options = Options(domain=(0, 1), certified=False)
    model = dense([4, 8, 3], "Relu", 0)
    first = onnxcert.largest_region(model, np.full(4, 0.5), options=options)
    second = onnxcert.largest_region(model, np.full(4, 0.5), domain=(0, 1), certified=False)
    assert first.status is Status.BOUNDED
    assert first.log_volume == second.log_volume
    assert replace(options, margin=0.1).margin == 0.1


def test_faces_are_rounded_inward(rng: np.random.Generator) -> None:
    for scale in (1e-12, 1.0, 1e9):
        point = scale * rng.normal(size=200)
        lower = point - scale * rng.random(200) * 10.0 ** rng.integers(-9, 1, 200)
        upper = point + scale * rng.random(200) * 10.0 ** rng.integers(-9, 1, 200)
        domain = lower.copy(), np.full(200, np.inf)
        domain[0][::2] = -np.inf
        low, high = round_inward(point, lower, upper, domain)
        assert (low >= lower).all()
        assert (high <= upper).all()
        assert (low <= point).all()
        assert (high >= point).all()
        assert (low == lower)[1::2].all()
        wide = upper - lower
        assert (high - low >= (1 - 1e-5) * wide).all()


def test_similarity() -> None:
    first, second = np.array([1.0, 0.0]), np.array([1.0, 1.0])
    matrix, mean = similarity([first, 2 * first, second])
    root = 1 / np.sqrt(2)
    np.testing.assert_allclose(matrix, [[1, 1, root], [1, 1, root], [root, root, 1]])
    assert mean == pytest.approx((1 + 2 * root) / 3)
    _, mean = similarity([1e300 * second, 1e-300 * second])  # squares have no room
    assert mean == pytest.approx(1.0)
    with pytest.raises(InputError, match="different numbers"):
        similarity([first, np.ones(3)])
    with pytest.raises(InputError, match="single point"):
        similarity([first, 0 * first])
