"""`examples/wrapped.py`, run as its first lines say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import alchemy_agent as agent
from tests.support.agentlab import AGENT, drop, eventually, names, plain_environment, record, start_wrapped

SCRIPT = Path(__file__).parents[2] / "examples" / "wrapped.py"


def test_it_trains_alone_and_writes_nothing(tmp_path: Path) -> None:
    env = plain_environment(PYTHONPATH=str(AGENT.parent))
    command = [sys.executable, str(SCRIPT), "--pause", "0"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.startswith("y = 2.99 x -1.01"), done.stderr
    assert names(tmp_path) == []


def test_under_the_wrapper_it_leaves_a_run(tmp_path: Path) -> None:
    env = plain_environment(PYTHONPATH=str(AGENT.parent))
    command = [sys.executable, "-m", "alchemy_agent", "--", sys.executable, str(SCRIPT), "--pause", "0"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout[:16]) == (0, "y = 2.99 x -1.01"), done.stderr
    (run,) = names(tmp_path / ".alchemy" / "jobs")
    said = record(agent.RunDir(tmp_path / ".alchemy" / "jobs" / run).progress)
    assert (said["step"], said["total"]) == (200, 200)
    assert said["metrics"]["loss"] < 0.02


def test_commands_dropped_while_it_runs_change_it_and_stop_it(tmp_path: Path) -> None:
    run_dir = agent.RunDir(tmp_path / "run")
    process = start_wrapped(tmp_path / "run", [sys.executable, str(SCRIPT), "--steps", "1000000"])
    eventually(lambda: agent.read_record(run_dir.progress))
    eventually(lambda: agent.read_record(Path(run_dir.attempt("1-r0").rank(0)) / "handles.json"))
    drop(run_dir, "update_params.json", b'{"lr": 0.01}')
    answer = eventually(lambda: agent.read_record(Path(run_dir.ack) / "update_params.json"))
    assert (answer["outcome"], answer["result"]) == ("applied", {"lr": 0.01})
    assert answer["step"] >= 0
    drop(run_dir, "update_params.json", b'{"momentum": 0.9}')
    answer = eventually(lambda: agent.read_record(Path(run_dir.ack) / "update_params-2.json"))
    assert (answer["outcome"], answer["why"]) == ("failed", "KeyError: 'lr'")
    (Path(run_dir.commands) / "graceful_stop.json").touch()
    process.communicate(timeout=60)
    assert process.returncode == -15
    assert record(Path(run_dir.ack) / "graceful_stop.json")["outcome"] == "applied"
