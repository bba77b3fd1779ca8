"""Engines with bugs: the search claims that everything is refuted, and the checker refuses.

Every instance has a solution. The engine's replay is told to lose it, so that only the bug decides
what the search says; without a bug it never finishes, with one it does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcert
from onnxcert import Settings, Unknown
from onnxcert.arrays import Device
from onnxcert.bounds import crown
from onnxcert.bounds.backward import Tilt
from onnxcert.bounds.optimised import Optimised
from onnxcert.bounds.tilts import Tilting
from onnxcert.checker.certificate import REAL
from onnxcert.ops import Divide, Multiply
from onnxcert.ops.base import Affine
from onnxcert.ops.convex import ConvexLines
from onnxcert.ops.exp import ExpLines
from onnxcert.ops.s_shaped import Tangents
from onnxcert.ops.sinusoid import SinusoidLines
from onnxcert.ops.two_slope import TwoSlope
from onnxcert.proof.certify import Certifier
from onnxcert.search import input_split, neuron_split, solve
from onnxcert.search.branching import Bounded, Children
from onnxcert.search.candidates import Candidates
from onnxcert.search.cases import Cases
from onnxcert.search.deadline import Deadline
from onnxcert.search.frontier import Batch, take
from onnxcert.search.input_split import InputSplit
from onnxcert.search.neuron_split import NeuronSplit
from onnxcert.search.solve import Solver
from onnxcert.sets import Box, Lines, Planes
from onnxcert.verdict import Counterexample, Reason
from tests.checker.makers import PLANS, Instance, made

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Search:
    """An engine that overlooks every witness, at work on an instance."""

    instance: Instance
    settings: Mapping[str, Any]

    def run(self, seconds: float = 10.0) -> tuple[object, Callable[[], bytes]]:
        """What the search says of the last problem, and how to make a certificate of it."""
        solver = Solver(
            self.instance.graph,
            confirm=lambda point, decimals: None,
            settings=Settings(**self.settings, attack_restarts=0),
            device=Device(),
            deadline=Deadline(seconds),
            rng=np.random.default_rng(0),
        )
        certifier = Certifier(self.instance.model, self.instance.spec, None, REAL, {})
        answer: Counterexample | Reason | None = None
        with np.errstate(all="ignore"):
            for problem in self.instance.problems:
                answer = solver.solve(problem)
                if answer is not None:
                    break
                certifier.add(problem)
        return answer, lambda: certifier.refutation(solver.trace).data


# The bugs


def planes_through_the_chord(patch: Patch) -> None:
    """Planes above relus have the offset of the box's lower end only."""
    right = Tilting.tilt

    def tilt(self: Tilting, shares: Any) -> Tilt:
        made = right(self, shares)
        below = -(self.balanced(shares) * self.used * self.least).sum(axis=2)
        return replace(made, offset=0.5 * below)

    patch.setattr(Tilting, "tilt", tilt)


def unbalanced_planes(patch: Patch) -> None:
    """Only what is left of zero keeps planes above a relu."""
    right = Tilting.tilt

    def tilt(self: Tilting, shares: Any) -> Tilt:
        made = right(self, shares)
        raw = shares * self.used
        below = -(raw * self.least).sum(axis=2)
        return replace(made, factors=self.matrices(raw * self.weight), offset=below)

    patch.setattr(Tilting, "tilt", tilt)


def planes_with_both_signs(patch: Patch) -> None:
    """Positive rows take the planes above, too."""
    patch.setattr(Tilt, "negative", lambda self, rows: rows[:, :, self.neurons] * 1.0)


def planes_of_narrow_boxes(patch: Patch) -> None:
    """What neurons read is taken to vary half as much."""
    right = Tilting.build.__func__  # type: ignore[attr-defined]

    def build(cls: Any, graph: Any, node: Any, boxes: Any, relaxation: Any) -> Tilting | None:
        made = right(cls, graph, node, boxes, relaxation)
        if made is None:
            return None
        quarter = 0.25 * made.width
        return replace(
            made,
            least=made.least + quarter,
            width=0.5 * made.width,
            top=made.top - quarter.sum(axis=1),
            gap=made.gap - quarter.sum(axis=1),
        )

    patch.setattr(Tilting, "build", classmethod(build))


def dropped_intercept(patch: Patch) -> None:
    """The line above a relu goes through zero."""
    right = TwoSlope.relax

    def relax(self: TwoSlope, box: Box, slope: Any = None) -> Lines:
        lines = right(self, box, slope)
        return replace(lines, upper_offset=0.0 * lines.upper_offset)

    patch.setattr(TwoSlope, "relax", relax)


def most_of_the_intercept(patch: Patch) -> None:
    """The line above a relu is a little too low at both ends."""
    right = TwoSlope.relax

    def relax(self: TwoSlope, box: Box, slope: Any = None) -> Lines:
        lines = right(self, box, slope)
        return replace(lines, upper_offset=0.875 * lines.upper_offset)

    patch.setattr(TwoSlope, "relax", relax)


