"""Specifications made in code."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import ArrayLike

from onnxcert.errors import UsageError
from onnxcert.spec import box, describe, l2_ball, linf_ball


def test_ball_is_exact() -> None:
    query = linf_ball([0.5, 0.25], Fraction(1, 3)).to_query([(1, 2)], [(1, 2)])
    third = 1 / 3  # this double lies below one third
    assert Fraction(third) < Fraction(1, 3)
    assert query.holds({"X": [[0.5 + 0.25, 0.25]], "Y": [[0, 0]]})
    assert query.holds({"X": [[0.5, third]], "Y": [[0, 0]]})
    assert not query.holds({"X": [[0.5, 0.25 + 0.375]], "Y": [[0, 0]]})
    assert not query.holds({"X": [[np.nextafter(5 / 6, 1), 0.25]], "Y": [[0, 0]]})


def test_ball_with_label_asks_for_another_class() -> None:
    query = linf_ball(np.zeros(2), 0.5, label=1).to_query([(2,)], [(3,)])
    assert query.holds({"X": [0, 0], "Y": [0, 1, 1]})
    assert query.holds({"X": [0, 0], "Y": [2, 1, 0]})
    assert not query.holds({"X": [0, 0], "Y": [0, 1, 0]})
    assert not query.holds({"X": [0, 0.75], "Y": [2, 1, 0]})


def test_ball_stays_in_its_domain() -> None:
    query = linf_ball([0.1, 0.95], 0.2, domain=(0, 1)).to_query([(2,)], [(1,)])
    assert query.holds({"X": [0, 1], "Y": [0]})
    assert not query.holds({"X": [-0.05, 1], "Y": [0]})
    assert not query.holds({"X": [0, 1.05], "Y": [0]})


def test_unsafe_sets_are_alternatives() -> None:
    specification = box([0, 0], [1, 1]).unsafe([[1, -1], [0, 1]], [0, Decimal("0.1")])
    query = specification.unsafe([-1, 0], -5).to_query([(2,)], [(2,)])
    assert query.holds({"X": [0, 1], "Y": [0, 0.0625]})
    assert not query.holds({"X": [0, 1], "Y": [0, 0.1]})  # the double is above the decimal
    assert not query.holds({"X": [0, 1], "Y": [1, 0]})
    assert query.holds({"X": [0, 1], "Y": [5, 9]})
    assert specification.unsafe_sets != ()
    assert box([0, 0], [1, 1]).unsafe_sets == ()


def test_several_inputs_and_outputs() -> None:
    query = box([0] * 5, [1] * 5).unsafe([0, 0, 1], 0).to_query([(2,), (1, 3)], [(2,), ()])
    assert [t.name for t in query.tensors] == ["X0", "X1", "Y0", "Y1"]
    values: dict[str, ArrayLike] = {"X0": [0, 1], "X1": [[0, 0.5, 1]], "Y0": [1, 1], "Y1": 0}
    assert query.holds(values)
    assert not query.holds({**values, "Y1": 1})
    assert not query.holds({**values, "X1": [[0, 0.5, 2]]})


def test_without_condition_every_point_of_the_box_counts() -> None:
    query = box([0], [1]).to_query([(1,)], [(1,)])
    assert query.holds({"X": [0.5], "Y": [123.0]})


def test_one_output_cannot_be_misclassified() -> None:
    query = linf_ball([0], 1, label=0).to_query([(1,)], [(1,)])
    assert not query.holds({"X": [0], "Y": [0]})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: box([0], [1, 2]), "1 lower and 2 upper bounds"),
        (lambda: box([0, 1], [1, 0]), "the box is empty: lower bound 1"),
        (lambda: box([float("nan")], [1]), "not a finite number"),
        (lambda: box(["a"], [1]), "not a number"),
        (lambda: box([True], [1]), "not a number"),
        (lambda: linf_ball([0], -1), "the radius is negative"),
        (lambda: linf_ball([5], 1, domain=(0, 1)), "nothing is left of the ball"),
        (lambda: box([0], [1]).unsafe([[1], [2]], [0]), "do not fit together"),
        (lambda: box([0], [1]).to_query([(2,)], [(1,)]), "has 1 inputs, the model has 2"),
        (lambda: linf_ball([0], 1, label=3).to_query([(1,)], [(3,)]), "label 3 is not among"),
        (
            lambda: box([0], [1]).unsafe([0, 1], 0).to_query([(1,)], [(1,)]),
            "have 2 coefficients, the model 1 outputs",
        ),
    ],
)
def test_calls_that_make_no_sense(make: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()  # type: ignore[operator]


def test_description_counts_what_is_asked() -> None:
    text = describe(linf_ball([0.5, 0.25, 0], 0.125, label=0).to_query([(1, 3)], [(1, 4)]))
    assert "3 inputs (X real [1,3]); 4 outputs (Y real [1,4])" in text
    assert "3 free, 0 fixed; largest radius 0.125" in text
    assert "3 disjuncts when written out" in text
    fixed = describe(box([0.1, 0], [0.1, 1]).to_query([(2,)], [(1,)]))
    assert "1 free, 1 fixed" in fixed


def test_rows_shorter_than_the_output_are_refused() -> None:
    """Missing coefficients are a mistake, not zeros."""
    with pytest.raises(UsageError, match="have 3 coefficients, the model 2 outputs"):
        box([0.0], [1.0]).unsafe([1.0, 0.0, 0.0], 0.0).to_query([(1,)], [(1, 2)])
    with pytest.raises(UsageError, match="rows of 2 coefficients after rows of 3"):
        box([0.0], [1.0]).unsafe([1.0, 0.0, 0.0], 0.0).unsafe([1.0, 1.0], 0.0)


def test_euclidean_balls_are_exact() -> None:
    query = l2_ball([0.5, 0.25], Fraction(5, 16), label=1).to_query([(1, 2)], [(1, 2)])
    assert query.holds({"X": [[0.5 + 0.1875, 0.5]], "Y": [[0, 0]]})  # 3, 4, 5
    assert not query.holds({"X": [[0.5 + 0.1875, np.nextafter(0.5, 1)]], "Y": [[0, 0]]})
    assert not query.holds({"X": [[0.5 + 0.1875, 0.5]], "Y": [[0, 1]]})
    inside = l2_ball([0.5, 0.25], 0.3125, domain=(0, 0.6)).to_query([(1, 2)], [(1, 2)])
    assert not inside.holds({"X": [[0.5 + 0.1875, 0.5]], "Y": [[0, 0]]})
    assert inside.holds({"X": [[0.5625, 0.5]], "Y": [[0, 0]]})
    assert "with squares of inputs" in describe(query)
    with pytest.raises(UsageError, match="radius is negative"):
        l2_ball([0.5], -1)
    with pytest.raises(UsageError, match="nothing is left of the ball in the domain"):
        l2_ball([0.5], 0.25, domain=(1, 2))
