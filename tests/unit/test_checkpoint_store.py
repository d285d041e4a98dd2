"""A commit, and what a look at the directories tells about it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import alchemy_agent as agent
from alchemy.checkpoint.records import CheckpointRef
from alchemy.checkpoint.store import Checkpoint, State, list_checkpoints, verify, write_checkpoint
from alchemy.checkpoint.writing import Part, Sink
from alchemy.errors import BrokenCheckpoint
from alchemy.fencing import Fenced
from tests.support.agentlab import make_attempt, names


def parts(**contents: bytes) -> list[Part]:
    def writer(name: str, content: bytes) -> Part:
        return Part(name, lambda sink: sink.write(content))

    return [
        writer(name, content)
        for name, content in (contents or {"model.pt": b"m", "loop.json": b"{}"}).items()
    ]


def save(
    attempt: agent.AttemptDir, step: int, seq: int = 1, parent: CheckpointRef | None = None
) -> CheckpointRef:
    return write_checkpoint(
        attempt, step, parts(), seq=seq, parent=parent, kinds={"m": "torch"}, applied=["c"]
    )


def only(attempt: agent.AttemptDir) -> Checkpoint:
    (checkpoint,) = list_checkpoints(attempt.run_dir)
    return checkpoint


def test_what_was_committed_is_listed_and_verifies(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    ref = save(attempt, 499, seq=3)
    found = only(attempt)
    assert (found.state, found.ref, found.step) == (State.COMMITTED, ref, 499)
    assert found.path == Path(attempt.run_dir.path, "checkpoints", "1-r0", "step-00000499")
    assert found.manifest is not None
    assert (found.manifest.seq, found.manifest.applied, found.manifest.kinds) == (3, ("c",), {"m": "torch"})
    assert names(found.path) == ["committed.json", "loop.json", "manifest.json", "model.pt"]
    assert found.size == sum(path.stat().st_size for path in found.path.iterdir())
    verify(found)


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    save(attempt, 0)
    for path in Path(attempt.run_dir.path, "checkpoints").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0


def test_a_name_is_never_used_twice(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    assert [save(attempt, 7, seq).name for seq in (1, 2, 3)] == [
        "step-00000007",
        "step-00000007.1",
        "step-00000007.2",
    ]
    assert [found.manifest and found.manifest.seq for found in list_checkpoints(attempt.run_dir)] == [1, 2, 3]


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert list_checkpoints(make_attempt(tmp_path).run_dir) == []


def test_they_are_listed_in_the_order_of_their_commits(tmp_path: Path) -> None:
    """Neither by time nor by step: a later attempt may have gone back, and 10 comes after 9."""
    refs = []
    for k, restarts, step, seq in [
        (1, 0, 500, 1),
        (1, 9, 20, 2),
        (1, 10, 30, 3),
        (9, 0, 5, 4),
        (10, 0, 4, 5),
    ]:
        refs.append(save(make_attempt(tmp_path, k=k, restarts=restarts), step, seq))
    found = list_checkpoints(agent.RunDir(tmp_path / "jobs" / "run-1"))
    assert [one.ref for one in found] == refs


def test_the_caller_has_its_say_after_the_files_and_before_the_commit(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    seen: list[tuple[list[str], State]] = []

    def look() -> None:
        seen.append((names(only(attempt).path), only(attempt).state))

    write_checkpoint(attempt, 0, parts(), seq=1, parent=None, kinds={}, applied=(), before_commit=look)
    assert seen == [(["loop.json", "model.pt"], State.WRITING)]


def test_an_attempt_that_was_overtaken_commits_nothing(tmp_path: Path) -> None:
    first = make_attempt(tmp_path)
    make_attempt(tmp_path, k=2)
    with pytest.raises(
        Fenced, match=r"attempt 2-r0 .* has begun: the checkpoint after step 5 of 1-r0 is void"
    ):
        save(first, 5)
    assert list_checkpoints(first.run_dir) == []


def fail() -> None:
    raise KeyboardInterrupt


def test_whatever_goes_wrong_nothing_is_left(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    first = save(attempt, 1)

    def break_off(sink: Sink) -> None:
        sink.write(b"half")
        raise RuntimeError("user code")

    with pytest.raises(RuntimeError, match="user code"):
        write_checkpoint(
            attempt, 2, [*parts(), Part("x", break_off)], seq=2, parent=first, kinds={}, applied=()
        )
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(attempt, 2, parts(), seq=2, parent=first, kinds={}, applied=(), before_commit=fail)
    assert only(attempt).ref == first


@pytest.mark.parametrize("name", ["manifest.json", "committed.json", "../x", ".x"])
def test_a_part_can_not_take_the_protocols_place(tmp_path: Path, name: str) -> None:
    attempt = make_attempt(tmp_path)
    with pytest.raises(ValueError, match="is"):
        write_checkpoint(attempt, 0, parts(**{name: b""}), seq=1, parent=None, kinds={}, applied=())
    assert list_checkpoints(attempt.run_dir) == []


def test_two_parts_of_one_name_are_refused(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    with pytest.raises(FileExistsError):
        write_checkpoint(attempt, 0, parts() * 2, seq=1, parent=None, kinds={}, applied=())
    assert list_checkpoints(attempt.run_dir) == []


def test_without_a_marker_it_is_being_written(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    save(attempt, 0, seq=4)
    (only(attempt).path / "committed.json").unlink()
    found = only(attempt)
    assert found.state is State.WRITING
    assert found.manifest is not None
    with pytest.raises(BrokenCheckpoint, match="is writing, not committed"):
        verify(found)


def test_one_on_its_way_out_is_superseded(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    ref = save(attempt, 0)
    path = only(attempt).path
    path.rename(path.with_name("superseded-" + path.name))
    assert (only(attempt).state, only(attempt).ref) == (State.SUPERSEDED, ref)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def replace_by_link(path: Path) -> None:
    target = path.with_name(".elsewhere")
    path.rename(target)
    path.symlink_to(target)


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda at: (at / "model.pt").unlink(), "model.pt is missing"),
        (lambda at: append(at / "model.pt"), "model.pt has 2 bytes, not 1"),
        (lambda at: (at / "more").write_bytes(b""), "more does not belong to it"),
        (lambda at: (at / "more").mkdir(), "more is not a plain file"),
        (lambda at: replace_by_link(at / "model.pt"), "model.pt is not a plain file"),
        (lambda at: replace_by_pipe(at / "model.pt"), "model.pt is not a plain file"),
        (lambda at: replace_by_link(at / "committed.json"), "committed.json is not a plain file"),
        (lambda at: (at / "manifest.json").unlink(), "manifest.json: No such file"),
        (lambda at: append(at / "manifest.json"), "manifest.json is not the one that was committed"),
        (lambda at: (at / "committed.json").write_bytes(b""), "committed.json: "),
        (lambda at: (at / "committed.json").write_bytes(b"[]\n"), "committed.json: not a JSON object"),
        (lambda at: (at / "committed.json").write_bytes(b'{"v":2}\n'), "committed.json: version 2"),
        (lambda at: (at / "committed.json").write_bytes(b'{"v":1}'), "committed.json: its end is missing"),
        (lambda at: (at / "committed.json").write_bytes(bytes(100_000)), "committed.json: has more than"),
        (replace_by_link, "is a symbolic link or a file"),
    ],
)
def test_a_quick_look_says_what_is_wrong(tmp_path: Path, damage: object, problem: str) -> None:
    attempt = make_attempt(tmp_path)
    save(attempt, 0)
    before = only(attempt)
    assert callable(damage)
    damage(before.path)
    found = only(attempt)
    assert (found.state, problem in found.problem) == (State.BROKEN, True), found.problem
    for checkpoint in (before, found):
        with pytest.raises(BrokenCheckpoint) as caught:
            verify(checkpoint)
        assert f"{before.path}: {found.problem}" in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_belongs_to_somebody_else_is_broken(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    save(attempt, 0)
    os.chown(only(attempt).path / "model.pt", 12345, -1)
    assert only(attempt).problem == "model.pt belongs to user 12345, the run to user 0"
    os.chown(only(attempt).path, 12345, -1)
    assert only(attempt).problem == "step-00000000 belongs to user 12345, the run to user 0"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_where_user_ids_are_mapped_a_run_may_read_its_own(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    save(attempt, 0)
    for path in (Path(attempt.run_dir.path), *Path(attempt.run_dir.path).rglob("*")):
        os.chown(path, 12345, -1)
    assert only(attempt).problem == ""


def test_hidden_files_are_nobodys(tmp_path: Path) -> None:
    """A network file system leaves such files for those who have one open that was deleted."""
    attempt = make_attempt(tmp_path)
    save(attempt, 0)
    (only(attempt).path / ".nfs000001").write_bytes(b"x")
    verify(only(attempt))


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_only_reading_all_of_it_finds_a_changed_bit(tmp_path: Path, threads: int) -> None:
    attempt = make_attempt(tmp_path)
    save(attempt, 0)
    (only(attempt).path / "model.pt").write_bytes(b"M")
    assert only(attempt).state is State.COMMITTED
    with pytest.raises(BrokenCheckpoint, match=r"model\.pt was damaged or exchanged: its SHA-256 is"):
        verify(only(attempt), threads=threads)


def test_one_that_is_gone_is_no_checkpoint(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    save(attempt, 0)
    found = only(attempt)
    shutil.rmtree(found.path)
    assert list_checkpoints(attempt.run_dir) == []
    with pytest.raises(BrokenCheckpoint, match="is gone"):
        verify(found)


def test_one_that_was_exchanged_for_another_is_not_the_same(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    save(attempt, 0, seq=1)
    found = only(attempt)
    shutil.rmtree(found.path)
    save(attempt, 0, seq=2)
    with pytest.raises(BrokenCheckpoint, match="is not the checkpoint that was there before"):
        verify(found)


def test_one_bad_directory_hides_no_other(tmp_path: Path) -> None:
    first, second = make_attempt(tmp_path), make_attempt(tmp_path, k=2)
    ref = save(second, 0)
    place = Path(first.run_dir.path, "checkpoints")
    (place / "1-r0").write_bytes(b"not a directory")
    (place / "notes").mkdir()
    (place / "2-r0" / "notes").mkdir()
    (place / "2-r0" / "step-00000009").write_bytes(b"")
    found = list_checkpoints(first.run_dir)
    assert [(one.name, one.state) for one in found] == [
        (".", State.BROKEN),
        (ref.name, State.COMMITTED),
        ("step-00000009", State.BROKEN),
    ]
    assert found[0].problem == "can't be listed: Not a directory"
