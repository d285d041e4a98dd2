"""What an attempt continues from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import alchemy_agent as agent
from alchemy.checkpoint.records import CheckpointRef
from alchemy.checkpoint.retention import retire
from alchemy.checkpoint.selection import Choice, choose, lineage
from alchemy.checkpoint.store import write_checkpoint
from alchemy.checkpoint.writing import Part
from alchemy.errors import CheckpointUnusable
from tests.support.agentlab import make_attempt


def save(attempt: agent.AttemptDir, step: int, seq: int) -> CheckpointRef:
    part = Part("model.pt", lambda sink: sink.write(b"m"))
    return write_checkpoint(attempt, step, [part], seq=seq, parent=None, kinds={}, applied=())


def place(attempt: agent.AttemptDir, step: int) -> Path:
    return Path(attempt.run_dir.path, "checkpoints", attempt.name, f"step-{step:08d}")


def resume(attempt: agent.AttemptDir, **fields: Any) -> None:
    agent.write_record(attempt.resume, {"from": None, "fresh": False, **fields})


def ended(attempt: agent.AttemptDir, status: str) -> None:
    agent.write_record(attempt.result, {"status": status})


def chosen(attempt: agent.AttemptDir) -> CheckpointRef | None:
    choice = choose(attempt)
    assert choice.rejected == ()
    return choice.checkpoint and choice.checkpoint.ref


def test_the_first_attempt_begins_at_step_0(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    assert lineage(attempt) == []
    assert chosen(attempt) is None


def test_an_attempt_continues_all_earlier_ones_newest_first(tmp_path: Path) -> None:
    for k, restarts in ((1, 0), (2, 0), (2, 1), (10, 0), (11, 0)):
        make_attempt(tmp_path, k=k, restarts=restarts)
    run = agent.RunDir(tmp_path / "jobs/run-1")
    assert lineage(run.attempt("10-r0")) == ["2-r1", "2-r0", "1-r0"]


def test_what_was_completed_is_not_continued(tmp_path: Path) -> None:
    attempts = [make_attempt(tmp_path, k=k) for k in range(1, 6)]
    ended(attempts[0], "failed")
    ended(attempts[1], "completed")
    ended(attempts[3], "stopped")
    assert lineage(attempts[4]) == ["4-r0", "3-r0"]


def test_what_the_same_job_completed_is_continued_by_its_requeue(tmp_path: Path) -> None:
    first = make_attempt(tmp_path)
    save(first, 9, 1)
    ended(first, "completed")
    second = make_attempt(tmp_path, k=2)
    final = save(second, 9, 1)
    ended(second, "completed")
    again = make_attempt(tmp_path, k=2, restarts=1)
    assert lineage(again) == ["2-r0"]
    assert chosen(again) == final
    assert chosen(make_attempt(tmp_path, k=3)) is None


def test_within_one_job_nothing_of_earlier_jobs_counts(tmp_path: Path) -> None:
    save(make_attempt(tmp_path), 100, 1)
    second = make_attempt(tmp_path, k=2)
    resume(second, **{"from": {"attempt": "1-r0", "step": 100}})
    again = make_attempt(tmp_path, k=2, restarts=1)
    assert choose(again, within_job=True) == Choice(None, ())
    own = save(again, 120, 2)
    last = make_attempt(tmp_path, k=2, restarts=2)
    found = choose(last, within_job=True).checkpoint
    assert found is not None
    assert found.ref == own
    place(again, 120).rename(again.path + "-gone")
    resume(last, **{"from": {"attempt": "2-r1", "step": 120}})
    with pytest.raises(CheckpointUnusable):
        choose(make_attempt(tmp_path, k=2, restarts=3), within_job=True)


def test_what_came_before_a_fresh_start_is_not_continued(tmp_path: Path) -> None:
    attempts = [make_attempt(tmp_path, k=k) for k in range(1, 5)]
    resume(attempts[1], fresh=True)
    assert lineage(attempts[3]) == ["3-r0", "2-r0"]


def test_a_fresh_start_that_never_committed_hides_older_checkpoints(tmp_path: Path) -> None:
    first = make_attempt(tmp_path)
    save(first, 100, 1)
    resume(make_attempt(tmp_path, k=2), fresh=True)
    assert chosen(make_attempt(tmp_path, k=3)) is None


def test_the_newest_commit_is_chosen_not_the_highest_step(tmp_path: Path) -> None:
    first = make_attempt(tmp_path)
    save(first, 100, 1)
    second = make_attempt(tmp_path, k=2)
    newest = save(second, 60, 2)
    make_attempt(tmp_path, k=3)
    assert chosen(make_attempt(tmp_path, k=4)) == newest


def test_one_that_is_damaged_is_passed_over_and_told(tmp_path: Path) -> None:
    first = make_attempt(tmp_path)
    refs = [save(first, step, step) for step in (1, 2, 3, 4)]
    (place(first, 4) / "model.pt").write_bytes(b"M")
    (place(first, 3) / "model.pt").unlink()
    choice = choose(make_attempt(tmp_path, k=2))
    assert choice.checkpoint is not None
    assert choice.checkpoint.ref == refs[1]
    assert [name for name, _ in choice.rejected] == ["1-r0/step-00000004", "1-r0/step-00000003"]
    assert "model.pt was damaged" in choice.rejected[0][1]
    assert "model.pt is missing" in choice.rejected[1][1]


@pytest.mark.parametrize("cut", [["committed.json"], ["committed.json", "manifest.json"]])
def test_a_first_commit_that_was_cut_is_no_progress(tmp_path: Path, cut: list[str]) -> None:
    """Also between manifest and marker: a kill there must not stop the run for good."""
    first = make_attempt(tmp_path)
    save(first, 1, 1)
    for name in cut:
        (place(first, 1) / name).unlink()
    assert chosen(make_attempt(tmp_path, k=2)) is None


def lose_data(first: agent.AttemptDir) -> None:
    (place(first, 1) / "model.pt").unlink()


def lose_manifest(first: agent.AttemptDir) -> None:
    (place(first, 1) / "manifest.json").unlink()


def lose_all_but_the_progress(first: agent.AttemptDir) -> None:
    place(first, 1).rename(first.path + "-gone")
    agent.make_directory(first.rank(0))
    agent.write_record(Path(first.rank(0), "progress.json"), {"checkpoint": 1})


def lose_all_but_the_resumption(first: agent.AttemptDir) -> None:
    place(first, 1).rename(first.path + "-gone")
    resume(first, **{"from": {"attempt": "0-r0"}})


def forbid_the_directory(first: agent.AttemptDir) -> None:
    place(first, 1).parent.rename(first.path + "-gone")
    place(first, 1).parent.write_bytes(b"")


@pytest.mark.parametrize(
    "lose",
    [lose_data, lose_manifest, lose_all_but_the_progress, lose_all_but_the_resumption, forbid_the_directory],
)
def test_a_run_that_made_progress_never_silently_starts_over(tmp_path: Path, lose: object) -> None:
    first = make_attempt(tmp_path)
    save(first, 1, 1)
    assert callable(lose)
    lose(first)
    with pytest.raises(CheckpointUnusable) as caught:
        choose(make_attempt(tmp_path, k=2))
    message = str(caught.value)
    assert str(Path(first.run_dir.path, "checkpoints")) in message
    assert "--alchemy-fresh" in message
    assert "ALCHEMY_FRESH=1" in message
    if lose is lose_data:
        assert "step-00000001: model.pt is missing" in message


def test_restoring_the_directory_is_enough(tmp_path: Path) -> None:
    first = make_attempt(tmp_path)
    ref = save(first, 1, 1)
    content = (place(first, 1) / "model.pt").read_bytes()
    lose_data(first)
    second = make_attempt(tmp_path, k=2)
    with pytest.raises(CheckpointUnusable):
        choose(second)
    (place(first, 1) / "model.pt").write_bytes(content)
    assert chosen(second) == ref


def test_an_attempt_that_resumes_and_retires_keeps_what_the_next_one_needs(tmp_path: Path) -> None:
    seq, resumed = 0, None
    for k in range(1, 6):
        attempt = make_attempt(tmp_path, k=k)
        found = choose(attempt).checkpoint
        assert (found.step if found else None) == resumed
        for _ in range(3):
            seq += 1
            resumed = save(attempt, seq, seq).step
            assert retire(attempt, keep=2, protected=found and found.ref) == []
