"""Being told to leave: SIGTERM and SIGHUP end the session in good order, reports included."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

__all__ = ["ctrl_c_sets_flag", "end_session_on_signals"]

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def end_session_on_signals(config: pytest.Config) -> None:
    """Turn the first SIGTERM or SIGHUP into `pytest.exit`, with exit code 128 + n, and ignore those after it.

    Without it pytest dies at once and no JUnit file is written. A terminal that closes sends SIGHUP twice
    (the kernel and the shell do), and the second must not cut off what the first began. The handlers that
    were there come back when pytest is unconfigured.
    """
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, _leave) for number in _SIGNALS}
        config.add_cleanup(lambda: _restore(before))


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    pytest.exit(f"{signal.Signals(number).name} received", returncode=128 + number)


def _restore(handlers: dict[signal.Signals, signal._HANDLER]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def ctrl_c_sets_flag() -> Iterator[threading.Event]:
    """Let Ctrl-C set the event inside the block instead of raising wherever the program happens to be."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    before = signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
