"""Which earlier attempts an attempt goes on with: after a fresh start, after a requeue, after completion."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import alchemy as al
import alchemy_agent as agent
from alchemy.errors import CheckpointUnusable
from alchemy.execution import execute
from alchemy.loop.resuming import FRESH, begin_attempt
from alchemy.recording.recorder import FileRecorder
from alchemy.result import Result
from tests.support.agentlab import make_attempt, record
from tests.support.sdklab import make_spec


class Died(BaseException):
    """What a process can't catch: it ends without a result."""


class Training:
    """Ten steps, a checkpoint after every second; it dies, once, at the step `dies_at`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.dies_at: int | None = None
        self.seen: list[int] = []
        self.before: Callable[[], None] = lambda: None
        """Called before the loop begins."""

    def train(self, ctx: al.Context) -> None:
        ctx.total = 0
        self.before()
        for step in ctx.steps():
            self.seen.append(step)
            if step == self.dies_at:
                self.dies_at = None
                raise Died
            ctx.total += step
            ctx.log_eval(total=ctx.total)

    def attempt(self, k: int, restarts: int = 0, *, dies_at: int | None = None) -> list[int]:
        """Execute one attempt; return the steps that it began."""
        self.dies_at, self.seen = dies_at, []
        with suppress(Died):
            self.result(k, restarts)
        return self.seen

    def result(self, k: int, restarts: int = 0) -> Result:
        def train(ctx: al.Context) -> None:
            self.train(ctx)

        task = al.experiment("demo").task(
            train, total_steps=10, name="train", checkpoint_every=2, async_save=False
        )
        spec = make_spec(Path(__file__), total_steps=10)
        claimed = make_attempt(self.root, k=k, restarts=restarts)
        return execute(task, spec, FileRecorder(claimed, agent.begin(claimed)))

    def resumed(self, name: str) -> dict[str, Any]:
        """Return the `resume.json` of an attempt."""
        return record(agent.RunDir(self.root / "jobs/run-1").attempt(name).resume)

    def checkpoints(self, name: str) -> list[Path]:
        return sorted((self.root / "jobs/run-1/checkpoints" / name).iterdir())


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (agent.TASK_ID, agent.JOB_DIR, agent.ATTEMPT, "ALCHEMY_PARAMS", FRESH):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What makes attempts from now on start over, as a job does whose environment says so."""
    return lambda: monkeypatch.setenv(FRESH, "1")


def die() -> None:
    raise Died


def test_a_fresh_job_that_was_requeued_before_its_loop_began_is_fresh_still(
    training: Training, fresh: Callable[[], None]
) -> None:
    assert training.attempt(1, dies_at=7) == [*range(8)]
    fresh()
    training.before = die
    assert training.attempt(2) == []
    training.before = lambda: None
    assert training.attempt(2, 1, dies_at=1) == [0, 1]
    assert (training.resumed("2-r1")["fresh"], training.resumed("2-r1")["from"]) == (True, None)
    assert training.attempt(2, 2) == [*range(10)]


def test_what_follows_such_a_restart_continues_it_and_not_what_came_before(
    training: Training, fresh: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    training.attempt(1, dies_at=7)
    fresh()
    training.before = die
    training.attempt(2)
    training.before = lambda: None
    training.attempt(2, 1, dies_at=4)
    monkeypatch.delenv(FRESH)
    assert training.attempt(3) == [*range(4, 10)]
    assert training.resumed("3-r0")["from"]["attempt"] == "2-r1"


def test_a_fresh_job_that_had_committed_goes_on_when_it_is_requeued(
    training: Training, fresh: Callable[[], None]
) -> None:
    training.attempt(1, dies_at=9)
    fresh()
    training.attempt(2, dies_at=4)
    assert training.attempt(2, 1, dies_at=7) == [*range(4, 8)]
    assert training.resumed("2-r1")["fresh"] is False
    assert training.attempt(2, 2) == [*range(6, 10)]


def test_a_restart_that_is_to_be_fresh_leaves_what_its_own_job_took_over_from_an_older_one(
    training: Training, fresh: Callable[[], None]
) -> None:
    training.attempt(1, dies_at=7)
    assert training.attempt(2, dies_at=6) == [6]  # it resumed, and committed nothing of its own
    fresh()
    assert training.attempt(2, 1) == [*range(10)]
    assert training.resumed("2-r1")["fresh"] is True


def test_a_fresh_job_whose_progress_was_lost_does_not_silently_start_over(
    training: Training, fresh: Callable[[], None]
) -> None:
    training.attempt(1, dies_at=7)
    fresh()
    training.attempt(2, dies_at=4)
    for path in training.checkpoints("2-r0"):
        (path / "loop.json").unlink()
    with pytest.raises(CheckpointUnusable, match="2-r0"):
        begin_attempt(make_attempt(training.root, k=2, restarts=1))


@pytest.mark.parametrize("is_fresh", [False, True])
def test_a_job_that_is_requeued_after_it_completed_takes_what_it_had_for_the_result(
    training: Training, fresh: Callable[[], None], is_fresh: bool
) -> None:
    training.attempt(1, dies_at=5)
    if is_fresh:
        fresh()
    assert training.result(2).error is None
    for restarts in (1, 2):
        training.seen = []
        result = training.result(2, restarts)
        assert (training.seen, result.error, result.steps) == ([], None, 10)
        assert result.evaluation is not None
        assert (result.evaluation.step, result.evaluation.metrics) == (9, {"total": 45.0})
        assert training.resumed(f"2-r{restarts}")["from"]["attempt"] == "2-r0"


def test_a_new_job_after_one_that_completed_starts_at_step_0(training: Training) -> None:
    assert training.result(1).error is None
    assert training.result(1, 1).error is None
    assert training.attempt(2, dies_at=3) == [0, 1, 2, 3]
    assert training.attempt(2, 1) == [*range(2, 10)]


def test_a_job_that_completed_without_its_last_checkpoint_repeats_only_what_that_had(
    training: Training,
) -> None:
    assert training.result(1).error is None
    final = training.checkpoints("1-r0")[-1]
    assert record(final / "committed.json")["step"] == 9
    for path in [*final.iterdir()]:
        path.unlink()
    final.rmdir()
    assert training.attempt(1, 1) == [8, 9]
