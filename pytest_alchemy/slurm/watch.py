"""What the signs mean: files of a run, rows of squeue and time, turned into events and conclusions.

Pure functions over a frozen state, one per run. The rules: files are the truth, Slurm is the second
witness, and what is missing is unknown until both have been silent for long enough. Times are the
caller's monotonic clock, in seconds.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from alchemy.job import EX_CONFIG, EX_IOERR
from alchemy.result import Result
from pytest_alchemy.events import Notice, Progressed, Queued, Started
from pytest_alchemy.outcome import Reason, tell_checkpoint, tell_stop
from pytest_alchemy.slurm.states import JobState

if TYPE_CHECKING:
    from pytest_alchemy.slurm.settings import Knobs
    from pytest_alchemy.slurm.squeue import JobId, Row, Sighting

__all__ = ["Conclusion", "RunState", "Stirred", "conclude", "hear", "read_result", "sight", "silence"]

_QUIET_POLLS = 3
"""Readable scans without a beat that a stall takes at least, besides the time."""
_BEATS = 3
"""A heartbeat slower than usual is missed only after so many of its own intervals."""
_OF_THE_ENTRY = {EX_CONFIG: Reason.ENVIRONMENT, EX_IOERR: Reason.STORAGE}
"""What the node's entry leaves with when the trouble is not the case's own."""

_BY_SIGNAL = ("builtins.SystemExit", "builtins.KeyboardInterrupt")
"""What handlers of signals raise, Python's own or the user's."""

Record: TypeAlias = Mapping[str, Any]
News: TypeAlias = Queued | Started | Progressed | Notice


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Why a run ended and what says so."""

    reason: Reason
    evidence: str


@dataclass(frozen=True, slots=True)
class RunState:
    """One run as far as this session knows it."""

    run: str
    claim: int
    """Its submission number; attempts of lower ones are history."""
    key: str
    """Name of its submission."""
    job: JobId
    index: int
    submitted: float
    attempt: str | None = None
    rival: str | None = None
    """An attempt of a later submission, which is another session's: ours may commit nothing any more."""
    start: Record | None = None
    exit: Record | None = None
    result: Record | None = None
    beat: Record | None = None
    started: float | None = None
    """When start.json was first seen."""
    ended: float | None = None
    """When exit.json was first seen."""
    moved: float = 0.0
    """When its files last said something new."""
    quiet_polls: int = 0
    stalled: bool = False
    row: Row | None = None
    """squeue's last row of it."""
    sighted: float | None = None
    """When that row was read."""
    over: float | None = None
    """When squeue first called it ended."""
    absent: float | None = None
    """Since when squeue, while healthy, does not list it."""
    siblings: bool = False
    """Whether squeue still lists others of its array."""
    cancelling: bool = False
    """Whether this session asked for its end."""

    @property
    def task(self) -> str:
        """Slurm's name for it, such as `12_3`."""
        return self.job.task(self.index)

    @property
    def is_begun(self) -> bool:
        """Whether it is known to have started: an attempt exists, or Slurm gave it a node."""
        return self.attempt is not None or (self.row is not None and bool(self.row.host))

    @property
    def is_told(self) -> bool:
        """Whether its files say how it ended, so that nothing still unread can change that."""
        return self.rival is not None or (self.exit is not None and self.result is not None)

    @property
    def needs_word(self) -> bool:
        """Whether squeue should be asked soon: its files don't say why it ended, or its end was asked for."""
        return self.cancelling or (self.exit is not None and (self.result is None or self.is_ambiguous))

    @property
    def is_ambiguous(self) -> bool:
        """Whether its end may be the answer to a signal, which Slurm may have sent for a reason of its own.

        Handlers of SIGTERM often call `sys.exit`, and a training that is asked to stop leaves in good order.
        """
        result = read_result(self.result)
        if result is None or result.status == "completed":
            return False
        if result.error is None:
            return True
        return result.error.type in _BY_SIGNAL or (self.exit or {}).get("signal") is not None


@dataclass(frozen=True, slots=True)
class Stirred:
    """A state after news, with what to tell the world."""

    state: RunState
    events: tuple[News, ...] = ()
    lively: bool = False
    """Whether a run began or ended, or Slurm changed its word: more is likely to follow soon."""


def hear(state: RunState, news: Record, now: float) -> Stirred:
    """Take in what a scan found new in the run's directory."""
    attempt = news.get("attempt", state.attempt)
    if isinstance(attempt, str) and _claim_of(attempt) > state.claim:
        return Stirred(replace(state, rival=attempt), lively=True)
    if not isinstance(attempt, str) or _claim_of(attempt) < state.claim or state.rival is not None:
        return Stirred(state)  # a former submission's attempt, or the rival's
    if attempt != state.attempt:
        state = _new_attempt(state, attempt)
    heard, events = _hear_signs(replace(state, moved=now, quiet_polls=0), news, now)
    changed = any(getattr(heard, name) is not getattr(state, name) for name in ("start", "result", "exit"))
    return Stirred(heard, tuple(events), lively="attempt" in news or changed)


