"""The first question: does the network have an input that satisfies the query?

This is the one place where files, search and replay meet: read both, compare the model as read with
onnxruntime, hand the query's problems to the solver one batch after the other, and let a
counterexample pass only after the original file produced it and the exact query accepted it.

The module is not called ``verify``: importing a submodule sets an attribute of that name on the
package, which would hide the function `onnxcert.verify`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from onnxcert.arrays import (
    UNIT_ROUNDOFF_FLOAT32,
    Array,
    Device,
    FloatArray,
    keep_freed_memory,
    select_device,
)
from onnxcert.bounds.crown import Bounds, crown_bounds, output_bounds
from onnxcert.continuity.first_pass import CasesByConstants
from onnxcert.errors import InputError, ModelError, SpecError, UnsupportedModel, UsageError
from onnxcert.files import check_writable, write_file
from onnxcert.frontend.products import with_products
from onnxcert.frontend.replay import Replayer, check_lowering
from onnxcert.instance import Files, Instance, SpecSource
from onnxcert.proof.certify import (
    EXECUTED,
    REAL,
    TOOL,
    Certificate,
    Certifier,
    Doubt,
    Expired,
    Refusal,
    Rejected,
    Unusable,
    Verified,
    natural_semantics,
)
from onnxcert.proof.trace import InputTrees
from onnxcert.proof.watch import Watch
from onnxcert.search.candidates import Candidates
from onnxcert.search.cases import Cases
from onnxcert.search.deadline import Deadline
from onnxcert.search.sampling import Sampling
from onnxcert.search.solve import Failure, Solver
from onnxcert.sets import Box
from onnxcert.settings import Settings
from onnxcert.spec import Problem, Query
from onnxcert.verdict import (
    Counterexample,
    Progress,
    Proof,
    Reason,
    Result,
    Sat,
    Unknown,
    Unsat,
    Verdict,
)

if TYPE_CHECKING:
    from onnxcert.instance import ModelSource

_log = logging.getLogger(__name__)

_ROUNDING_SECONDS, _ROUNDING_FACTOR = 10.0, 30.0
"""How long a proof for every execution may take: this, plus so many times what the reals took."""

_SAMPLING_SECONDS = 60.0
"""How long points of a model that cannot be read are tried, at most."""

_REPAIRS = 3
"""How often a proof that the checker refuses is repaired."""


def verify(  # noqa: PLR0913 - all but two are keywords with defaults
    model: ModelSource | Mapping[str, ModelSource],
    spec: SpecSource,
    *,
    timeout: float | None = None,
    device: str = "auto",
    seed: int = 0,
    settings: Settings | None = None,
    progress: Callable[[Progress], None] | None = None,
    semantics: str = "auto",
    certificate: str | os.PathLike[str] | None = None,
    certified: bool = True,
) -> Result:
    """Decide whether the query has a solution.

    Args:
        model: path of an ``.onnx`` or ``.onnx.gz`` file, or a model object. Of a query over several
            networks the models of all that are not equal to another one, by name.
        spec: path of a VNN-LIB file, a query, or a specification built in code.
        timeout: seconds, from this call; None for no limit.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        seed: of all random choices; the same seed and enough time give the same run.
        settings: options; None for the defaults.
        progress: called now and then from this thread.
        semantics: the arithmetic that ``Unsat`` speaks of. ``real``: the exact weights of the file
            and no rounding. ``ieee32-any-order``: every binary32 execution in any order of
            summation, and the reals too. ``auto``: what the query is typed for, real for VNN-LIB
            1.0 and for 2.x queries of type real, else every execution.
        certificate: where to write the certificate of ``Sat`` or ``Unsat``.
        certified: whether the checker has to accept the certificate before ``Unsat`` is returned.

    Returns:
        The verdict with bounds, times and statistics. ``Unsat`` was proved to the checker, unless
        ``certified`` is False; ``Sat`` was replayed in onnxruntime with zero tolerance.

    Raises:
        InputError: a file cannot be read, or the two do not fit together; or the model holds
            operators without a rule, and no point that was tried is a witness.
        UsageError: the arguments make no sense.
    """
    if timeout is not None and not (timeout > 0 and math.isfinite(timeout)):
        raise UsageError(f"the timeout is a positive number of seconds, not {timeout}")
    if semantics not in ("auto", REAL, EXECUTED):
        raise UsageError(f"there is no semantics {semantics!r}", help=f"auto, {REAL} or {EXECUTED}")
    if certificate is not None:
        check_writable(certificate)
    run = _Run(
        Deadline(math.inf if timeout is None else timeout),
        settings or Settings(),
        select_device(device),
        seed,
        progress or (lambda moment: None),
        semantics,
        certificate,
        certified,
    )
    keep_freed_memory()
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        verdict = run.answer(model, spec)
    return run.result(verdict)


@dataclass
class _Run:
    """One call of `verify`; collects what the result reports."""

    deadline: Deadline
    settings: Settings
    device: Device
    seed: int
    report: Callable[[Progress], None]
    semantics: str
    certificate: str | os.PathLike[str] | None
    certified: bool
    query: Query | None = None
    solver: Solver | None = None
    proof: Proof | None = None
    accepted: bytes = b""
    watch: Watch | None = None
    constants: CasesByConstants | None = None
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def answer(self, model: ModelSource | Mapping[str, ModelSource], spec: SpecSource) -> Verdict:
        """Read, compare, search; an interrupt ends in a verdict like any other."""
        try:
            self.report(Progress(self.deadline.elapsed, "reading"))
            try:
                with self._timed("reading"):
                    instance = Instance.read(model, spec)
            except UnsupportedModel as error:
                verdict = self._falsify(model, spec, error)
            else:
                self._keep(instance)
                verdict = self._decide(instance)
            self._write()
            return verdict
        except KeyboardInterrupt:
            return Unknown(Reason.INTERRUPTED)
        except MemoryError:
            return Unknown(Reason.MEMORY)
        finally:
            self._stop_watching()

    def _keep(self, files: Files) -> None:
        """Note for the result what was read."""
        self.query, self.files = files.query, files.files

    def _falsify(
        self,
        model: ModelSource | Mapping[str, ModelSource],
        spec: SpecSource,
        error: UnsupportedModel,
    ) -> Verdict:
        """Look for a witness where operators have no rule, so that nothing can be proved.

        Raises:
            UnsupportedModel: the error given, if none is found.
        """
        try:
            with self._timed("reading"):
                files = Files.read(model, spec)
        except InputError:
            raise error from None
        if files.lowered.layout.products:
            raise error
        _log.warning("%s: nothing can be proved, but a witness may be found", error.cause)
        tried, found = 0, None
        with self._timed("attack"):
            try:
                for found, count in self._samples(files):
                    tried += count
                    if found:
                        break
            except ModelError:  # the runtime has no rule for them either
                raise error from None
        if found:
            self._keep(files)
            if self.semantics == "auto":
                self.semantics = natural_semantics(files.query)
            self._attest(files, found)
            return Sat(found)
        tries = f"none of {tried} points is a witness; {error.help}"
        raise UnsupportedModel(error.cause, place=error.place, help=tries) from error

    def _samples(self, files: Files) -> Iterator[tuple[Counterexample | None, int]]:
        """A witness or None for each problem of a query, and how many points were tried."""
        replayer, rng = Replayer(files.model), np.random.default_rng(self.seed)
        read = files.lowered.layout.read
        limit = self.deadline.slice(_SAMPLING_SECONDS)

        def forward(points: Array) -> FloatArray:
            return np.stack([replayer.run_flat(point) for point in points[:, read]])

        def report(count: int) -> None:
            del count
            self.report(Progress(self.deadline.elapsed, "attack"))

        for problem in files.lowered.cases:
            cases = Cases.build(problem, Device())
            confirm = files.confirmation(replayer)
            candidates = Candidates(forward, cases, confirm, files.input_type)
            yield Sampling(candidates, rng, limit, report).run()

    def _decide(self, instance: Instance) -> Verdict:
        replayer = Replayer(instance.model)
        if self.semantics == "auto":
            self.semantics = natural_semantics(instance.query)
            if self.semantics == EXECUTED:
                return self._every_execution(instance, replayer)
        return self._search(instance, replayer, self.semantics)

    def _every_execution(self, instance: Instance, replayer: Replayer) -> Verdict:
        """Answer a query typed for floating point.

        The reals come first: they are quicker, a witness serves both, and where they refute the
        query but no proof for every execution is found in many times the time, rounding is what
        stands in the way. Splitting boxes does not make it smaller.
        """
        with self._timed("reals"):
            verdict = self._search(instance, replayer, REAL, prove=False)
        if not isinstance(verdict, Unsat):
            return verdict
        patience = _ROUNDING_SECONDS + _ROUNDING_FACTOR * self.seconds["reals"]
        whole, self.deadline = self.deadline, self.deadline.slice(patience)
        try:
            verdict = self._search(instance, replayer, EXECUTED)
        finally:
            self.deadline = whole
        rounding = (Reason.TIMEOUT, Reason.INCOMPLETE, Reason.UNCONFIRMED)
        if not isinstance(verdict, Unknown) or whole.expired() or verdict.reason not in rounding:
            return verdict
        return Unknown(Reason.ROUNDING)

    def _write(self) -> None:
        """Write the certificate of the verdict, if one is asked for and was accepted."""
        if self.certificate is None or self.proof is None or not self.proof.accepted:
            return
        path = os.fspath(self.certificate)
        write_file(path, self.accepted)
        self.proof = replace(self.proof, path=path)

    def _stop_watching(self) -> None:
        if self.watch is not None:
            self.watch.close()
            self.watch = None

    def _search(
        self, instance: Instance, replayer: Replayer, semantics: str, *, prove: bool = True
    ) -> Verdict:
        """One search; its ``Unsat`` is proved to the checker, if ``prove`` and the user say so."""
        rng = np.random.default_rng(self.seed)
        executed = semantics == EXECUTED
        if not executed and self.settings.constants == "auto":
            self.constants = CasesByConstants(instance.compared)
        self.solver = solver = Solver(
            instance.searched(executed=executed).to(self.device),
            instance.confirmation(replayer),
            self.settings,
            self.device,
            self.deadline,
            rng,
            instance.input_type,
            self.report,
            execution_unit=UNIT_ROUNDOFF_FLOAT32 if executed else 0.0,
            by_constants=None if executed else self.constants,
        )
        if prove and self.certified and self.settings.watch == "auto":
            self.watch = watch = Watch(lambda: (*instance.stored(), semantics))
            solver.follow = watch.follow
            solver.follow_box = watch.follow_box
            solver.follow_neurons = watch.follow_neurons
        result: Reason | None = None
        problems: list[Problem] = []
        for number, problem in enumerate(instance.lowered.cases):
            if number == 0:
                self._compare(instance, replayer, problem, rng)
            if self.deadline.expired():
                return Unknown(Reason.TIMEOUT)
            if self.watch is not None:
                self.watch.problem(problem)
            problems.append(problem)
            answer = solver.solve(problem)
            if isinstance(answer, Counterexample):
                self._attest(instance, answer)
                return Sat(answer)
            if answer is Reason.TIMEOUT:
                return Unknown(answer)
            result = answer or result
        if result is Reason.INCOMPLETE and solver.unconfirmed:
            result = Reason.UNCONFIRMED
        if result is not None:
            return Unknown(result)
        if not prove or not (self.certified or self.certificate):
            return Unsat()
        certifier = Certifier(*instance.stored(), semantics, TOOL)
        return self._certify(instance, solver, certifier, problems)

    def _compare(
        self,
        instance: Instance,
        replayer: Replayer,
        problem: Problem,
        rng: np.random.Generator,
    ) -> None:
        """Compare the model as read with onnxruntime, on points of one of the boxes."""
        middle = len(problem.lower) // 2
        box = problem.lower[middle], problem.upper[middle]
        points = self.settings.replay_points
        with self._timed("replay"):
            check_lowering(instance.model, *box, rng, points, replayer=replayer)

    def _attest(self, instance: Files, answer: Counterexample) -> None:
        """Make the certificate of a witness, if one is asked for."""
        if self.certificate is None:
            return
        self._stop_watching()  # there is nothing to be refuted any more
        tensors = instance.query.of_kind("input")
        arrays = [answer.inputs[tensor.name] for tensor in tensors]
        flat = np.concatenate([np.asarray(array).ravel() for array in arrays])
        decimals: dict[int, Fraction] = {}
        start = 0
        for tensor, array in zip(tensors, arrays, strict=True):
            exact = answer.decimals.get(tensor.name, {})
            decimals |= {start + position: value for position, value in exact.items()}
            start += np.asarray(array).size
        certifier = Certifier(*instance.stored(), REAL, TOOL)
        try:
            self._check(certifier, certifier.witness(instance.split(flat), decimals))
        except Unusable as error:
            self.proof = Proof(accepted=False, message=str(error))

    def _certify(
        self,
        instance: Instance,
        solver: Solver,
        certifier: Certifier,
        problems: Sequence[Problem],
    ) -> Verdict:
        """Make the certificate, have it checked, and repair what is refused."""
        self.report(Progress(self.deadline.elapsed, "checking"))
        try:
            with self._timed("checking"):
                for problem in problems:
                    certifier.add(problem)
                certificate = self._refutation(certifier, solver)
                refused = self._check(certifier, certificate)
            for _ in range(_REPAIRS):
                if not refused or not self.certified:
                    break
                doubts = certifier.doubts(certificate, refused)
                _log.info("%d leaves were not accepted; they are proved again", len(doubts))
                answer = solver.repair(_failures(problems, doubts))
                if isinstance(answer, Counterexample):
                    self._attest(instance, answer)
                    return Sat(answer)
                if answer is not None:
                    return Unknown(answer)
                with self._timed("checking"):
                    certificate = self._refutation(certifier, solver)
                    refused = self._check(certifier, certificate)
        except Unusable as error:
            self.proof = Proof(accepted=False, message=str(error))
        except Expired:
            if self.certified:
                return Unknown(Reason.TIMEOUT)
            self.proof = Proof(accepted=False, message="the time was up before the check was done")
        assert self.proof is not None
        if self.proof.accepted or not self.certified:
            return Unsat()
        _log.warning("the checker does not accept the proof: %s", self.proof.message)
        return Unknown(Reason.UNCERTIFIED)

    def _refutation(self, certifier: Certifier, solver: Solver) -> Certificate:
        if self.constants is None:
            return certifier.refutation(solver.trace)
        return certifier.refutation(solver.trace, self.constants.hints)

    def _check(self, certifier: Certifier, certificate: Certificate) -> list[Refusal]:
        """Check a certificate; the leaves that are refused."""
        started = self.deadline.elapsed
        refused: list[Refusal] = []
        claims: tuple[str, ...] = ()
        message = ""
        try:
            claims = self._ask(certifier, certificate, refused).claims
        except Rejected as error:
            message = str(error)
        if refused:
            message = f"{len(refused)} leaves are not refuted"
        self.accepted = b"" if message else certificate.data
        self.proof = Proof(
            accepted=not message,
            claims=claims,
            leaves=certificate.leaves,
            bytes=len(certificate.data),
            seconds=self.deadline.elapsed - started,
            message=message,
        )
        return refused

    def _ask(
        self, certifier: Certifier, certificate: Certificate, refused: list[Refusal]
    ) -> Verified:
        """The checker's answer, from the process that has watched the search if there is one."""
        expired = self.deadline.expired
        if self.watch is not None:
            reply = self.watch.finish(certificate.data, certificate.groups, expired)
            if reply is None:
                self.watch = None
            else:
                answer, found = reply
                if not isinstance(answer, Verified):
                    raise answer
                refused += found
                return answer
        return certifier.check(certificate, refused, expired)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = self.deadline.elapsed
        yield
        spent = self.deadline.elapsed - started
        self.seconds[phase] = self.seconds.get(phase, 0.0) + spent

    def result(self, verdict: Verdict) -> Result:
        """Put together what was collected."""
        solver = self.solver
        statistics: dict[str, object] = {"device": str(self.device)}
        seconds = dict(self.seconds)
        if solver is not None:
            statistics |= asdict(solver.statistics) | {"unconfirmed": solver.unconfirmed}
            statistics["plan"] = solver.plan.why if solver.plan else ""
            seconds |= solver.seconds
        limit = self.deadline.limit
        settings = asdict(self.settings) | {
            "timeout": None if math.isinf(limit) else limit,
            "seed": self.seed,
        }
        return Result(
            verdict=verdict,
            query=self.query,
            bounds={} if solver is None else dict(sorted(solver.bounds.items())),
            seconds=seconds | {"total": self.deadline.elapsed},
            statistics=statistics,
            files=self.files,
            settings=settings,
            semantics=self.semantics,
            proof=self.proof,
        )


