"""How often checkpoints are made, as a declaration says it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alchemy.errors import ConfigurationError
from alchemy.loop.cadence import Checkpointing


def parse(**said: Any) -> Checkpointing:
    wishes = {"checkpoint_every": None, "checkpoint_minutes": None, "keep": 2, "async_save": True, **said}
    return Checkpointing.parse(**wishes)


def test_unsaid_there_is_one_every_ten_minutes() -> None:
    assert parse() == Checkpointing(steps=None, minutes=10.0, keep=2, is_async=True)


def test_steps_alone_mean_no_minutes_and_both_may_be_said() -> None:
    assert parse(checkpoint_every=5).minutes is None
    assert parse(checkpoint_every=5, checkpoint_minutes=0.5) == Checkpointing(5, 0.5)


@given(every=st.integers(1, 50), step=st.integers(-1, 500))
def test_the_next_step_that_ends_with_a_checkpoint_is_the_nearest(every: int, step: int) -> None:
    following = parse(checkpoint_every=every).next_after(step)
    assert following > step
    assert [each for each in range(step + 1, following + 1) if (each + 1) % every == 0] == [following]


def test_by_time_alone_no_step_is_special() -> None:
    assert parse().next_after(7) == -1


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"checkpoint_every": 0}, "checkpoint_every must be a positive int, not 0"),
        ({"checkpoint_every": 1e3}, "write 1000"),
        ({"checkpoint_minutes": -1}, "checkpoint_minutes must be a positive number"),
        ({"checkpoint_minutes": float("inf")}, "checkpoint_minutes"),
        ({"checkpoint_minutes": "10"}, "checkpoint_minutes"),
        ({"keep": 1}, "keep must be 2 or more"),
        ({"async_save": 1}, "async_save must be True or False"),
    ],
)
def test_what_can_not_be_meant_is_named(said: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        parse(**said)
