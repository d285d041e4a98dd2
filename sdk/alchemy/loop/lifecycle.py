"""The life of one execution's loop: where it starts, when it saves, what it is told, how it leaves.

The training's thread calls everything here, at steps' boundaries. Others (the attendant, signal handlers, the
saver's thread) only set `attention`, so that a step costs one look at a flag.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from alchemy.checkpoint.writing import Part
from alchemy.errors import AlchemyError, ConfigurationError, InfrastructureError, Stopped
from alchemy.live.following import Follower
from alchemy.loop import machine
from alchemy.loop.attendant import Attendant
from alchemy.loop.commanding import Desk
from alchemy.loop.loopstate import LOOP_FILE, LoopState, Stored
from alchemy.loop.resuming import Beginning, begin_attempt
from alchemy.loop.saver import Contents, SaveFailed, Saver
from alchemy.loop.stopping import stop_signals
from alchemy.state import rng
from alchemy.state.kinds import Blob
from alchemy.state.values import ManagedValues

if TYPE_CHECKING:
    from collections.abc import Callable

    from alchemy.checkpoint.records import CheckpointRef
    from alchemy.live.params import LiveParams
    from alchemy.loop.cadence import Checkpointing
    from alchemy.loop.position import Position
    from alchemy.recording.recorder import Recorder

__all__ = ["Lifecycle"]

_log = logging.getLogger("alchemy")


class Lifecycle:
    """One execution of a task, as far as it can be interrupted and continued."""

    def __init__(
        self,
        *,
        position: Position,
        params: LiveParams,
        recorder: Recorder,
        checkpointing: Checkpointing,
        seed: int,
        total_steps: int,
        before_steps: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; nothing is read or written before `open`.

        Args:
            position: How far the loop is.
            params: The parameters of the case, which commands may change.
            recorder: Takes what the task reports; where it writes an attempt, checkpoints go there too.
            checkpointing: How often, how many.
            seed: Seeds the randomness inside the workers of data loaders.
            total_steps: Steps of the loop.
            before_steps: Called when the loop begins, before random states are restored.
        """
        self.position, self.params = position, params
        self.attention = False
        """Whether something wants to be looked at when the step ends."""
        self.next_save = -1
        """The step after which a checkpoint is due by counting."""
        self.finished = -1
        """The last finished step."""
        self.stopped: str | None = None
        """Who made the loop leave before its end."""
        self._recorder = recorder
        self._checkpointing = checkpointing
        self._seed = seed
        self.total_steps = total_steps
        self._before_steps = before_steps
        self._follower = Follower()
        self._beginning: Beginning | None = None
        self._saver: Saver | None = None
        self._desk: Desk | None = None
        self._attendant: Attendant | None = None
        self._inexact: list[str] = []
        self._is_save_asked = self._is_saved = self._is_final = False
        self._stop: str | None = None
        self._signalled: str | None = None
        self.values = ManagedValues(seed=seed, on_bind=self._bind, on_drop=self._follower.unbind)

    # Before and after the user's function.

    def open(self) -> None:
        """Find out where the run goes on.

        Raises:
            CheckpointUnusable: The run had progress, and nothing of it can be trusted.
            OSError: The run directory can't be read.
        """
        attempt = self._recorder.attempt
        if attempt is None:
            return
        beginning = self._beginning = begin_attempt(attempt)
        state = beginning.state
        if state is not None:
            self._seed = state.seed
            self.position.evaluation, self.position.is_overdue = state.evaluation, state.is_overdue
            self._recorder.continue_from(state.metrics)
        self.values = ManagedValues(
            seed=self._seed,
            resumed=beginning.checkpointed(),
            on_bind=self._bind,
            on_drop=self._follower.unbind,
        )
        self._saver = Saver(
            attempt,
            keep=self._checkpointing.keep,
            resumed=beginning.checkpoint,
            before_commit=self._recorder.sync,
            on_end=self._saved,
        )
        self._desk = Desk(beginning, self)
        minutes = self._checkpointing.minutes
        self._attendant = Attendant(
            attempt,
            self.call,
            poll_s=self._desk.poll_s,
            period_s=None if minutes is None else 60 * minutes,
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Listen to signals and commands inside the block; at its end no save is under way."""
        if self._attendant is None:
            yield
            return
        with stop_signals(self._ask_to_stop):
            self._attendant.start()
            try:
                yield
            finally:
                self._attendant.stop()
                self.settle()

    # The loop.

    def begin(self) -> tuple[int, dict[str, Any], tuple[str, ...]]:
        """Set everything right before the first step.

        Returns:
            The first step, what to bind on the context, and the names to delete from it.

        Raises:
            ConfigurationError: What was saved doesn't fit the code.
            Stopped: The training was asked to stop before its loop began.
        """
        __tracebackhide__ = True
        beginning = self._beginning
        start = 0 if beginning is None else beginning.step
        if start > self.total_steps:
            raise ConfigurationError(
                f"the checkpoint to go on from was made after {start} steps, and there are "
                f"{self.total_steps} now: declare as many as before, or start over (ALCHEMY_FRESH=1)"
            )
        self.finished, self.position.step = start - 1, min(start, self.total_steps - 1)
        self.position.begun = True
        self._before_steps()
        bound, gone = self.values.begin()
        self.params.begin()
        self.next_save = self._checkpointing.next_after(start - 1)
        if beginning is not None:
            self._begin_attempt(beginning)
        return start, bound, gone

    def _begin_attempt(self, beginning: Beginning) -> None:
        state = beginning.state
        if state is not None:
            self.params.restore(state.params)
            rng.restore(dict(state.rng))  # last, since everything before may draw numbers
        here = machine.facts()  # after that, which starts a GPU if there was one
        if state is not None:
            changed = machine.differences(state.machine, here)
            self._say_inexact([*state.inexact, *changed, *self.values.inexact()])
        self._record(beginning, here)
        assert self._desk is not None  # noqa: S101  for the type checker
        self._desk.recover()
        if self._stop is not None:
            self._leave(self._stop)
        self.attention = True  # what came meanwhile is looked at after the first step

    def enter_first_step(self) -> None:
        """Look whether loaders have run ahead of the steps, as in `zip(loader, ctx.steps())`."""
        if self._beginning is not None:
            self._say_inexact([*self._inexact, *self.values.enter_first_step()])

    def _say_inexact(self, reasons: Sequence[str]) -> None:
        new = [reason for reason in dict.fromkeys(reasons) if reason not in self._inexact]
        if new and self._beginning is not None:
            where, step = self._beginning.attempt.run_dir.path, self._beginning.step
            _log.warning("%s: not bit-exact from step %d on: %s", where, step, "; ".join(new))
        self._inexact += new

    def _record(self, beginning: Beginning, here: machine.Facts) -> None:
        try:
            beginning.record(self._inexact, here)
        except OSError as error:
            # Without it, later attempts would not know what they continue.
            raise InfrastructureError(f"{beginning.attempt.resume} can't be written: {error}") from error

    @property
    def is_complete(self) -> bool:
        """Whether an earlier attempt did everything, and died before it could say so."""
        state = self._beginning.state if self._beginning else None
        return state is not None and state.is_final

    def skip(self) -> None:
        """Take an earlier attempt's final checkpoint for what this one would come to."""
        assert self._beginning is not None  # noqa: S101  for the type checker
        state = self._beginning.state
        assert state is not None  # noqa: S101  likewise
        self.params.restore(state.params)
        self._inexact, self._is_final = list(state.inexact), True
        self.position.begun, self.position.step = True, state.step
        self._record(self._beginning, machine.facts())
        if self._desk is not None:
            self._desk.shut()

    def boundary(self, step: int) -> None:
        """Do what is due after a step: commands, a checkpoint, leaving.

        Raises:
            Stopped: The training was asked to stop; what can be saved is saved.
            Fenced: A later attempt of the run exists.
        """
        __tracebackhide__ = True
        self.attention = False
        saver, desk, attendant = self._saver, self._desk, self._attendant
        if saver is None or desk is None or attendant is None:
            return
        self.finished, self._is_saved = step, False
        desk.attend()
        if saver.fenced is not None:
            raise saver.fenced
        if self._stop is not None and self._may_leave(step):
            self._save_and_leave(self._stop)
        self._go_on(attendant)
        is_last = step == self.total_steps - 1  # whose checkpoint is made when the function returns
        if self._is_save_asked or (not is_last and (step == self.next_save or attendant.is_save_due)):
            self._is_save_asked = False
            self._save_or_warn("training goes on", is_async=self._checkpointing.is_async)
        self.next_save = self._checkpointing.next_after(step)

    def finish(self) -> None:
        """Commit the final checkpoint, after the user's function has returned.

        Raises:
            Fenced: A later attempt of the run exists.
        """
        if self.stopped is not None:
            return  # the user's code caught what the loop raised
        if self._desk is not None:
            self._desk.shut()
        if self.position.begun:
            self.finished, self._is_final = self.position.step, True
            self._save_or_warn("the run completes without its last checkpoint")

    def settle(self) -> None:
        """Wait until the save under way has ended, so that `checkpoint` is the last one."""
        if self._saver is not None:
            self._saver.wait()

    def stop_behind(self, error: BaseException) -> Stopped | None:
        """Return the stop that an error is the consequence of, if it is: a signal may reach helpers, too.

        Slurm signals all processes of a job, so that pipes break and children die before the step ends. What
        we raise ourselves is no such consequence, nor is what comes after the last step.
        """
        if self._signalled is None or self.stopped is not None or self.position.exhausted:
            return None
        if not isinstance(error, Exception) or isinstance(error, AlchemyError):
            return None
        kind = type(error).__name__
        _log.warning("%s after %s: taken for its consequence", kind, self._signalled, exc_info=error)
        self.stopped = self._signalled
        return Stopped(self._signalled)

    # What the context asks.

    def ask_to_save(self) -> None:
        """Make a checkpoint when the step ends."""
        self._is_save_asked = self.attention = True

    @property
    def is_stop_asked(self) -> bool:
        """Whether the loop will leave when the step ends."""
        return self._stop is not None or (self._attendant is not None and self._attendant.stop_waits)

    # What others ask, at boundaries but for the first two.

    def call(self) -> None:
        """Have the loop look after its step; from any thread."""
        self.attention = True

    def _ask_to_stop(self, why: str) -> bool:
        """Take a signal; from its handler."""
        if not self.values or not self.position.begun or self.position.exhausted:
            return False  # nothing would be saved, so let it do what it always does
        self._signalled = self._stop = self._stop or why
        self.attention = True
        return True

    def stop(self, why: str) -> None:
        """Leave when the step ends."""
        self._stop = self._stop or why

    def save(self, *, is_async: bool) -> CheckpointRef | None:
        """Make a checkpoint of the last finished step; None if there is none to make, or it is on its way.

        There is none before the first step, nor after a last step whose evaluation was cut short, as nothing
        could make up for that.

        Raises:
            SaveFailed: Nothing was committed; only if it isn't asynchronous.
            Fenced: A later attempt of the run exists; likewise.
        """
        if self._saver is None or self._attendant is None or not self.values or self.finished < 0:
            return None
        if self.position.is_cut and self.finished == self.total_steps - 1:
            return None
        self._is_saved = False
        try:
            self._saver.save(self._capture, is_async=is_async)
        finally:
            self._attendant.saved()  # also where it failed: the next one is due in its time
        self._is_saved = True
        return None if is_async else self._saver.last

    # How it stands.

    @property
    def checkpoint(self) -> CheckpointRef | None:
        """The newest checkpoint; of a run that completed, the final one: others are of a younger model."""
        if self._saver is None or (self._is_final and not (self._is_saved or self.is_complete)):
            return None
        return self._saver.last

    @property
    def resumed_from(self) -> int | None:
        """The step after which the checkpoint was taken that this attempt resumed from."""
        state = self._beginning.state if self._beginning else None
        return None if state is None else state.step

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know who read no log."""
        told = []
        if self._beginning is not None:
            told += [f"passed over checkpoint {name}: {why}" for name, why in self._beginning.choice.rejected]
        if self._saver is not None and self._saver.failures:
            told.append(f"{self._saver.failures} checkpoints failed, the last one so: {self._saver.failure}")
        if self._is_final and self.values and self.checkpoint is None:
            told.append("there is NO final checkpoint")
        return tuple(told)

    @property
    def inexact(self) -> tuple[str, ...]:
        """Why the run may differ from an undisturbed one."""
        return tuple(self._inexact)

    # Within.

    def _bind(self, name: str, value: object) -> None:
        self._follower.bind(name, value, self.params)

    @property
    def follower(self) -> Follower:
        """Knows which optimizers took their values from parameters."""
        return self._follower

    def _go_on(self, attendant: Attendant) -> None:
        """Forget what looked like a request to stop and was none; an evaluation may have believed it."""
        attendant.stop_waits = False
        if self.position.is_cut:
            self.position.is_cut, self.position.is_overdue = False, True

    def _may_leave(self, step: int) -> bool:
        """Whether there is something left to do later; after the last step the run just completes."""
        if step < self.total_steps - 1 or self.position.is_cut:
            return True
        self._is_save_asked = True
        return False

    def _save_and_leave(self, why: str) -> None:
        if not self._is_saved:
            self._save_or_warn("the run can go on from an earlier one")
        self._leave(why)

    def _save_or_warn(self, consequence: str, *, is_async: bool = False) -> None:
        """Make a checkpoint; a disk that doesn't take it must not end the training."""
        try:
            self.save(is_async=is_async)
        except SaveFailed as error:
            _log.warning("%s; %s", error, consequence)

    def _leave(self, why: str) -> None:
        self.stopped = why
        raise Stopped(why)

    def _saved(self, ref: CheckpointRef | None) -> None:
        """Note how a save ended; from the saver's thread."""
        if ref is not None:
            self._recorder.note_checkpoint(ref.step)
        elif self._saver is not None and self._saver.fenced is not None:
            self.attention = True

    def _capture(self) -> Contents:
        captured = self.values.capture()
        rebound = self.values.rebound
        stored = {
            name: Stored.of(name, kind, each, is_rebound=name in rebound)
            for name, (kind, each) in captured.items()
        }
        state = LoopState(
            step=self.finished,
            seed=self._seed,
            evaluation=self.position.evaluation,
            is_overdue=self.position.is_cut or self.position.is_overdue,
            metrics=self._recorder.last_metrics(),
            rng=rng.capture(),
            params=self.params.state(),
            values=stored,
            deleted=self.values.deleted,
            machine=machine.facts(),
            inexact=self.inexact,
            is_final=self._is_final,
        )
        loop = state.encode()
        parts = [Part(LOOP_FILE, lambda file: file.write(loop))]
        for name, (_, each) in captured.items():
            if isinstance(each, Blob):
                parts.append(Part(name + each.suffix, each.write))
        kinds: Mapping[str, str] = {name: kind for name, (kind, _) in captured.items()}
        applied = self._desk.applied if self._desk else ()
        return Contents(state.step, parts, kinds, applied)
