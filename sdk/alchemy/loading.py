"""Executes an experiment file: on a node by its path, in this process anew for every case.

A new execution gives `lr = al.param("lr", default=1e-3)` at module level each case's own value, and keeps
module globals of one case from reaching the next, as on a cluster.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from alchemy.errors import ConfigurationError
from alchemy.experiment import Experiment, Task
from alchemy.importing import imported_anew, in_place
from alchemy.params import scope

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

    from alchemy.matrix import Value
    from alchemy.runspec import CodeRef

__all__ = ["find_task", "fresh", "load"]


def load(code: CodeRef) -> ModuleType:
    """Import an experiment file by its path, under the name pytest gave it, with its `sys.path`.

    The parameters of the case must be in scope (`alchemy.params.scope`) for module-level ones.

    Raises:
        ConfigurationError: There is no such file.
        BaseException: Whatever the file raised; the module is then not in `sys.modules`.
    """
    _put_first(code.sys_path)
    if not Path(code.path).is_file():
        raise ConfigurationError(
            f"the experiment file {code.path} is not there, or can't be read, on this machine"
        )
    parent, _, child = code.module.rpartition(".")
    package = _package(parent, Path(code.path).parent) if parent else None
    spec = importlib.util.spec_from_file_location(code.module, code.path)
    if spec is None:
        raise ConfigurationError(f"{code.path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[code.module] = module
    try:
        _execute(spec, module)
    except BaseException:
        sys.modules.pop(code.module, None)
        raise
    if package is not None:
        setattr(package, child, module)
    return module


@contextmanager
def fresh(name: str, params: Mapping[str, Value]) -> Iterator[ModuleType]:
    """Execute an imported module anew for one case, with the case's parameters in scope till the end.

    Meanwhile the new module stands in `sys.modules`, so that dataclasses, pickling and imports of it work.
    Modules it imports that read parameters at module level, directly or from one another, are imported anew
    with it. At the end, and after any exception, the old ones are put back.

    Args:
        name: The module's name in `sys.modules`.
        params: The parameters of the case.

    Raises:
        ConfigurationError: The module isn't imported, or can't be executed again.
        BaseException: Whatever the file raised.
    """
    __tracebackhide__ = True
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if spec is None or spec.loader is None:
        raise ConfigurationError(
            f"module {name!r} was not imported from a file, so it can't be executed anew"
        )
    new = importlib.util.module_from_spec(spec)
    with scope(params), imported_anew(name), in_place(name, new):
        _execute(spec, new)
        yield new


def find_task(module: ModuleType, experiment: str, task: str) -> Task:
    """Return a task that a module holds, by the names of its experiment and its own.

    Raises:
        ConfigurationError: The module doesn't declare it; says what it does.
    """
    found: dict[tuple[str, str], Task] = {}
    for value in list(vars(module).values()):
        tasks = value.tasks if isinstance(value, Experiment) else (value,) if isinstance(value, Task) else ()
        for each in tasks:
            found.setdefault((each.experiment.name, each.name), each)
    if (experiment, task) in found:
        return found[experiment, task]
    declared = ", ".join(f"{name}::{each}" for name, each in found) or "no task"
    raise ConfigurationError(
        f"{module.__file__} declares {declared} when it is executed for this case, and not "
        f"{experiment}::{task}: what a file declares must not depend on the parameters or the machine"
    )


def _execute(spec: ModuleSpec, module: ModuleType) -> None:
    __tracebackhide__ = True
    assert spec.loader is not None  # noqa: S101  for the type checker
    spec.loader.exec_module(module)


def _put_first(directories: Sequence[str]) -> None:
    sys.path[:] = [*directories, *(entry for entry in sys.path if entry not in directories)]
    importlib.invalidate_caches()


def _package(name: str, directory: Path) -> ModuleType:
    """Import the package around a file; where there is none, which pytest allows, make an empty one."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the package is there, and something it imports isn't
    parent, _, child = name.rpartition(".")
    package = ModuleType(name)
    package.__path__ = [str(directory)]
    sys.modules[name] = package
    if parent:
        setattr(_package(parent, directory.parent), child, package)
    return package
