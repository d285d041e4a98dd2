"""The protocol of a commit, and looking at what was committed.

Writing: a new directory, the data files, the manifest that names them, and, once all of that would survive a
power loss, the marker. A reader takes what has a marker and nothing else, so that at any instant it finds a
checkpoint whole or not at all. The marker holds the manifest's SHA-256 and the manifest that of every file:
no other damage than a loss of the whole directory goes unnoticed.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import final

import alchemy_agent as agent
from alchemy.checkpoint.reading import contents, examine, find_damage, read_manifest
from alchemy.checkpoint.records import (
    MANIFEST,
    MARKER,
    SUPERSEDED_PREFIX,
    CheckpointRef,
    FileEntry,
    Manifest,
    attempt_checkpoints,
    check_file_name,
    checkpoint_name,
    parse_checkpoint_name,
    sha256,
)
from alchemy.checkpoint.writing import Part, Sink, sync_directory
from alchemy.errors import BrokenCheckpoint
from alchemy.fencing import yield_to_later

__all__ = ["Checkpoint", "State", "list_checkpoints", "remove", "verify", "write_checkpoint"]


_LOOKS = 20
"""How often a directory is listed at most, while what was listed is being deleted."""


class State(str, Enum):
    """What a directory of checkpoints holds, as `alchemy checkpoints` shows it."""

    WRITING = "writing"
    """No marker: being written, or left by a process that was cut."""
    COMMITTED = "committed"
    SUPERSEDED = "superseded"
    """Being deleted, after later commits."""
    BROKEN = "broken"
    """Committed once, and no longer what it was."""


@final
@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One directory, as a quick look found it; only `verify` reads the data."""

    path: Path
    attempt: str
    step: int
    """The last finished step, counted from 0; -1 for a directory that can't be read."""
    name: str
    """The directory's name; without `superseded-`."""
    state: State
    problem: str = ""
    """What is wrong if it is broken."""
    manifest: Manifest | None = None
    manifest_sha256: str = ""
    size: int = 0
    """Bytes of the files that lie there."""

    @property
    def ref(self) -> CheckpointRef:
        """The reference to it; the hash is empty if it was never committed."""
        return CheckpointRef(self.attempt, self.step, self.manifest_sha256, self.name)


# --- Writing ---------------------------------------------------------------------------------------


def _nothing() -> None:
    pass


def write_checkpoint(
    attempt: agent.AttemptDir,
    step: int,
    parts: Sequence[Part],
    *,
    seq: int,
    parent: CheckpointRef | None,
    kinds: Mapping[str, str],
    applied: Sequence[str],
    before_commit: Callable[[], object] = _nothing,
) -> CheckpointRef:
    """Write a checkpoint and commit it; the one writer of the attempt's directory, from one thread at a time.

    Whatever is raised, nothing was committed, and what was written is removed as far as the disk allows.

    Args:
        attempt: The attempt that saves.
        step: The last finished step, counted from 0.
        parts: The data files.
        seq: Its place in the order of all commits of the run.
        parent: The commit before it, if any.
        kinds: Kind of each managed value, for people.
        applied: The ids of the commands whose effects are in it.
        before_commit: Called once all files are on the disk: what must not be newer than they are, such as
            the rows that were logged, is written there.

    Raises:
        OSError: The disk did not take it; `filename` says what.
        Fenced: A later attempt of the run has begun.
        ValueError: A name or a number that can't be; whatever a part or `before_commit` raises comes through.
    """
    for part in parts:
        check_file_name(part.name)
    directory = _new_directory(attempt, step)
    try:
        sync_directory(directory.parent)
        files = {part.name: _write_part(directory, part) for part in parts}
        sync_directory(directory)
        before_commit()
        yield_to_later(attempt, f"the checkpoint after step {step}")
        manifest = Manifest(
            run=attempt.run_dir.name,
            attempt=attempt.name,
            step=step,
            seq=seq,
            parent=parent,
            world_size=1,
            ranks=(files,),
            kinds=kinds,
            applied=tuple(applied),
            time=round(time.time(), 3),
        )
        return _publish(directory, manifest)
    except BaseException as error:
        with suppress(OSError):
            remove(directory)
        if isinstance(error, OSError) and error.filename is None:  # such as what `write` and `fsync` raise
            error.filename = os.fspath(directory)
        raise


def _new_directory(attempt: agent.AttemptDir, step: int) -> Path:
    parent = attempt_checkpoints(attempt)
    _make_directories(parent)
    for number in itertools.count():
        directory = parent / checkpoint_name(step, number)
        try:
            directory.mkdir(0o700)
        except FileExistsError:  # a name is never used twice
            continue
        return directory
    raise AssertionError  # count() has no end


def _make_directories(path: Path) -> None:
    if path.is_dir():
        return
    _make_directories(path.parent)
    with suppress(FileExistsError):
        path.mkdir(0o700)
    sync_directory(path.parent)


def _write_part(directory: Path, part: Part) -> FileEntry:
    with Sink(directory / part.name) as sink:
        part.write(sink)
        return sink.finish()


def _publish(directory: Path, manifest: Manifest) -> CheckpointRef:
    data = manifest.encode()
    ref = CheckpointRef(manifest.attempt, manifest.step, sha256(data), directory.name)
    agent.write_bytes(directory / MANIFEST, data)
    # Both calls read back after an error: one that says failure and yet did it is a success.
    marker = {"run": manifest.run, "attempt": ref.attempt, "step": ref.step, "manifest": ref.manifest_sha256}
    agent.write_record(directory / MARKER, marker)
    return ref


