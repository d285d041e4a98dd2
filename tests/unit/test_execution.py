"""How a task ended is recorded whatever it raised, and a plain call leaves no trace."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import alchemy as al
import alchemy_agent as agent
from alchemy.context import Context
from alchemy.errors import ConfigurationError, InfrastructureError
from alchemy.execution import execute, reject
from alchemy.experiment import Task
from alchemy.failure import describe
from alchemy.recording.recorder import FileRecorder, NullRecorder
from alchemy.result import Evaluation, Result
from tests.support.agentlab import make_attempt, record
from tests.support.sdklab import make_spec, read_rows

HERE = Path(__file__)


@pytest.fixture(autouse=True)
def _no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (agent.TASK_ID, agent.JOB_DIR, agent.ATTEMPT, "ALCHEMY_PARAMS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def attempt(tmp_path: Path) -> agent.AttemptDir:
    return make_attempt(tmp_path)


def task_of(function: Callable[[Context], Any], **options: Any) -> Task:
    experiment = al.experiment("demo", matrix={"width": [4, 8], "seed": [7, 8]})
    return experiment.task(function, **{"total_steps": 3, "name": "train", **options})


def run(function: Callable[[Context], Any], recorder: Any = None, **changes: Any) -> Result:
    return execute(task_of(function), make_spec(HERE, **changes), recorder or NullRecorder())


def test_a_task_that_returns_has_completed(attempt: agent.AttemptDir) -> None:
    def train(ctx: Context) -> None:
        for step in ctx.steps():
            ctx.log(loss=1 / (step + 1))
            if ctx.should_eval():
                ctx.log_eval(acc=step * ctx.param("width"))

    ticks = iter([100.0, 102.5])
    spec = make_spec(HERE, {"width": 4}, eval_every=2)
    result = execute(task_of(train), spec, FileRecorder(attempt, "inc"), clock=lambda: next(ticks))
    assert result == Result(3, 3, Evaluation(2, {"acc": 8.0}), {"loss": 1 / 3}, 2.5)
    assert Result.from_record(record(attempt.result)) == result
    assert len(read_rows(attempt.evals)) == 2


def stop_early(ctx: Context) -> None:
    for step in ctx.steps():
        if step == 1:
            break


def return_early(ctx: Context) -> None:
    for _ in ctx.steps():
        return


def test_leaving_the_loop_on_purpose_completes_and_counts_the_step() -> None:
    assert run(stop_early).steps == 2
    assert run(return_early).steps == 1
    assert run(lambda ctx: list(ctx.steps())).steps == 3
    assert run(lambda ctx: ctx.step).steps == 0


@pytest.mark.parametrize("end", [ValueError("bad luck"), SystemExit(0), SystemExit(3), GeneratorExit()])
def test_what_leaves_the_task_is_recorded_and_goes_on(attempt: agent.AttemptDir, end: BaseException) -> None:
    def train(ctx: Context) -> None:
        for step in ctx.steps():
            ctx.log(loss=step)
            if step == 1:
                raise end

    with pytest.raises(type(end)) as caught:
        run(train, FileRecorder(attempt, "inc"))
    assert caught.value is end
    result = Result.from_record(record(attempt.result))
    assert (result.steps, result.metrics) == (1, {"loss": 1.0})
    assert result.error is not None
    assert result.error.type == f"builtins.{type(end).__name__}"
    assert len(read_rows(attempt.metrics)) == 2


def leave(_ctx: Context) -> None:
    sys.exit(0)


def test_sys_exit_is_explained(attempt: agent.AttemptDir) -> None:
    with pytest.raises(SystemExit):
        run(leave, FileRecorder(attempt, "inc"))
    error = record(attempt.result)["error"]
    assert "called sys.exit(0)" in error["message"]


def test_ctrl_c_leaves_the_rows_and_no_result(attempt: agent.AttemptDir) -> None:
    def train(ctx: Context) -> None:
        for step in ctx.steps():
            ctx.log(loss=step)
            if step == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(train, FileRecorder(attempt, "inc"))
    assert not Path(attempt.result).exists()
    assert len(read_rows(attempt.metrics)) == 2
    assert record(attempt.run_dir.progress)["step"] == 1


def test_a_result_that_cant_be_written_is_not_lost_silently(attempt: agent.AttemptDir) -> None:
    Path(attempt.result).mkdir()
    with pytest.raises(InfrastructureError):
        run(stop_early, FileRecorder(attempt, "inc"))


def test_a_file_that_fails_before_its_task_has_a_result_too(attempt: agent.AttemptDir) -> None:
    reject(make_spec(HERE), FileRecorder(attempt, "inc"), ImportError("no torch here"))
    result = Result.from_record(record(attempt.result))
    assert result.error is not None
    assert (result.steps, result.error.message) == (0, "no torch here")


def test_every_execution_begins_with_the_seed_unless_the_task_opts_out() -> None:
    drawn: list[float] = []

    def train(ctx: Context) -> None:
        drawn.append(random.random())  # noqa: S311
        list(ctx.steps())
        drawn.append(random.random())  # noqa: S311

    for _ in range(2):
        run(train, seed=11)
    assert drawn[:2] == drawn[2:]
    assert drawn[0] != drawn[1]
    run(train, seed=11, seed_rng=False)
    assert drawn[4] != drawn[0]


def fail_inside() -> None:
    try:
        raise KeyError("first")  # noqa: TRY301
    except KeyError as error:
        raise ValueError("second") from error


def test_a_traceback_shows_the_users_frames_and_none_of_ours(attempt: agent.AttemptDir) -> None:
    with pytest.raises(ConfigurationError):
        run(lambda ctx: ctx.log(loss="x"), FileRecorder(attempt, "inc"))
    text = record(attempt.result)["error"]["traceback"]
    assert "test_execution.py" in text
    assert 'execution.py", line' not in text.replace("test_execution.py", "")
    assert "context.py" not in text
    assert text.rstrip().splitlines()[-1].startswith("alchemy.errors.ConfigurationError: metric 'loss'")


def test_a_chain_of_exceptions_stays_a_chain() -> None:
    with pytest.raises(ValueError, match="second") as caught:
        fail_inside()
    text = describe(caught.value).traceback
    assert text.index("KeyError: 'first'") < text.index("direct cause") < text.index("ValueError: second")


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def test_any_exception_can_be_described() -> None:
    assert "__str__" in describe(Unspeakable()).message
    assert describe(OSError("caf\udce9")).message == "caf\\udce9"
    long = describe(ValueError("x" * 1_000_000))
    assert len(long.message) + len(long.traceback) < 200_000


def test_called_plainly_a_task_runs_its_first_case_and_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def train(ctx: Context) -> Any:
        for step in ctx.steps():
            ctx.log(loss=step)
        ctx.log_eval(acc=1)
        return ctx.params, al.param("width"), random.random()  # noqa: S311

    task = task_of(train)
    params, width, drawn = task()
    assert (params, width) == ({"width": 4, "seed": 7}, 4)
    assert drawn == random.Random(7).random()  # noqa: S311
    assert list(tmp_path.iterdir()) == []


def test_called_in_a_job_a_task_records_into_the_attempt(
    attempt: agent.AttemptDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    incarnation = agent.begin(attempt)
    for name, value in agent.environment(attempt).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ALCHEMY_PARAMS", '{"width": 16}')

    def helper(ctx: Context) -> int:
        ctx.log(loss=-1)
        return ctx.total_steps

    def train(ctx: Context) -> Any:
        for _ in ctx.steps():
            ctx.log(loss=ctx.param("width"))
        return task_of(helper)()

    assert task_of(train)() == 3
    assert [row["m"] for row in read_rows(attempt.metrics)] == [{"loss": 16.0}] * 3
    assert record(attempt.result)["status"] == "completed"
    assert record(attempt.run_dir.progress)["incarnation"] == incarnation


def test_a_job_without_an_attempt_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(agent.TASK_ID, "run-1")
    with pytest.raises(ConfigurationError, match=r"ALCHEMY_JOB_DIR.*alchemy_agent\.py --"):
        task_of(stop_early)()


def test_being_told_to_leave_twice_loses_no_result(attempt: agent.AttemptDir) -> None:
    """Slurm signals every process of a job, and the supervisor passes its own signal on."""

    def train(ctx: Context) -> None:
        ctx.log_eval(acc=1.0)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
        signal.raise_signal(signal.SIGTERM)

    class Twice(FileRecorder):
        def last_metrics(self) -> dict[str, float]:
            signal.raise_signal(signal.SIGTERM)  # arrives while the first one is being recorded
            return super().last_metrics()

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit):
            run(train, Twice(attempt, "i"))
    finally:
        signal.signal(signal.SIGTERM, before)
    result = record(attempt.result)
    assert result["error"]["type"] == "builtins.SystemExit"
    assert result["evaluation"]["metrics"] == {"acc": 1.0}
