"""The Slurm backend: what the loop sees of submitter and watcher."""

from __future__ import annotations

import math
import shlex
import threading
import time
from collections.abc import Collection, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING

from alchemy.errors import InfrastructureError
from pytest_alchemy.slurm.requests import Cancel, Close, Submit
from pytest_alchemy.slurm.submission import cancel_by_name
from pytest_alchemy.slurm.submitter import Submitter
from pytest_alchemy.slurm.watcher import Watcher
from pytest_alchemy.transport import LocalTransport

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_alchemy.backends import Plan
    from pytest_alchemy.events import Event
    from pytest_alchemy.slurm.settings import SlurmSettings
    from pytest_alchemy.slurm.squeue import JobId
    from pytest_alchemy.transport import Transport

__all__ = ["SlurmBackend"]

_ALIVE_S = 0.5
"""How often who waits makes sure that somebody works on it."""


class SlurmBackend:
    """Runs cases as tasks of Slurm job arrays; a `RemoteBackend`."""

    def __init__(self, settings: SlurmSettings, transport: Transport | None = None) -> None:
        """Prepare; nothing is started or written before `check` and `submit`."""
        self._settings = settings
        transport = transport or LocalTransport(settings.root)
        self._submitter = Submitter(settings, transport)
        self._watcher = Watcher(settings, transport, self._submitter)
        # A daemon, so that a hanging command never holds the process.
        self._thread = threading.Thread(target=self._watcher.run, name="alchemy-slurm", daemon=True)

    @property
    def root(self) -> Path:
        """The run root, as this process sees it."""
        return self._settings.root

    def check(self, plans: Sequence[Plan]) -> None:
        """Fail before anything is submitted.

        Raises:
            ConfigurationError: The root can't be written, Slurm does not answer, a limit is exceeded …
        """
        self._submitter.check(plans)

    def submit(self, plans: Sequence[Plan]) -> None:
        """Submit all of them and return; what Slurm refuses comes back as Finished.

        The worker does it, so a Ctrl-C here never cuts an sbatch in two; what was not handed to sbatch by
        then is not submitted.

        Raises:
            InfrastructureError: The backend was closed, or its worker has failed.
        """
        if self._thread.ident is None:
            self._thread.start()
        elif not self._thread.is_alive():
            raise InfrastructureError("this Slurm backend does not watch any more, so it can't submit")
        request = Submit(tuple(plans))
        try:
            self._watcher.inbox.put(request)
            self._await(request.done)
        except BaseException:  # Ctrl-C, a signal: the sbatch under way is finished, the rest is left
            self._watcher.leaving.set()
            raise

    def events(self) -> SimpleQueue[Event]:
        """Return the queue on which news of every submitted run arrives, each run's Finished exactly once."""
        return self._watcher.events

    def cancel(self, runs: Collection[str], *, pending_only: bool = False) -> bool:
        """Ask Slurm to end these runs (with `pending_only`, those not started); their Finished follows.

        Returns:
            Whether scancel did so, as far as runs were open, within `Knobs.cancel_s`. Where it failed, its
            words have arrived as a Notice.
        """
        if self._thread.ident is None:
            return True  # nothing was ever submitted
        if not self._thread.is_alive():
            return False
        request = Cancel(frozenset(runs), pending_only)
        self._watcher.inbox.put(request)
        return self._await(request.done, self._settings.knobs.cancel_s) and not request.failed.is_set()

    def how_to_return(self) -> list[str]:
        """Return lines for a person who leaves while runs live on."""
        names, jobs = self._watcher.names, self._watcher.jobs
        if not names and not jobs:
            return []
        return [
            f"the jobs live on in Slurm; their files are in {self._settings.root}/jobs",
            *(_ways_to_names(names) if names else ()),
            *(_ways_to_jobs(jobs) if jobs else ()),
        ]

    def _await(self, done: threading.Event, limit_s: float = math.inf) -> bool:
        """Wait until the worker has done it; False if that took too long or the worker is no more."""
        end = time.monotonic() + limit_s
        while not done.wait(max(0.0, min(_ALIVE_S, end - time.monotonic()))):
            if time.monotonic() >= end or not self._thread.is_alive():
                break
        return done.is_set()

    def close(self) -> None:
        """Stop watching. Runs live on."""
        self._watcher.leaving.set()
        if self._thread.is_alive():
            self._watcher.inbox.put(Close())
            self._thread.join(self._settings.knobs.close_s)


def _ways_to_names(names: Sequence[str]) -> list[str]:
    """Say how to find and end submissions whose number isn't known."""
    return [
        f"see what has no number yet with:  {shlex.join(['squeue', '--me', '--name=' + ','.join(names)])}",
        *(f"end it with:  {shlex.join(cancel_by_name(name))}" for name in names),
    ]


def _ways_to_jobs(jobs: Sequence[JobId]) -> list[str]:
    numbers = [job.number for job in jobs]
    clusters = sorted({job.cluster for job in jobs if job.cluster})
    where = [f"--clusters={','.join(clusters)}"] if clusters else []
    return [
        f"see them with:  {shlex.join(['squeue', *where, '--jobs=' + ','.join(numbers)])}",
        f"end them with:  {shlex.join(['scancel', *where, *numbers])}",
    ]
