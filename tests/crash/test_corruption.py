"""Damage to a committed checkpoint: all of it is found, and nothing is found in a healthy one."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import alchemy_agent as agent
from alchemy.checkpoint.store import Checkpoint, State, list_checkpoints, verify, write_checkpoint
from alchemy.checkpoint.writing import Part
from alchemy.errors import BrokenCheckpoint
from tests.support.agentlab import make_attempt

PAGE = 4096
STEPS = 4
ATTEMPTS = ((1, 0), (1, 1), (2, 0))


def part(name: str, content: bytes) -> Part:
    return Part(name, lambda sink: sink.write(content))


def save(attempt: agent.AttemptDir, step: int, seq: int, chance: random.Random) -> None:
    """Write a checkpoint; equal files of two checkpoints have the same size."""
    parts = [
        part("model.pt", chance.randbytes(10 * PAGE)),
        part("optimizer.pt", chance.randbytes(5 * PAGE + 100)),
        part("loop.json", agent.dumps({"step": step, "noise": chance.randbytes(20).hex()})),
    ]
    write_checkpoint(attempt, step, parts, seq=seq, parent=None, kinds={"model": "torch"}, applied=["0001-a"])


@pytest.fixture
def chance() -> random.Random:
    return random.Random(20240711)  # noqa: S311


@pytest.fixture
def run(tmp_path: Path, chance: random.Random) -> agent.RunDir:
    """A run of three attempts with four checkpoints each."""
    seq = 0
    for k, restarts in ATTEMPTS:
        attempt = make_attempt(tmp_path, k=k, restarts=restarts)
        for step in range(STEPS):
            seq += 1
            save(attempt, step, seq, chance)
    return attempt.run_dir


@pytest.fixture
def checkpoints(run: agent.RunDir) -> list[Checkpoint]:
    return list_checkpoints(run)


def is_found(checkpoint: Checkpoint) -> bool:
    """Whether verifying says that something is wrong, and where."""
    try:
        verify(replace(checkpoint, manifest_sha256=""), threads=1)  # as one who has never seen it
    except BrokenCheckpoint as error:
        return str(checkpoint.path) in str(error)
    return False


def files_of(checkpoint: Checkpoint) -> list[Path]:
    return sorted(checkpoint.path.iterdir())


def damage_often(
    times: int, checkpoints: list[Checkpoint], chance: random.Random, damage: Callable[[bytearray], object]
) -> list[str]:
    """Damage one file at a time; return those of which nobody noticed."""
    missed = []
    for _ in range(times):
        checkpoint = chance.choice(checkpoints)
        path = chance.choice(files_of(checkpoint))
        before = path.read_bytes()
        content = bytearray(before)
        damage(content)
        assert content != before
        path.write_bytes(content)
        if not is_found(checkpoint):
            missed.append(f"{path}: {bytes(content[:200])!r}")
        path.write_bytes(before)
    return missed


@pytest.fixture(autouse=True)
def _healthy_before_and_after(checkpoints: list[Checkpoint]) -> Iterator[None]:
    def look() -> None:
        assert len(checkpoints) == STEPS * len(ATTEMPTS)
        assert not any(map(is_found, checkpoints))

    look()
    yield
    look()


def test_every_flipped_bit_is_found(checkpoints: list[Checkpoint], chance: random.Random) -> None:
    def flip(content: bytearray) -> None:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)

    assert damage_often(1000, checkpoints, chance, flip) == []


def test_every_zeroed_page_is_found(checkpoints: list[Checkpoint], chance: random.Random) -> None:
    def zero(content: bytearray) -> None:
        start = chance.randrange(0, len(content), PAGE)
        content[start : start + PAGE] = bytes(len(content[start : start + PAGE]))

    assert damage_often(500, checkpoints, chance, zero) == []


def test_every_truncation_is_found(checkpoints: list[Checkpoint], chance: random.Random) -> None:
    def truncate(content: bytearray) -> None:
        del content[chance.choice([0, len(content) - 1, chance.randrange(len(content))]) :]

    assert damage_often(500, checkpoints, chance, truncate) == []


def test_every_added_byte_is_found(checkpoints: list[Checkpoint], chance: random.Random) -> None:
    def add(content: bytearray) -> None:
        content += chance.choice([b"\0", b"x", bytes(PAGE)])

    assert damage_often(100, checkpoints, chance, add) == []


def exchange(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def test_every_exchange_of_two_files_is_found(checkpoints: list[Checkpoint], chance: random.Random) -> None:
    """Within a checkpoint, with another step's, with another attempt's; also manifests and markers."""
    for _ in range(200):
        one, other = chance.choice(checkpoints), chance.choice(checkpoints)
        a = chance.choice(files_of(one))
        b = other.path / (a.name if one is not other else chance.choice(files_of(other)).name)
        if a == b:
            b = next(path for path in files_of(one) if path != a)
        exchange(a, b)
        assert is_found(one), (a, b)
        assert is_found(other), (a, b)
        exchange(a, b)


def test_every_exchange_of_two_whole_checkpoints_is_found(
    checkpoints: list[Checkpoint], chance: random.Random
) -> None:
    for _ in range(50):
        one, other = chance.sample(checkpoints, 2)
        exchange(one.path, other.path)
        assert is_found(one)
        assert is_found(other)
        exchange(one.path, other.path)


def test_a_checkpoint_of_another_run_is_found(
    checkpoints: list[Checkpoint], run: agent.RunDir, tmp_path: Path
) -> None:
    other = tmp_path / "jobs" / "run-2"
    shutil.copytree(run.path, other)
    found = list_checkpoints(agent.RunDir(other))
    assert len(found) == len(checkpoints)
    assert {one.state for one in found} == {State.BROKEN}
    assert "is that of run run-1" in found[0].problem


def test_a_thousand_healthy_checkpoints_raise_no_alarm(run: agent.RunDir) -> None:
    """Each listed, and read to the last byte, in one thread and in several."""
    verified = 0
    while verified < 1000:
        for checkpoint in list_checkpoints(run):
            assert checkpoint.state is State.COMMITTED, checkpoint.problem
            verify(checkpoint, threads=verified % 3)
            verified += 1
