"""What `alchemy` writes to a terminal: plain text, whatever run ids, paths and answers hold."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from pytest_alchemy.figures import columns

__all__ = ["complain", "say", "size", "table", "visible", "when"]


def say(line: str) -> None:
    """Write one line to standard output."""
    _write(sys.stdout, visible(line))


def complain(line: str) -> None:
    """Write one line to standard error, behind the program's name."""
    _write(sys.stderr, f"alchemy: {visible(line)}")


def visible(text: str) -> str:
    r"""Return the text with everything that would move a cursor or change a colour written out, as `\x1b`."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def _write(stream: TextIO, line: str) -> None:
    encoding = stream.encoding or "ascii"
    stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with the cells of a column below each other."""
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell + " " * (width - columns(cell)) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def size(count: int) -> str:
    """Write a number of bytes: `999 B`, `12.3 kB`, `1.50 GB` (of 10⁹ bytes)."""
    if count < 1000:
        return f"{count} B"
    scaled = float(count)
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        scaled /= 1000
        if scaled < 999.5 or unit == "PB":
            break
    return f"{scaled:.{max(0, 3 - len(str(int(scaled))))}f} {unit}"


def when(seconds: float) -> str:
    """Write a time since 1970 as the local date and time; empty if no calendar has it."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, OSError, ValueError):
        return ""