def _hear_signs(state: RunState, news: Record, now: float) -> tuple[RunState, list[News]]:
    events: list[News] = []
    if (start := news.get("start")) and state.start is None:
        state = replace(state, start=start, started=now, cancelling=False)
        events.append(Started(state.run, str(state.attempt), str(start.get("host", ""))))
    if beat := news.get("heartbeat"):
        if state.stalled:
            events.append(Notice(f"{state.run}: heartbeat is back ({state.task})"))
        state = replace(state, beat=beat, stalled=False)
    if progress := news.get("progress"):
        events.extend(_progressed(state.run, progress))
    result, exit_ = state.result or news.get("result"), state.exit or news.get("exit")
    ended = now if exit_ is not None and state.ended is None else state.ended
    return replace(state, result=result, exit=exit_, ended=ended), events


def silence(state: RunState, now: float, knobs: Knobs) -> Stirred:
    """Take in a readable scan without news: a running attempt that stays silent is shown as stalled, once."""
    state = replace(state, quiet_polls=state.quiet_polls + 1)
    if state.started is None or state.ended is not None or state.stalled:
        return Stirred(state)
    silent_s = now - max(state.moved, state.started)
    if silent_s < _window(state, knobs) or state.quiet_polls < _QUIET_POLLS:
        return Stirred(state)
    host = str((state.start or {}).get("host", "its node"))
    text = f"{state.run} is stalled: no heartbeat from {host} for {silent_s:.0f} s ({state.task})"
    return Stirred(replace(state, stalled=True), (Notice(text),))


def sight(state: RunState, sighting: Sighting, now: float) -> Stirred:
    """Take in what a healthy answer of squeue says about the run."""
    row = sighting.row
    if row is not None and not row.tasks and state.is_begun:
        row = None  # the rest of a cancelled array says nothing about a task that had left it
    if row is None:
        absent = now if state.absent is None else state.absent
        return Stirred(replace(state, absent=absent, siblings=sighting.siblings))
    before = state.row
    over = (now if state.over is None else state.over) if row.word.state.is_terminal else None
    state = replace(state, row=row, sighted=now, absent=None, siblings=sighting.siblings, over=over)
    changed = before is None or (before.word, before.why) != (row.word, row.why)
    events: tuple[News, ...] = ()
    if changed and row.word.state.is_waiting and row.why and not state.is_begun:
        events = (Queued(state.run, state.task, row.why),)
    return Stirred(state, events, lively=changed)


def conclude(state: RunState, now: float, knobs: Knobs) -> Conclusion | None:
    """Decide whether the run has ended; to be asked after a healthy scan, or when `is_told`."""
    if state.rival is not None:
        return Conclusion(
            Reason.FENCED,
            f"attempt {state.rival} of another session took the run over; {state.task} can commit nothing",
        )
    if state.exit is not None:
        if state.result is None:
            return _without_result(state, now, knobs)
        return _ambiguous(state, now, knobs) if state.is_ambiguous else _by_result(state)
    if state.over is not None:
        return _by_slurm(state, now, knobs)
    if state.absent is not None:
        return _gone(state, now, knobs)
    return None


def read_result(record: Record | None) -> Result | None:
    """Read `result.json`; None if there is none or it can't be meant."""
    try:
        return None if record is None else Result.from_record(record)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _new_attempt(state: RunState, attempt: str) -> RunState:
    return replace(
        state,
        attempt=attempt, start=None, exit=None, result=None, beat=None,
        started=None, ended=None, stalled=False, quiet_polls=0,
    )  # fmt: skip


def _claim_of(attempt: str) -> int:
    """Return the submission number in `2-r0`; 0, which nobody has, where it can't be read."""
    number = attempt.split("-", 1)[0]
    return int(number) if number.isdecimal() else 0


def _progressed(run: str, progress: Record) -> list[News]:
    """Read a progress record; one that can't be meant is no news (an observation never stops anything)."""
    try:
        total, rate, eta_s = progress.get("total"), progress.get("rate"), progress.get("eta_s")
        return [
            Progressed(
                run=run,
                step=int(progress["step"]),
                total=None if total is None else int(total),
                rate=None if rate is None else float(rate),
                eta_s=None if eta_s is None else float(eta_s),
                metrics={str(name): float(value) for name, value in (progress.get("metrics") or {}).items()},
            )
        ]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return []


def _window(state: RunState, knobs: Knobs) -> float:
    interval = (state.beat or {}).get("interval_s")
    return max(knobs.stall_s, _BEATS * interval if isinstance(interval, (int, float)) else 0.0)


def _by_result(state: RunState) -> Conclusion:
    result = read_result(state.result)
    if result is None:
        return Conclusion(Reason.INFRASTRUCTURE, f"result.json of attempt {state.attempt} can't be read")
    manner = _manner(state.exit) if state.exit is not None else _words(state)
    if result.status == "stopped":
        return _stopped(state, result, manner)
    if result.error is not None:
        left = f"{result.error.type} left the task; {manner}"
        if not state.is_ambiguous:
            return Conclusion(Reason.USER_ERROR, f"{left} ({state.task})")
        return Conclusion(_outside(state) or Reason.USER_ERROR, f"{left}; {_words(state)}")
    return Conclusion(Reason.COMPLETED, f"the task returned and its result is there; {manner} ({state.task})")


