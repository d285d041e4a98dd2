"""Slurm's words: all known, and only the certain ones are an end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_alchemy.outcome import Reason
from pytest_alchemy.slurm.states import JobState, read_state

OFFICIAL = json.loads((Path(__file__).parents[1] / "data/slurm/job_state_codes.json").read_text("utf-8"))


def test_every_word_of_the_official_list_is_known() -> None:
    ours = {state.value for state in JobState} - {JobState.UNKNOWN.value}
    assert ours == {*OFFICIAL["base"], *OFFICIAL["flags"]}


@pytest.mark.parametrize("flag", OFFICIAL["flags"])
def test_a_flag_hides_the_state_and_so_is_never_an_end(flag: str) -> None:
    assert not read_state(flag).state.is_terminal


def test_the_base_states_that_end_a_job() -> None:
    live = {JobState.PENDING, JobState.RUNNING, JobState.SUSPENDED}
    assert {JobState(word) for word in OFFICIAL["base"] if not JobState(word).is_terminal} == live


@pytest.mark.parametrize("text", ["", "SHINY_NEW_STATE", "123", "completed?", "\x00"])
def test_an_unknown_word_is_kept_and_never_an_end(text: str) -> None:
    word = read_state(text)
    assert word.state is JobState.UNKNOWN
    assert word.raw == text.strip()
    assert not word.state.is_terminal
    assert word.state.reason is None


@pytest.mark.parametrize("text", ["CANCELLED by 1000", "CANCELLED+", " CANCELLED ", "cancelled"])
def test_sacct_spells_cancelled_in_several_ways(text: str) -> None:
    assert read_state(text).state is JobState.CANCELLED


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("BOOT_FAIL", Reason.NODE_FAILURE),
        ("CANCELLED", Reason.CANCELLED),
        ("DEADLINE", Reason.DEADLINE),
        ("NODE_FAIL", Reason.NODE_FAILURE),
        ("OUT_OF_MEMORY", Reason.OUT_OF_MEMORY),
        ("PREEMPTED", Reason.PREEMPTED),
        ("TIMEOUT", Reason.TIMEOUT),
        ("COMPLETED", None),
        ("FAILED", None),
        ("RUNNING", None),
    ],
)
def test_what_an_end_means_by_itself(word: str, reason: Reason | None) -> None:
    """COMPLETED and FAILED say how a script left, not how a run ended: that is for its files to tell."""
    assert read_state(word).state.reason is reason
