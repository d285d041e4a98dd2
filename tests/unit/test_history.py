"""A reader sees one history of a run: each step once, from the attempt that counts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

import alchemy_agent as agent
from alchemy.checkpoint.records import CheckpointRef
from alchemy.recording.history import read_evals, read_metrics, segments
from tests.support.agentlab import make_attempt


def attempt_with(
    root: Path, k: int, steps: Iterable[int], after: tuple[str, int] | None = None, restarts: int = 0
) -> agent.AttemptDir:
    """Make an attempt that logged these steps, and went on from an attempt's checkpoint after a step."""
    attempt = make_attempt(root, k=k, restarts=restarts)
    rows = [{"step": step, "t": 0.0, "m": {"by": k}} for step in steps]
    Path(attempt.metrics).write_text("".join(json.dumps(row) + "\n" for row in rows))
    ref = None if after is None else CheckpointRef(*after, "0" * 64, f"step-{after[1]:08d}").to_record()
    agent.write_record(attempt.resume, {"from": ref, "fresh": False})
    return attempt


def seen(attempt: agent.AttemptDir) -> list[tuple[int, int]]:
    """Return step and attempt of each row that a reader sees."""
    return [(row["step"], row["m"]["by"]) for row in read_metrics(attempt.run_dir)]


def test_a_run_that_was_never_started_has_no_history(tmp_path: Path) -> None:
    run_dir = agent.RunDir(tmp_path / "jobs" / "run-1")
    assert list(read_metrics(run_dir)) == list(read_evals(run_dir)) == []


def test_the_rows_of_a_single_attempt_are_all_seen(tmp_path: Path) -> None:
    assert seen(attempt_with(tmp_path, 1, range(3))) == [(0, 1), (1, 1), (2, 1)]


def test_an_attempt_that_has_not_logged_yet_has_no_rows(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    assert list(read_metrics(attempt.run_dir)) == []
    assert segments(attempt)[0][1] is None


def test_steps_that_a_later_attempt_repeats_are_its_own(tmp_path: Path) -> None:
    attempt_with(tmp_path, 1, range(6))
    latest = attempt_with(tmp_path, 2, range(4, 8), after=("1-r0", 3))
    assert seen(latest) == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (7, 2)]


def test_each_step_is_seen_once_through_many_attempts(tmp_path: Path) -> None:
    attempt_with(tmp_path, 1, range(10))
    attempt_with(tmp_path, 2, range(4, 9), after=("1-r0", 3))
    attempt_with(tmp_path, 3, range(7, 12), after=("2-r0", 6))
    latest = attempt_with(tmp_path, 4, range(9, 13), after=("3-r0", 8))
    assert [step for step, _ in seen(latest)] == list(range(13))


def test_an_attempt_that_committed_nothing_is_void(tmp_path: Path) -> None:
    attempt_with(tmp_path, 1, range(6))
    attempt_with(tmp_path, 2, range(4, 9), after=("1-r0", 3))
    latest = attempt_with(tmp_path, 3, [4], after=("1-r0", 3))
    assert seen(latest) == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 3)]


def test_an_attempt_that_fell_back_beyond_its_predecessor_hides_that_ones_rows(tmp_path: Path) -> None:
    attempt_with(tmp_path, 1, range(6))
    attempt_with(tmp_path, 2, range(4, 9), after=("1-r0", 3))
    latest = attempt_with(tmp_path, 3, [2, 3], after=("1-r0", 1))
    assert seen(latest) == [(0, 1), (1, 1), (2, 3), (3, 3)]


def test_an_attempt_without_steps_of_its_own_passes_on_what_it_continued(tmp_path: Path) -> None:
    attempt_with(tmp_path, 1, range(3))
    attempt_with(tmp_path, 2, [], after=("1-r0", 2))
    assert [step for step, _ in seen(attempt_with(tmp_path, 3, [], after=("2-r0", 2)))] == [0, 1, 2]


