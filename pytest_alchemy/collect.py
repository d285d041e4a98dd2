"""Experiment files become pytest modules, their cases pytest items."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from alchemy.experiment import Experiment, Task, declaring
from alchemy.params import collecting
from pytest_alchemy.case import CaseItem
from pytest_alchemy.session import Alchemy

__all__ = ["ExperimentModule", "make_items"]

_DECLARED_IN = pytest.StashKey[dict[str, tuple[Experiment, Path]]]()
_REFUSED_MARKS = {
    "parametrize": "pytest.mark.parametrize can't work on it; put the values into the experiment's matrix",
    "usefixtures": "pytest.mark.usefixtures can't work on it; it may run on a machine without fixtures",
}


class ExperimentModule(pytest.Module):
    """A Python file that declares an experiment; ordinary tests in it are collected as usual."""

    made: set[int]
    """The tasks, by identity, of which there are items already."""

    def collect(self) -> list[pytest.Item | pytest.Collector]:
        """Import the file and return its cases and tests.

        Raises:
            pytest.Collector.CollectError: Names clash, an experiment has no task, a mark can't work …
        """
        pytest.register_assert_rewrite(*(name for name in self._module_names() if name not in sys.modules))
        self.made = set()
        with collecting(), declaring() as declared:
            try:
                collected = list(super().collect())
            except SystemExit as error:
                raise self.CollectError(
                    f"{self.path.name} ends the program when it is imported (SystemExit: {error}): put what "
                    'a script does, parse_args() above all, below `if __name__ == "__main__":`'
                ) from None
        for experiment in vars(self.obj).values():
            if isinstance(experiment, Experiment):
                collected += self._cases_behind(experiment)
        self._check(declared, collected)
        return collected

    def _module_names(self) -> Iterator[str]:
        """Every name pytest may import the file under, whichever import mode it uses."""
        parts = self.path.with_suffix("").parts
        return (".".join(parts[-count:]) for count in range(1, len(parts)))

    def _cases_behind(self, experiment: Experiment) -> list[CaseItem]:
        """Return the cases of tasks that only their experiment names, as a factory leaves them."""
        return [item for task in experiment.tasks for item in make_items(self, task) or ()]

    def _check(self, declared: Sequence[Experiment], collected: Sequence[object]) -> None:
        tasks = {id(item.task): item.task for item in collected if isinstance(item, CaseItem)}
        by_name: dict[str, Task] = {}
        for task in tasks.values():
            if by_name.setdefault(task.name, task) is not task:
                raise self.CollectError(_same_task_name(task, by_name[task.name]))
        for experiment in declared:
            self._check_experiment(experiment, tasks)

    def _check_experiment(self, experiment: Experiment, collected: Mapping[int, Task]) -> None:
        name = experiment.name
        if not experiment.tasks:
            raise self.CollectError(
                f"experiment {name!r} has no task; decorate its training function with "
                "@exp.task(total_steps=...)"
            )
        ours = [task for task in experiment.tasks if task.__module__ == self.obj.__name__]
        for task in ours:
            if id(task) not in collected:
                raise self.CollectError(
                    f"task {task.name!r} of experiment {name!r} can't be reached: another thing in this file "
                    "took the names of the task and of its experiment; give each a name of its own"
                )
        declared_in = self.session.stash.setdefault(_DECLARED_IN, {})
        if ours and (before := declared_in.setdefault(name, (experiment, self.path)))[0] is not experiment:
            where = "in this file" if before[1] == self.path else f"in {before[1]} too"
            raise self.CollectError(f"experiment {name!r} is declared twice, {where}; names must be unique")


def _same_task_name(task: Task, other: Task) -> str:
    return (
        f"experiments {other.experiment.name!r} and {task.experiment.name!r} both have a task {task.name!r}, "
        f'so their cases would have the same node ids: write @exp.task(name="...") for one of them'
    )


def make_items(collector: ExperimentModule, obj: object) -> list[CaseItem] | None:
    """Return the items of a module-level name: the cases of a task, or None if it isn't one.

    Raises:
        pytest.Collector.CollectError: A mark of the task can't work on it.
    """
    if not isinstance(obj, Task):
        return None
    if obj.__module__ != collector.obj.__name__ or id(obj) in collector.made:
        return []  # imported from another experiment file, or a second name for the same task
    collector.made.add(id(obj))
    for mark in getattr(obj, "pytestmark", ()):
        if mark.name in _REFUSED_MARKS:
            raise collector.CollectError(f"task {obj.name!r}: {_REFUSED_MARKS[mark.name]}")
    alchemy = Alchemy.of(collector.config)
    with _without_garbage_collector():
        return [CaseItem.of(collector, obj, case, alchemy) for case in obj.cases]


@contextmanager
def _without_garbage_collector() -> Iterator[None]:
    """Spare searching thousands of new items for garbage again and again: none of them is."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
