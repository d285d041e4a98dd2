"""What is written down about a checkpoint, and where: pure, and the only place that joins these paths.

    jobs/<run>/checkpoints/<attempt>/step-<n>[.<m>]/
        ...                 data files, as many as the caller needs
        manifest.json       size and SHA-256 of each of them, and what the checkpoint is
        committed.json      the marker: the SHA-256 of manifest.json; there exactly if all of it is
    jobs/<run>/checkpoints/<attempt>/superseded-step-<n>[.<m>]/     on its way out
    jobs/<run>/pins/<consumer>                                      {"attempt", "step"}: not to be deleted
    jobs/<run>/attempts/<attempt>/resume.json                       what the attempt began with

A checkpoint after step n, counted from 0, resumes at step n + 1. A further one after the same step gets
`.1`, `.2`, …; a name is never used twice.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import alchemy_agent as agent

__all__ = [
    "MANIFEST",
    "MARKER",
    "SUPERSEDED_PREFIX",
    "CheckpointRef",
    "FileEntry",
    "Manifest",
    "attempt_checkpoints",
    "check_file_name",
    "checkpoint_name",
    "parse_checkpoint_name",
]

MANIFEST = "manifest.json"
MARKER = "committed.json"
SUPERSEDED_PREFIX = "superseded-"

_NAME = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,17})(?:\.([1-9][0-9]{0,8}))?", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_FILE_NAME_BYTES = 200
"""Some file systems allow 255, and a temporary file's name is longer than the file's own."""

T = TypeVar("T")


# --- Where things lie ------------------------------------------------------------------------------


def attempt_checkpoints(attempt: agent.AttemptDir) -> Path:
    """Return where the checkpoints of one attempt lie; nobody else writes there."""
    return Path(attempt.run_dir.checkpoints, attempt.name)


def checkpoint_name(step: int, number: int = 0) -> str:
    """Return the directory's name for the checkpoint after `step`; `number` counts those after the same step.

    Raises:
        ValueError: One of them is negative.
    """
    if step < 0 or number < 0:
        raise ValueError(f"step {step}, number {number}: a checkpoint comes after a step, counted from 0")
    return f"step-{step:08d}.{number}" if number else f"step-{step:08d}"


def parse_checkpoint_name(name: str) -> tuple[int, int] | None:
    """Return step and number of a directory's name, None if no checkpoint is called so."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def check_file_name(name: str) -> None:
    """Refuse what can't be the name of a data file.

    Raises:
        ValueError: It is taken by the protocol, hidden, too long, or names a place elsewhere.
    """
    if name in (MANIFEST, MARKER):
        raise ValueError(f"{name!r} is the protocol's own")
    if not name.isprintable() or not name or name.startswith(".") or "/" in name:
        raise ValueError(f"{name!r} is not the name of a file in this directory")
    if len(name.encode()) > _FILE_NAME_BYTES:
        raise ValueError(f"{name!r} is longer than {_FILE_NAME_BYTES} bytes")


