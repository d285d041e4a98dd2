"""Where what a task reports goes: nowhere, or into the files of its attempt.

    metrics.jsonl   {"step": 7, "t": 1700000000.1, "m": {"loss": 0.3}}    one line per `log`
    evals.jsonl     the same, one line per `log_eval`
    progress.json   step, total, rate, ETA and last metrics, at most once a second
    result.json     how it ended, written once

`t` is the writer's wall clock in seconds. Rows are handed to a thread that writes them within a second, so a
step never waits for the disk. Losing an observation is a warning, once, and never stops training; a result
that can't be written is an error.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import alchemy_agent as agent
from alchemy.errors import InfrastructureError
from alchemy.fencing import yield_to_later
from alchemy.recording.gpu import read_gpus
from alchemy.recording.rows import RowStream
from alchemy.recording.scalars import PendingScalar, Scalar

if TYPE_CHECKING:
    from alchemy.loop.position import Position
    from alchemy.result import Evaluation, Result

__all__ = ["FileRecorder", "NullRecorder", "Recorder"]

_BLOCK = 1024
"""Rows that wait at most; the caller then turns them into lines itself."""
_LIMIT = 256
"""Blocks (some 20 MB) that wait at most; while the disk doesn't answer, further rows are dropped."""
_FLUSH_S = 0.5
_PROGRESS_S = 1.0
_PATIENCE_S = 1.0


class Recorder(Protocol):
    """Takes what a context reports. Called from one thread, but for `sync` and `note_checkpoint`."""

    @property
    def attempt(self) -> agent.AttemptDir | None:
        """The attempt whose files it writes; None if it writes none."""

    def continue_from(self, metrics: Mapping[str, float]) -> None:
        """Take the last values that an earlier attempt logged."""

    def sync(self) -> None:
        """Have every row logged so far on the disk, as far as it takes them."""

    def note_checkpoint(self, step: int) -> None:
        """Take that a checkpoint after this step is committed."""

    def follow(self, position: Position, total: int) -> None:
        """Begin: from now on report how far the loop has come, out of `total` steps."""

    def log(self, step: int, seconds: float, metrics: Mapping[str, Scalar]) -> None:
        """Take a row of metrics; `seconds` is the wall clock. The mapping is not changed later."""

    def log_eval(self, evaluation: Evaluation, seconds: float) -> None:
        """Take an evaluation."""

    def last_metrics(self) -> dict[str, float]:
        """Return the last value of each metric passed to `log`."""

    def conclude(self, result: Result) -> None:
        """Record how the run ended; nothing follows.

        Raises:
            InfrastructureError: The result could not be recorded.
        """

    def abandon(self) -> None:
        """End without a result, all rows written: the run was interrupted."""


class NullRecorder:
    """Keeps nothing but the last values."""

    def __init__(self) -> None:
        self._last: dict[str, Scalar] = {}

    @property
    def attempt(self) -> agent.AttemptDir | None:
        """None: nothing is written."""
        return None

    def continue_from(self, metrics: Mapping[str, float]) -> None:
        """Remember the values."""
        self._last.update(metrics)

    def sync(self) -> None:
        """Do nothing."""

    def note_checkpoint(self, step: int) -> None:
        """Do nothing."""

    def follow(self, position: Position, total: int) -> None:
        """Do nothing."""

    def log(self, step: int, seconds: float, metrics: Mapping[str, Scalar]) -> None:  # noqa: ARG002
        """Remember the values."""
        self._last.update(metrics)

    def log_eval(self, evaluation: Evaluation, seconds: float) -> None:
        """Do nothing."""

    def last_metrics(self) -> dict[str, float]:
        """Return the last value of each metric passed to `log`."""
        return _numbers(self._last)

    def conclude(self, result: Result) -> None:
        """Do nothing."""

    def abandon(self) -> None:
        """Do nothing."""


