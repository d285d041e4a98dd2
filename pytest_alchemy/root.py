"""The run root of every backend: how it is made, and whether it can be written."""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import TYPE_CHECKING

import alchemy_agent

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_writable", "make_root"]

_IGNORE = "# Created by pytest-alchemy.\n*\n"


def make_root(root: Path) -> None:
    """Make the run root and what is missing above it, private to its owner, unless it is there.

    A root that we make is kept out of the repository it may lie in, as pytest does with its cache. In a
    directory that was there before we have no say: its `.gitignore` is somebody's.

    Raises:
        OSError: It can't be made.
    """
    if root.is_dir():
        return
    alchemy_agent.make_directory(str(root))
    with contextlib.suppress(FileExistsError), (root / ".gitignore").open("x", encoding="utf-8") as file:
        file.write(_IGNORE)


def check_writable(root: Path) -> None:
    """Write a file of a name that nobody else uses into the root, and take it away again.

    Raises:
        OSError: It can't be written.
    """
    with tempfile.NamedTemporaryFile(prefix=".probe.", suffix=".tmp", dir=root) as file:
        file.write(b"written to see whether this directory can be written\n")
        file.flush()
        os.fsync(file.fileno())  # a quota may show only here
