"""The golden records: every version of ours reads them, and what the agent writes has the same fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import alchemy_agent as agent
from tests.support.agentlab import drop, make_attempt, record

GOLDEN = Path(__file__).parents[1] / "data" / "wire" / "v1"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_every_golden_record_is_read(path: Path) -> None:
    assert record(path)["v"] == agent.WIRE_VERSION


def write_claim(attempt: agent.AttemptDir) -> str:
    agent.next_claim(attempt.run_dir, "me")
    return f"{attempt.run_dir.claims}/1.json"


def write_start(attempt: agent.AttemptDir) -> str:
    agent.begin(attempt)
    return attempt.start


def write_exit(attempt: agent.AttemptDir) -> str:
    agent.finish(attempt, None, 15, 1.0)
    return attempt.exit


def write_close(attempt: agent.AttemptDir) -> str:
    agent.conclude(attempt, "timeout", "me", "Slurm says TIMEOUT")
    return attempt.close


def write_heartbeat(attempt: agent.AttemptDir) -> str:
    agent.Heartbeat(attempt, "i").beat()
    return attempt.run_dir.heartbeat


def write_progress(attempt: agent.AttemptDir) -> str:
    metrics = {"loss": 0.5, "grad_norm": 1.0, "note": None}
    agent.Progress(attempt, "i").report(1, 2, metrics, 1.0, {"checkpoint": 0, "gpus": []})
    return attempt.run_dir.progress


def write_ack(attempt: agent.AttemptDir) -> str:
    drop(attempt.run_dir, "0007-7f1c.json", (GOLDEN / "command.json").read_bytes())
    agent.Mailbox(attempt, lambda: None, lambda: 120).poll({"update_params": lambda command: command.args})
    return f"{attempt.run_dir.ack}/0007-7f1c.json"


def write_command(attempt: agent.AttemptDir) -> str:
    name = agent.send_command(attempt.run_dir, "update_params", {"lr": 1}, "1-r0")
    return f"{attempt.run_dir.commands}/{name}"


WRITERS: Mapping[str, Callable[[agent.AttemptDir], str]] = {
    "claim": write_claim,
    "start": write_start,
    "exit": write_exit,
    "close": write_close,
    "heartbeat": write_heartbeat,
    "progress": write_progress,
    "ack": write_ack,
    "command": write_command,
}


def shape(value: Any) -> Any:
    """Return the fields, recursively, without their values."""
    return {key: shape(item) for key, item in value.items()} if isinstance(value, dict) else None


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_has_the_fields_of_the_golden_record(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4712")
    written = record(WRITERS[name](make_attempt(tmp_path)))
    golden = record(GOLDEN / f"{name}.json")
    assert shape(written) == shape(golden)
    assert next(iter(written)) == "v"


def test_unknown_fields_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    attempt, scanner = make_attempt(tmp_path), agent.Scanner(tmp_path)
    later = {**record(GOLDEN / "start.json"), "v": 2, "new": {"a": [1]}}
    Path(attempt.start).write_bytes(agent.dumps(later))
    assert scanner.poll(["run-1"])["run-1"]["start"]["host"] == "node17"
