"""Queries that multiply inputs and outputs, from the file to the checked proof."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import onnxcert
from onnxcert import Sat, Unsat
from onnxcert.checker.certificate import Session
from onnxcert.errors import UnsupportedSpec
from onnxcert.frontend.onnx import load_model
from onnxcert.frontend.products import columns_read
from onnxcert.frontend.vnnlib import parse_query
from onnxcert.instance import Instance
from onnxcert.region.condition import from_specification
from tests.frontend.onnx_models import model_of
from tests.strategies import seeds

HEADER = """(vnnlib-version <2.0>)
(declare-network N (declare-input X {kind} [1,2]) (declare-output Y {kind} [1,2]))
(assert (and (>= X[0,0] -1.0) (<= X[0,0] 1.0) (>= X[0,1] -1.0) (<= X[0,1] 1.0)))
"""
NAMES = {0: "X[0,0]", 1: "X[0,1]", 2: "Y[0,0]", 3: "Y[0,1]"}
Terms = list[tuple[Fraction, tuple[int, ...]]]


def network(seed: int) -> onnx.ModelProto:
    """Two inputs, four rectifiers, two outputs."""
    rng = np.random.default_rng(seed)
    sizes = {"w": (2, 4), "b": (4,), "v": (4, 2), "c": (2,)}
    constants = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("Gemm", ["h", "v", "c"], ["y"]),
    ]
    return model_of(nodes, {"x": (1, 2)}, ["y"], constants, opset=13)


@st.composite
def polynomials(draw: st.DrawFn) -> Terms:
    """Up to four products of up to three of inputs and outputs."""
    factors = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(lambda f: tuple(sorted(f)))
    quarters = st.integers(-8, 8).filter(bool).map(lambda n: Fraction(n, 4))
    chosen = draw(st.dictionaries(factors, quarters, min_size=1, max_size=4))
    return [(coefficient, factors) for factors, coefficient in chosen.items()]


def written(terms: Terms, relation: str, bound: float) -> str:
    """``terms relation bound`` as VNN-LIB."""
    products = (" ".join([f"{float(c)}", *(NAMES[i] for i in factors)]) for c, factors in terms)
    total = " ".join(f"(* {product})" for product in products)
    return f"(assert ({relation} (+ {total} 0.0) {bound:.6f}))\n"


def values(terms: Terms, points: np.ndarray) -> np.ndarray:
    """The polynomial at (x, y) points (B, 4)."""
    made = [float(c) * points[:, list(factors)].prod(axis=1) for c, factors in terms]
    return np.asarray(np.sum(made, axis=0))


def samples(proto: onnx.ModelProto) -> np.ndarray:
    """Inputs beside outputs, on a grid with the corners."""
    steps = np.linspace(-1.0, 1.0, 65)
    x = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    return np.concatenate([x, load_model(proto).graph.forward(x)], axis=1)


@settings(max_examples=20)
@given(seed=seeds, terms=polynomials(), semantics=st.sampled_from(["real", "ieee32-any-order"]))
def test_answers_agree_with_dense_samples(
    seed: int, terms: Terms, semantics: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Well below the least sample nothing is found and that is proved; above it is a witness."""
    folder: Path = tmp_path_factory.mktemp("polynomials")
    proto, model, spec, proof = network(seed), *(folder / n for n in ("m.onnx", "s", "p"))
    onnx.save(proto, model)
    found = values(terms, samples(proto))
    spread = float(np.ptp(found)) + 0.1
    for bound, expected in ((found.min() - 0.3 * spread, Unsat), (found.min() + spread, Sat)):
        kind = "real" if semantics == "real" else "float32"
        spec.write_text(HEADER.format(kind=kind) + written(terms, "<=", bound))
        result = onnxcert.verify(model, spec, semantics=semantics, timeout=60, certificate=proof)
        assert isinstance(result.verdict, expected), result.verdict
        claims = onnxcert.check(proof, model, spec, audit=4).claims
        assert expected is Sat or claims == (semantics,)


