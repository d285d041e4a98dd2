"""Does a file declare an experiment? Decided by reading it, never by importing it.

Two looks: a search for an import of `alchemy` in the bytes, which turns almost every file away for the
price of reading it, then the syntax tree for a call of `experiment` by the name it was imported under.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ExperimentNames", "declares_experiment"]

_IMPORT = re.compile(rb"^[ \t]*(?:import[ \t].*\balchemy\b|from[ \t]+alchemy\b)", re.MULTILINE)


def declares_experiment(path: Path) -> bool:
    """Tell whether the file calls `alchemy.experiment(...)`; a file that can't be parsed counts as one.

    The import that follows then shows the syntax error in pytest's usual way.
    """
    try:
        source = path.read_bytes()
    except OSError:
        return False
    return bool(_IMPORT.search(source)) and _calls_experiment(source)


def _calls_experiment(source: bytes) -> bool:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # ValueError: null bytes
        return True
    names = ExperimentNames.of(tree)
    return any(names.is_call(node) for node in ast.walk(tree) if isinstance(node, ast.Call))


@dataclass(frozen=True, slots=True)
class ExperimentNames:
    """The names under which a file imported `alchemy` and its `experiment`."""

    modules: frozenset[str]
    functions: frozenset[str]

    @classmethod
    def of(cls, tree: ast.Module) -> ExperimentNames:
        """Find the imports, also those below the top level."""
        modules: set[str] = set()
        functions: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules |= {alias.asname or "alchemy" for alias in node.names if alias.name == "alchemy"}
            elif isinstance(node, ast.ImportFrom) and node.module == "alchemy" and not node.level:
                names = {alias.name: alias.asname or alias.name for alias in node.names}
                functions |= {names[name] for name in ("experiment",) if name in names}
                functions |= {"experiment"} if "*" in names else set()
        return cls(frozenset(modules), frozenset(functions))

    def is_call(self, node: ast.Call) -> bool:
        """Tell whether a call is one of `alchemy.experiment`."""
        function = node.func
        if isinstance(function, ast.Name):
            return function.id in self.functions
        return (
            isinstance(function, ast.Attribute)
            and function.attr == "experiment"
            and isinstance(function.value, ast.Name)
            and function.value.id in self.modules
        )
