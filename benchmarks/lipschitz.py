"""Global constants beside other methods: how tight, how long, how much they certify.

::

    python benchmarks/lipschitz.py norms
    python benchmarks/lipschitz.py rigor
    python benchmarks/lipschitz.py mlps MODEL.onnx...
    python benchmarks/lipschitz.py two-layer --peer-python PYTHON
    python benchmarks/lipschitz.py deep --peer-python PYTHON
    python benchmarks/lipschitz.py shares MODEL.onnx... --data DATA.npz [--count N]
    python benchmarks/lipschitz.py extended MODEL.onnx... --data DATA.npz
    python benchmarks/lipschitz.py nodes MODEL.onnx... --data DATA.npz
    python benchmarks/lipschitz.py cached MODEL.onnx...

DATA.npz holds ``x`` (inputs as the models want them) and ``y`` (labels). PYTHON is an interpreter
with eclipse-nn and cvxpy, which run there and nowhere else. Times are CPU seconds; set
``OMP_NUM_THREADS=1``. Everything is seeded.

norms: convolution norms beside power iteration run to convergence, and beside the flattened kernel.
rigor: dense norms against rational arithmetic. mlps: mean constant over pairs of outputs for each
method. two-layer: LipSDP as a semidefinite program. deep: ECLipsE and ECLipsE-Fast on random nets
of their generator's kind. shares: certified and correct at several radii, and what an attack
leaves. extended: the cost of the certifying model in onnxruntime, as medians of ratios of runs by
turns, also with a test of the domain, and of one more read of the input alone; an attack on what it
certifies.
nodes: what its new nodes cost, from the runtime's profile, whose clock is that of the wall. cached:
constants without multipliers of an earlier run and with them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from measuring import row, timed

from onnxcert import certify, lipschitz, load_model, with_bottom_logit
from onnxcert.arrays import Array, Window
from onnxcert.continuity.ellipsoid import (
    Plan,
    choose_closed_form,
    constants,
    enclose,
    enclose_near,
    input_diagonal,
)
from onnxcert.continuity.network import Network
from onnxcert.continuity.norms import matrix_norm, operator_norm
from onnxcert.continuity.product import Calculus
from onnxcert.continuity.refine import Objective
from onnxcert.continuity.refine import refined as optimised
from onnxcert.continuity.sampled import converging_norm
from onnxcert.graph import Graph, Node
from onnxcert.ops import Convolution, Linear, Relu

RADII = (0.1, 0.3, 0.5, 1.0)

LAYERS = [
    ("1 to 16, 28 x 28, 4 x 4, stride 2", 1, 16, 4, 2, 28),
    ("16 to 32, 14 x 14, 4 x 4, stride 2", 16, 32, 4, 2, 14),
    ("32 to 32, 32 x 32, 3 x 3", 32, 32, 3, 1, 32),
    ("32 to 64, 32 x 32, 4 x 4, stride 2", 32, 64, 4, 2, 32),
    ("64 to 64, 16 x 16, 3 x 3", 64, 64, 3, 1, 16),
    ("64 to 64, 224 x 224, 3 x 3", 64, 64, 3, 1, 224),
]


def norms(options: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    row("layer", "bound / converged", "s", "flattened kernel / converged", "power 10 / converged")
    for name, channels, outputs, kernel, stride, size in LAYERS:
        before = (kernel - stride) // 2
        padding = (before, before, kernel - stride - before, kernel - stride - before)
        window = Window((channels, size, size), (kernel, kernel), (stride, stride), (1, 1), padding)
        op = Convolution(rng.normal(size=(1, outputs, channels * kernel**2)), window)
        bound, seconds = timed(lambda op=op: operator_norm(op))
        steps = 10_000 if size <= 16 else 2_000 if size <= 32 else 200
        converged = converging_norm(op, rng, steps)
        naive = matrix_norm(op.weight[0]) * -(-kernel // stride)
        short = converging_norm(op, rng, 10)
        assert bound >= converged
        ratios = (f"{value / converged:.4f}" for value in (naive, short))
        row(f"{name} ({steps} steps)", f"{bound / converged:.5f}", f"{seconds:.3f}", *ratios)


def is_positive(matrix: list[list[Fraction]]) -> bool:
    """Positive semidefinite, by elimination over the rationals."""
    rows = [list(line) for line in matrix]
    for k, line in enumerate(rows):
        if line[k] < 0 or (line[k] == 0 and any(line[k:])):
            return False
        for other in rows[k + 1 :]:
            factor = other[k] / line[k] if line[k] else Fraction(0)
            if factor:
                other[k:] = [a - factor * b for a, b in zip(other[k:], line[k:], strict=True)]
    return True


def rigor(options: argparse.Namespace) -> None:
    rng = np.random.default_rng(1)
    row("size", "matrices", "below the norm", "above it by more than 1e-6")
    for size, count in ((4, 200), (16, 60), (32, 12), (64, 3)):
        below = above = 0
        for number in range(count):
            matrix = rng.normal(size=(size, size)).astype(np.float32).astype(float)
            if number % 4 == 1:
                matrix *= 2.0 ** rng.integers(-20, 20, size=(size, size))
            if number % 4 == 2:
                matrix = np.linalg.qr(matrix)[0].astype(np.float32).astype(float)
            bound = matrix_norm(matrix)
            exact = [[Fraction(v) for v in line] for line in matrix.tolist()]
            gram = [[sum(a * b for a, b in zip(c, d, strict=True)) for d in exact] for c in exact]

            def passes(value: float, gram: list[list[Fraction]] = gram) -> bool:
                square = Fraction(value) ** 2
                shifted = [
                    [(square if i == j else 0) - g for j, g in enumerate(line)]
                    for i, line in enumerate(gram)
                ]
                return is_positive(shifted)

            below += not passes(bound)
            above += passes(bound * (1.0 - 1e-6))
        row(size, count, below, above)


def pairs_of(size: int) -> Array:
    units = np.eye(size)
    return np.array([units[i] - units[j] for i in range(size) for j in range(i)] or units)


def columns_of(graph: Graph, forms: Array) -> dict[str, tuple[float, float]]:
    """Mean constant and seconds of each method; each alone, not the best of all."""
    network = Network.read(graph)
    plan = Plan.of(network)
    diagonal = input_diagonal(graph.input_size, "2")
    product, first = timed(lambda: Calculus(network).outputs(forms))
    closed, second = timed(lambda: enclose(plan, choose_closed_form(network), diagonal))
    assert closed is not None

    def refined() -> Array:
        start = enclose(plan, choose_closed_form(network), diagonal)
        assert start is not None
        objective = Objective(plan, "2")
        least = np.full(len(forms), np.inf)
        for found in optimised(objective, objective.pack(start[1])):
            done = enclose_near(plan, *objective.unpack(found))
            if done is not None:
                least = np.minimum(least, constants(forms, done[0]))
        return least

    best, third = timed(refined, 1)
    return {
        "product": (float(product.mean()), first),
        "recursion": (float(constants(forms, closed[0]).mean()), second),
        "refined": (float(best.mean()), third),
    }


def mlps(options: argparse.Namespace) -> None:
    row("network", "product", "s", "recursion", "s", "refined", "s", "seen")
    for path in options.models:
        model = load_model(path)
        forms = pairs_of(model.graph.output_size)
        found = columns_of(model.graph, forms)
        bound = lipschitz(model, method="product", samples=2000)
        seen = bound.seen_pairs[np.tril_indices(len(bound.pairs), -1)].mean()
        cells = [f"{number:.4g}" for pair in found.values() for number in pair]
        row(Path(path).stem, *cells, f"{seen:.4g}")


def chain(weights: Sequence[Array]) -> Graph:
    nodes, value = [], "x"
    for k, weight in enumerate(weights):
        nodes.append(Node(f"z{k}", Linear(np.ascontiguousarray(weight.T)), (value,)))
        value = f"z{k}"
        if k < len(weights) - 1:
            nodes.append(Node(f"h{k}", Relu(len(weight)), (value,)))
            value = f"h{k}"
    return Graph("x", weights[0].shape[1], tuple(nodes), value)


PEER = """
import json, sys, time
import numpy as np
task, path = sys.argv[1:]
data = np.load(path)
weights = [data[f"w{k}"] for k in range(len(data.files))]
if task == "lipsdp":
    import cvxpy as cp
    first, last = weights
    n, h = first.shape[1], first.shape[0]
    started = time.process_time()
    rho, t = cp.Variable(), cp.Variable(h, nonneg=True)
    T = cp.diag(t)
    form = cp.bmat([[-rho * np.eye(n), first.T @ T], [T @ first, -2 * T + last.T @ last]])
    problem = cp.Problem(cp.Minimize(rho), [(form + form.T) / 2 << 0])
    problem.solve(solver=cp.CLARABEL)
    result = float(np.sqrt(rho.value))
