"""What an outcome says of a run, from the records that reached the dispatcher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_alchemy.outcome import Reason
from pytest_alchemy.slurm.receipts import outcome_of
from pytest_alchemy.slurm.squeue import JobId
from pytest_alchemy.slurm.watch import Conclusion, RunState
from pytest_alchemy.transport import LocalTransport

RESULT: dict[str, Any] = {
    "steps": 3,
    "total_steps": 3,
    "evaluation": None,
    "metrics": {},
    "duration_s": 20.5,
    "error": None,
}


@pytest.mark.parametrize(
    ("records", "seconds"),
    [
        ({"exit": {"duration_s": 21.0, "time": 99.0}, "result": RESULT, "start": {"time": 1.0}}, 21.0),
        ({"result": RESULT, "start": {"time": 1.0}, "beat": {"time": 1.002}}, 20.5),
        ({"start": {"time": 1.0}, "beat": {"time": 16.0}}, 15.0),
        ({}, 0.0),
    ],
    ids=[
        "the supervisor's",
        "the trainer's, its supervisor killed",
        "by the last heartbeat",
        "nothing known",
    ],
)
def test_a_duration_is_the_best_that_was_measured(
    tmp_path: Path, records: dict[str, Any], seconds: float
) -> None:
    state = RunState("run-1", claim=1, key="al-1", job=JobId("12"), index=0, submitted=0.0, **records)
    told = Conclusion(Reason.COMPLETED, "told")
    outcome = outcome_of(LocalTransport(tmp_path), str(tmp_path), state, told, now=1.0)
    assert outcome.duration_s == seconds
