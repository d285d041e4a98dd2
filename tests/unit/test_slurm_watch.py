"""What the signs mean: decisions over files, squeue's words and silence, without any clock or cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from alchemy.result import ErrorInfo, Result
from pytest_alchemy.events import Notice, Progressed, Queued, Started
from pytest_alchemy.outcome import Reason
from pytest_alchemy.slurm.settings import Knobs
from pytest_alchemy.slurm.squeue import JobId, Row, Sighting
from pytest_alchemy.slurm.states import JobState, read_state
from pytest_alchemy.slurm.watch import RunState, conclude, hear, sight, silence

KNOBS = Knobs()
FRESH = RunState("run-1", claim=1, key="al-1", job=JobId("12"), index=3, submitted=0.0)
START = {"attempt": "1-r0", "start": {"host": "n1", "time": 100.0}}
COMPLETED = Result(5, 5, None, {}, 1.0).to_record()
CRASHED = Result(2, 5, None, {}, 1.0, ErrorInfo("builtins.ValueError", "no", "Traceback")).to_record()
EXIT_0, EXIT_1 = {"code": 0, "signal": None}, {"code": 1, "signal": None}
SIGKILL = {"code": None, "signal": 9}


def told(state: RunState, *news: dict[str, Any], now: float = 10.0) -> RunState:
    for item in news:
        state = hear(state, item, now).state
    return state


def said(state: RunState, word: str, now: float, *, why: str = "", host: str = "n1") -> RunState:
    row = Row("12", (range(3, 4),), read_state(word), why, host, "al-1")
    return sight(state, Sighting(row, siblings=True), now).state


def missing(state: RunState, now: float, *, siblings: bool = True) -> RunState:
    return sight(state, Sighting(None, siblings=siblings), now).state


def reason(state: RunState, now: float) -> Reason | None:
    conclusion = conclude(state, now, KNOBS)
    return conclusion.reason if conclusion else None


def evidence(state: RunState, now: float) -> str:
    conclusion = conclude(state, now, KNOBS)
    assert conclusion is not None
    return conclusion.evidence


class TestFilesDecide:
    def test_a_result_and_an_exit_are_the_end(self) -> None:
        assert reason(told(FRESH, START, {"result": COMPLETED, "exit": EXIT_0}), 10.0) is Reason.COMPLETED

    def test_an_exception_of_the_user_is_the_users(self) -> None:
        state = told(FRESH, START, {"result": CRASHED}, {"exit": EXIT_1})
        assert reason(state, 10.0) is Reason.USER_ERROR
        assert "builtins.ValueError" in evidence(state, 10.0)

    def test_a_result_alone_waits_for_the_exit(self) -> None:
        assert reason(told(FRESH, START, {"result": COMPLETED}), 1e6) is None

    def test_a_result_outlives_a_crash_of_the_interpreter_on_its_way_out(self) -> None:
        state = told(FRESH, START, {"result": COMPLETED, "exit": {"code": None, "signal": 11}})
        assert reason(state, 10.0) is Reason.COMPLETED
        assert "SIGSEGV" in evidence(state, 10.0)

    def test_a_result_counts_whatever_slurm_says(self) -> None:
        state = said(told(FRESH, START, {"result": COMPLETED, "exit": EXIT_0}), "FAILED", 10.0)
        assert reason(state, 10.0) is Reason.COMPLETED

    def test_a_result_that_can_not_be_read_is_not_a_success(self) -> None:
        state = told(FRESH, START, {"result": {"status": "completed"}, "exit": EXIT_0})
        assert reason(state, 10.0) is Reason.INFRASTRUCTURE

    def test_attempts_of_former_submissions_are_history(self) -> None:
        state = replace(FRESH, claim=2)
        state = told(state, {**START, "result": COMPLETED, "exit": EXIT_0})
        assert (state.attempt, reason(state, 10.0)) == (None, None)
        state = told(state, {**START, "attempt": "2-r0"}, {"result": CRASHED, "exit": EXIT_1})
        assert reason(state, 10.0) is Reason.USER_ERROR

    def test_an_attempt_of_a_later_submission_fences_ours_off(self) -> None:
        state = said(told(FRESH, START), "RUNNING", 5.0)
        state = told(state, {**START, "attempt": "2-r0"}, {"heartbeat": {"seq": 1}})
        assert state.attempt == "1-r0"
        for late in (state, said(state, "FAILED", 11.0), told(state, {"result": CRASHED, "exit": EXIT_1})):
            assert reason(late, 11.0) is Reason.FENCED
            assert "2-r0" in evidence(late, 11.0)
            assert late.is_told

    @pytest.mark.parametrize(("code", "expected"), [(78, Reason.ENVIRONMENT), (74, Reason.STORAGE)])
    def test_the_nodes_entry_speaks_by_its_exit_status(self, code: int, expected: Reason) -> None:
        assert reason(told(FRESH, START, {"exit": {"code": code, "signal": None}}), 10.0) is expected


class TestAnEndWithoutAResult:
    STATE = told(FRESH, START, {"exit": SIGKILL})

    def test_waits_for_slurms_word(self) -> None:
        assert self.STATE.needs_word
        assert reason(self.STATE, 10.0 + KNOBS.grace_s - 0.1) is None

    @pytest.mark.parametrize(
        ("word", "expected"),
        [
            ("TIMEOUT", Reason.TIMEOUT),
            ("OUT_OF_MEMORY", Reason.OUT_OF_MEMORY),
            ("NODE_FAIL", Reason.NODE_FAILURE),
            ("PREEMPTED", Reason.PREEMPTED),
            ("CANCELLED by 0", Reason.CANCELLED),
            ("FAILED", Reason.USER_ERROR),
        ],
    )
    def test_believes_slurm_at_once(self, word: str, expected: Reason) -> None:
        assert reason(said(self.STATE, word, 11.0), 11.0) is expected

    @pytest.mark.parametrize("word", ["RUNNING", "COMPLETING", "WHATEVER"])
    def test_is_the_users_if_slurm_has_nothing_to_say_in_time(self, word: str) -> None:
        state = said(self.STATE, word, 11.0)
        assert reason(state, 10.0 + KNOBS.grace_s) is Reason.USER_ERROR
        assert "killed by SIGKILL" in evidence(state, 10.0 + KNOBS.grace_s)

    def test_with_exit_code_zero_gives_the_result_time_to_appear(self) -> None:
        state = said(told(FRESH, START, {"exit": EXIT_0}), "COMPLETED", 11.0)
        assert reason(state, 11.0) is None
        assert reason(told(state, {"result": COMPLETED}), 12.0) is Reason.COMPLETED
        assert reason(state, 10.0 + KNOBS.grace_s) is Reason.USER_ERROR

    def test_is_not_the_end_of_a_requeued_job(self) -> None:
        state = said(self.STATE, "PENDING", 11.0, why="BeginTime", host="")
        assert reason(state, 1e6) is None
        state = told(state, {"attempt": "1-r1", "start": {"host": "n2"}})
        state = told(state, {"result": COMPLETED, "exit": EXIT_0})
        assert (state.attempt, reason(state, 1e6)) == ("1-r1", Reason.COMPLETED)

    def test_a_row_from_before_the_end_says_nothing_about_requeueing(self) -> None:
        state = told(said(FRESH, "PENDING", 5.0, host=""), START, {"exit": SIGKILL})
        assert reason(state, 10.0 + KNOBS.grace_s) is Reason.USER_ERROR


def crash(kind: str) -> dict[str, Any]:
    return Result(2, 5, None, {}, 1.0, ErrorInfo(kind, "no", "Traceback")).to_record()


class TestAnErrorThatMayComeFromOutside:
    """A handler of SIGTERM that calls sys.exit leaves a result; what sent the signal is Slurm's to say."""

    LEFT = told(FRESH, START, {"result": crash("builtins.SystemExit"), "exit": EXIT_1})
    SIGNALLED = told(FRESH, START, {"result": CRASHED, "exit": {"code": None, "signal": 15}})
    STATES = (
        LEFT,
        SIGNALLED,
        told(FRESH, START, {"result": crash("builtins.KeyboardInterrupt"), "exit": EXIT_1}),
    )

    @pytest.mark.parametrize("state", STATES)
    def test_waits_for_slurms_word_as_long_as_for_files(self, state: RunState) -> None:
        assert state.needs_word
        assert reason(state, 10.0 + KNOBS.grace_s - 0.1) is None
        assert reason(state, 10.0 + KNOBS.grace_s) is Reason.USER_ERROR

    @pytest.mark.parametrize("state", STATES)
    @pytest.mark.parametrize(
        ("word", "expected"),
        [
            ("TIMEOUT", Reason.TIMEOUT),
            ("PREEMPTED", Reason.PREEMPTED),
            ("CANCELLED by 0", Reason.CANCELLED),
            ("FAILED", Reason.USER_ERROR),
            ("COMPLETED", Reason.USER_ERROR),
        ],
    )
    def test_slurms_word_decides(self, state: RunState, word: str, expected: Reason) -> None:
        assert reason(said(state, word, 11.0), 11.0) is expected
        assert word in evidence(said(state, word, 11.0), 11.0)

    def test_a_requeued_job_has_not_ended(self) -> None:
        state = said(self.LEFT, "PENDING", 11.0, why="BeginTime", host="")
        assert reason(state, 1e6) is None

    def test_without_an_exit_record_slurms_word_decides_as_well(self) -> None:
        state = said(told(FRESH, START, {"result": crash("builtins.SystemExit")}), "TIMEOUT", 20.0)
        assert reason(state, 20.0 + KNOBS.grace_s) is Reason.TIMEOUT

    def test_any_other_exception_is_the_users_at_once(self) -> None:
        state = said(told(FRESH, START, {"result": CRASHED, "exit": EXIT_1}), "TIMEOUT", 10.0)
        assert not state.needs_word
        assert reason(state, 10.0) is Reason.USER_ERROR


