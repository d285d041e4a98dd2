"""`alchemy checkpoints RUN`: which checkpoints a run has, and whether they are whole."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import alchemy_agent as agent
from pytest_alchemy.cli import runs
from pytest_alchemy.cli.printing import complain, say, size, table, when
from pytest_alchemy.cli.trouble import Status

if TYPE_CHECKING:
    from alchemy.checkpoint.store import Checkpoint

__all__ = ["add"]

_HEADER = ("attempt", "step", "state", "size", "files", "when")


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "checkpoints",
        help="list the checkpoints of a run, verify them",
        description="List the checkpoints of a run, oldest first. Exit status 1: a committed one is broken.",
        allow_abbrev=False,
    )
    runs.add_arguments(parser)
    parser.add_argument(
        "--verify", action="store_true", help="read every byte of what is committed, and compare its SHA-256"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.set_defaults(execute=_execute)


@dataclass(frozen=True, slots=True)
class _Row:
    """One checkpoint as it is shown."""

    checkpoint: Checkpoint
    is_verified: bool = False
    """Whether every byte of it was read and found right."""
    is_pinned: bool = False

    @property
    def state(self) -> str:
        return self.checkpoint.state.value

    @property
    def ref(self) -> str:
        return str(self.checkpoint.ref)


@dataclass(frozen=True, slots=True)
class _Beginning:
    """What a next attempt would do."""

    checkpoint: Checkpoint | None
    why: str
    """For people; of the one that it would resume from, empty."""

    @property
    def ref(self) -> str:
        return str(self.checkpoint.ref) if self.checkpoint else ""


def _execute(arguments: argparse.Namespace) -> int:
    run_dir = runs.find_run(arguments.run, arguments.root)
    rows = _look(run_dir, deep=arguments.verify)
    beginning = _beginning(run_dir, [row.checkpoint for row in rows])
    if arguments.json:
        say(json.dumps(_record(run_dir, rows, beginning)))
    else:
        _print(run_dir, rows, beginning)
    return Status.BAD if any(row.state == "broken" for row in rows) else Status.DONE


def _look(run_dir: agent.RunDir, *, deep: bool) -> list[_Row]:
    from alchemy.checkpoint.retention import pinned
    from alchemy.checkpoint.store import State, list_checkpoints

    try:
        pins = pinned(run_dir)
    except ValueError as error:
        complain(f"{error}; until then nothing of the run is deleted, and what is pinned is not shown")
        pins = set()
    rows = []
    for found in list_checkpoints(run_dir):
        checkpoint = _verified(found) if deep and found.state is State.COMMITTED else found
        is_verified = deep and checkpoint.state is State.COMMITTED
        rows.append(_Row(checkpoint, is_verified, (found.attempt, found.step) in pins))
    return rows


def _verified(checkpoint: Checkpoint) -> Checkpoint:
    """Return it as reading every byte shows it."""
    from alchemy.checkpoint.store import State, verify
    from alchemy.errors import BrokenCheckpoint

    try:
        verify(checkpoint)
    except BrokenCheckpoint as error:
        if not os.path.lexists(checkpoint.path):  # the run goes on, and has deleted it meanwhile
            return replace(checkpoint, state=State.SUPERSEDED)
        problem = str(error).removeprefix(f"{checkpoint.path}: ")
        return replace(checkpoint, state=State.BROKEN, problem=problem)
    return checkpoint


def _beginning(run_dir: agent.RunDir, checkpoints: Sequence[Checkpoint]) -> _Beginning:
    """Return what an attempt would begin with that started now."""
    from alchemy.checkpoint.selection import choose, lineage
    from alchemy.checkpoint.store import State
    from alchemy.errors import CheckpointUnusable

    latest = run_dir.latest()
    if latest is None:
        return _Beginning(None, "no attempt was started yet")
    attempt = run_dir.attempt(agent.attempt_name(latest.k + 1, 0))
    continued = lineage(attempt)
    for checkpoint in reversed(checkpoints):
        if checkpoint.attempt in continued and checkpoint.state is State.COMMITTED:
            return _Beginning(checkpoint, "")
    if not continued:
        return _Beginning(None, f"a next attempt starts at step 0: {latest.name} has completed the run")
    try:
        choose(attempt)
    except CheckpointUnusable:
        return _Beginning(
            None,
            "a next attempt refuses to start, as there was progress and no checkpoint can be trusted: "
            f"restore {run_dir.checkpoints} from a copy, or start over with --alchemy-fresh",
        )
    return _Beginning(None, "a next attempt starts at step 0: nothing was committed yet")


def _print(run_dir: agent.RunDir, rows: Sequence[_Row], beginning: _Beginning) -> None:
    say(f"run {run_dir.name}")
    if rows:
        for line in table([(*_HEADER, ""), *(_cells(row, beginning) for row in rows)]):
            say(line)
    else:
        say("no checkpoints")
    for row in rows:
        if row.checkpoint.problem:
            say(f"{row.ref} is {row.state}: {row.checkpoint.problem}")
    if verified := sum(row.is_verified for row in rows):
        say(f"{verified} verified: every byte is as it was committed")
    if beginning.why:
        say(beginning.why)


def _cells(row: _Row, beginning: _Beginning) -> tuple[str, ...]:
    checkpoint, manifest = row.checkpoint, row.checkpoint.manifest
    notes = ["pinned"] if row.is_pinned else []
    if row.ref == beginning.ref:
        notes.append(f"a next attempt resumes here, at step {checkpoint.step + 1}")
    return (
        checkpoint.attempt,
        _step(checkpoint),
        row.state,
        size(checkpoint.size),
        str(len(manifest.files)) if manifest else "",
        when(manifest.time) if manifest else "",
        ", ".join(notes),
    )


def _step(checkpoint: Checkpoint) -> str:
    """Write the step, with `.1` and so on for further ones after the same step; `-` if it isn't known."""
    _, dot, number = checkpoint.name.partition(".")
    return "-" if checkpoint.step < 0 else f"{checkpoint.step}{dot}{number}"


def _record(run_dir: agent.RunDir, rows: Sequence[_Row], beginning: _Beginning) -> dict[str, Any]:
    return {
        "v": agent.WIRE_VERSION,
        "run": run_dir.name,
        "directory": run_dir.path,
        "checkpoints": [_entry(row) for row in rows],
        "resumes_from": beginning.ref or None,
        "why": beginning.why,
    }


def _entry(row: _Row) -> dict[str, Any]:
    checkpoint, manifest = row.checkpoint, row.checkpoint.manifest
    return {
        "attempt": checkpoint.attempt,
        "step": None if checkpoint.step < 0 else checkpoint.step,
        "name": checkpoint.name,
        "state": row.state,
        "size": checkpoint.size,
        "files": sorted(manifest.files) if manifest else None,
        "time": manifest.time if manifest else None,
        "verified": row.is_verified,
        "pinned": row.is_pinned,
        "problem": checkpoint.problem,
    }
