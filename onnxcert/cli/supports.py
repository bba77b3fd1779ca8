"""``onnxcert supports``: the capabilities of the VNN-LIB standard, chapter 5, answered truthfully.

Claims are deliberately narrow. Element types: ``real``, and ``float32``, for which ``unsat`` is
said only where it holds for every order of summation in binary32. Proofs of unsat: certificates,
for the operators that the checker reads; without one a query ends ``unknown``, unless
``--uncertified`` asks for less. Networks: one. Arithmetic: polynomials. Disjunctions share their
bounds, but are enumerated case by case, so they are not claimed to be optimised. The lists of
operators and operator sets come from the registry of rules and the checker's table, never from
another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import get_args, get_type_hints

from onnxcert.cli import arguments
from onnxcert.cli.clock import Clock
from onnxcert.cli.console import Console
from onnxcert.cli.table import table
from onnxcert.settings import Settings

_DESCRIPTION = """\
Say what onnxcert can do, in the form that the VNN-LIB standard prescribes: versions as two lines,
oldest and newest; lists one per line; yes and no as true and false.
"""


def run(words: Sequence[str], console: Console, clock: Clock) -> int:
    """Print one capability."""
    parser = arguments.Parser("supports", _DESCRIPTION)
    group = parser.add_mutually_exclusive_group(required=True)
    for name in CAPABILITIES:
        group.add_argument(f"--{name}", action="store_const", const=name, dest="capability")
    options = parser.read(words)
    if options is not None:
        console.answer(CAPABILITIES[options.capability]())
    return 0


def settings_page() -> str:
    """Every setting with its default, range and meaning, made from `Settings`."""
    hints = get_type_hints(Settings)
    lines = ["settings for --set KEY=VALUE", ""]
    for option in fields(Settings):
        choices = get_args(hints[option.name])
        low, high = option.metadata["low"], option.metadata["high"]
        values = hints[option.name].__name__ if not choices else ", ".join(choices)
        if low is not None:
            values += f" >= {low}" if high is None else f" in [{low}, {high}]"
        lines.append(f"{option.name}={option.default}")
        lines.append(f"    {option.metadata['help']} ({values})")
    return "\n".join(lines) + "\n"


def _operators() -> str:
    from onnxcert.frontend.onnx import supported_operators

    return "".join(f"{name}\n" for name in supported_operators())


def certified_operators() -> list[str]:
    """The supported ONNX operators that the checker of certificates reads, sorted."""
    from onnxcert.checker.operators import OPERATORS
    from onnxcert.frontend.onnx import supported_operators

    return sorted(set(supported_operators()) & set(OPERATORS))


def certificates_page() -> str:
    """Every supported operator, and whether the checker reads it."""
    from onnxcert.frontend.onnx import supported_operators

    certified = set(certified_operators())
    rows = [
        (name, "certified" if name in certified else "not certified")
        for name in supported_operators()
    ]
    return table(("operator", "certificates"), rows)


def _certified_operators() -> str:
    return "".join(f"{name}\n" for name in certified_operators())


def _opset_versions() -> str:
    from onnxcert.frontend.onnx import opset_versions

    oldest, newest = opset_versions()
    return f"{oldest}\n{newest}\n"


def _vnnlib_versions() -> str:
    from onnxcert.frontend.vnnlib2 import KNOWN_VERSIONS

    return f"1.0\n{max(KNOWN_VERSIONS)}\n"


def _constant(*lines: str) -> Callable[[], str]:
    return lambda: "".join(f"{line}\n" for line in lines)


CAPABILITIES: Mapping[str, Callable[[], str]] = {
    "onnx-opset-versions": _opset_versions,
    "onnx-element-types": _constant("real", "float32"),
    "onnx-operators": _operators,
    "onnx-operators-unsat-proofs": _certified_operators,
    "vnnlib-versions": _vnnlib_versions,
    "hidden-node-theories": _constant("NH", "H"),
    "multiple-input-output-theories": _constant("SIO", "MIO"),
    "multiple-network-theories": _constant("SNET", "MENET", "MINET", "MNET"),
    "multiple-node-comparison-theories": _constant("SNC", "MNC"),
    "arithmetic-complexity-theories": _constant("BND", "OUTC", "LIN", "POLY"),
    "optimised-disjunctive-reasoning": _constant("false"),
    "serialise-assignments": _constant("true"),
    "unsat-proofs": _constant("true"),
    "certificates": certificates_page,
    "settings": settings_page,
}
"""Name -> what is printed. An operator without types after it takes every type that is claimed.

``certificates`` and ``settings`` are our own, all others the standard's.
"""
