"""A result says the same after a trip through its file, and files of before are still read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import alchemy_agent as agent
from alchemy.result import ErrorInfo, Result
from tests.support.agentlab import record

GOLDEN = Path(__file__).parents[1] / "data" / "wire" / "v1" / "result.json"
COMPLETED = Result(5, 5, None, {"loss": 0.5}, 1.0)
FULL = replace(
    COMPLETED,
    checkpoint={"attempt": "1-r0", "step": 4, "manifest": "f" * 64, "name": "step-00000004"},
    resumed_from=1,
    inexact=("threads 8 -> 4",),
    changes=({"id": "0001-ab", "step": 2, "values": {"lr": 0.5}},),
)


@pytest.mark.parametrize("result", [COMPLETED, FULL, replace(FULL, stopped="SIGTERM")])
def test_a_result_survives_its_file(result: Result) -> None:
    assert Result.from_record(agent.loads(agent.dumps(result.to_record()))) == result


def test_the_golden_record_has_the_fields_that_are_written() -> None:
    golden = record(GOLDEN)
    result = Result.from_record(golden)
    assert list(golden) == ["v", *result.to_record()]
    assert {name: golden[name] for name in ("checkpoint", "resumed_from", "inexact", "changes")} == {
        "checkpoint": result.checkpoint,
        "resumed_from": result.resumed_from,
        "inexact": list(result.inexact),
        "changes": list(result.changes),
    }


def test_a_record_without_the_later_fields_is_read() -> None:
    written: dict[str, Any] = FULL.to_record()
    old = dict(list(written.items())[: list(written).index("error") + 1])
    assert Result.from_record(old) == COMPLETED


def test_the_status_tells_a_stop_from_an_end_and_a_failure() -> None:
    stopped = replace(COMPLETED, stopped="SIGTERM")
    failed = replace(stopped, error=ErrorInfo("builtins.ValueError", "no", "Traceback"))
    assert [each.status for each in (COMPLETED, stopped, failed)] == ["completed", "stopped", "failed"]
