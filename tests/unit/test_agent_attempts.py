"""Runs and attempts: who may start what, and the receipt that stays."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

import alchemy_agent as agent
from tests.support.agentlab import make_attempt, record


def test_attempts_are_ordered_by_number_not_by_letter(tmp_path: Path) -> None:
    for k, restarts in [(10, 0), (2, 11), (2, 9), (1, 0)]:
        last = make_attempt(tmp_path, k=k, restarts=restarts)
    names = last.run_dir.attempt_names()
    assert names == ["1-r0", "2-r9", "2-r11", "10-r0"]
    latest = last.run_dir.latest()
    assert latest is not None
    assert (latest.name, latest.k, latest.restarts) == ("10-r0", 10, 0)


def test_what_is_not_an_attempt_is_not_listed(tmp_path: Path) -> None:
    run_dir = make_attempt(tmp_path).run_dir
    for name in (".1-r0.tmp", "0-r0", "01-r0", "1-r", "1", "lost+found", "1-r0~", ".nfs0001"):
        (Path(run_dir.attempts) / name).mkdir()
    assert run_dir.attempt_names() == ["1-r0"]


def test_a_run_nobody_started_has_no_attempt(tmp_path: Path) -> None:
    run_dir = agent.RunDir(tmp_path / "jobs" / "x")
    assert run_dir.attempt_names() == []
    assert run_dir.latest() is None


@pytest.mark.parametrize("name", ["", "1", "0-r0", "1-r01", "../1-r0/x", "1-r0\n", "\u0661-r0"])
def test_a_name_that_no_attempt_has_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="they look like '1-r0'"):
        agent.RunDir(tmp_path).attempt(name)


def test_all_paths_of_a_run_lie_where_the_layout_says(tmp_path: Path) -> None:
    run_dir = agent.RunDir(tmp_path / "jobs" / "x")
    attempt = run_dir.attempt(agent.attempt_name(3, 1))
    relative = {
        os.path.relpath(path, run_dir.path)
        for path in (*vars(run_dir).values(), attempt.rank(2), attempt.resume)
    }
    assert "attempts/3-r1/ranks/2" in relative
    assert {
        "run.json",
        "heartbeat.json",
        "progress.json",
        "commands",
        "ack",
        "claims",
        "checkpoints",
        "pins",
        "attempts/3-r1/resume.json",
    } <= relative
    assert attempt.run_dir.path == run_dir.path
    assert [Path(p).name for p in (attempt.start, attempt.exit, attempt.result, attempt.close)] == [
        "start.json",
        "exit.json",
        "result.json",
        "close.json",
    ]


def test_paths_survive_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = agent.RunDir("jobs/x")
    monkeypatch.chdir("/")
    assert run_dir.path == str(tmp_path / "jobs" / "x")


def test_an_attempt_is_claimed_once_and_privately(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    assert Path(attempt.path).stat().st_mode & 0o777 == 0o700
    assert Path(attempt.run_dir.commands).is_dir()
    assert Path(attempt.run_dir.ack).is_dir()
    with pytest.raises(agent.Duplicate, match="attempt 1-r0 of run-1 is taken"):
        make_attempt(tmp_path)


def test_claims_of_many_threads_are_all_different(tmp_path: Path) -> None:
    run_dir = agent.RunDir(tmp_path / "jobs" / "x")
    taken: list[int] = []
    barrier = threading.Barrier(6)

    def claim() -> None:
        barrier.wait()
        taken.extend(agent.next_claim(run_dir, "the same name") for _ in range(5))

    threads = [threading.Thread(target=claim) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 31))


def test_a_claim_goes_past_the_highest_so_that_a_late_one_costs_what_the_first_does(tmp_path: Path) -> None:
    run_dir = agent.RunDir(tmp_path / "jobs" / "x")
    Path(run_dir.claims).mkdir(parents=True)
    for name in ("1.json", "1000.json", ".2000.json.1.aa.tmp", "3000.json~", "x.json", "04000.json"):
        (Path(run_dir.claims) / name).touch()
    assert [agent.next_claim(run_dir, "me") for _ in range(2)] == [1001, 1002]


def test_the_receipt_names_run_and_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    attempt = make_attempt(tmp_path)
    incarnation = agent.begin(attempt)
    agent.finish(attempt, 3, None, 1.5)
    start, end = record(attempt.start), record(attempt.exit)
    assert (start["run"], start["attempt"], start["incarnation"]) == ("run-1", "1-r0", incarnation)
    assert (start["slurm"]["job_id"], start["slurm"]["array_task_id"]) == ("4711", "3")
    assert (start["gpus"], start["pid"]) == ("0,1", os.getpid())
    assert (end["run"], end["attempt"], end["code"], end["signal"], end["duration_s"]) == (
        "run-1",
        "1-r0",
        3,
        None,
        1.5,
    )


def test_outside_slurm_the_receipt_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    attempt = make_attempt(tmp_path)
    agent.begin(attempt)
    assert record(attempt.start)["slurm"] is None


def test_two_beginnings_have_two_incarnations(tmp_path: Path) -> None:
    assert agent.begin(make_attempt(tmp_path, k=1)) != agent.begin(make_attempt(tmp_path, k=2))


def test_the_first_to_conclude_has_the_last_word(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    assert agent.conclude(attempt, "timeout", "session 1", "Slurm says TIMEOUT")
    assert not agent.conclude(attempt, "lost", "session 2", "no news")
    assert record(attempt.close)["reason"] == "timeout"


def test_the_environment_leads_back_to_the_attempt(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    environment = agent.environment(attempt)
    assert environment[agent.TASK_ID] == "run-1"
    assert agent.RunDir(environment[agent.JOB_DIR]).attempt(environment[agent.ATTEMPT]).path == attempt.path