class TestATrainingThatWasAskedToStop:
    """It left in good order, and may go on: nothing of it is judged. Who asked may be Slurm."""

    CHECKPOINT: Mapping[str, Any] = {"attempt": "1-r0", "step": 1, "manifest": "f" * 64, "name": "step-1"}
    RESULT = Result(2, 5, None, {}, 1.0, stopped="SIGTERM", checkpoint=CHECKPOINT)
    EXIT = {"code": 75, "signal": None}  # noqa: RUF012
    STATE = told(FRESH, START, {"result": RESULT.to_record(), "exit": EXIT})

    def test_waits_for_slurms_word_but_not_for_ever(self) -> None:
        assert self.STATE.needs_word
        assert reason(self.STATE, 10.0 + KNOBS.grace_s - 0.1) is None
        assert reason(self.STATE, 10.0 + KNOBS.grace_s) is Reason.STOPPED

    @pytest.mark.parametrize(
        ("word", "expected"),
        [
            ("PREEMPTED", Reason.PREEMPTED),
            ("TIMEOUT", Reason.TIMEOUT),
            ("NODE_FAIL", Reason.NODE_FAILURE),
            ("CANCELLED by 0", Reason.CANCELLED),
            ("FAILED", Reason.STOPPED),
            ("COMPLETED", Reason.STOPPED),
        ],
    )
    def test_slurms_own_reason_goes_first(self, word: str, expected: Reason) -> None:
        state = said(self.STATE, word, 11.0)
        assert reason(state, 11.0) is expected
        for part in ("after 2 of 5 steps by SIGTERM", "1-r0/step-1 is committed", "same command", word):
            assert part in evidence(state, 11.0)

    def test_says_first_what_people_need(self) -> None:
        assert evidence(said(self.STATE, "FAILED", 11.0), 11.0) == (
            "after 2 of 5 steps by SIGTERM; run the same command again to continue "
            "(checkpoint 1-r0/step-1 is committed; exited with code 75; Slurm says FAILED for job 12_3)"
        )

    def test_requeued_by_slurm_it_has_not_ended(self) -> None:
        state = said(self.STATE, "PENDING", 11.0, why="BeginTime", host="")
        assert reason(state, 1e6) is None
        state = told(state, {"attempt": "1-r1", "start": {"host": "n2"}, "result": COMPLETED, "exit": EXIT_0})
        assert reason(state, 1e6) is Reason.COMPLETED

    def test_while_slurm_hides_whether_it_requeues_there_is_more_patience(self) -> None:
        state = said(self.STATE, "COMPLETING", 11.0)
        assert reason(state, 10.0 + KNOBS.vanish_s - 0.1) is None
        assert reason(state, 10.0 + KNOBS.vanish_s) is Reason.STOPPED
        assert reason(said(state, "PENDING", 40.0, host=""), 1e6) is None
        assert reason(said(state, "PREEMPTED", 40.0), 40.0) is Reason.PREEMPTED

    def test_that_had_nothing_to_save_does_not_promise_to_continue(self) -> None:
        nothing = replace(self.RESULT, steps=0, checkpoint=None).to_record()
        state = said(told(FRESH, START, {"result": nothing, "exit": self.EXIT}), "FAILED", 11.0)
        assert "nothing was saved, so it will begin anew (no checkpoint;" in evidence(state, 11.0)

    def test_without_an_exit_record_counts_after_the_grace(self) -> None:
        state = said(told(FRESH, START, {"result": self.RESULT.to_record()}), "PREEMPTED", 20.0)
        assert reason(state, 20.0 + KNOBS.grace_s) is Reason.PREEMPTED

    def test_whose_task_failed_on_its_way_out_is_the_users(self) -> None:
        error = ErrorInfo("builtins.ValueError", "no", "Traceback")
        failed = replace(self.RESULT, error=error).to_record()
        assert reason(told(FRESH, START, {"result": failed, "exit": EXIT_1}), 10.0) is Reason.USER_ERROR


