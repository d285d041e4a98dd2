"""Who beats, for whom and until when: real trainings in one long call of C, and real SIGKILLs."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import alchemy_agent as agent
from tests.support.agentlab import eventually, make_attempt, plain_environment, python, record, start_wrapped

# As in a loop over data: one call that keeps the interpreter's lock, so that no other thread runs.
HOLD_THE_LOCK = """
import ctypes, os, pathlib, sys
usleep = ctypes.PyDLL(None).usleep  # unlike CDLL, it does not let go of the GIL
here = pathlib.Path(os.environ["ALCHEMY_JOB_DIR"])
(here / "pid.part").write_text(str(os.getpid()))
(here / "pid.part").rename(here / "pid")
for _ in range(3600):
    usleep(1_000_000)
"""
TICK = """
import itertools, os, pathlib, time
here = pathlib.Path(os.environ["ALCHEMY_JOB_DIR"])
for tick in itertools.count():
    (here / "pid.part").write_text(f"{os.getpid()} {tick}")
    (here / "pid.part").rename(here / "pid")
    time.sleep(0.01)
"""
JOB = """
import sys, alchemy_agent as agent
from alchemy.forking import run_forked
def child():
    exec(sys.argv[3])
    return 0
sys.exit(agent.pass_on(run_forked(agent.RunDir(sys.argv[1]).attempt(sys.argv[2]), child)))
"""


class Supervised:
    """A training under its supervisor."""

    def __init__(self, root: Path, how: str, training: str) -> None:
        self.run_dir = agent.RunDir(root / "jobs" / "run-1")
        if how == "wrapper":
            self.supervisor: subprocess.Popen[Any] = start_wrapped(Path(self.run_dir.path), python(training))
        else:
            attempt = make_attempt(root)
            command = [*python(JOB), self.run_dir.path, attempt.name, training]
            self.supervisor = subprocess.Popen(command, env=plain_environment(), start_new_session=True)
        self.attempt = self.run_dir.attempt("1-r0")

    def said(self) -> list[str]:
        """What the training wrote: its process id, and a tick."""
        try:
            return (Path(self.run_dir.path) / "pid").read_text().split()
        except FileNotFoundError:
            return []

    def seq(self) -> int:
        return int((agent.read_record(self.run_dir.heartbeat) or {}).get("seq", 0))

    def beats(self, more: int) -> None:
        """Wait for some beats."""
        seq = self.seq()
        eventually(lambda: self.seq() >= seq + more)

    def end(self) -> None:
        for pid in (self.supervisor.pid, *map(int, self.said()[:1])):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.supervisor.wait()
        for stream in (self.supervisor.stdout, self.supervisor.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture(params=["wrapper", "job"])
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def supervised(tmp_path: Path, how: str, request: pytest.FixtureRequest) -> Iterator[Supervised]:
    training = Supervised(tmp_path, how, getattr(request, "param", HOLD_THE_LOCK))
    try:
        yield training
    finally:
        training.end()


def test_the_heart_beats_while_the_training_holds_the_interpreters_lock(supervised: Supervised) -> None:
    eventually(supervised.said)
    supervised.beats(20)
    beat, start = record(supervised.run_dir.heartbeat), record(supervised.attempt.start)
    assert (beat["run"], beat["attempt"], beat["incarnation"]) == ("run-1", "1-r0", start["incarnation"])
    assert beat["pid"] == supervised.supervisor.pid != int(supervised.said()[0])


def test_the_heart_stops_with_the_training(supervised: Supervised) -> None:
    os.kill(int(eventually(supervised.said)[0]), signal.SIGKILL)
    assert supervised.supervisor.wait(60) == -signal.SIGKILL
    # Every process of ours is gone: nobody is left who could beat.
    assert record(supervised.attempt.exit)["signal"] == signal.SIGKILL
    assert record(supervised.attempt.rank(0) + "/heartbeat.json")["seq"] == supervised.seq()


@pytest.mark.parametrize("supervised", [TICK], indirect=True)
def test_nobody_beats_for_a_supervisor_that_was_killed(supervised: Supervised) -> None:
    eventually(supervised.said)
    supervised.beats(2)
    supervised.supervisor.kill()
    supervised.supervisor.wait()
    seq, tick = supervised.seq(), int(supervised.said()[1])
    eventually(lambda: int(supervised.said()[1]) >= tick + 20)  # the training goes on, and is silent
    assert supervised.seq() == seq
    assert not Path(supervised.attempt.exit).exists()


STARVED = """
import ctypes, sys, alchemy_agent as agent
attempt = agent.claim_attempt(agent.RunDir(sys.argv[1]), 1, 0)
heartbeat = agent.Heartbeat(attempt, "i", interval_s=0.001)
heartbeat.start()
usleep = ctypes.PyDLL(None).usleep
before = heartbeat.seq
usleep(200_000)
print(heartbeat.seq - before < 10)  # of 200; one or two may come between two lines of this program
"""


def test_a_thread_of_the_training_cannot_beat_in_such_a_call(tmp_path: Path) -> None:
    done = subprocess.run(
        [*python(STARVED), str(tmp_path / "jobs" / "x")], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "True\n", done.stderr
