"""Random models of several nodes: how rules and views of values work together."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from tests.frontend.neurons import check_pre_activations
from tests.frontend.onnx_models import agrees, integers, model_of


class _Growing:
    """A model under construction; every step reads values made before."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.shapes: dict[str, tuple[int, ...]] = {"x": (2, 3, 4), "z": (3, 2)}

    def constant(self, values: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = values
        return name

    def floats(self, *shape: int) -> str:
        return self.constant(self.rng.normal(size=shape).astype(np.float32))

    def add(
        self, operator: str, inputs: list[str], shape: tuple[int, ...], **attributes: object
    ) -> None:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=f"n{name}", **attributes))
        self.shapes[name] = shape

    def grow(self, kind: str) -> None:
        source = str(self.rng.choice(list(self.shapes)))
        shape = self.shapes[source]
        axis = int(self.rng.integers(len(shape)))
        getattr(self, kind)(source, shape, axis)

    def transpose(self, source: str, shape: tuple[int, ...], axis: int) -> None:
        order = [int(i) for i in self.rng.permutation(len(shape))]
        self.add("Transpose", [source], tuple(shape[i] for i in order), perm=order)

    def reshape(self, source: str, shape: tuple[int, ...], axis: int) -> None:
        size = int(np.prod(shape))
        first = int(self.rng.choice([n for n in range(1, size + 1) if size % n == 0]))
        target = self.constant(integers(first, size // first))
        self.add("Reshape", [source, target], (first, size // first))

    def curve(self, source: str, shape: tuple[int, ...], axis: int) -> None:
        self.add(str(self.rng.choice(["Relu", "Abs", "LeakyRelu", "Tanh"])), [source], shape)

    def affine(self, source: str, shape: tuple[int, ...], axis: int) -> None:
        operand = self.floats(*shape[axis:])
        pair = [source, operand] if self.rng.random() < 0.5 else [operand, source]
        self.add(str(self.rng.choice(["Add", "Sub", "Mul", "Max"])), pair, shape)

    def pair(self, source: str, shape: tuple[int, ...], axis: int) -> None:
        others = [n for n, s in self.shapes.items() if s == shape or s == shape[axis:]]
        names = [source, str(self.rng.choice(others))]
        self.rng.shuffle(names)
        self.add(str(self.rng.choice(["Add", "Sub", "Max", "Min", "Sum"])), names, shape)

    def concat(self, source: str, shape: tuple[int, ...], axis: int) -> None:
        others = [n for n, s in self.shapes.items() if s == shape]
        parts = [source, str(self.rng.choice(others))]
        if self.rng.random() < 0.5:
            parts.insert(1, self.floats(*shape))
        joined = list(shape)
        joined[axis] *= len(parts)
        if np.prod(joined) <= 200:
            self.add("Concat", parts, tuple(joined), axis=axis)

    def slice(self, source: str, shape: tuple[int, ...], axis: int) -> None:
        start = int(self.rng.integers(shape[axis]))
        end = int(self.rng.integers(start + 1, shape[axis] + 1))
        cut = list(shape)
        cut[axis] = end - start
        bounds = [self.constant(integers(n)) for n in (start, end, axis)]
        self.add("Slice", [source, *bounds], tuple(cut))

    def pad(self, source: str, shape: tuple[int, ...], axis: int) -> None:
        amounts = [0] * (2 * len(shape))
        amounts[axis], amounts[axis + len(shape)] = 1, 2
        padded = list(shape)
        padded[axis] += 3
        if np.prod(padded) <= 200:
            value = self.constant(np.array(0.75, dtype=np.float32))
            self.add("Pad", [source, self.constant(integers(*amounts)), value], tuple(padded))

    def product(self, source: str, shape: tuple[int, ...], axis: int) -> None:
        if self.rng.random() < 0.5:
            self.add("MatMul", [source, self.floats(shape[-1], 3)], (*shape[:-1], 3))
        elif len(shape) > 1:
            left = self.floats(2, shape[-2])
            self.add("MatMul", [left, source], (*shape[:-2], 2, shape[-1]))

    def reduce(self, source: str, shape: tuple[int, ...], axis: int) -> None:
        reduced = list(shape)
        reduced[axis] = 1
        kind = str(self.rng.choice(["ReduceMean", "ReduceMax", "ReduceMin"]))
        self.add(kind, [source], tuple(reduced), axes=[axis])


KINDS = [name for name in vars(_Growing) if name not in ("constant", "floats", "add", "grow")]
KINDS = [name for name in KINDS if not name.startswith("_")]


@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=2, max_size=9),
    seed=st.integers(0, 2**32 - 1),
    outputs=st.integers(1, 3),
)
def test_random_models_agree_with_onnxruntime(kinds: list[str], seed: int, outputs: int) -> None:
    growing = _Growing(np.random.default_rng(seed))
    for kind in kinds:
        growing.grow(kind)
    if not growing.nodes:
        growing.grow("curve")
    names = [node.output[0] for node in growing.nodes][-outputs:]
    inputs = {"x": growing.shapes["x"], "z": growing.shapes["z"]}
    proto = model_of(growing.nodes, inputs, names, growing.constants)
    model = agrees(proto, points=2)
    assert [info.shape for info in model.outputs] == [growing.shapes[name] for name in names]
    rng = np.random.default_rng(seed)
    feeds = {name: rng.normal(size=shape).astype(np.float32) for name, shape in inputs.items()}
    check_pre_activations(model.graph, proto, feeds)