else:
    import torch
    torch.set_num_threads(1)
    from eclipse_nn.LipConstEstimator import LipConstEstimator
    tensors = [torch.tensor(w, dtype=torch.float64) for w in weights]
    started = time.process_time()
    result = float(LipConstEstimator(weights=tensors).estimate(task))
print(json.dumps([result, time.process_time() - started]))
"""


def peer(python: str, task: str, weights: Sequence[Array], seconds: float) -> tuple[float, float]:
    """A constant and CPU seconds from the other interpreter; NaN where it does not end well."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.npz"
        np.savez(path, **{f"w{k}": weight for k, weight in enumerate(weights)})
        command = [python, "-c", PEER, task, str(path)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds, check=True
            )
            value, used = json.loads(done.stdout.splitlines()[-1])
        except (subprocess.SubprocessError, ValueError, IndexError):
            return np.nan, np.nan
    return float(value), float(used)


def two_layer(options: argparse.Namespace) -> None:
    rng = np.random.default_rng(2)
    row("sizes", "LipSDP", "s", "refined", "s", "refined / LipSDP", "LipSDP s / ours")
    for inputs, hidden in ((10, 20), (12, 30), (20, 40), (40, 30)):
        weights = [
            rng.normal(size=(hidden, inputs)) / np.sqrt(inputs),
            rng.normal(size=(1, hidden)) / np.sqrt(hidden),
        ]
        theirs, used = peer(options.peer_python, "lipsdp", weights, options.seconds)
        ours, needed = columns_of(chain(weights), np.eye(1))["refined"]
        cells = (f"{v:.5g}" for v in (theirs, used, ours, needed, ours / theirs, used / needed))
        row(f"{inputs}-{hidden}-1", *cells)


