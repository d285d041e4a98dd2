"""Declaring an experiment: its name, its matrix, its criteria and its tasks.

Everything that can't be meant is refused here, while the file is imported, so that nothing is ever submitted
on a misunderstanding. Importing this module needs neither pytest nor anything that runs a task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, update_wrapper
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, overload

from alchemy.checks import check_context, check_function, flag, positive
from alchemy.criteria import Criterion, parse_criteria
from alchemy.errors import ConfigurationError
from alchemy.loop.cadence import Checkpointing
from alchemy.matrix import Axis, Case, Value, cases_of, parse_axes
from alchemy.resources import Resources

if TYPE_CHECKING:
    from alchemy.context import Context

__all__ = ["Experiment", "Task", "declaring", "experiment"]

Function: TypeAlias = "Callable[[Context], Any]"

_MAX_NAME = 100


_listening: list[list[Experiment]] = []


@contextmanager
def declaring() -> Iterator[list[Experiment]]:
    """Note the experiments that are declared inside the block, for whoever reads a file."""
    noted: list[Experiment] = []
    _listening.append(noted)
    try:
        yield noted
    finally:
        _listening.remove(noted)


def experiment(
    name: str,
    *,
    criteria: Mapping[str, str] | None = None,
    matrix: Mapping[str, Sequence[Any]] | None = None,
    tags: Mapping[str, str] | None = None,
    resources: Mapping[str, Any] | None = None,
    replicates: str = "seed",
) -> Experiment:
    """Declare an experiment: a claim about the world, and the space of cases in which it is tried.

    Args:
        name: Up to 100 printable characters, without `/`; unique among the experiments of a session.
        criteria: Metric to threshold, for example `{"silhouette": "> 0.3", "loss": "0.2..0.4"}`.
        matrix: Axis to its values, for example `{"ctx_len": [16, 32], "seed": [1, 2, 3]}`. Values are int,
            float, str, bool, None, and tuples and dicts of these, each bare or in a `pytest.param`.
        tags: What to find the experiment by again, for example `{"paper": "neurips"}`.
        resources: What one run needs: nodes, gpus, cpus, mem, time, partition, account.
        replicates: The axis that only repeats the measurement; where its value is an int, it seeds the run.

    Raises:
        ConfigurationError: Names what can't be meant.
    """
    __tracebackhide__ = True
    _check_experiment_name(name)
    try:
        axes = parse_axes(matrix)
        _check_replicates(replicates, axes)
        declared = Experiment(
            name=name,
            axes=axes,
            criteria=parse_criteria(criteria),
            tags=_checked_tags(tags),
            resources=Resources.parse(resources or {}, "resources"),
            replicates=replicates,
        )
    except ConfigurationError as error:
        raise _located(error, f"experiment {name!r}") from None
    for noted in _listening:
        noted.append(declared)
    return declared


@dataclass(eq=False)
class Experiment:
    """What `experiment()` returns: the checked declaration, which tasks join by `@exp.task(...)`."""

    name: str
    axes: tuple[Axis, ...]
    criteria: tuple[Criterion, ...]
    """Thresholds of the last task, and of no other one."""
    tags: Mapping[str, str]
    resources: Resources
    replicates: str
    """Name of the axis that only repeats the measurement; the matrix may do without it."""
    _tasks: dict[str, Task] = field(default_factory=dict, init=False, repr=False)

    @property
    def matrix(self) -> dict[str, tuple[Value, ...]]:
        """Axis name to its values, without their marks; a new dict at each call."""
        return {axis.name: axis.values for axis in self.axes}

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """Every point of the matrix, the last axis running fastest; one nameless case without a matrix."""
        return cases_of(self.axes)

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
        eval_every: int | None = ...,
        name: str | None = ...,
        criteria: Mapping[str, str] | None = ...,
        resources: Mapping[str, Any] | None = ...,
        seed_rng: bool = ...,
        checkpoint_every: int | None = ...,
        checkpoint_minutes: float | None = ...,
        keep: int = ...,
        async_save: bool = ...,
        context: type[Context] | None = ...,
    ) -> Callable[[Function], Task]: ...
    @overload
    def task(
        self,
        fn: Function,
        *,
        total_steps: int,
        eval_every: int | None = ...,
        name: str | None = ...,
        criteria: Mapping[str, str] | None = ...,
        resources: Mapping[str, Any] | None = ...,
        seed_rng: bool = ...,
        checkpoint_every: int | None = ...,
        checkpoint_minutes: float | None = ...,
        keep: int = ...,
        async_save: bool = ...,
        context: type[Context] | None = ...,
    ) -> Task: ...
    def task(
        self,
        fn: Function | None = None,
        *,
        total_steps: int,
        eval_every: int | None = None,
        name: str | None = None,
        criteria: Mapping[str, str] | None = None,
        resources: Mapping[str, Any] | None = None,
        seed_rng: bool = True,
        checkpoint_every: int | None = None,
        checkpoint_minutes: float | None = None,
        keep: int = 2,
        async_save: bool = True,
        context: type[Context] | None = None,
    ) -> Task | Callable[[Function], Task]:
        """Make a function that takes the context a task of this experiment.

        Args:
            fn: The function; left out in the usual form, `@exp.task(total_steps=...)`.
            total_steps: Number of steps of `ctx.steps()`, which counts 0 … total_steps-1.
            eval_every: `ctx.should_eval()` is true every that many steps and after the last one.
            name: Name in node ids; by default the function's own.
            criteria: Thresholds of this task; the experiment's belong to its last task.
            resources: What a run of this task needs; what is set here goes over the experiment's.
            seed_rng: Whether random number generators are seeded before the function is called.
            checkpoint_every: Steps between checkpoints of what is assigned to the context.
            checkpoint_minutes: Minutes between checkpoints; without either, 10.
            keep: How many checkpoints stay, 2 or more.
            async_save: Whether the training goes on while a checkpoint is written.
            context: A class of contexts with typed attributes; by default what annotates the argument.

        Raises:
            ConfigurationError: Names the task and what can't be meant.
        """
        __tracebackhide__ = True

        def declare(function: Function) -> Task:
            __tracebackhide__ = True
            _check_function(function, self.name)
            task_name = function.__name__ if name is None else name
            self._check_task_name(task_name)
            try:
                task = Task(
                    fn=function,
                    experiment=self,
                    name=task_name,
                    total_steps=positive("total_steps", total_steps),
                    eval_every=None if eval_every is None else positive("eval_every", eval_every),
                    own_criteria=parse_criteria(criteria),
                    resources=Resources.parse(resources or {}, "resources").over(self.resources),
                    seed_rng=flag("seed_rng", seed_rng),
                    checkpointing=Checkpointing.parse(checkpoint_every, checkpoint_minutes, keep, async_save),
                    context=check_context(context),
                )
            except ConfigurationError as error:
                raise _located(error, f"experiment {self.name!r}, task {task_name!r}") from None
            self._tasks[task_name] = task
            return task

        return declare if fn is None else declare(fn)

    def _check_task_name(self, name: object) -> None:
        where = f"experiment {self.name!r}"
        if not isinstance(name, str) or not name.isidentifier():
            raise ConfigurationError(
                f"{where}: a task's name must be an identifier such as train, not {name!r}; "
                "set it by @exp.task(name=...)"
            )
        if name in self._tasks:
            raise ConfigurationError(f"{where} has two tasks named {name!r}: give one of them another name=")


@dataclass(eq=False, repr=False)
class Task:
    """A function of an experiment; called like one, it runs the first case of the matrix.

    It looks like the function it wraps (`__name__`, `__doc__`, `__wrapped__`, its pytest marks).
    """

    fn: Function
    experiment: Experiment
    name: str
    total_steps: int
    eval_every: int | None
    own_criteria: tuple[Criterion, ...]
    """Those this task names itself; `criteria` is what it is judged by."""
    resources: Resources
    """What a run needs: the task's own wishes over the experiment's."""
    seed_rng: bool
    checkpointing: Checkpointing
    context: type[Context] | None
    """The class of contexts it asks for; None: what annotates its argument."""

    def __post_init__(self) -> None:
        own = dict(vars(self))
        update_wrapper(self, self.fn)
        vars(self).update(own)  # again: an attribute of the function must not cover one of ours

    def __repr__(self) -> str:
        return f"<Task {self.name!r} of experiment {self.experiment.name!r}>"

    def __call__(self, ctx: Context | None = None) -> Any:
        """Call the function with this context; without one, run the first case of the matrix.

        In a job (`ALCHEMY_TASK_ID` is set) that run is recorded; elsewhere nothing is written.
        """
        __tracebackhide__ = True
        if ctx is not None:
            return self.fn(ctx)
        from alchemy.execution import execute_plainly  # deferred: a declaration needs nothing that runs

        return execute_plainly(self, self.cases[0].params, self.experiment.replicates)

    @property
    def cases(self) -> tuple[Case, ...]:
        """The cases of the experiment."""
        return self.experiment.cases

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """What this task is judged by: its own criteria, and for the last task the experiment's too.

        Where both name a metric, the task's own holds. Complete once the module has been imported.
        """
        if self.experiment.tasks[-1:] != (self,):
            return self.own_criteria
        own = {criterion.metric for criterion in self.own_criteria}
        return (*(each for each in self.experiment.criteria if each.metric not in own), *self.own_criteria)


def _located(error: ConfigurationError, where: str) -> ConfigurationError:
    """Return the error with the place in front of what it says."""
    return type(error)(f"{where}: {error}")


def _check_experiment_name(name: object) -> None:
    def refuse(why: str) -> NoReturn:
        raise ConfigurationError(f"the name of an experiment must {why}, not {name!r:.{_MAX_NAME}}")

    if not isinstance(name, str):
        refuse("be a str")
    if not name or name != name.strip():
        refuse("be a text without spaces at its ends")
    if not name.isprintable() or "/" in name or name[0] in ".-":
        refuse("be fit for a directory: no '/', no control character, no '.' or '-' in front")
    if len(name) > _MAX_NAME:
        refuse(f"have at most {_MAX_NAME} characters")


def _check_replicates(replicates: object, axes: Sequence[Axis]) -> None:
    names = [axis.name for axis in axes]
    # Only the default may be missing: many experiments have no seed axis.
    if replicates not in names and replicates != "seed":
        known = ", ".join(names) or "none"
        raise ConfigurationError(f"replicates={replicates!r} is not an axis of the matrix (axes: {known})")


def _checked_tags(tags: object) -> dict[str, str]:
    if tags is None:
        return {}
    if not isinstance(tags, Mapping):
        raise ConfigurationError(f'tags must be a dict such as {{"paper": "neurips"}}, not {tags!r}')
    for text in (*tags, *tags.values()):
        if not isinstance(text, str) or not text.strip() or not text.isprintable():
            raise ConfigurationError(
                f"names and values of tags must be printable, non-empty str, not {text!r}"
            )
    return dict(tags)


def _check_function(fn: object, experiment: str) -> None:
    where = f"experiment {experiment!r}"
    if isinstance(fn, Task):
        raise ConfigurationError(
            f"{where}: {fn!r} is a task already; write the function once more, or use {fn.name}.fn"
        )
    check_function(fn, where, "@exp.task")
