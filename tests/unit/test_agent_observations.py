"""Heartbeat and progress: what they say, where it stands, and that losing one stops nothing."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

import alchemy_agent as agent
from tests.support.agentlab import eventually, make_attempt, record


def test_each_beat_is_newer_than_the_last(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    heartbeat = agent.Heartbeat(attempt, "i")
    seen = []
    for _ in range(3):
        heartbeat.beat()
        beat = record(Path(attempt.rank(0)) / "heartbeat.json")
        seen.append((beat["incarnation"], beat["seq"]))
        assert (beat["run"], beat["attempt"], beat["interval_s"]) == ("run-1", "1-r0", 15.0)
    assert seen == [("i", 1), ("i", 2), ("i", 3)]


def test_people_see_rank_0_of_the_highest_attempt_only(tmp_path: Path) -> None:
    old = make_attempt(tmp_path, k=1)
    agent.Heartbeat(old, "first").beat()
    new = make_attempt(tmp_path, k=2)
    agent.Heartbeat(new, "second", rank=1).beat()
    assert record(new.run_dir.heartbeat)["incarnation"] == "first"
    agent.Heartbeat(new, "second").beat()
    agent.Heartbeat(old, "first").beat()
    assert record(new.run_dir.heartbeat)["incarnation"] == "second"
    assert record(Path(old.rank(0)) / "heartbeat.json")["incarnation"] == "first"
    assert record(Path(new.rank(1)) / "heartbeat.json")["incarnation"] == "second"


def test_the_background_thread_beats_until_it_is_stopped(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    heartbeat = agent.Heartbeat(attempt, "i", interval_s=0.001)
    heartbeat.start()
    eventually(lambda: record(attempt.run_dir.heartbeat)["seq"] >= 5)
    heartbeat.stop()
    last = heartbeat.seq
    assert record(attempt.run_dir.heartbeat)["seq"] == last
    heartbeat.start()
    heartbeat.stop()
    assert record(attempt.run_dir.heartbeat)["seq"] > last


def test_observations_that_cannot_be_written_are_counted_and_recover(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    heartbeat, progress = agent.Heartbeat(attempt, "i"), agent.Progress(attempt, "i")
    heartbeat.beat()
    shutil.rmtree(attempt.run_dir.path)
    Path(attempt.run_dir.path).write_text("in the way")
    heartbeat.beat()
    progress.report(1, 2, {}, 0.0)
    assert (heartbeat.lost, progress.lost) == (1, 1)
    Path(attempt.run_dir.path).unlink()
    Path(attempt.path).mkdir(parents=True)
    heartbeat.beat()
    assert heartbeat.lost == 1
    assert record(attempt.run_dir.heartbeat)["seq"] == 3


def test_rate_and_eta_come_from_recent_reports(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    progress = agent.Progress(attempt, "i")

    def report(step: int, now: float) -> tuple[float | None, float | None]:
        progress.report(step, 1001, None, now)
        said = record(attempt.run_dir.progress)
        return said["rate"], said["eta_s"]

    assert report(0, 100.0) == (None, None)
    assert report(10, 110.0) == (1.0, 991.0)
    for second in range(1, 61):  # ten times as fast, for longer than the window
        rate, eta = report(10 + 10 * second, 110.0 + second)
    assert (rate, eta) == (10.0, 39.1)


def test_a_training_that_goes_on_from_a_checkpoint_takes_no_credit_for_it(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    progress = agent.Progress(attempt, "i")
    said = []
    for step, now in [(5000, 10.0), (5001, 12.0), (5002, 14.0)]:
        progress.report(step, 6002, None, now)
        said.append(record(attempt.run_dir.progress))
    assert [(one["rate"], one["eta_s"]) for one in said] == [(None, None), (0.5, 2002.0), (0.5, 2000.0)]


def test_a_pause_is_forgotten_with_the_window(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    progress = agent.Progress(attempt, "i")
    progress.report(0, 10_000, None, 0.0)
    for second in range(1, 32):  # an hour later
        progress.report(100 * second, 10_000, None, 3600.0 + second)
    assert record(attempt.run_dir.progress)["rate"] == 100.0


def test_further_fields_stand_beside_the_others_and_only_when_given(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    progress = agent.Progress(attempt, "i")
    progress.report(500, 1000, {}, 0.0, {"checkpoint": 499, "gpus": [{"utilization": 0.5}]})
    said = record(attempt.run_dir.progress)
    assert (said["step"], said["checkpoint"], said["gpus"]) == (500, 499, [{"utilization": 0.5}])
    progress.report(501, 1000, {}, 1.0)
    assert not {"checkpoint", "gpus"} & set(record(attempt.run_dir.progress))


def test_the_step_is_the_number_of_finished_steps(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    progress = agent.Progress(attempt, "i")
    for finished, eta in [(8, None), (9, 1.0), (10, 0.0), (11, 0.0)]:
        progress.report(finished, 10, None, float(finished))
        said = record(attempt.run_dir.progress)
        assert (said["step"], said["total"], said["eta_s"]) == (finished, 10, eta)


def test_a_training_that_starts_again_has_no_rate_yet(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    progress = agent.Progress(attempt, "i")
    for step, now in [(50, 1.0), (60, 2.0), (0, 3.0)]:
        progress.report(step, 100, None, now)
    assert record(attempt.run_dir.progress)["rate"] is None
    progress.report(4, 100, None, 5.0)
    assert record(attempt.run_dir.progress)["rate"] == 2.0


def test_a_clock_that_stands_still_divides_nothing_by_zero(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    progress = agent.Progress(attempt, "i")
    progress.report(0, None, None, 1.0)
    progress.report(1, None, None, 1.0)
    said = record(attempt.run_dir.progress)
    assert (said["rate"], said["eta_s"], said["total"]) == (None, None, None)


class OneElement:
    """Reads as a number, as a tensor of one element does."""

    def __float__(self) -> float:
        return 0.5


class Batch:
    """Refuses, as a tensor of several elements does."""

    def __float__(self) -> float:
        raise RuntimeError("a Tensor with 2 elements cannot be converted to Scalar")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (1, 1),
        (0.25, 0.25),
        (True, True),
        (math.nan, "NaN"),
        (-math.inf, "-Infinity"),
        (OneElement(), 0.5),
        (Batch(), None),
        ("high", None),
        (None, None),
    ],
)
def test_a_metric_is_a_number_or_nothing(tmp_path: Path, value: object, written: object) -> None:
    attempt = make_attempt(tmp_path)
    agent.Progress(attempt, "i").report(0, 1, {"m": value}, 0.0)
    assert record(attempt.run_dir.progress)["metrics"] == {"m": written}
