"""What a report says of a run that was stopped, resumed or changed on its way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from alchemy.result import Result
from pytest_alchemy.facts import describe_outcome, is_ours
from pytest_alchemy.outcome import Outcome, Reason

COMPLETED = Result(5, 5, None, {}, 1.0)
OUTCOME = Outcome(Reason.COMPLETED, "run-1", "1-r0", Path("/root/jobs/run-1"), COMPLETED)
HISTORY = ("stopped_by", "checkpoint", "resumed_from", "exact", "param_change")


def history(result: Result) -> list[tuple[str, object]]:
    told = list(describe_outcome(replace(OUTCOME, result=result)))
    assert all(is_ours(name) for name, _ in told)
    return [(name, value) for name, value in told if name.removeprefix("alchemy.") in HISTORY]


def test_a_run_that_went_through_has_no_history() -> None:
    assert history(COMPLETED) == []


def test_a_resumed_run_says_from_where_and_that_it_is_exact_by_saying_nothing() -> None:
    checkpoint = {"attempt": "2-r0", "step": 4, "manifest": "f" * 64, "name": "step-00000004"}
    assert history(replace(COMPLETED, checkpoint=checkpoint, resumed_from=1)) == [
        ("alchemy.checkpoint", "2-r0/step-00000004"),
        ("alchemy.resumed_from", "1"),
    ]


def test_what_keeps_it_from_being_exact_is_named() -> None:
    told = history(replace(COMPLETED, resumed_from=0, inexact=("threads 8 -> 4", "torch 2.4 -> 2.5")))
    assert told[-1] == ("alchemy.exact", "no: threads 8 -> 4; torch 2.4 -> 2.5")


def test_who_stopped_it_is_told() -> None:
    assert history(replace(COMPLETED, stopped="SIGUSR1")) == [("alchemy.stopped_by", "SIGUSR1")]


def test_each_change_of_a_parameter_is_told() -> None:
    changes = (
        {"id": "0001-ab", "step": 2, "values": {"lr": 0.5, "clip": None}},
        {"id": "0002-cd", "step": 3, "values": {"lr": 0.25}},
    )
    assert history(replace(COMPLETED, changes=changes)) == [
        ("alchemy.param_change", "step 2: lr = 0.5, clip = None (command 0001-ab)"),
        ("alchemy.param_change", "step 3: lr = 0.25 (command 0002-cd)"),
    ]
