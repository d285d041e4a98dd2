"""Answers of real Slurm commands, recorded by `tests/data/slurm/record.py`."""

from __future__ import annotations

import json
from pathlib import Path

from pytest_alchemy.transport import Completed

__all__ = ["VERSIONS", "recorded"]

_DIRECTORY = Path(__file__).parents[1] / "data" / "slurm"
VERSIONS = tuple(sorted(path.name for path in _DIRECTORY.iterdir() if path.name[0].isdigit()))


def recorded(version: str, name: str) -> Completed:
    """Return what a command answered then."""
    record = json.loads((_DIRECTORY / version / f"{name}.json").read_text("utf-8"))
    return Completed(record["returncode"], record["stdout"], record["stderr"])