def _failures(problems: Sequence[Problem], doubts: Sequence[Doubt]) -> list[Failure]:
    """Doubts by the problems that their cases come from."""
    failures = []
    for doubt in doubts:
        trees = doubt.group if isinstance(doubt.group, InputTrees) else None
        for problem in [trees.problem] if trees else problems:
            cases = np.flatnonzero(np.isin(problem.case_disjunct, list(doubt.disjuncts)))
            if len(cases):
                box = doubt.refusal.low, doubt.refusal.high
                failures.append(
                    Failure(problem, cases, doubt.refusal.lower, trees, doubt.node, *box)
                )
    return failures


@dataclass(frozen=True)
class BoundsReport:
    """What one bounding pass proves over the input boxes of a specification.

    Attributes:
        outputs: (n_out, 2) lower and upper bounds over all boxes.
        disjuncts: number of a disjunct -> lower bound of its violation; positive refutes it.
        layers: (value, node of the file, lower, upper) per value of the graph, if asked for.
    """

    outputs: FloatArray
    disjuncts: Mapping[int, float]
    layers: Sequence[tuple[str, str, FloatArray, FloatArray]] = ()


def compute_bounds(
    model: ModelSource | Mapping[str, ModelSource],
    spec: SpecSource,
    *,
    method: str = "backward",
    layers: bool = False,
) -> BoundsReport:
    """Bound outputs, disjuncts and layers by one pass, without search.

    Args:
        model, spec: as for `verify`.
        method: ``interval`` or ``backward`` (CROWN).
        layers: also report every value of the lowered graph.

    Raises:
        InputError, UsageError: as for `verify`.
    """
    if method not in ("interval", "backward"):
        raise UsageError(f"there is no method {method!r}", help="use interval or backward")
    instance = Instance.read(model, spec)
    graph = with_products(instance.model.graph, instance.lowered.layout)
    hull: dict[str, Box] = {}
    disjuncts: dict[int, float] = {}
    keep_freed_memory()
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for problem in instance.lowered.cases:
            cases = Cases.build(problem, Device())
            for number in range(len(problem.lower)):
                box = problem.inputs.take(np.array([number]))
                found = crown_bounds(graph, box, backward=method == "backward")
                boxes = found.boxes
                if method == "backward":
                    boxes = boxes | {graph.output: output_bounds(graph, found)}
                _widen(hull, boxes)
                chosen = np.flatnonzero(problem.case_box == number)
                lower = _case_bounds(found, boxes, cases, chosen, backward=method == "backward")
                disjuncts |= zip(problem.case_disjunct[chosen].tolist(), lower, strict=True)
    if not hull:
        raise SpecError("the specification leaves no input at all", place=instance.query.source)
    output = hull[graph.output].map(lambda side: side[:, : instance.lowered.n_outputs])
    sources = {node.name: node.source for node in graph.nodes}
    return BoundsReport(
        np.stack([output.lower[0], output.upper[0]], axis=1),
        disjuncts,
        [
            (name, sources.get(name, ""), box.lower[0], box.upper[0])
            for name, box in hull.items()
            if layers
        ],
    )


def _widen(hull: dict[str, Box], boxes: Mapping[str, Box]) -> None:
    """Make the hull of every value contain the boxes."""
    for name, box in boxes.items():
        old = hull.get(name, box)
        hull[name] = Box(np.minimum(old.lower, box.lower), np.maximum(old.upper, box.upper))


def _case_bounds(
    found: Bounds, boxes: Mapping[str, Box], cases: Cases, chosen: Array, *, backward: bool
) -> list[float]:
    """Lower bounds of the largest row of each case over one box."""
    forms = cases.forms(chosen[:, None])
    graph = found.relaxation.graph
    lower = forms.over(boxes[graph.output], boxes[graph.input])
    if backward:
        lower = np.maximum(lower, forms.pull(found.relaxation).lower)
    return [float(value) for value in lower.max(axis=1)]
