"""Being told to leave: SIGTERM and SIGHUP end the session in good order, reports included."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

from pytest_alchemy.exits import DETACHED

__all__ = ["ctrl_c_sets_flag", "detach_on_signals"]

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def detach_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into `pytest.exit` inside the block; previous handlers come back afterwards.

    Without it pytest dies at once and no JUnit file is written.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _leave) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
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


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    pytest.exit(f"{signal.Signals(number).name} received", returncode=DETACHED)
