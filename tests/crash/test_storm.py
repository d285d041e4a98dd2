"""Many saves while others read, and a disk that is full: there is always something to continue from."""

from __future__ import annotations

import errno
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import alchemy_agent as agent
from alchemy.checkpoint.records import CheckpointRef
from alchemy.checkpoint.retention import retire
from alchemy.checkpoint.store import Checkpoint, State, list_checkpoints, verify, write_checkpoint
from alchemy.checkpoint.writing import Part
from alchemy.errors import BrokenCheckpoint
from tests.support.agentlab import make_attempt

MB = 1 << 20
DISK_MB = 16


def save(attempt: agent.AttemptDir, step: int, seq: int, content: bytes) -> CheckpointRef:
    part = Part("model.pt", lambda sink: sink.write(content))
    return write_checkpoint(attempt, step, [part], seq=seq, parent=None, kinds={}, applied=())


def whole(run: agent.RunDir) -> list[Checkpoint]:
    """Return those that a reader can use now; one that is deleted while it is read is not among them."""
    found = []
    for checkpoint in list_checkpoints(run):
        if checkpoint.state is State.COMMITTED:
            with suppress(BrokenCheckpoint):
                verify(checkpoint, threads=1)
                found.append(checkpoint)
    return found


class Reader(threading.Thread):
    """Loads the newest checkpoint in a loop, as an evaluation beside the training does."""

    def __init__(self, run: agent.RunDir) -> None:
        super().__init__()
        self.loads = 0
        self.wrong: list[str] = []
        self._run = run
        self._enough = threading.Event()

    def run(self) -> None:
        last = 0
        while not self._enough.is_set():
            seq = self._load_newest()
            if seq is None:
                continue
            if seq < last:
                self.wrong.append(f"commit {seq} after {last}")
            last = seq
            self.loads += 1

    def _load_newest(self) -> int | None:
        """Return the commit that was loaded; None if it was deleted meanwhile: look again."""
        found = list_checkpoints(self._run)
        self.wrong += [one.problem for one in found if one.state is State.BROKEN]
        newest = [one for one in found if one.state is State.COMMITTED][-1:]
        for one in newest:
            try:
                verify(one, threads=1)
            except BrokenCheckpoint as error:
                if one.path.exists():
                    self.wrong.append(str(error))
                return None
            return one.manifest.seq if one.manifest else 0
        return None

    def end(self) -> None:
        self._enough.set()
        self.join()


def test_a_reader_always_finds_a_checkpoint_while_many_are_saved_and_retired(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    first = make_attempt(tmp_path)
    run = first.run_dir
    refs = [save(first, step, step + 1, b"%d" % step) for step in range(4)]
    agent.make_directory(run.pins)
    agent.write_record(Path(run.pins) / "eval", refs[1].to_record())
    second = agent.claim_attempt(run, 2, 0)
    reader = Reader(run)
    reader.start()
    try:
        for number in range(2000 if pytestconfig.getoption("run_long") else 300):
            save(second, 4 + number, 5 + number, b"%d" % number * 1000)
            assert retire(second, keep=2, protected=refs[2]) == []
            if number % 20 == 0:
                left = [str(checkpoint.ref) for checkpoint in whole(run)]
                assert {str(refs[1]), str(refs[2])} <= set(left)
                assert len(left) == 4, "the pinned one, the one resumed from, and two"
    finally:
        reader.end()
    assert reader.wrong == []
    assert reader.loads > 10


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, in memory, where we may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=0700", "tmpfs", disk],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_fails_the_save_and_leaves_the_older_ones_intact(small_disk: Path) -> None:
    attempt = make_attempt(small_disk)
    run = attempt.run_dir
    older = [save(attempt, step, step + 1, bytes([step]) * (4 * MB)) for step in range(3)]
    for step in range(3, 6):
        with pytest.raises(OSError, match=f"step-{step:08d}") as caught:
            save(attempt, step, step + 1, bytes(DISK_MB * MB))
        assert caught.value.errno == errno.ENOSPC
        assert [checkpoint.ref for checkpoint in list_checkpoints(run)] == older, (
            "what was written is removed"
        )
        assert len(whole(run)) == 3
    last = save(attempt, 6, 4, bytes(2 * MB))
    assert retire(attempt, keep=2, protected=None) == []
    assert [checkpoint.ref for checkpoint in whole(run)] == [older[2], last]


def test_a_disk_filled_by_somebody_else_costs_nothing_but_the_save(small_disk: Path) -> None:
    attempt = make_attempt(small_disk)
    older = [save(attempt, step, step + 1, bytes([step]) * MB) for step in range(2)]
    with suppress(OSError), (small_disk / "somebody's").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(OSError, match="No space left"):
        save(attempt, 2, 3, b"tiny" * 5000)
    assert retire(attempt, keep=2, protected=None) == []
    assert [checkpoint.ref for checkpoint in whole(attempt.run_dir)] == older
