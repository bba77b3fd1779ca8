"""A second process that is none: what it is told, and what it does itself, can be looked at."""

from __future__ import annotations

import pickle
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from onnxcert.arrays import IntArray
from onnxcert.checker.proof import Prover
from onnxcert.checker.trees import Group
from onnxcert.processes import IdleProcessors
from onnxcert.proof import watch
from onnxcert.proof.walks import WatchedTrees
from onnxcert.proof.watch import Reply, Watch


@dataclass
class Inside:
    """A second process that is none: messages are pickled and read at once.

    Attributes:
        answer: to the certificate.
        data, known: the certificate, and what its groups were made of.
        agreed: whether the trees walked were found in the certificate, per question.
        bounded: boxes bounded after the certificate was there.
        made: bounds of groups over neurons made after that.
        leaves: of these groups, bounded after that.
        told: kinds of messages.
        left_out: kinds of messages that do not arrive.
    """

    child: Any = None
    answer: Any = None
    data: bytes = b""
    known: list[tuple[int, IntArray]] = field(default_factory=list)
    agreed: list[bool] = field(default_factory=list)
    bounded: int = 0
    made: int = 0
    leaves: int = 0
    told: list[str] = field(default_factory=list)
    left_out: tuple[str, ...] = ()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put this in the place of the process."""
        agrees, boxes, paths, bounds = (
            *(WatchedTrees.agrees, Prover.boxes),
            *(Prover.paths, Group._bounds),
        )

        def send(parent: Watch, kind: str, make: Callable[[], Any]) -> None:
            parts = make()
            if parts is None or kind in self.left_out:
                return
            if self.child is None:
                self.child = watch._Child(*parent._begin())
            self.told.append(kind)
            getattr(self.child, kind)(*pickle.loads(pickle.dumps(parts)))

        def finish(parent: Watch, data: bytes, groups: Sequence[Any], expired: object) -> Reply:
            self.data = data
            self.known = [(parent._trees.get(id(trees), -1), order) for trees, order, _ in groups]
            self.answer = self.child.finish(data, self.known)
            return self.answer

        def noted(trees: WatchedTrees, *arguments: Any) -> bool:
            self.agreed.append(agrees(trees, *arguments))
            return self.agreed[-1]

        def counted(prover: Prover, ids: np.ndarray, *rest: Any) -> Any:
            self.bounded += len(ids) if self.data else 0
            return boxes(prover, ids, *rest)

        def walked(prover: Prover, root: Any, leaves: Any, *rest: Any) -> Any:
            self.leaves += len(leaves.case) if self.data else 0
            return paths(prover, root, leaves, *rest)

        def made(group: Group, *arguments: Any) -> Any:
            self.made += bool(self.data)
            return bounds(group, *arguments)

        monkeypatch.setattr(Prover, "paths", walked)
        monkeypatch.setattr(Group, "_bounds", made)
        monkeypatch.setattr(Watch, "_send", send)
        monkeypatch.setattr(Watch, "finish", finish)
        monkeypatch.setattr(WatchedTrees, "agrees", noted)
        monkeypatch.setattr(Prover, "boxes", counted)

    def again(self, data: bytes) -> tuple[bool, Reply]:
        """Whether the trees are found in another certificate, and the answer to it."""
        del self.agreed[:]
        self.bounded = self.made = self.leaves = 0
        answer: Reply = self.child.finish(data, self.known)
        return self.agreed == [True], answer


@dataclass
class Processes:
    """Notes the children of a run, and their answers."""

    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    answers: list[Reply | None] = field(default_factory=list)
    threads: set[threading.Thread] = field(default_factory=lambda: set(threading.enumerate()))

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have a second process from the first moment on."""
        finish, popen = Watch.finish, subprocess.Popen

        def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
            self.started.append(popen(*arguments, **options))
            return self.started[-1]

        def answer(parent: Watch, *arguments: Any) -> Reply | None:
            self.answers.append(finish(parent, *arguments))
            return self.answers[-1]

        monkeypatch.setattr(watch, "_PATIENCE", -1.0)
        monkeypatch.setattr(watch, "_LATER", 0.0)
        monkeypatch.setattr(watch, "_GRACE", 60.0)
        monkeypatch.setattr(IdleProcessors, "count", lambda idle: 1.0)
        monkeypatch.setattr(subprocess, "Popen", start)
        monkeypatch.setattr(Watch, "finish", answer)

    def assert_gone(self) -> None:
        assert self.started
        for process in self.started:
            assert process.returncode is not None
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdin.closed
            assert process.stdout.closed
        assert set(threading.enumerate()) <= self.threads
