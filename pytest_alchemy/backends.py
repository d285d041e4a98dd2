"""The seam between the loop and whatever executes runs.

`local` and `slurm` register themselves through the same hook a third party uses
(`pytest_alchemy_backends`, see `pytest_alchemy/hooks.py`). A backend is one of two kinds: in-process,
where `--pdb`, coverage and captured output work as in any test, or remote, where runs live on
without this process.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import pytest

    from alchemy.experiment import Task
    from alchemy.resources import Resources
    from alchemy.runspec import RunSpec
    from pytest_alchemy.events import Event
    from pytest_alchemy.outcome import Outcome

__all__ = ["Backend", "BackendFactory", "InProcessBackend", "Plan", "RemoteBackend"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A run about to be executed: what, and on how much machine."""

    spec: RunSpec
    resources: Resources
    """The experiment's wishes; the backend's profile and limits come on top."""


@runtime_checkable
class InProcessBackend(Protocol):
    """Executes one run at a time in this process."""

    @property
    def root(self) -> Path:
        """The run root."""

    def check(self) -> None:
        """Fail before anything runs.

        Raises:
            ConfigurationError: The root can't be written, a setting can't be meant …
        """

    def execute(self, plan: Plan, task: Task) -> Outcome:
        """Run to the end and leave a run directory behind; the outcome has what the user's code raised.

        Raises:
            InfrastructureError: The run directory could not be written.
            KeyboardInterrupt: Somebody wants the session to end; likewise `pytest.exit`.
        """


@runtime_checkable
class RemoteBackend(Protocol):
    """Hands runs to machines that outlive this process."""

    @property
    def root(self) -> Path:
        """The run root, as this process sees it."""

    def check(self, plans: Sequence[Plan]) -> None:
        """Fail before anything is submitted.

        Raises:
            ConfigurationError: The root can't be written, a program is missing, a limit is exceeded …
        """

    def submit(self, plans: Sequence[Plan]) -> None:
        """Submit all of them and return; what the scheduler refuses comes back as Finished events."""

    def events(self) -> SimpleQueue[Event]:
        """The queue on which news of every submitted run arrives, each run's Finished exactly once."""

    def cancel(self, runs: Collection[str], *, pending_only: bool = False) -> bool:
        """End runs submitted by this object (with `pending_only`, those not started).

        Returns whether the scheduler agreed; if it didn't, a Notice with its words is on the queue.
        """

    def how_to_return(self) -> list[str]:
        """Lines for a person who leaves while runs live on: where they are and how to end them."""

    def close(self) -> None:
        """Stop watching. Runs live on."""


Backend: TypeAlias = "InProcessBackend | RemoteBackend"
BackendFactory: TypeAlias = "Callable[[pytest.Config], Backend]"
