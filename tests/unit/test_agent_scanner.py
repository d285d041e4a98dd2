"""The scanner: news of many runs, once each, and never an exception."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import alchemy_agent as agent
from tests.support.agentlab import make_attempt, python


def test_what_is_new_is_told_once(tmp_path: Path) -> None:
    scanner = agent.Scanner(tmp_path)
    assert scanner.poll(["run-1"]) == {}
    attempt = make_attempt(tmp_path)
    assert scanner.poll(["run-1"]) == {"run-1": {"attempt": "1-r0"}}
    incarnation = agent.begin(attempt)
    heartbeat, progress = agent.Heartbeat(attempt, incarnation), agent.Progress(attempt, incarnation)
    heartbeat.beat()
    progress.report(3, 10, {"loss": 0.5}, 1.0)
    news = scanner.poll(["run-1"])["run-1"]
    assert sorted(news) == ["heartbeat", "progress", "start"]
    assert (news["heartbeat"]["seq"], news["progress"]["step"]) == (1, 3)
    assert scanner.poll(["run-1"]) == {}
    heartbeat.beat()
    assert list(scanner.poll(["run-1"])["run-1"]) == ["heartbeat"]


def test_the_last_progress_comes_with_the_exit_and_then_only_the_end_is_told(tmp_path: Path) -> None:
    attempt, scanner = make_attempt(tmp_path), agent.Scanner(tmp_path)
    progress = agent.Progress(attempt, agent.begin(attempt))
    scanner.poll(["run-1"])
    progress.report(9, 10, {}, 1.0)
    agent.finish(attempt, 0, None, 2.0)
    assert sorted(scanner.poll(["run-1"])["run-1"]) == ["exit", "progress"]
    agent.write_record(attempt.result, {"status": "completed"})
    agent.conclude(attempt, "completed", "me", "")
    assert sorted(scanner.poll(["run-1"])["run-1"]) == ["close", "result"]
    assert scanner.poll(["run-1"]) == {}


def test_a_higher_attempt_starts_the_story_anew(tmp_path: Path) -> None:
    scanner = agent.Scanner(tmp_path)
    first = make_attempt(tmp_path, k=9)
    agent.begin(first)
    agent.finish(first, 1, None, 1.0)
    assert sorted(scanner.poll(["run-1"])["run-1"]) == ["attempt", "exit", "start"]
    second = make_attempt(tmp_path, k=10)
    agent.Heartbeat(second, agent.begin(second)).beat()
    news = scanner.poll(["run-1"])["run-1"]
    assert (sorted(news), news["attempt"]) == (["attempt", "heartbeat", "start"], "10-r0")
    agent.write_record(first.result, {"status": "completed"})
    assert scanner.poll(["run-1"]) == {}


def test_a_listing_from_the_past_does_not_bring_an_old_attempt_back(tmp_path: Path) -> None:
    scanner = agent.Scanner(tmp_path)
    make_attempt(tmp_path, k=1)
    second = make_attempt(tmp_path, k=2)
    assert scanner.poll(["run-1"])["run-1"]["attempt"] == "2-r0"
    hidden = tmp_path / "hidden"
    Path(second.path).rename(hidden)
    assert scanner.poll(["run-1"]) == {}
    hidden.rename(second.path)
    agent.begin(second)
    assert list(scanner.poll(["run-1"])["run-1"]) == ["start"]


@pytest.mark.parametrize(("incarnation", "seq"), [("i", 5), ("i", 4)])
def test_a_beat_from_a_stale_cache_is_no_news(tmp_path: Path, incarnation: str, seq: int) -> None:
    attempt, scanner = make_attempt(tmp_path), agent.Scanner(tmp_path)
    path = Path(attempt.rank(0)) / "heartbeat.json"
    path.parent.mkdir(parents=True)
    agent.write_record(path, {"incarnation": "i", "seq": 5})
    assert "heartbeat" in scanner.poll(["run-1"])["run-1"]
    agent.write_record(path, {"incarnation": incarnation, "seq": seq, "time": "another"})
    assert scanner.poll(["run-1"]) == {}
    agent.write_record(path, {"incarnation": "j", "seq": 1})
    assert scanner.poll(["run-1"])["run-1"]["heartbeat"]["incarnation"] == "j"


@pytest.mark.parametrize("name", ["start", "resume", "exit", "result", "close"])
@pytest.mark.parametrize("torn", [b"", b'{"v":1,"reas'])
def test_a_torn_record_is_told_when_it_is_whole(tmp_path: Path, name: str, torn: bytes) -> None:
    attempt, scanner = make_attempt(tmp_path), agent.Scanner(tmp_path)
    scanner.poll(["run-1"])
    path = Path(attempt.path) / f"{name}.json"
    path.write_bytes(torn)
    assert scanner.poll(["run-1"]) == {}
    agent.write_record(path, {"x": 1})
    assert scanner.poll(["run-1"]) == {"run-1": {name: {"v": 1, "x": 1}}}


def test_a_torn_or_foreign_heartbeat_is_no_news(tmp_path: Path) -> None:
    attempt, scanner = make_attempt(tmp_path), agent.Scanner(tmp_path)
    scanner.poll(["run-1"])
    path = Path(attempt.rank(0)) / "heartbeat.json"
    path.parent.mkdir(parents=True)
    for content in (b"", b"{", b'{"incarnation": "i", "seq": "five"}', b"[]"):
        path.write_bytes(content)
        assert scanner.poll(["run-1"]) == {}


def test_a_directory_that_cannot_be_read_is_a_problem_each_time_and_no_other_run_suffers(
    tmp_path: Path,
) -> None:
    scanner = agent.Scanner(tmp_path)
    broken, healthy = make_attempt(tmp_path, run="broken"), make_attempt(tmp_path, run="healthy")
    scanner.poll(["broken", "healthy"])
    shutil.rmtree(broken.path)
    Path(broken.path).write_text("in the way")
    agent.begin(healthy)
    for expected in ({"start"}, set()):
        news = scanner.poll(["broken", "healthy"])
        assert "NotADirectoryError" in news["broken"]["problem"]
        assert set(news.get("healthy", {})) == expected


def test_a_heartbeat_that_cannot_be_read_hides_no_receipt(tmp_path: Path) -> None:
    attempt, scanner = make_attempt(tmp_path), agent.Scanner(tmp_path)
    Path(attempt.rank(0)).mkdir(parents=True)
    (Path(attempt.rank(0)) / "heartbeat.json").symlink_to("heartbeat.json")  # ELOOP
    agent.begin(attempt)
    agent.finish(attempt, 0, None, 1.0)
    assert sorted(scanner.poll(["run-1"])["run-1"]) == ["attempt", "exit", "start"]
    assert scanner.poll(["run-1"]) == {}


SCAN = """
import json, sys, alchemy_agent as agent
scanner = agent.Scanner(sys.argv[1])
for _ in range(2):
    print(json.dumps(sorted(scanner.poll(["run-1"]).get("run-1", {}))))
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("error", ["ESTALE", "EIO"])
@pytest.mark.parametrize(
    ("below", "call", "polls"),
    [
        ("attempts/1-r0/ranks/0/heartbeat.json", "openat", [["attempt", "exit", "start"], []]),
        ("attempts/1-r0/ranks/0/heartbeat.json", "read", [["attempt", "exit", "start"], []]),
        ("attempts/1-r0/start.json", "openat", [["attempt", "exit", "heartbeat"], ["start"]]),
        ("attempts/1-r0", "getdents64", [["problem"], ["attempt", "exit", "heartbeat", "start"]]),
        ("attempts", "getdents64", [["problem"], ["attempt", "exit", "heartbeat", "start"]]),
    ],
)
def test_an_error_of_the_file_system_delays_news_and_loses_no_receipt(
    tmp_path: Path, error: str, below: str, call: str, polls: list[list[str]]
) -> None:
    attempt = make_attempt(tmp_path)
    agent.Heartbeat(attempt, agent.begin(attempt)).beat()
    agent.finish(attempt, 0, None, 1.0)
    where = ["-P", f"{attempt.run_dir.path}/{below}", "-e", f"inject={call}:error={error}:when=1"]
    command = ["strace", "-qq", "-o", os.devnull, *where, *python(SCAN), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "ptrace" in done.stderr:
        pytest.skip("this machine does not let strace inject faults")
    assert [json.loads(line) for line in done.stdout.splitlines()] == polls, done.stderr


def test_only_the_runs_asked_for_are_read(tmp_path: Path) -> None:
    scanner = agent.Scanner(tmp_path)
    for run in ("a", "b"):
        make_attempt(tmp_path, run=run)
    assert list(scanner.poll(["b"])) == ["b"]


def test_the_news_are_json(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    agent.Progress(attempt, agent.begin(attempt)).report(0, None, {"loss": float("nan")}, 0.0)
    news = agent.Scanner(tmp_path).poll(["run-1"])
    assert json.loads(json.dumps(news, allow_nan=False)) == news
