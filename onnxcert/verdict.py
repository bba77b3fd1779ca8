"""Answers: what a run may say, and what must have happened before it may say it.

`Sat` needs a counterexample that was replayed on the original file with zero tolerance; `Unsat`
needs every subproblem closed by a bound that accounts for rounding; all else is `Unknown`, with
one of a few reasons. The words printed are those of the VNN-LIB standard, chapter 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction

from onnxcert.arrays import Array


class Reason(Enum):
    """Why there is no answer; the value is the sentence shown to the user."""

    TIMEOUT = "the time limit was reached"
    MEMORY = "the open subproblems do not fit into the memory limit"
    INCOMPLETE = (
        "no bound or witness decides the open subproblems, and they cannot be split further"
    )
    UNCERTIFIED = "the search closed everything, but the checker did not accept the proof"
    ROUNDING = "the query is typed for floating point, and only real arithmetic settles it"
    UNCONFIRMED = "points that violate the property were found, but none survived exact replay"
    INTERRUPTED = "the run was interrupted"


@dataclass(frozen=True)
class Counterexample:
    """A witness, built only by replay on the original file.

    Attributes:
        inputs: input tensor name of the query -> array in its declared shape and element type.
        outputs: output (and hidden) tensor name -> array that onnxruntime computed from them.
        decimals: input tensor name -> flat index -> exact value, for inputs that the query confines
            to an interval without any number of the element type, mostly to one decimal such as
            0.1. The witness is that decimal; ``inputs`` holds what a runtime rounds it to.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    decimals: Mapping[str, Mapping[int, Fraction]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sat:
    """The query has a solution: the property is violated."""

    counterexample: Counterexample
    word = "sat"


@dataclass(frozen=True)
class Unsat:
    """The query has no solution: the property holds, in the arithmetic that the result names."""

    word = "unsat"


@dataclass(frozen=True)
class Unknown:
    """No answer, and why."""

    reason: Reason

    @property
    def word(self) -> str:
        """``timed-out`` or ``unknown``."""
        return "timed-out" if self.reason is Reason.TIMEOUT else "unknown"


Verdict = Sat | Unsat | Unknown


@dataclass(frozen=True)
class Progress:
    """A moment of the search, as given to a progress callback.

    Attributes:
        seconds: since the call began.
        phase: ``reading``, ``attack``, ``bounds``, ``search``, ``checking`` or ``repair``.
        open, closed: subproblems.
        bound: the smallest lower bound among open subproblems (positive would be proved).
        disjuncts_open, disjuncts: cases of the query, open and in all.
    """

    seconds: float
    phase: str
    open: int = 0
    closed: int = 0
    bound: float = float("nan")
    disjuncts_open: int = 0
    disjuncts: int = 0


@dataclass(frozen=True)
class Proof:
    """What became of the certificate of a verdict.

    Attributes:
        accepted: whether the checker accepted it.
        claims: what it speaks of: ``real`` or ``ieee32-any-order``; for witnesses
            ``exact-replay`` and ``ort-replay``.
        leaves: of all trees.
        bytes: of the file.
        seconds: that the checker took.
        path: where it was written; empty if nowhere.
        message: why it was not accepted; empty if it was.
    """

    accepted: bool
    claims: tuple[str, ...] = ()
    leaves: int = 0
    bytes: int = 0
    seconds: float = 0.0
    path: str = ""
    message: str = ""


@dataclass(frozen=True)
class Result:
    """What `onnxcert.verify` returns.

    Attributes:
        verdict: `Sat`, `Unsat` or `Unknown`.
        query: the specification that was answered (`onnxcert.spec.Query`).
        bounds: running number of a disjunct -> proved lower bound of its violation (positive:
            proved impossible); only the disjuncts that were reached.
        seconds: phase -> wall seconds, and ``total``.
        statistics: counts (subproblems, attack points, ...) and the chosen plan.
        files: ``model`` and ``spec`` -> path and SHA-256 (empty for objects built in code).
        settings: every option of the run, with the seed.
        semantics: the arithmetic that ``unsat`` speaks of: ``real``, or ``ieee32-any-order`` for
            every binary32 execution, whatever its order of summation.
        proof: the certificate; None where none was made.
    """

    verdict: Verdict
    query: object
    bounds: Mapping[int, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    statistics: Mapping[str, object] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    semantics: str = "real"
    proof: Proof | None = None

    @property
    def word(self) -> str:
        """The verdict's word: ``sat``, ``unsat``, ``unknown`` or ``timed-out``."""
        return self.verdict.word
