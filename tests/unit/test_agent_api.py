"""The two lines in a training loop, as the training's own process meets them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import alchemy_agent as agent
from tests.support.agentlab import drop, make_attempt, names, plain_environment, python, record


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> agent.AttemptDir:
    """Return an attempt to which this process belongs."""
    attempt = make_attempt(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("ALCHEMY_COMMAND_POLL_S", "0")
    for name, value in agent.environment(attempt).items():
        monkeypatch.setenv(name, value)
    return attempt


def test_without_a_task_id_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = make_attempt(tmp_path)
    for name, value in agent.environment(attempt).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(agent.TASK_ID)
    drop(attempt.run_dir, "graceful_stop.json")
    agent.report_progress(step=1, total=2, metrics={"loss": 0.5})
    assert agent.check_commands() == []
    assert names(attempt.path) == []
    assert names(attempt.run_dir.commands) == ["graceful_stop.json"]


def test_first_and_last_step_are_always_on_disk(attempt: agent.AttemptDir) -> None:
    agent.report_progress(step=0, total=10_000, metrics={"loss": 1.0})
    assert record(attempt.run_dir.progress)["step"] == 0
    for step in range(1, 10_001):
        agent.report_progress(step=step, total=10_000, metrics={"loss": 1.0 / step})
    last = record(attempt.run_dir.progress)
    assert (last["step"], last["total"], last["eta_s"]) == (10_000, 10_000, 0.0)
    assert last["seq"] < 5_000, "most steps are not worth a write"


def test_each_run_in_one_process_gets_its_own_reports(
    attempt: agent.AttemptDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.report_progress(step=1)
    other = make_attempt(tmp_path, run="run-2")
    for name, value in agent.environment(other).items():
        monkeypatch.setenv(name, value)
    agent.report_progress(step=2)
    assert record(attempt.run_dir.progress)["step"] == 1
    assert record(other.run_dir.progress)["step"] == 2


def test_without_the_attempts_name_the_latest_is_meant(
    attempt: agent.AttemptDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_attempt(tmp_path, k=2)
    monkeypatch.delenv(agent.ATTEMPT)
    agent.report_progress(step=1)
    assert record(attempt.run_dir.progress)["attempt"] == "2-r0"


def test_a_run_nobody_started_is_a_warning_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(agent.TASK_ID, "lonely")
    monkeypatch.setenv(agent.JOB_DIR, str(tmp_path / "lonely"))
    monkeypatch.delenv(agent.ATTEMPT, raising=False)
    for step in range(3):
        agent.report_progress(step=step)
        assert agent.check_commands() == []
    assert capsys.readouterr().err.count("nobody started an attempt") == 1


def test_handlers_are_announced_so_that_the_wrapper_leaves_them(attempt: agent.AttemptDir) -> None:
    agent.check_commands({"update_params": print, "save_checkpoint": print})
    assert record(Path(attempt.rank(0)) / "handles.json")["ops"] == ["save_checkpoint", "update_params"]


def test_what_a_loop_announced_is_left_to_it_until_it_ends(attempt: agent.AttemptDir) -> None:
    handles = Path(attempt.rank(0)) / "handles.json"
    agent.announce(attempt, ["update_params"])
    drop(attempt.run_dir, "update_params.json")
    assert agent.check_commands({"save_checkpoint": print}) == []
    assert record(handles)["ops"] == ["save_checkpoint", "update_params"]
    agent.announce(attempt, ())
    assert [command.op for command in agent.check_commands()] == ["update_params"]
    assert record(handles)["ops"] == []


def test_commands_are_returned_with_the_step_in_the_answer(attempt: agent.AttemptDir) -> None:
    drop(attempt.run_dir, "save_checkpoint.json", b'{"keep": true}')
    agent.report_progress(step=41)
    [command] = agent.check_commands()
    assert (command.op, command.args, command.file) == (
        "save_checkpoint",
        {"keep": True},
        "save_checkpoint.json",
    )
    answer = record(Path(attempt.run_dir.ack) / "save_checkpoint.json")
    assert (answer["outcome"], answer["step"]) == ("unsupported", 41)


def test_between_two_looks_nothing_is_read(
    attempt: agent.AttemptDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALCHEMY_COMMAND_POLL_S", "3600")
    assert agent.check_commands() == []
    drop(attempt.run_dir, "graceful_stop.json")
    assert agent.check_commands() == []
    assert names(attempt.run_dir.commands) == ["graceful_stop.json"]


def test_only_rank_0_takes_commands_and_speaks_for_the_run(
    attempt: agent.AttemptDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    drop(attempt.run_dir, "graceful_stop.json")
    assert agent.check_commands() == []
    agent.report_progress(step=3)
    assert record(Path(attempt.rank(1)) / "progress.json")["step"] == 3
    assert not Path(attempt.run_dir.progress).exists()


def test_a_poll_interval_that_is_no_number_is_named(
    attempt: agent.AttemptDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALCHEMY_COMMAND_POLL_S", "often")
    with pytest.raises(ValueError, match="ALCHEMY_COMMAND_POLL_S='often': a number of seconds"):
        agent.check_commands()


def test_a_graceful_stop_without_handler_is_a_sigterm_to_the_training(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    drop(attempt.run_dir, "graceful_stop.json")
    program = python("from alchemy_agent import check_commands\nwhile True: check_commands()")
    done = subprocess.run(program, env=plain_environment(**agent.environment(attempt)), timeout=60)
    assert done.returncode == -15
    answer = record(Path(attempt.run_dir.ack) / "graceful_stop.json")
    assert (answer["outcome"], answer["why"]) == ("applied", "SIGTERM sent")


def test_a_reported_step_costs_microseconds(attempt: agent.AttemptDir) -> None:
    # Relative to one write in the same process: a listing or a write at every step would be as much.
    def per_call(call: object, count: int) -> float:
        assert callable(call)
        started = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - started) / count

    agent.report_progress(step=0)
    write = per_call(lambda: agent.write_record(attempt.result, {"step": 1}, durable=False), 200)
    assert per_call(lambda: agent.report_progress(step=1), 5_000) < write


def test_importing_the_agent_loads_nothing_heavy() -> None:
    heavy = "argparse subprocess socket asyncio logging dataclasses inspect uuid tempfile alchemy pytest"
    program = "import sys; before = set(sys.modules); import alchemy_agent; print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", program],
        cwd=Path(agent.__file__).parent,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) & set(heavy.split()) == set()


def test_the_agent_runs_on_python_3_8() -> None:
    pytest.importorskip("vermin", reason="vermin, of the dev extra, is not installed")
    vermin = [sys.executable, "-c", "from vermin import main; main()"]
    done = subprocess.run([*vermin, "-t=3.8-", "--no-tips", agent.__file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
