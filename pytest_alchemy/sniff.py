"""Does a file declare an experiment? Decided by reading it, never by importing it.

Two looks: a search for an import of `alchemy` in the bytes, which turns almost every file away for the
price of reading it, then the syntax tree for a call of `experiment` by the name it was imported under.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

__all__ = ["declares_experiment"]

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
    nodes = list(ast.walk(tree))
    modules = {
        alias.asname or "alchemy"
        for node in nodes
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "alchemy" or (alias.name.startswith("alchemy.") and not alias.asname)
    }
    functions = {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        and node.module in {"alchemy", "alchemy.experiment"}
        and not node.level
        for alias in node.names
        if alias.name in {"experiment", "*"}
    }
    if "*" in functions:
        functions.add("experiment")
    return any(_is_call_of(node.func, modules, functions) for node in nodes if isinstance(node, ast.Call))


def _is_call_of(function: ast.expr, modules: set[str], functions: set[str]) -> bool:
    if isinstance(function, ast.Name):
        return function.id in functions
    return (
        isinstance(function, ast.Attribute)
        and function.attr == "experiment"
        and isinstance(function.value, ast.Name)
        and function.value.id in modules
    )
