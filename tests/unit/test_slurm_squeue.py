"""squeue: one question for all jobs, read without guessing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_alchemy.slurm.squeue import Queue, list_jobs, read_queue
from pytest_alchemy.slurm.states import JobState
from pytest_alchemy.transport import Completed
from tests.support.recorded import VERSIONS, recorded

pytestmark = pytest.mark.parametrize("version", VERSIONS)


def answer(version: str, name: str) -> Queue:
    queue = read_queue(recorded(version, name))
    assert queue is not None
    return queue


def states(queue: Queue, name: str, wanted: int) -> list[JobState | None]:
    job = queue.find(name)
    assert job is not None
    sightings = queue.sight(name, job, range(wanted))
    return [s.row.word.state if s.row else None for _, s in sorted(sightings.items())]


def test_all_tasks_of_a_new_array_wait(version: str) -> None:
    assert states(answer(version, "squeue-just-submitted"), "al-r-1", 6) == [JobState.PENDING] * 6


@pytest.mark.parametrize("form", ["squeue-partly-running", "squeue-folded"])
def test_some_tasks_run_and_the_rest_waits_for_the_limit(version: str, form: str) -> None:
    queue = answer(version, form)
    assert states(queue, "al-r-1", 6) == [JobState.RUNNING] * 2 + [JobState.PENDING] * 4
    job = queue.find("al-r-1")
    assert job is not None
    waiting = queue.sight("al-r-1", job, [5])[5].row
    assert waiting is not None
    assert (waiting.why, waiting.host) == ("JobArrayTaskLimit", "")


def test_waiting_tasks_that_were_cancelled_are_simply_not_listed(version: str) -> None:
    queue = answer(version, "squeue-two-waiting-cancelled")
    running, waiting = JobState.RUNNING, JobState.PENDING
    assert states(queue, "al-r-1", 6) == [running, running, waiting, None, None, waiting]
    job = queue.find("al-r-1")
    assert job is not None
    assert queue.sight("al-r-1", job, [3])[3].siblings


def test_the_rest_of_an_array_that_was_cancelled_stands_for_its_waiting_tasks(version: str) -> None:
    queue = answer(version, "squeue-all-waiting-cancelled")
    assert states(queue, "al-r-1", 6) == [JobState.RUNNING] * 2 + [JobState.CANCELLED] * 4
    assert next(row for row in queue.rows if row.word.state is JobState.CANCELLED).tasks == ()


def test_several_submissions_in_one_answer(version: str) -> None:
    queue = answer(version, "squeue-all-ended")
    assert states(queue, "al-r-1", 6) == [JobState.CANCELLED] * 6
    assert states(queue, "al-r-2", 2) == [JobState.FAILED] * 2


def test_nothing_of_that_name_is_an_answer(version: str) -> None:
    assert answer(version, "squeue-nothing-of-that-name").rows == ()


def test_a_failure_is_no_answer(version: str) -> None:
    assert read_queue(recorded(version, "squeue-no-controller")) is None


def test_a_command_that_took_too_long_is_no_answer(version: str) -> None:
    partial = recorded(version, "squeue-partly-running").stdout
    assert read_queue(Completed(None, partial, "")) is None


def test_a_row_of_another_name_is_a_reused_id(version: str) -> None:
    queue = answer(version, "squeue-partly-running")
    job = queue.find("al-r-1")
    assert job is not None
    assert queue.sight("al-other", job, [0])[0].row is None


def test_the_newest_job_of_a_name_is_found_by_number(version: str) -> None:
    line = "{}\x1f0\x1fRUNNING\x1fNone\x1fn1\x1fkey\n"
    queue = read_queue(Completed(0, line.format(9) + line.format(10), ""))
    assert queue is not None
    assert queue.find("key") == "10"


@pytest.mark.parametrize(
    ("text", "tasks"),
    [
        ("7", [7]),
        ("[5-9%2]", [5, 6, 7, 8, 9]),
        ("1,3-4", [1, 3, 4]),
        ("0-8:4", [0, 4, 8]),
        ("N/A", []),
        ("1-3,7,...", [1, 2, 3, 7]),
    ],
)
def test_array_expressions(version: str, text: str, tasks: list[int]) -> None:
    queue = read_queue(Completed(0, f"12\x1f{text}\x1fPENDING\x1fPriority\x1fn/a\x1fkey\n", ""))
    assert queue is not None
    assert [index for part in queue.rows[0].tasks for index in part] == tasks


def test_headings_and_cut_lines_are_passed_over(version: str) -> None:
    text = "CLUSTER: c1\n12\x1f0\x1fRUNNING\x1fNone\x1fn1\x1fkey\n12\x1f1\x1fRUNN"
    queue = read_queue(Completed(0, text, ""))
    assert queue is not None
    assert len(queue.rows) == 1


@given(text=st.text(alphabet="0123456789\x1f\n%-,[]N/AXPENDING ", max_size=200))
def test_no_text_breaks_the_reader(version: str, text: str) -> None:
    assert read_queue(Completed(0, text, "")) is not None


def test_one_command_asks_for_everything(version: str) -> None:
    command = list_jobs({"b", "a"}, {"c2", "c1"})
    assert command[0] == "squeue"
    assert {"--me", "--name=a,b", "--clusters=c1,c2", "--states=all", "--array"} <= set(command)
