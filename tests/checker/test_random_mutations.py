"""Thousands of random mutations: refused, or accepted for a claim that is true.

The instances of the zoo have no solution (the first test makes sure), so nothing that is accepted
for them is wrong. Their siblings have one, so nothing may be accepted there, whatever has become of
the certificate. And nothing else may happen: no other exception, no hang, no heap of memory.
"""

from __future__ import annotations

import json
import resource
import warnings
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcert.checker import container
from onnxcert.ops import Linear
from tests.checker.makers import (
    ACCEPTED,
    PLANS,
    UNUSABLE,
    Instance,
    archive,
    bound_to,
    hashes,
    made,
    members_of,
    processor_seconds,
    prove,
    saved,
)
from tests.oracles import exact_values, smallest_violation

SECONDS = 5.0
KILOBYTES = 2 << 20
RULES = {"container", "R0", "R1", "R4", "R8", "R10", "R13", "R18", UNUSABLE, ACCEPTED}

EXTREME = [0, 1, -1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**63 - 1, -(2**63)]
EXTREME_FLOATS = [0.0, -0.0, 1.0, -1.0, 5e-324, 1e-300, 1e300, -1e300, np.inf, -np.inf, np.nan]
TYPES = ["|u1", "<u2", "<u4", "<i8", "<f8", "<f4", ">u4", ">f8", "|b1", "<c16", "|S1", "<M8[s]"]
JSON: list[Any] = [None, True, 0, 2**70, 1e308, "", "real", "sat", "unsat", [], {}, [[]], "\0"]

Random = np.random.Generator


def one(rng: Random, choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


# Bytes of the file


def _flip_bits(data: bytes, rng: Random) -> bytes:
    changed = bytearray(data)
    for position in rng.integers(len(data), size=int(rng.integers(1, 4))):
        changed[position] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _overwrite(data: bytes, rng: Random) -> bytes:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 40))
    noise = rng.bytes(length) if rng.random() < 0.5 else bytes([one(rng, [0, 255])]) * length
    return data[:start] + noise + data[start + length :]


def _cut(data: bytes, rng: Random) -> bytes:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 200))
    return data[:start] if rng.random() < 0.3 else data[:start] + data[start + length :]


def _double(data: bytes, rng: Random) -> bytes:
    first, second = sorted(rng.integers(len(data), size=2).tolist())
    return data[:second] + data[first:second] + data[second:]


def _swap(data: bytes, rng: Random) -> bytes:
    a, b, c = sorted(rng.integers(len(data), size=3).tolist())
    return data[:a] + data[b:c] + data[a:b] + data[c:]


BYTES = [_flip_bits, _overwrite, _cut, _double, _swap]


def damaged(certificate: bytes, rng: Random) -> bytes:
    """Damage the file, or a member before it is compressed again: no sum notices that."""
    change = one(rng, BYTES)
    if rng.random() < 0.4:
        return change(certificate, rng)
    members = members_of(certificate)
    number = int(rng.integers(len(members)))
    name, data = members[number]
    # Otherwise most of the damage is done to the description of an array, and noticed there.
    head = 128 if name.endswith(".npy") and len(data) > 128 and rng.random() < 0.8 else 0
    members[number] = name, data[:head] + change(data[head:], rng)
    return archive(members)


# Fields of arrays and of the header


def _value(array: np.ndarray, rng: Random) -> np.ndarray:
    flat = array.ravel()
    for position in rng.integers(len(flat), size=int(rng.integers(1, 4))):
        if array.dtype.kind == "f":
            near = flat[position] * (1 + rng.integers(-2, 3) * 2.0**-20)
            with np.errstate(all="ignore"):
                flat[position] = near if rng.random() < 0.5 else one(rng, EXTREME_FLOATS)
        elif array.dtype.kind in "iu":
            near = int(flat[position]) + int(rng.integers(-2, 3))
            chosen = near if rng.random() < 0.5 else one(rng, EXTREME)
            flat[position] = np.array([chosen % 2**64], np.uint64).astype(array.dtype)[0]
    return array


def _bit(array: np.ndarray, rng: Random) -> np.ndarray:
    data = bytearray(array.tobytes())
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return np.frombuffer(data, array.dtype).reshape(array.shape)


def _exchange(array: np.ndarray, rng: Random) -> np.ndarray:
    a, b = rng.integers(len(array), size=2)
    array[[a, b]] = array[[b, a]]
    return array


def _remove(array: np.ndarray, rng: Random) -> np.ndarray:
    return np.delete(array, int(rng.integers(len(array))), axis=0)


def _repeat(array: np.ndarray, rng: Random) -> np.ndarray:
    position = int(rng.integers(len(array)))
    return np.insert(array, position, array[position], axis=0)