class TestSlurmEndsItWithoutFiles:
    @pytest.mark.parametrize("word", ["FAILED", "COMPLETED"])
    def test_without_an_attempt_the_environment_is_to_blame(self, word: str) -> None:
        state = said(FRESH, word, 5.0)
        assert reason(state, 5.0 + KNOBS.grace_s - 0.1) is None
        assert reason(state, 5.0 + KNOBS.grace_s) is Reason.ENVIRONMENT

    def test_cancelled_while_it_waited_needs_no_patience(self) -> None:
        assert reason(said(FRESH, "CANCELLED", 5.0, host=""), 5.0) is Reason.CANCELLED

    def test_with_an_attempt_the_exit_record_gets_time_to_appear(self) -> None:
        state = said(told(FRESH, START), "TIMEOUT", 20.0)
        assert reason(state, 20.0 + KNOBS.grace_s - 0.1) is None
        assert reason(state, 20.0 + KNOBS.grace_s) is Reason.TIMEOUT
        late = told(state, {"result": COMPLETED, "exit": EXIT_0})
        assert reason(late, 21.0) is Reason.COMPLETED

    def test_an_attempt_that_left_nothing_is_nobodys_success(self) -> None:
        state = said(told(FRESH, START), "COMPLETED", 20.0)
        assert reason(state, 20.0 + KNOBS.grace_s) is Reason.INFRASTRUCTURE

    def test_a_result_without_exit_counts_after_the_grace(self) -> None:
        state = said(told(FRESH, START, {"result": COMPLETED}), "NODE_FAIL", 20.0)
        assert reason(state, 20.0 + KNOBS.grace_s) is Reason.COMPLETED

    @pytest.mark.parametrize("state", [each for each in JobState if not each.is_terminal])
    def test_no_other_word_is_an_end(self, state: JobState) -> None:
        assert reason(said(told(FRESH, START), state.value, 20.0), 1e6) is None

    def test_a_job_that_was_requeued_after_its_end_has_not_ended(self) -> None:
        state = said(said(FRESH, "NODE_FAIL", 20.0), "PENDING", 21.0, host="")
        assert reason(state, 1e6) is None


