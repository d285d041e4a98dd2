"""Executes one task for one case and says how it ended. It judges nothing."""

from __future__ import annotations

import inspect
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, get_type_hints

import alchemy_agent as agent
from alchemy.context import Context
from alchemy.errors import ConfigurationError, InfrastructureError, Stopped
from alchemy.failure import describe
from alchemy.live.params import LiveParams
from alchemy.loop.lifecycle import Lifecycle
from alchemy.loop.position import Position
from alchemy.params import environment_params, scope
from alchemy.recording.recorder import FileRecorder, NullRecorder
from alchemy.result import Result
from alchemy.seeding import Seeder

if TYPE_CHECKING:
    from alchemy.experiment import Task
    from alchemy.loop.cadence import Checkpointing
    from alchemy.matrix import Value
    from alchemy.recording.recorder import Recorder
    from alchemy.runspec import RunSpec

__all__ = ["Loop", "context_class", "execute", "execute_plainly", "reject"]


class Loop(Protocol):
    """A function with a managed loop and what was declared about it: a task, or what `managed` makes."""

    @property
    def fn(self) -> Callable[[Any], Any]:
        """The user's function, which takes the context."""

    @property
    def total_steps(self) -> int:
        """Number of steps."""

    @property
    def eval_every(self) -> int | None:
        """Steps between evaluations; None for one after the last step."""

    @property
    def seed_rng(self) -> bool:
        """Whether random number generators are seeded."""

    @property
    def checkpointing(self) -> Checkpointing:
        """How often, how many."""

    @property
    def context(self) -> type[Context] | None:
        """The class of contexts that was asked for."""


def context_class(loop: Loop) -> type[Context]:
    """Return the class of contexts a loop's function asks for, by `context=` or by annotation.

    Raises:
        ConfigurationError: The annotation can't be resolved.
    """
    if loop.context is not None:
        return loop.context
    name, annotation = _first_annotation(loop.fn)
    if isinstance(annotation, str):
        annotation = _resolved(loop.fn, name, annotation)
    return annotation if isinstance(annotation, type) and issubclass(annotation, Context) else Context


def _first_annotation(fn: Callable[[Any], Any]) -> tuple[str, Any]:
    try:
        first = next(iter(inspect.signature(fn).parameters.values()))
    except (StopIteration, TypeError, ValueError):
        return "", None
    return first.name, first.annotation


def _resolved(fn: Callable[[Any], Any], name: str, text: str) -> Any:
    """Return what an annotation that is only a text means."""
    alone = SimpleNamespace(__annotations__={name: text})  # whatever the other annotations are
    try:
        return get_type_hints(alone, vars(sys.modules[fn.__module__]))[name]
    except Exception as error:
        if text.rpartition(".")[2] == Context.__name__:  # ours, imported for type checkers only
            return Context
        raise ConfigurationError(
            f"the annotation {text!r} of {name} can't be resolved ({error}), so nobody knows the class of "
            "contexts: define it at module level, or name it by context="
        ) from error


class _Process:
    """What holds for the whole process."""

    is_executing = False
    claimed: str | None = None
    """The attempt that a managed loop called like a function writes to."""


