"""Modules in `sys.modules`: replaced for one case, imported anew for it, and put back afterwards.

`lr = al.param("lr", default=1e-3)` at module level of a helper has the value of whichever case was executed
when the helper was imported. So such helpers, and all that import from them, are imported anew for each case.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from alchemy.params import readers

__all__ = ["imported_anew", "in_place"]

_Entry: TypeAlias = "tuple[dict[str, Any], str, object]"
"""A namespace, a name in it, and what stood there."""

_NOTHING = object()
_FOREIGN = (f"{sysconfig.get_path('stdlib')}/", f"{sysconfig.get_path('platstdlib')}/")


@contextmanager
def imported_anew(experiment: str) -> Iterator[None]:
    """Let modules that depend on parameters be imported anew inside; at the end put back the old ones.

    Args:
        experiment: The name of the module that its caller executes itself; it stays where it is.
    """
    before = _take_out(_dependents(experiment))
    try:
        yield
    finally:
        # Again: a module that was imported inside for the first time would keep this case's value.
        _take_out(_dependents(experiment))
        _put_back(before)


@contextmanager
def in_place(name: str, module: ModuleType) -> Iterator[None]:
    """Let `module` be the one of this name, in `sys.modules` and in its package."""
    before = [(space, key, space.get(key, _NOTHING)) for space, key in _places(name)]
    for space, key, _ in before:
        space[key] = module
    try:
        yield
    finally:
        _put_back(before)


def _places(name: str) -> list[tuple[dict[str, Any], str]]:
    """Return where a module of this name stands: in `sys.modules`, and in its package if that is imported."""
    parent, _, child = name.rpartition(".")
    package = sys.modules.get(parent)
    return [(sys.modules, name), *([(vars(package), child)] if package is not None else [])]


def _take_out(names: Iterable[str]) -> list[_Entry]:
    """Remove modules, so that the next import executes them; return what puts them back."""
    modules = [(sys.modules[name], place) for name in names for place in _places(name)]
    entries = [(space, key, space.get(key, _NOTHING)) for _, (space, key) in modules]
    for module, (space, key) in modules:
        if space.get(key) is module:  # a package may hold something else under that name
            del space[key]
    return entries


def _put_back(entries: Iterable[_Entry]) -> None:
    for space, key, before in entries:
        if before is _NOTHING:
            space.pop(key, None)
        else:
            space[key] = before


def _dependents(experiment: str) -> set[str]:
    """Return the imported modules that read parameters at module level, or import a module that does."""
    kept = {experiment, "__main__"}
    found = set(readers()) - kept
    if not found:
        return set()  # the usual case has nothing to look through
    modules = {name: module for name, module in list(sys.modules.items()) if name not in kept}
    imports = {name: _imports(module) for name, module in modules.items()}
    found = found.union(_inside(found, modules))
    while more := {
        name for name, names in imports.items() if name not in found and not found.isdisjoint(names)
    }:
        found = found.union(more, _inside(more, modules))
    return found & modules.keys()


def _inside(packages: Iterable[str], names: Iterable[str]) -> set[str]:
    """Return the names of what is inside packages: a new package must not meet its old modules."""
    prefixes = tuple(f"{package}." for package in packages)
    return {name for name in names if name.startswith(prefixes)}


def _imports(module: ModuleType) -> frozenset[str]:
    """Return the names of all modules that a module of the user's imports while it is imported itself."""
    file, package = getattr(module, "__file__", None), getattr(module, "__package__", None)
    if not isinstance(file, str) or not file.endswith(".py") or file.startswith(_FOREIGN):
        return frozenset()
    return _imports_of(file, package or "")


@cache
def _imports_of(file: str, package: str) -> frozenset[str]:
    if not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts):
        return frozenset()
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return frozenset()  # gone or changed since it was imported
    return frozenset(name for statement in _executed(tree) for name in _names(statement, package))


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what is below a node and outside of functions, whose bodies wait until they are called."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.expr)):
            yield child
            yield from _executed(child)


def _names(statement: ast.AST, package: str) -> Iterator[str]:
    """Yield the modules an import statement may name; for `from a import b` both `a` and `a.b`."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
    elif isinstance(statement, ast.ImportFrom):
        try:
            origin = resolve_name("." * statement.level + (statement.module or ""), package)
        except ImportError:
            return  # beyond the top: it can't have been executed
        yield origin
        yield from (f"{origin}.{alias.name}" for alias in statement.names)
