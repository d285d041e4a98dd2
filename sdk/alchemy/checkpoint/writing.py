"""One data file of a checkpoint: hashed while it goes to the disk, never read back for it.

SHA-256 and `write` let go of the interpreter and take about as long as each other, so large pieces are hashed
by a second thread meanwhile. The kernel is asked early to begin with its own part: the last fsync, which has
to wait for the disk, then finds little left to do.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from alchemy.checkpoint.records import FileEntry

__all__ = ["Part", "Sink", "sync_directory"]

_ALONE = 1 << 20
"""Bytes; a thread of its own hashes so many or more, which takes longer than to start one."""
_GATHERED = 4 << 20
"""Bytes; pieces smaller than `_ALONE` are gathered until they are as many."""
_PIECE = 8 << 20
"""Bytes that are handed to the kernel at once, and sent on their way to the disk."""


class Part(NamedTuple):
    """One data file to be: its name, and what writes it."""

    name: str
    write: Callable[[Sink], object]


class Sink:
    """A new file that is written from its beginning to its end, and then known by size and SHA-256.

    What `torch.save`, `pickle.dump` and the like need of a binary file. For one thread. After an error
    nothing more is written: each further call raises it again.
    """

    def __init__(self, path: Path) -> None:
        """Make the file, private to its owner.

        Raises:
            OSError: It can't be made; also if something of that name is there.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._path = path
        self._fd = os.open(path, flags, 0o600)
        self._sha256 = hashlib.sha256()
        self._size = self._written = 0
        self._gathered = bytearray()
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        """Take any contiguous buffer of bytes, all of it; it may change once this returns.

        Returns:
            Its length in bytes.

        Raises:
            OSError: The disk did not take it.
        """
        view = memoryview(data)
        length = view.nbytes
        if length == 0:
            return 0
        self._check()
        if length < _ALONE:
            self._gathered += view.cast("B")
        if length >= _ALONE or len(self._gathered) >= _GATHERED:
            self.flush()
        if length >= _ALONE:
            self._put(view.cast("B"))
        self._size += length
        return length

    def flush(self) -> None:
        """Hand what was gathered to the kernel.

        Raises:
            OSError: The disk did not take it.
        """
        self._check()
        if self._gathered:
            gathered, self._gathered = self._gathered, bytearray()
            self._put(memoryview(gathered))

    def tell(self) -> int:
        """Return the number of bytes taken so far."""
        return self._size

    def finish(self) -> FileEntry:
        """Wait until all of it would survive a power loss, close the file, and return what it is.

        Raises:
            OSError: It may not be on the disk.
        """
        self.flush()
        try:
            os.fsync(self._fd)
            self._close()
        except OSError as error:
            raise self._failed(error) from None
        return FileEntry(self._size, self._sha256.hexdigest())

    def __enter__(self) -> Sink:  # noqa: PYI034  Python 3.10 has no Self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file; if the disk failed, say so, whatever the library that was writing made of it."""
        with suppress(OSError):
            self._close()
        if error is not None and self._error is not None and error is not self._error:
            raise self._error from error

    def _put(self, view: memoryview) -> None:
        """Write and hash; both are done when this returns."""
        hashing = self._hash_beside(view) if len(view) >= _ALONE else None
        try:
            if hashing is None:
                self._sha256.update(view)
            self._write_through(view)
        except OSError as error:
            raise self._failed(error) from None
        finally:
            if hashing is not None:
                hashing.join()

    def _hash_beside(self, view: memoryview) -> threading.Thread | None:
        thread = threading.Thread(target=self._sha256.update, args=(view,), name="alchemy-hash", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread to be had: too many of them, or the interpreter is ending
            return None
        return thread

    def _write_through(self, view: memoryview) -> None:
        while view:
            written = os.write(self._fd, view[:_PIECE])
            if written >= _ALONE:
                self._begin_write_back(self._written, written)
            self._written += written
            view = view[written:]

    def _begin_write_back(self, position: int, length: int) -> None:
        """Ask the kernel to send these bytes to the disk now, without waiting for it.

        That is what this advice does to pages that are dirty; being on their way, they also stay in memory.
        """
        with suppress(OSError):  # a wish; what came of it, the last fsync says
            os.posix_fadvise(self._fd, position, length, os.POSIX_FADV_DONTNEED)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _failed(self, error: OSError) -> OSError:
        self._error = OSError(error.errno, error.strerror, os.fspath(self._path))
        return self._error

    def _close(self) -> None:
        """Close once: after an error the descriptor may already be somebody else's."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory would survive a power loss.

    Raises:
        OSError: They may not.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
