"""What a session with experiments knows: options, backend, plans. Made when the first one appears."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from alchemy.errors import ConfigurationError
from pytest_alchemy.backends import InProcessBackend, RemoteBackend
from pytest_alchemy.options import BACKENDS, Options, read_options
from pytest_alchemy.planning import Planner

if TYPE_CHECKING:
    from types import ModuleType

    from alchemy.experiment import Task
    from alchemy.matrix import Case
    from pytest_alchemy.backends import Backend, Plan
    from pytest_alchemy.outcome import Outcome

__all__ = ["Alchemy"]


class Alchemy:
    """The session's settings and its backend, shared by all cases."""

    def __init__(self, config: pytest.Config) -> None:
        self.options: Options = read_options(config)
        try:
            self.backend: Backend = config.stash[BACKENDS][self.options.backend](config)
        except ConfigurationError as error:
            raise pytest.UsageError(str(error)) from error
        self._planner = Planner(config.rootpath, config.invocation_params.dir, self.options.max_steps)
        self.is_remote = isinstance(self.backend, RemoteBackend)

    @classmethod
    def of(cls, config: pytest.Config) -> Alchemy:
        """Return the session's one object, made on first use.

        Raises:
            pytest.UsageError: The backend can't be set up as asked.
        """
        if _ALCHEMY not in config.stash:
            config.stash[_ALCHEMY] = cls(config)
        return config.stash[_ALCHEMY]

    def plan(self, task: Task, case: Case, module: ModuleType) -> Plan:
        """Return what executing a case means."""
        return self._planner.plan(task, case, module)

    def is_shortened(self, task: Task) -> bool:
        """Tell whether the task's runs end early on the user's wish, so that criteria don't count."""
        return self._planner.is_shortened(task)

    def run_directory(self, plan: Plan) -> Path:
        """Return the directory that a run owns."""
        return self.backend.root / "jobs" / plan.spec.run

    def execute(self, plan: Plan, task: Task) -> Outcome:
        """Run a case in this process.

        Raises:
            ConfigurationError: The backend runs jobs only.
            InfrastructureError: The run directory can't be written.
        """
        __tracebackhide__ = True
        if not isinstance(self.backend, InProcessBackend):
            raise ConfigurationError(
                f"backend {self.options.backend!r} can't run a case inside the pytest process"
            )
        return self.backend.execute(plan, task)


_ALCHEMY = pytest.StashKey[Alchemy]()
