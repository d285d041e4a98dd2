"""Which checkpoint an attempt continues from: the newest that verifies, and never silently none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import alchemy_agent as agent
from alchemy.checkpoint.records import MARKER
from alchemy.checkpoint.store import Checkpoint, State, list_attempt, verify
from alchemy.errors import BrokenCheckpoint, CheckpointUnusable

__all__ = ["Choice", "choose", "lineage"]


@dataclass(frozen=True, slots=True)
class Choice:
    """What an attempt begins with."""

    checkpoint: Checkpoint | None
    """None: nothing was ever committed, so it begins at step 0."""
    rejected: tuple[tuple[str, str], ...]
    """Newer ones that can't be trusted, newest first: which, and why."""


def lineage(attempt: agent.AttemptDir) -> list[str]:
    """Return the names of the earlier attempts that `attempt` continues, newest first.

    They end with one that was told to start over, and before one that completed its run, unless it is of the
    same job: a scheduler may requeue a job that is through, which then has nothing left to do.

    Raises:
        OSError: The attempts can't be listed.
    """
    run_dir, now = attempt.run_dir, (attempt.k, attempt.restarts)
    names = []
    for name in reversed(run_dir.attempt_names()):
        earlier = run_dir.attempt(name)
        if (earlier.k, earlier.restarts) >= now:
            continue
        if earlier.k < attempt.k and (agent.read_record(earlier.result) or {}).get("status") == "completed":
            break
        names.append(name)
        if (agent.read_record(earlier.resume) or {}).get("fresh") is True:
            break
    return names


def choose(attempt: agent.AttemptDir, *, within_job: bool = False) -> Choice:
    """Return the newest checkpoint of the lineage that verifies, every byte of it.

    Args:
        attempt: The one that is to begin.
        within_job: Whether only what its own job committed counts, before the scheduler restarted it.

    Raises:
        CheckpointUnusable: Progress was committed, and no checkpoint of it can be trusted.
        OSError: The attempts can't be listed.
    """
    names = lineage(attempt)
    if within_job:
        names = [name for name in names if attempt.run_dir.attempt(name).k == attempt.k]
    found = [
        checkpoint for name in reversed(names) for checkpoint in list_attempt(attempt.run_dir.attempt(name))
    ]
    rejected = []
    for checkpoint in reversed(found):
        if checkpoint.state not in (State.COMMITTED, State.BROKEN):
            continue
        try:
            verify(checkpoint)
        except BrokenCheckpoint as error:
            rejected.append((str(checkpoint.ref), str(error)))
        else:
            return Choice(checkpoint, tuple(rejected))
    evidence = _evidence(attempt.run_dir, names, found, within_job=within_job)
    if evidence:
        raise CheckpointUnusable(_unusable(attempt, evidence, rejected))
    return Choice(None, ())


def _evidence(
    run_dir: agent.RunDir, names: Sequence[str], found: Sequence[Checkpoint], *, within_job: bool
) -> str:
    """Return what shows that something was committed, empty if nothing does.

    A manifest alone shows nothing: a process that is killed between it and the marker had not committed yet.
    """
    for checkpoint in found:
        if checkpoint.state is State.BROKEN or os.path.lexists(checkpoint.path / MARKER):
            return os.fspath(checkpoint.path)
    for attempt in map(run_dir.attempt, names):
        progress = Path(attempt.rank(0), "progress.json")
        if (agent.read_record(progress) or {}).get("checkpoint") is not None:
            return os.fspath(progress)
        source = (agent.read_record(attempt.resume) or {}).get("from")
        if source is not None and not (within_job and _attempt_in(source) not in names):
            return os.fspath(attempt.resume)
    return ""


def _attempt_in(source: object) -> object:
    """Return of which attempt the checkpoint is that a `resume.json` names."""
    return source.get("attempt") if isinstance(source, dict) else None


def _unusable(attempt: agent.AttemptDir, evidence: str, rejected: Sequence[tuple[str, str]]) -> str:
    directory = Path(attempt.run_dir.checkpoints)
    reasons = "".join(f"\n  {why}" for _, why in rejected) or f"\n  there is none in {directory}"
    return (
        f"run {attempt.run_dir.name} had made progress ({evidence} shows it), and attempt {attempt.name} "
        f"finds no checkpoint to continue from:{reasons}\nRestore {directory} from a copy, or start over "
        "from step 0 with --alchemy-fresh (in a job: ALCHEMY_FRESH=1)."
    )
