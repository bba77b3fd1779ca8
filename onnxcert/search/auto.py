"""Choosing how to search, by the structure of the network and of the problem; never by a name."""

from __future__ import annotations

from dataclasses import dataclass

from onnxcert.graph import Graph
from onnxcert.ops.base import Elementwise
from onnxcert.settings import Settings
from onnxcert.spec import Problem


@dataclass(frozen=True)
class Plan:
    """How one problem will be searched.

    Attributes:
        splitting: ``input``, ``neuron`` or ``none``.
        free_inputs: the largest number of inputs that vary in one box.
        neurons: nonlinear neurons of the network.
        why: one sentence for ``-v`` and the JSON record.
    """

    splitting: str
    free_inputs: int
    neurons: int
    why: str


def choose_plan(graph: Graph, problem: Problem, settings: Settings) -> Plan:
    """Split inputs where few of them vary, else neurons.

    Halving a box d times along each of k inputs makes 2^(k d) boxes, so input splits pay only for
    small k; there they beat neuron splits because all bounds of the network tighten at once. Inputs
    that the specification fixes to a decimal between two floats do not count (`Box.varies`).
    """
    free = int(problem.inputs.varies.sum(axis=1).max(initial=0))
    neurons = sum(n.op.output_size for n in graph.nodes if isinstance(n.op, Elementwise))
    splitting = settings.splitting
    if splitting == "auto":
        few = free <= settings.input_split_limit
        splitting = "input" if few and free < max(neurons, 1) else "neuron"
        why = f"{free} inputs vary and {neurons} neurons are nonlinear: {splitting} splits"
    else:
        why = f"asked for: splitting={splitting}"
    return Plan(splitting, free, neurons, why)
