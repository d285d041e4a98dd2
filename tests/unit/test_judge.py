"""The words for a run that can't be judged because it was stopped."""

from __future__ import annotations

from pathlib import Path

from alchemy.result import Result
from pytest_alchemy.judge import trouble
from pytest_alchemy.outcome import Outcome, Reason

CHECKPOINT = {"attempt": "1-r0", "step": 1199, "manifest": "f" * 64, "name": "step-00001199"}
STOPPED = Result(1200, 5000, None, {}, 1.0, stopped="the command graceful_stop", checkpoint=CHECKPOINT)


def outcome(reason: Reason, result: Result | None, evidence: str) -> Outcome:
    return Outcome(reason, "run-1", "1-r0", Path("/root/jobs/run-1"), result, evidence=evidence)


def test_a_stopped_run_says_in_its_first_line_how_to_go_on() -> None:
    head, *rest = trouble(outcome(Reason.STOPPED, STOPPED, "ran in the pytest process")).splitlines()
    assert head.startswith(
        "stopped: after 1200 of 5000 steps by the command graceful_stop; run the same command"
    )
    assert rest == [
        "  checkpoint 1-r0/step-00001199 is committed",
        "",
        "  run  /root/jobs/run-1 (attempt 1-r0)",
    ]


def test_a_stop_with_a_reason_of_slurms_begins_with_that() -> None:
    text = trouble(outcome(Reason.PREEMPTED, STOPPED, "stopped after 1200 of 5000 steps by SIGTERM"))
    assert text.startswith("preempted: stopped after 1200 of 5000 steps")


def test_without_a_result_the_evidence_is_all_there_is() -> None:
    assert trouble(outcome(Reason.STOPPED, None, "so it was told")).startswith("stopped: so it was told\n")


def test_only_a_stop_without_an_error_is_one() -> None:
    assert outcome(Reason.TIMEOUT, STOPPED, "").is_stopped
    assert not outcome(Reason.TIMEOUT, None, "").is_stopped
    assert not outcome(Reason.COMPLETED, Result(5, 5, None, {}, 1.0), "").is_stopped
