"""The board: what is shown of the runs of a session while it waits."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_alchemy.board import Board, plain_line, render
from pytest_alchemy.events import Event, Finished, Notice, Progressed, Queued, Started
from pytest_alchemy.figures import columns
from pytest_alchemy.outcome import Outcome, Reason

NAN = float("nan")


def finished(run: str, reason: Reason = Reason.COMPLETED) -> Finished:
    return Finished(run, Outcome(reason, run, "1-r0", Path("/runs") / run))


def progressed(
    run: str, step: int = 120, *, total: int | None = 1000, eta_s: float | None = 250.0
) -> Progressed:
    return Progressed(run, step, total, 3.52, eta_s, {"loss": 0.1234, "acc": 0.9})


def board_after(*events: tuple[float, Event], labels: dict[str, str] | None = None) -> Board:
    board = Board(started=0.0)
    board.expect(labels or {})
    for now, event in events:
        board.apply(event, now)
    return board


def test_runs_are_counted_by_state() -> None:
    board = board_after(
        (1, Queued("a", "7_0", "Resources")),
        (1, Queued("b", "7_1", "Resources")),
        (2, Started("a", "1-r0", "node1")),
        (3, Queued("c", "7_2", "Priority")),
        (3, Queued("d", "7_3")),
        (4, finished("d", Reason.TIMEOUT)),
        (5, finished("e")),
        labels={"f": "not submitted yet"},
    )
    (counts, *_) = render(board, 65, 120, 8)
    assert counts == ("alchemy: 2 of 6 finished (1 timeout), 1 running, 3 queued (Resources), 1m05s so far")


def test_a_running_case_shows_how_far_it_is() -> None:
    board = board_after(
        (1, Started("a", "1-r0", "node1")), (10, progressed("a")), labels={"a": "train[ctx_len=16]"}
    )
    assert render(board, 20, 100, 8)[1] == (
        "  train[ctx_len=16]  120/1000  [#---------] 12%  3.52/s  4m00s left  loss=0.123 acc=0.9"
    )
    assert render(board, 20, 79, 8)[1] == (
        "  train[ctx_len=16]  120/1000  12%  3.52/s  4m00s left  loss=0.123 acc=0.9"
    )


def test_without_a_total_there_is_no_share() -> None:
    board = board_after((10, progressed("a", 12_345, total=None, eta_s=None)))
    assert render(board, 10, 100, 8)[1] == "  a  12.3k steps  3.52/s  loss=0.123 acc=0.9"


def test_a_case_that_began_but_reported_nothing_says_where() -> None:
    board = board_after((10, Started("a", "1-r0", "node1")))
    assert render(board, 22, 100, 8)[1] == "  a  started 12s ago on node1"


def test_a_case_without_news_says_for_how_long() -> None:
    board = board_after((0, Started("a", "1-r0", "node1")), (10, progressed("a")))
    assert "quiet for 3m20s" in render(board, 210, 120, 8)[1]
    board.apply(progressed("a", 121), 211)
    assert "quiet" not in render(board, 212, 120, 8)[1]


def test_the_longest_running_cases_come_first_and_the_rest_is_a_number() -> None:
    board = board_after(*((at, Started(run, "1-r0", "n")) for at, run in enumerate("abcdef")))
    lines = render(board, 10, 80, 4)
    assert [line.split()[0] for line in lines] == ["alchemy:", "a", "b", "and"]
    assert lines[-1] == "  and 4 more running"
    assert [line.split()[0] for line in render(board, 10, 80, 7)][1:] == list("abcdef")


def test_cells_stand_below_each_other() -> None:
    board = board_after(
        (1, progressed("a", 5)), (1, progressed("b", 900)), labels={"a": "日本[x=1]", "b": "a longer name"}
    )
    _, first, second = render(board, 1, 120, 8)
    assert columns(first.partition("3.52/s")[0]) == columns(second.partition("3.52/s")[0])


def test_a_preempted_case_queues_again_and_starts_from_nothing() -> None:
    board = board_after(
        (0, Started("a", "1-r0", "n")), (1, progressed("a")), (2, Queued("a", "8", "Priority"))
    )
    assert (len(board.running), board.waiting) == (0, 1)
    board.apply(Started("a", "2-r0", "m"), 50)
    assert render(board, 51, 80, 8)[1] == "  a  started 1s ago on m"


def test_hearing_of_the_same_attempt_again_changes_nothing() -> None:
    board = board_after((0, Started("a", "1-r0", "n")), (1, progressed("a")))
    before = render(board, 5, 80, 8)
    board.apply(Started("a", "1-r0", "n"), 5)
    assert render(board, 5, 80, 8) == before


def test_a_notice_is_not_a_run() -> None:
    assert len(render(board_after((1, Notice("squeue doesn't answer"))), 1, 80, 8)) == 1


def test_a_plain_line_has_the_counts_and_the_longest_running_case() -> None:
    board = board_after((1, progressed("a")), (2, progressed("b")), (3, finished("c")))
    assert plain_line(board, 180) == (
        "alchemy: 1 of 3 finished, 2 running, 0 queued, 3m00s so far; "
        "longest-running: a 120/1000 12% 3.52/s quiet for 2m59s loss=0.123 acc=0.9"
    )


events = st.lists(
    st.one_of(
        st.builds(Queued, st.sampled_from("abc"), st.just("1"), st.text(max_size=3)),
        st.builds(Started, st.sampled_from("abc"), st.sampled_from(["1-r0", "2-r0"]), st.text(max_size=3)),
        st.builds(
            Progressed,
            st.sampled_from("abc"),
            st.integers(0, 10**9),
            st.none() | st.integers(0, 10**9),
            st.none() | st.floats(),
            st.none() | st.floats(),
            st.dictionaries(st.text(max_size=9), st.floats(), max_size=3),
        ),
        st.builds(finished, st.sampled_from("abc"), st.sampled_from(Reason)),
    )
)


@given(events, st.integers(0, 200), st.integers(1, 10))
def test_whatever_happens_the_block_fits_and_every_run_is_counted_once(
    happened: list[Event], width: int, rows: int
) -> None:
    board = board_after(*enumerate(happened))
    lines = render(board, len(happened), width, rows)
    assert 1 <= len(lines) <= rows
    assert all(columns(line) <= width and (line.isprintable() or not line) for line in lines)
    assert len(board.queued) == board.waiting
    assert not set(board.running) & (set(board.queued) | set(board.finished))
    assert plain_line(board, len(happened)).isprintable()


@pytest.mark.parametrize("step", [-1, 0, 1000, 5000])
def test_a_step_beyond_the_total_is_all_of_it_and_one_before_it_nothing(step: int) -> None:
    line = render(board_after((0, progressed("a", step))), 0, 120, 8)[1]
    assert ("[##########]100%" if step >= 1000 else "[----------]  0%") in line