def test_an_attempt_that_has_not_reached_its_loop_hides_nothing(tmp_path: Path) -> None:
    attempt_with(tmp_path, 1, range(2))
    attempt_with(tmp_path, 2, [2], after=("1-r0", 1))
    latest = make_attempt(tmp_path, k=3)  # is starting, or died at an import; no resume.json
    assert [step for step, _ in seen(latest)] == [0, 1, 2]


def test_an_attempt_that_starts_over_hides_everything_before(tmp_path: Path) -> None:
    attempt_with(tmp_path, 1, range(6))
    assert seen(attempt_with(tmp_path, 2, range(2))) == [(0, 2), (1, 2)]


def test_a_restart_by_the_scheduler_is_an_attempt_like_any_other(tmp_path: Path) -> None:
    attempt_with(tmp_path, 1, range(6))
    latest = attempt_with(tmp_path, 1, [4], after=("1-r0", 3), restarts=1)
    assert [step for step, _ in seen(latest)] == [0, 1, 2, 3, 4]


def test_attempts_are_ordered_by_number_not_by_name(tmp_path: Path) -> None:
    attempt_with(tmp_path, 9, range(2))
    assert seen(attempt_with(tmp_path, 10, [1], after=("9-r0", 0))) == [(0, 9), (1, 10)]


def test_two_evaluations_after_one_step_are_both_seen_in_order(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    rows = [{"step": 1, "t": 0.0, "m": {"acc": acc}} for acc in (0.1, 0.2)]
    Path(attempt.evals).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["m"]["acc"] for row in read_evals(attempt.run_dir)] == [0.1, 0.2]


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 1, "t": 0.0, "m": {"by"',
        b"",
        b"\x00\x00\x00",
        b"[]",
        b"null",
        b'{"t": 0.0}',
        b'{"step": "1"}',
    ],
    ids=["torn", "empty", "zeroed", "list", "null", "without-step", "step-of-another-type"],
)
def test_lines_that_are_no_rows_are_passed_over(line: bytes, tmp_path: Path) -> None:
    attempt = attempt_with(tmp_path, 1, range(2))
    with Path(attempt.metrics).open("ab") as file:
        file.write(line + b"\n" + b'{"step": 2, "t": 0.0, "m": {"by": 1}}\n')
    assert [step for step, _ in seen(attempt)] == [0, 1, 2]


def test_numbers_that_json_has_not_are_read_as_the_wire_spells_them(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    Path(attempt.metrics).write_text('{"step": 0, "t": 0.0, "m": {"loss": "NaN"}}\n')
    assert [row["m"] for row in read_metrics(attempt.run_dir)] == [{"loss": "NaN"}]


def test_an_attempt_whose_log_is_lost_leaves_a_gap_and_no_error(tmp_path: Path) -> None:
    Path(attempt_with(tmp_path, 1, range(4)).metrics).unlink()
    latest = attempt_with(tmp_path, 2, [2], after=("1-r0", 1))
    assert seen(latest) == [(2, 2)]


@pytest.mark.parametrize("origin", [{"attempt": "1-r0"}, "1-r0", 7, {"attempt": "../1-r0", "step": 1}])
def test_an_origin_that_cant_be_understood_ends_the_history_and_is_no_error(
    origin: object, tmp_path: Path
) -> None:
    attempt_with(tmp_path, 1, range(2))
    latest = attempt_with(tmp_path, 2, [2, 3])
    agent.write_record(latest.resume, {"from": origin})
    assert seen(latest) == [(2, 2), (3, 2)]


def test_attempts_that_name_each_other_end(tmp_path: Path) -> None:
    attempt_with(tmp_path, 1, [0], after=("2-r0", 5))
    assert [step for step, _ in seen(attempt_with(tmp_path, 2, [1], after=("1-r0", 0)))] == [0, 1]


def test_an_attempt_that_names_itself_ends(tmp_path: Path) -> None:
    assert seen(attempt_with(tmp_path, 1, [0], after=("1-r0", 5))) == [(0, 1)]
