"""Names to components, found in the source and imported only when one is looked up.

A folder of components is its own registry: the file's name is the component's id. What the plan needs
to know of one (its options and their types, its constants) is read from the syntax tree, so that
planning imports no torch and the code fingerprint of one component does not hold the others.
"""

import ast
import difflib
import importlib
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from bench.errors import BenchError

ROOT = Path(__file__).resolve().parents[1]


class UnknownNameError(BenchError, KeyError):
    """A name that no component has; the message holds the choices."""

    def __str__(self) -> str:
        return str(self.args[0])


def nearest_hint(name: object, choices: Iterable[object]) -> str:
    """' did you mean ...?' where one of `choices` is close to `name`, then the choices."""
    known = sorted(str(choice) for choice in choices)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}allowed: {', '.join(known) or 'none'}"


@cache
def parse(path: Path) -> ast.Module:
    """The syntax tree of a source file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@dataclass(frozen=True)
class Component:
    """One named class or function of a module, known by its source."""

    name: str
    module: str
    attribute: str

    @property
    def path(self) -> Path:
        """The source file."""
        return ROOT / (self.module.replace(".", "/") + ".py")

    def load(self) -> Any:
        """Import the module and return the class or function."""
        return getattr(importlib.import_module(self.module), self.attribute)

    @cached_property
    def node(self) -> ast.ClassDef | ast.FunctionDef:
        """The definition's syntax tree."""
        for node in parse(self.path).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == self.attribute:
                return node
        raise UnknownNameError(f"{self.path} defines no {self.attribute}")

    def annotations(self) -> dict[str, str]:
        """Keyword-only arguments and the source of their annotations, `seed` left out."""
        node: ast.AST = self.node
        if isinstance(node, ast.ClassDef):
            inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
            if not inits:
                return {}
            node = inits[0]
        assert isinstance(node, ast.FunctionDef)
        return {
            a.arg: ast.unparse(a.annotation) if a.annotation else "Any" for a in node.args.kwonlyargs if a.arg != "seed"
        }

    def option_types(self) -> dict[str, Any]:
        """Options and their types, resolved in the names of `bench.options` and `typing`."""
        import bench.options

        names = {**vars(typing), **vars(bench.options)}
        return {name: eval(text, dict(names)) for name, text in self.annotations().items()}

    def constant(self, name: str, default: Any = None) -> Any:
        """A class constant such as `trains = False`, read from the source."""
        for node in self.node.body:
            if not isinstance(node, ast.Assign | ast.AnnAssign):
                continue
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(target, ast.Name) and target.id == name:
                return ast.literal_eval(node.value) if node.value else default
        return default

    def module_constant(self, name: str, default: Any = None) -> Any:
        """A constant of the component's module such as `NEEDS_ENCODER = True`, read from the source."""
        for node in parse(self.path).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
                return ast.literal_eval(node.value)
        return default


class Registry(Mapping[str, Any]):
    """Component ids to classes or functions; a look-up imports that one only.

    Iterating gives the ids. `component(id)` gives what the source says without importing it.
    """

    def __init__(self, kind: str, components: Iterable[Component]):
        self.kind = kind
        self._components = {c.name: c for c in components}

    def component(self, name: str) -> Component:
        """The component of that id, not imported.

        Raises:
            UnknownNameError: no such id; names the nearest and all of them.
        """
        if name not in self._components:
            raise UnknownNameError(f"unknown {self.kind} '{name}'; {nearest_hint(name, self._components)}")
        return self._components[name]

    def __getitem__(self, name: str) -> Any:
        return self.component(name).load()

    def __contains__(self, name: object) -> bool:
        return name in self._components

    def __iter__(self) -> Iterator[str]:
        return iter(self._components)

    def __len__(self) -> int:
        return len(self._components)


def classes_in_folder(kind: str, package: str, base: str) -> Registry:
    """Every file of a package that defines a class whose bases name `base`."""
    found = []
    for path in sorted((ROOT / package.replace(".", "/")).glob("*.py")):
        for node in parse(path).body:
            if isinstance(node, ast.ClassDef) and base in {ast.unparse(b) for b in node.bases}:
                found.append(Component(path.stem, f"{package}.{path.stem}", node.name))
    return Registry(kind, found)


def functions_in_folder(kind: str, package: str, function: str) -> Registry:
    """Every file of a package that defines a function of that name."""
    found = []
    for path in sorted((ROOT / package.replace(".", "/")).glob("*.py")):
        names = {n.name for n in parse(path).body if isinstance(n, ast.FunctionDef)}
        if function in names:
            found.append(Component(path.stem, f"{package}.{path.stem}", function))
    return Registry(kind, found)