def _shuffle(array: np.ndarray, rng: Random) -> np.ndarray:
    return array[rng.permutation(len(array))]


def _fill(array: np.ndarray, rng: Random) -> np.ndarray:
    array[:] = array.ravel()[int(rng.integers(array.size))]
    return array


def _retype(array: np.ndarray, rng: Random) -> np.ndarray:
    kind = np.dtype(one(rng, TYPES))
    if "M" in (kind.kind, array.dtype.kind):
        return np.zeros(array.shape, kind)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # what is lost of numbers is lost on purpose
        return array.astype(kind)


def _reshape(array: np.ndarray, rng: Random) -> np.ndarray:
    return one(rng, [array[None], array.ravel()[:, None], array[:0], array.ravel()])


FIELDS: list[Callable[[np.ndarray, Random], np.ndarray]] = [
    *[_value, _bit, _exchange] * 3,
    *[_remove, _repeat, _shuffle, _fill, _retype, _reshape],
]


def edited_at_random(certificate: bytes, rng: Random) -> bytes:
    """One to three changes of fields."""
    header, arrays = container.unpack(certificate)
    arrays = {name: array.copy() for name, array in arrays.items()}
    for _ in range(int(rng.integers(1, 4))):
        if rng.random() < 0.1:
            _change_header(header, rng)
        elif rng.random() < 0.05:
            arrays.pop(one(rng, [*arrays, "none"]), None)
        else:
            full = sorted(name for name, array in arrays.items() if array.size)
            if full:
                name = one(rng, full)
                arrays[name] = one(rng, FIELDS)(arrays[name], rng)
    members = [(f"{name}.npy", saved(array)) for name, array in arrays.items()]
    return archive([("header.json", json.dumps(header).encode()), *members])


def _change_header(header: dict[str, Any], rng: Random) -> None:
    key = one(rng, sorted(header) or ["format"])
    value, other = header.get(key), deepcopy(one(rng, JSON))
    if rng.random() < 0.2:
        header.pop(key, None)
    elif isinstance(value, list) and value and rng.random() < 0.7:
        value[int(rng.integers(len(value)))] = one(rng, [value[0], other])
    elif isinstance(value, dict) and rng.random() < 0.7:
        value[one(rng, ["0", "1", ""])] = one(rng, ["1/3", other])
    else:
        header[key] = other


def mutated(certificate: bytes, rng: Random) -> bytes:
    """A mutation of any kind."""
    return damaged(certificate, rng) if rng.random() < 0.5 else edited_at_random(certificate, rng)


# The tests

CERTIFICATES = 2000
PER_NAME = CERTIFICATES // len(PLANS)


PRODUCTS = ("products", "shares", "executed_shares")
SMOOTH = {"sigmoid", "waves", "softmax", "tables", *PRODUCTS}


@pytest.mark.parametrize("name", [name for name in PLANS if name not in SMOOTH])
def test_there_is_no_solution(name: str) -> None:
    """By enumeration of all patterns of active neurons."""
    it = made(name).instance
    for problem in it.problems:
        for case in range(len(problem)):
            assert smallest_violation(it.graph, problem, case) > 1e-3


@pytest.mark.parametrize(("name", "slope"), [("sigmoid", 1 / 16), ("waves", 1.0)])
def test_there_is_no_solution_with_smooth_curves(name: str, slope: float) -> None:
    """Sigmoids have slopes of at most 1/4, and there are two layers of them."""
    it = made(name).instance
    weights = [np.abs(node.op.transpose(np.eye(node.op.output_size))[0]) for node in _sums(it)]
    _on_a_grid(it, float(np.linalg.multi_dot(weights[::-1]).sum()) * slope)


def test_there_is_no_solution_with_sums_of_relus() -> None:
    """Slopes of a curve are sums of the first of its weights; there are too many patterns."""
    it = made("tables")
    graph = onnx.ModelProto.FromString(it.instance.model).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    slope = abs(np.cumsum(stored["weight"])).max()
    second = (abs(stored["w"]) @ abs(stored["u"]))[:, 1].sum()
    _on_a_grid(it.instance, float(second * slope))


def test_there_is_no_solution_with_softmax() -> None:
    """A share changes by a quarter at most of what any of the numbers changes."""
    it = made("softmax").instance
    layers = [node.op for node in it.graph.nodes if isinstance(node.op, Linear)]
    first, last = (np.abs(layer.weight) for layer in (layers[0], layers[-1]))
    _on_a_grid(it, float(first.sum() * last.sum()) / 4)


