"""The backend `local`: a case runs in the pytest process, with a real run directory beside it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import alchemy_agent as agent
from alchemy.errors import STOPPED_STATUS, ConfigurationError, InfrastructureError
from alchemy.execution import execute, reject
from alchemy.fencing import Fenced
from alchemy.live.params import LiveParams
from alchemy.loading import find_task, fresh
from alchemy.loop.resuming import FRESH
from alchemy.matrix import encode_params
from alchemy.recording.recorder import FileRecorder
from alchemy.result import Result
from alchemy.seeding import preserved
from pytest_alchemy.options import read_options, read_resources
from pytest_alchemy.outcome import Outcome, Reason
from pytest_alchemy.profile import load_profile
from pytest_alchemy.root import check_writable, make_root

if TYPE_CHECKING:
    from alchemy.experiment import Task
    from alchemy.runspec import RunSpec
    from pytest_alchemy.backends import Plan

__all__ = ["LocalBackend", "from_config"]

_EVIDENCE = "ran in the pytest process"
_STATUS = {Reason.COMPLETED: 0, Reason.STOPPED: STOPPED_STATUS}
"""The exit status that a job would have had."""


def from_config(config: pytest.Config) -> LocalBackend:
    """Make the backend for this session.

    Raises:
        ConfigurationError: A resource or cluster on the command line can't be meant.
    """
    options = read_options(config)
    # Neither means anything here, but a typing error shall not wait for the cluster.
    read_resources(options.resources)
    load_profile(options.rootdir, config.getoption("alchemy_cluster"))
    return LocalBackend(options.default_root, options.session, fresh=options.fresh)


class LocalBackend:
    """Runs cases one by one, each as a new attempt of its run."""

    def __init__(self, root: Path, session: str, *, fresh: bool = False) -> None:
        self._root = root
        self._session = session
        self._fresh = fresh

    @property
    def root(self) -> Path:
        """The run root."""
        return self._root

    def check(self) -> None:
        """Fail before anything runs.

        Raises:
            ConfigurationError: The root can't be written.
        """
        try:
            make_root(self._root)
            check_writable(self._root)
        except OSError as error:
            raise ConfigurationError(
                f"the run root {self._root} can't be written: {error}; choose another with --alchemy-root"
            ) from error

    def execute(self, plan: Plan, task: Task) -> Outcome:
        """Run to the end; the module is executed anew, so nothing leaks from one case to the next.

        Raises:
            InfrastructureError: The run directory could not be written.
            KeyboardInterrupt: Somebody wants the session to end; likewise `pytest.exit`.
        """
        attempt = self._open(plan.spec)
        started = time.monotonic()
        raised: BaseException | None = None
        try:
            self._run(plan.spec, task.name, attempt)
        except BaseException as error:  # noqa: BLE001  user code may raise anything, SystemExit too
            raised = error
        reason = _reason(raised, _result_of(attempt))
        try:
            self._conclude(attempt, reason, time.monotonic() - started)
        except InfrastructureError as error:
            raised = raised or error  # what went wrong first is what people need
        if isinstance(raised, (InfrastructureError, KeyboardInterrupt, pytest.exit.Exception)):
            raise raised
        return _outcome(plan, attempt, reason, raised)

    def _run(self, spec: RunSpec, task: str, attempt: agent.AttemptDir) -> None:
        __tracebackhide__ = True
        with (
            self._alive(attempt) as incarnation,
            _environment(spec, attempt, fresh=self._fresh),
            preserved(),
            ExitStack() as stack,
        ):
            recorder = FileRecorder(attempt, incarnation)
            params = LiveParams(spec.params)
            try:
                module = stack.enter_context(fresh(spec.code.module, params))
                fresh_task = find_task(module, spec.experiment, task)
            except Exception as error:  # whatever the user's file raises before its task can be called
                reject(spec, recorder, error)
                raise
            execute(fresh_task, spec, recorder, params=params)

    def _open(self, spec: RunSpec) -> agent.AttemptDir:
        path = self._root / "jobs" / spec.run
        try:
            make_root(self._root)
            agent.make_directory(str(path))
            run_dir = agent.RunDir(str(path))
            if not os.path.exists(run_dir.run_json):  # noqa: PTH110
                agent.write_record(run_dir.run_json, spec.to_record())
            return agent.claim_attempt(run_dir, agent.next_claim(run_dir, self._session), 0)
        except (OSError, agent.Duplicate) as error:
            message = f"can't write the run directory {path}: {error}; choose another with --alchemy-root"
            raise InfrastructureError(message) from error

    @contextmanager
    def _alive(self, attempt: agent.AttemptDir) -> Iterator[str]:
        """Announce the attempt and keep its heartbeat going."""
        try:
            incarnation = agent.begin(attempt)
        except OSError as error:
            raise InfrastructureError(f"can't write {attempt.start}: {error}") from error
        heartbeat = agent.Heartbeat(attempt, incarnation)
        heartbeat.start()
        try:
            yield incarnation
        finally:
            heartbeat.stop()

    def _conclude(self, attempt: agent.AttemptDir, reason: Reason, duration_s: float) -> None:
        try:
            agent.finish(attempt, _STATUS.get(reason, 1), None, duration_s)
            agent.conclude(attempt, reason.value, self._session, _EVIDENCE)
        except OSError as error:
            raise InfrastructureError(f"can't close the receipt in {attempt.path}: {error}") from error


@contextmanager
def _environment(spec: RunSpec, attempt: agent.AttemptDir, *, fresh: bool) -> Iterator[None]:
    """Set what a job on a cluster sees, for code that reads it and for its children, until the end."""
    ours = {**agent.environment(attempt), "ALCHEMY_PARAMS": json.dumps(encode_params(spec.params))}
    if fresh:
        ours[FRESH] = "1"
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _result_of(attempt: agent.AttemptDir) -> Result | None:
    record = agent.read_record(attempt.result)
    return Result.from_record(record) if record else None


def _reason(error: BaseException | None, result: Result | None) -> Reason:
    if result is not None and result.stopped is not None:
        return Reason.STOPPED  # whatever the signal that stopped it raises here
    match error:
        case None:
            return Reason.COMPLETED
        case (
            KeyboardInterrupt() | pytest.exit.Exception() | pytest.skip.Exception() | pytest.xfail.Exception()
        ):
            return Reason.CANCELLED
        case Fenced():
            return Reason.FENCED
        case InfrastructureError():
            return Reason.STORAGE
    return Reason.USER_ERROR


def _outcome(
    plan: Plan, attempt: agent.AttemptDir, reason: Reason, exception: BaseException | None
) -> Outcome:
    result = _result_of(attempt)
    return Outcome(
        reason=reason,
        run=plan.spec.run,
        attempt=attempt.name,
        directory=Path(attempt.run_dir.path),
        result=result,
        exception=exception,
        evidence=_EVIDENCE,
        duration_s=result.duration_s if result else 0.0,
    )
