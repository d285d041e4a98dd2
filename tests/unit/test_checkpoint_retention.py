"""What may be deleted, and that nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import alchemy_agent as agent
from alchemy.checkpoint.records import CheckpointRef
from alchemy.checkpoint.retention import deletable, pinned, retire
from alchemy.checkpoint.store import Checkpoint, State, list_checkpoints, write_checkpoint
from alchemy.checkpoint.writing import Part
from tests.support.agentlab import make_attempt, names


def save(attempt: agent.AttemptDir, *steps: int) -> list[CheckpointRef]:
    return [
        write_checkpoint(
            attempt,
            step,
            [Part("model.pt", lambda sink: sink.write(b"m"))],
            seq=step + 1,
            parent=None,
            kinds={},
            applied=(),
        )
        for step in steps
    ]


def steps(attempt: agent.AttemptDir) -> list[int]:
    return [one.step for one in list_checkpoints(attempt.run_dir) if one.state is State.COMMITTED]


def damage(attempt: agent.AttemptDir, step: int) -> None:
    Path(attempt.run_dir.path, "checkpoints", attempt.name, f"step-{step:08d}", "model.pt").write_bytes(b"M")


def pin(attempt: agent.AttemptDir, consumer: str, content: bytes) -> Path:
    directory = Path(attempt.run_dir.pins)
    agent.make_directory(str(directory))
    (directory / consumer).write_bytes(content)
    return directory / consumer


def made_up(step: int, state: State) -> Checkpoint:
    return Checkpoint(Path(f"/r/{step}"), "1-r0", step, f"step-{step:08d}", state)


@given(st.lists(st.sampled_from(State), max_size=12), st.integers(-1, 5), st.sets(st.integers(0, 11)))
def test_deletable_are_only_committed_ones_beyond_the_newest(
    states: list[State], keep: int, protected: set[int]
) -> None:
    checkpoints = [made_up(step, state) for step, state in enumerate(states)]
    doomed = deletable(checkpoints, keep, {("1-r0", step) for step in protected})
    committed = [one for one in checkpoints if one.state is State.COMMITTED]
    newest = committed[-max(keep, 2) :]
    assert doomed == [one for one in committed if one not in newest and one.step not in protected]


def test_the_newest_stay_and_never_fewer_than_two(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    save(attempt, 0, 1, 2, 3, 4)
    assert retire(attempt, keep=3, protected=None) == []
    assert steps(attempt) == [2, 3, 4]
    assert retire(attempt, keep=0, protected=None) == []
    assert steps(attempt) == [3, 4]
    assert names(Path(attempt.run_dir.path, "checkpoints/1-r0")) == ["step-00000003", "step-00000004"]


def test_what_was_resumed_from_and_what_is_pinned_stays(tmp_path: Path) -> None:
    first, second = make_attempt(tmp_path), make_attempt(tmp_path, k=2)
    refs = save(first.run_dir.attempt("2-r0"), 0, 1, 2, 3, 4)
    pin(first, "eval", agent.dumps({"v": 1, "attempt": "2-r0", "step": 0, "for": "people"}))
    assert pinned(first.run_dir) == {("2-r0", 0)}
    assert retire(second, keep=2, protected=refs[2]) == []
    assert steps(second) == [0, 2, 3, 4]


@pytest.mark.parametrize("content", [b"", b"{", b'{"attempt": "1-r0"}', b'{"attempt": 1, "step": 2}'])
def test_nothing_is_deleted_while_a_pin_can_not_be_read(tmp_path: Path, content: bytes) -> None:
    attempt = make_attempt(tmp_path)
    save(attempt, 0, 1, 2)
    path = pin(attempt, "eval", content)
    (problem,) = retire(attempt, keep=2, protected=None)
    assert problem.startswith("no checkpoint was deleted")
    assert str(path) in problem
    assert steps(attempt) == [0, 1, 2]
    path.unlink()
    assert retire(attempt, keep=2, protected=None) == []
    assert steps(attempt) == [1, 2]


def test_a_pin_that_is_just_being_written_is_not_one_yet(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    pin(attempt, ".eval.123.tmp", b"{")
    assert pinned(attempt.run_dir) == set()


def test_a_damaged_one_does_not_count_as_kept(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    save(attempt, 0, 1, 2, 3, 4)
    damage(attempt, 3)
    (problem,) = retire(attempt, keep=2, protected=None)
    assert "step-00000003: model.pt was damaged" in problem
    assert steps(attempt) == [2, 3, 4], "2 stays for 3, and 3 as evidence"


def test_nothing_is_deleted_if_too_few_are_whole(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    save(attempt, 0, 1, 2, 3)
    for step in (0, 2, 3):
        damage(attempt, step)
    problems = retire(attempt, keep=2, protected=None)
    assert len(problems) == 2
    assert steps(attempt) == [0, 1, 2, 3]


def test_each_is_read_once(tmp_path: Path) -> None:
    """What was whole when it was committed and read is not read again at every commit."""
    attempt = make_attempt(tmp_path)
    save(attempt, 0, 1, 2)
    assert retire(attempt, keep=2, protected=None) == []
    damage(attempt, 2)
    save(attempt, 3)
    assert retire(attempt, keep=2, protected=None) == []
    assert steps(attempt) == [2, 3]


def test_what_earlier_attempts_left_is_removed_and_what_later_ones_write_is_not(tmp_path: Path) -> None:
    first, second = make_attempt(tmp_path), make_attempt(tmp_path, k=2)
    place = Path(first.run_dir.path, "checkpoints")
    for path in ("1-r0/step-00000001", "1-r0/superseded-step-00000000", "2-r0/step-00000005"):
        (place / path).mkdir(parents=True)
        (place / path / "model.pt").write_bytes(b"half")
    (place / "2-r0/superseded-step-00000002").mkdir()
    save(second, 6)
    assert retire(second, keep=2, protected=None) == []
    assert names(place / "1-r0") == []
    assert names(place / "2-r0") == ["step-00000005", "step-00000006"], "the first may be our own, under way"


def test_an_attempt_that_was_overtaken_deletes_nothing(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    save(attempt, 0, 1, 2)
    make_attempt(tmp_path, k=2)
    (problem,) = retire(attempt, keep=2, protected=None)
    assert "attempt 2-r0" in problem
    assert steps(attempt) == [0, 1, 2]


def test_what_can_not_be_deleted_is_told_and_tried_again(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    save(attempt, 0, 1, 2)
    place = Path(attempt.run_dir.path, "checkpoints/1-r0")
    obstacle = place / "superseded-step-00000000"
    (obstacle / "somebody's").mkdir(parents=True)
    problems = retire(attempt, keep=2, protected=None)
    assert len(problems) == 2
    assert all("could not be deleted" in problem for problem in problems)
    assert steps(attempt) == [0, 1, 2]
    (obstacle / "somebody's").rmdir()
    assert retire(attempt, keep=2, protected=None) == []
    assert names(place) == ["step-00000001", "step-00000002"]
