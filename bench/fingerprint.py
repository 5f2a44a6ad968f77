"""What of the code a cell depends on, as one hash.

The syntax tree, without comments, docstrings and function annotations, of every first-party module
that the named ones import, transitively. Class-level annotations stay: they are behaviour. The tree is
written in a form of our own, which does not change between Python versions.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from bench.registry import ROOT

PACKAGE = "bench"
_ANNOTATIONS = {"annotation", "returns"}
_SKIPPED = {"lineno", "col_offset", "end_lineno", "end_col_offset", "ctx", "type_comment", "kind"}


def code_hash(modules: Iterable[str], root: Path = ROOT) -> str:
    """A hash of the code that the modules and all they import hold.

    Args:
        modules: dotted names of first-party modules, such as "bench.pretrain".
        root: the folder that holds the package.
    """
    parts = [f"{name}={module_hash(name, root)}" for name in closure(modules, root)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def closure(modules: Iterable[str], root: Path = ROOT) -> list[str]:
    """The first-party modules reached from the given ones, sorted."""
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(_imports(name, root))
    return sorted(seen)


def module_hash(name: str, root: Path = ROOT) -> str:
    """The hash of one module's code."""
    return _module_hash(_path(name, root))


@cache
def _module_hash(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return hashlib.sha256(_dump(tree).encode()).hexdigest()


def _path(name: str, root: Path) -> Path:
    base = root / name.replace(".", "/")
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    if not path.is_file():
        raise FileNotFoundError(f"no first-party module '{name}' under {root}")
    return path


@cache
def _imports(name: str, root: Path) -> tuple[str, ...]:
    found: set[str] = set()
    if "." in name:
        found.add(name.rpartition(".")[0])
    for node in ast.walk(ast.parse(_path(name, root).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.level:
                raise ValueError(f"{name}: relative imports hide what it depends on")
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(sorted(m for m in found if m.split(".")[0] == PACKAGE and _exists(m, root)))


def _exists(name: str, root: Path) -> bool:
    try:
        _path(name, root)
    except FileNotFoundError:
        return False
    return True


def _dump(node: object) -> str:
    if isinstance(node, ast.Constant):
        return f"{type(node.value).__name__}:{node.value!r}"
    if isinstance(node, list):
        return "[" + ",".join(_dump(item) for item in node) + "]"
    if isinstance(node, ast.AST):
        return type(node).__name__ + "(" + ",".join(_fields(node)) + ")"
    return repr(node)


def _fields(node: ast.AST) -> list[str]:
    skipped = set(_SKIPPED)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.arg):
        skipped |= _ANNOTATIONS
    fields = []
    for name, value in ast.iter_fields(node):
        # None and [] are what a Python version that lacks the field would leave out.
        if name in skipped or value is None or value == []:
            continue
        if name == "body" and isinstance(value, list) and value and _is_docstring(value[0]):
            value = value[1:]
        fields.append(f"{name}={_dump(value)}")
    return fields


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
