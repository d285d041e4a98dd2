"""A session that was killed is followed by one that goes on, and the report says so."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

import alchemy_agent as agent
from tests.plugin.conftest import Project
from tests.support.agentlab import record

EXPERIMENT = """
import os, pathlib, random
import alchemy as al

exp = al.experiment("walk", criteria={"where": "> -1000"}, matrix={"seed": [3]})

@exp.task(total_steps=20, checkpoint_every=5, async_save=False)
def train(ctx):
    ctx.where = 0.0
    for step in ctx.steps():
        ctx.where += random.gauss(0, 1)
        ctx.log(where=ctx.where)
        fate = pathlib.Path(f"at-{step}")
        if fate.exists():
            number = int(fate.read_text())
            fate.unlink()
            os.kill(os.getpid(), number)
        ctx.log_eval(where=ctx.where)
"""


@pytest.fixture
def walk(project: Project) -> Project:
    project.write("walk.py", EXPERIMENT)
    return project


def meet(project: Project, step: int, number: signal.Signals) -> None:
    """Let a signal reach the training in the middle of a step."""
    project.write(f"at-{step}", str(int(number)))


def row(result: pytest.RunResult) -> str:
    """Return what the table says of the one case."""
    return next(line for line in result.outlines if line.startswith("seed=3 "))


def attempt(project: Project, name: str) -> agent.AttemptDir:
    [run] = project.run_dirs()
    return agent.RunDir(run).attempt(name)


def where(project: Project, name: str) -> str:
    """Return the last value as the attempt's result has it, digit by digit."""
    return str(re.findall(r'"where":([-\d.]+)', Path(attempt(project, name).result).read_text())[0])


def test_a_killed_session_is_gone_on_with_and_ends_where_an_undisturbed_one_does(walk: Project) -> None:
    meet(walk, 12, signal.SIGKILL)
    assert walk.run("walk.py").ret == -signal.SIGKILL
    result = walk.run("walk.py", "--junitxml=report.xml")
    result.assert_outcomes(passed=1)
    assert "20/20 (from 10)" in row(result)
    report = (walk.path / "report.xml").read_text()
    assert "[[PROPERTY|alchemy.resumed_from=9]]" in report
    assert "alchemy.exact" not in report
    resumed = where(walk, "2-r0")
    fresh = walk.run("walk.py", "--alchemy-fresh")
    assert "from" not in row(fresh)
    assert where(walk, "3-r0") == resumed


def test_a_fresh_session_leaves_the_checkpoints_of_an_interrupted_one_aside(walk: Project) -> None:
    meet(walk, 12, signal.SIGKILL)
    walk.run("walk.py")
    result = walk.run("walk.py", "--alchemy-fresh")
    assert "from" not in row(result)
    assert record(attempt(walk, "2-r0").resume)["fresh"] is True


def test_sigterm_saves_and_ends_the_session_with_its_usual_code(walk: Project) -> None:
    meet(walk, 12, signal.SIGTERM)
    result = walk.run("walk.py")
    assert result.ret == 128 + signal.SIGTERM
    receipt = record(attempt(walk, "1-r0").result)
    assert (receipt["status"], receipt["stopped"], receipt["steps"]) == ("stopped", "SIGTERM", 13)
    assert record(attempt(walk, "1-r0").close)["reason"] == "stopped"
    assert "20/20 (from 13)" in row(walk.run("walk.py"))


def test_a_warning_alone_stops_the_case_and_not_the_session(walk: Project) -> None:
    walk.write("test_other.py", "def test_other(): pass\n")
    meet(walk, 12, signal.SIGUSR1)
    result = walk.run("walk.py", "test_other.py")
    result.assert_outcomes(errors=1, passed=1)
    assert result.ret == 20
    result.stdout.fnmatch_lines(["*stopped: after 13 of 20 steps by SIGUSR1; run the same command again*"])


def test_a_run_whose_checkpoints_are_all_damaged_is_an_error_and_not_begun_anew(walk: Project) -> None:
    meet(walk, 12, signal.SIGKILL)
    walk.run("walk.py")
    [run] = walk.run_dirs()
    for marker in run.glob("checkpoints/*/*/committed.json"):
        (marker.parent / "loop.json").write_bytes(b"{}")
    result = walk.run("walk.py")
    result.assert_outcomes(errors=1)
    assert result.ret == 20
    result.stdout.fnmatch_lines(["*loop.json*", "*--alchemy-fresh*"])
    assert record(attempt(walk, "2-r0").close)["reason"] == "storage"
