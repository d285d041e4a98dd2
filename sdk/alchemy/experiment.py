"""Declaring an experiment: its name, its matrix, its criteria and its tasks.

Everything that can't be meant is refused here, while the file is imported, so that nothing is ever submitted
on a misunderstanding. Importing this module needs neither pytest nor anything that runs a task.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, update_wrapper
from typing import TYPE_CHECKING, Any, overload

from alchemy.criteria import Criterion, parse_criteria
from alchemy.errors import ConfigurationError
from alchemy.matrix import Case, cases_of, parse_axes
from alchemy.resources import Resources

if TYPE_CHECKING:
    from alchemy.context import Context

__all__ = ["Experiment", "Task", "experiment"]

_MAX_NAME = 100


class Experiment:
    """What `experiment()` returns: the declaration, which the tasks join by `@exp.task(...)`."""

    name: str
    criteria: tuple[Criterion, ...]
    """Thresholds of the last task, and of no other one."""
    tags: tuple[str, ...]
    resources: Resources
    replicates: str | None
    """Axis whose values only repeat the measurement, such as `seed`; None if the matrix has no such axis."""

    def __init__(
        self,
        name: str,
        *,
        criteria: Mapping[str, str] | None = None,
        matrix: Mapping[str, Sequence[Any]] | None = None,
        tags: Sequence[str] | None = None,
        resources: Mapping[str, Any] | None = None,
        replicates: str | None = "seed",
    ) -> None:
        self.name = _experiment_name(name)
        where = f"experiment {name!r}"
        try:
            self._axes = parse_axes(matrix)
            self.criteria = parse_criteria(criteria)
            self.tags = _tags(tags)
            self.resources = Resources.parse(resources or {}, where)
            self.replicates = self._replicate_axis(replicates)
        except ConfigurationError as error:
            raise _located(error, where) from None
        self._tasks: dict[str, Task] = {}

    def __repr__(self) -> str:
        return f"<Experiment {self.name!r}: tasks {list(self._tasks)}, axes {list(self.matrix)}>"

    @property
    def matrix(self) -> dict[str, tuple[Any, ...]]:
        """Axis name to its values, without their marks; a new dict at each call."""
        return {axis.name: axis.values for axis in self._axes}

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """Every point of the matrix, the last axis running fastest; one nameless case without a matrix."""
        return cases_of(self._axes)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks in the order of declaration."""
        return tuple(self._tasks.values())

    @overload
    def task(
        self,
        fn: None = None,
        *,
        total_steps: int,
        eval_every: int | None = None,
        name: str | None = None,
        criteria: Mapping[str, str] | None = None,
        resources: Mapping[str, Any] | None = None,
        seed_rng: bool = True,
    ) -> Callable[[Callable[[Context], Any]], Task]: ...

    @overload
    def task(
        self,
        fn: Callable[[Context], Any],
        *,
        total_steps: int,
        eval_every: int | None = None,
        name: str | None = None,
        criteria: Mapping[str, str] | None = None,
        resources: Mapping[str, Any] | None = None,
        seed_rng: bool = True,
    ) -> Task: ...

    def task(
        self, fn: Callable[[Context], Any] | None = None, **options: Any
    ) -> Task | Callable[[Callable[[Context], Any]], Task]:
        """Make a function that takes the context a task of this experiment.

        Args:
            fn: The function; left out in the usual form, `@exp.task(total_steps=...)`.
            total_steps: Number of steps of `ctx.steps()`, which counts 0 … total_steps-1.
            eval_every: `ctx.should_eval()` is true every that many steps and after the last one.
            name: Name in node ids; by default the function's own.
            criteria: Thresholds of this task; the experiment's belong to its last task.
            resources: What a run of this task needs; what is set here goes over the experiment's.
            seed_rng: Whether random number generators are seeded before the function is called.

        Raises:
            ConfigurationError: Names the task and what can't be meant.
        """
        if fn is None:
            return lambda function: self._add(Task(self, function, **options))
        return self._add(Task(self, fn, **options))

    def _add(self, task: Task) -> Task:
        if task.name in self._tasks:
            raise ConfigurationError(
                f"experiment {self.name!r} has two tasks named {task.name!r}: give one of them another name="
            )
        self._tasks[task.name] = task
        return task

    def _replicate_axis(self, replicates: object) -> str | None:
        names = [axis.name for axis in self._axes]
        if replicates in names or replicates is None:
            return replicates  # type: ignore[return-value]  # a name of the list is a str
        if replicates == "seed":  # the default, which a matrix may do without
            return None
        known = ", ".join(names) or "none"
        raise ConfigurationError(f"replicates={replicates!r} is not an axis of the matrix (axes: {known})")


