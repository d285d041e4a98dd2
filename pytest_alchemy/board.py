"""What is known of the runs of a session while it waits, and the lines that show it to a person.

Pure: fed with events, told the time. Who writes the lines where is `pytest_alchemy/live.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from pytest_alchemy.events import Notice, Progressed, Queued, Started
from pytest_alchemy.figures import columns, count, cut, duration, number, rate
from pytest_alchemy.outcome import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_alchemy.events import Event

__all__ = ["Board", "Running", "plain_line", "render"]

QUIET_S = 90.0
"""After this time without a step, a running case says so."""
_BAR = 10
_ROOM_FOR_BARS = 80
"""Columns of a terminal below which percents do."""


@dataclass(slots=True)
class Running:
    """A run that an attempt is at work on. Times are those handed to `Board.apply`."""

    attempt: str
    host: str
    since: float
    news: float
    """When it last reported a step, or when it started."""
    progress: Progressed | None = None


@dataclass(slots=True)
class Board:
    """The state of every run, built from events in the order in which they arrive."""

    started: float
    """When the waiting began, in seconds of the clock that is handed to `apply`."""
    labels: dict[str, str] = field(default_factory=dict)
    """What people call a run, by run id: every run that is known."""
    queued: dict[str, str] = field(default_factory=dict)
    """Why it waits, by run id."""
    running: dict[str, Running] = field(default_factory=dict)
    """By run id, longest-running first."""
    finished: dict[str, Reason] = field(default_factory=dict)

    def expect(self, labels: Mapping[str, str]) -> None:
        """Name runs of which no event has come yet; they count as queued."""
        self.labels.update(labels)

    def apply(self, event: Event, now: float) -> None:
        """Take in one event. A notice changes nothing here: it is for whoever consumes the events to show."""
        if isinstance(event, Notice) or event.run in self.finished:
            return
        if isinstance(event, Queued):
            self._leave(event.run)
            self.queued[event.run] = event.why
        elif isinstance(event, Started):
            self._start(event, now)
        elif isinstance(event, Progressed):
            self._progress(event, now)
        else:
            self._leave(event.run)
            self.finished[event.run] = event.outcome.reason

    @property
    def waiting(self) -> int:
        """How many runs neither run nor are finished."""
        return len(self.labels) - len(self.running) - len(self.finished)

    def _leave(self, run: str) -> None:
        self.labels.setdefault(run, run)
        self.queued.pop(run, None)
        self.running.pop(run, None)

    def _start(self, event: Started, now: float) -> None:
        known = self.running.get(event.run)
        if known is None or known.attempt != event.attempt:  # a further attempt starts from nothing
            self._leave(event.run)
            self.running[event.run] = Running(event.attempt, event.host, since=now, news=now)

    def _progress(self, event: Progressed, now: float) -> None:
        if event.run not in self.running:  # a short run may be seen only after it began
            self._leave(event.run)
            self.running[event.run] = Running("", "", since=now, news=now)
        row = self.running[event.run]
        row.progress, row.news = event, now


def render(board: Board, now: float, width: int, rows: int) -> list[str]:
    """Return at most `rows` lines of at most `width` columns: counts, then what runs, the oldest first."""
    shown = list(islice(board.running.items(), max(0, rows - 1)))
    if len(shown) < len(board.running):
        shown = shown[: max(0, rows - 2)]  # the last line tells how many more
    table = [
        [cut(board.labels[run], max(12, width * 2 // 5)), *_cells(row, now, width)] for run, row in shown
    ]
    widths = [max(map(columns, column)) for column in zip(*table, strict=True)]
    lines = [_counts(board, now)]
    for cells in table:
        padded = (
            cell + " " * (wide - columns(cell)) for cell, wide in zip(cells, widths, strict=True) if wide
        )
        lines.append("  " + "  ".join(padded).rstrip())
    if len(shown) < len(board.running):
        lines.append(f"  and {len(board.running) - len(shown)} more running")
    return [cut(line, width) for line in lines[:rows]]


def plain_line(board: Board, now: float) -> str:
    """Return one line for a log: the counts, and the case that has run longest."""
    line = _counts(board, now)
    for run, row in islice(board.running.items(), 1):
        line += f"; longest-running: {' '.join(filter(None, [board.labels[run], *_cells(row, now, 0)]))}"
    return cut(line, len(line) * 2)


def _counts(board: Board, now: float) -> str:
    ends = Counter(reason.value for reason in board.finished.values() if reason is not Reason.COMPLETED)
    bad = ", ".join(f"{number} {reason}" for reason, number in ends.most_common())
    whys = Counter(filter(None, board.queued.values())).most_common(1)
    parts = [
        f"alchemy: {len(board.finished)} of {len(board.labels)} finished" + (f" ({bad})" if bad else ""),
        f"{len(board.running)} running",
        f"{board.waiting} queued" + (f" ({whys[0][0]})" if whys and board.waiting else ""),
        f"{duration(now - board.started)} so far",
    ]
    return ", ".join(parts)


def _cells(row: Running, now: float, width: int) -> list[str]:
    """Return step/total, percent, rate, time left, metrics; each empty if it isn't known."""
    quiet = f"quiet for {duration(now - row.news)}" if now - row.news > QUIET_S else ""
    progress = row.progress
    if progress is None:
        where = f" on {row.host}" if row.host else ""
        return ["", "", "", "", quiet or f"started {duration(now - row.since)} ago{where}"]
    eta = math.nan if progress.eta_s is None else progress.eta_s
    left = f"{duration(eta - (now - row.news))} left" if math.isfinite(eta) else ""
    metrics = " ".join(f"{name}={number(value)}" for name, value in progress.metrics.items())
    return [
        _steps(progress),
        _share(progress, bar=width >= _ROOM_FOR_BARS),
        rate(progress.rate),
        quiet or left,
        metrics,
    ]


def _steps(progress: Progressed) -> str:
    if progress.total is None:
        return f"{count(progress.step)} steps"
    return f"{count(progress.step)}/{count(progress.total)}"


def _share(progress: Progressed, *, bar: bool) -> str:
    if not progress.total:
        return ""
    share = min(1.0, max(0.0, progress.step / progress.total))
    percent = f"{math.floor(100 * share):3d}%"
    return f"[{'#' * math.floor(_BAR * share):-<{_BAR}}]{percent}" if bar else percent.strip()
