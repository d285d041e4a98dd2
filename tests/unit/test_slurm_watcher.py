"""How often the watcher looks: one scan and one squeue for all runs, with pauses that grow in silence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

import alchemy_agent
from alchemy.resources import Resources
from alchemy.runspec import CodeRef, RunSpec
from pytest_alchemy.backends import Plan
from pytest_alchemy.slurm.requests import Submit
from pytest_alchemy.slurm.settings import SlurmSettings
from pytest_alchemy.slurm.submitter import Submitter
from pytest_alchemy.slurm.watcher import Watcher
from pytest_alchemy.transport import Completed, LocalTransport, News

RUNS = 40


@dataclass
class Clock:
    """A clock that goes when it is told to."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


class Counting(LocalTransport):
    """Local files, a Slurm on which every job waits for ever, and a note of when it was asked what."""

    def __init__(self, root: Path, clock: Clock) -> None:
        super().__init__(root, {})
        self._clock = clock
        self.scans: list[tuple[float, int]] = []
        self.squeues: list[tuple[float, str]] = []
        self.submitted = 0

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:  # noqa: ARG002
        if argv[0] == "sbatch":
            self.submitted += 1
            return Completed(0, f"{self.submitted}\n", "")
        names = argv[-1].removeprefix("--name=").split(",")
        self.squeues.append((self._clock(), argv[0]))
        rows = [
            "\x1f".join((name.split("-")[2], f"0-{RUNS}", "PENDING", "Priority", "", name)) for name in names
        ]
        return Completed(0, "\n".join(rows), "")

    def scan(self, runs: Sequence[str]) -> News:
        self.scans.append((self._clock(), len(runs)))
        return super().scan(runs)


@dataclass
class Watch:
    """A watcher without its thread, and hands that move its clock."""

    clock: Clock
    hands: Counting
    watcher: Watcher

    def live(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while True:
            self.watcher.attend()
            while self.watcher._asking:
                self.watcher.handle(self.watcher.inbox.get(timeout=30.0))
            idle_s = self.watcher.idle_s()
            assert idle_s is not None
            if self.clock.now + idle_s > end:
                self.clock.now = end
                return
            self.clock.now += idle_s


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    clock = Clock()
    hands, settings = Counting(tmp_path, clock), SlurmSettings(tmp_path)
    watcher = Watcher(settings, hands, Submitter(settings, hands), clock)
    watcher.handle(Submit([plan(number) for number in range(RUNS)]))
    return Watch(clock, hands, watcher)


def plan(number: int) -> Plan:
    code = CodeRef("/x.py", "x", (), "/")
    spec = RunSpec(f"run-{number}", "e", "t", "", {}, 1, None, 0, True, "f", code)
    return Plan(spec, Resources(cpus=1 + number % 2))  # of two kinds, so in two arrays


def gaps(times: Sequence[float]) -> list[float]:
    return [round(later - earlier, 3) for earlier, later in pairwise(times)]


def test_one_scan_and_one_squeue_serve_all_runs(watch: Watch) -> None:
    watch.live(600.0)
    assert watch.hands.submitted == 2
    assert {runs for _, runs in watch.hands.scans} == {RUNS}
    assert {program for _, program in watch.hands.squeues} == {"squeue"}
    assert len(watch.hands.squeues) < 600 / 30 + 10
    assert len(watch.hands.scans) < 600 / 10 + 15


def test_both_are_asked_soon_after_submitting_and_back_off_while_nothing_happens(watch: Watch) -> None:
    began = watch.clock.now
    watch.live(300.0)
    scans, squeues = ([time for time, _ in asked] for asked in (watch.hands.scans, watch.hands.squeues))
    assert scans[0] - began <= 0.2
    assert squeues[0] - began <= 1.0
    doubling = [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    after_slurms_first_word = [time for time in scans if time >= squeues[0]]
    assert gaps(after_slurms_first_word)[: len(doubling)] == doubling
    assert gaps(squeues)[:7] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_a_run_that_starts_makes_the_next_look_come_soon(watch: Watch, tmp_path: Path) -> None:
    watch.live(300.0)
    attempt = alchemy_agent.claim_attempt(alchemy_agent.RunDir(tmp_path / "jobs" / "run-7"), 1, 0)
    alchemy_agent.begin(attempt)
    before = len(watch.hands.scans)
    watch.live(60.0)
    noticed, *later = [time for time, _ in watch.hands.scans[before:]]
    assert later[0] - noticed == pytest.approx(0.2)
    assert gaps([noticed, *later])[:6] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4]