class TestGone:
    def test_vanished_only_after_a_minute_of_healthy_answers(self) -> None:
        state = missing(said(FRESH, "RUNNING", 5.0), 10.0)
        assert reason(state, 10.0 + KNOBS.vanish_s - 0.1) is None
        assert reason(state, 10.0 + KNOBS.vanish_s) is Reason.VANISHED

    def test_files_that_move_keep_it_alive(self) -> None:
        state = missing(told(FRESH, START), 10.0)
        state = told(state, {"heartbeat": {"seq": 2}}, now=50.0)
        assert reason(state, 50.0 + KNOBS.vanish_s - 0.1) is None
        assert reason(state, 50.0 + KNOBS.vanish_s) is Reason.VANISHED

    def test_seen_again_it_has_not_vanished(self) -> None:
        assert reason(said(missing(FRESH, 10.0), "RUNNING", 30.0), 1e6) is None

    def test_a_waiting_task_dropped_beside_its_siblings_was_cancelled(self) -> None:
        state = missing(said(FRESH, "PENDING", 5.0, host=""), 10.0)
        assert reason(state, 10.0 + KNOBS.grace_s - 0.1) is None
        assert reason(state, 10.0 + KNOBS.grace_s) is Reason.CANCELLED

    def test_alone_it_has_vanished_like_any_other(self) -> None:
        state = missing(said(FRESH, "PENDING", 5.0, host=""), 10.0, siblings=False)
        assert reason(state, 10.0 + KNOBS.grace_s) is None
        assert reason(state, 10.0 + KNOBS.vanish_s) is Reason.VANISHED

    def test_after_our_own_cancel_it_is_cancelled_at_once(self) -> None:
        assert reason(missing(replace(FRESH, cancelling=True), 10.0), 10.0) is Reason.CANCELLED

    def test_the_rest_of_a_cancelled_array_says_nothing_about_a_task_that_had_started(self) -> None:
        rest = Sighting(Row("12", (), read_state("CANCELLED"), "", "", "al-1"), siblings=True)
        assert reason(sight(FRESH, rest, 10.0).state, 10.0) is Reason.CANCELLED
        assert reason(sight(told(FRESH, START), rest, 10.0).state, 10.0) is None

    def test_gone_with_a_result_is_what_the_result_says(self) -> None:
        state = missing(told(FRESH, START, {"result": COMPLETED}), 10.0)
        assert reason(state, 10.0 + KNOBS.vanish_s) is Reason.COMPLETED