def deep(options: argparse.Namespace) -> None:
    row("layers x width", "product", "Fast", "s", "ECLipsE", "s", "recursion", "s", "refined", "s")
    shapes = ((2, 20), (5, 20), (5, 60), (10, 60), (20, 60), (20, 100), (50, 100), (100, 100))
    for depth, width in (*shapes, (5, 500), (5, 1000)):
        rng = np.random.default_rng(1000 * depth + width)
        sizes = [4, *[width] * (depth - 1), 1]
        weights = [rng.normal(size=(m, n)) / np.sqrt(n) for n, m in pairwise(sizes)]
        fast = peer(options.peer_python, "ECLipsE_Fast", weights, options.seconds)
        slow = (np.nan, np.nan)
        if depth * width <= options.largest:
            slow = peer(options.peer_python, "ECLipsE", weights, options.seconds)
        found = columns_of(chain(weights), np.eye(1))
        cells = [*fast, *slow, *found["recursion"], *found["refined"]]
        row(f"{depth} x {width}", *(f"{v:.5g}" for v in (found["product"][0], *cells)))


def session(model: Any, profile: str = "") -> Any:
    options = onnxruntime.SessionOptions()
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    data = model if isinstance(model, (str, bytes)) else model.SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def attacked(graph: Graph, x: Array, labels: Array, eps: float, steps: int = 60) -> Array:
    """Points of the Euclidean balls, inside [0, 1], that projected ascent finds: (N, n)."""
    rng = np.random.default_rng(3)
    found = x.copy()
    best = np.full(len(x), np.inf)
    for _ in range(2):
        move = rng.normal(size=x.shape)
        move *= eps * rng.random((len(x), 1)) / np.linalg.norm(move, axis=1, keepdims=True)
        point = np.clip(x + move, 0.0, 1.0)
        for step in range(steps + 1):
            logits = graph.forward(point)
            others = logits.copy()
            np.put_along_axis(others, labels[:, None], -np.inf, axis=1)
            rival = others.argmax(axis=1)
            rows = np.arange(len(x))
            margin = logits[rows, labels] - logits[rows, rival]
            better = margin < best
            found[better], best[better] = point[better], margin[better]
            if step == steps:
                break
            direction = np.zeros_like(logits)
            direction[rows, labels], direction[rows, rival] = -1.0, 1.0
            gradient = graph.gradient(point, lambda y, direction=direction: direction)[1]
            size = np.linalg.norm(gradient, axis=1, keepdims=True)
            point = point + eps * 0.1 * gradient / np.maximum(size, 1e-30)
            move = point - x
            length = np.linalg.norm(move, axis=1, keepdims=True)
            move *= np.minimum(1.0, eps * (1.0 - 1e-6) / np.maximum(length, 1e-30))
            point = np.clip(x + move, 0.0, 1.0)
    return found