# --- What is written down --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CheckpointRef:
    """Names one checkpoint of a run, and its exact contents."""

    attempt: str
    step: int
    """The last finished step, counted from 0."""
    manifest_sha256: str
    name: str
    """The directory's name, such as `step-00000499`."""

    def __str__(self) -> str:
        return f"{self.attempt}/{self.name}"

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "attempt": self.attempt,
            "step": self.step,
            "manifest": self.manifest_sha256,
            "name": self.name,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> CheckpointRef:
        """Read the JSON form.

        Raises:
            ValueError: Something is missing or can't be; the message names it.
        """
        name, step = _take(record, "name", str), _take(record, "step", int)
        if (parse_checkpoint_name(name) or (-1, 0))[0] != step:
            raise ValueError(f"'name' is {name!r}, which is not one after step {step}")
        return cls(_take(record, "attempt", str), step, _take_sha256(record, "manifest"), name)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What a file must be, to the last bit."""

    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint is and what belongs to it."""

    run: str
    attempt: str
    step: int
    seq: int
    """Counts the commits of a run's lineage: 1 + that of the checkpoint resumed from, then one by one."""
    parent: CheckpointRef | None
    """What the attempt resumed from, or its own previous checkpoint; None for the first of all."""
    world_size: int
    ranks: tuple[Mapping[str, FileEntry], ...]
    """The files each rank wrote, by name; no two ranks write the same name."""
    kinds: Mapping[str, str]
    """Kind of each managed value, for people."""
    applied: tuple[str, ...]
    """The ids of the commands whose effects are in it."""
    time: float
    """The writer's wall clock in seconds, for people."""

    @property
    def files(self) -> dict[str, FileEntry]:
        """The files of all ranks."""
        return {name: entry for files in self.ranks for name, entry in files.items()}

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())

    def encode(self) -> bytes:
        """Return the contents of `manifest.json`."""
        files = [
            {name: {"size": entry.size, "sha256": entry.sha256} for name, entry in rank.items()}
            for rank in self.ranks
        ]
        return agent.dumps(
            {
                "v": agent.WIRE_VERSION,
                "run": self.run,
                "attempt": self.attempt,
                "step": self.step,
                "seq": self.seq,
                "parent": self.parent and self.parent.to_record(),
                "world_size": self.world_size,
                "ranks": files,
                "kinds": dict(self.kinds),
                "applied": list(self.applied),
                "time": self.time,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Read the contents of `manifest.json`; fields it does not know are passed over.

        Raises:
            ValueError: It is not one; the message names what is wrong.
        """
        record = agent.loads(data)
        check_version(record)
        manifest = cls(
            run=_take(record, "run", str),
            attempt=_take(record, "attempt", str),
            step=_take(record, "step", int),
            seq=_take(record, "seq", int),
            parent=_parent(record),
            world_size=_take(record, "world_size", int),
            ranks=tuple(_files(rank) for rank in _take_list(record, "ranks", dict)),
            kinds=_kinds(record),
            applied=tuple(_take_list(record, "applied", str)),
            time=float(_take(record, "time", (int, float))),
        )
        if len(manifest.ranks) != manifest.world_size:
            raise ValueError(f"{manifest.world_size} ranks, and files of {len(manifest.ranks)}")
        if len(manifest.files) != sum(map(len, manifest.ranks)):
            raise ValueError("two ranks name the same file")
        return manifest


def check_version(record: Mapping[str, Any]) -> None:
    """Refuse a record of another version: what it means is not known here.

    Raises:
        ValueError: It has another version or none.
    """
    if record.get("v") != agent.WIRE_VERSION:
        raise ValueError(f"version {record.get('v')!r}; this installation reads {agent.WIRE_VERSION}")


def sha256(data: bytes) -> str:
    """Return the digest by which files are named."""
    return hashlib.sha256(data).hexdigest()


def _parent(record: Mapping[str, Any]) -> CheckpointRef | None:
    try:
        parent = record["parent"]
        return None if parent is None else CheckpointRef.from_record(_take(record, "parent", dict))
    except KeyError:
        raise ValueError("'parent' is missing") from None
    except ValueError as error:
        raise ValueError(f"parent: {error}") from None


def _files(rank: Mapping[str, Any]) -> dict[str, FileEntry]:
    files = {}
    for name in rank:
        check_file_name(name)
        entry = _take(rank, name, dict)
        try:
            files[name] = FileEntry(_take(entry, "size", int), _take_sha256(entry, "sha256"))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return files


def _kinds(record: Mapping[str, Any]) -> dict[str, str]:
    kinds = _take(record, "kinds", dict)
    return {name: _take(kinds, name, str) for name in kinds}


def _take(record: Mapping[str, Any], key: str, kind: type[T] | tuple[type[T], ...]) -> T:
    """Return a field that must be of this type; numbers of ours are never negative, and no booleans."""
    if key not in record:
        raise ValueError(f"{key!r} is missing")
    value = record[key]
    if isinstance(value, kind) and not isinstance(value, bool) and not (isinstance(value, int) and value < 0):
        return value
    raise ValueError(f"{key!r} can't be {repr(value)[:60]}")


def _take_list(record: Mapping[str, Any], key: str, kind: type[T]) -> list[T]:
    items = _take(record, key, list)
    if not all(isinstance(item, kind) for item in items):
        raise ValueError(f"{key!r} can't be {repr(items)[:60]}")
    return items


def _take_sha256(record: Mapping[str, Any], key: str) -> str:
    digest = _take(record, key, str)
    if not _SHA256.fullmatch(digest):
        raise ValueError(f"{key!r} can't be {digest[:80]!r}: a SHA-256 is 64 hexadecimal digits")
    return digest
