"""Builds the corpora: certificates that must stay accepted, and others that must stay refused.

``python -m tests.checker.make_corpus`` writes what is missing under ``tests/checker``; files that
are there stay as they are, because old certificates have to be read by every later version.

    instances/   models and specifications, by name
    accepted/    proofs and witnesses
    rejected/    well formed, but no proof
    malformed/   no certificates at all

Each of the last three has a ``reasons.json``: file -> instance, what the checker says, and why.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from onnxcert.checker import container
from onnxcert.checker.certificate import EXECUTED, REAL
from tests.checker.makers import (
    PLANS,
    Arrays,
    Header,
    Instance,
    archive,
    bound_to,
    by_hand,
    coarse,
    edited,
    made,
    members_of,
    prove,
    saved,
    spec,
    witness_by_hand,
)
from tests.frontend.onnx_models import model_of

HERE = Path(__file__).parent
KINDS = ("accepted", "rejected", "malformed")
REASONS = "reasons.json"


@dataclass(frozen=True)
class Entry:
    """A file of a corpus.

    Attributes:
        kind: ``accepted``, ``rejected`` or ``malformed``.
        name: of the file.
        about, instance: the instance and its name.
        says: the claims that are verified, or the rule that is broken.
        reason: in a sentence.
        certificate: the bytes.
    """

    kind: str
    name: str
    about: str
    instance: Instance
    says: str
    reason: str
    certificate: bytes


def entries() -> Iterator[Entry]:
    """All corpora."""
    yield from _accepted()
    yield from _rejected()
    yield from _false()
    yield from _malformed()


def _accepted() -> Iterator[Entry]:
    texts = {
        "inputs": "splits of inputs",
        "boxes": "splits of inputs, two boxes with two cases each",
        "combined": "splits of inputs, and leaves that only a sum of two rows refutes",
        "sums": "splits of inputs, and sums of rows for which the checker finds better lines",
        "mixed": "splits of inputs that hand boxes on to splits of neurons",
        "neurons": "splits of neurons with stored slopes, and hints for the second layer",
        "groups": "cases that plain bounds refute, and two groups of neuron trees",
        "weights": "splits of neurons where leaves are refuted by weighted sums of rows",
        "convolution": "a padded convolution",
        "executed": "splits of inputs, for every binary32 execution",
        "executed_neurons": "splits of neurons, for every binary32 execution",
        "sigmoid": "splits of sigmoid neurons, some of them more than once on a path",
        "waves": "splits of cosines",
        "softmax": "splits of inputs of a softmax, whose shares are added up",
    }
    for name, text in texts.items():
        it = made(name)
        says = PLANS[name].semantics
        yield Entry("accepted", name, name, it.instance, says, text, it.certificate)
    for name in ("inputs", "weights"):
        it = made(name)
        says = ", ".join(it.sibling.session.check(prove(it.sibling)).claims)
        yield Entry(
            "accepted",
            f"witness_{name}",
            f"{name}_solved",
            it.sibling,
            says,
            "a witness",
            prove(it.sibling),
        )
    it, certificate = _tenth()
    text = "a witness whose input is 0.1, which no binary32 number is"
    yield Entry(
        "accepted", "decimal", "tenth", it, "exact-replay, ort-replay", text, certificate("1/10")
    )
    it, certificate_of = _by_constants()
    text = "cases far from the boundary, as Lipschitz constants know"
    yield Entry("accepted", "constants", "constants", it, REAL, text, certificate_of(1))
    nothing = _relu(-0.5)
    text = "one leaf, refuted by plain bounds"
    yield Entry(
        "accepted", "leaf", "relu", nothing, EXECUTED, text, by_hand(nothing, semantics=EXECUTED)
    )


def _relu(bound: float) -> Instance:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": [1, 1]}, ["y"])
    return Instance(model.SerializeToString(), spec(([-1.0], [1.0], [([1], bound)])))


def _tenth() -> tuple[Instance, Callable[[str], bytes]]:
    """relu(x) <= 1 for x = 0.1, and certificates by the text of that number."""
    text = (
        "(declare-const X_0 Real) (declare-const Y_0 Real) "
        "(assert (and (>= X_0 0.1) (<= X_0 0.1) (<= Y_0 1.0)))"
    )
    it = Instance(_relu(1.0).model, text.encode())

    def certificate(number: str) -> bytes:
        return witness_by_hand(it, np.array([[0.1]], np.float32), {"0": number})

    return it, certificate


def _by_constants() -> tuple[Instance, Callable[[int], bytes]]:
    """relu(x) <= -2 or relu(x) >= 5 in [-1, 1], and certificates by the number of groups."""
    box = [-1.0], [1.0]
    it = Instance(_relu(0.0).model, spec((*box, [([1], -2)]), (*box, [([-1], -5)])))

    def certificate(groups: int) -> bytes:
        arrays = {
            "group": [[3, 2 // groups, 0, 0, 0, 0]] * groups,
            "case": [0, 1],
            "constant": [1.0, 1.0] * groups,
        }
        return by_hand(it, arrays)

    return it, certificate


Change = Callable[[Header, Arrays], None]


def _one_leaf(header: Header, arrays: Arrays) -> None:
    arrays["op"], arrays["arg"] = arrays["op"][-1:], arrays["arg"][:0]
    arrays["group"][0, 2] = 1


def _cut_off(header: Header, arrays: Arrays) -> None:
    arrays["op"] = arrays["op"][:-1]
    arrays["group"][0, 2] -= 1


def _no_such_input(header: Header, arrays: Arrays) -> None:
    arrays["arg"][0] = 2


def _no_such_layer(header: Header, arrays: Arrays) -> None:
    header["layers"][0] = "h9"


def _no_multipliers(header: Header, arrays: Arrays) -> None:
    arrays["multiplier"][:] = 0


def _negative_multiplier(header: Header, arrays: Arrays) -> None:
    arrays["multiplier"][0] = 0xBF80


def _other_row(header: Header, arrays: Arrays) -> None:
    arrays["weight"] = arrays["weight"].reshape(-1, 2)[:, ::-1].ravel()


def _worst_slopes(header: Header, arrays: Arrays) -> None:
    arrays["slope"] = 255 - arrays["slope"]
    arrays["hint_slope"] = 255 - arrays["hint_slope"]


def _case_missing(header: Header, arrays: Arrays) -> None:
    arrays["case"] = arrays["case"][:-1]
    arrays["group"][-1, 1] -= 1


def _case_twice(header: Header, arrays: Arrays) -> None:
    arrays["case"][1] = 0


def _every_execution(header: Header, arrays: Arrays) -> None:
    header["semantics"] = EXECUTED


def _unknown_code(header: Header, arrays: Arrays) -> None:
    arrays["op"][-1] = 2


def _no_number(header: Header, arrays: Arrays) -> None:
    arrays["point"][0] = np.nan


def _no_layer_before(header: Header, arrays: Arrays) -> None:
    arrays["hint"][0, 0] = -1


def _rejected() -> Iterator[Entry]:
    table: list[tuple[str, str, Change, str, str]] = [
        ("one_leaf", "inputs", _one_leaf, "R8", "the whole tree is one leaf"),
        ("cut_off", "inputs", _cut_off, "R10", "the last node of the tree is missing"),
        (
            "no_such_input",
            "inputs",
            _no_such_input,
            "R10",
            "a split of an input that is none",
        ),
        (
            "no_such_layer",
            "neurons",
            _no_such_layer,
            "R10",
            "a split of a layer that is none",
        ),
        ("no_layer_before", "neurons", _no_layer_before, "R10", "a hint for layer number -1"),
        ("unknown_code", "neurons", _unknown_code, "R10", "a node that is neither leaf nor split"),
        ("no_number", "neurons", _no_number, "R10", "a neuron split at no number"),
        ("no_multipliers", "weights", _no_multipliers, "R8", "all multipliers are zero"),
        ("negative_multiplier", "neurons", _negative_multiplier, "R8", "a multiplier is negative"),
        ("other_sums", "sums", _other_row, "R8", "weights of two rows are exchanged"),
        ("worst_slopes", "neurons", _worst_slopes, "R8", "every line is the worse one"),
        ("case_missing", "boxes", _case_missing, "R0", "one of four disjuncts is not refuted"),
        ("case_twice", "boxes", _case_twice, "R0", "a disjunct is there twice, another is not"),
    ]
    for name, about, change, rule, text in table:
        certificate = edited(made(about).certificate, change)
        yield Entry("rejected", name, about, made(about).instance, rule, text, certificate)
    # The first proof of this instance is refuted by sums, later ones are by better lines as well.
    old = (HERE / "accepted" / "combined.onnxcert").read_bytes()
    yield Entry(
        "rejected",
        "other_row",
        "combined",
        made("combined").instance,
        "R8",
        "weights of two rows are exchanged",
        edited(old, _other_row),
    )
    it, by_constants = _by_constants()
    text = "as many factorisations as groups"
    yield Entry("rejected", "constants_twice", "constants", it, "R14", text, by_constants(2))
    for name in ("inputs", "neurons", "sigmoid", "waves", "softmax", "combined"):
        it = made(name)
        certificate = bound_to(it.sibling, it.certificate)
        text = "the proof of a smaller threshold; this one has a solution"
        yield Entry(
            "rejected", f"other_{name}", f"{name}_solved", it.sibling, "R8", text, certificate
        )
    it = made("neurons")
    text = "the proof of another instance, hashes and all"
    yield Entry(
        "rejected", "another", "neurons", it.instance, "R0", text, made("inputs").certificate
    )
    solved, certificate_of = _tenth()
    for name, number, text in (
        ("decimal_elsewhere", "2/10", "an exact input that the float is not rounded from"),
        ("decimal_outside", "101/1000", "an exact input outside of the box"),
    ):
        yield Entry("rejected", name, "tenth", solved, "R13", text, certificate_of(number))
    witness = prove(made("inputs").sibling)
    header, arrays = container.unpack(witness)
    arrays = {"x0": np.nextafter(arrays["x0"], np.float32(-2.0))}
    yield Entry(
        "rejected",
        "one_unit_outside",
        "inputs_solved",
        made("inputs").sibling,
        "R13",
        "a witness one unit in the last place outside of the box",
        container.pack(header, arrays),
    )


def _single(values: Any) -> np.ndarray:
    return np.asarray(values, np.float32)


def _question(nodes: Any, shape: Any, constants: Any, box: Any, rows: Any) -> Instance:
    model = model_of(nodes, {"x": shape}, ["y"], constants)
    low, high = zip(*box, strict=True)
    return Instance(model.SerializeToString(), spec((low, high, rows), outputs=len(rows[0][0])))


def _product(source: str, weight: str, target: str) -> Any:
    return helper.make_node("MatMul", [source, weight], [target])


def _false() -> Iterator[Entry]:
    """Claims that are false, each accepted once or by some float arithmetic."""
    conv = helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 0, 0], strides=[2, 2])
    flat = helper.make_node("Reshape", ["c", "s"], ["y"])
    window = {"w": _single([[[[1, 10], [100, 1000]]]]), "s": np.array([1, 1])}
    huge = {
        "w": _single([[0, 1, 0]]),
        "b": _single([2.0**60, 2, 2.0**60]),
        "v": _single([[1], [-1], [-1]]),
        "c": _single([0.5]),
    }
    gemms = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("Gemm", ["h", "v", "c"], ["y"]),
    ]
    moved = huge | {"w": _single([[2.0**24] * 2]), "b": _single([1, 0])}
    moved |= {"v": _single([[1], [-1]]), "c": _single([-0.5])}
    large = {"w": _single([[3e38], [3e38], [-3e38], [-3e38]])}
    leaky = helper.make_node("LeakyRelu", ["x"], ["h"], alpha=0.5)
    table: list[tuple[str, Instance, str, str]] = [
        (
            "padding",
            _question(
                [conv, flat], [1, 1, 2, 2], window, [(0, 0), (1, 1), (1, 1), (1, 1)], [([1], 50)]
            ),
            REAL,
            "padding must not read the last input",
        ),
        (
            "cancellation",
            _question(gemms, [1, 1], huge, [(-1, -0.875)], [([1], -0.5)]),
            REAL,
            "2^60 - (x + 2) - 2^60 + 0.5 loses x in any floats",
        ),
        (
            "order",
            _question(gemms, [1, 1], moved, [(1, 2)], [([1], 0.25)]),
            EXECUTED,
            "2^24 x + 1 - 2^24 x - 0.5 is 0.5 in the reals and -0.5 in binary32",
        ),
        (
            "overflow",
            _question([_product("x", "w", "y")], [1, 4], large, [(1, 1)] * 4, [([-1], -1e37)]),
            EXECUTED,
            "a partial sum overflows in binary32, the sum is zero",
        ),
        (
            "flushed",
            _question(
                [_product("x", "w", "y")],
                [1, 1],
                {"w": _single([[2.0**125]])},
                [(2.0**-130, 2.0**-130)],
                [([1], 2.0**-6)],
            ),
            EXECUTED,
            "a subnormal input that executors may flush to zero, times 2^125",
        ),
        (
            "flushed_leaky",
            _question(
                [leaky, _product("h", "w", "y")],
                [1, 1],
                {"w": _single([[2.0**125]])},
                [(-(2.0**-126), -(2.0**-126))],
                [([-1], 2.0**-3)],
            ),
            EXECUTED,
            "a subnormal value that executors may flush to zero, times 2^125",
        ),
    ]
    for name, it, semantics, text in table:
        certificate = by_hand(it, semantics=semantics)
        yield Entry("rejected", name, name, it, "R8", text, certificate)
    yield _long_path()


def _long_path(depth: int = 1500) -> Entry:
    """Multipliers that are lost one by one beside the first one."""
    one = {"e": _single([[1]])}
    nodes = [
        _product("x", "e", "a"),
        helper.make_node("Relu", ["a"], ["p"]),
        _product("p", "e", "c"),
        helper.make_node("Relu", ["c"], ["w"]),
        _product("w", "e", "y"),
    ]
    it = _question(nodes, [1, 1], one, [(1, 1)], [([1], 2)])
    large, small = coarse(2.0**53), coarse(127 / 128)
    multipliers = [0] * (depth + 2) + [large] + [small] * depth + [large]
    for length in range(depth + 1, 0, -1):
        multipliers += [0] * length
    arrays = {
        "group": [[1, 1, 2 * depth + 5, 0, 0, 0]],
        "case": [0],
        "op": [1] * (depth + 2) + [0] * (depth + 3),
        "arg": [0] * (depth + 2),
        "layer": [0] + [1] * depth + [0],
        "point": [1 + 2.0**-44] + [1 + 2.0**-42] * depth + [1 - 2.0**-44],
        "multiplier": multipliers,
        "weight": [coarse(1.0)] * (depth + 3),
    }
    text = "the multipliers of a path of thousands of splits are lost beside a large one"
    certificate = by_hand(it, arrays, layers=["p", "w"])
    return Entry("rejected", "long_path", "long_path", it, "R8", text, certificate)


def _malformed() -> Iterator[Entry]:
    it = made("inputs")
    members = members_of(it.certificate)
    parts = dict(members)
    data = it.certificate
    header = it.parts[0]

    def with_part(name: str, part: bytes) -> bytes:
        return archive(list((parts | {name: part}).items()))

    def with_header(**changes: Any) -> bytes:
        return with_part("header.json", json.dumps(header | changes).encode())

    twice = archive([(name, part) for name, part in members if name != "op.npy"])
    twice = _twice(twice, "op.npy", parts["op.npy"])
    key_twice = parts["header.json"][:-1] + b', "semantics": "real"}'
    pickled = np.empty(1, object)
    pickled[0] = {"a": 1}
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0x10
    table: list[tuple[str, bytes, str]] = [
        ("empty", b"", "no bytes"),
        ("text", b"unsat\n", "no archive"),
        ("cut_off", data[: len(data) // 2], "half of a file"),
        ("flipped_bit", bytes(flipped), "one bit is different, so a checksum is wrong"),
        ("no_header", archive(members[1:]), "header.json is missing"),
        ("no_op", archive([m for m in members if m[0] != "op.npy"]), "an array is missing"),
        ("bounds", archive([*members, ("lower.npy", saved(np.zeros(3)))]), "an array too many"),
        ("member_twice", twice, "op.npy is there twice"),
        ("key_twice", with_part("header.json", key_twice), "a key of the header is there twice"),
        ("another_format", with_header(format="onnxcert-2"), "a format of the future"),
        ("another_verdict", with_header(verdict="unknown"), "a verdict that needs no proof"),
        ("extra_key", with_header(bound=0.5), "a key that nobody knows"),
        ("no_table", with_part("header.json", b"[]"), "the header is no table"),
        ("no_json", with_part("header.json", b"{'format': 1}"), "the header is no JSON"),
        ("pickled", with_part("op.npy", saved(pickled)), "an array of Python objects"),
        (
            "wrong_type",
            with_part("op.npy", saved(it.parts[1]["op"].astype(np.int64))),
            "an array of another type",
        ),
        (
            "big_endian",
            with_part("arg.npy", saved(it.parts[1]["arg"].astype(">u4"))),
            "an array in the other order of bytes",
        ),
        ("short_array", with_part("op.npy", parts["op.npy"][:-1]), "an array without its end"),
        (
            "left_over",
            with_part("point.npy", saved(np.zeros(1))),
            "a number that nothing uses",
        ),
        (
            "negative_count",
            with_part("group.npy", saved(-it.parts[1]["group"])),
            "counts below zero",
        ),
    ]
    for name, certificate, text in table:
        yield Entry("malformed", name, "inputs", it.instance, "container", text, certificate)


def _twice(certificate: bytes, name: str, data: bytes) -> bytes:
    """An archive with a member of one name twice, which the library only writes with a warning."""
    other = "_" * len(name)
    full = archive([*members_of(certificate), (name, data), (other, data)])
    return full.replace(other.encode(), name.encode())


def main() -> None:
    """Write what is missing."""
    tables: dict[str, dict[str, dict[str, str]]] = {kind: {} for kind in KINDS}
    for entry in entries():
        tables[entry.kind][f"{entry.name}.onnxcert"] = {
            "instance": entry.about,
            "says": entry.says,
            "reason": entry.reason,
        }
        _write(HERE / "instances" / f"{entry.about}.onnx", entry.instance.model)
        _write(HERE / "instances" / f"{entry.about}.vnnlib", entry.instance.spec)
        _write(HERE / entry.kind / f"{entry.name}.onnxcert", entry.certificate)
    for kind, table in tables.items():
        text = json.dumps(dict(sorted(table.items())), indent=1)
        (HERE / kind / REASONS).write_text(text + "\n")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        path.write_bytes(data)


if __name__ == "__main__":
    main()