def shares(options: argparse.Namespace) -> None:
    with np.load(options.data) as data:
        x, y = data["x"][: options.count].astype(float), data["y"][: options.count].astype(int)
    row("network", "method", *RADII, "s")
    for path in options.models:
        model = load_model(path)
        name = Path(path).stem
        for method in ("product", "refined"):
            started = time.process_time()
            bound = lipschitz(model, method=method)
            done = certify(model, x, y, eps=RADII, method="lipschitz", bound=bound)
            used = time.process_time() - started
            row(name, method, *(f"{v:.4f}" for v in done.certified), f"{used:.1f}")
        kept = done
        for method in ("backward", "union"):
            started = time.process_time()
            done = certify(model, x, y, eps=RADII, method=method, domain=(0.0, 1.0), bound=bound)
            used = time.process_time() - started
            row(name, method, *(f"{v:.4f}" for v in done.certified), f"{used:.1f}")
            assert method == "backward" or (done.robust >= kept.robust).all()
        left = []
        for number, eps in enumerate(RADII):
            worst = model.graph.forward(attacked(model.graph, x, y, eps)).argmax(axis=1)
            left.append(float((done.correct & (worst == y)).mean()))
            assert not (done.robust[number] & done.correct & (worst != y)).any()
        row(name, "attack leaves", *(f"{v:.4f}" for v in left), "")


def with_one_read(path: str) -> onnx.ModelProto:
    """The plain model and the sum of each input: the least that a test of it can cost."""
    model = onnx.load(path)
    inner = {entry.name for entry in model.graph.initializer}
    name = next(value.name for value in model.graph.input if value.name not in inner)
    graph = model.graph
    if next(entry.version for entry in model.opset_import if not entry.domain) < 13:
        node = onnx.helper.make_node("ReduceSum", [name], ["sum"], axes=[1])
    else:
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axis"))
        node = onnx.helper.make_node("ReduceSum", [name, "axis"], ["sum"])
    graph.node.append(node)
    graph.output.append(onnx.helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, None))
    return model