class TestEvents:
    def test_a_start_is_told_once(self) -> None:
        stirred = hear(FRESH, START, 10.0)
        assert stirred.events == (Started("run-1", "1-r0", "n1"),)
        assert stirred.lively
        assert hear(stirred.state, {"start": START["start"]}, 11.0).events == ()

    def test_progress_reads_the_wires_words_for_numbers_that_are_none(self) -> None:
        record = {"step": 3, "total": 9, "rate": 1.5, "eta_s": 4.0, "metrics": {"loss": "Infinity"}}
        stirred = hear(told(FRESH, START), {"progress": record}, 10.0)
        assert stirred.events == (Progressed("run-1", 3, 9, 1.5, 4.0, {"loss": float("inf")}),)
        assert not stirred.lively

    @pytest.mark.parametrize(
        "record", [{}, {"step": "x"}, {"step": 1, "metrics": 3}, {"step": 1, "total": []}]
    )
    def test_progress_that_can_not_be_meant_is_no_news(self, record: dict[str, Any]) -> None:
        assert hear(told(FRESH, START), {"progress": record}, 10.0).events == ()

    def test_slurms_reason_for_waiting_is_told_when_it_changes(self) -> None:
        row = Row("12", (range(3, 4),), read_state("PENDING"), "Priority", "", "al-1")
        stirred = sight(FRESH, Sighting(row, siblings=True), 1.0)
        assert stirred.events == (Queued("run-1", "12_3", "Priority"),)
        assert sight(stirred.state, Sighting(row, siblings=True), 2.0).events == ()
        changed = replace(row, why="Resources")
        assert sight(stirred.state, Sighting(changed, siblings=True), 3.0).events == (
            Queued("run-1", "12_3", "Resources"),
        )


class TestStalled:
    def quiet(self, state: RunState, *times: float) -> tuple[RunState, list[object]]:
        events: list[object] = []
        for now in times:
            stirred = silence(state, now, KNOBS)
            state, events = stirred.state, [*events, *stirred.events]
        return state, events

    def test_is_told_once_after_the_window_and_three_readable_polls(self) -> None:
        state, events = self.quiet(told(FRESH, START), 20.0, 60.0, 99.0, 101.0, 200.0)
        assert [type(event) for event in events] == [Notice]
        assert reason(state, 1e6) is None

    def test_two_polls_far_apart_are_not_enough(self) -> None:
        assert self.quiet(told(FRESH, START), 200.0, 400.0)[1] == []

    def test_a_slow_heartbeat_has_a_longer_window(self) -> None:
        state = told(FRESH, START, {"heartbeat": {"seq": 1, "interval_s": 60.0}})
        assert self.quiet(state, 100.0, 120.0, 150.0, 180.0)[1] == []
        assert len(self.quiet(state, 100.0, 120.0, 150.0, 200.0)[1]) == 1

    def test_the_beat_that_comes_back_is_told_as_well(self) -> None:
        state, _ = self.quiet(told(FRESH, START), 20.0, 60.0, 101.0)
        stirred = hear(state, {"heartbeat": {"seq": 9}}, 120.0)
        assert [type(event) for event in stirred.events] == [Notice]
        assert not stirred.state.stalled

    def test_a_run_that_waits_can_not_stall(self) -> None:
        assert self.quiet(FRESH, 100.0, 200.0, 300.0, 400.0)[1] == []
