"""The order of layers and a few bans, read from the source; imports inside functions count too."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import onnxcert
from onnxcert.ops import OPERATORS

PACKAGE = Path(onnxcert.__file__).parent
LAYERS = [
    {"errors", "arrays", "checker"},
    {"sets", "files", "pictures", "processes"},
    {"ops"},
    {"graph", "spec", "settings", "verdict"},
    {"frontend", "passes"},
    {"bounds"},
    {"proof"},
    {"search"},
    {"instance"},
    {"verifier", "continuity"},
    {"region", "training"},
    {"bench", "report"},
    {"cli"},
    {"__init__", "__main__"},
]
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
MODULES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(PACKAGE)) for path in MODULES]
HEAVY = {"onnx", "onnxruntime", "scipy", "vnnlib", "numpy", "cupy", "google", "torch"}

every_module = pytest.mark.parametrize("path", MODULES, ids=IDS)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def part(path: Path) -> str:
    """The layer's module or package: ``ops`` for ops/relu.py, ``sets`` for sets.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def only_for_types(module: ast.Module) -> set[ast.AST]:
    """Nodes under ``if TYPE_CHECKING:``, which no program executes."""
    return {
        inner
        for node in ast.walk(module)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of imported modules, with their lines."""
    module = tree(path)
    skipped = only_for_types(module)
    for node in ast.walk(module):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the absolute name"
            source = node.module or ""
            if source == "onnxcert":  # from onnxcert import sets
                yield from ((f"onnxcert.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield source, node.lineno


@every_module
def test_imports_point_down(path: Path) -> None:
    here = part(path)
    assert here in RANK, f"{here} belongs to no layer"
    for name, line in imports(path):
        if not name.startswith("onnxcert"):
            continue
        target = [*name.split("."), "__init__"][1]
        if target not in RANK:  # a name that the package offers, loaded from its home
            target = onnxcert._HOMES.get(target, "__init__").split(".")[0]
        allowed = target == here or RANK[target] <= RANK[here] or target == "__init__"
        assert allowed, f"{path}:{line}: {here} may not import {name}"


CHECKER = [path for path in MODULES if part(path) == "checker"]


@pytest.mark.parametrize("path", CHECKER, ids=[path.name for path in CHECKER])
def test_the_checker_stands_alone(path: Path) -> None:
    """NumPy, onnx (with its protobuf) and the standard library; onnxruntime to replay witnesses."""
    for name, line in imports(path):
        top = name.split(".")[0]
        own = name == "onnxcert.checker" or name.startswith("onnxcert.checker.")
        others = {"numpy", "onnx", "google", *sys.stdlib_module_names}
        if path.name == "witness.py":
            others.add("onnxruntime")
        assert own or top in others, f"{path}:{line}: the checker may not import {name}"


def test_modules_of_one_layer_form_no_cycle() -> None:
    edges: dict[str, set[str]] = {}
    for path in MODULES:
        for name, _ in imports(path):
            target = [*name.split("."), ""][1] if name.startswith("onnxcert.") else ""
            if target in RANK and target != part(path):
                edges.setdefault(part(path), set()).add(target)
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"cycle: {' -> '.join((*trail, name))}"
        if name not in done:
            for target in edges.get(name, ()):
                visit(target, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


@every_module
def test_only_the_array_seam_imports_cupy(path: Path) -> None:
    allowed = {"arrays.py": {"cupy", "cupyx.scipy"}}
    place = path.relative_to(PACKAGE).as_posix()
    found = {name for name, _ in imports(path) if name.split(".")[0] in {"cupy", "cupyx"}}
    assert found <= allowed.get(place, set())


@every_module
def test_no_framework_is_imported(path: Path) -> None:
    banned = {"torch", "sklearn", "tensorflow", "jax", "auto_LiRPA"}
    if part(path) == "training":
        banned -= {"torch"}
    assert not {name.split(".")[0] for name, _ in imports(path)} & banned


@every_module
def test_only_the_command_line_prints(path: Path) -> None:
    if part(path) in {"cli", "__main__"} or path.name == "__main__.py":
        return
    calls = [
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and (
            (isinstance(node.func, ast.Name) and node.func.id == "print")
            or ast.unparse(node.func) in {"sys.stdout.write", "sys.stderr.write"}
        )
    ]
    assert not calls, f"{path} prints in lines {calls}"


@every_module
def test_nothing_above_asks_which_operator_it_is(path: Path) -> None:
    """Engine code asks what an operator can do; families may be asked for, final classes not."""
    if part(path) in {"ops", "passes", "frontend"}:
        return
    final = {cls.__name__ for cls in OPERATORS}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"isinstance", "issubclass"}:
            asked = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
            assert not asked & final, f"{path}:{node.lineno}"


@every_module
def test_no_handler_catches_everything(path: Path) -> None:
    if part(path) == "cli":  # the last resort that turns a fault of ours into exit code 4
        return
    for node in ast.walk(tree(path)):
        cleans_up = isinstance(node, ast.ExceptHandler) and ast.unparse(node.body[-1]) == "raise"
        if isinstance(node, ast.ExceptHandler) and not cleans_up:
            caught = ast.unparse(node.type) if node.type else ""
            assert caught not in {"", "Exception", "BaseException"}, f"{path}:{node.lineno}"


@every_module
def test_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree(path)), f"{path} has no docstring"


@pytest.mark.parametrize("cls", OPERATORS, ids=lambda cls: cls.__name__)
def test_one_operator_class_per_file(cls: type) -> None:
    same = [other.__name__ for other in OPERATORS if other.__module__ == cls.__module__]
    assert same == [cls.__name__]


def loaded(code: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter holds after running the code."""
    program = f"{code}\nimport json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize(
    "code",
    [
        "import onnxcert",
        "import onnxcert; onnxcert.__version__; dir(onnxcert)",
        "import onnxcert.cli",
        "from onnxcert.cli import main\ntry: main(['--version'])\nexcept SystemExit: pass",
    ],
)
def test_starting_loads_nothing_heavy(code: str) -> None:
    assert not loaded(code) & HEAVY


def test_errors_load_nothing_heavy() -> None:
    assert not loaded("from onnxcert import UsageError, SpecError") & HEAVY
