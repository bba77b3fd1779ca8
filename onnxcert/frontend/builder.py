"""The graph under construction: appends operators of `onnxcert.ops` and tracks views of values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxcert.arrays import Array, FloatArray, IntArray
from onnxcert.frontend.tables import Key, Keys, Table
from onnxcert.frontend.tensors import Constant, Operand, Shape, Tensor
from onnxcert.graph import Graph, Neurons, Node
from onnxcert.ops import (
    Absolute,
    Bivariate,
    Concat,
    Divide,
    Elementwise,
    Linear,
    Maximum,
    Multiply,
    Operator,
    Power,
    Relu,
    Scale,
    Select,
    SparseLinear,
    Sum,
)
from onnxcert.ops.sparse import pays_sparse

Move = Callable[..., Array]
Limits = Callable[[IntArray], tuple[FloatArray, FloatArray]]


class Builder:
    """Collects the nodes of a graph; every method returns the tensor that a step makes.

    Args:
        input_name: name of the vector of all inputs.
        input_size: its length.
        limits: the least and the largest value that is asked about of some inputs, by their
            positions in that vector; None where nothing is known.

    Attributes:
        shares: vector that a Softmax makes, row by row -> what it is applied to, (rows, length).
        whole: vectors that hold whole numbers and nothing else.
    """

    def __init__(self, input_name: str, input_size: int, limits: Limits | None = None) -> None:
        self.input = input_name
        self.limits = limits
        self.whole: set[str] = set()
        self.sizes: dict[str, int] = {input_name: input_size}
        self.nodes: list[Node] = []
        self.shares: dict[str, Tensor] = {}
        self._flat: dict[int, tuple[Tensor, str]] = {}
        self._hats_of: dict[Key, Tensor] = {}
        self._output = "value"
        self._origin = ""
        self._curves = 0

    def begin(self, output: str, origin: str) -> None:
        """Say which tensor and node of the file the next operators are made for."""
        self._output, self._origin, self._curves = output, origin, 0

    def apply(
        self,
        op: Operator,
        *values: str,
        neurons: Neurons | None = None,
        roundings: int | None = None,
    ) -> str:
        """Append an operator that reads the named vectors; the name of what it makes.

        Curves go through `activate`, which knows who their neurons are.
        """
        name, number = self._output, 1
        while name in self.sizes:
            number += 1
            name = f"{self._output}#{number}"
        self.nodes.append(Node(name, op, values, self._origin, neurons, roundings))
        self.sizes[name] = op.output_size
        if op.whole(of_whole=self.whole.issuperset(values)):
            self.whole.add(name)
        return name

    def placeholder(self, shape: Shape) -> Tensor:
        """A vector that no operator makes; stands for the output of a node without a rule."""
        name = f"{self._output}?"
        self.sizes[name] = int(np.prod(shape, dtype=np.int64))
        return Tensor.whole(name, shape)

    def flat(self, tensor: Tensor) -> str:
        """The vector with exactly the tensor's entries in row-major order."""
        if tensor.is_whole:
            return tensor.source
        known = self._flat.get(id(tensor))
        if known is None:
            fill = None if tensor.fill is None else tensor.fill.ravel()
            pick = Select.of(tensor.index.ravel(), tensor.size)
            name = self.apply(Select(pick.gather, fill), tensor.source)
            # The tensor is kept so that no other one can take its id.
            known = self._flat[id(tensor)] = (tensor, name)
        return known[1]

    def graph(self, output: Operand) -> Graph:
        """The finished graph; ``output`` is flattened."""
        name = self.flat(self.computed(output))
        return Graph(self.input, self.sizes[self.input], tuple(self.nodes), name)

    # Steps that only move entries

    def joined(self, operands: Sequence[Operand]) -> Operand:
        """All operands, flattened one after the other."""
        return self.rearrange(operands, lambda *p: np.concatenate([x.ravel() for x in p]))

    def rearrange(self, operands: Sequence[Operand], move: Move) -> Operand:
        """Move entries of one or several tensors to new places.

        ``move`` gets one array per operand and must do nothing but pick, repeat and reorder
        entries. It runs on the values of constants, and on positions for everything else.
        """
        if all(isinstance(operand, Constant) for operand in operands):
            return Constant(move(*(o.array for o in operands if isinstance(o, Constant))))
        return self.moved(operands, move)

    def moved(self, operands: Sequence[Operand], move: Move) -> Tensor:
        """As `rearrange`, for operands of which one at least is computed.

        The result counts as computed even where only constants are left of it.
        """
        source, size, offsets = self._join([o for o in operands if isinstance(o, Tensor)])
        codes: list[IntArray] = []
        pool: list[FloatArray] = []
        end = size
        for operand in operands:
            fixed = operand.numbers if isinstance(operand, Constant) else operand.fill
            numbers = np.arange(end, end + (0 if fixed is None else fixed.size))
            code: IntArray
            if isinstance(operand, Constant):
                code = numbers.reshape(operand.shape)
            else:
                code = offsets[operand.source][operand.index]
                if fixed is not None:
                    code = np.where(operand.index < 0, numbers.reshape(operand.shape), code)
            codes.append(code)
            if fixed is not None:
                pool.append(fixed.ravel())
                end += fixed.size
        return _decode(move(*codes), source, size, np.concatenate([*pool, np.zeros(0)]))

    def _join(self, tensors: list[Tensor]) -> tuple[str, int, dict[str, IntArray]]:
        """One vector that holds the sources of all tensors; for each source the new positions.

        With several sources only the entries in use are joined.
        """
        sources = {tensor.source: tensor.size for tensor in tensors}
        if len(sources) == 1:
            ((source, size),) = sources.items()
            return source, size, {source: np.arange(size)}
        offsets: dict[str, IntArray] = {}
        parts: list[str] = []
        end = 0
        for source, size in sources.items():
            indices = [t.index.ravel() for t in tensors if t.source == source]
            used = np.unique(np.concatenate(indices))
            used = used[used >= 0]
            part = Tensor(source, size, used)
            offsets[source] = np.zeros(size, dtype=np.int64)
            offsets[source][used] = end + np.arange(len(used))
            if len(used):
                parts.append(self.flat(part))
            end += len(used)
        if not parts:
            source, size = next(iter(sources.items()))
            return source, size, offsets
        sizes = tuple(self.sizes[part] for part in parts)
        return self.apply(Concat(sizes), *parts), end, offsets

    def broadcast(self, tensor: Tensor, shape: Shape) -> Tensor:
        """NumPy broadcasting of a tensor."""
        if tensor.shape == shape:
            return tensor
        fill = None if tensor.fill is None else np.broadcast_to(tensor.fill, shape)
        return Tensor(tensor.source, tensor.size, np.broadcast_to(tensor.index, shape), fill)

    # Steps that compute

    def elementwise(self, tensor: Tensor, make: Callable[[int], Elementwise]) -> Tensor:
        """Apply a curve that is the same for all entries; ``make`` gets their number.

        A permutation of a whole vector stays one: the curve goes before it.
        """
        name, index, _ = self.in_order(tensor)
        return self.activate(make(self.sizes[name]), name, index)

    def activate(self, op: Elementwise, value: str, index: IntArray) -> Tensor:
        """Append a curve and note who its neurons are; all curves are made here.

        Args:
            op: the curve.
            value: the vector it reads.
            index: for every entry of the tensor, in its shape, the position in that vector; a
                permutation.
        """
        name = self.apply(op, value, neurons=Neurons.of(self._label(), index))
        return Tensor(name, op.size, index)

    def _label(self) -> str:
        """What the next curve or function of two values is called."""
        label = f"{self._output}/{self._curves}" if self._curves else self._output
        self._curves += 1
        return label

    def in_order(self, tensor: Tensor, *values: Array | None) -> tuple[str, IntArray, list[Array]]:
        """A vector with the tensor's entries, their positions, and ``values`` in its order.

        ``values`` broadcast to the tensor's shape; None stays None.
        """
        if tensor.is_permutation:
            name, view = tensor.source, tensor
        else:
            name = self.flat(tensor)
            view = Tensor.whole(name, tensor.shape)
        ordered = [None if value is None else view.to_source_order(value) for value in values]
        return name, view.index, ordered  # type: ignore[return-value]

    def scale(
        self,
        tensor: Tensor,
        factor: FloatArray | None,
        offset: FloatArray | None,
        *,
        parts: FloatArray | None = None,
        roundings: int | None = None,
    ) -> Tensor:
        """``factor * tensor + offset``; both broadcast with the tensor, None leaves them out.

        ``parts`` is that of `Scale`, and ``roundings`` that of `Node`.
        """
        given = [part.shape for part in (factor, offset) if part is not None]
        tensor = self.broadcast(tensor, np.broadcast_shapes(tensor.shape, *given))
        factor = None if factor is None or (factor == 1.0).all() else factor
        offset = None if offset is None or (offset == 0.0).all() else offset
        if factor is None and offset is None:
            return tensor
        name, index, arrays = self.in_order(tensor, factor, offset, parts)
        made = self.apply(Scale(self.sizes[name], *arrays), name, roundings=roundings)
        return Tensor(made, self.sizes[made], index)

    def sum(
        self, tensors: Sequence[Tensor], signs: Sequence[int], *, roundings: int | None = None
    ) -> Tensor:
        """The signed sum of tensors, broadcast; ``roundings`` is that of `Node`."""
        shape = np.broadcast_shapes(*(tensor.shape for tensor in tensors))
        tensors = [self.broadcast(tensor, shape) for tensor in tensors]
        names, index = self._aligned(tensors)
        op = Sum(self.sizes[names[0]], tuple(signs))
        made = self.apply(op, *names, roundings=roundings)
        return Tensor(made, self.sizes[made], index)

    def product(self, first: Tensor, second: Tensor) -> Tensor:
        """The product of two tensors, broadcast; of a tensor with itself, the square."""
        shape = np.broadcast_shapes(first.shape, second.shape)
        pair = [self.broadcast(tensor, shape) for tensor in (first, second)]
        same = first.source == second.source and first.fill is second.fill is None
        if same and np.array_equal(pair[0].index, pair[1].index):
            return self.elementwise(pair[0], lambda size: Power(size, 2))
        return self._pairwise(Multiply, pair)

    def quotient(self, first: Tensor, second: Tensor) -> Tensor:
        """The quotient of two tensors, broadcast."""
        shape = np.broadcast_shapes(first.shape, second.shape)
        return self._pairwise(Divide, [self.broadcast(x, shape) for x in (first, second)])

    def _pairwise(self, make: Callable[[int], Bivariate], pair: Sequence[Tensor]) -> Tensor:
        """A function of two tensors of one shape."""
        names, index = self._aligned(pair)
        made = self.apply(
            make(self.sizes[names[0]]), *names, neurons=Neurons.of(self._label(), index)
        )
        return Tensor(made, self.sizes[made], index)

    def _aligned(self, tensors: Sequence[Tensor]) -> tuple[list[str], IntArray]:
        """Vectors with the entries of each tensor in one common order, and that order."""
        index = tensors[0].index
        if all(t.is_permutation and np.array_equal(t.index, index) for t in tensors):
            return [tensor.source for tensor in tensors], index
        names = [self.flat(tensor) for tensor in tensors]
        return names, np.arange(index.size).reshape(index.shape)

    def maximum(self, first: Tensor, second: Tensor) -> Tensor:
        """max(a, b) = b + relu(a - b), broadcast; see `onnxcert.ops.maximum`.

        Executors compare: they make no roundings here, nor in the next three.
        """
        shape = np.broadcast_shapes(first.shape, second.shape)
        pair = [self.broadcast(tensor, shape) for tensor in (first, second)]
        (a, b), index = self._aligned(pair)
        size = self.sizes[a]
        difference = self.apply(Sum(size, (1, -1)), a, b, roundings=0)
        gap = self.activate(Relu(size), difference, index)
        return Tensor(self.apply(Maximum(size), a, b, gap.source), size, index)

    def maximum_with(self, tensor: Tensor, floor: FloatArray) -> Tensor:
        """max(x, c) = relu(x - c) + c: one relu, so that interval bounds stay exact."""
        shifted = self.scale(tensor, None, -floor, roundings=0)
        return self.scale(self.elementwise(shifted, Relu), None, floor, roundings=0)

    def minimum_with(self, tensor: Tensor, ceiling: FloatArray) -> Tensor:
        """min(x, c) = c - relu(c - x)."""
        minus = np.array(-1.0)
        shifted = self.scale(tensor, minus, ceiling, roundings=0)
        return self.scale(self.elementwise(shifted, Relu), minus, ceiling, roundings=0)

    # Decisions: executors compare and look up, they make no roundings here either.

    def fixed(self, operand: Operand) -> Operand:
        """The operand; a constant where it is made of inputs that may have one value only."""
        if isinstance(operand, Constant) or operand.source != self.input or self.limits is None:
            return operand
        lower, upper = self.limits(operand.index.ravel())
        if operand.fill is not None or not (lower == upper).all():
            return operand
        return Constant(lower.reshape(operand.shape))

    def difference(self, first: Operand, second: Operand) -> Tensor:
        """x - y, broadcast, of which one is computed."""
        if isinstance(second, Constant):
            assert isinstance(first, Tensor)
            return self.scale(first, None, -second.numbers, roundings=0)
        if isinstance(first, Constant):
            return self.scale(second, np.array(-1.0), first.numbers, roundings=0)
        return self.sum([first, second], (1, -1), roundings=0)

    def computed(self, operand: Operand) -> Tensor:
        """The operand as a tensor; entries of a constant are filled in."""
        if isinstance(operand, Tensor):
            return operand
        nowhere = np.full(operand.shape, -1, dtype=np.int64)
        return Tensor(self.input, self.sizes[self.input], nowhere, operand.numbers)

    def choose(self, truth: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """The first where a truth is 1, the second where it is 0: y + c (x - y)."""
        gap = self.difference(first, second)
        return self.sum([second, self.product(truth, gap)], (1, 1), roundings=0)

    def is_whole(self, tensor: Tensor) -> bool:
        """Whether all entries are whole numbers, whatever the input is."""
        filled = tensor.fill is None or bool((tensor.fill == np.floor(tensor.fill)).all())
        return tensor.source in self.whole and filled

    def is_zero(self, whole: Tensor) -> Tensor:
        """1 where a whole number is zero, else 0: relu(1 - |x|), which is continuous in x."""
        size = self.elementwise(whole, Absolute)
        rest = self.scale(size, np.array(-1.0), np.array(1.0), roundings=0)
        return self.elementwise(rest, Relu)

    def all_of(self, truths: Sequence[Tensor]) -> Tensor:
        """1 where all of some truths (0 or 1) are 1, else 0: relu(their sum - their number + 1)."""
        total = self.sum(truths, (1,) * len(truths), roundings=0)
        beyond = np.array(1.0 - len(truths))
        return self.elementwise(self.scale(total, None, beyond, roundings=0), Relu)

    def lookup(self, table: Table) -> Tensor:
        """What a table says: base + sum over combinations of indicator times difference."""
        found = table.entries()
        combinations, row = np.unique(found.combination, return_inverse=True)
        indicator = self._indicator(table.keys, combinations)
        shape = len(combinations), found.base.size
        op: Operator
        if pays_sparse(shape[0] * shape[1], len(row)):
            op = SparseLinear(row, found.position, found.difference, shape, found.base)
        else:
            weight = np.zeros(shape)
            weight[row, found.position] = found.difference
            op = Linear(weight, found.base)
        return Tensor.whole(self.apply(op, self.flat(indicator), roundings=0), table.shape)

    def _indicator(self, keys: Keys, combinations: IntArray) -> Tensor:
        """1 where a combination of keys is met, and 0 elsewhere: one entry for each."""
        values = np.unravel_index(combinations, [key.count for key in keys])
        truths = [
            self.moved([self._hats(key)], lambda x, at=at: x[at])
            for key, at in zip(keys, values, strict=True)
        ]
        return truths[0] if len(keys) == 1 else self.all_of(truths)

    def _hats(self, key: Key) -> Tensor:
        """For each value of a key 1 where it has that, else 0."""
        if key not in self._hats_of:
            value = Tensor(key.source, self.sizes[key.source], np.full(key.count, key.position))
            values = np.arange(key.low, key.high + 1, dtype=np.float64)
            self._hats_of[key] = self.is_zero(self.scale(value, None, -values, roundings=0))
        return self._hats_of[key]

    def negative(self, tensor: Tensor) -> Tensor:
        """Minus the tensor."""
        return self.scale(tensor, np.array(-1.0), None, roundings=0)


def _decode(code: IntArray, source: str, size: int, pool: FloatArray) -> Tensor:
    """Turn moved codes back: positions below ``size``, entries of the pool from there on."""
    code = np.asarray(code)
    fixed = code >= size
    if not fixed.any():
        return Tensor(source, size, code)
    fill = np.where(fixed, pool[np.where(fixed, code - size, 0)], 0.0)
    return Tensor(source, size, np.where(fixed, -1, code), fill)