class FileRecorder:
    """Writes the files of one attempt, as rank 0. The only writer of each."""

    def __init__(
        self, attempt: agent.AttemptDir, incarnation: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Make the recorder of a claimed attempt; nothing is written yet.

        Args:
            attempt: The attempt's directory.
            incarnation: As in its `start.json`.
            clock: Monotonic, in seconds; for the rate of progress.
        """
        self._attempt = attempt
        self._progress = agent.Progress(attempt, incarnation)
        self._clock = clock
        self._metrics = RowStream(attempt.metrics)
        self._evals = RowStream(attempt.evals)
        self._rows = self._metrics.rows
        self._add = self._rows.append
        self._position: Position | None = None
        self._total = 0
        self._checkpoint: int | None = None
        self._reported: tuple[float, int] = (-_PROGRESS_S, -1)
        self._wake = threading.Event()
        self._room = threading.Event()
        self._patience_s = _PATIENCE_S
        self._ended = False
        self._has_warned = False
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None

    @property
    def attempt(self) -> agent.AttemptDir:
        """The attempt whose files these are."""
        return self._attempt

    def continue_from(self, metrics: Mapping[str, float]) -> None:
        """Take the last values that an earlier attempt logged; no row is written for them."""
        self._metrics.last.update(metrics)

    def sync(self) -> None:
        """Write every row logged so far, and wait until they would survive a power loss.

        Losing rows must not keep a checkpoint from being committed: that is a warning here, too.
        """
        self.flush()
        try:
            self._metrics.sync()
            self._evals.sync()
        except OSError as error:
            self._warn(f"rows of metrics may not be on the disk: {error}")

    def note_checkpoint(self, step: int) -> None:
        """Have the progress record say that there is a checkpoint after this step."""
        self._checkpoint = step

    def follow(self, position: Position, total: int) -> None:
        """Begin, with a thread that writes rows and progress."""
        self._position, self._total = position, total
        self._thread = threading.Thread(target=self._write_on, name="alchemy-recorder", daemon=True)
        self._thread.start()

    def log(self, step: int, seconds: float, metrics: Mapping[str, Scalar]) -> None:
        """Take a row; it is on the disk within a second."""
        self._add((step, seconds, metrics))
        if len(self._rows) >= _BLOCK:
            self._pack_block()

    def log_eval(self, evaluation: Evaluation, seconds: float) -> None:
        """Take an evaluation; it is on the disk within a second."""
        self._evals.rows.append((evaluation.step, seconds, evaluation.metrics))

    def flush(self) -> None:
        """Write every row logged so far."""
        if self._is_ours():
            self._write_all()

    def last_metrics(self) -> dict[str, float]:
        """Return the last value of each metric passed to `log`, after writing the rows."""
        self.flush()
        return _numbers(dict(self._metrics.last))

    def conclude(self, result: Result) -> None:
        """Write what is left, the last progress and `result.json`.

        Raises:
            Fenced: A later attempt of the run exists.
            InfrastructureError: `result.json` could not be written.
        """
        __tracebackhide__ = True
        if not self._is_ours():
            return
        self._end(result.steps)
        attempt = self._attempt
        record = {"run": attempt.run_dir.name, "attempt": attempt.name, **result.to_record()}
        try:
            yield_to_later(attempt, "the result")
            agent.write_record(attempt.result, record)
        except OSError as error:
            raise InfrastructureError(
                f"the result could not be written to {attempt.result}: {error}; free some space there "
                "or choose another run root, and run the case again"
            ) from error

    def abandon(self) -> None:
        """Write what is left, without a result."""
        if self._is_ours() and self._position is not None:
            self._end(self._finished_steps())

    def _is_ours(self) -> bool:
        """Whether this process made the recorder: a forked child must not write to its files."""
        return os.getpid() == self._pid

    def _end(self, steps: int) -> None:
        self._ended = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._write_all()
        self._report(steps)
        self._metrics.close()
        self._evals.close()

    def _pack_block(self) -> None:
        """Make a block of many rows at once: no slower than the thread beside a busy loop."""
        if not self._is_ours():
            self._metrics.drop()
            return
        if self._metrics.blocks >= _LIMIT and not self._has_room():
            self._warn(f"the disk does not answer, {self._metrics.drop()} rows of metrics were dropped")
            return
        self._pack(self._metrics)
        self._wake.set()

    def _has_room(self) -> bool:
        """Wait for the disk, but only once for one that hangs."""
        self._room.clear()
        self._wake.set()
        if not self._room.wait(self._patience_s):
            self._patience_s = 0.0
        return self._metrics.blocks < _LIMIT

    def _write_on(self) -> None:
        """Write until the end; the body of the thread."""
        flushed = self._clock()
        while not self._ended:
            self._wake.wait(_FLUSH_S)
            self._wake.clear()
            now = self._clock()
            if now - flushed >= _FLUSH_S:
                flushed = now
                self._write_all()
            else:
                self._write(self._metrics)
            self._report_if_due()

    def _write_all(self) -> None:
        for stream in (self._metrics, self._evals):
            self._pack(stream)
            self._write(stream)

    def _pack(self, stream: RowStream) -> None:
        lost = stream.pack()
        if lost:
            self._warn(f"{lost} rows of metrics can't be written as JSON and were dropped")

    def _write(self, stream: RowStream) -> None:
        try:
            stream.write()
        except OSError as error:
            self._warn(f"rows of metrics could not be written: {error}")
        self._patience_s = _PATIENCE_S
        self._room.set()

    def _report_if_due(self) -> None:
        if self._position is None or not self._position.begun:
            return  # a run that goes on would count the steps of its predecessors as its own speed
        now, (then, step) = self._clock(), self._reported
        if now - then >= _PROGRESS_S and self._finished_steps() != step:
            self._report(self._finished_steps())

    def _report(self, steps: int) -> None:
        self._reported = (self._clock(), steps)
        extra = {"checkpoint": self._checkpoint, "gpus": read_gpus()}
        self._progress.report(
            steps,
            self._total,
            _numbers(dict(self._metrics.last)),
            self._reported[0],
            {name: value for name, value in extra.items() if value is not None},
        )

    def _finished_steps(self) -> int:
        position = self._position
        if position is None:
            return 0
        return self._total if position.exhausted else position.step

    def _warn(self, what: str) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        import logging  # deferred: few runs need it

        logging.getLogger("alchemy").warning(
            "%s: %s; training goes on, and further losses in this attempt are not reported",
            self._attempt.path,
            what,
        )


def _numbers(metrics: Mapping[str, Scalar]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, value in metrics.items():
        # If the GPU failed, the user's own next call says so, with its traceback.
        with suppress(RuntimeError):
            numbers[name] = value.read() if isinstance(value, PendingScalar) else value
    return numbers
