"""Signals become a question to the loop, and what was there before gets them when the loop is done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from alchemy.loop.stopping import stop_signals


@pytest.fixture
def earlier() -> Iterator[list[int]]:
    """Install a handler, as a session does, that notes what reaches it."""
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    yield came
    signal.signal(signal.SIGTERM, before)


def test_an_accepted_signal_goes_to_the_earlier_handler_when_the_loop_is_done(earlier: list[int]) -> None:
    asked: list[str] = []

    def ask(name: str) -> bool:
        asked.append(name)
        return True

    with stop_signals(ask):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (asked, earlier) == (["SIGTERM", "SIGTERM"], [])
    assert earlier == [signal.SIGTERM]


def test_a_declined_signal_goes_there_at_once(earlier: list[int]) -> None:
    with stop_signals(lambda _: False):
        os.kill(os.getpid(), signal.SIGTERM)
        assert earlier == [signal.SIGTERM]
    assert earlier == [signal.SIGTERM]


def test_a_declined_warning_is_ignored() -> None:
    with stop_signals(lambda _: False):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_declined_sigterm_without_earlier_handler_ends_the_process() -> None:
    source = (
        "import os, signal\nfrom alchemy.loop.stopping import stop_signals\n"
        "with stop_signals(lambda _: False):\n    os.kill(os.getpid(), signal.SIGTERM)\nprint('alive')"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, b"")


def test_in_another_thread_nothing_is_touched() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def body() -> None:
        with stop_signals(lambda _: True):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [before]
