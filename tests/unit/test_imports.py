"""The arrows between the rooms: `pytest_alchemy -> alchemy -> alchemy_agent -> stdlib`, and no way back."""

from __future__ import annotations

import ast
import graphlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {
    "alchemy_agent": ROOT / "agent/alchemy_agent.py",
    "alchemy": ROOT / "sdk/alchemy",
    "pytest_alchemy": ROOT / "pytest_alchemy",
}
STDLIB = sys.stdlib_module_names | {"tomllib"}  # which Python 3.10 does not have yet
# what a room may import besides the standard library; deferred: only inside a function, once it is needed
ALLOWED = {
    "alchemy_agent": set[str](),
    "alchemy": {"alchemy_agent", "alchemy", "orjson"},
    "pytest_alchemy": {"alchemy_agent", "alchemy", "pytest_alchemy"}
    | {"pytest", "pluggy", "junitparser", "orjson", "tomli"},
}
ALLOWED_DEFERRED = {
    "alchemy_agent": set[str](),
    "alchemy": {"torch", "numpy", "pynvml"},
    "pytest_alchemy": {"xdist"},
}
STARTS_PROCESSES = {"alchemy_agent", "pytest_alchemy.transport", "pytest_alchemy.gpus"}
NOT_FOR_ORDINARY_TESTS = ["alchemy", "duckdb", "junitparser", "numpy", "orjson", "paramiko", "scipy", "torch"]


@dataclass(frozen=True)
class Import:
    """One imported module, and where."""

    importer: str
    imported: str
    line: int
    deferred: bool
    for_types: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"

    @property
    def room(self) -> str:
        return self.importer.partition(".")[0]

    @property
    def top(self) -> str:
        return self.imported.partition(".")[0]


def _modules() -> dict[str, Path]:
    found = {}
    for name, place in ROOMS.items():
        for path in [place] if place.is_file() else place.rglob("*.py"):
            parts = [] if path == place else path.relative_to(place).with_suffix("").parts
            found[".".join([name, *parts]).removesuffix(".__init__")] = path
    return found


MODULES = _modules()


class _Reader(ast.NodeVisitor):
    def __init__(self, importer: str) -> None:
        self.importer = importer
        self.found: list[Import] = []
        self._deferred = self._for_types = False

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        before, self._deferred = self._deferred, True
        self.generic_visit(node)
        self._deferred = before

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _function  # noqa: N815  the names ast asks for

    def visit_If(self, node: ast.If) -> None:
        before = self._for_types
        self._for_types = before or ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in node.body:
            self.visit(child)
        self._for_types = before
        for child in node.orelse:
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.module, f"{self.importer}:{node.lineno}: relative imports are not used here"
        for alias in node.names:
            submodule = f"{node.module}.{alias.name}"
            self._add(submodule if submodule in MODULES else node.module, node.lineno)

    def _add(self, imported: str, line: int) -> None:
        self.found.append(Import(self.importer, imported, line, self._deferred, self._for_types))


def _imports(name: str, source: str) -> list[Import]:
    reader = _Reader(name)
    reader.visit(ast.parse(source))
    return [found for found in reader.found if found.imported != "__future__"]


IMPORTS = [found for name, path in MODULES.items() for found in _imports(name, path.read_text())]


def _may(found: Import) -> bool:
    if found.top in STDLIB or found.top in ALLOWED[found.room]:
        return True
    return (found.deferred or found.for_types) and found.top in ALLOWED_DEFERRED[found.room]


def test_every_room_was_read() -> None:
    assert {name.partition(".")[0] for name in MODULES} == set(ROOMS)
    assert len(IMPORTS) > 100


def test_the_reader_tells_imports_apart() -> None:
    source = "if TYPE_CHECKING:\n  import torch\nelse:\n  import json\n"
    source += "def f():\n  from alchemy import matrix, param\n"
    assert [(found.imported, found.deferred, found.for_types) for found in _imports("m", source)] == [
        ("torch", False, True),
        ("json", False, False),
        ("alchemy.matrix", True, False),
        ("alchemy", True, False),
    ]


def test_rooms_import_only_what_they_may() -> None:
    """No arrow runs back, nobody uses pytest's private parts; deferred and typing-only imports count too."""
    assert [str(found) for found in IMPORTS if not _may(found)] == []


def test_only_the_agent_and_the_edges_start_processes() -> None:
    starters = {found.importer for found in IMPORTS if found.top in {"subprocess", "multiprocessing", "pty"}}
    assert starters <= STARTS_PROCESSES


def test_modules_import_each_other_in_one_direction() -> None:
    """No cycle, deferred imports counted; imports for types alone bind nothing at run time and are not."""
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for found in IMPORTS:
        if found.imported in MODULES and not found.for_types:
            graph[found.importer].add(found.imported)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize("arguments", [["--collect-only"], []], ids=["collect", "run"])
def test_a_session_of_ordinary_tests_loads_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    """Everybody who has us installed pays for what we import."""
    (tmp_path / "test_ordinary.py").write_text("def test_sum(): assert 1 + 1 == 2\n")
    (tmp_path / "conftest.py").write_text(
        "import json, pathlib, sys\n"
        "def pytest_unconfigure():\n"
        "    pathlib.Path(__file__).with_name('modules.json').write_text(json.dumps(sorted(sys.modules)))\n"
    )
    environment = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "pytest_alchemy.plugin", *arguments],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
    )
    loaded = set(json.loads((tmp_path / "modules.json").read_text()))
    assert "pytest_alchemy.plugin" in loaded
    assert loaded.intersection(NOT_FOR_ORDINARY_TESTS) == set()