def remove(directory: Path) -> None:
    """Delete a checkpoint's directory, the marker first: at no instant it looks whole and is not.

    Raises:
        OSError: It is not all gone; if even the marker could not be deleted, all of it is left.
    """
    (directory / MARKER).unlink(missing_ok=True)
    problem: OSError | None = None
    for path in sorted(directory.iterdir()):
        try:
            path.unlink()
        except OSError as error:  # noqa: PERF203  the others still take up space
            problem = error
    if problem is not None:
        raise problem
    directory.rmdir()


# --- Looking ---------------------------------------------------------------------------------------


def list_checkpoints(run_dir: agent.RunDir) -> list[Checkpoint]:
    """Return all checkpoints of a run in the order of their commits, oldest first.

    A quick look at each takes in marker, manifest, and the names and sizes of the files, not their contents.
    What can't be read is in the list, too, as broken.

    Raises:
        OSError: The directory of all of them can't be read; that it isn't there is no error.
    """
    parent = Path(run_dir.checkpoints)
    try:
        names = [path.name for path in parent.iterdir()]
    except FileNotFoundError:
        return []
    attempts = []
    for name in names:
        with suppress(ValueError):  # not the name of an attempt
            attempts.append(run_dir.attempt(name))
    attempts.sort(key=lambda attempt: (attempt.k, attempt.restarts))
    return [checkpoint for attempt in attempts for checkpoint in list_attempt(attempt)]


def list_attempt(attempt: agent.AttemptDir) -> list[Checkpoint]:
    """Return the checkpoints of one attempt, as `list_checkpoints` does; it never raises."""
    parent = attempt_checkpoints(attempt)
    for _ in range(_LOOKS):
        try:
            names = sorted(path.name for path in parent.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            problem = f"can't be listed: {error.strerror}"
            return [Checkpoint(parent, attempt.name, -1, ".", State.BROKEN, problem)]
        numbers = {
            name: number
            for name in names
            if (number := parse_checkpoint_name(name.removeprefix(SUPERSEDED_PREFIX)))
        }
        looks = [(number, _look(parent / name)) for name, number in numbers.items()]
        found = [(number, checkpoint) for number, checkpoint in looks if checkpoint is not None]
        if len(found) == len(looks):
            break
        # What was deleted since it was listed has a successor that was not there yet.
    return _in_order(found)


def _in_order(found: list[tuple[tuple[int, int], Checkpoint]]) -> list[Checkpoint]:
    """Order by what was written down; what has no number stands after the one that its name follows."""
    keyed = []
    last = 0
    for place, (_, checkpoint) in enumerate(sorted(found, key=lambda item: item[0])):
        last = checkpoint.manifest.seq if checkpoint.manifest else last
        keyed.append((last, place, checkpoint))
    return [checkpoint for _, _, checkpoint in sorted(keyed, key=lambda item: item[:2])]


def _look(path: Path) -> Checkpoint | None:
    """Look at one directory; None if it is gone by now."""
    first = _look_once(path)
    if first is None or first.state is not State.BROKEN:
        return first
    # A listing is no snapshot: it may have missed what was renamed while it was made.
    return _look_once(path)


def _look_once(path: Path) -> Checkpoint | None:
    name = path.name.removeprefix(SUPERSEDED_PREFIX)
    step, _ = parse_checkpoint_name(name) or (-1, 0)
    state = State.WRITING if name == path.name else State.SUPERSEDED
    found = Checkpoint(path, path.parent.name, step, name, state)
    try:
        there = contents(path)
        found = replace(found, size=sum(one.st_size for one in there.values()))
        if state is State.WRITING and MARKER in there:
            manifest, digest = examine(path, step, there)
            return replace(found, state=State.COMMITTED, manifest=manifest, manifest_sha256=digest)
    except (OSError, ValueError) as error:
        if not os.path.lexists(path):  # deleted meanwhile
            return None
        if state is State.SUPERSEDED:
            return replace(found, problem=_explain(error, path))
        return replace(found, state=State.BROKEN, problem=_explain(error, path))
    with suppress(OSError, ValueError):
        manifest, digest = read_manifest(path)
        found = replace(found, manifest=manifest, manifest_sha256=digest)
    return found


def _explain(error: OSError | ValueError, path: Path) -> str:
    if isinstance(error, OSError):
        return f"{Path(error.filename or path).name}: {error.strerror}"
    return str(error)


# --- Verifying -------------------------------------------------------------------------------------


def verify(checkpoint: Checkpoint, *, threads: int = 0) -> None:
    """Look again, and compare every byte of every file with what was committed.

    Args:
        checkpoint: As a list showed it.
        threads: How many files to read at a time; 0 for as many as there are processors to use.

    Raises:
        BrokenCheckpoint: It can't be trusted; says which file and what is wrong with it.
    """
    now = _look(checkpoint.path)
    if now is None:
        raise BrokenCheckpoint(f"{checkpoint.path}: is gone")
    if now.state is not State.COMMITTED or now.manifest is None:
        raise BrokenCheckpoint(f"{now.path}: {now.problem or f'is {now.state.value}, not committed'}")
    if checkpoint.manifest_sha256 not in ("", now.manifest_sha256):
        raise BrokenCheckpoint(f"{now.path}: is not the checkpoint that was there before")
    problem = find_damage(now.path, now.manifest.files, threads)
    if problem:
        raise BrokenCheckpoint(f"{now.path}: {problem}")
