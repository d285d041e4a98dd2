"""Signals that ask a training to stop: they set a flag, and the loop leaves at the next step's boundary.

SIGTERM comes from Slurm before it kills, at preemption and at the time limit; SIGUSR1 is the warning before a
time limit. A handler only sets flags: saving from inside one would catch a step half done.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["stop_signals"]

_SIGNALS: tuple[int, ...] = (signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def stop_signals(ask: Callable[[str], bool]) -> Iterator[None]:
    """Hand SIGTERM and SIGUSR1 to `ask` inside the block; do nothing outside of the main thread.

    What `ask` accepted goes, at the end, to the handler that Python code had installed before, which may want
    the whole session to end. What it declines goes there at once; SIGUSR1 without such a handler is ignored,
    as its default would kill a process that was merely warned.

    Args:
        ask: Takes the signal's name; returns whether the training will stop by itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    accepted: list[int] = []
    ours = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        # A forked child, such as a worker of a pool, inherits the handler and must still die of it.
        if os.getpid() == ours and ask(signal.Signals(number).name):
            accepted.append(number)
        else:
            _pass_on(number, before[number], frame)

    before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # not one that C code installed, which Python can't put back
                signal.signal(number, handler)
        for number in dict.fromkeys(accepted):
            if callable(before[number]):
                before[number](number, None)


def _pass_on(number: int, handler: Any, frame: FrameType | None) -> None:
    if callable(handler):
        handler(number, frame)
    elif number == signal.SIGTERM and handler == signal.SIG_DFL:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