def extended(options: argparse.Namespace) -> None:
    with np.load(options.data) as data:
        x, y = data["x"].astype(np.float32), data["y"].astype(int)
    header = ("plain s", "extended s", "overhead", "with the test", "one read", "labels equal")
    row("network", "writing s", *header, "VRA", "certified", "broken", "slack")
    rng = np.random.default_rng(0)
    for path in options.models:
        model, making = timed(lambda path=path: with_bottom_logit(path, options.eps), 1)
        tested = with_bottom_logit(path, options.eps, test_domain=True)
        ran = [session(path), *map(session, (model, tested, with_one_read(path)))]
        plain, more = ran[:2]
        name = plain.get_inputs()[0].name
        times = np.zeros((options.rounds, len(ran)))
        for line in times:  # by turns, each time in another order
            for k in rng.permutation(len(ran)):
                started = time.process_time()
                ran[k].run(None, {name: x})
                line[k] = time.process_time() - started
        overheads = np.median(times[:, 1:] / times[:, :1], axis=0) - 1.0
        logits = plain.run(None, {name: x})[0]
        outputs, certified, _ = more.run(None, {name: x})
        label = logits.argmax(axis=1)
        graph = load_model(path).graph
        sure = np.flatnonzero(certified)[: options.count]
        rows = x[sure].reshape(len(sure), graph.input_size).astype(float)
        points = rows.astype(np.float32)
        if len(sure):
            points = attacked(graph, rows, label[sure], options.eps).astype(np.float32)
        after = plain.run(None, {name: points.reshape(-1, *x.shape[1:])})[0].argmax(axis=1)
        broken = after != label[sure]
        facts = {entry.key: entry.value for entry in model.metadata_props}
        row(
            Path(path).stem,
            f"{making:.1f}",
            *(f"{seconds:.4f}" for seconds in np.median(times[:, :2], axis=0)),
            *(f"{100.0 * share:.1f} %" for share in overheads),
            np.array_equal(logits, outputs[:, :-1]),
            f"{float((certified & (label == y)).mean()):.4f}",
            f"{float(certified.mean()):.4f}",
            f"{int(broken.sum())} of {len(sure)}",
            f"{float(facts['onnxcert.largest_slack']):.3g}",
        )
    onnx.checker.check_model(model)


def nodes(options: argparse.Namespace) -> None:
    """Least microseconds of 15 runs for each new node, added up by kind."""
    with np.load(options.data) as data:
        x = data["x"].astype(np.float32)
    row("network", "reads of the input", "gathers", "others", "nodes")
    for path in options.models:
        model = with_bottom_logit(path, options.eps)
        inputs = {value.name for value in model.graph.input}
        new = [node for node in model.graph.node if node.name.startswith("onnxcert/")]
        kinds = {
            node.name: "reads" if inputs & set(node.input) else node.op_type
            for node in new
            if inputs & set(node.input) or node.op_type == "Gather"
        }
        with tempfile.TemporaryDirectory() as folder:
            measured = session(model, profile=str(Path(folder) / "profile"))
            name = measured.get_inputs()[0].name
            for _ in range(15):
                measured.run(None, {name: x})
            events = json.loads(Path(measured.end_profiling()).read_text(encoding="utf-8"))
        least: dict[str, float] = {}
        for event in events:
            if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
                node = event["name"].removesuffix("_kernel_time")
                least[node] = min(least.get(node, np.inf), event["dur"])
        sums = dict.fromkeys(("reads", "Gather", "others"), 0.0)
        for node in new:
            sums[kinds.get(node.name, "others")] += least[node.name]
        row(Path(path).stem, *(f"{v:.0f}" for v in sums.values()), len(new))


def cached(options: argparse.Namespace) -> None:
    row("network", "first s", "again s", "bytes", "equal")
    for path in options.models:
        model = load_model(path)
        with tempfile.TemporaryDirectory() as folder:
            made = [
                timed(lambda: lipschitz(model, method="refined", cache=folder), 1)  # noqa: B023
                for _ in range(2)
            ]
            size = sum(file.stat().st_size for file in Path(folder).iterdir())
        (first, before), (again, after) = made
        equal = np.array_equal(first.pairs, again.pairs)
        row(Path(path).stem, f"{before:.2f}", f"{after:.2f}", size, equal)


COMMANDS = {
    "norms": norms,
    "rigor": rigor,
    "mlps": mlps,
    "two-layer": two_layer,
    "deep": deep,
    "shares": shares,
    "extended": extended,
    "nodes": nodes,
    "cached": cached,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--data")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--eps", type=float, default=0.3)
    parser.add_argument("--rounds", type=int, default=40, help="runs of each model")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--seconds", type=float, default=60.0, help="for one run of a peer")
    parser.add_argument("--largest", type=int, default=400, help="layers x width for ECLipsE")
    options = parser.parse_args()
    print(f"numpy {np.__version__}, onnxruntime {onnxruntime.__version__}\n")
    COMMANDS[options.command](options)


if __name__ == "__main__":
    main()