@pytest.mark.parametrize("name", PRODUCTS)
def test_there_is_no_solution_with_products(name: str) -> None:
    """Between points of a grid a curve bends below them by an eighth of a second difference."""
    it = made(name).instance
    for problem in it.problems:
        steps = 1000
        ticks = (np.linspace(low, high, steps + 1) for low, high in _sides(problem))
        points = np.stack(np.meshgrid(*ticks), -1).reshape(-1, 2)
        for rows in problem.case_rows:
            used = rows[rows >= 0]
            values = it.graph.forward(points) @ problem.output_rows[used].T + problem.offset[used]
            grid = values.max(axis=1).reshape(steps + 1, steps + 1)
            inner = grid[1:-1, 1:-1]
            bends = abs(np.diff(grid[:, 1:-1], n=2, axis=0)), abs(np.diff(grid[1:-1], n=2, axis=1))
            assert (inner - sum(bends)).min() > 1e-3
            assert grid.min() > 1e-3


def _sides(problem: Any) -> Any:
    return zip(problem.lower[0], problem.upper[0], strict=True)


def _on_a_grid(it: Instance, steepest: float) -> None:
    """Smallest on a grid, less what a step of the grid can change."""
    (problem,) = it.problems
    steps = 2000
    ticks = np.linspace(-1, 1, steps + 1)
    points = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    row, offset = problem.output_rows[0], problem.offset[0]
    parts = np.array_split(points, 64)
    lowest = min(float((it.graph.forward(part) @ row + offset).min()) for part in parts)
    assert lowest - steepest / steps > 1e-3


def _sums(it: Instance) -> list[Any]:
    return [node for node in it.graph.nodes if hasattr(node.op, "transpose")]


@pytest.mark.parametrize("name", list(PLANS))
def test_mutations_of_proofs(name: str) -> None:
    """The instance itself: what is accepted is true, as shown above."""
    it, rng = made(name), np.random.default_rng([1, *name.encode()])
    outcomes = _outcomes(it.instance, lambda: mutated(it.certificate, rng), PER_NAME)
    assert outcomes["container"] > 0
    assert outcomes["R8"] + outcomes["R10"] + outcomes["R0"] > 0


@pytest.mark.parametrize("name", list(PLANS))
def test_mutations_of_proofs_at_a_sibling(name: str) -> None:
    """A solution is known, so there is no proof; hashes and sums are always right."""
    it, rng = made(name), np.random.default_rng([2, *name.encode()])
    assert it.sibling.is_solved_by(it.solution)

    def next_one() -> bytes:
        return bound_to(it.sibling, edited_at_random(it.certificate, rng))

    outcomes = _outcomes(it.sibling, next_one, PER_NAME)
    assert outcomes[ACCEPTED] == 0
    assert outcomes["R8"] > 0


@pytest.mark.parametrize("name", ["inputs", "boxes", "weights", "convolution"])
def test_mutations_of_witnesses(name: str) -> None:
    """What is accepted is a solution, in exact arithmetic."""
    it, rng = made(name), np.random.default_rng([3, *name.encode()])
    witness = prove(it.sibling)
    accepted = 0
    for _ in range(100):
        certificate = bound_to(it.sibling, mutated(witness, rng))
        if _outcomes(it.sibling, lambda data=certificate: data, 1)[ACCEPTED]:
            accepted += 1
            _, arrays = container.unpack(certificate)
            assert it.sibling.is_solved_by(arrays["x0"].ravel().tolist())
    for _ in range(100):
        header, arrays = container.unpack(witness)
        x = arrays["x0"] + rng.normal(size=arrays["x0"].shape) * 10.0 ** rng.uniform(-9, 1)
        arrays = {"x0": x.astype(np.float32)}
        x = arrays["x0"].ravel().tolist()
        is_accepted = it.sibling.outcome(container.pack(header, arrays)) == ACCEPTED
        # Coefficients are short, so that binary32 and the reals agree unless it is close.
        if is_accepted != it.sibling.is_solved_by(x):
            values = exact_values(it.sibling.graph, x)[it.sibling.graph.output]
            assert _distance(it.sibling, values) < Fraction(1, 10**5)
        accepted += is_accepted
    assert accepted > 0
    assert _outcomes(it.instance, lambda: container.pack(header | hashes(it.instance), arrays), 1)


def _distance(it: Instance, values: list[Fraction]) -> Fraction:
    """How close the rows of the cases are to zero."""
    rows = [
        abs(sum(Fraction(float(a)) * v for a, v in zip(row, values, strict=True)) + Fraction(b))
        for problem in it.problems
        for row, b in zip(problem.output_rows, problem.offset.tolist(), strict=True)
    ]
    return min(rows)


def _outcomes(it: Instance, certificate: Callable[[], bytes], count: int) -> Counter[str]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = Counter[str]()
    for _ in range(count):
        data = certificate()
        with processor_seconds(SECONDS):
            found[it.outcome(data)] += 1
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after <= max(before, KILOBYTES), f"{after >> 10} MB"
    assert set(found) <= RULES
    return found
