"""squeue: one question for all jobs, and what it answers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_alchemy.slurm.states import StateWord, read_state

if TYPE_CHECKING:
    from pytest_alchemy.transport import Completed

__all__ = ["JobId", "Queue", "Row", "Sighting", "list_jobs", "read_queue"]

_SEPARATOR = "\x1f"
"""ASCII's unit separator: squeue prints it as it is, and no name or reason holds one."""
_FIELDS = ("%F", "%K", "%T", "%r", "%B", "%j")
_FORMAT = f"--format={_SEPARATOR.join(_FIELDS)}"
_TASKS = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")


@dataclass(frozen=True, slots=True)
class JobId:
    """A job or job array, as sbatch named it."""

    number: str
    cluster: str | None = None
    """Set where sbatch named one, as it does in a site of several clusters."""

    def task(self, index: int) -> str:
        """Return Slurm's name for one task of the array."""
        return f"{self.number}_{index}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of squeue: a task, or a bundle of tasks that are still waiting."""

    job: str
    tasks: tuple[range, ...]
    """Array indices; empty for what is left of an array whose waiting tasks were cancelled (`N/A`)."""
    word: StateWord
    why: str
    """Slurm's reason, empty for `None`."""
    host: str
    """First node; empty if it never had one."""
    name: str


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one healthy answer says about one task."""

    row: Row | None
    siblings: bool
    """Whether other tasks of its array are listed."""


@dataclass(frozen=True, slots=True)
class Queue:
    """A healthy answer of squeue."""

    rows: tuple[Row, ...]

    def find(self, name: str) -> str | None:
        """Return the newest job of this name, None if there is none."""
        return max((row.job for row in self.rows if row.name == name), key=int, default=None)

    def sight(self, name: str, job: str, wanted: Iterable[int]) -> dict[int, Sighting]:
        """Look tasks of one array up. Rows of another name are a reused id and don't count."""
        rows = [row for row in self.rows if row.job == job and row.name == name]
        single = {tasks.start: row for row in rows for tasks in row.tasks if len(tasks) == 1}
        bundles = [(tasks, row) for row in rows for tasks in row.tasks if len(tasks) > 1]
        rest = next((row for row in rows if not row.tasks), None)
        found: dict[int, Sighting] = {}
        for index in wanted:
            row = single.get(index) or next((row for tasks, row in bundles if index in tasks), rest)
            found[index] = Sighting(row, siblings=bool(rows))
        return found


def list_jobs(names: Iterable[str], clusters: Iterable[str] = ()) -> list[str]:
    """Return the one command that asks for all submissions of these names, ended tasks included.

    By name rather than by id: the controller then sends this user's jobs only, a submission whose id
    never arrived is found as well, and a reused id can't be mistaken for ours.
    """
    elsewhere = sorted(set(clusters))
    return [
        *("squeue", "--noheader", "--array", "--states=all", "--me", _FORMAT),
        *([f"--clusters={','.join(elsewhere)}"] if elsewhere else []),
        f"--name={','.join(sorted(names))}",
    ]


def read_queue(answer: Completed) -> Queue | None:
    """Read squeue's answer; None if it failed, which says nothing about any job."""
    if answer.returncode != 0:
        return None
    rows = (_read_row(line) for line in answer.stdout.splitlines())
    return Queue(tuple(row for row in rows if row))


def _read_row(line: str) -> Row | None:
    fields = line.split(_SEPARATOR)
    if len(fields) != len(_FIELDS) or not fields[0].strip().isdigit():
        return None  # a heading such as `CLUSTER: c1`, or a line that was cut
    job, tasks, state, why, host, name = (field.strip() for field in fields)
    return Row(
        job=job,
        tasks=_read_tasks(tasks),
        word=read_state(state),
        why="" if why == "None" else why,
        host="" if host.lower() in {"n/a", "(null)"} else host,
        name=name,
    )


def _read_tasks(text: str) -> tuple[range, ...]:
    """Read `7`, `5-9`, `[1,5-9%2]`, `0-8:4`; anything else (`N/A`) names no task."""
    tasks = []
    for part in text.strip("[]").split("%")[0].split(","):
        if match := _TASKS.fullmatch(part):
            first, last, step = match.groups()
            tasks.append(range(int(first), int(last or first) + 1, int(step or 1)))
    return tuple(tasks)