class Task:
    """A function of an experiment; called like one, it runs the first case of the matrix.

    It looks like the function it wraps (`__name__`, `__doc__`, `__wrapped__`, its pytest marks).
    """

    __wrapped__: Callable[[Context], Any]

    def __init__(
        self,
        experiment: Experiment,
        fn: Callable[[Context], Any],
        *,
        total_steps: int,
        eval_every: int | None = None,
        name: str | None = None,
        criteria: Mapping[str, str] | None = None,
        resources: Mapping[str, Any] | None = None,
        seed_rng: bool = True,
    ) -> None:
        _check_function(fn, experiment.name)
        # First, since it copies the function's attributes, which must not cover ours.
        update_wrapper(self, fn)
        self.fn = fn
        self.experiment = experiment
        self.name = _task_name(fn.__name__ if name is None else name, experiment.name)
        where = f"task {self.name!r} of experiment {experiment.name!r}"
        try:
            self.total_steps = _positive("total_steps", total_steps)
            self.eval_every = None if eval_every is None else _positive("eval_every", eval_every)
            self.own_criteria = parse_criteria(criteria)
            self.resources = Resources.parse(resources or {}, where).over(experiment.resources)
            self.seed_rng = _flag("seed_rng", seed_rng)
        except ConfigurationError as error:
            raise _located(error, where) from None

    def __repr__(self) -> str:
        return f"<Task {self.name!r} of experiment {self.experiment.name!r}>"

    def __call__(self, ctx: Context | None = None) -> Any:
        """Call the function with this context; without one, run the first case of the matrix.

        Outside a managed run nothing is written, and what the function returns is returned.
        """
        __tracebackhide__ = True
        if ctx is not None:
            return self.fn(ctx)
        from alchemy.execution import execute_plainly  # deferred: a declaration needs nothing that runs

        return execute_plainly(self)

    @property
    def cases(self) -> tuple[Case, ...]:
        """The cases of the experiment."""
        return self.experiment.cases

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """What this task is judged by: its own criteria, and for the last task the experiment's too.

        Where both name a metric the task's own holds. Complete once the module has been imported.
        """
        if self.experiment.tasks[-1:] != (self,):
            return self.own_criteria
        own = {criterion.metric for criterion in self.own_criteria}
        return (*(each for each in self.experiment.criteria if each.metric not in own), *self.own_criteria)


def experiment(
    name: str,
    *,
    criteria: Mapping[str, str] | None = None,
    matrix: Mapping[str, Sequence[Any]] | None = None,
    tags: Sequence[str] | None = None,
    resources: Mapping[str, Any] | None = None,
    replicates: str | None = "seed",
) -> Experiment:
    """Declare an experiment: a claim about the world, and the space of cases in which it is tried.

    Args:
        name: Up to 100 printable characters, without `/`; unique among the experiments of a session.
        criteria: Metric to threshold, for example `{"silhouette": "> 0.3", "loss": "0.2..0.4"}`.
        matrix: Axis to its values, for example `{"ctx_len": [16, 32], "seed": [1, 2, 3]}`. Values are int,
            float, str, bool, None, and tuples and dicts of these, each bare or in a `pytest.param`.
        tags: Words by which to find the experiment again.
        resources: What one run needs: nodes, gpus, cpus, mem, time, partition, account.
        replicates: Axis that only repeats the measurement; its int value seeds the run. None: no such axis.

    Raises:
        ConfigurationError: Names what can't be meant.
    """
    return Experiment(
        name, criteria=criteria, matrix=matrix, tags=tags, resources=resources, replicates=replicates
    )


