"""Rows of metrics as lines of JSON, appended by one process to a file of its own."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

import orjson

from alchemy.scalars import PendingScalar, Scalar

__all__ = ["Row", "RowFile", "encode"]

Row: TypeAlias = "tuple[int, float, Mapping[str, Scalar]]"
"""Step, wall clock in seconds, metrics."""


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
        lines = b"".join([_dumps(step, seconds, metrics) for step, seconds, metrics in rows])
    except orjson.JSONEncodeError:
        return _encode_carefully(rows)
    # orjson writes NaN and infinity as null; one search over the block is cheaper than a look at each number.
    return _encode_carefully(rows) if b"null" in lines else (lines, 0)


def _dumps(step: int, seconds: float, metrics: Mapping[str, Any]) -> bytes:
    return orjson.dumps({"step": step, "t": seconds, "m": metrics}, _read, orjson.OPT_APPEND_NEWLINE)


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
            lines.append(_dumps(step, seconds, {name: _strict(value) for name, value in metrics.items()}))
    return b"".join(lines), len(rows) - len(lines)


def _strict(value: Scalar) -> float | str:
    number = value.read() if isinstance(value, PendingScalar) else value
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
