"""One mutation after the other of certificates that are right: what is broken has to be noticed.

The list is that of the design of certificates, by number, as far as it speaks of what this format
has. Every mutation is tried with the instance that the certificate is about, whose claim is true,
and with a sibling of it, whose claim is false; there it must never be accepted.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcert.checker import container
from onnxcert.checker.certificate import EXECUTED, REAL, Session
from onnxcert.checker.errors import Unusable
from tests.checker.makers import (
    ACCEPTED,
    PLANS,
    Arrays,
    Header,
    Instance,
    Made,
    archive,
    bound_to,
    by_hand,
    dense,
    hashes,
    made,
    members_of,
    prove,
    saved,
    spec,
    witness_by_hand,
)
from tests.frontend.onnx_models import model_of
from tests.oracles import exact_values

Change = Callable[[Header, Arrays], None]
Mutation = Callable[[Made], bytes]

ALL = list(PLANS)
INPUT_TREES = ["inputs", "boxes", "combined", "sums", "executed", "convolution"]
NEURON_TREES = ["neurons", "weights", "sigmoid", "executed_neurons", "tables", "lattice"]


@pytest.mark.parametrize("name", ALL)
def test_unchanged(name: str) -> None:
    it = made(name)
    assert it.instance.outcome(it.certificate) == ACCEPTED
    assert it.sibling.is_solved_by(it.solution)
    assert it.at_sibling(it.certificate) == "R8"
    assert it.instance.outcome(it.edited(lambda header, arrays: None)) == ACCEPTED


def rejected(it: Made, certificate: bytes, *rules: str) -> None:
    """Neither claim may be accepted; the true one is rejected by one of these rules."""
    assert it.instance.outcome(certificate) in rules
    assert it.at_sibling(certificate) != ACCEPTED


def rejected_at_sibling(it: Made, certificate: bytes) -> str:
    """What may be a proof, of the true claim only."""
    assert it.at_sibling(certificate) != ACCEPTED
    return it.instance.outcome(certificate)


def without(array: np.ndarray, *positions: int) -> np.ndarray:
    return np.delete(array, positions, axis=0)


def put(array: np.ndarray, position: int, value: Any) -> np.ndarray:
    return np.insert(array, position, value, axis=0)


# 1 to 10: the tree


@pytest.mark.parametrize("name", ALL)
def test_01_tree_is_cut_off(name: str) -> None:
    def change(header: Header, arrays: Arrays) -> None:
        arrays["op"] = arrays["op"][:-1]
        arrays["group"][-1, 2] -= 1

    rejected(made(name), made(name).edited(change), "R10")


@pytest.mark.parametrize("name", ALL)
def test_02_nodes_behind_the_tree(name: str) -> None:
    def change(header: Header, arrays: Arrays) -> None:
        arrays["op"] = np.append(arrays["op"], np.uint8(0))
        arrays["group"][-1, 2] += 1

    rejected(made(name), made(name).edited(change), "R10")


def _collapse(arrays: Arrays, parent: int, *, neurons: bool) -> None:
    """Make a leaf of a split whose halves are leaves, in a tree of one root."""
    op = arrays["op"]
    split, leaf = int((op[:parent] == 1).sum()), int((op[:parent] == 0).sum())
    depth = _depths(op)
    if neurons:
        before = int(depth[: parent + 1][op[: parent + 1] == 0].sum())
        # Of the multipliers of the two leaves those of the first are kept, but for the last one.
        here = range(before + depth[parent], before + 2 * (depth[parent] + 1))
        arrays["multiplier"] = np.delete(arrays["multiplier"], list(here))
        leaves = int((op == 0).sum())
        for name in ("slope", "weight"):
            table = arrays[name].reshape(leaves, -1)
            arrays[name] = without(table, leaf).ravel()
        arrays["layer"] = without(arrays["layer"], split)
        arrays["point"] = without(arrays["point"], split)
    arrays["arg"] = without(arrays["arg"], split)
    arrays["op"] = without(op, parent + 1, parent + 2)
    arrays["op"][parent] = 0
    arrays["group"][0, 2] -= 2


def _depths(op: np.ndarray) -> np.ndarray:
    """Splits above each node of one tree in preorder."""
    depths, waiting = [], [0]
    for code in op:
        depth = waiting.pop()
        depths.append(depth)
        if code:
            waiting += [depth + 1, depth + 1]
    return np.array(depths)


def _lowest_splits(op: np.ndarray) -> list[int]:
    return [i for i in range(len(op) - 2) if op[i : i + 3].tolist() == [1, 0, 0]]


@pytest.mark.parametrize("name", ["inputs", "neurons", "weights", "sigmoid", "executed"])
def test_03_subtree_becomes_a_leaf(name: str) -> None:
    it = made(name)
    neurons = name in NEURON_TREES
    outcomes = []
    for parent in _lowest_splits(it.parts[1]["op"]):

        def change(header: Header, arrays: Arrays, parent: int = parent) -> None:
            _collapse(arrays, parent, neurons=neurons)

        outcomes.append(rejected_at_sibling(it, it.edited(change)))
    # Where the search cut once too often, what is left is a proof still.
    assert "R8" in outcomes
    assert set(outcomes) <= {"R8", ACCEPTED}


@pytest.mark.parametrize("name", ["inputs", "neurons", "weights", "sigmoid", "executed"])
def test_04_whole_tree_becomes_a_leaf(name: str) -> None:
    def change(header: Header, arrays: Arrays) -> None:
        while len(arrays["op"]) > 1:
            _collapse(arrays, _lowest_splits(arrays["op"])[0], neurons=name in NEURON_TREES)

    rejected(made(name), made(name).edited(change), "R8")


@pytest.mark.parametrize("name", ["inputs", "boxes", "neurons", "sigmoid", "executed"])
@pytest.mark.parametrize("index", [6, 99, 2**31 - 1, 2**32 - 1])
def test_05_split_index_out_of_range(name: str, index: int) -> None:
    def change(header: Header, arrays: Arrays) -> None:
        arrays["arg"][len(arrays["arg"]) // 2] = index

    rejected(made(name), made(name).edited(change), "R10")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("code", [2, 255])
def test_06_unknown_node_code(name: str, code: int) -> None:
    def change(header: Header, arrays: Arrays) -> None:
        arrays["op"][-1] = code

    # A root that is handed on needs a split, which certificates of single leaves do not have.
    rules = ["R10", "container"] if len(made(name).parts[1]["op"]) == 1 else ["R10"]
    rejected(made(name), made(name).edited(change), *rules)


@pytest.mark.parametrize("name", ["inputs", "boxes", "executed"])
def test_07_all_splits_on_one_input(name: str) -> None:
    it = made(name)
    outcomes = []
    for index in range(2):

        def change(header: Header, arrays: Arrays, index: int = index) -> None:
            arrays["arg"][:] = index

        outcomes.append(rejected_at_sibling(it, it.edited(change)))
    if name != "boxes":  # where one input is as good as the other
        assert "R8" in outcomes


@pytest.mark.parametrize("name", ["inputs", "neurons", "weights", "sigmoid", "executed"])
def test_08_one_child_is_missing(name: str) -> None:
    it = made(name)
    for node in np.flatnonzero(it.parts[1]["op"] == 0):

        def change(header: Header, arrays: Arrays, node: int = node) -> None:
            arrays["op"] = without(arrays["op"], node)
            arrays["group"][0, 2] -= 1

        rejected(it, it.edited(change), "R10")


@pytest.mark.parametrize("name", ["neurons", "weights", "executed_neurons"])
def test_09_one_neuron_split_all_the_time(name: str) -> None:
    """It may be, but it proves nothing new."""

    def change(header: Header, arrays: Arrays) -> None:
        for key in ("arg", "layer", "point"):
            arrays[key][:] = arrays[key][0]

    it = made(name)
    rejected(it, it.edited(change), "R8")


@pytest.mark.parametrize("label", ["y", "z0", "", "h9", "h0/1", "x", 1, None, ["h0"]])
def test_10_split_of_what_is_no_neuron(label: object) -> None:
    def change(header: Header, arrays: Arrays) -> None:
        header["layers"][0] = label

    rejected(made("neurons"), made("neurons").edited(change), "R10")


def test_10_split_of_a_layer_that_does_not_exist() -> None:
    def change(header: Header, arrays: Arrays) -> None:
        arrays["layer"][-1] = 7

    rejected(made("neurons"), made("neurons").edited(change), "R10")


def test_10_point_that_is_no_number() -> None:
    for value in (np.nan, np.inf, -np.inf):

        def change(header: Header, arrays: Arrays, value: float = value) -> None:
            arrays["point"][0] = value

        rejected(made("neurons"), made("neurons").edited(change), "R10")


# 11 to 18: leaves


@pytest.mark.parametrize(
    ("column", "value", "rules"),
    [(0, 4, ["R8"]), (0, 2**32 - 1, ["R8"]), (1, 1, ["R8"]), (1, 2**32 - 1, ["R8"])],
)
def test_11_combination_at_a_wrong_place(column: int, value: int, rules: list[str]) -> None:
    def change(header: Header, arrays: Arrays) -> None:
        arrays["combine"][-1, column] = value

    it = made("combined")
    certificate = it.edited(change)
    assert it.at_sibling(certificate) != ACCEPTED
    outcome = it.instance.outcome(certificate)
    assert outcome in rules


def test_11_combinations_out_of_order_or_twice() -> None:
    for order in ([1, 0], [0, 0]):

        def change(header: Header, arrays: Arrays, order: list[int] = order) -> None:
            arrays["combine"] = arrays["combine"][order]

        rejected(made("combined"), made("combined").edited(change), "R8")


@pytest.mark.parametrize("name", ["sums", "weights"])
def test_12_weights_of_the_other_row(name: str) -> None:
    def change(header: Header, arrays: Arrays) -> None:
        arrays["weight"] = arrays["weight"].reshape(-1, 2)[:, ::-1].ravel()

    rejected(made(name), made(name).edited(change), "R8")


@pytest.mark.parametrize("name", ["sums", "weights", "neurons", "groups", "sigmoid"])
def test_12_no_weights(name: str) -> None:
    def change(header: Header, arrays: Arrays) -> None:
        arrays["weight"][:] = 0

    rejected(made(name), made(name).edited(change), "R8")


def test_12_no_sums() -> None:
    """A leaf without weights is tried with one row at a time."""

    def change(header: Header, arrays: Arrays) -> None:
        arrays["combine"], arrays["weight"] = arrays["combine"][:0], arrays["weight"][:0]
        arrays["group"][0, 3] = 0

    rejected(made("sums"), made("sums").edited(change), "R8")


def test_13_no_multipliers() -> None:
    """Splits without them are worth something only where they make lines exact."""

    def change(header: Header, arrays: Arrays) -> None:
        arrays["multiplier"][:] = 0

    outcomes = {
        name: rejected_at_sibling(made(name), made(name).edited(change))
        for name in ALL
        if len(made(name).parts[1]["multiplier"])
    }
    assert set(outcomes.values()) <= {"R8", ACCEPTED}
    assert "R8" in outcomes.values(), outcomes


@pytest.mark.parametrize("array", ["multiplier", "weight"])
@pytest.mark.parametrize(
    ("number", "bits"),
    [
        ("14 negative", 0xBF80),
        ("14 tiny and negative", 0x8001),
        ("14 minus infinity", 0xFF80),
        ("15 NaN", 0x7FC0),
        ("15 negative NaN", 0xFFFF),
        ("15 signalling NaN", 0x7F81),
        ("16 infinite", 0x7F80),
    ],
)
def test_14_to_16_multipliers_that_are_none(array: str, number: str, bits: int) -> None:
    del number
    for name in ("neurons", "weights", "sigmoid"):
        it = made(name)
        for position in range(0, len(it.parts[1][array]), 3):

            def change(header: Header, arrays: Arrays, position: int = position) -> None:
                arrays[array][position] = bits

            rejected(it, it.edited(change), "R8")


def test_16_multipliers_so_large_that_nothing_is_left() -> None:
    def change(header: Header, arrays: Arrays) -> None:
        arrays["multiplier"][:] = 0x7F7F

    for name in NEURON_TREES:
        rejected(made(name), made(name).edited(change), "R8")


@pytest.mark.parametrize("array", list(container.ARRAYS))
@pytest.mark.parametrize("name", ["combined", "neurons", "sigmoid", "groups"])
def test_17_array_too_short_or_too_long(name: str, array: str) -> None:
    """Also a mutation 18 for slopes, and 22 for cases."""
    it = made(name)
    if len(it.parts[1][array]):

        def shorter(header: Header, arrays: Arrays) -> None:
            arrays[array] = arrays[array][:-1]

        rejected(it, it.edited(shorter), "container", "R0", "R10")

    def longer(header: Header, arrays: Arrays) -> None:
        zero = np.zeros((1, *arrays[array].shape[1:]), arrays[array].dtype)
        arrays[array] = np.concatenate([arrays[array], zero])

    rejected(it, it.edited(longer), "container", "R0", "R10")


@pytest.mark.parametrize("name", ["neurons", "weights", "executed_neurons"])
@pytest.mark.parametrize("value", [0, 255, 128])
def test_18_other_slopes(name: str, value: int) -> None:
    """Any slope makes a valid line; whether the bound is good enough is another matter."""
    it = made(name)
    for arrays_changed in (("slope",), ("hint_slope",), ("slope", "hint_slope")):

        def change(header: Header, arrays: Arrays, keys: tuple[str, ...] = arrays_changed) -> None:
            for key in keys:
                arrays[key][:] = value

        assert rejected_at_sibling(it, it.edited(change)) in (ACCEPTED, "R8")


def test_18_worst_slopes_prove_nothing() -> None:
    def change(header: Header, arrays: Arrays) -> None:
        arrays["slope"] = 255 - arrays["slope"]
        arrays["hint_slope"] = 255 - arrays["hint_slope"]

    rejected(made("neurons"), made("neurons").edited(change), "R8")


def test_18_columns_in_another_order() -> None:
    def change(header: Header, arrays: Arrays) -> None:
        arrays["column"] = arrays["column"][::-1]

    rejected(made("neurons"), made("neurons").edited(change), "container")


@pytest.mark.parametrize(
    ("field", "value", "rules"),
    [(0, 9, ["R10"]), (0, 0, ["R4"]), (1, 2, ["R4"]), (1, -1, ["R4"]), (2, -1, ["container"])],
)
def test_18_hints_about_nothing(field: int, value: int, rules: list[str]) -> None:
    """A layer that does not exist, one that only reads the input, sides, a negative count."""

    def change(header: Header, arrays: Arrays) -> None:
        arrays["hint"][0, field] = value

    it = made("neurons")
    first = it.parts[0]["layers"][0]
    if (field, value) == (0, 0) and first != "h0":
        pytest.skip(f"the first layer is {first}")
    rejected(it, it.edited(change), *rules, "container")


def test_18_the_side_of_a_hint_is_swapped() -> None:
    """A lower bound that is worked out for an upper one is a bound of that side, and no other."""

    def change(header: Header, arrays: Arrays) -> None:
        arrays["hint"][:, 1] = 1 - arrays["hint"][:, 1]

    for name in ("neurons", "weights", "executed_neurons", "groups"):
        outcome = rejected_at_sibling(made(name), made(name).edited(change))
        assert outcome in ("R8", "container", ACCEPTED)


# 19 to 25: what the certificate is about


@pytest.mark.parametrize("name", ALL)
def test_19_model_one_unit_different(name: str) -> None:
    it = made(name)
    proto = onnx.ModelProto.FromString(it.instance.model)
    weight = proto.graph.initializer[0]
    array = onnx.numpy_helper.to_array(weight).copy()
    array.ravel()[0] = np.nextafter(array.ravel()[0], np.float32(np.inf))
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    other = Instance(proto.SerializeToString(), it.instance.spec)
    assert other.outcome(it.certificate) == "R0"


@pytest.mark.parametrize("name", ALL)
def test_20_spec_different_in_the_eighth_digit(name: str) -> None:
    it = made(name)
    text = it.instance.spec.decode()
    other = Instance(it.instance.model, text.replace("0.0)", "0.00000001)", 1).encode())
    assert other.spec != it.instance.spec
    assert other.outcome(it.certificate) == "R0"


@pytest.mark.parametrize("key", ["model_sha256", "spec_sha256"])
def test_20_hash_in_other_words(key: str) -> None:
    it = made("inputs")
    digest = it.parts[0][key]
    for value in (digest.upper(), digest[:-1], digest + "0", "", None, 3, [digest], "0" * 64):

        def change(header: Header, arrays: Arrays, value: object = value) -> None:
            header[key] = value

        rejected(it, it.edited(change), "R0", "container")


@pytest.mark.parametrize("name", ALL)
def test_21_proof_of_another_property_or_model(name: str) -> None:
    """Every certificate of the zoo, with the hashes of every other sibling."""
    it = made(name)
    for other in ALL:
        assert made(other).at_sibling(it.certificate) != ACCEPTED


@pytest.mark.parametrize("name", ["boxes", "groups"])
def test_22_case_missing_twice_or_out_of_order(name: str) -> None:
    it = made(name)
    group, case = it.parts[1]["group"], it.parts[1]["case"]
    assert len(case) == 4
    for changed in (
        [0, 1, 2],
        [0, 1, 2, 3, 3],
        [0, 1, 2, 3, 4],
        [0, 0, 1, 2],
        [1, 0, 2, 3],
        [0, 1, 2, 4],
        [0, 1, 2, 2**32 - 1],
        [],
    ):

        def change(header: Header, arrays: Arrays, changed: list[int] = changed) -> None:
            arrays["case"] = np.array(changed, np.uint32)
            arrays["group"][-1, 1] += len(changed) - len(case)

        # Where the four belong to several groups, another order may be one of other groups.
        rules = ("R0", "container") if len(group) == 1 else ("R0", "R1", "R8", "container")
        rejected(it, it.edited(change), *rules)


def test_22_cases_of_two_groups_exchanged() -> None:
    it = made("groups")
    counts = it.parts[1]["group"][:, 1]
    assert len(counts) > 1

    def change(header: Header, arrays: Arrays) -> None:
        arrays["case"] = np.roll(arrays["case"], 1)

    rejected(it, it.edited(change), "R0", "R1", "R8", "container")


def test_22_group_missing_or_twice() -> None:
    it = made("groups")
    for rows in ([0, 1], [1, 2], [0, 1, 2, 2], [0, 2, 1], []):

        def change(header: Header, arrays: Arrays, rows: list[int] = rows) -> None:
            arrays["group"] = arrays["group"][rows]

        rejected(it, it.edited(change), "R0", "R1", "R8", "R10", "container")


def test_22_another_disjunct_is_asked_for() -> None:
    """A fifth case that has a solution, and a proof of the four others."""
    it = made("boxes")
    text = it.instance.spec.decode()
    first = text[text.index("(and") : text.index(") (and") + 1]
    solved = first.replace("Y_0) 0.0) 0.140625", "Y_0) 0.0) 1000.0")
    assert solved != first
    more = Instance(it.instance.model, text.replace(first, f"{first} {solved}", 1).encode())
    assert more.is_solved_by([0.5, -0.5])
    certificate = replace(it, sibling=more).at_sibling(it.certificate)
    assert certificate == "R0"


def test_22_unknown_kind_of_group() -> None:
    for kind in (3, -1, 2**40):

        def change(header: Header, arrays: Arrays, kind: int = kind) -> None:
            arrays["group"][0, 0] = kind

        rejected(made("inputs"), made("inputs").edited(change), "container")


def test_22_half_of_a_region_that_does_not_exist() -> None:
    """It has no cases of its own, and no split is there that made it."""

    def own(header: Header, arrays: Arrays) -> None:
        arrays["group"][0, 0] = 2

    def none(header: Header, arrays: Arrays) -> None:
        arrays["group"][0, :2] = 2, 0
        arrays["case"] = arrays["case"][:0]

    rejected(made("inputs"), made("inputs").edited(own), "R0")
    rejected(made("inputs"), made("inputs").edited(none), "R10", "R0")


@pytest.mark.parametrize("column", range(1, 6))
@pytest.mark.parametrize("value", [-1, 2**62, -(2**63)])
@pytest.mark.parametrize("name", ["boxes", "neurons"])
def test_22_counts_that_cannot_be(name: str, column: int, value: int) -> None:
    def change(header: Header, arrays: Arrays) -> None:
        arrays["group"][0, column] = value

    rejected(made(name), made(name).edited(change), "container", "R0", "R10")


def _thin() -> Instance:
    """y = 2^20 x - 2^20 x + x + 1e-3 in three layers, asked for y <= 0 on [0, 1]."""
    constants = {
        "w": np.array([[1, 1, 1]], np.float32),
        "v": np.array([[2.0**20], [-(2.0**20)], [1]], np.float32),
        "b": np.array([1e-3], np.float32),
    }
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["z"]),
        onnx.helper.make_node("Relu", ["z"], ["h"]),
        onnx.helper.make_node("Gemm", ["h", "v", "b"], ["y"]),
    ]
    model = model_of(nodes, {"x": [1, 1]}, ["y"], constants)
    return Instance(model.SerializeToString(), spec(([0.0], [1.0], [([1], 0.0)])))


def test_23_real_relabelled_as_every_execution() -> None:
    instance = _thin()
    it = Made(instance, by_hand(instance), instance, ())
    assert instance.outcome(it.certificate) == ACCEPTED
    assert instance.outcome(it.certificate, semantics=REAL) == ACCEPTED
    assert instance.outcome(it.certificate, semantics=EXECUTED) == "R0"

    def change(header: Header, arrays: Arrays) -> None:
        header["semantics"] = EXECUTED

    # In binary32 the two large terms may meet before or after the third one.
    x = np.float32(0.3)
    large = np.float32(2.0**20) * x
    executed = np.float32(np.float32(large + x) - large) + np.float32(1e-3)
    assert executed != np.float32(x + np.float32(1e-3))
    assert instance.outcome(it.edited(change)) == "R8"


@pytest.mark.parametrize("semantics", ["", "REAL", "ieee32", "real ", None, 1, ["real"], {}])
def test_23_unknown_semantics(semantics: object) -> None:
    def change(header: Header, arrays: Arrays) -> None:
        header["semantics"] = semantics

    rejected(made("inputs"), made("inputs").edited(change), "R0", "container")


def test_23_every_execution_implies_the_reals() -> None:
    it = made("executed")
    assert it.parts[0]["semantics"] == EXECUTED
    assert it.instance.outcome(it.certificate, semantics=REAL) == ACCEPTED

    def change(header: Header, arrays: Arrays) -> None:
        header["semantics"] = REAL

    assert rejected_at_sibling(it, it.edited(change)) == ACCEPTED


@pytest.mark.parametrize("name", ["inputs", "neurons"])
def test_24_unsat_relabelled_sat(name: str) -> None:
    def change(header: Header, arrays: Arrays) -> None:
        header["verdict"] = "sat"

    def thoroughly(header: Header, arrays: Arrays) -> None:
        change(header, arrays)
        header["decimals"] = {}
        del header["layers"]

    def with_input(header: Header, arrays: Arrays) -> None:
        thoroughly(header, arrays)
        arrays["x0"] = np.zeros((1, 2), np.float32)

    for function, rule in ((change, "container"), (thoroughly, "R13"), (with_input, "R13")):
        rejected(made(name), made(name).edited(function), rule)


def test_24_sat_relabelled_unsat() -> None:
    it = made("inputs")
    witness = prove(it.sibling)

    def change(header: Header, arrays: Arrays) -> None:
        header["verdict"] = "unsat"
        header["layers"] = []
        del header["decimals"]

    certificate = replace(it, certificate=witness).edited(change)
    assert it.sibling.outcome(certificate) == "container"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "onnxcert-2"),
        ("format", "onnxcert"),
        ("format", None),
        ("format", ["onnxcert-1"]),
        ("verdict", "unknown"),
        ("verdict", ""),
        ("verdict", ["unsat"]),
        ("verdict", None),
        ("rules", ["R14"]),
        ("decimals", {}),
        ("layers", None),
        ("layers", {}),
        ("layers", "h0"),
    ],
)
def test_25_unknown_format(key: str, value: object) -> None:
    def change(header: Header, arrays: Arrays) -> None:
        header[key] = value

    rejected(made("neurons"), made("neurons").edited(change), "container", "R10")


@pytest.mark.parametrize("key", ["format", "verdict", "semantics", "spec_sha256", "tool", "layers"])
def test_25_missing_key(key: str) -> None:
    def change(header: Header, arrays: Arrays) -> None:
        del header[key]

    certificate = made("inputs").edited(change)
    assert made("inputs").instance.outcome(certificate) == "container"


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"3", b"[" * 100_000])
def test_25_header_is_no_table(text: bytes) -> None:
    it = made("inputs")
    members = dict(members_of(it.certificate)) | {"header.json": text}
    assert it.instance.outcome(archive(list(members.items()))) == "container"


# 26 to 31: the container


@pytest.mark.parametrize("extra", ["lower", "bounds", "x0", "op2", "header", "group.npy"])
def test_26_array_with_claimed_bounds(extra: str) -> None:
    it = made("inputs")
    data = saved(np.zeros(4))
    certificate = archive([*members_of(it.certificate), (f"{extra}.npy", data)])
    rejected(it, certificate, "container")


def test_26_member_without_suffix() -> None:
    it = made("inputs")
    data = dict(members_of(it.certificate))
    for name in ("group", "notes.txt", "", "a/op.npy"):
        certificate = archive([*data.items(), (name, data["group.npy"])])
        rejected(it, certificate, "container")
    renamed = [(name.removesuffix(".npy"), part) for name, part in data.items()]
    rejected(it, archive(renamed), "container")


class _Trap:
    """Unpickling it would be noticed."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("an object was unpickled",)


