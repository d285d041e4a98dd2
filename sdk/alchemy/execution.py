"""Executes one task for one case and says how it ended. It judges nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import alchemy_agent as agent
from alchemy.context import Context, Position
from alchemy.errors import ConfigurationError, InfrastructureError
from alchemy.failure import describe
from alchemy.params import environment_params, scope
from alchemy.recorder import FileRecorder, NullRecorder
from alchemy.result import Result
from alchemy.seeding import Seeder

if TYPE_CHECKING:
    from alchemy.experiment import Task
    from alchemy.matrix import Value
    from alchemy.recorder import Recorder
    from alchemy.runspec import RunSpec

__all__ = ["execute", "execute_plainly", "reject"]


class _Process:
    """What holds for the whole process."""

    is_executing = False


def execute(
    task: Task, spec: RunSpec, recorder: Recorder, *, clock: Callable[[], float] = time.monotonic
) -> Result:
    """Run the task for the case of `spec` and record how it ended.

    The task has completed exactly if its function returns. `SystemExit`, whatever its code, is an error of
    the user's code like any other exception: criteria must not judge what a program left half done. Only
    `KeyboardInterrupt` leaves no result, since it says nothing about the code; the rows are written all the
    same.

    Args:
        task: The task, from a module executed for this case.
        spec: What to run.
        recorder: Takes what the task reports, and the result; it serves one execution.
        clock: Monotonic, in seconds.

    Raises:
        BaseException: Whatever the function raised, after a result that describes it has been recorded.
        InfrastructureError: The result could not be recorded.
    """
    __tracebackhide__ = True
    seeder = Seeder(spec.seed) if spec.seed_rng else None
    execution = _Execution(recorder, spec.params, spec.total_steps, spec.eval_every, seeder, clock)
    execution.call(task)
    return execution.result()


def reject(spec: RunSpec, recorder: Recorder, error: BaseException) -> None:
    """Record that the user's file raised before its task could be called.

    Raises:
        InfrastructureError: The result could not be recorded.
    """
    recorder.conclude(Result(0, spec.total_steps, None, {}, 0.0, describe(error)))


def execute_plainly(task: Task) -> Any:
    """Run the first case of a task that was called like a function; return what it returns.

    Without `ALCHEMY_TASK_ID` nothing is written. With it, as in a program under the wrapper, what the task
    reports goes into the attempt that the environment names and the environment's parameters go over the
    case's; inside another task it counts as a plain function of that one.

    Raises:
        ConfigurationError: The environment names no attempt.
        BaseException: Whatever the function raised.
    """
    __tracebackhide__ = True
    is_managed = agent.TASK_ID in os.environ and not _Process.is_executing
    params = {**task.cases[0].params, **(environment_params() if is_managed else {})}
    recorder = _recorder_of_environment() if is_managed else NullRecorder()
    replicate = params.get(task.experiment.replicates or "")
    seeder = Seeder(replicate) if task.seed_rng and type(replicate) is int else None
    execution = _Execution(recorder, params, task.total_steps, task.eval_every, seeder, time.monotonic)
    with scope(params):
        return execution.call(task)


class _Execution:
    """One call of a task's function."""

    def __init__(
        self,
        recorder: Recorder,
        params: Mapping[str, Value],
        total_steps: int,
        eval_every: int | None,
        seeder: Seeder | None,
        clock: Callable[[], float],
    ) -> None:
        self._recorder = recorder
        self._clock = clock
        self._seed = seeder.apply if seeder else _do_nothing
        self._position = Position()
        # Seeded again when the loop begins, for libraries the task loads itself.
        self._context = Context(
            params=params,
            total_steps=total_steps,
            eval_every=eval_every,
            recorder=recorder,
            position=self._position,
            before_steps=self._seed,
        )
        self._total = total_steps
        self._result: Result | None = None

    def call(self, task: Task) -> Any:
        """Call the function, record how it ended, and return what it returned."""
        __tracebackhide__ = True
        self._seed()
        started = self._clock()
        try:
            return self._call(task, started)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if self._result is None:  # a handler of a second signal raised on the way to recording the first
                with suppress(InfrastructureError):
                    self._conclude(started, error)
            raise

    def _call(self, task: Task, started: float) -> Any:
        __tracebackhide__ = True
        try:
            with _executing():
                returned = task.fn(self._context)
        except KeyboardInterrupt:
            self._recorder.abandon()
            raise
        except BaseException as error:
            with suppress(InfrastructureError):  # must not hide what the user's code raised
                self._conclude(started, error)
            raise
        self._conclude(started, None)
        return returned

    def result(self) -> Result:
        """Return what was recorded."""
        assert self._result is not None  # noqa: S101  for the type checker; call() sets it
        return self._result

    def _conclude(self, started: float, error: BaseException | None) -> None:
        __tracebackhide__ = True
        duration_s = self._clock() - started
        with _undisturbed():
            self._record_result(duration_s, error)

    def _record_result(self, duration_s: float, error: BaseException | None) -> None:
        __tracebackhide__ = True
        self._result = Result(
            steps=self._finished_steps(has_returned=error is None),
            total_steps=self._total,
            evaluation=self._position.evaluation,
            metrics=self._recorder.last_metrics(),
            duration_s=duration_s,
            error=describe(error) if error else None,
        )
        self._recorder.conclude(self._result)

    def _finished_steps(self, *, has_returned: bool) -> int:
        """Count the steps; the one that leaves the loop on purpose counts, one that fails doesn't."""
        position = self._position
        if position.exhausted:
            return self._total
        return position.step + (1 if position.begun and has_returned else 0)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Put off handlers of the user's while a result is written: one that raises would lose it.

    A job that is told to leave is told twice, by Slurm, which signals every process, and by its supervisor.
    """
    caught: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            if callable(signal.getsignal(number)):
                before[number] = signal.signal(number, lambda signum, _frame: caught.append(signum))
    try:
        yield
    finally:
        for replaced, handler in before.items():
            signal.signal(replaced, handler)
        for signum in dict.fromkeys(caught):
            signal.raise_signal(signum)


def _do_nothing() -> None:
    pass


@contextmanager
def _executing() -> Iterator[None]:
    before, _Process.is_executing = _Process.is_executing, True
    try:
        yield
    finally:
        _Process.is_executing = before


def _recorder_of_environment() -> FileRecorder:
    directory, name = os.environ.get(agent.JOB_DIR), os.environ.get(agent.ATTEMPT)
    if not directory or not name:
        raise ConfigurationError(
            f"{agent.TASK_ID} is set, but {agent.JOB_DIR} and {agent.ATTEMPT} name no attempt: unset it to "
            "run without a framework, or start the program by `python alchemy_agent.py -- ...`"
        )
    attempt = agent.RunDir(directory).attempt(name)
    start = agent.read_record(attempt.start) or {}
    return FileRecorder(attempt, str(start.get("incarnation", "")))
