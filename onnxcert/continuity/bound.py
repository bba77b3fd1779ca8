"""Global Lipschitz bounds of a model: `lipschitz` and what it returns."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from onnxcert.arrays import Array, FloatArray
from onnxcert.bounds.interval import interval_bounds
from onnxcert.continuity.cache import Store, kept_stages
from onnxcert.continuity.certificate import Hints, certify_constants, require_provable
from onnxcert.continuity.ellipsoid import (
    Plan,
    choose_closed_form,
    constants,
    enclose,
    enclose_near,
    input_diagonal,
    pair_constants,
)
from onnxcert.continuity.network import Network, input_box
from onnxcert.continuity.product import Calculus, pair_forms
from onnxcert.continuity.refine import Objective
from onnxcert.continuity.sampled import converging_norm, sampled_constants
from onnxcert.errors import UsageError
from onnxcert.files import check_writable, write_file
from onnxcert.frontend.onnx import Model, load_model
from onnxcert.frontend.replay import check_lowering
from onnxcert.graph import Graph
from onnxcert.ops import Affine
from onnxcert.sets import Box
from onnxcert.verdict import Proof

if TYPE_CHECKING:
    import onnx

_log = logging.getLogger(__name__)

METHODS = ("product", "recursion", "refined")
NORMS = ("2", "inf", "1")

_WIDE_REFINED, _WIDE_RECURSION = 1100, 4096
"""Up to how many rows of the matrices ``auto`` chooses a method."""

Stages: TypeAlias = "Callable[[Objective, FloatArray], Iterable[FloatArray]]"
"""From an objective and where to begin to better and better variables."""

_COMPARED_POINTS = 8

_MOST_OUTPUTS = 2048
"""Pairs of more outputs are not tabulated."""

ModelSource: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto | Model"


@dataclass(frozen=True)
class LayerNorm:
    """One affine operator.

    Attributes:
        name: the value it makes; source: the node of the file.
        norm: an upper bound of its spectral norm.
        seen: power iteration's value, which is below it.
    """

    name: str
    source: str
    norm: float
    seen: float


@dataclass(frozen=True, eq=False)
class LipschitzBound:
    """How far outputs can move: ``|(y_i - y_j)(x) - (y_i - y_j)(x')| <= pairs[i, j] |x - x'|``.

    The bounds hold for the real-valued network of the file, for all inputs or for those of the
    domain, however they were rounded when they were computed.

    Attributes:
        model: the network as read.
        method: the strongest method that was run; each bound is the best of it and the cheaper
            ones.
        norm: of input differences, ``"2"``, ``"inf"`` or ``"1"``.
        domain: (low, high) of every input, or None for everywhere.
        outputs: (m,) the same for single outputs.
        pairs: (m, m), zero on the diagonal.
        seen_outputs, seen_pairs: lower bounds from gradients at random points, in floating point.
        layers: norms of the affine operators.
        multipliers: of the last recursion that was run, per curve; empty for ``product``.
        proof: of the certificate, if one was asked for; outputs and pairs are then what it proves.
    """

    model: Model
    method: str
    norm: str
    domain: tuple[float, float] | None
    outputs: FloatArray
    pairs: FloatArray
    seen_outputs: FloatArray
    seen_pairs: FloatArray
    layers: tuple[LayerNorm, ...]
    multipliers: Mapping[str, FloatArray] = field(default_factory=dict)
    proof: Proof | None = None

    @property
    def rests_on(self) -> str:
        """What the bounds rest on, in words."""
        norms = "verified norms of affine islands"
        if self.method == "product":
            return norms
        found = "optimised" if self.method == "refined" else "closed-form"
        return f"a verified matrix recursion with {found} multipliers, and {norms}"


def lipschitz(  # noqa: PLR0913 - all but one are keywords with defaults
    model: ModelSource,
    *,
    method: str = "auto",
    norm: str | float = "2",
    domain: tuple[float, float] | None = None,
    samples: int = 256,
    seed: int = 0,
    certificate: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    expired: Callable[[], bool] = lambda: False,
) -> LipschitzBound:
    """Bound how far the outputs of a model can move when its input does.

    Args:
        model: path of an ONNX file, a model object, or a model that has been read.
        method: ``product`` of norms (any size), ``recursion`` (closed form), ``refined`` (its
            multipliers optimised), or ``auto``: the last that the size of the network allows.
        norm: of input differences: 2, inf or 1; outputs are single numbers.
        domain: (low, high) of every input: slopes are taken there, and operators that are Lipschitz
            continuous only on it are accepted.
        samples: points of the lower bound.
        seed: of those points.
        certificate: where to write a certificate, for `onnxcert.check` without a specification. The
            constants are then those that the checker proves with one set of multipliers, chosen for
            the largest of them; without a certificate each constant is the least of all sets, so
            that smaller ones may be larger here, and more so where the network is no chain or a
            product of norms is better.
        cache: a folder in which the multipliers of ``refined`` are kept; with those of an earlier
            run the bounds are worked out again without the descent (`onnxcert.continuity.cache`).
        expired: asked between steps of the descent.

    Raises:
        ModelError: the model cannot be read, or has an operator without a constant, or the checker
            cannot prove its constants.
        UsageError: the arguments make no sense, or the method cannot hold the network.
    """
    if certificate is not None:
        check_writable(certificate)
    norm = norm_name(norm)
    if method not in ("auto", *METHODS):
        raise UsageError(f"there is no method {method!r}", help=f"auto, {', '.join(METHODS)}")
    read = _read(model)
    box = None if domain is None else _domain_box(read, domain)
    rng = np.random.default_rng(seed)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        network = Network.read(read.graph, box)
        _compare(read, box, rng)
        if certificate is not None:
            require_provable(network)
        plan = Plan.of(network)
        chosen = _choose(method, plan)
        calculus = Calculus(network, norm)
        store = None if cache is None else Store.of(cache, read.sha256, network, norm)
        stages = partial(kept_stages, store=store, expired=expired)
        best = _Best.of(chosen, calculus, plan, stages)
        bound = LipschitzBound(
            *(read, chosen, norm, domain, best.outputs, best.pairs),
            *sampled_constants(read.graph, norm, rng, points=samples, domain=box),
            tuple(_layers(calculus, rng)),
            best.multipliers,
        )
        return bound if certificate is None else _certified(bound, plan, best.hints, certificate)


def _certified(
    bound: LipschitzBound, plan: Plan, hints: Hints | None, path: str | os.PathLike[str]
) -> LipschitzBound:
    """Prove the constants to the checker, and write what it accepts."""
    if hints is None:  # a product of norms, which those multipliers imply in a chain
        diagonal = input_diagonal(plan.graph.input_size, bound.norm)
        found = enclose(plan, choose_closed_form(plan.network), diagonal)
        hints = Hints({} if found is None else found[1], diagonal)
    started = time.perf_counter()
    known = bound.outputs, bound.pairs
    done = certify_constants(bound.model, plan.network, bound.norm, hints, *known)
    write_file(path, done.data)
    proof = Proof(
        accepted=True,
        claims=done.verified.claims,
        bytes=len(done.data),
        seconds=time.perf_counter() - started,
        path=os.fspath(path),
    )
    return replace(bound, outputs=done.outputs, pairs=done.pairs, proof=proof)


def certified_radius(
    model: ModelSource,
    x: Array,
    *,
    bound: LipschitzBound | None = None,
    **options: object,
) -> FloatArray:
    """Radii within which the class of each input cannot change, over the reals.

    Args:
        model: as for `lipschitz`.
        x: one input, or a batch of them in the first axis; as many entries as the model has inputs.
        bound: of the same model, if it is known; else it is computed with ``options``, those of
            `lipschitz`.

    Returns:
        (B,) radii in the norm of the bound, rounded down; zero where there is a tie or nothing is
        known, infinite where no other class can ever win. With a domain, only inputs inside it
        count, and an input outside has radius zero.

    Raises:
        UsageError: the input does not fit the model, or it has a single output.
        ModelError: as for `lipschitz`.
    """
    known = bound if bound is not None else lipschitz(model, **options)  # type: ignore[arg-type]
    return radii(known, as_batch(known.model, x))


def as_batch(model: Model, x: Array) -> FloatArray:
    """Inputs as rows, (B, n)."""
    points = np.asarray(x, dtype=np.float64)
    size = model.graph.input_size
    if points.size == 0 or points.size % size:
        raise UsageError(f"the model has {size} inputs, and {points.size} numbers were given")
    if not np.isfinite(points).all():
        raise UsageError("the inputs are not all finite")
    return points.reshape(-1, size)


def radii(bound: LipschitzBound, points: FloatArray, chunk: int = 256) -> FloatArray:
    """Certified radii of rows (B, n), rounded down, (B,)."""
    if len(bound.pairs) < 2:
        raise UsageError("the model has one output, so there are no classes")
    parts = []
    for start in range(0, len(points), chunk):
        part = points[start : start + chunk]
        parts.append(_radii(bound.pairs, margins(bound.model.graph, part)))
    result = np.concatenate([*parts, np.zeros(0)])
    if bound.domain is not None:
        low, high = bound.domain
        result[((points < low) | (points > high)).any(axis=1)] = 0.0
    return result


def margins(graph: Graph, points: FloatArray) -> tuple[Array, FloatArray]:
    """The largest output of each point (B,), and lower bounds of its lead over all (B, m)."""
    with np.errstate(over="ignore", invalid="ignore"):
        boxes = interval_bounds(graph, Box(points, points))
    box = boxes[graph.output]
    winner = np.argmax(box.lower, axis=1)
    floor = np.take_along_axis(box.lower, winner[:, None], axis=1)
    lead = np.nextafter(floor - box.upper, -np.inf)
    np.put_along_axis(lead, winner[:, None], np.inf, axis=1)
    return winner, np.where(np.isnan(lead), -np.inf, lead)


def _radii(pairs: FloatArray, leads: tuple[Array, FloatArray]) -> FloatArray:
    winner, lead = leads
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nextafter(lead / pairs[winner], -np.inf)
    ratio = np.where(lead <= 0.0, 0.0, ratio)
    ratio[np.arange(len(winner)), winner] = np.inf
    result: FloatArray = np.where(np.isnan(ratio), 0.0, ratio).min(axis=1)
    return result


def norm_name(norm: str | float) -> str:
    """``2``, ``inf`` or ``1`` from a name or a number."""
    names = {"2": "2", "inf": "inf", "1": "1"}
    key = norm if isinstance(norm, str) else ("inf" if norm == math.inf else f"{norm:g}")
    if key not in names:
        raise UsageError(f"there is no norm {norm!r}", help="2, inf or 1")
    return names[key]


def _read(source: ModelSource) -> Model:
    """A model whose pairs of outputs fit into a table."""
    model = source if isinstance(source, Model) else load_model(source)
    size = model.graph.output_size
    if size > _MOST_OUTPUTS:
        raise UsageError(f"the model has {size} outputs; pairs are tabulated up to {_MOST_OUTPUTS}")
    return model


def _domain_box(model: Model, domain: tuple[float, float]) -> Box:
    low, high = domain
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UsageError(f"[{low:g}, {high:g}] is no domain")
    return input_box(model.graph, low, high)


def _compare(model: Model, box: Box | None, rng: np.random.Generator) -> None:
    """Hold what was read against onnxruntime before anything is concluded from it."""
    around = box or input_box(model.graph, -1.0, 1.0)
    check_lowering(model, around.lower[0], around.upper[0], rng, _COMPARED_POINTS)


def _choose(method: str, plan: Plan) -> str:
    if method != "auto":
        if method != "product":
            plan.require_feasible()
        return method
    if plan.width <= _WIDE_REFINED:
        return "refined"
    return "recursion" if plan.width <= _WIDE_RECURSION else "product"


@dataclass(frozen=True, eq=False)
class _Best:
    """The least constants so far."""

    outputs: FloatArray
    pairs: FloatArray
    hints: Hints | None = None

    @property
    def multipliers(self) -> Mapping[str, FloatArray]:
        return {} if self.hints is None else self.hints.multipliers

    @classmethod
    def of(cls, method: str, calculus: Calculus, plan: Plan, stages: Stages) -> _Best:
        """Those of a method of `METHODS` and all cheaper ones."""
        best = cls.of_product(calculus)
        if method == "product":
            return best
        return best.with_recursion(plan, calculus.norm, stages if method == "refined" else None)

    @classmethod
    def of_product(cls, calculus: Calculus) -> _Best:
        size = calculus.network.graph.output_size
        outputs = calculus.outputs(np.eye(size))
        pairs = np.stack([calculus.outputs(pair_forms(size, i)) for i in range(size)])
        return cls(outputs, _tidy(pairs))

    def with_recursion(self, plan: Plan, norm: str, stages: Stages | None) -> _Best:
        size = plan.graph.input_size
        network = plan.network
        diagonal = input_diagonal(size, norm)
        found = enclose(plan, choose_closed_form(network), diagonal)
        if found is None:
            _log.info("the recursion fails in rounding; the product stands")
            return self
        best = self._improved(*found, diagonal)
        if stages is None or not plan.gates:
            return best
        objective = Objective(plan, norm)
        for variables in stages(objective, objective.pack(found[1])):
            multipliers, diagonal = objective.unpack(variables)
            found = enclose_near(plan, multipliers, diagonal)
            if found is not None:
                best = best._improved(*found, diagonal)
        return best

    def _improved(
        self, matrix: FloatArray, used: Mapping[str, FloatArray], diagonal: FloatArray
    ) -> _Best:
        outputs, pairs = constants(np.eye(len(matrix)), matrix), pair_constants(matrix)
        return _Best(
            np.fmin(self.outputs, outputs),
            np.minimum(self.pairs, _tidy(pairs)),
            Hints(dict(used), diagonal),
        )


def _tidy(pairs: FloatArray) -> FloatArray:
    """Symmetric, with nothing between an output and itself."""
    result: FloatArray = np.minimum(pairs, pairs.T)
    np.fill_diagonal(result, 0.0)
    return np.where(np.isnan(result), np.inf, result)


def _layers(calculus: Calculus, rng: np.random.Generator) -> list[LayerNorm]:
    makers = calculus.network.makers
    result = []
    for layer in calculus.layers():
        op = makers[layer.name].op
        assert isinstance(op, Affine)
        seen = converging_norm(op, rng)
        result.append(LayerNorm(layer.name, layer.source, layer.norm, min(seen, layer.norm)))
    return result