def _located(error: ConfigurationError, where: str) -> ConfigurationError:
    """Return the error with the place in front, unless it already says it."""
    text = str(error)
    return error if text.startswith(where) else ConfigurationError(f"{where}: {text}")


def _experiment_name(name: object) -> str:
    if not isinstance(name, str):
        raise ConfigurationError(
            f"the name of an experiment must be a str, not {type(name).__name__}: {name!r}"
        )
    if not name.strip() or name != name.strip():
        raise ConfigurationError(f"the name of an experiment must not be empty or end in spaces: {name!r}")
    if not name.isprintable() or "/" in name or name[0] in ".-":
        raise ConfigurationError(
            f"the name of an experiment names a directory too: no '/', no line break or other control character, "
            f"and no '.' or '-' in front; got {name!r}"
        )
    if len(name) > _MAX_NAME:
        raise ConfigurationError(
            f"the name of an experiment has at most {_MAX_NAME} characters, not {len(name)}: {name[:40]!r}…"
        )
    return name


def _task_name(name: object, experiment: str) -> str:
    if isinstance(name, str) and name.isidentifier():
        return name
    raise ConfigurationError(
        f"experiment {experiment!r}: a task's name must be an identifier such as train, not {name!r}; "
        "set it by @exp.task(name=...)"
    )


def _tags(tags: object) -> tuple[str, ...]:
    if tags is None:
        return ()
    if isinstance(tags, str) or not isinstance(tags, (Sequence, set, frozenset)):
        raise ConfigurationError(f"tags must be a list of str such as ['baseline'], not {tags!r}")
    for tag in tags:
        if not isinstance(tag, str) or not tag.strip() or not tag.isprintable():
            raise ConfigurationError(f"a tag must be a printable, non-empty str, not {tag!r}")
    return tuple(sorted(tags) if isinstance(tags, (set, frozenset)) else tags)


def _positive(what: str, value: object) -> int:
    # numpy's integers count too; True and 1e6 are accidents.
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        hint = f": write {int(value)}" if isinstance(value, float) and value.is_integer() else ""
        raise ConfigurationError(f"{what} must be a positive int, not {type(value).__name__} {value!r}{hint}")
    number = operator.index(value)
    if number < 1:
        raise ConfigurationError(f"{what} must be a positive int, not {number}")
    return number


def _flag(what: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ConfigurationError(f"{what} must be True or False, not {value!r}")


def _check_function(fn: object, experiment: str) -> None:
    """Refuse what could never run as a task, above all functions whose call would run nothing."""
    if isinstance(fn, Task):
        raise ConfigurationError(f"experiment {experiment!r}: {fn!r} is a task already")
    if not callable(fn) or not hasattr(fn, "__name__"):
        raise ConfigurationError(f"experiment {experiment!r}: @exp.task belongs on a function, not on {fn!r}")
    where = f"experiment {experiment!r}, {fn.__name__}()"
    if inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn):
        raise ConfigurationError(f"{where}: a task can't be async; calling it would run nothing")
    if inspect.isgeneratorfunction(fn):
        raise ConfigurationError(f"{where}: a task can't yield; calling it would run nothing")
    try:
        inspect.signature(fn).bind(object())
    except TypeError as error:
        raise ConfigurationError(f"{where}: a task takes one argument, the context ({error})") from None
    except ValueError:  # a builtin that doesn't tell its signature
        pass
