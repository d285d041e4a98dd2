"""The time a job has left, from what its environment says."""

from __future__ import annotations

import pytest

from alchemy.loop.remaining import remaining_time


@pytest.mark.parametrize("name", ["ALCHEMY_END_TIME", "SLURM_JOB_END_TIME"])
def test_it_is_the_time_until_the_limit(name: str) -> None:
    assert remaining_time({name: "1795534537"}, 1795534237.5) == 299.5


def test_what_our_script_says_goes_first() -> None:
    assert remaining_time({"ALCHEMY_END_TIME": "50", "SLURM_JOB_END_TIME": "90"}, 40.0) == 10.0
    assert remaining_time({"ALCHEMY_END_TIME": "", "SLURM_JOB_END_TIME": "90"}, 40.0) == 50.0


def test_after_the_limit_nothing_is_left() -> None:
    assert remaining_time({"ALCHEMY_END_TIME": "50"}, 60.0) == 0.0


@pytest.mark.parametrize(
    "text", ["", "NONE", "UNLIMITED", "N/A", "0", "-5", "nan", "inf", "4294967294", "4294967295", "1e400"]
)
def test_without_a_limit_there_is_no_answer(text: str) -> None:
    assert remaining_time({"ALCHEMY_END_TIME": text}, 0.0) is None
    assert remaining_time({"SLURM_JOB_END_TIME": text}, 0.0) is None


def test_outside_of_a_job_there_is_no_answer() -> None:
    assert remaining_time({}, 0.0) is None
