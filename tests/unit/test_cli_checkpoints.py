"""`alchemy checkpoints`: real checkpoints, whole and damaged ones."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import alchemy_agent as agent
from alchemy.checkpoint.records import sha256
from tests.support.agentlab import make_attempt
from tests.support.clilab import Program, commit, place_of


@pytest.fixture
def alchemy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(tmp_path, capsys)


@pytest.fixture
def attempt(tmp_path: Path) -> agent.AttemptDir:
    return make_attempt(tmp_path)


def rows(lines: list[str]) -> list[list[str]]:
    """Return the cells of the table, without the header."""
    start = next(number for number, line in enumerate(lines) if line.startswith("attempt "))
    return [re.split(r" {2,}", line) for line in lines[start + 1 :] if re.match(r"\d+-r\d+  ", line)]


def test_a_row_says_what_a_checkpoint_is(alchemy: Program, attempt: agent.AttemptDir) -> None:
    commit(attempt, 4, 1)
    commit(make_attempt(alchemy.root, k=2), 9, 2, {"a": b"", "b": b"", "loop.json": bytes(2_000_000)})
    said = alchemy("checkpoints", "run")
    assert (said.status, said.err) == (0, "")
    assert said.lines[0] == "run run-1"
    first, second = rows(said.lines)
    assert first[:3] == ["1-r0", "4", "committed"]
    assert first[4] == "2"
    assert second[:5] == ["2-r0", "9", "committed", "2.00 MB", "3"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", second[5])
    assert [row[6:] for row in (first, second)] == [[], ["a next attempt resumes here, at step 10"]]


def test_further_checkpoints_after_one_step_are_told_apart(
    alchemy: Program, attempt: agent.AttemptDir
) -> None:
    for seq in (1, 2):
        commit(attempt, 4, seq)
    assert [row[1] for row in rows(alchemy("checkpoints", "run").lines)] == ["4", "4.1"]


def test_a_damaged_file_is_found_by_verifying_and_named_with_both_hashes(
    alchemy: Program, attempt: agent.AttemptDir
) -> None:
    commit(attempt, 4, 1)
    path = place_of(attempt, commit(attempt, 9, 2)) / "model.pt"
    right = sha256(path.read_bytes())
    path.write_bytes(b"x" + path.read_bytes()[1:])
    quick = alchemy("checkpoints", "run")
    assert quick.status == 0
    assert "at step 10" in quick.out
    said = alchemy("checkpoints", "run", "--verify")
    assert said.status == 1
    assert [row[2] for row in rows(said.lines)] == ["committed", "broken"]
    assert "a next attempt resumes here, at step 5" in said.lines[2]
    [line] = [line for line in said.lines if "1-r0/step-00000009 is broken" in line]
    assert "model.pt" in line
    assert right in line
    assert sha256(path.read_bytes()) in line
    assert "1 verified: every byte is as it was committed" in said.lines


@pytest.mark.parametrize("file", ["model.pt", "manifest.json"])
def test_a_missing_file_shows_without_verifying(
    alchemy: Program, attempt: agent.AttemptDir, file: str
) -> None:
    (place_of(attempt, commit(attempt, 4, 1)) / file).unlink()
    said = alchemy("checkpoints", "run")
    assert said.status == 1
    assert [row[2] for row in rows(said.lines)] == ["broken"]
    assert any("step-00000004 is broken" in line and file in line for line in said.lines)
    assert "a next attempt refuses to start" in said.lines[-1]
    assert "--alchemy-fresh" in said.lines[-1]


def test_what_was_not_committed_is_no_bad_news(alchemy: Program, attempt: agent.AttemptDir) -> None:
    (place_of(attempt, commit(attempt, 4, 1)) / "committed.json").unlink()
    superseded = place_of(attempt, commit(attempt, 9, 2))
    superseded.rename(superseded.with_name(f"superseded-{superseded.name}"))
    commit(attempt, 14, 3)
    said = alchemy("checkpoints", "run", "--verify")
    assert said.status == 0
    assert [row[1:3] for row in rows(said.lines)] == [
        ["4", "writing"],
        ["9", "superseded"],
        ["14", "committed"],
    ]


def test_a_completed_run_would_start_over(alchemy: Program, attempt: agent.AttemptDir) -> None:
    commit(attempt, 4, 1)
    agent.write_record(attempt.result, {"status": "completed"})
    said = alchemy("checkpoints", "run")
    assert said.status == 0
    assert said.lines[-1] == "a next attempt starts at step 0: 1-r0 has completed the run"


def test_a_run_without_checkpoints_says_so(alchemy: Program, attempt: agent.AttemptDir) -> None:
    said = alchemy("checkpoints", attempt.run_dir.name)
    assert said.status == 0
    assert said.lines[1:] == ["no checkpoints", "a next attempt starts at step 0: nothing was committed yet"]


def test_a_run_that_never_started_says_so(alchemy: Program) -> None:
    (alchemy.root / "jobs/run-1").mkdir(parents=True)
    assert alchemy("checkpoints", "run").lines[1:] == ["no checkpoints", "no attempt was started yet"]


def test_a_pinned_one_is_marked(alchemy: Program, attempt: agent.AttemptDir) -> None:
    commit(attempt, 4, 1)
    commit(attempt, 9, 2)
    Path(attempt.run_dir.pins).mkdir()
    agent.write_record(f"{attempt.run_dir.pins}/eval", {"attempt": "1-r0", "step": 4})
    assert [row[6:] for row in rows(alchemy("checkpoints", "run").lines)] == [
        ["pinned"],
        ["a next attempt resumes here, at step 10"],
    ]


def test_a_pin_that_cannot_be_read_is_named(alchemy: Program, attempt: agent.AttemptDir) -> None:
    commit(attempt, 4, 1)
    Path(attempt.run_dir.pins).mkdir()
    Path(attempt.run_dir.pins, "eval").write_text("?")
    said = alchemy("checkpoints", "run")
    assert said.status == 0
    assert said.err.startswith(f"alchemy: {attempt.run_dir.pins}/eval does not say")
    assert len(rows(said.lines)) == 1


def test_names_of_files_cannot_write_on_the_terminal(alchemy: Program, attempt: agent.AttemptDir) -> None:
    (place_of(attempt, commit(attempt, 4, 1)) / "a\x1b[2J").touch()
    said = alchemy("checkpoints", "run")
    assert said.status == 1
    assert "a\\x1b[2J does not belong to it" in said.out
    assert "\x1b" not in said.out


def test_json_says_the_same(alchemy: Program, attempt: agent.AttemptDir) -> None:
    commit(attempt, 4, 1)
    broken = place_of(attempt, commit(attempt, 9, 2)) / "model.pt"
    os.truncate(broken, 7)
    said = alchemy("checkpoints", "run", "--verify", "--json")
    assert said.status == 1
    record = said.record
    assert (record["v"], record["run"]) == (1, "run-1")
    assert record["directory"] == attempt.run_dir.path
    assert (record["resumes_from"], record["why"]) == ("1-r0/step-00000004", "")
    whole, other = record["checkpoints"]
    assert (whole["state"], whole["verified"], whole["problem"]) == ("committed", True, "")
    assert (whole["step"], whole["files"]) == (4, ["loop.json", "model.pt"])
    assert (other["state"], other["verified"]) == ("broken", False)
    assert other["problem"] == "model.pt has 7 bytes, not 1000"
