"""Which run is meant: by its id, a part of it, or the path of its directory."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import alchemy_agent as agent
from pytest_alchemy.cli.trouble import Status, Trouble

__all__ = ["ROOT", "add_arguments", "find_root", "find_run"]

ROOT = "ALCHEMY_ROOT"
"""Environment variable: the run root."""
_SHOWN = 20
"""Runs that are listed at most."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take RUN and --root, as every subcommand does that concerns one run."""
    parser.add_argument("run", metavar="RUN", help="run id, a part that only one has, or a run directory")
    parser.add_argument(
        "--root",
        metavar="DIR",
        type=Path,
        help=f"run root (default: ${ROOT}, else .alchemy here or in the nearest directory above)",
    )


def find_run(name: str, root: Path | None) -> agent.RunDir:
    """Return the run that is meant.

    Args:
        name: A path if it has a `/`; else a run id, or a part of one that no other run has.
        root: The run root, where the user named one.

    Raises:
        Trouble: There is none, or there are several.
    """
    if "/" in name:
        return _at(Path(name))
    jobs = (find_root() if root is None else root) / "jobs"
    runs = _list_runs(jobs)
    if name in runs:
        return agent.RunDir(jobs / name)
    fitting = [run for run in runs if name in run]
    if len(fitting) == 1:
        return agent.RunDir(jobs / fitting[0])
    if fitting:
        raise Trouble(
            f"{name!r} fits {len(fitting)} runs in {jobs}: write more of the id you mean",
            Status.NO_RUN,
            _first(fitting),
        )
    raise Trouble(
        f"no run in {jobs} has {name!r} in its id; {_what_there_is(runs)}", Status.NO_RUN, _first(runs)
    )


def find_root() -> Path:
    """Return the run root where the user named none.

    Raises:
        Trouble: There is none.
    """
    if named := os.environ.get(ROOT):
        return Path(named)
    here = Path.cwd()
    for directory in (here, *here.parents):
        if (directory / ".alchemy").is_dir():
            return directory / ".alchemy"
    raise Trouble(
        f"there is no .alchemy in {here} or above it: name the run root by --root or {ROOT}", Status.NO_RUN
    )


def _at(path: Path) -> agent.RunDir:
    try:
        inside = os.listdir(path)  # noqa: PTH208  names are enough
    except OSError as error:
        raise Trouble(f"{path} can't be read: {error.strerror}", Status.NO_RUN) from None
    if "attempts" not in inside and "run.json" not in inside:
        raise Trouble(
            f"{path} is no run directory: one is called like the run and has run.json and attempts/ in it",
            Status.NO_RUN,
        )
    return agent.RunDir(path.resolve())  # `.` has no name of its own


def _list_runs(jobs: Path) -> list[str]:
    try:
        with os.scandir(jobs) as entries:
            return sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())
    except OSError as error:
        raise Trouble(
            f"the runs in {jobs} can't be listed: {error.strerror}; name another root by --root or {ROOT}",
            Status.NO_RUN,
        ) from None


def _first(runs: list[str]) -> tuple[str, ...]:
    if len(runs) <= _SHOWN:
        return tuple(runs)
    return (*runs[:_SHOWN], f"... and {len(runs) - _SHOWN} more")


def _what_there_is(runs: list[str]) -> str:
    return "there are" if runs else "there are no runs at all: is it the right run root? (--root)"