@pytest.mark.parametrize("member", ["op.npy", "group.npy", "point.npy"])
def test_27_pickled_objects(member: str) -> None:
    it = made("inputs")
    array = np.empty(1, object)
    array[0] = _Trap()
    members = dict(members_of(it.certificate)) | {member: saved(array)}
    rejected(it, archive(list(members.items())), "container")
    members[member] = saved(array)[:20] + b"garos"
    rejected(it, archive(list(members.items())), "container")


@pytest.mark.parametrize("name", ["inputs", "neurons"])
def test_28_file_is_cut_off(name: str) -> None:
    it = made(name)
    for length in [*range(0, len(it.certificate), 41), len(it.certificate) - 1]:
        assert it.instance.outcome(it.certificate[:length]) == "container"


def test_28_array_is_cut_off() -> None:
    it = made("inputs")
    members = dict(members_of(it.certificate))
    for name in members:
        for cut in (1, 8, 100):
            damaged = members | {name: members[name][:-cut]}
            rejected(it, archive(list(damaged.items())), "container")


@pytest.mark.parametrize("array", list(container.ARRAYS))
def test_29_wrong_element_type_or_shape(array: str) -> None:
    it = made("neurons")
    original = it.parts[1][array]
    swapped = original.astype(original.dtype.newbyteorder(">"))
    wrong = [
        original.astype(np.float16),
        original.astype(np.complex128),
        original.astype("S8"),
        original[..., None],
        original.reshape(-1)[:0].reshape(0, 3, 3),
        np.zeros(original.shape, [("a", original.dtype)]),
        np.asarray(original.sum(), original.dtype),
    ]
    wrong += [swapped] if original.dtype.itemsize > 1 else []
    wrong += [np.asfortranarray(original)] if original.ndim == 2 and len(original) > 1 else []
    for changed in wrong:
        members = dict(members_of(it.certificate)) | {f"{array}.npy": saved(changed)}
        rejected(it, archive(list(members.items())), "container")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999,), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '|V0', 'fortran_order': False, 'shape': (4611686018427387904,), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': 3, }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (True,), }",
        "{'descr': '|u1', 'fortran_order': False}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "__import__('os')",
        "(" * 3000,
    ],
)
def test_29_array_header_that_lies(header: str) -> None:
    it = made("inputs")
    text = header.encode().ljust(118) + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    members = dict(members_of(it.certificate)) | {"op.npy": data + b"\x00"}
    rejected(it, archive(list(members.items())), "container")


