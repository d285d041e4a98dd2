"""What lies in a checkpoint's directory, compared with what was written down.

No link is followed, no pipe waited for, nothing mapped that may shrink meanwhile.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import alchemy_agent as agent
from alchemy.checkpoint.records import MANIFEST, MARKER, FileEntry, Manifest, check_version, sha256

__all__ = ["contents", "examine", "find_damage", "read_manifest"]

_MANIFEST_BYTES = 64 << 20
_MARKER_BYTES = 64 << 10
_BLOCK = 1 << 20
"""Bytes; a block this small is still in the processor's cache when it is hashed."""


def contents(directory: Path) -> dict[str, os.stat_result]:
    """Return what lies in it, but for hidden files, which are nobody's (`.nfs…`, temporary ones).

    Raises:
        OSError: It can't be read.
        ValueError: It is a link, or somebody else's.
    """
    own = directory.lstat()
    if not stat.S_ISDIR(own.st_mode):
        raise ValueError("is a symbolic link or a file, not a directory")
    _check_owner(directory.name, own, _owners(directory))
    with os.scandir(directory) as entries:
        return {
            entry.name: entry.stat(follow_symlinks=False)
            for entry in entries
            if not entry.name.startswith(".")
        }


def examine(directory: Path, step: int, there: Mapping[str, os.stat_result]) -> tuple[Manifest, str]:
    """Compare marker, manifest, place, names and sizes; the data files stay closed.

    Args:
        directory: The checkpoint's; the two above it are named after attempt and, further up, the run.
        step: The one in its name.
        there: Its contents.

    Returns:
        The manifest, and its SHA-256.

    Raises:
        OSError: Something can't be read.
        ValueError: Something does not fit; the message names it.
    """
    owners = _owners(directory)
    for name, found in sorted(there.items()):
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{name} is not a plain file")
        _check_owner(name, found, owners)
    marker = _read_marker(directory)
    data = _read(directory / MANIFEST, _MANIFEST_BYTES)
    digest = sha256(data)
    if marker.get("manifest") != digest:
        raise ValueError(f"{MANIFEST} is not the one that was committed: its SHA-256 is {digest}")
    manifest = _decode(data)
    here = (directory.parents[2].name, directory.parent.name, step)
    # A checkpoint that was copied to another one's place is not what the place says.
    _check_place(MARKER, here, (marker.get("run"), marker.get("attempt"), marker.get("step")))
    _check_place(MANIFEST, here, (manifest.run, manifest.attempt, manifest.step))
    _check_files(manifest.files, there)
    return manifest, digest


def read_manifest(directory: Path) -> tuple[Manifest, str]:
    """Return the manifest of what is not committed, and its SHA-256.

    Raises:
        OSError: It can't be read.
        ValueError: It is none.
    """
    data = _read(directory / MANIFEST, _MANIFEST_BYTES)
    return _decode(data), sha256(data)


def find_damage(directory: Path, files: Mapping[str, FileEntry], threads: int = 0) -> str:
    """Read every byte of these files; return what is wrong, empty if nothing is.

    Args:
        directory: Where they lie.
        files: What they must be.
        threads: How many to read at a time; 0 for as many as there are processors to use.
    """
    names = sorted(files, key=lambda name: -files[name].size)  # the longest job first
    threads = min(len(names), threads or len(os.sched_getaffinity(0)))
    if threads <= 1:
        return next(filter(None, (_damage(directory / name, files[name]) for name in names)), "")
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(threads, "alchemy-verify") as pool:
        return next(filter(None, pool.map(lambda name: _damage(directory / name, files[name]), names)), "")


def _read_marker(directory: Path) -> agent.Record:
    data = _read(directory / MARKER, _MARKER_BYTES)
    try:
        marker = agent.loads(data)
        check_version(marker)
    except ValueError as error:
        raise ValueError(f"{MARKER}: {error}") from None
    if not data.endswith(b"\n"):
        raise ValueError(f"{MARKER}: its end is missing")
    return marker


def _decode(data: bytes) -> Manifest:
    try:
        return Manifest.decode(data)
    except ValueError as error:
        raise ValueError(f"{MANIFEST}: {error}") from None


def _owners(directory: Path) -> tuple[int, int]:
    """Return who may own what is in a checkpoint: whose run it is, and we.

    Where a server maps user ids, our own files seem to be somebody's, like the run's directory.
    """
    return directory.parents[2].stat().st_uid, os.geteuid()


def _check_owner(name: str, found: os.stat_result, owners: tuple[int, int]) -> None:
    if found.st_uid not in owners:
        raise ValueError(f"{name} belongs to user {found.st_uid}, the run to user {owners[0]}")


def _check_place(name: str, here: tuple[object, ...], there: tuple[object, ...]) -> None:
    if here != there:
        raise ValueError(f"{name} is that of run {there[0]}, attempt {there[1]}, step {there[2]}")


def _check_files(files: Mapping[str, FileEntry], there: Mapping[str, os.stat_result]) -> None:
    for name, entry in files.items():
        if name not in there:
            raise ValueError(f"{name} is missing")
        if there[name].st_size != entry.size:
            raise ValueError(f"{name} has {there[name].st_size} bytes, not {entry.size}")
    for name in sorted(there):
        if name not in files and name not in (MANIFEST, MARKER):
            raise ValueError(f"{name} does not belong to it")


def _damage(path: Path, entry: FileEntry) -> str:
    try:
        found = _hash(path)
    except OSError as error:
        return f"{path.name} can't be read: {error.strerror}"
    if found.size != entry.size:
        return f"{path.name} has {found.size} bytes, not {entry.size}"
    if found.sha256 != entry.sha256:
        return f"{path.name} was damaged or exchanged: its SHA-256 is {found.sha256}, not {entry.sha256}"
    return ""


def _hash(path: Path) -> FileEntry:
    digest = hashlib.sha256()
    size = 0
    buffer = memoryview(bytearray(_BLOCK))
    fd = _open(path)
    try:
        while count := os.readv(fd, [buffer]):
            digest.update(buffer[:count])
            size += count
    finally:
        os.close(fd)
    return FileEntry(size, digest.hexdigest())


def _read(path: Path, limit: int) -> bytes:
    fd = _open(path)
    try:
        data = bytearray()
        while len(data) <= limit and (more := os.read(fd, min(_BLOCK, limit + 1 - len(data)))):
            data += more
    finally:
        os.close(fd)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"has more than {limit} bytes", os.fspath(path))
    return bytes(data)


def _open(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        is_plain = stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        os.close(fd)
        raise
    if not is_plain:
        os.close(fd)
        raise OSError(errno.EINVAL, "is not a plain file", os.fspath(path))
    return fd
