"""What a task is handed: parameters, the loop, logging and evaluation of one case."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from alchemy import params as parameters
from alchemy.errors import ConfigurationError
from alchemy.loop.remaining import remaining_time
from alchemy.recording.scalars import Scalar, as_float, as_scalar, names_and_values
from alchemy.result import Evaluation
from alchemy.state.declarations import Declared

if TYPE_CHECKING:
    from alchemy.live.params import LiveParams
    from alchemy.loop.lifecycle import Lifecycle
    from alchemy.loop.position import Position
    from alchemy.recording.recorder import Recorder

__all__ = ["Context"]


class Context:
    """One case of a task, seen from the user's function.

    What is assigned to an attribute is managed: checkpoints have it, and in a run that goes on it is what it
    was. Names that begin with `_` are the user's own business; those this class uses are taken.
    """

    params: LiveParams
    """The parameters of the case as they are now; read-only. `param` gives copies of what can be changed."""
    total_steps: int
    """Steps this run has, which may be fewer than declared in a shortened run."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, value in vars(cls).items():
            if isinstance(value, Declared) and name in _TAKEN:
                raise ConfigurationError(
                    f"{cls.__qualname__}.{name}: ctx.{name} is taken by the framework: give your attribute "
                    "another name"
                )

    def __init__(self, *, lifecycle: Lifecycle, recorder: Recorder, eval_every: int | None) -> None:
        """Make the context of one execution.

        Args:
            lifecycle: Knows the loop, the parameters and the managed values.
            recorder: Takes what is logged.
            eval_every: Steps between evaluations; None for one evaluation, after the last step.
        """
        vars(self).update(
            params=lifecycle.params,
            total_steps=lifecycle.total_steps,
            _eval_every=eval_every or lifecycle.total_steps,
            _lifecycle=lifecycle,
            _position=lifecycle.position,
            _recorder=recorder,
            _record=recorder.log,
            _now=time.time,
        )

    def __setattr__(self, name: str, value: Any) -> None:
        __tracebackhide__ = True
        if name in _TAKEN:
            raise ConfigurationError(
                f"ctx.{name} is taken by the framework: give your attribute another name"
            )
        if name[0] == "_" or _is_descriptor(type(self), name):  # the user's own business, or a descriptor's
            object.__setattr__(self, name, value)
        elif isinstance(value, Declared):
            self._lifecycle.values.declare(name, value)
        else:
            vars(self)[name] = self._lifecycle.values.assign(name, value)

    def __delattr__(self, name: str) -> None:
        if name in _TAKEN:
            raise ConfigurationError(f"ctx.{name} belongs to the framework and can't be deleted")
        object.__delattr__(self, name)
        if not _is_descriptor(type(self), name):
            self._lifecycle.values.forget(name)

    def _assign(self, name: str, value: object) -> None:
        """Take a value from the descriptor that declares its kind."""
        __tracebackhide__ = True
        values, declared = self._lifecycle.values, vars(type(self)).get(name) or getattr(type(self), name)
        values.declare(name, declared)
        vars(self)[name] = values.assign(name, value)

    def _forget(self, name: str) -> None:
        """Take away the value of a descriptor."""
        if name not in vars(self):
            raise AttributeError(name)
        del vars(self)[name]
        self._lifecycle.values.forget(name)

    def param(self, name: str, default: Any = parameters.MISSING) -> Any:
        """Return the value of a parameter of this case, else `default`.

        Raises:
            MissingParameter: The case doesn't have it and there is no default.
        """
        __tracebackhide__ = True
        return self.params.lookup(name, default)

    @property
    def step(self) -> int:
        """The current step, 0 … total_steps − 1; 0 before the loop, the last one after it."""
        return self._position.step

    def steps(self) -> Iterator[int]:
        """Return the loop: the steps 0 … total_steps − 1. `break` or `return` ends the run as completed.

        Raises:
            ConfigurationError: It was called before; a task has one loop.
        """
        __tracebackhide__ = True
        position = self._position
        if position.begun:
            raise ConfigurationError(
                "ctx.steps() was called a second time: a task has one loop; put epochs inside it, "
                "or declare two tasks"
            )
        start, bound, gone = self._lifecycle.begin()
        vars(self).update(bound)
        for name in gone:
            del vars(self)[name]
        return _steps(self._lifecycle, start)

    def save(self) -> None:
        """Have a checkpoint made when the current step ends, besides those that are made anyway.

        It can't be made in the middle of a step, because a run that goes on begins with a whole one.
        """
        self._lifecycle.ask_to_save()

    @property
    def should_stop(self) -> bool:
        """Whether the run was asked to stop, by a signal or a command: the loop leaves when the step ends.

        To be asked within what takes long, such as an evaluation, which may then break off; the results of
        one that did are not recorded, and it is due again when the run goes on.
        """
        position, stops = self._position, self._lifecycle.is_stop_asked
        if stops and position.is_evaluating:
            position.is_cut = True
        return stops

    def remaining_time(self) -> float | None:
        """Return the seconds until the job reaches its time limit; None without one, and outside of Slurm."""
        return remaining_time(os.environ, self._now())

    def should_eval(self) -> bool:
        """Tell whether the current step ends with an evaluation: every `eval_every` steps and at the last."""
        position = self._position
        finished = position.step + 1
        position.is_evaluating = position.begun and (
            finished % self._eval_every == 0 or finished == self.total_steps or position.is_overdue
        )
        return position.is_evaluating

    def log(self, metrics: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Record metrics of the current step, as in `ctx.log(loss=loss)`; they are on disk within a second.

        Args:
            metrics: Name to number: int, float, bool, or an array or tensor without dimensions. A tensor on a
                GPU is copied there and read later, so that the call doesn't wait for the GPU.
            more: The same, as keywords.

        Raises:
            ConfigurationError: A value is not a number; names the metric.
        """
        __tracebackhide__ = True
        if metrics is not None:
            more = names_and_values("log", metrics, more)
        for value in more.values():
            if type(value) is not float:
                more = {name: as_scalar(name, value) for name, value in more.items()}
                break
        self._record(self._position.step, self._now(), more)

    def log_eval(self, metrics: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Record an evaluation after the current step; the criteria are judged on the last one.

        Args:
            metrics: Name to number, as in `log`, but read at once.
            more: The same, as keywords.

        Raises:
            ConfigurationError: A value is not a number; names the metric.
        """
        __tracebackhide__ = True
        values = names_and_values("log_eval", metrics, more)
        numbers = {name: as_float(name, value) for name, value in values.items()}
        position = self._position
        if position.is_cut:
            return  # it broke off, so its numbers are of a part only
        position.is_evaluating = position.is_overdue = False
        position.evaluation = evaluation = Evaluation(position.step, numbers)
        self._recorder.log_eval(evaluation, self._now())

    if TYPE_CHECKING:
        # Attributes of the user's own; and ours, which __init__ puts past __setattr__.
        _eval_every: int
        _lifecycle: Lifecycle
        _position: Position
        _recorder: Recorder
        _record: Callable[[int, float, Mapping[str, Scalar]], None]
        _now: Callable[[], float]

        def __getattr__(self, name: str) -> Any: ...


_TAKEN = frozenset(
    name for name in (*vars(Context), *Context.__annotations__) if not name.startswith("__")
) | {
    "_eval_every",
    "_lifecycle",
    "_position",
    "_record",
    "_recorder",
    "_now",
}


def _is_descriptor(kind: type, name: str) -> bool:
    """Whether the class takes assignments to this name itself; a default, as in `count: int = 0`, doesn't."""
    return hasattr(getattr(kind, name, None), "__set__")


def _steps(lifecycle: Lifecycle, start: int) -> Iterator[int]:
    position, total = lifecycle.position, lifecycle.total_steps
    lifecycle.enter_first_step()
    for step in range(start, total):
        position.step = step
        yield step
        if lifecycle.attention or step == lifecycle.next_save:
            lifecycle.boundary(step)
    position.exhausted = True
