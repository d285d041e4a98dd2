"""From a collected case to the run that executes it: identity, seed, code reference."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from alchemy.matrix import encode_params, slug
from alchemy.runspec import CodeRef, RunSpec
from pytest_alchemy.backends import Plan
from pytest_alchemy.fingerprint import CodeDigests, fingerprint

if TYPE_CHECKING:
    from types import ModuleType

    from alchemy.experiment import Task
    from alchemy.matrix import Case

__all__ = ["Planner"]

_READABLE = 120
"""Characters of a run id before the fingerprint; a file name may have 255 bytes."""
_PREFIX = 12
"""Hex digits of the fingerprint in a run id: 48 bits, ample beside the readable part."""


class Planner:
    """Makes plans for the cases of one session."""

    def __init__(self, rootdir: Path, cwd: Path, max_steps: int | None) -> None:
        self._rootdir = rootdir
        self._cwd = cwd
        self._max_steps = max_steps
        self._digests = CodeDigests()
        self._codes: dict[str, tuple[CodeRef, str]] = {}

    def is_shortened(self, task: Task) -> bool:
        """Tell whether runs of this task end before their time on the user's wish."""
        return self._max_steps is not None and self._max_steps < task.total_steps

    def plan(self, task: Task, case: Case, module: ModuleType) -> Plan:
        """Return the run of one case of a task defined in `module`."""
        code, digest = self._code(module)
        total_steps = min(task.total_steps, self._max_steps or task.total_steps)
        identity = fingerprint(
            digest,
            {
                "experiment": task.experiment.name,
                "task": task.name,
                "params": encode_params(case.params),
                "total_steps": total_steps,
                "world_size": 1,
            },
        )
        spec = RunSpec(
            run=run_id(task.experiment.name, task.name, case.id, identity),
            experiment=task.experiment.name,
            task=task.name,
            case=case.id,
            params=case.params,
            total_steps=total_steps,
            eval_every=task.eval_every,
            seed=_seed(case.params.get(task.experiment.replicates), identity),
            seed_rng=task.seed_rng,
            fingerprint=identity,
            code=code,
        )
        return Plan(spec, task.resources.over(task.experiment.resources))

    def _code(self, module: ModuleType) -> tuple[CodeRef, str]:
        name = module.__name__
        if name not in self._codes:
            path = Path(str(module.__file__))
            base = path.parents[name.count(".")]
            search = [base, *(p for p in map(Path, sys.path) if p != base and self._is_project(p))]
            code = CodeRef(str(path), name, tuple(map(str, search)), str(self._cwd))
            self._codes[name] = code, self._digests.of(path, search)
        return self._codes[name]

    def _is_project(self, path: Path) -> bool:
        return path.is_absolute() and path.is_relative_to(self._rootdir) and "site-packages" not in path.parts


def run_id(experiment: str, task: str, case: str, identity: str) -> str:
    """Return the run's name: readable, safe as a file name, unique by the prefix of its fingerprint."""
    readable = "-".join(filter(None, (slug(experiment), slug(task), slug(case) if case else "")))
    return f"{readable[:_READABLE]}-{identity[:_PREFIX]}"


def _seed(replicate: object, identity: str) -> int:
    """Return the replicate value where it is a whole number, else bits of the fingerprint."""
    if isinstance(replicate, int) and not isinstance(replicate, bool) and replicate >= 0:
        return replicate
    return int(identity[:8], 16)
