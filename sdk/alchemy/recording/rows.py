"""Rows of metrics as lines of JSON, on their way from the training loop into a file of its own."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TypeAlias

import orjson

from alchemy.recording.scalars import PendingScalar, Scalar

__all__ = ["Row", "RowFile", "RowStream", "encode"]

Row: TypeAlias = "tuple[int, float, Mapping[str, Scalar]]"
"""Step, wall clock in seconds, metrics."""


class RowStream:
    """Rows added by one thread and written by another, so that the first never waits for the disk."""

    def __init__(self, path: str) -> None:
        # One list for ever: rows are added at its end and taken from its front, and as each such operation is
        # atomic, adding needs no lock.
        self.rows: list[Row] = []
        """The rows that wait to be packed; append to it, and leave the rest to this class."""
        self.last: dict[str, Scalar] = {}
        """The last value of each metric that has been packed."""
        self._blocks: list[bytes] = []
        self._file = RowFile(path)
        self._packing = threading.Lock()
        self._writing = threading.Lock()

    @property
    def blocks(self) -> int:
        """How many blocks wait to be written."""
        return len(self._blocks)

    def pack(self) -> int:
        """Turn the waiting rows into a block of lines; return how many of them can't be written as JSON."""
        with self._packing:
            rows = self.rows[:]
            del self.rows[: len(rows)]
            if not rows:
                return 0
            for _, _, metrics in rows:
                self.last.update(metrics)
            lines, lost = encode(rows)
            self._blocks.append(lines)
            return lost

    def drop(self) -> int:
        """Forget the waiting rows; return how many."""
        count = len(self.rows)
        del self.rows[:count]
        return count

    def write(self) -> None:
        """Write the waiting blocks.

        Raises:
            OSError: A block was lost; those after it still wait.
        """
        with self._writing:
            while self._blocks:
                self._file.append(self._blocks.pop(0))

    def sync(self) -> None:
        """Wait until what was written would survive a power loss.

        Raises:
            OSError: It might not.
        """
        with self._writing:
            self._file.sync()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class RowFile:
    """A file of rows. A line torn by a full disk or a killed process is ended before the next one begins."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd: int | None = None

    def append(self, lines: bytes) -> None:
        """Write whole lines to the file, which is made private and on the first call.

        Raises:
            OSError: They are not, or not all, in the file; the next call tries with a newly opened one.
        """
        try:
            fd = self._open() if self._fd is None else self._fd
            self._fd = fd
            written = 0
            while written < len(lines):
                written += os.write(fd, lines[written:] if written else lines)
        except OSError:
            self.close()
            raise

    def sync(self) -> None:
        """Wait until what was appended would survive a power loss.

        Raises:
            OSError: It might not.
        """
        if self._fd is not None:
            os.fsync(self._fd)

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        fd, self._fd = self._fd, None
        if fd is not None:
            # On a network file system close reports an earlier write's failure: rows may be lost, nothing
            # else.
            with suppress(OSError):
                os.close(fd)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._path, flags, 0o600)
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                os.write(fd, b"\n")
        except OSError:
            os.close(fd)
            raise
        return fd


def encode(rows: Iterable[Row]) -> tuple[bytes, int]:
    """Return the rows as lines of strict JSON, and how many of them could not be written.

    Non-finite numbers become the strings "NaN", "Infinity" and "-Infinity".
    """
    rows = list(rows)
    try:
        # One call for the block: it costs a fifth of one call for each row.
        array = _dumps([{"step": step, "t": seconds, "m": metrics} for step, seconds, metrics in rows])
    except orjson.JSONEncodeError:
        return _encode_carefully(rows)
    # orjson writes NaN and infinity as null; one search over the block is cheaper than a look at each number.
    if b"null" in array:
        return _encode_carefully(rows)
    # A quotation mark within a name stands as \", so this can only be where one row ends and the next begins.
    return array[1:-1].replace(b'}},{"step":', b'}}\n{"step":') + b"\n", 0


def _dumps(value: object) -> bytes:
    return orjson.dumps(value, _read)


def _read(value: object) -> float:
    """Give orjson the number behind what it doesn't know."""
    if isinstance(value, PendingScalar):
        return value.read()
    raise TypeError(type(value).__qualname__)


def _encode_carefully(rows: list[Row]) -> tuple[bytes, int]:
    lines: list[bytes] = []
    for step, seconds, metrics in rows:
        # Half a surrogate pair in a name, or a GPU that failed: such a row is lost, the others are not.
        with suppress(orjson.JSONEncodeError, RuntimeError):
            strict = {name: _strict(value) for name, value in metrics.items()}
            lines.append(_dumps({"step": step, "t": seconds, "m": strict}) + b"\n")
    return b"".join(lines), len(rows) - len(lines)


def _strict(value: Scalar) -> float | str:
    number = value.read() if isinstance(value, PendingScalar) else value
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