def _stopped(state: RunState, result: Result, manner: str) -> Conclusion:
    """Decide over a training that was asked to stop and did: for Slurm's reason, if Slurm had one."""
    story, checkpoint, outside = tell_stop(result), tell_checkpoint(result), _outside(state)
    saved = f"checkpoint {checkpoint} is committed" if checkpoint else "no checkpoint"
    details = "; ".join(dict.fromkeys((saved, manner, _words(state))))
    if outside is None:
        return Conclusion(Reason.STOPPED, f"{story} ({details})")
    return Conclusion(outside, f"stopped {story} ({details})")


def _outside(state: RunState) -> Reason | None:
    """Return what Slurm's last word of an end means by itself."""
    return state.row.word.state.reason if state.row and state.over is not None else None


def _ambiguous(state: RunState, now: float, knobs: Knobs) -> Conclusion | None:
    """Decide over an attempt that failed or stopped but may have been told to: Slurm may know why.

    COMPLETING hides what Slurm will say next, which may be that it starts the job again.
    """
    over = state.row is not None and state.over is not None
    hidden = state.row is not None and state.row.word.state is JobState.COMPLETING
    patience_s = max(knobs.grace_s, knobs.vanish_s) if hidden else knobs.grace_s
    if not over and (_is_requeued(state) or now - (state.ended or now) < patience_s):
        return None
    return _by_result(state)


def _without_result(state: RunState, now: float, knobs: Knobs) -> Conclusion | None:
    """Decide over an attempt that ended by a signal or left no result: Slurm may know why."""
    manner, code = _manner(state.exit or {}), (state.exit or {}).get("code")
    if code in _OF_THE_ENTRY:
        return Conclusion(_OF_THE_ENTRY[code], f"{manner} before or after the task ({state.task})")
    if state.row is not None and state.over is not None:
        reason = state.row.word.state.reason
        if reason is not None or code != 0:
            return Conclusion(reason or Reason.USER_ERROR, f"{manner} without a result; {_words(state)}")
    if _is_requeued(state):
        return None  # another attempt will come
    if now - (state.ended or now) < knobs.grace_s:
        return None
    return Conclusion(Reason.USER_ERROR, f"{manner} without a result; {_words(state)}")


def _is_requeued(state: RunState) -> bool:
    """Tell whether Slurm, asked after the attempt's end, has the job wait again."""
    asked_since = state.sighted is not None and state.ended is not None and state.sighted > state.ended
    return asked_since and state.row is not None and state.row.word.state.is_waiting


def _by_slurm(state: RunState, now: float, knobs: Knobs) -> Conclusion | None:
    """Decide over a job that Slurm calls ended while no exit record is there."""
    reason = state.row.word.state.reason if state.row else None
    if reason is not None and not state.is_begun:
        return Conclusion(reason, f"{_words(state)}, before it started")
    if now - (state.over or now) < knobs.grace_s:
        return None  # files may be on their way
    if state.result is not None:
        return _by_result(state)
    if reason is not None:
        return Conclusion(reason, _words(state))
    if state.attempt is None:
        return Conclusion(
            Reason.ENVIRONMENT, f"{_words(state)}, and no attempt was begun: see what the job printed"
        )
    return Conclusion(
        Reason.INFRASTRUCTURE, f"{_words(state)}, and attempt {state.attempt} left no exit record"
    )


def _gone(state: RunState, now: float, knobs: Knobs) -> Conclusion | None:
    """Decide over a job that healthy answers don't list.

    A waiting task of an array that is cancelled leaves no row of its own, so its silent disappearance
    beside listed siblings, or after our own scancel, is a cancellation.
    """
    absent_s = now - (state.absent if state.absent is not None else now)
    if not state.is_begun and state.cancelling:
        return Conclusion(Reason.CANCELLED, f"cancelled by this session before it started ({state.task})")
    waited = state.row is not None and state.row.word.state.is_waiting
    if not state.is_begun and waited and state.siblings and absent_s >= knobs.grace_s:
        return Conclusion(
            Reason.CANCELLED, f"Slurm dropped it while it waited: cancelled by somebody ({state.task})"
        )
    if min(absent_s, now - state.moved) < knobs.vanish_s:
        return None
    if state.result is not None:
        return _by_result(state)
    return Conclusion(
        Reason.VANISHED,
        f"Slurm has not listed job {state.task} for {absent_s:.0f} s, and its files are silent",
    )


def _manner(exit_record: Record) -> str:
    number, code = exit_record.get("signal"), exit_record.get("code")
    if isinstance(number, int):
        return f"killed by {_signal_name(number)}"
    return f"exited with code {code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _words(state: RunState) -> str:
    if state.row is None:
        return f"Slurm has not said anything about job {state.task}"
    why = f" ({state.row.why})" if state.row.why else ""
    asked = " after this session cancelled it" if state.cancelling else ""
    return f"Slurm says {state.row.word.raw}{why} for job {state.task}{asked}"
