"""A case in a fork of this interpreter, so that one interpreter starts per case."""

from __future__ import annotations

import atexit
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import alchemy_agent as agent

__all__ = ["run_forked"]


def run_forked(attempt: agent.AttemptDir, child: Callable[[], int]) -> int:
    """Supervise `child` in a fork of this interpreter, its output in the attempt's two log files.

    Args:
        attempt: The claimed attempt.
        child: Returns the exit status; what it raises counts as it does at the end of a program.

    Returns:
        The exit status, or minus the number of the signal that ended the child.

    Raises:
        OSError: The child did not run: `start.json` could not be written, or no process be made.
    """

    def body() -> int:
        _redirect(attempt)
        return child()

    return agent.supervise(lambda: _as_a_program(body), attempt)


def _redirect(attempt: agent.AttemptDir) -> None:
    os.environ.update(agent.environment(attempt))
    for path, fd in ((attempt.stdout, 1), (attempt.stderr, 2)):
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        os.dup2(log, fd)
        os.close(log)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # a killed job has shown all whole lines


def _as_a_program(body: Callable[[], int]) -> int:
    """Return the exit status, or minus a signal's number, that the interpreter would end with."""
    try:
        return int(body())
    except SystemExit as leave:
        if isinstance(leave.code, str):
            sys.stderr.write(leave.code + "\n")
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException as error:  # noqa: BLE001  shown as the interpreter shows it; it ends this process
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    finally:
        # As multiprocessing ends its children: what the child registered runs, the parent's frames don't.
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001
        atexit._run_exitfuncs()  # noqa: SLF001
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):  # None, broken, closed
                stream.flush()
