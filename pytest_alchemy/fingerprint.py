"""The identity of a run: what decides its result, and nothing else.

Covered: the experiment module's syntax tree without the arguments that don't change execution, the syntax
trees of the project files it imports, the case's parameters, the effective number of steps. So a comment,
a new threshold or a new seed changes the identity of no run that exists (docs/design.md, Identity).
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_alchemy.sniff import ExperimentNames

__all__ = ["CodeDigests", "fingerprint"]

_DECLARATIVE = frozenset(
    {
        "async_save", "checkpoint_every", "checkpoint_minutes", "criteria", "keep", "matrix", "resources",
        "retry", "tags",
    }
)  # fmt: skip
"""Keyword arguments of `experiment(...)` and `.task(...)` that don't change what a case executes."""


def fingerprint(code: str, facts: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hex, of a code digest and of the JSON-able facts of one run."""
    text = json.dumps({"v": 1, "code": code, **facts}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class CodeDigests:
    """Digests of experiment files together with the project files they import, each file parsed once."""

    def __init__(self) -> None:
        self._trees: dict[Path, ast.Module] = {}
        self._digests: dict[Path, str] = {}

    def of(self, path: Path, search: Sequence[Path]) -> str:
        """Return the digest of a file and of all it imports, directly or not, from `search` directories."""
        if path not in self._digests:
            files = sorted(self._closure(path, search))
            digest = hashlib.sha256()
            for file in files:
                name = file.name if file == path else _relative(file, search)
                digest.update(f"{name}\0{ast.dump(self._tree(file))}\0".encode())
            self._digests[path] = digest.hexdigest()
        return self._digests[path]

    def _closure(self, path: Path, search: Sequence[Path]) -> set[Path]:
        seen: set[Path] = set()
        waiting = [path]
        while waiting:
            file = waiting.pop()
            if file not in seen:
                seen.add(file)
                waiting += _imported_files(self._tree(file), file, search)
        return seen

    def _tree(self, path: Path) -> ast.Module:
        if path not in self._trees:
            try:
                tree = ast.parse(path.read_bytes())
            except (OSError, SyntaxError, ValueError):  # a broken file, perhaps never imported in earnest
                tree = ast.Module(body=[], type_ignores=[])
            self._trees[path] = _Executed(ExperimentNames.of(tree)).visit(tree)
        return self._trees[path]


class _Executed(ast.NodeTransformer):
    """Drops what a declaration of ours says about judging and placing, as opposed to executing."""

    def __init__(self, names: ExperimentNames) -> None:
        self._names = names
        self._experiments: set[str] = set()
        """Variables that hold an experiment."""

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        if isinstance(node.value, ast.Call) and self._names.is_call(node.value):
            self._experiments |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        self.generic_visit(node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        if self._names.is_call(node) or self._is_task(node.func):
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in _DECLARATIVE]
        return node

    def _is_task(self, function: ast.expr) -> bool:
        return (
            isinstance(function, ast.Attribute)
            and function.attr == "task"
            and isinstance(function.value, ast.Name)
            and function.value.id in self._experiments
        )


def _imported_files(tree: ast.Module, path: Path, search: Sequence[Path]) -> Iterator[Path]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _find(alias.name, search)
        elif isinstance(node, ast.ImportFrom):
            base = [path.parents[node.level - 1]] if 0 < node.level <= len(path.parents) else search
            module = node.module or ""
            yield from _find(module, base)
            for alias in node.names:
                yield from _find(f"{module}.{alias.name}".lstrip("."), base)


def _find(module: str, search: Sequence[Path]) -> Iterator[Path]:
    """Yield the source files of `a.b.c` and its packages below the first directory that has `a`."""
    parts = module.split(".") if module else []
    for directory in search:
        found = [
            candidate
            for end in range(1, len(parts) + 1)
            for base in [directory.joinpath(*parts[:end])]
            for candidate in (base / "__init__.py", base.with_suffix(".py"))
            if candidate.is_file()
        ]
        if found:
            yield from found
            return


def _relative(file: Path, search: Sequence[Path]) -> str:
    for directory in search:
        if file.is_relative_to(directory):
            return file.relative_to(directory).as_posix()
    return file.as_posix()
