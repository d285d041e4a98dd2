"""A training that is killed at any instant, or asked to stop, loses nothing. CI has the short versions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import alchemy as al
import alchemy_agent as agent
from alchemy.context import Context
from alchemy.execution import execute
from alchemy.recording.history import read_metrics
from alchemy.recording.recorder import FileRecorder
from alchemy.state.tensors import read_state
from tests.crash.attempts import Journal, Plan, committed
from tests.support.agentlab import eventually, make_attempt, plain_environment, record, start_wrapped
from tests.support.sdklab import make_spec

HERE = Path(__file__)
ROOT = HERE.parents[2]


def disturb(*arguments: str) -> None:
    """Run the driver, whose process must have no threads for its forks to be sound."""
    command = [sys.executable, "-m", "tests.crash.kill", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=plain_environment())
    assert ended.returncode == 0, ended.stdout + ended.stderr
    print(ended.stdout)


@pytest.mark.parametrize(
    "kills", [20, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(0)])], ids="{}-kills".format
)
def test_a_training_killed_at_random_instants_ends_as_if_it_had_not_been(kills: int) -> None:
    disturb("--kills", str(kills), "--seed", "1")


@pytest.mark.parametrize(
    "kills", [8, pytest.param(300, marks=[pytest.mark.long, pytest.mark.timeout(0)])], ids="{}-signals".format
)
def test_a_training_asked_to_stop_at_random_instants_loses_no_step_at_all(kills: int) -> None:
    disturb("--signal", "TERM", "--kills", str(kills), "--seed", "2")


def test_an_ordinary_program_under_the_wrapper_goes_on_when_it_is_started_again(tmp_path: Path) -> None:
    job_dir = tmp_path / "job"
    run_dir = agent.RunDir(job_dir)
    environment = plain_environment(ALCHEMY_PARAMS='{"seed": 11, "lr": 0.01, "noise": 0.05}')

    def start(journal: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.crash.attempts", str(tmp_path / journal)]
        return start_wrapped(job_dir, command, cwd=ROOT, env=environment)

    with start("first") as first:
        eventually(lambda: committed(run_dir))
        os.killpg(first.pid, signal.SIGKILL)
    newest = committed(run_dir)[-1]
    with start("second") as second:
        eventually(lambda: len(committed(run_dir)) > 2 or None)
        second.terminate()  # the wrapper, which passes it on
        _, errors = second.communicate()
        assert second.returncode == 75, errors
    stopped = Journal.read(tmp_path / "second").steps()
    assert stopped[0] == newest.step + 1
    with start("third") as third:
        _, errors = third.communicate()
        assert third.returncode == 0, errors
    last = Journal.read(tmp_path / "third").steps()
    assert last == list(range(stopped[-1] + 1, Plan().total_steps))
    assert [row["step"] for row in read_metrics(run_dir)] == list(range(Plan().total_steps))


@pytest.mark.parametrize("steps", [40, pytest.param(500, marks=pytest.mark.long)])
def test_no_checkpoint_has_the_values_of_two_steps_though_training_goes_on_while_it_is_written(
    steps: int, tmp_path: Path
) -> None:
    def train(ctx: Context) -> None:
        ctx.model = torch.nn.ParameterList([torch.zeros(100_000) for _ in range(4)])
        ctx.count = 0
        ctx.nested = {"counts": [0]}
        with torch.no_grad():
            for step in ctx.steps():
                for tensor in ctx.model:
                    tensor.fill_(step)
                ctx.count = step
                ctx.nested["counts"][0] = step

    attempt = make_attempt(tmp_path)
    task = al.experiment("demo", matrix={"seed": [1]}).task(
        train, total_steps=steps, name="train", checkpoint_every=1, keep=steps
    )
    execute(task, make_spec(HERE, {"seed": 1}, total_steps=steps), FileRecorder(attempt, "inc"))
    found = committed(attempt.run_dir)
    assert [checkpoint.step for checkpoint in found] == list(range(steps))
    for checkpoint in found:
        state: dict[str, torch.Tensor] = read_state(str(checkpoint.path / "model.pt"), mapped=False)
        assert all(bool((tensor == checkpoint.step).all()) for tensor in state.values())
        values = record(checkpoint.path / "loop.json")["values"]
        assert values["count"]["form"] == checkpoint.step
