"""Fixtures for tests that run a pytest session of their own."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

EXPERIMENT = """
import alchemy as al

exp = al.experiment(
    "scaling",
    criteria={"nmi": "> 0.1", "silhouette": "> 0.3"},
    matrix={"ctx_len": [16, 32], "seed": [1, 2, 12]},
)

@exp.task(total_steps=4, eval_every=2)
def train(ctx):
    for step in ctx.steps():
        ctx.log(loss=1.0 / (step + 1))
        if ctx.should_eval():
            ctx.log_eval(nmi=0.5, silhouette=ctx.param("ctx_len") / 64)
"""


class Project:
    """A directory with experiment files, in which pytest is run as a user would."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.path = pytester.path

    def write(self, name: str, source: str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        return path

    def run(self, *args: str | os.PathLike[str]) -> pytest.RunResult:
        """Run pytest in a process of its own, without the plugins that happen to be installed."""
        return self.pytester.runpytest_subprocess("-p", "pytest_alchemy.plugin", *args)

    def node_ids(self, *args: str | os.PathLike[str]) -> list[str]:
        """Return what pytest would run."""
        result = self.run("--collect-only", "-q", *args)
        return [line for line in result.outlines if "::" in line]

    def run_dirs(self) -> list[Path]:
        return sorted((self.path / ".alchemy" / "jobs").glob("*"))


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    """An empty project; only our plugin is loaded in its sessions."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name in ("ALCHEMY_TASK_ID", "ALCHEMY_PARAMS", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    return Project(pytester)


@pytest.fixture
def scaling(project: Project) -> Project:
    """A project with one experiment of 2 × 3 cases, in a file that `python_files` doesn't match."""
    project.write("experiments/ctx_scaling.py", EXPERIMENT)
    return project
