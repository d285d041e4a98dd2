"""Which checkpoints may go after a commit, and how they go.

Nothing is deleted unless as many newer ones as are to be kept, and at least two, have just been read to the
last byte and found whole. Never deleted: what is pinned, what an attempt resumed from, what is broken (it is
evidence, and somebody may repair it), and anything once a later attempt has begun.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import alchemy_agent as agent
from alchemy.checkpoint.records import SUPERSEDED_PREFIX, CheckpointRef
from alchemy.checkpoint.store import Checkpoint, State, list_checkpoints, remove, verify
from alchemy.checkpoint.writing import sync_directory
from alchemy.errors import BrokenCheckpoint
from alchemy.fencing import Fenced, yield_to_later

__all__ = ["completed", "deletable", "pinned", "retire"]

LEAST = 2
"""So many stay, whatever was asked for: the newest one may turn out to be damaged."""

_verified: set[tuple[Path, str]] = set()
"""What this process has read to the last byte, by its manifest's hash: once is enough."""

Place = tuple[str, int]
"""Attempt and step: all checkpoints that were made there."""


def deletable(checkpoints: Sequence[Checkpoint], keep: int, protected: Collection[Place]) -> list[Checkpoint]:
    """Return the committed ones beyond the newest `keep` (and never less than two) that nothing protects.

    Args:
        checkpoints: In the order of their commits, oldest first.
        keep: How many are wanted.
        protected: Attempt and step of those that must stay; they are kept besides the newest ones.
    """
    committed = [checkpoint for checkpoint in checkpoints if checkpoint.state is State.COMMITTED]
    surplus = committed[: -max(keep, LEAST)]
    return [checkpoint for checkpoint in surplus if (checkpoint.attempt, checkpoint.step) not in protected]


def pinned(run_dir: agent.RunDir) -> set[Place]:
    """Return what the consumers of a run have pinned.

    Raises:
        OSError: The pins can't be listed.
        ValueError: One of them can't be read; the message says which.
    """
    directory = Path(run_dir.pins)
    try:
        names = sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return set()
    return {_pin(directory / name) for name in names}


def completed(run_dir: agent.RunDir) -> set[Place]:
    """Return the final checkpoint of the newest attempt that completed; it stays until there is another.

    Raises:
        OSError: The attempts can't be listed.
    """
    for name in reversed(run_dir.attempt_names()):
        record = agent.read_record(run_dir.attempt(name).result) or {}
        if record.get("status") == "completed":
            final = record.get("checkpoint") or {}
            return {(str(final.get("attempt")), int(final["step"]))} if "step" in final else set()
    return set()


def _pin(path: Path) -> Place:
    record = agent.read_record(path) or {}
    attempt, step = record.get("attempt"), record.get("step")
    if not isinstance(attempt, str) or not isinstance(step, int):
        raise ValueError(  # noqa: TRY004 (the file is wrong, not the caller)
            f'{path} does not say {{"v": 1, "attempt": …, "step": …}}: mend or delete it'
        )
    return attempt, step


def retire(attempt: agent.AttemptDir, *, keep: int, protected: CheckpointRef | None) -> list[str]:
    """Delete what is no longer needed; to be called after a commit of `attempt`, by its one writer.

    Args:
        attempt: The attempt that has just committed.
        keep: How many checkpoints are wanted; at least two stay.
        protected: What must stay whatever its age: the checkpoint that the attempt resumed from.

    Returns:
        What went wrong, for people. Nothing is ever raised for it: the training has what it needs.
    """
    try:
        yield_to_later(attempt, "the right to delete checkpoints")
        stays = pinned(attempt.run_dir) | completed(attempt.run_dir)
        checkpoints = list_checkpoints(attempt.run_dir)
    except (OSError, ValueError, Fenced) as error:
        return [f"no checkpoint was deleted: {error}"]
    if protected is not None:
        stays.add((protected.attempt, protected.step))
    problems: list[str] = []
    for checkpoint in _garbage(checkpoints, attempt):
        _delete(checkpoint, problems)
    for checkpoint in _surplus(checkpoints, keep, stays, problems):
        _delete(checkpoint, problems)
    return problems


def _garbage(checkpoints: Sequence[Checkpoint], attempt: agent.AttemptDir) -> list[Checkpoint]:
    """Return what a cut deletion left, and what earlier attempts did not commit: they no longer can."""
    now = (attempt.k, attempt.restarts)
    return [
        checkpoint
        for checkpoint in checkpoints
        if (checkpoint.state is State.SUPERSEDED and _age(checkpoint, attempt) <= now)
        or (checkpoint.state is State.WRITING and _age(checkpoint, attempt) < now)
    ]


def _age(checkpoint: Checkpoint, attempt: agent.AttemptDir) -> tuple[int, int]:
    of = attempt.run_dir.attempt(checkpoint.attempt)
    return of.k, of.restarts


def _surplus(
    checkpoints: Sequence[Checkpoint],
    keep: int,
    protected: Collection[Place],
    problems: list[str],
) -> list[Checkpoint]:
    """Return what may go, once enough of what stays is verified."""
    checkpoints = list(checkpoints)
    while doomed := deletable(checkpoints, keep, protected):
        broken = _first_broken(checkpoints, keep)
        if broken is None:
            return doomed
        place, problem = broken
        problems.append(problem)
        checkpoints[place] = replace(checkpoints[place], state=State.BROKEN, problem=problem)
    return []


def _first_broken(checkpoints: Sequence[Checkpoint], keep: int) -> tuple[int, str] | None:
    """Verify the newest ones; return the place of one that isn't whole, and why."""
    committed = [place for place, one in enumerate(checkpoints) if one.state is State.COMMITTED]
    for place in committed[-max(keep, LEAST) :]:
        checkpoint = checkpoints[place]
        known = (checkpoint.path, checkpoint.manifest_sha256)
        if known in _verified:
            continue
        try:
            verify(checkpoint, threads=1)  # the training beside us has better use for the others
        except BrokenCheckpoint as error:
            return place, str(error)
        _verified.add(known)
    return None


def _delete(checkpoint: Checkpoint, problems: list[str]) -> None:
    try:
        remove(_put_aside(checkpoint))
    except OSError as error:
        problems.append(f"{checkpoint.path} could not be deleted: {error.strerror}")


def _put_aside(checkpoint: Checkpoint) -> Path:
    """Rename it, so that no reader takes it for a checkpoint while it vanishes file by file."""
    target = checkpoint.path.with_name(SUPERSEDED_PREFIX + checkpoint.name)
    if checkpoint.path != target:
        try:
            checkpoint.path.rename(target)
        except OSError:  # which may have done it all the same
            if os.path.lexists(checkpoint.path) or not target.is_dir():
                raise
        sync_directory(target.parent)
    return target