def wrong_sign_of_the_upper_slope(patch: Patch) -> None:
    """The line above falls where it should rise."""
    right = TwoSlope.relax

    def relax(self: TwoSlope, box: Box, slope: Any = None) -> Lines:
        lines = right(self, box, slope)
        unstable = (box.lower < 0) & (box.upper > 0)
        turned = np.where(unstable, -lines.upper_slope, lines.upper_slope)
        return replace(lines, upper_slope=turned)

    patch.setattr(TwoSlope, "relax", relax)


def wrong_sign_of_the_lower_slope(patch: Patch) -> None:
    """The line below lies above the curve on the left of the kink."""
    right = TwoSlope.relax

    def relax(self: TwoSlope, box: Box, slope: Any = None) -> Lines:
        lines = right(self, box, slope)
        unstable = (box.lower < 0) & (box.upper > 0)
        turned = np.where(unstable, -1.0, lines.lower_slope)
        return replace(lines, lower_slope=turned)

    patch.setattr(TwoSlope, "relax", relax)


def dropped_intercept_of_smooth_curves(patch: Patch) -> None:
    """Lines of sigmoid that pass a little inside of the curve."""
    right = Tangents.at

    def at(self: Tangents, position: Any) -> Lines:
        lines = right(self, position)
        return replace(
            lines,
            lower_offset=lines.lower_offset + 0.02,
            upper_offset=lines.upper_offset - 0.02,
        )

    patch.setattr(Tangents, "at", at)


def dropped_intercept_of_waves(patch: Patch) -> None:
    """The same for cosines, exponentials and reciprocals."""
    for lines_of in (SinusoidLines, ExpLines, ConvexLines):

        def at(self: Any, position: Any, right: Any = lines_of.at) -> Lines:
            lines = right(self, position)
            return replace(
                lines,
                lower_offset=lines.lower_offset + 0.1,
                upper_offset=lines.upper_offset - 0.1,
            )

        patch.setattr(lines_of, "at", at)


def stale_bounds(patch: Patch) -> None:
    """All boxes of a batch are given the pre-activations of one of them."""
    right = crown.crown_bounds

    def bounds(graph: Any, box: Box, **options: Any) -> crown.Bounds:
        last = right(graph, Box(box.lower[-1:], box.upper[-1:]), **options | {"known": None})
        known = {
            name: Box(*(np.repeat(side, len(box), axis=0) for side in (b.lower, b.upper)))
            for name, b in last.boxes.items()
            if name in graph.pre_activations
        }
        return right(graph, box, **options | {"known": known})

    patch.setattr(input_split, "crown_bounds", bounds)


def stale_splits(patch: Patch) -> None:
    """The split neurons of a path have the bounds of the other half."""
    right = NeuronSplit._apply_paths

    def apply(self: NeuronSplit, batch: Batch) -> Any:
        return right(self, batch | {"sign": abs(batch["sign"])})

    patch.setattr(NeuronSplit, "_apply_paths", apply)


def tolerance(patch: Patch) -> None:
    """``lower > -1e-2`` refutes boxes, and ``lower > -5e-2`` splits of neurons."""
    right = Cases.refuted
    patch.setattr(Cases, "refuted", lambda self, c, lower: right(self, c, lower + 1e-2))
    for module in (solve, neuron_split):
        optimise = module.optimise

        def lenient(*arguments: Any, run: Any = optimise, **options: Any) -> Optimised:
            found: Optimised = run(*arguments, **options)
            return replace(found, lower=found.lower + 5e-2)

        patch.setattr(module, "optimise", lenient)


def planes_without_their_distance(patch: Patch) -> None:
    """Products and quotients are taken for the tangent at the middle."""
    for kind in (Multiply, Divide):
        right = kind.relax

        def relax(self: Any, boxes: Any, made: Box, right: Any = right) -> Planes:
            planes = right(self, boxes, made)
            middle = 0.5 * (planes.lower_offset + planes.upper_offset)
            return replace(planes, lower_offset=middle, upper_offset=middle)

        patch.setattr(kind, "relax", relax)


def narrow_differences(patch: Patch) -> None:
    """A quotient is what it is in the middle."""
    right = Divide.from_difference

    def from_difference(self: Divide, boxes: Any, center: Any, difference: Box) -> Box:
        none = Box(0.0 * difference.lower, 0.0 * difference.upper)
        return right(self, boxes, center, none)

    patch.setattr(Divide, "from_difference", from_difference)


def narrow_intervals(patch: Patch) -> None:
    """Affine layers spread their inputs by half of what they do."""
    right = Affine.interval

    def interval(self: Affine, boxes: Any, unit: float) -> Box:
        box = right(self, boxes, unit)
        center, radius = 0.5 * (box.lower + box.upper), 0.25 * (box.upper - box.lower)
        return Box(center - radius, center + radius)

    patch.setattr(Affine, "interval", interval)


def lost_upper_halves(patch: Patch) -> None:
    """Every second child is never looked at."""
    _lose(patch, lower=False)


