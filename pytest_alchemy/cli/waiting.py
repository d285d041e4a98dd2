"""Waiting for an answer, and what can be seen of a run meanwhile.

Whether a run lives is read from its heartbeat's sequence number, which moves or doesn't while we look; the
times in it are of another machine's clock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto

import alchemy_agent as agent

__all__ = ["Ending", "Wait", "await_answer", "why_over"]

_FIRST_S, _LONGEST_S = 0.02, 0.5
"""Seconds between two looks, at first and later."""
_GRACE_S = 2.0
"""Seconds after the attempt's end in which its answer may still become visible."""


class Ending(Enum):
    """Why waiting ended."""

    ANSWERED = auto()
    OVER = auto()
    """The attempt ended before it answered."""
    TIME = auto()


@dataclass(frozen=True, slots=True)
class Wait:
    """What came of waiting."""

    ending: Ending
    answer: agent.Record | None
    waited_s: float
    beats: tuple[agent.Record, agent.Record]
    """The heartbeat at the beginning and at the end; empty if there was none."""

    @property
    def has_beaten(self) -> bool:
        """Whether the heartbeat has moved."""
        first, last = (_pulse(beat) for beat in self.beats)
        return first != last

    @property
    def pulse(self) -> str:
        """What that says about the run, for people."""
        last = self.beats[1]
        seq, period = last.get("seq"), last.get("interval_s")
        if self.has_beaten:
            return (
                f"the run is alive (heartbeat {self.beats[0].get('seq', 0)} -> {seq}) and looks for commands "
                "between two steps, so a step or a save may be taking long"
            )
        if not last:
            return "the run has no heartbeat yet"
        period = period if isinstance(period, (int, float)) else agent.HEARTBEAT_S
        if self.waited_s <= 2 * period:
            return f"too short to tell whether the run is alive (heartbeat {seq}, one every {period:g} s)"
        return (
            f"the heartbeat stays {seq} and should move every {period:g} s: the run is stalled or gone; "
            f"look for process {last.get('pid')} on {last.get('host')}, or ask the scheduler"
        )


def _pulse(beat: agent.Record) -> tuple[object, object]:
    return beat.get("incarnation"), beat.get("seq")


def await_answer(
    attempt: agent.AttemptDir,
    letter: str,
    patience_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Wait:
    """Look for the answer to a letter until it is there, the attempt has ended, or time is up.

    Args:
        attempt: The one the letter is meant for.
        letter: Its file name.
        patience_s: Seconds to wait; 0 looks once.
        clock: Monotonic, in seconds.
        sleep: Waits so many seconds.
    """
    begun, pause_s = clock(), _FIRST_S
    first = _heartbeat(attempt)
    over_at: float | None = None
    while True:
        # In this order: what ended before we look for its answer has given all the answers it ever will.
        is_over = bool(why_over(attempt))
        _refresh(attempt.run_dir.ack)
        answer = agent.read_ack(attempt.run_dir, letter)
        now = clock()
        ending = Ending.TIME if now - begun >= patience_s else None
        if is_over:
            over_at = now if over_at is None else over_at
            ending = Ending.OVER if ending or now - over_at >= _GRACE_S else None
        if answer is not None:
            ending = Ending.ANSWERED
        if ending is not None:
            return Wait(ending, answer, now - begun, (first, _heartbeat(attempt)))
        sleep(min(pause_s, max(0.0, begun + patience_s - now)))
        pause_s = min(1.5 * pause_s, _LONGEST_S)


def why_over(attempt: agent.AttemptDir) -> str:
    """Say how an attempt ended, by its receipt; empty as long as there is none."""
    close = agent.read_record(attempt.close)
    if close is not None:
        return f"ended ({close.get('reason')})"
    end = agent.read_record(attempt.exit)
    if end is None:
        return ""
    if end.get("signal") is not None:
        return f"ended by signal {end['signal']}"
    return f"ended with exit status {end.get('code')}"


def _heartbeat(attempt: agent.AttemptDir) -> agent.Record:
    return agent.read_record(os.path.join(attempt.rank(0), "heartbeat.json")) or {}  # noqa: PTH118


def _refresh(directory: str) -> None:
    """List a directory: on a network file system, that makes a file visible which was just not there."""
    with suppress(OSError):
        os.listdir(directory)  # noqa: PTH208
