"""The program `alchemy` beside a real session: what it sends is done, and what it lists is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import alchemy_agent as agent
from tests.plugin.conftest import Project
from tests.support.agentlab import GIVE_UP_S, eventually, record

EXPERIMENT = """
import pathlib, time
import alchemy as al

exp = al.experiment("patient", criteria={"total": "> 0"}, matrix={"lr": [0.5], "seed": [1]})

@exp.task(total_steps=1_000_000)
def train(ctx):
    ctx.total = 0.0
    ctx.steps_at = {}
    for step in ctx.steps():
        ctx.total += ctx.param("lr")
        ctx.steps_at[str(ctx.param("lr"))] = ctx.steps_at.get(str(ctx.param("lr")), 0) + 1
        if pathlib.Path("enough").exists():
            break
        time.sleep(0.002)
    pathlib.Path("seen.json").write_text(f'[{step}, {ctx.total!r}, {ctx.steps_at.get("0.25", 0)}]')
    ctx.log_eval(total=ctx.total)
"""


class Session:
    """A pytest session that runs until it is told to stop, and the program beside it."""

    def __init__(self, project: Project) -> None:
        self.path = project.path
        argv = [sys.executable, "-m", "pytest", "-p", "pytest_alchemy.plugin", "patient.py"]
        self.output = self.path / "output.txt"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(argv, cwd=self.path, stdout=output, stderr=subprocess.STDOUT)

    def alchemy(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Call the program as a user does, in the project's directory."""
        return subprocess.run(
            [sys.executable, "-m", "pytest_alchemy.cli.main", *argv],
            cwd=self.path,
            capture_output=True,
            text=True,
        )

    def command(self, *argv: str) -> dict[str, Any]:
        """Send a command that is applied; return its answer."""
        done = self.alchemy("command", "patient-train", *argv, "--json")
        assert done.returncode == 0, done.stdout + done.stderr + self.output.read_text()
        answer = json.loads(done.stdout)["answer"]
        assert (answer["outcome"], answer["attempt"]) == ("applied", "1-r0")
        return dict(answer)

    def checkpoints(self) -> dict[str, Any]:
        """Return what is listed and verified."""
        done = self.alchemy("checkpoints", "patient-train", "--verify", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(json.loads(done.stdout))


@pytest.fixture
def project(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("ALCHEMY_COMMAND_POLL_S", "0.02")
    monkeypatch.delenv("ALCHEMY_ROOT", raising=False)
    project.write("patient.py", EXPERIMENT)
    return project


def started(project: Project) -> agent.AttemptDir:
    """Return the attempt, once its loop has begun."""
    [run] = eventually(project.run_dirs)
    attempt = eventually(agent.RunDir(run).latest)
    eventually(lambda: agent.read_record(attempt.resume))
    return attempt


def test_a_session_is_updated_saved_stopped_and_completed_by_the_next_one(project: Project) -> None:
    session = Session(project)
    try:
        attempt = started(project)
        answers = [
            session.command("update_params", "lr=0.25"),
            session.command("save_checkpoint"),
            session.command("graceful_stop"),
        ]
        assert session.process.wait(GIVE_UP_S) == 20, session.output.read_text()
    finally:
        session.process.kill()
        session.process.wait()
    steps = [answer["step"] for answer in answers]
    assert steps == sorted(steps)
    refs = [answer["result"]["checkpoint"] for answer in answers]
    assert refs == [f"1-r0/step-{step:08d}" for step in steps]
    listed = session.checkpoints()
    assert [f"1-r0/{entry['name']}" for entry in listed["checkpoints"]] == refs[-2:]  # the rest is superseded
    assert all(entry["verified"] for entry in listed["checkpoints"])
    assert listed["resumes_from"] == refs[-1]
    assert record(attempt.close)["reason"] == "stopped"

    too_late = session.alchemy("command", "patient-train", "save_checkpoint")
    assert too_late.returncode == 1
    assert "attempt 1-r0 ended (stopped)" in too_late.stderr
    assert len(list(Path(attempt.run_dir.ack).iterdir())) == 3

    (project.path / "enough").touch()
    project.run("patient.py").assert_outcomes(passed=1)
    step, total, updated = json.loads((project.path / "seen.json").read_text())
    assert step == steps[-1] + 1
    assert updated == step - steps[0]  # the change holds from the next step on, and survives the resume
    assert total == 0.5 * (step + 1 - updated) + 0.25 * updated
    assert session.checkpoints()["why"] == "a next attempt starts at step 0: 2-r0 has completed the run"