def lost_lower_halves(patch: Patch) -> None:
    _lose(patch, lower=True)


def _lose(patch: Patch, *, lower: bool) -> None:
    right = InputSplit.split

    def split(self: InputSplit, batch: Batch, bounded: Bounded) -> Children:
        children = right(self, batch, bounded)
        if children.batch is None:
            return children
        half = len(children.score) // 2
        kept = slice(half, None) if lower else slice(0, half)
        return Children(take(children.batch, kept), children.score[kept], children.stuck)

    patch.setattr(InputSplit, "split", split)


def lower_halves_twice(patch: Patch) -> None:
    """Both children of a split are the lower half."""
    right = NeuronSplit._extend
    patch.setattr(
        NeuronSplit,
        "_extend",
        staticmethod(lambda batch, neuron, sign, point: right(batch, neuron, -abs(sign), point)),
    )


def upper_halves_twice(patch: Patch) -> None:
    right = NeuronSplit._extend
    patch.setattr(
        NeuronSplit,
        "_extend",
        staticmethod(lambda batch, neuron, sign, point: right(batch, neuron, abs(sign), point)),
    )


# A bug only shows where it is met on the way to the solution: the half that is lost must be the one
# with the solution, the stale bounds those of another box, and wrong lines are no longer taken once
# the box round the solution is so small that all its neurons are stable.
BUGS: dict[Callable[[Patch], None], list[str]] = {
    dropped_intercept: ["inputs", "boxes", "combined", "sums", "neurons", "weights", "groups"],
    most_of_the_intercept: ["convolution", "weights"],
    wrong_sign_of_the_upper_slope: ["inputs", "boxes", "sums", "neurons", "weights", "groups"],
    wrong_sign_of_the_lower_slope: ["neurons", "weights"],
    dropped_intercept_of_smooth_curves: ["sigmoid"],
    dropped_intercept_of_waves: ["waves", "softmax"],
    stale_bounds: ["inputs", "combined", "sums", "products"],
    stale_splits: ["neurons", "weights", "sigmoid", "groups"],
    tolerance: ["inputs", "combined", "boxes", "sums", "neurons", "weights", "groups", "sigmoid"],
    narrow_intervals: ["inputs", "boxes", "combined", "sums", "neurons", "weights", "groups"],
    planes_without_their_distance: ["products", "shares"],
    narrow_differences: ["shares"],
    lost_upper_halves: ["inputs", "sums", "convolution"],
    lost_lower_halves: ["inputs", "combined", "sums"],
    planes_through_the_chord: ["planes", "executed_planes", "split_planes"],
    unbalanced_planes: ["planes", "executed_planes"],
    planes_with_both_signs: ["executed_planes"],
    planes_of_narrow_boxes: ["planes", "executed_planes"],
    lower_halves_twice: ["neurons", "weights", "groups", "sigmoid"],
    upper_halves_twice: ["neurons", "weights", "groups", "sigmoid"],
}

PAIRS = [
    pytest.param(bug, name, id=f"{bug.__name__}-{name}")
    for bug, names in BUGS.items()
    for name in names
]


def search_of(name: str) -> Search:
    it = made(name)
    assert it.sibling.is_solved_by(it.solution)
    return Search(it.sibling, PLANS[name].settings)


@pytest.mark.parametrize("name", sorted({name for names in BUGS.values() for name in names}))
def test_without_a_bug_the_search_does_not_finish(name: str) -> None:
    answer, _ = search_of(name).run(seconds=0.5)
    assert isinstance(answer, Reason)


@pytest.mark.parametrize(("bug", "name"), PAIRS)
def test_certificate_of_an_engine_with_a_bug(
    bug: Callable[[Patch], None], name: str, monkeypatch: Patch
) -> None:
    search = search_of(name)
    with monkeypatch.context() as patch:
        bug(patch)
        answer, certificate = search.run()
        assert answer is None, "the engine does not close everything: the bug does nothing"
        data = certificate()
    assert search.instance.outcome(data) == "R8"


@pytest.mark.parametrize(
    ("bug", "name"),
    [(tolerance, "inputs"), (dropped_intercept, "neurons"), (lost_lower_halves, "combined")],
)
def test_verifier_with_a_bug(
    bug: Callable[[Patch], None], name: str, monkeypatch: Patch, tmp_path: Path
) -> None:
    """Repair or not, ``unsat`` is not the answer, and no certificate is written."""
    search = search_of(name)
    path, out = tmp_path / "spec.vnnlib", tmp_path / "proof.onnxcert"
    path.write_bytes(search.instance.spec)
    model = onnx.ModelProto.FromString(search.instance.model)
    settings = Settings(**search.settings, attack_restarts=0)
    monkeypatch.setattr(Candidates, "test", lambda self, points, cases: None)
    bug(monkeypatch)
    result = onnxcert.verify(model, path, timeout=1.5, settings=settings, certificate=out)
    assert isinstance(result.verdict, Unknown)
    assert not out.exists()
