"""How the intervals between two looks grow and shrink."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_alchemy.slurm.pace import Pace

PACE = Pace(fast_s=0.2, slow_s=10.0, due=0.0)


def test_quiet_rounds_double_the_interval_up_to_the_slowest() -> None:
    pace, intervals = PACE, []
    for _ in range(9):
        pace = pace.done(0.0, cap_s=10.0)
        intervals.append(pace.interval_s)
    assert intervals == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0])


def test_a_lively_round_starts_over() -> None:
    slow = replace(PACE, interval_s=10.0)
    assert slow.done(5.0, cap_s=0.2) == Pace(0.2, 10.0, due=5.2, interval_s=0.2)


def test_steady_rounds_settle_in_between() -> None:
    assert replace(PACE, interval_s=10.0).done(0.0, cap_s=1.0).interval_s == 1.0
    assert replace(PACE, interval_s=0.2).done(0.0, cap_s=1.0).interval_s == 0.4


def test_costly_rounds_are_further_apart() -> None:
    assert PACE.done(0.0, cap_s=0.2, floor_s=3.0).interval_s == 3.0


def test_hurrying_never_delays() -> None:
    assert replace(PACE, due=5.05).hurry(5.0).due == 5.05
    assert replace(PACE, due=9.0).hurry(5.0).due == 5.2