def execute(
    task: Task,
    spec: RunSpec,
    recorder: Recorder,
    *,
    params: LiveParams | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Run the task for the case of `spec` and record how it ended.

    The task has completed exactly if its function returns. `SystemExit`, whatever its code, is an error of
    the user's code like any other exception: criteria must not judge what a program left half done; only
    `Stopped`, by which the loop leaves when it was asked to, says so in the result. `KeyboardInterrupt` alone
    leaves no result, since it says nothing about the code; the rows are written all the same.

    Args:
        task: The task, from a module executed for this case.
        spec: What to run.
        recorder: Takes what the task reports, and the result; it serves one execution.
        params: Those in scope while the task's module was executed; by default new ones from `spec`.
        clock: Monotonic, in seconds.

    Raises:
        BaseException: Whatever the function raised, after a result that describes it has been recorded.
        Stopped: The training was asked to stop and did, after a result that says so has been recorded.
        InfrastructureError: The result could not be recorded, or the run can't go on from where it was.
    """
    __tracebackhide__ = True
    seeder = Seeder(spec.seed) if spec.seed_rng else None
    params = LiveParams(spec.params) if params is None else params
    extent = _Extent(spec.total_steps, spec.eval_every, spec.seed)
    execution = _Execution(task, recorder, params, extent, seeder, clock)
    execution.call()
    return execution.result()


def _claims_attempt() -> bool:
    """Take the attempt that the environment names; False, said loudly, if an earlier loop has taken it."""
    attempt = os.environ.get(agent.ATTEMPT)
    if _Process.claimed is not None and _Process.claimed == attempt:
        logging.getLogger("alchemy").warning(
            "a second managed loop in one program: only the first is recorded, saved and resumed; this one "
            "trains as plain Python. Make a program of its own of it, or one loop of both"
        )
        return False
    _Process.claimed = attempt
    return True


def reject(spec: RunSpec, recorder: Recorder, error: BaseException) -> None:
    """Record that the user's file raised before its task could be called.

    Raises:
        InfrastructureError: The result could not be recorded.
    """
    recorder.conclude(Result(0, spec.total_steps, None, {}, 0.0, describe(error)))


def execute_plainly(loop: Loop, params: Mapping[str, Value], replicates: str | None) -> Any:
    """Run a managed loop that was called like a function; return what it returns.

    Without `ALCHEMY_TASK_ID` nothing is written. With it, as in a program under the wrapper, what the task
    reports goes into the attempt that the environment names and the environment's parameters go over the
    given ones; inside another task it counts as a plain function of that one.

    Args:
        loop: The loop.
        params: Its parameters.
        replicates: The parameter that seeds it, if it is an int.

    Raises:
        ConfigurationError: The environment names no attempt.
        BaseException: Whatever the function raised.
    """
    __tracebackhide__ = True
    is_managed = agent.TASK_ID in os.environ and not _Process.is_executing and _claims_attempt()
    live = LiveParams({**params, **(environment_params() if is_managed else {})})
    recorder = _recorder_of_environment() if is_managed else NullRecorder()
    replicate = live.get(replicates or "")
    seed = replicate if type(replicate) is int else None
    seeder = Seeder(seed) if loop.seed_rng and seed is not None else None
    # Without a seed of the user's, what a checkpoint keeps is as good as any.
    loader_seed = int.from_bytes(os.urandom(4), "big") if seed is None else seed
    extent = _Extent(loop.total_steps, loop.eval_every, loader_seed)
    execution = _Execution(loop, recorder, live, extent, seeder, time.monotonic)
    return execution.call()


class _Extent(NamedTuple):
    """How long one execution is; a run may be shorter than its task was declared."""

    total_steps: int
    eval_every: int | None
    seed: int
    """Seeds the randomness inside the workers of data loaders."""


class _Execution:
    """One call of a task's function."""

    def __init__(
        self,
        loop: Loop,
        recorder: Recorder,
        params: LiveParams,
        extent: _Extent,
        seeder: Seeder | None,
        clock: Callable[[], float],
    ) -> None:
        self._fn = loop.fn
        self._recorder = recorder
        self._params = params
        self._clock = clock
        self._seed = seeder.apply if seeder else _do_nothing
        self._position = Position()
        self._lifecycle = Lifecycle(
            position=self._position,
            params=params,
            recorder=recorder,
            checkpointing=loop.checkpointing,
            seed=extent.seed,
            total_steps=extent.total_steps,
            before_steps=self._seed,  # again, for libraries the task loads itself
        )
        self._context = context_class(loop)(
            lifecycle=self._lifecycle, recorder=recorder, eval_every=extent.eval_every
        )
        self._total = extent.total_steps
        self._result: Result | None = None

    def call(self) -> Any:
        """Call the function, record how it ended, and return what it returned."""
        __tracebackhide__ = True
        self._seed()
        self._recorder.follow(self._position, self._total)
        if self._open_or_skip():
            return None
        with self._lifecycle.running(), scope(self._params):
            started = self._clock()
            try:
                return self._call(started)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                if (
                    self._result is None
                ):  # a handler of a second signal raised on the way to recording the first
                    with suppress(InfrastructureError):
                        self._conclude(started, error)
                raise

    def _open_or_skip(self) -> bool:
        """Open the lifecycle; return whether an earlier attempt has done everything already.

        If the run can't go on from where it was, there is nothing to record.
        """
        try:
            self._lifecycle.open()
            if self._lifecycle.is_complete:
                self._lifecycle.skip()
                self._conclude(self._clock(), None)
        except OSError as error:
            self._recorder.abandon()
            raise InfrastructureError(f"the run directory can't be read: {error}") from error
        except BaseException:
            self._recorder.abandon()
            raise
        return self._lifecycle.is_complete

    def _call(self, started: float) -> Any:
        __tracebackhide__ = True
        try:
            with _executing():
                returned = self._fn(self._context)
            self._lifecycle.finish()
        except KeyboardInterrupt:
            self._recorder.abandon()
            raise
        except BaseException as error:
            stop = self._lifecycle.stop_behind(error)
            with suppress(InfrastructureError):  # must not hide what the user's code raised
                self._conclude(started, stop or error)
            if stop is not None:
                raise stop from error
            raise
        self._conclude(started, None)
        if self._lifecycle.stopped is not None:  # the user's code caught what the loop raised
            raise Stopped(self._lifecycle.stopped)
        return returned

    def result(self) -> Result:
        """Return what was recorded."""
        assert self._result is not None  # noqa: S101  for the type checker; call() sets it
        return self._result

    def _conclude(self, started: float, error: BaseException | None) -> None:
        __tracebackhide__ = True
        duration_s = self._clock() - started
        with _undisturbed():
            self._lifecycle.settle()
            self._record_result(duration_s, None if isinstance(error, Stopped) else error)

    def _record_result(self, duration_s: float, error: BaseException | None) -> None:
        __tracebackhide__ = True
        lifecycle = self._lifecycle
        checkpoint = lifecycle.checkpoint
        self._result = Result(
            steps=self._finished_steps(has_returned=error is None),
            total_steps=self._total,
            evaluation=self._position.evaluation,
            metrics=self._recorder.last_metrics(),
            duration_s=duration_s,
            error=describe(error) if error else None,
            stopped=lifecycle.stopped,
            checkpoint=None if checkpoint is None else checkpoint.to_record(),
            resumed_from=lifecycle.resumed_from,
            inexact=lifecycle.inexact,
            notes=lifecycle.notes,
            changes=tuple(change.to_record() for change in self._params.changes),
        )
        self._recorder.conclude(self._result)

    def _finished_steps(self, *, has_returned: bool) -> int:
        """Count the steps; the one that leaves the loop on purpose counts, one that fails doesn't."""
        position = self._position
        if position.exhausted:
            return self._total
        if self._lifecycle.stopped is not None:
            return self._lifecycle.finished + 1
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