@given(seed=seeds, data=st.data())
def test_both_networks_compute_the_products_of_the_query(seed: int, data: st.DataObject) -> None:
    """Rows about them have the truth of the query, for engine and checker."""
    proto, terms = network(seed), data.draw(polynomials())
    text = HEADER.format(kind="real") + written(terms, "<", 0.25)
    instance = Instance.read(proto, parse_query(text))
    session = Session(proto.SerializeToString(), text.encode())
    x = np.random.default_rng(seed).choice([-1.0, -0.5, 0.25, 1.0], size=(5, 2))
    graph = instance.compared
    outputs = graph.forward(x)
    expected = values(terms, np.concatenate([x, outputs[:, :2]], axis=1)) - 0.25
    for made, network_of in ((outputs, instance.executed), (None, session.proved(executed=False))):
        again = network_of.forward(x) if made is None else made
        np.testing.assert_allclose(again, network_of.forward(x), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(again[:, 2:], outputs[:, 2:], rtol=1e-9, atol=1e-9)
    (problem,) = instance.lowered.cases
    if not len(problem.output_rows):
        return  # it bounds an input
    read = columns_read(instance.query, instance.lowered.layout)
    for reads in (read, session.query.read):
        assert reads[(problem.output_rows != 0).any(axis=0)].all()
    for executed in (False, True):
        found = instance.searched(executed=executed).forward(x)
        np.testing.assert_allclose(found[:, read], outputs[:, read], rtol=1e-9, atol=1e-9)
    if problem.input_rows is None:
        found = outputs @ problem.output_rows[0] + problem.offset[0]
    else:
        found = outputs @ problem.output_rows[0] + x @ problem.input_rows[0] + problem.offset[0]
    factor = found / np.where(expected == 0, 1.0, expected)
    assert (np.sign(found) == np.sign(expected)).all() or abs(expected).min() < 1e-9
    assert np.allclose(factor[abs(expected) > 1e-6], factor[abs(expected) > 1e-6][:1], rtol=1e-6)


def test_a_query_that_only_inputs_decide(tmp_path: Path) -> None:
    """A contradiction of a product and the box needs nothing of the network."""
    model, spec = tmp_path / "m.onnx", tmp_path / "s.vnnlib"
    onnx.save(network(0), model)
    spec.write_text(
        HEADER.format(kind="real")
        + "(assert (>= (* X[0,0] X[0,1]) 1.25))\n(assert (or (<= Y[0,0] 0.0) (> Y[0,0] 0.0)))\n"
    )
    assert isinstance(onnxcert.verify(model, spec, timeout=30).verdict, Unsat)
    spec.write_text(HEADER.format(kind="real") + "(assert (== (* X[0,0] X[0,1]) 0.25))\n")
    result = onnxcert.verify(model, spec, timeout=30)
    assert not isinstance(result.verdict, Unsat)


def test_other_analyses_say_what_they_do_not_know(tmp_path: Path) -> None:
    proto, spec = network(0), tmp_path / "s.vnnlib"
    spec.write_text(HEADER.format(kind="real") + "(assert (<= (* X[0,0] Y[0,1]) -50.0))\n")
    report = onnxcert.compute_bounds(proto, spec)
    found = samples(proto)[:, 2:]
    assert report.outputs.shape == (2, 2)
    assert (report.outputs[:, 0] <= found.min(axis=0)).all()
    assert (found.max(axis=0) <= report.outputs[:, 1]).all()
    assert report.disjuncts[0] > 0.0
    with pytest.raises(UnsupportedSpec, match="products of variables"):
        onnxcert.Screen(onnxcert.lipschitz(proto)).decides(spec)
    with pytest.raises(UnsupportedSpec, match="products of variables has no largest box"):
        from_specification(spec)
