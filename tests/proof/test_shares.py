"""A Softmax at the end: what is asked of its shares decides what has to be proved."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcert.checker import Rejected, container
from onnxcert.checker.certificate import Session
from onnxcert.checker.network import Curve
from onnxcert.frontend.vnnlib import read_query
from onnxcert.instance import Instance
from onnxcert.ops import Exp
from tests.checker.makers import dense
from tests.frontend.onnx_models import model_of
from tests.proof.networks import Files

BOX = "".join(f"(assert (and (>= X_{i} -0.1) (<= X_{i} 0.1)))" for i in range(3))


def shares(scale: float = 1.0, axis: int = 1, shape: tuple[int, ...] = (1, 4)) -> onnx.ModelProto:
    """Two layers and a Softmax of four numbers, the first of which is the largest at zero."""
    model = dense([3, 5, 4], 1)
    model.graph.node[-1].output[0] = "z"
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in model.graph.initializer}
    constants["w1"] = (scale * constants["w1"]).astype(np.float32)
    constants["b1"] = (scale * np.array([4, 0, 1, -1])).astype(np.float32)
    constants["shape"] = np.array(shape, dtype=np.int64)
    nodes = [
        *model.graph.node,
        helper.make_node("Reshape", ["z", "shape"], ["r"]),
        helper.make_node("Softmax", ["r"], ["y"], axis=axis),
    ]
    return model_of(nodes, {"x": [1, 3]}, ["y"], constants)


def question(assertion: str) -> bytes:
    names = [*(f"X_{i}" for i in range(3)), *(f"Y_{i}" for i in range(4))]
    lines = [f"(declare-const {name} Real)" for name in names]
    return "\n".join([*lines, BOX, f"(assert {assertion})"]).encode()


OTHERS = "(or (and (<= Y_0 Y_1)) (and (<= Y_0 Y_2)) (and (< Y_0 Y_3)))"


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_comparisons_are_proved_without_exponentials(tmp_path: Path, scale: float) -> None:
    """However far the shares are saturated, and however near to each other they are."""
    files = Files.write(tmp_path, shares(scale), question(OTHERS))
    result = files.verify(semantics="real", timeout=20)
    assert (result.word, result.proof is not None and result.proof.accepted) == ("unsat", True)
    assert files.check() == "VERIFIED UNSAT (real)"


def test_executions_are_proved_with_all_their_roundings(tmp_path: Path) -> None:
    """Two shares may be rounded to the same number; so nothing is left out there."""
    files = Files.write(tmp_path, shares(), question(OTHERS))
    result = files.verify(semantics="ieee32-any-order", timeout=20)
    assert result.word == "unsat"
    assert files.check() == "VERIFIED UNSAT (ieee32-any-order)"
    session = Session(files.model.read_bytes(), files.spec.read_bytes())
    assert session.proved(executed=True) is session.network


@pytest.mark.parametrize(
    ("assertion", "plain"),
    [
        (OTHERS, True),
        ("(>= (* 2.0 Y_0) (* 2.0 Y_3))", True),
        ("(and (>= Y_0 Y_3) (>= X_0 0.05))", True),
        ("(= Y_0 Y_3)", True),
        ("(>= (* 2.0 Y_0) Y_3)", False),
        ("(>= Y_0 0.5)", False),
        ("(>= Y_0 (+ Y_3 0.5))", False),
        ("(>= (+ Y_0 X_0) Y_3)", False),
        ("(>= (+ Y_0 Y_1) (+ Y_2 Y_3))", False),
        ("(>= (+ Y_0 Y_1) 1.0)", False),
        ("(or (>= Y_0 Y_3) (>= Y_0 0.5))", False),
    ],
)
def test_what_counts_as_a_comparison(tmp_path: Path, assertion: str, *, plain: bool) -> None:
    """The engine and the checker agree."""
    files = Files.write(tmp_path, shares(), question(assertion))
    instance = Instance.read(files.model, read_query(files.spec))
    ours = any(isinstance(node.op, Exp) for node in instance.compared.nodes)
    session = Session(files.model.read_bytes(), files.spec.read_bytes())
    blocks = session.proved(executed=False).blocks
    theirs = any(isinstance(block, Curve) and block.kind == "exp" for block in blocks)
    assert ours == theirs == (not plain)


@pytest.mark.parametrize(
    ("axis", "assertion", "plain"),
    [(2, "(>= Y_0 Y_1)", True), (2, "(>= Y_0 Y_2)", False),
     (1, "(>= Y_0 Y_2)", True), (1, "(>= Y_0 Y_1)", False)],
)  # fmt: skip
def test_rows_are_not_compared(tmp_path: Path, axis: int, assertion: str, *, plain: bool) -> None:
    """A larger number has a larger share of its own row only."""
    model = shares(axis=axis, shape=(1, 2, 2))
    files = Files.write(tmp_path, model, question(assertion))
    instance = Instance.read(files.model, read_query(files.spec))
    ours = any(isinstance(node.op, Exp) for node in instance.compared.nodes)
    session = Session(files.model.read_bytes(), files.spec.read_bytes())
    assert ours == (session.proved(executed=False) is session.network) == (not plain)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_shares_decide_as_what_they_are_made_from(scale: float, rng: np.random.Generator) -> None:
    session = Session(shares(scale).SerializeToString(), question(OTHERS))
    x = rng.uniform(-3, 3, (50, 3))
    y, z = session.network.forward(x), session.proved(executed=False).forward(x)
    for i in range(4):
        for j in range(4):
            assert ((y[:, i] >= y[:, j]) | (z[:, i] < z[:, j])).all()


def test_witnesses_are_exact_where_only_shares_are_not(tmp_path: Path) -> None:
    files = Files.write(tmp_path, shares(), question("(>= Y_0 Y_3)"))
    assert files.verify(semantics="real", timeout=20).word == "sat"
    assert files.check() == "VERIFIED SAT (exact-replay, ort-replay)"


@pytest.mark.parametrize("assertion", ["(<= Y_1 Y_0)", "(<= Y_1 0.5)", "(<= Y_0 (+ Y_1 1.0))"])
def test_a_proof_of_something_else_is_none(tmp_path: Path, assertion: str) -> None:
    """The tree of a true claim, under a specification that has solutions."""
    files = Files.write(tmp_path, shares(), question("(<= Y_0 Y_1)"))
    assert files.verify(semantics="real", timeout=20).word == "unsat"
    header, arrays = container.unpack(files.proof.read_bytes())
    other = Files.write(tmp_path, shares(), question(assertion))
    header["spec_sha256"] = hashlib.sha256(other.spec.read_bytes()).hexdigest()
    other.proof.write_bytes(container.pack(header, arrays))
    with pytest.raises(Rejected):
        other.check()