@pytest.mark.parametrize("member", ["op.npy", "header.json", "weight.npy"])
def test_30_member_is_there_twice(member: str) -> None:
    it = made("combined")
    members = members_of(it.certificate)
    with pytest.warns(UserWarning, match="Duplicate name"):
        certificate = archive([*members, (member, dict(members)[member])])
    rejected(it, certificate, "container")


@pytest.mark.parametrize("key", ["semantics", "verdict", "model_sha256", "layers"])
def test_30_key_is_there_twice(key: str) -> None:
    it = made("inputs")
    members = dict(members_of(it.certificate))
    value = json.dumps(it.parts[0][key])
    members["header.json"] = members["header.json"][:-1] + f', "{key}": {value}}}'.encode()
    certificate = archive(list(members.items()))
    assert it.instance.outcome(certificate) == "container"


def test_30_key_of_decimals_is_there_twice() -> None:
    it, witness = _tenth()
    members = dict(members_of(witness))
    text = members["header.json"].replace(b'{"0": "1/10"}', b'{"0": "1/10", "0": "1/10"}')
    assert text != members["header.json"]
    members["header.json"] = text
    assert it.outcome(archive(list(members.items()))) == "container"


@pytest.mark.parametrize("member", ["op.npy", "header.json", "group.npy"])
def test_31_decompression_bomb(member: str) -> None:
    it = made("inputs")
    size = container.LARGEST + 1
    members = dict(members_of(it.certificate)) | {member: b" " * size}
    certificate = archive(list(members.items()))
    assert len(certificate) < size / 500
    assert it.instance.outcome(certificate) == "container"


