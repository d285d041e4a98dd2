"""What changes the identity of a run, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_alchemy.fingerprint import CodeDigests, fingerprint

SOURCE = """
import alchemy as al
from helper import double
exp = al.experiment("x", criteria={"nmi": "> 0.1"}, matrix={"seed": [1, 2]})

@exp.task(total_steps=10, criteria={"loss": "< 1"})
def train(ctx):
    for step in ctx.steps():
        ctx.log(loss=double(step))
"""
HELPER = "from deep import base\ndef double(x):\n    return 2 * x\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "exp.py").write_text(SOURCE)
    (tmp_path / "helper.py").write_text(HELPER)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "__init__.py").write_text("base = 1\n")
    (tmp_path / "unrelated.py").write_text("x = 1\n")
    return tmp_path


def digest(project: Path) -> str:
    return CodeDigests().of(project / "exp.py", [project])


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("exp.py", "> 0.1", "> 0.2"),
        ("exp.py", "[1, 2]", "[1, 2, 3]"),
        ("exp.py", '{"loss": "< 1"}', '{"loss": "< 2"}'),
        ("exp.py", "    for step", "    # a comment\n\n    for step"),
        ("unrelated.py", "x = 1", "x = 2"),
    ],
)
def test_thresholds_matrix_comments_and_unrelated_files_do_not_count(
    project: Path, file: str, old: str, new: str
) -> None:
    before = digest(project)
    edit(project / file, old, new)
    assert digest(project) == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("exp.py", "loss=double(step)", "loss=double(step + 1)"),
        ("exp.py", "total_steps=10", "total_steps=20"),
        ("helper.py", "2 * x", "3 * x"),
        ("deep/__init__.py", "base = 1", "base = 2"),
    ],
)
def test_the_loop_and_what_it_imports_count(project: Path, file: str, old: str, new: str) -> None:
    before = digest(project)
    edit(project / file, old, new)
    assert digest(project) != before


def test_a_call_that_only_looks_like_a_declaration_counts(tmp_path: Path) -> None:
    path = tmp_path / "exp.py"
    digests = []
    for matrix in ("1", "2"):
        path.write_text(f"import other\nrunner = other.Runner()\nrunner.task(matrix={matrix})\n")
        digests.append(CodeDigests().of(path, [tmp_path]))
    assert digests[0] != digests[1]


def test_where_the_project_lies_does_not_count(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for path in project.rglob("*.py"):
        copy = elsewhere / path.relative_to(project)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    assert digest(elsewhere) == digest(project)


def test_parameters_and_steps_count_and_their_order_does_not() -> None:
    facts = {"params": {"a": 1, "b": 2.0}, "total_steps": 10}
    assert fingerprint("c", facts) == fingerprint("c", {"total_steps": 10, "params": {"b": 2.0, "a": 1}})
    assert fingerprint("c", facts) != fingerprint("c", {**facts, "total_steps": 11})
    assert fingerprint("c", facts) != fingerprint("c", {**facts, "params": {"a": 1, "b": 2}})
    assert fingerprint("c", facts) != fingerprint("d", facts)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
