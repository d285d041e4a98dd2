"""What a task is handed: parameters, the loop, logging and evaluation of one case."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from alchemy import params as parameters
from alchemy.errors import ConfigurationError
from alchemy.result import Evaluation
from alchemy.scalars import Scalar, as_float, as_scalar, names_and_values

if TYPE_CHECKING:
    from alchemy.matrix import Value
    from alchemy.recorder import Recorder

__all__ = ["Context", "Position"]


class Position:
    """How far a task has come. Written by the task's thread alone; others may read it at any time."""

    __slots__ = ("begun", "evaluation", "exhausted", "step")

    def __init__(self) -> None:
        self.step = 0
        """The current step; 0 before the loop, the last one after it."""
        self.begun = False
        self.exhausted = False
        """Whether the last step's body has been left."""
        self.evaluation: Evaluation | None = None
        """The last `log_eval`, which the criteria read."""


class Context:
    """One case of a task, seen from the user's function.

    Attributes of your own (`ctx.model = ...`) may be set freely; the names this class uses are taken.
    """

    params: Mapping[str, Value]
    """The parameters of the case; read-only. `param` gives copies of what can be changed."""
    total_steps: int
    """Steps this run has, which may be fewer than declared in a shortened run."""

    def __init__(
        self,
        *,
        params: Mapping[str, Value],
        total_steps: int,
        eval_every: int | None,
        recorder: Recorder,
        position: Position | None = None,
        before_steps: Callable[[], None] = lambda: None,
    ) -> None:
        """Make the context of one execution.

        Args:
            params: The parameters of the case.
            total_steps: Number of steps, at least 1.
            eval_every: Steps between evaluations; None for one evaluation, after the last step.
            recorder: Takes what is logged.
            position: Where to say how far the task has come; by default a new one.
            before_steps: Called once, when the loop begins.
        """
        position = position or Position()
        vars(self).update(
            params=MappingProxyType(dict(params)),
            total_steps=total_steps,
            _eval_every=eval_every or total_steps,
            _position=position,
            _recorder=recorder,
            _record=recorder.log,
            _now=time.time,
            _before_steps=before_steps,
        )
        recorder.follow(position, total_steps)

    def __setattr__(self, name: str, value: object) -> None:
        if name in _TAKEN or name in vars(Context):
            raise ConfigurationError(
                f"ctx.{name} is taken by the framework: give your attribute another name"
            )
        object.__setattr__(self, name, value)

    def param(self, name: str, default: Any = parameters.MISSING) -> Any:
        """Return the value of a parameter of this case, else `default`.

        Raises:
            MissingParameter: The case doesn't have it and there is no default.
        """
        __tracebackhide__ = True
        return parameters.lookup(self.params, name, default)

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
        position.begun = True
        self._before_steps()
        return _steps(position, self.total_steps)

    def should_eval(self) -> bool:
        """Tell whether the current step ends with an evaluation: every `eval_every` steps and at the last."""
        position = self._position
        finished = position.step + 1
        return position.begun and (finished % self._eval_every == 0 or finished == self.total_steps)

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
        evaluation = Evaluation(self._position.step, numbers)
        self._position.evaluation = evaluation
        self._recorder.log_eval(evaluation, self._now())

    if TYPE_CHECKING:
        # Attributes of the user's own; and ours, which __init__ puts past __setattr__.
        _eval_every: int
        _position: Position
        _recorder: Recorder
        _record: Callable[[int, float, Mapping[str, Scalar]], None]
        _now: Callable[[], float]
        _before_steps: Callable[[], None]

        def __getattr__(self, name: str) -> Any: ...


_TAKEN = frozenset(
    {
        "params",
        "total_steps",
        "_eval_every",
        "_position",
        "_recorder",
        "_record",
        "_now",
        "_before_steps",
    }
)


def _steps(position: Position, total: int) -> Iterator[int]:
    for step in range(total):
        position.step = step
        yield step
    position.exhausted = True
