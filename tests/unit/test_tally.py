"""The summary at the end of a session, from reports alone."""

from __future__ import annotations

from pytest_alchemy.facts import CaseFacts
from pytest_alchemy.tally import Tally


def facts(case: str, verdict: str, **more: str) -> CaseFacts:
    values = {"experiment": "x", "task": "train", "case": case, "verdict": verdict, **more}
    return CaseFacts(
        {f"alchemy.{name}": value for name, value in values.items()} | {"criterion.nmi": "> 0.1: met, 0.5"}
    )


def test_rows_show_criteria_and_counts_add_up() -> None:
    tally = Tally()
    tally.add(facts("a=1", "SUPPORTED", steps="4/4", duration_s="1.25"), "f::a", "passed")
    tally.add(facts("a=2", "REFUTED"), "f::b", "failed")
    tally.add(facts("a=3", "REFUTED"), "f::c", "xfailed")
    assert tally.experiments["x"].lines() == [
        "case  nmi > 0.1  steps  time   verdict",
        "a=1   0.5        4/4    1.2 s  supported",
        "a=2   0.5                      refuted",
        "a=3   0.5                      refuted, as expected",
        "3 cases: 1 supported, 1 refuted, 1 refuted, as expected",
    ]


def test_a_resumed_run_says_after_how_many_steps_it_went_on() -> None:
    tally = Tally()
    tally.add(facts("a=1", "SUPPORTED", steps="20/20", resumed_from="11"), "f::a", "passed")
    inexact = {"resumed_from": "0", "exact": "no: threads 8 -> 4"}
    tally.add(facts("a=2", "SUPPORTED", steps="20/20", **inexact), "f::b", "passed")
    shown = [
        line.partition("20/20")[2].rpartition("supported")[0].strip()
        for line in tally.experiments["x"].lines()
    ]
    assert shown[1:3] == ["(from 12)", "(from 1, not exact)"]


def test_a_rerun_replaces_the_row_of_its_case() -> None:
    tally = Tally()
    tally.add(facts("a=1", "REFUTED"), "f::a", "failed")
    tally.add(facts("a=1", "SUPPORTED"), "f::a", "passed")
    assert tally.experiments["x"].lines()[-1] == "1 case: 1 supported"


def test_of_many_cases_the_failures_are_shown() -> None:
    tally = Tally()
    for index in range(100):
        outcome = "failed" if index == 90 else "passed"
        tally.add(facts(f"a={index}", "REFUTED" if index == 90 else "SUPPORTED"), f"f::{index}", outcome)
    lines = tally.experiments["x"].lines(limit=3)
    assert [line.split()[0] for line in lines[1:4]] == ["a=90", "a=0", "a=1"]
    assert lines[4] == "… and 97 more (all with -v)"


def test_a_lost_run_is_called_by_its_reason() -> None:
    tally = Tally()
    tally.add(facts("a=1", "ERROR", reason="node_failure"), "f::a", "error")
    assert tally.experiments["x"].lines()[-1] == "1 case: 1 node_failure"
    assert tally.has_lost_runs()


def test_a_crash_or_a_skip_is_no_lost_run() -> None:
    tally = Tally()
    tally.add(facts("a=1", "CRASHED", reason="user_error"), "f::a", "failed")
    tally.add(facts("a=2", "", reason="cancelled"), "f::b", "skipped")
    assert not tally.has_lost_runs()


def test_shortened_cases_are_counted() -> None:
    tally = Tally()
    assert not tally.count_shortened()
    tally.add(facts("a=1", "SHORTENED"), "f::a", "passed")
    assert tally.count_shortened() == "1 case"


def test_a_late_evaluation_and_several_tasks_are_named() -> None:
    tally = Tally()
    tally.add(facts("a=1", "SUPPORTED", evaluated_after="3"), "f::a", "passed")
    tally.add(facts("a=1", "REFUTED", task="fit"), "f::b", "failed")
    first, second = tally.experiments["x"].lines()[1:3]
    assert first.startswith("train[a=1]")
    assert first.endswith("supported (evaluated after step 3)")
    assert second.startswith("fit[a=1]")
