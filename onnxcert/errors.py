"""Every error onnxcert raises on purpose.

::

    OnnxcertError                 cause, place, help; printed as three lines
    ├── UsageError                exit code 2: the call itself makes no sense
    └── InputError                exit code 3: a file cannot be read or is not supported
        ├── ModelError            the ONNX file is missing, broken or not what it claims
        │   └── UnsupportedModel  well formed, but holds operators that have no rule
        └── SpecError             the VNN-LIB file is missing, broken or does not fit the model
            └── UnsupportedSpec   well formed, but outside the theories that are answered

Everything else that escapes is a fault of onnxcert itself (exit code 4).
"""

from __future__ import annotations


class OnnxcertError(Exception):
    """Base class: what is wrong, where, and what to do about it.

    Args:
        cause: one sentence without a full stop, starting in lower case.
        place: file, line, column or node; empty when the cause names it.
        help: what the user can do; empty when nothing can be said.
    """

    exit_code = 4

    def __init__(self, cause: str, *, place: str = "", help: str = "") -> None:  # noqa: A002
        super().__init__(cause)
        self.cause = cause
        self.place = place
        self.help = help

    def __str__(self) -> str:
        """Render as ``error: cause``, ``  --> place``, ``  help: help``."""
        lines = [f"error: {self.cause}"]
        if self.place:
            lines.append(f"  --> {self.place}")
        if self.help:
            lines.append(f"  help: {self.help}")
        return "\n".join(lines)


class UsageError(OnnxcertError):
    """The arguments of a call contradict each other or have no meaning."""

    exit_code = 2


class InputError(OnnxcertError):
    """A file cannot be read, or says something that is not supported."""

    exit_code = 3


class ModelError(InputError):
    """The ONNX file is missing, broken, or not what it claims to be."""


class UnsupportedModel(ModelError):  # noqa: N818 - names the state of the file, not an event
    """The model is well formed but holds operators that have no rule."""


class SpecError(InputError):
    """The VNN-LIB file is missing, broken, or does not fit the model."""


class UnsupportedSpec(SpecError):  # noqa: N818
    """The query is well formed but outside the theories that are answered."""
