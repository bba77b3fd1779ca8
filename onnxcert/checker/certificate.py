"""Checking a file: from three paths to one line, VERIFIED or REJECTED."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxcert.checker import arithmetic, container, lipschitz, witness
from onnxcert.checker.audit import Auditor
from onnxcert.checker.bounds import Bounder
from onnxcert.checker.builder import with_products
from onnxcert.checker.curves import Array
from onnxcert.checker.errors import Rejected, Unusable
from onnxcert.checker.model import Models, Part, Source, read_network, read_networks
from onnxcert.checker.needed import Unread
from onnxcert.checker.network import Network
from onnxcert.checker.spec import Case, read_spec
from onnxcert.checker.trees import Arrays, Group, Known, Refusal

REAL, EXECUTED = "real", "ieee32-any-order"
_LARGEST_KEPT = 2**25 - 2**13  # bytes, a little less than the most that glibc can be brought to


@dataclass(frozen=True)
class Verified:
    """An accepted certificate; its text is the line that the checker prints.

    Attributes:
        verdict, claims: such as ``unsat`` and ``real``, or ``sat`` and ``exact-replay``; for
            ``lipschitz`` also the norm, the inputs, and the largest constants.
        cases, leaves: how many were refuted.
        audited: how many bounds were worked out again in exact arithmetic.
    """

    verdict: str
    claims: tuple[str, ...]
    cases: int = 0
    leaves: int = 0
    audited: int = 0

    def __str__(self) -> str:
        audited = f", {self.audited} bounds audited exactly" if self.audited else ""
        return f"VERIFIED {self.verdict.upper()} ({', '.join(self.claims)}){audited}"


class Session:
    """A specification and its models, read by the checker.

    Args:
        model: the bytes of the file as it is; or, by names of the networks that the specification
            declares, the models of all that are not equal to another one, where the empty name is
            the first.
        spec: the bytes of the file.
        directory: where external data of the one model may lie.

    Raises:
        Unusable: one cannot be read, or they do not fit together.
    """

    def __init__(self, model: Models, spec: bytes, directory: Path | None = None) -> None:
        arithmetic.test()
        # The C library gives blocks of this size back to the system, to be zeroed again for the
        # next array, until one of them has been freed: a third of the time of short checks.
        np.empty(_LARGEST_KEPT, np.uint8)
        self.query = query = read_spec(spec)
        own = [network.name for network in query.networks if not network.equal_to]
        given = {"": Source(model, directory)} if isinstance(model, bytes) else model
        models = {name or own[0]: source for name, source in given.items()}
        if set(models) != set(own) or len(models) < len(given):
            raise Unusable(f"models are needed for the networks {own}, not for {[*models]}")
        self.sha256 = {
            "model_sha256": " ".join(hashlib.sha256(models[name].data).hexdigest() for name in own),
            "spec_sha256": hashlib.sha256(spec).hexdigest(),
        }
        self.parts = [
            Part(
                models[network.equal_to or network.name],
                [tensor.shape for tensor in network.of("input")],
                hidden=[tensor.onnx_name or tensor.name for tensor in network.of("hidden")],
                prefix=f"{network.name}:" if len(query.networks) > 1 else "",
            )
            for network in query.networks
        ]
        if query.version == "1.0":
            self.parts = [Part(models[own[0]], input_elements=query.n_inputs)]
        limits = query.limits
        self._network = partial(read_networks, self.parts, limits=limits, ties=query.ties)
        self.network = self._network()
        self._compare()

    def _compare(self) -> None:
        """Do the tensors of the specification and of the model belong together?"""
        query, network = self.query, self.network
        if (query.n_inputs, query.n_outputs) != (network.n_inputs, len(network.output)):
            raise Unusable(
                "the specification has other numbers of inputs or outputs than the model"
            )
        if query.version == "1.0":
            return
        for kinds, found in ((("input",), network.inputs), (("output", "hidden"), network.outputs)):
            declared = query.tensors(*kinds)
            if len(declared) != len(found):
                raise Unusable(f"the specification declares {len(declared)} {kinds[0]} tensors")
            for tensor, (name, shape, element_type) in zip(declared, found, strict=True):
                if math.prod(tensor.shape) != math.prod(shape):
                    raise Unusable(f"{tensor.name} has another shape than the model's {name}")
                if tensor.element_type not in ("real", element_type):
                    raise Unusable(f"{tensor.name} has another type than the model's {name}")

    def proved(self, *, executed: bool) -> Network:
        """The network that proofs are about, with the products of the specification at its end.

        Over the reals a larger share is one of a larger number, so where the specification only
        compares shares of one Softmax with each other, it ends before that.
        """
        return self._executed if executed else self._compared

    @cached_property
    def _executed(self) -> Network:
        """With what executions lose in constants that the file works out."""
        network = self._network(executed=True) if self.network.folded else self.network
        return with_products(network, self.query.products)

    @cached_property
    def _compared(self) -> Network:
        network = self.network
        if network.shares and self.query.only_compares(network.families):
            network = network.compared()
        return with_products(network, self.query.products)

    def bounder(
        self,
        *,
        executed: bool,
        expired: Callable[[], bool] = lambda: False,
        whole: bool = False,
    ) -> Bounder:
        """Bounds for what the specification reads of the network, or for all of it, over its
        inputs."""
        return Bounder(
            self.proved(executed=executed),
            executed=executed,
            expired=expired,
            spherical=self.query.has_balls,
            read=None if whole else self.query.read,
        )

    def check(
        self,
        certificate: bytes,
        semantics: str | None = None,
        *,
        audit: int = 0,
        jobs: int = 1,
        refused: list[Refusal] | None = None,
        expired: Callable[[], bool] = lambda: False,
        known: Known | None = None,
    ) -> Verified:
        """Check a certificate; see `check`.

        Args:
            refused: takes leaves that are not refuted, instead of an exception at the first; what
                is returned counts only if it stays empty.
            expired: asked now and then.
            known: what was refuted of it before.

        Raises:
            Rejected: it does not prove its verdict.
            Unusable: the claim cannot be checked for this model.
            Expired: the caller's time is up.
        """
        header, arrays = container.unpack(certificate)
        if header["verdict"] == "lipschitz":
            raise Unusable("a certificate of constants is checked without a specification")
        for key, digest in self.sha256.items():
            _need_hash(header, key, digest)
        if header["verdict"] == "sat":
            if header["semantics"] != REAL or semantics == EXECUTED:
                raise Rejected("R13", "semantics", "a witness is replayed, not proved")
            claims = witness.replay(self, arrays, header["decimals"])
            return Verified("sat", claims)
        claimed = header["semantics"]
        if claimed not in (REAL, EXECUTED) or (semantics == EXECUTED and claimed == REAL):
            raise Rejected("R0", "semantics", f"proved for {claimed}")
        if claimed == EXECUTED and not self.network.binary32:
            raise Unusable("the model does not compute in binary32 throughout")
        known = known or Known()
        attempt = partial(self._refute, header, arrays, audit, jobs, refused, expired, known)
        with np.errstate(all="ignore"):
            try:
                return attempt(whole=False)
            except Unread:
                if refused is not None:
                    refused.clear()
                return attempt(whole=True)

    def _refute(
        self,
        header: dict[str, Any],
        arrays: dict[str, Array],
        audit: int,
        jobs: int,
        refused: list[Refusal] | None,
        expired: Callable[[], bool],
        known: Known,
        *,
        whole: bool,
    ) -> Verified:
        stream = Arrays(arrays)
        executed = header["semantics"] == EXECUTED
        # Bounds of another network, or of another arithmetic, are other ones.
        known = known if (known.executed, known.whole) == (executed, whole) else Known()
        bounder = self.bounder(executed=executed, expired=expired, whole=whole)
        auditor = Auditor(bounder, audit, int((arrays["op"] == 0).sum()))
        group = Group(bounder, header["layers"], stream, auditor, jobs, refused, expired, known)
        headers = stream.take("group", len(arrays["group"]))
        if (headers[:, 0] == 3).sum() > 1:
            raise Rejected("R14", "group", "constants are used by more than one group")
        numbers = [stream.take("case", row[1]).astype(np.int64) for row in headers.tolist()]
        # The cases of a box that is handed on are named, but belong to the group that does so.
        own = [m for m, kind in zip(numbers, headers[:, 0], strict=True) if kind != 5]
        owner = np.full(sum(map(len, own)), -1)
        for g, members in enumerate(numbers):
            # The cases of parts of a region are those of the region.
            inherited = headers[g, 0] in (2, 4)
            if (
                (len(members) == 0) != inherited
                or (np.diff(members) <= 0).any()
                or (members >= len(owner)).any()
            ):
                raise Rejected("R0", f"group {g}", "its cases are not in order, or too many")
            if headers[g, 0] == 5:
                continue
            if (owner[members] >= 0).any():
                raise Rejected("R0", f"group {g}", "one of its cases is in another group, too")
            owner[members] = g
        cases: list[list[Case]] = [[] for _ in numbers]
        for number, case in enumerate(self.query.cases()):
            if number == len(owner):
                raise Rejected("R0", f"case {number}", "is in no group")
            cases[owner[number]].append(case)
        if sum(map(len, cases)) < len(owner):
            raise Rejected("R0", "case", "there are more cases than the specification has")
        for g, of_group in enumerate(cases):
            group.refute(of_group, numbers[g], headers[g], g)
        group.finish()
        stream.finish()
        claims = (header["semantics"],)
        return Verified("unsat", claims, len(owner), group.leaves, group.auditor.done)


def check_constants(
    certificate: bytes, model: bytes, directory: Path | None = None, semantics: str | None = None
) -> Verified:
    """Check a certificate of Lipschitz constants, which speaks of a model alone.

    Args:
        certificate, model: the bytes of the files as they are.
        directory: where external data of the model may lie.
        semantics: as for `check`.

    Raises:
        Rejected: it does not prove the constants.
        Unusable: it is about another verdict, or cannot be checked for this model.
    """
    arithmetic.test()
    header, arrays = container.unpack(certificate)
    if header["verdict"] != "lipschitz":
        raise Unusable("this certificate is checked with a specification")
    _need_hash(header, "model_sha256", hashlib.sha256(model).hexdigest())
    if header["semantics"] != REAL or semantics not in (None, REAL):
        raise Rejected("R0", "semantics", "constants are proved for the reals")
    network = read_network(model, directory=directory)
    return Verified("lipschitz", lipschitz.verify(network, header, arrays))


def check(
    certificate: str | os.PathLike[str],
    model: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
    spec: str | os.PathLike[str] | None = None,
    *,
    semantics: str | None = None,
    audit: int = 0,
    jobs: int = 1,
) -> Verified:
    """Check a certificate.

    Args:
        certificate, model, spec: files; a certificate of Lipschitz constants has no specification.
            For a specification of several networks, models by name as for `Session`.
        semantics: what must have been proved, ``real`` or ``ieee32-any-order``, which implies
            ``real``; None for what the certificate claims.
        audit: how many bounds to work out again in exact rational arithmetic.
        jobs: processes to share the work.

    Raises:
        Rejected: it does not prove its verdict.
        Unusable: a file cannot be read, or the specification is missing or too much.
    """
    if isinstance(model, Mapping):
        if spec is None:
            raise Unusable("a certificate of constants is about one model")
        sources = {name: Source(_read(path), Path(path).parent) for name, path in model.items()}
        session = Session(sources, _read(spec))
    elif spec is None:
        return check_constants(_read(certificate), _read(model), Path(model).parent, semantics)
    else:
        session = Session(_read(model), _read(spec), Path(model).parent)
    return session.check(_read(certificate), semantics, audit=audit, jobs=jobs)


def _need_hash(header: dict[str, Any], key: str, digest: str) -> None:
    if digest != header[key]:
        raise Rejected("R0", key, "the certificate is about another file")


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from error
