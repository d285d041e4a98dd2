"""What the tests of the program `alchemy` share: calling it in this process, checkpoints to look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import alchemy_agent as agent
from alchemy.checkpoint.records import CheckpointRef
from alchemy.checkpoint.store import write_checkpoint
from alchemy.checkpoint.writing import Part
from pytest_alchemy.cli.main import main


class Said(NamedTuple):
    """What a call of the program came to."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def record(self) -> Any:
        """What `--json` wrote: one line, and nothing else."""
        [line] = self.lines
        return json.loads(line)


class Program:
    """The program `alchemy` with a run root."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self._capsys = capsys

    def __call__(self, *argv: str | Path) -> Said:
        """Call it with `--root`."""
        return self.plain(*argv, f"--root={self.root}")

    def plain(self, *argv: str | Path) -> Said:
        """Call it with these arguments and no others."""
        self._capsys.readouterr()
        status = main([str(argument) for argument in argv])
        said = self._capsys.readouterr()
        return Said(status, said.out, said.err)


def commit(
    attempt: agent.AttemptDir, step: int, seq: int, files: dict[str, bytes] | None = None
) -> CheckpointRef:
    """Write and commit a checkpoint as a training does."""

    def part(name: str, data: bytes) -> Part:
        return Part(name, lambda sink: sink.write(data))

    parts = [
        part(name, data) for name, data in (files or {"model.pt": b"m" * 1000, "loop.json": b"{}"}).items()
    ]
    return write_checkpoint(attempt, step, parts, seq=seq, parent=None, kinds={}, applied=())


def place_of(attempt: agent.AttemptDir, ref: CheckpointRef) -> Path:
    """Return where a checkpoint lies."""
    return Path(attempt.run_dir.checkpoints, ref.attempt, ref.name)
