"""Interrupted on a real Slurm in whatever way, a training ends as if nothing had happened."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import Self

import alchemy_agent as agent
from tests.cluster.test_session import Login
from tests.support.agentlab import drop, eventually, record
from tests.support.slurmcluster import SlurmCluster

STEPS, HELD_AT = 20, 12
WALK = """
import os, pathlib, random, signal, time
import alchemy as al

exp = al.experiment("{name}", matrix={{"how": {hows}, "seed": [1]}}, resources={resources})

@exp.task(total_steps={steps}, checkpoint_every=5)
def train(ctx):
    how, is_first = ctx.param("how"), os.environ["ALCHEMY_ATTEMPT"] == "1-r0"
    ctx.walk = {{"x": 0.0}}
    for step in ctx.steps():
        ctx.walk["x"] += random.random()
        ctx.log(x=ctx.walk["x"])
        if is_first and step == {held_at}:
            pathlib.Path(f"held-{{how}}").touch()
            if how == "kill":
                kill()
            while how != "nothing" and not ctx.should_stop:
                time.sleep(0.02)
    ctx.log_eval(x=ctx.walk["x"])

def kill():
    saved = pathlib.Path(os.environ["ALCHEMY_JOB_DIR"], "checkpoints/1-r0/step-00000009")
    while not (saved / "committed.json").exists():
        time.sleep(0.02)
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
"""
PROFILE = """
[tool.alchemy.clusters.here]
patience = { grace_s = 3 }
options = ["--requeue"]
"""


class Walker(Login):
    """A user whose trainings are walks that wait, in their first attempt, for what is done to them."""

    def __init__(self, path: Path, cluster: SlurmCluster) -> None:
        super().__init__(path, cluster)
        self.env["ALCHEMY_COMMAND_POLL_S"] = "0.1"
        self.write("pyproject.toml", PROFILE)
        self.process: subprocess.Popen[str] | None = None

    def write_walk(self, name: str, *hows: str, **resources: object) -> None:
        source = WALK.format(name=name, hows=list(hows), resources=resources, steps=STEPS, held_at=HELD_AT)
        self.write(f"{name}.py", source)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.cluster.run(["scancel", "--me", "--quiet"])

    def begin(self, *files: str) -> None:
        self.process = self.start(*files, "--alchemy-cluster=here", "--junitxml=report.xml")

    def until_held(self, *hows: str) -> None:
        """Wait until these trainings are in the middle of a step."""
        paths = [self.path / f"held-{how}" for how in hows]
        eventually(lambda: all(path.exists() for path in paths) or self._has_ended())
        assert all(path.exists() for path in paths), self.end()[1]

    def _has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def end(self) -> tuple[int, str]:
        """Wait until the session has ended; return its exit code and what it printed."""
        assert self.process is not None
        output, _ = self.process.communicate(timeout=120.0)
        print(output)
        return self.process.returncode, output

    def again(self, *files: str) -> tuple[int, str]:
        self.begin(*files)
        return self.end()

    def run_dir(self, how: str) -> agent.RunDir:
        return next(run for run in self.runs() if record(run.run_json)["params"]["how"] == how)

    def result(self, how: str, attempt: str) -> dict[str, Any]:
        return record(self.run_dir(how).attempt(attempt).result)

    def reason(self, how: str, attempt: str) -> str:
        return str(record(self.run_dir(how).attempt(attempt).close)["reason"])

    def warn(self, how: str) -> None:
        """Send what Slurm sends before a time limit, by the way Slurm sends it."""
        slurm = record(self.run_dir(how).attempt("1-r0").start)["slurm"]
        task = f"{slurm['array_job_id']}_{slurm['array_task_id']}"
        self.cluster.run(["scancel", "--batch", "--signal=USR1", task])


@dataclass(frozen=True)
class Story:
    """What one command said and left, run twice."""

    walker: Walker
    first: tuple[int, str]
    second: tuple[int, str]


@pytest.fixture(scope="module")
def story(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Story:
    with Walker(tmp_path_factory.mktemp("walk"), cluster) as walker:
        walker.write_walk("walk", "nothing", "kill", "command", "warning")
        walker.begin("walk.py")
        walker.until_held("command", "warning")
        drop(walker.run_dir("command"), "graceful_stop.json")
        walker.warn("warning")
        return Story(walker, first=walker.end(), second=walker.again("walk.py"))


def test_interrupted_runs_are_errors_that_say_how_to_go_on(story: Story) -> None:
    code, output = story.first
    assert code == 20
    assert "1 passed, 3 errors" in output
    for who in ("the command graceful_stop", "SIGUSR1"):
        done = f"stopped: after {HELD_AT + 1} of {STEPS} steps by {who}"
        assert f"{done}; run the same command again to continue" in output
    assert f"checkpoint 1-r0/step-{HELD_AT:08d} is committed" in output


def test_a_stop_is_told_in_receipt_result_and_acknowledgement(story: Story) -> None:
    walker = story.walker
    for how in ("command", "warning"):
        assert walker.reason(how, "1-r0") == "stopped"
        assert walker.result(how, "1-r0")["status"] == "stopped"
        assert record(walker.run_dir(how).attempt("1-r0").exit)["code"] == 75
    (answer,) = Path(walker.run_dir("command").ack).iterdir()
    assert record(answer)["outcome"] == "applied"


def test_the_same_command_again_completes_them_all(story: Story) -> None:
    code, output = story.second
    assert code == 0
    assert "4 passed" in output
    resumed = {
        how: story.walker.result(how, "2-r0")["resumed_from"] for how in ("kill", "command", "warning")
    }
    assert resumed == {"kill": 9, "command": HELD_AT, "warning": HELD_AT}
    assert f"{STEPS}/{STEPS} (from {HELD_AT + 1})" in output
    report = (story.walker.path / "report.xml").read_text()
    assert report.count(f"[[PROPERTY|alchemy.resumed_from={HELD_AT}]]") == 2
    assert "alchemy.exact" not in report


def test_by_wish_an_interrupted_run_starts_over(cluster: SlurmCluster, tmp_path: Path) -> None:
    with Walker(tmp_path, cluster) as walker:
        walker.write_walk("wish", "warning")
        walker.begin("wish.py")
        walker.until_held("warning")
        walker.warn("warning")
        assert walker.end()[0] == 20
        assert walker.again("wish.py", "--alchemy-fresh")[0] == 0
        assert walker.result("warning", "2-r0")["resumed_from"] is None
        assert record(walker.run_dir("warning").attempt("2-r0").resume)["fresh"] is True


def test_what_had_completed_begins_anew(story: Story) -> None:
    assert story.walker.result("nothing", "2-r0")["resumed_from"] is None


def test_they_end_as_if_nothing_had_happened(story: Story) -> None:
    undisturbed = story.walker.result("nothing", "1-r0")
    for how in ("kill", "command", "warning", "nothing"):
        result = story.walker.result(how, "2-r0")
        assert result["evaluation"] == undisturbed["evaluation"]
        assert (result["metrics"], result["inexact"]) == (undisturbed["metrics"], [])


def test_a_job_knows_how_long_it_may_run(cluster: SlurmCluster, tmp_path: Path) -> None:
    login = Login(tmp_path, cluster)
    login.write(
        "remaining.py",
        """
        import os, time
        import alchemy as al
        from alchemy.loop.remaining import remaining_time
        exp = al.experiment("remaining", matrix={"n": [1, 2]}, criteria={"left": "> 0", "max": "<= 300"})
        @exp.task(total_steps=1)
        def train(ctx):
            left = remaining_time(os.environ, time.time())
            ctx.log_eval(left=left, max=left)
        """,
    )
    assert login.run("remaining.py", "--alchemy-resource", "time=5")[0] == 0


PREEMPTION = [
    "PreemptType=preempt/partition_prio",
    "PreemptMode=REQUEUE",
    "PartitionName=requeue Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE",
    "PartitionName=cancel Nodes=ALL PriorityTier=1 PreemptMode=CANCEL",
    "PartitionName=urgent Nodes=ALL PriorityTier=9 PreemptMode=OFF",
    "KillWait=30",
]


def test_preempted_it_goes_on_by_itself_where_slurm_requeues_and_by_the_same_command_where_not(
    make_cluster: Callable[..., SlurmCluster], tmp_path: Path
) -> None:
    own, modes = make_cluster(extra=PREEMPTION), ("requeue", "cancel")
    with Walker(tmp_path, own) as walker:
        for mode in modes:
            walker.write_walk(mode, mode, partition=mode, cpus=32)
        walker.begin("requeue.py", "cancel.py")
        walker.until_held(*modes)
        own.run(
            ["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true"]
        )
        code, output = walker.end()
        assert code == 20
        assert "1 passed, 1 error" in output
        assert f"preempted: stopped after {HELD_AT + 1} of {STEPS} steps by SIGTERM; run the same" in output
        assert walker.reason("cancel", "1-r0") == "preempted"
        requeued = walker.result("requeue", "1-r1")
        assert (requeued["resumed_from"], requeued["status"]) == (HELD_AT, "completed")

        assert walker.again("cancel.py")[0] == 0
        resumed = walker.result("cancel", "2-r0")
        assert (resumed["resumed_from"], resumed["evaluation"]) == (HELD_AT, requeued["evaluation"])


@pytest.mark.long
def test_a_time_limit_is_announced_early_enough_to_save(cluster: SlurmCluster, tmp_path: Path) -> None:
    with Walker(tmp_path, cluster) as walker:
        walker.write_walk("limit", "limit", time="1")
        code, output = walker.again("limit.py")
        assert code == 20
        assert "steps by SIGUSR1; run the same command again to continue" in output
        assert walker.reason("limit", "1-r0") == "stopped"
        assert walker.again("limit.py")[0] == 0
        assert walker.result("limit", "2-r0")["resumed_from"] == HELD_AT
