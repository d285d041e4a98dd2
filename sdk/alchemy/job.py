"""The node's entry: `python -m alchemy.job SUBMISSION_DIR` runs one task of a submitted array.

The parent claims the attempt and supervises; the case is executed in a fork of it, so that one interpreter
starts per case. Whatever is heavy is imported in the fork.

Exit status: that of the case (0 completed, 1 the user's code failed, 75 it was asked to stop and did, with
what it had done saved), or, for trouble that isn't the case's own,

    0   the attempt is taken already: another process of the same submission runs it
    74  the disk: the attempt or its result could not be written
    78  the environment: wrong Python, no such submission, files that can't be seen from this machine
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import alchemy_agent as agent
from alchemy.forking import run_forked

if TYPE_CHECKING:
    from alchemy.runspec import RunSpec

__all__ = ["EX_CONFIG", "EX_IOERR", "main"]

EX_IOERR = 74
EX_CONFIG = 78
_PATIENCE_S = 60.0
"""How long a file may take to be seen here: directory caches of network file systems live that long."""
_PYTHON = (3, 10)


class _Unfit(Exception):
    """This machine can't run the job."""


class _Assignment(NamedTuple):
    run_dir: agent.RunDir
    k: int
    """Number of this submission of the run."""
    record: dict[str, Any]
    """The contents of `run.json`."""
    code: dict[str, Any]
    """Where the code lies, by this submission's `index.json`."""


def main(
    argv: list[str] | None = None, environ: Mapping[str, str] = os.environ, patience_s: float = _PATIENCE_S
) -> int:
    """Run the array task that the environment names; return the exit status, or minus a signal's number.

    Args:
        argv: The submission's directory.
        environ: `SLURM_ARRAY_TASK_ID` is read (0 without), and `SLURM_RESTART_COUNT`.
        patience_s: How long a file that was written elsewhere may take to be seen here, in seconds.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        return _leave(EX_CONFIG, "usage: python -m alchemy.job SUBMISSION_DIR")
    try:
        task = _assignment(Path(arguments[0]).absolute(), environ, patience_s)
        attempt = agent.claim_attempt(task.run_dir, task.k, _number(environ, "SLURM_RESTART_COUNT"))
    except _Unfit as trouble:
        return _leave(EX_CONFIG, str(trouble))
    except agent.Duplicate as taken:
        return _leave(0, f"duplicate: {taken}; nothing was run")
    except OSError as error:
        return _leave(EX_CONFIG, f"can't claim an attempt: {error}")
    os.environ["ALCHEMY_PARAMS"] = json.dumps(task.record["params"])
    try:
        return run_forked(attempt, lambda: _child(attempt, task))
    except OSError as error:
        return _leave(EX_IOERR, f"attempt {attempt.path} could not be started: {error}")


def _assignment(submission: Path, environ: Mapping[str, str], patience_s: float) -> _Assignment:
    if sys.version_info < _PYTHON:
        raise _Unfit(f"Python {sys.version.split()[0]} at {sys.executable} is too old: 3.10 is needed")
    index = _await_record(submission / "index.json", patience_s)
    number = _number(environ, "SLURM_ARRAY_TASK_ID")
    try:
        entry = index["runs"][number]
        run, k, code = str(entry["run"]), int(entry["attempt"]), dict(index["codes"][entry["code"]])
    except (KeyError, IndexError, TypeError, ValueError):
        raise _Unfit(f"{submission}/index.json has no run number {number}") from None
    if "/" in run or run.startswith("."):
        raise _Unfit(f"{submission}/index.json names {run!r}, which can't be a run")
    run_dir = agent.RunDir(submission.parents[1] / "jobs" / run)
    record = _await_record(Path(run_dir.run_json), patience_s)
    if not isinstance(record.get("params"), dict):
        raise _Unfit(f"{run_dir.run_json} does not say what to run: was it written by something else?")
    return _Assignment(run_dir, k, record, code)


def _await_record(path: Path, patience_s: float) -> dict[str, Any]:
    """Read a record that was written before we were started, and may take a while to be seen from here."""
    deadline, pause_s = time.monotonic() + patience_s, 0.05
    while (record := agent.read_record(path)) is None:
        if time.monotonic() >= deadline:
            host = os.uname().nodename
            raise _Unfit(f"{path} can't be read on {host}: is the run root on a file system that both share?")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 2.0)
        with suppress(OSError):
            list(path.parent.iterdir())  # makes a network file system look again
    if record.get("v") != agent.WIRE_VERSION:
        raise _Unfit(
            f"{path} is of version {record.get('v')!r} and this SDK reads {agent.WIRE_VERSION}: use the same "
            "pytest-alchemy here and where pytest runs"
        )
    return record


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name) or "0"
    if not text.isdecimal():
        raise _Unfit(f"{name}={text!r} is not a number")
    return int(text)


def _leave(status: int, why: str) -> int:
    sys.stderr.write(f"alchemy: {why}\n")
    return status


def _child(attempt: agent.AttemptDir, task: _Assignment) -> int:
    """Execute the case; the body of the fork. Its output goes into the attempt's log files."""
    import faulthandler

    from alchemy.errors import InfrastructureError
    from alchemy.runspec import CodeRef, RunSpec

    faulthandler.enable()
    try:
        spec = RunSpec.from_record(task.record, CodeRef.from_record(task.code))
        os.chdir(spec.code.cwd)
        Path(spec.code.path).open("rb").close()
    except KeyError as error:
        return _leave(EX_CONFIG, f"run.json or index.json lacks the field {error}")
    except OSError as error:
        return _leave(EX_CONFIG, f"the code can't be read on {os.uname().nodename}: {error}")
    sys.argv = [spec.code.path]
    try:
        return _execute(attempt, spec)
    except InfrastructureError as error:
        return _leave(EX_IOERR, str(error))


def _execute(attempt: agent.AttemptDir, spec: RunSpec) -> int:
    from alchemy.errors import STOPPED_STATUS, InfrastructureError, Stopped
    from alchemy.execution import execute, reject
    from alchemy.failure import describe
    from alchemy.live.params import LiveParams
    from alchemy.loading import find_task, load
    from alchemy.params import scope
    from alchemy.recording.recorder import FileRecorder

    start = agent.read_record(attempt.start) or {}
    recorder = FileRecorder(attempt, str(start.get("incarnation", "")))
    task, params = None, LiveParams(spec.params)
    try:
        with scope(params):
            task = find_task(load(spec.code), spec.experiment, spec.task)
            execute(task, spec, recorder, params=params)
    except (InfrastructureError, KeyboardInterrupt):
        raise
    except Stopped as stop:
        return _leave(STOPPED_STATUS, f"stopped by {stop.why}")
    except BaseException as error:  # noqa: BLE001  user code may raise anything, SystemExit too
        sys.stderr.write(describe(error).traceback)
        if task is None:
            reject(spec, recorder, error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(agent.pass_on(main()))
