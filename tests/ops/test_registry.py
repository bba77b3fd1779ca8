"""The registry itself: what every operator owes to the tests and to the analyses."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest

from onnxcert import ops
from onnxcert.ops import OPERATORS, Affine, Bivariate, Elementwise, Maximum, Operator
from onnxcert.ops.base import register
from tests import strategies

WITHOUT_EXAMPLES = {Maximum}
"""Right only behind the nodes that a graph makes with it; `tests.strategies.graphs` draws them."""


@pytest.mark.parametrize("cls", OPERATORS)
def test_is_a_documented_frozen_value_of_one_family(cls: type[Operator]) -> None:
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert not inspect.isabstract(cls)
    assert sum(issubclass(cls, family) for family in (Affine, Elementwise, Bivariate)) == 1
    assert inspect.getdoc(cls)
    assert cls.__name__ in ops.__all__


@pytest.mark.parametrize("cls", OPERATORS)
def test_has_examples(cls: type[Operator], rng: np.random.Generator) -> None:
    examples = cls.examples(rng)
    assert bool(examples) == (cls not in WITHOUT_EXAMPLES)
    assert all(type(example) is cls for example in examples)


def test_is_listed_once() -> None:
    names = [cls.__name__ for cls in OPERATORS]
    assert len(set(names)) == len(names)


def test_registering_appends(monkeypatch: pytest.MonkeyPatch) -> None:
    known: list[type[Operator]] = []
    monkeypatch.setattr(ops.base, "OPERATORS", known)
    assert register(Maximum) is Maximum
    assert known == [Maximum]


@pytest.mark.parametrize(
    "op",
    [op for _, op in strategies.operator_instances()],
    ids=[name for name, _ in strategies.operator_instances()],
)
def test_counts_its_roundings(op: Operator) -> None:
    assert op.error_terms >= 0
    if isinstance(op, Affine):
        terms = np.concatenate([matrix != 0 for matrix in op.transpose(np.eye(op.output_size))], 1)
        additions = max(0, terms.sum(axis=1).max() - 1) + (op.bias is not None)
        assert op.error_terms >= additions or terms.sum(axis=1).max() <= 1