def test_31_sizes_that_the_directory_denies() -> None:
    """The size that an archive states of a member is not to be believed."""
    it = made("inputs")
    members = dict(members_of(it.certificate)) | {"op.npy": b" " * (container.LARGEST + 1)}
    data = bytearray(archive(list(members.items())))
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as file:
        true_size = file.getinfo("op.npy").file_size.to_bytes(4, "little")
    assert data.count(true_size) == 2
    for lie in (10, 2**32 - 1):
        changed = bytes(data).replace(true_size, lie.to_bytes(4, "little"))
        assert it.instance.outcome(changed) == "container"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_31_other_compressions(method: int) -> None:
    """They hold the same arrays."""
    it = made("inputs")
    certificate = archive(members_of(it.certificate), method)
    assert rejected_at_sibling(it, certificate) in (ACCEPTED, "container")


# 32: the model


def _double(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(proto.graph.initializer[0])


def _external(proto: onnx.ModelProto) -> None:
    tensor = proto.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.append(onnx.StringStringEntryProto(key="location", value="/etc/passwd"))
    tensor.ClearField("raw_data")


def _attribute(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].attribute.append(onnx.helper.make_attribute("beyond", 1.0))


def _twice_assigned(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(proto.graph.node[-1])


def _unknown_operator(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].op_type = "Gemm2"


def _foreign_domain(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].domain = "com.example"


def _same_attribute_twice(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].attribute.extend([onnx.helper.make_attribute("alpha", 1.0)] * 2)


@pytest.mark.parametrize(
    "change",
    [
        _double,
        _external,
        _attribute,
        _twice_assigned,
        _unknown_operator,
        _foreign_domain,
        _same_attribute_twice,
    ],
)
def test_32_model_that_is_not_understood(change: Callable[[onnx.ModelProto], None]) -> None:
    it = made("inputs")
    proto = onnx.ModelProto.FromString(it.instance.model)
    change(proto)
    with pytest.raises(Unusable):
        Session(proto.SerializeToString(), it.instance.spec)


def test_32_model_is_no_model() -> None:
    it = made("inputs")
    for data in (b"", b"\x00" * 100, it.instance.model[:-7], b"\x1f\x8b" + b"\x00" * 30):
        with pytest.raises(Unusable):
            Session(data, it.instance.spec)


@pytest.mark.parametrize(
    "declared",
    [
        "(declare-input X float64 [1,2]) (declare-output Y float64 [1,1])",
        "(declare-input X real [1,3]) (declare-output Y real [1,1])",
        "(declare-input X real [1,1]) (declare-input Z real [1,1]) (declare-output Y real [1,1])",
        "(declare-input X real [1,2]) (declare-output Y real [1,1]) (declare-output W real [1,1])",
    ],
)
def test_32_spec_of_other_tensors(declared: str) -> None:
    text = f"(vnnlib-version <2.0>) (declare-network N {declared})"
    first = "X[0,0]"
    text += f" (assert (and (>= {first} 0.0) (<= {first} 1.0)))"
    with pytest.raises(Unusable):
        Session(made("inputs").instance.model, text.encode())


# 33 to 37: witnesses


def _witness(bound: float, high: float = 1.0) -> Instance:
    """y = relu(x): is y <= bound for some x in [0.1, high]?"""
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    model = model_of([node], {"x": [1, 1]}, ["y"])
    text = (
        "(declare-const X_0 Real) (declare-const Y_0 Real) "
        f"(assert (and (>= X_0 0.1) (<= X_0 {high}) (<= Y_0 {bound})))"
    )
    return Instance(model.SerializeToString(), text.encode())


def _single(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


def _tenth() -> tuple[Instance, bytes]:
    """An input that is 0.1 exactly, and its witness."""
    instance = _witness(bound=1.0, high=0.1)
    return instance, witness_by_hand(instance, _single(0.1), {"0": "1/10"})


def test_33_to_37_a_witness() -> None:
    instance = _witness(bound=0.5)
    assert instance.session.check(witness_by_hand(instance, _single(0.25))).claims == (
        "exact-replay",
        "ort-replay",
    )
    assert instance.outcome(witness_by_hand(instance, _single(0.5))) == ACCEPTED
    other, certificate = _tenth()
    assert other.outcome(certificate) == ACCEPTED


@pytest.mark.parametrize("name", ["inputs", "boxes", "weights", "convolution"])
def test_33_to_37_witnesses_of_the_siblings(name: str) -> None:
    it = made(name)
    witness = prove(it.sibling)
    assert it.sibling.outcome(witness) == ACCEPTED
    header, arrays = container.unpack(witness)
    assert it.sibling.is_solved_by(arrays["x0"].ravel().tolist())
    header |= hashes(it.instance)
    assert it.instance.outcome(container.pack(header, arrays)) == "R13"


def test_33_one_unit_outside_the_box() -> None:
    instance = _witness(bound=2.0)
    inside = np.float32(0.1)  # 0.1 + 1.5e-9
    assert Fraction(float(inside)) > Fraction(1, 10)
    assert instance.outcome(witness_by_hand(instance, _single(inside))) == ACCEPTED
    below = np.nextafter(inside, np.float32(0))
    assert instance.outcome(witness_by_hand(instance, _single(below))) == "R13"
    assert instance.outcome(witness_by_hand(instance, _single(1.0))) == ACCEPTED
    above = np.nextafter(np.float32(1), np.float32(2))
    assert instance.outcome(witness_by_hand(instance, _single(above))) == "R13"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_34_no_number(value: float) -> None:
    instance = _witness(bound=2.0)
    assert instance.outcome(witness_by_hand(instance, _single(value))) == "R13"


@pytest.mark.parametrize(
    "x",
    [
        np.array([0.25], np.float32),
        np.array(0.25, np.float32),
        np.array([[0.25, 0.25]], np.float32),
        np.zeros((1, 0), np.float32),
        np.array([[0.25]], np.float64),
        np.array([[0.25]], np.float16),
        np.array([[0.25]], ">f4"),
        np.array([[1]], np.int32),
        np.array([["0.25"]]),
    ],
)
def test_35_wrong_length_or_type(x: np.ndarray) -> None:
    instance = _witness(bound=2.0)
    assert instance.outcome(witness_by_hand(instance, x)) in ("R13", "container")


def test_35_members_missing_or_left_over() -> None:
    instance = _witness(bound=2.0)
    good = witness_by_hand(instance, _single(0.25))
    members = members_of(good)
    data = dict(members)["x0.npy"]
    assert instance.outcome(archive(members)) == ACCEPTED
    for changed in (
        members[:1],
        [*members, ("x1.npy", data)],
        [*members, ("x00.npy", data)],
        [members[0], ("x1.npy", data)],
        [members[0], ("X.npy", data)],
    ):
        assert instance.outcome(archive(changed)) in ("R13", "container")


@pytest.mark.parametrize("shift", [1.0, 1e-3, 1e-6, 2.0**-24])
def test_36_and_37_property_holds_by_little(shift: float) -> None:
    """36 for much, 37 for 1e-6 and less: there is no tolerance."""
    x = _single(0.5)
    instance = _witness(bound=float(0.5 - shift / 2))
    assert instance.outcome(witness_by_hand(instance, x)) == "R13"
    instance = _witness(bound=0.5)
    assert instance.outcome(witness_by_hand(instance, x)) == ACCEPTED


@pytest.mark.parametrize(
    "decimals",
    [
        {"0": "0.1"},
        {"0": "1/10 "},
        {"0": "2/10/1"},
        {"0": "1/0"},
        {"0": "1/00010"},
        {"0": "1e-1"},
        {"0": "nan"},
        {"0": "1" * 5000},
        {"0": 0.1},
        {"0": None},
        {"0": "2/10"},
        {"0": "101/1000"},
        {"0": "1000000000000001/10000000000000000"},
        {"00": "1/10"},
        {"1": "1/10"},
        {"-1": "1/10"},
        {"9999999999": "1/10"},
        {"": "1/10"},
        {},
        [],
        ["1/10"],
        None,
        "1/10",
    ],
)
def test_36_decimals_that_do_not_help(decimals: object) -> None:
    instance, _ = _tenth()
    certificate = witness_by_hand(instance, _single(0.1), decimals)
    assert instance.outcome(certificate) in ("R13", "container")


def test_36_decimals_where_a_number_would_do() -> None:
    instance = _witness(bound=2.0)
    x = _single(0.1)
    assert instance.outcome(witness_by_hand(instance, x)) == ACCEPTED
    assert instance.outcome(witness_by_hand(instance, x, {"0": "1/10"})) == "R13"


def test_36_witness_under_every_execution() -> None:
    instance, certificate = _tenth()
    assert instance.outcome(certificate, semantics=REAL) == ACCEPTED
    assert instance.outcome(certificate, semantics=EXECUTED) == "R13"
    changed = witness_by_hand(instance, _single(0.1), {"0": "1/10"}, semantics=EXECUTED)
    assert instance.outcome(changed) == "R13"


def test_37_only_onnxruntime_or_only_the_reals() -> None:
    """Weights of 1/3 in three layers: both replays are needed to say which claim holds."""
    instance = _rounding_decides()
    claims = instance.session.check(witness_by_hand(instance, _single(1.0))).claims
    assert claims == ("ort-replay",)
    (y,) = exact_values(instance.graph, [1.0])[instance.graph.output]
    assert y > 1


def _rounding_decides() -> Instance:
    """y = x + 2^-25 is 1 for x = 1 in binary32, and more than 1 in the reals."""
    node = onnx.helper.make_node("Add", ["x", "c"], ["y"])
    constants = {"c": np.array([[2.0**-25]], np.float32)}
    model = model_of([node], {"x": [1, 1]}, ["y"], constants)
    return Instance(model.SerializeToString(), spec(([1.0], [1.0], [([1], 1.0)])))


# What must stay accepted


@pytest.mark.parametrize("name", ["neurons", "weights", "executed_neurons"])
def test_slopes_may_be_a_little_different(name: str, rng: np.random.Generator) -> None:
    it = made(name)

    def change(header: Header, arrays: Arrays) -> None:
        for key in ("slope", "hint_slope"):
            noise = rng.integers(-1, 2, size=len(arrays[key]))
            arrays[key] = np.clip(arrays[key].astype(int) + noise, 0, 255).astype(np.uint8)

    outcomes = [rejected_at_sibling(it, it.edited(change)) for _ in range(10)]
    assert ACCEPTED in outcomes


@pytest.mark.parametrize("name", ALL)
def test_more_splits_than_needed(name: str) -> None:
    """A leaf of an input tree that is cut once more."""
    it = made(name)
    if name not in INPUT_TREES or len(it.parts[1]["combine"]):
        return

    def change(header: Header, arrays: Arrays) -> None:
        arrays["op"] = np.concatenate([arrays["op"][:-1], [1, 0, 0]]).astype(np.uint8)
        arrays["arg"] = np.append(arrays["arg"], np.uint32(1))
        arrays["group"][0, 2] += 2

    assert rejected_at_sibling(it, it.edited(change)) == ACCEPTED


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("count", [1, 1000])
def test_audit_agrees(name: str, count: int) -> None:
    it = made(name)
    assert it.instance.outcome(it.certificate, audit=count) == ACCEPTED
    assert it.sibling.outcome(it.certificate, audit=count) == "R0"


def test_tool_is_ignored() -> None:
    def change(header: Header, arrays: Arrays) -> None:
        header["tool"] = {"name": "another", "list": [1, 2.5, None]}

    assert made("inputs").instance.outcome(made("inputs").edited(change)) == ACCEPTED


def test_equal_contents_give_equal_bytes() -> None:
    it = made("inputs")
    assert it.edited(lambda header, arrays: None) == it.certificate
    assert dense([2, 3, 1], 0).SerializeToString() == dense([2, 3, 1], 0).SerializeToString()


@pytest.mark.parametrize("name", ["neurons", "groups", "weights", "sigmoid"])
def test_two_processes(name: str) -> None:
    it = made(name)
    assert it.instance.outcome(it.certificate, jobs=2) == ACCEPTED
    assert it.sibling.outcome(bound_to(it.sibling, it.certificate), jobs=2) == "R8"


@pytest.mark.parametrize("audit", [0, 5])
def test_two_processes_share_a_large_tree(audit: int) -> None:
    """The square in 2^10 boxes, of which one or two hold the solution of the sibling."""
    levels = [(1, number % 2) for number in range(10)]
    op, inputs = [0], list[int]()
    for code, chosen in reversed(levels):
        op, inputs = [code, *op, *op], [chosen, *inputs, *inputs]
    arrays = {"group": [[0, 1, len(op), 0, 0, 0]], "case": [0], "op": op, "arg": inputs}
    it = made("inputs")
    for jobs in (1, 2):
        options = {"jobs": jobs, "audit": audit}
        assert it.instance.outcome(by_hand(it.instance, arrays), **options) == ACCEPTED
        assert it.sibling.outcome(by_hand(it.sibling, arrays), **options) == "R8"
