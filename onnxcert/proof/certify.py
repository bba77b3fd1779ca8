"""Making a certificate and having it checked: what stands between the search and ``unsat``.

The checker reads the bytes of model and specification itself; here they are only handed over. For
objects built in code these are what saving them would write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np

from onnxcert import __version__
from onnxcert.arrays import Array, FloatArray, IntArray
from onnxcert.checker import Rejected, Unusable, Verified
from onnxcert.checker.certificate import EXECUTED, REAL, Session
from onnxcert.checker.container import FORMAT, pack
from onnxcert.checker.errors import Expired
from onnxcert.checker.model import Models
from onnxcert.checker.network import Network
from onnxcert.checker.trees import Refusal
from onnxcert.proof.trace import InputTrees, NeuronTrees, Trace
from onnxcert.proof.writer import CaseNumbers, Writer
from onnxcert.spec import Problem, Query

__all__ = [
    "EXECUTED",
    "REAL",
    "TOOL",
    "Certificate",
    "Certifier",
    "Doubt",
    "Expired",
    "Refusal",
    "Rejected",
    "Unusable",
    "Verified",
    "natural_semantics",
]

TOOL: Mapping[str, str] = {"name": "onnxcert", "version": __version__}
"""What the headers of certificates say about this program."""


def natural_semantics(query: Query) -> str:
    """What ``unsat`` has to speak of: the reals if the query says so, else every execution."""
    if query.version == "1.0" or all(tensor.element_type == "real" for tensor in query.tensors):
        return REAL
    return EXECUTED


@dataclass(frozen=True)
class Certificate:
    """The bytes of a certificate, and what they were made of.

    Attributes:
        data: what a file holds.
        leaves: of all trees; 0 for a witness.
        groups: as `Writer.groups`.
    """

    data: bytes
    leaves: int = 0
    groups: Sequence[tuple[InputTrees | NeuronTrees | None, IntArray, IntArray]] = ()


@dataclass(frozen=True, eq=False)
class Doubt:
    """A leaf that the checker did not accept, in the words of the search.

    Attributes:
        group: what it belongs to; None for plain bounds.
        node: of trees over inputs.
        disjuncts: the cases that are open.
        refusal: what the checker said.
    """

    group: InputTrees | NeuronTrees | None
    node: int
    disjuncts: set[int]
    refusal: Refusal


@dataclass(eq=False)
class Certifier:
    """Certificates for one query.

    Attributes:
        model, spec, directory: what the checker reads, see `Session`.
        semantics: `REAL` or `EXECUTED`.
        tool: name and version of the program, for the header.
    """

    model: Models
    spec: bytes
    directory: Path | None
    semantics: str
    tool: Mapping[str, str]

    @cached_property
    def session(self) -> Session:
        """The checker's own reading of both files.

        Raises:
            Unusable: it does not understand one of them.
        """
        return Session(self.model, self.spec, self.directory)

    @cached_property
    def _cases(self) -> CaseNumbers:
        return CaseNumbers(self.session.query)

    def add(self, problem: Problem) -> None:
        """Note a problem that the search has refuted.

        Raises:
            Unusable: the checker reads the specification in another way, or not at all.
        """
        self._cases.add(problem)

    def refutation(
        self,
        trace: Trace,
        constant: Callable[[Network], FloatArray] = lambda network: np.zeros(0),
    ) -> Certificate:
        """The certificate of ``unsat`` for a finished search.

        Args:
            trace: of the search.
            constant: hints for cases that Lipschitz constants refute, for the checker's network.
        """
        writer = Writer(self._cases)
        hints = constant(self.session.proved(executed=False)) if trace.constant else np.zeros(0)
        arrays = writer.arrays(trace, hints)
        return self._refutation(writer, arrays)

    def by_constants(self, shares: FloatArray, multipliers: FloatArray) -> Certificate:
        """A certificate of ``unsat`` that rests on Lipschitz constants (rule R14).

        Args:
            shares: a weight for each input.
            multipliers: one for each neuron, in the checker's order.

        Raises:
            Unusable: the checker does not understand one of the files.
        """
        writer = Writer(self._cases)
        arrays = writer.arrays_of_constants(np.concatenate([shares, multipliers]))
        return self._refutation(writer, arrays)

    def doubts(self, certificate: Certificate, refused: Sequence[Refusal]) -> list[Doubt]:
        """Where the search has to go on after leaves were refused."""
        doubts = []
        for refusal in refused:
            group, order, cases = certificate.groups[refusal.place]
            node = int(order[refusal.node]) if isinstance(group, InputTrees) else -1
            disjuncts = self._cases.disjuncts(cases[refusal.cases])
            doubts.append(Doubt(group, node, disjuncts, refusal))
        return doubts

    def witness(self, inputs: Sequence[Array], decimals: Mapping[int, Fraction]) -> Certificate:
        """The certificate of ``sat``.

        Args:
            inputs: one array for each input of the model, in its shape and element type.
            decimals: position in the flat input -> exact value, where no float is exact.
        """
        exact = {str(position): str(value) for position, value in decimals.items()}
        arrays = {f"x{number}": np.asarray(array) for number, array in enumerate(inputs)}
        return Certificate(pack(self._header("sat", REAL) | {"decimals": exact}, arrays))

    def check(
        self,
        certificate: Certificate,
        refused: list[Refusal] | None = None,
        expired: Callable[[], bool] = lambda: False,
    ) -> Verified:
        """Have the checker read the bytes.

        Raises:
            Rejected, Unusable, Expired: as `Session.check`.
        """
        return self.session.check(certificate.data, refused=refused, expired=expired)

    def _refutation(self, writer: Writer, arrays: Mapping[str, Array]) -> Certificate:
        header = self._header("unsat", self.semantics) | {"layers": list(writer.layers)}
        return Certificate(pack(header, arrays), writer.leaves, writer.groups)

    def _header(self, verdict: str, semantics: str) -> dict[str, object]:
        return {
            "format": FORMAT,
            "verdict": verdict,
            "semantics": semantics,
            **self.session.sha256,
            "tool": dict(self.tool),
        }
