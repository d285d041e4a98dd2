"""A resumed run ends as an undisturbed one, bit for bit, and whatever is left out of resuming is noticed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from torch.utils.data import DataLoader

import alchemy as al
import alchemy_agent as agent
from alchemy.context import Context
from alchemy.errors import InfrastructureError
from alchemy.execution import execute
from alchemy.loop import lifecycle, resuming
from alchemy.loop.resuming import Beginning
from alchemy.recording.history import read_evals, read_metrics
from alchemy.recording.recorder import FileRecorder
from alchemy.state import rng
from alchemy.state.values import ManagedValues
from tests.crash.training import BATCHES, PARAMS, STATES, Waves, make_training
from tests.support.agentlab import record
from tests.support.sdklab import make_spec
from tests.support.statehash import digest

HERE = Path(__file__)
TOTAL = 3 * BATCHES
LAST = TOTAL - 1
MIDDLE = BATCHES + 5
"""Within the second epoch."""
EVERY = 4


class Killed(Exception):
    """Ends an attempt, as a signal does, where a test wants it."""


class Watcher:
    """Has a checkpoint made after one step, and ends the attempt before the next."""

    def __init__(self, ends_after: int | None) -> None:
        self.ends_after = ends_after
        self.states: dict[str, Any] = {}

    def begins(self, ctx: Context, step: int) -> None:
        if self.ends_after is not None and step > self.ends_after:
            raise Killed
        if step == self.ends_after:
            ctx.save()

    def logged(self, step: int, kind: str) -> None:
        pass

    def ends(self, states: dict[str, Any]) -> None:
        if self.ends_after is not None:
            raise Killed
        self.states = states


Maker = Callable[[Watcher], Callable[[Context], None]]


class Ending(NamedTuple):
    """All that a completed run has left."""

    states: dict[str, str]
    """A digest of each state by name."""
    rows: list[Any]
    evaluations: list[Any]

    def differences(self, other: Ending) -> set[str]:
        """Name what isn't alike."""
        names = {name for name, value in self.states.items() if value != other.states[name]}
        seen = {"rows": self.rows != other.rows, "evaluations": self.evaluations != other.evaluations}
        return names | {name for name, differs in seen.items() if differs}


def new_run(root: Path) -> agent.RunDir:
    """Make a run whose parameter `noise` changes after the first step."""
    run_dir = agent.RunDir(root / "jobs" / "run-1")
    Path(run_dir.commands).mkdir(parents=True)
    agent.send_command(run_dir, "update_params", {"noise": 0.2})
    return run_dir


def begin(run_dir: agent.RunDir, ends_after: int, make: Maker = make_training) -> None:
    """Run the next attempt until it is killed after a step, which a checkpoint follows."""
    with pytest.raises(Killed):
        play(run_dir, Watcher(ends_after), make)


def complete(run_dir: agent.RunDir) -> Ending:
    """Run the next attempt to the end."""
    watcher = Watcher(None)
    result = play(run_dir, watcher)
    states = {name: digest(state) for name, state in watcher.states.items()}
    assert result.evaluation is None or result.evaluation.step <= LAST
    states["last evaluation"] = digest(result.evaluation and dict(result.evaluation.metrics))
    states["last metrics"] = digest(dict(result.metrics))
    states["steps"] = digest(result.steps)
    rows = [(row["step"], row["m"]) for row in read_metrics(run_dir)]
    return Ending(states, rows, [(row["step"], row["m"]) for row in read_evals(run_dir)])


def play(run_dir: agent.RunDir, watcher: Watcher, make: Maker = make_training) -> Any:
    """Run the next attempt."""
    attempt = agent.claim_attempt(run_dir, len(run_dir.attempt_names()) + 1, 0)
    task = al.experiment("demo", matrix={"seed": [PARAMS["seed"]]}).task(
        make(watcher), total_steps=TOTAL, name="train"
    )
    spec = make_spec(HERE, PARAMS, total_steps=TOTAL, eval_every=EVERY, seed=PARAMS["seed"])
    return execute(task, spec, FileRecorder(attempt, "inc"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Ending:
    """A run that nobody disturbed."""
    ending = complete(new_run(tmp_path_factory.mktemp("undisturbed")))
    assert [step for step, _ in ending.rows] == list(range(TOTAL))
    return ending


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, Path], agent.RunDir]:
    """Makes copies of runs that were killed after a step; each such run is made once."""
    made: dict[int, Path] = {}

    def copy(step: int, root: Path) -> agent.RunDir:
        if step not in made:
            made[step] = tmp_path_factory.mktemp(f"killed-after-{step}")
            begin(new_run(made[step]), step)
        shutil.copytree(made[step], root, dirs_exist_ok=True)
        return agent.RunDir(root / "jobs" / "run-1")

    return copy


Halves = Callable[[int, Path], agent.RunDir]


# --- Nothing left out -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step", [0, 3, BATCHES - 1, BATCHES, MIDDLE, 2 * BATCHES - 1, LAST - 1, LAST], ids="after-{}".format
)
def test_a_run_that_was_killed_after_any_step_ends_as_if_it_had_not_been(
    step: int, halves: Halves, undisturbed: Ending, tmp_path: Path
) -> None:
    run_dir = halves(step, tmp_path)
    assert complete(run_dir).differences(undisturbed) == set()
    assert record(run_dir.attempt("2-r0").resume)["from"]["step"] == step
    assert record(run_dir.attempt("2-r0").resume)["exact"] is True


def test_a_run_that_was_killed_after_every_step_ends_as_if_it_had_not_been(
    undisturbed: Ending, tmp_path: Path
) -> None:
    run_dir = new_run(tmp_path)
    for step in range(TOTAL):
        begin(run_dir, step)
    assert complete(run_dir).differences(undisturbed) == set()
    assert len(run_dir.attempt_names()) == TOTAL + 1


# --- One state left out -----------------------------------------------------------------------------


RESTORING = ("_restore", "_set_right")
"""The methods of `ManagedValues` that restore one value: at its assignment, and when the loop begins."""
Restore = Callable[[ManagedValues, str, Any], None]


def replace_restoring(
    monkeypatch: pytest.MonkeyPatch, replacement: Callable[[Restore, ManagedValues, str, Any], None]
) -> None:
    """Have `replacement` called, with the method it replaces, wherever one value is restored."""

    def replaced(restore: Restore) -> Restore:
        return lambda values, name, holder: replacement(restore, values, name, holder)

    for method in RESTORING:
        monkeypatch.setattr(ManagedValues, method, replaced(getattr(ManagedValues, method)))


def leave_out_value(monkeypatch: pytest.MonkeyPatch, left_out: str) -> None:
    """Restore all managed values but one."""

    def all_but_one(restore: Restore, values: ManagedValues, name: str, holder: Any) -> None:
        if name != left_out:
            restore(values, name, holder)

    replace_restoring(monkeypatch, all_but_one)


def leave_out_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the model without the running statistics of its normalisation."""

    def without_buffers(restore: Restore, values: ManagedValues, name: str, holder: Any) -> None:
        restore(values, name, holder)
        if name == "model":
            holder.value[1].reset_running_stats()

    replace_restoring(monkeypatch, without_buffers)


def tamper(monkeypatch: pytest.MonkeyPatch, changes: Callable[[Any], dict[str, Any]]) -> None:
    """Change what the checkpoint says besides the managed values."""
    begin_attempt = resuming.begin_attempt

    def tampered(attempt: agent.AttemptDir) -> Beginning:
        beginning = begin_attempt(attempt)
        return replace(beginning, state=replace(beginning.state, **changes(beginning.state)))  # type: ignore[type-var]

    monkeypatch.setattr(lifecycle, "begin_attempt", tampered)


@pytest.mark.parametrize("name", [*STATES, "total"])
def test_a_managed_value_that_is_not_restored_is_noticed(
    name: str, halves: Halves, undisturbed: Ending, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = halves(MIDDLE, tmp_path)
    leave_out_value(monkeypatch, name)
    differences = complete(run_dir).differences(undisturbed)
    assert name in differences
    # What a training learns depends on all but what only watches it; and on a scaler only with half
    # precision, as scaling by powers of two changes no digit of a float32.
    watches = {"ema", "histogram", "counters", "total", "scaler"}
    assert ("model" in differences) is (name not in watches)


def test_buffers_that_are_not_restored_are_noticed_though_the_loss_is_the_same(
    halves: Halves, undisturbed: Ending, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = halves(MIDDLE, tmp_path)
    leave_out_buffers(monkeypatch)
    differences = complete(run_dir).differences(undisturbed)
    assert "model" in differences
    assert "rows" not in differences


@pytest.mark.parametrize("library", ["python", "numpy", "torch"])
def test_a_global_generator_that_is_not_restored_is_noticed(
    library: str, halves: Halves, undisturbed: Ending, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = halves(MIDDLE, tmp_path)
    tamper(monkeypatch, lambda state: {"rng": {**state.rng, library: rng.capture()[library]}})
    assert complete(run_dir).differences(undisturbed) >= {f"rng.{library}", "model", "rows"}


def test_a_live_parameter_that_is_not_restored_is_noticed(
    halves: Halves, undisturbed: Ending, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = halves(MIDDLE, tmp_path)
    tamper(monkeypatch, lambda _: {"params": {"changes": []}})
    assert complete(run_dir).differences(undisturbed) >= {"noise", "model", "rows"}


@pytest.mark.parametrize(
    ("name", "changes"),
    [("last evaluation", {"evaluation": None}), ("last metrics", {"metrics": {}})],
    ids=["evaluation", "metrics"],
)
def test_what_was_last_reported_and_is_not_restored_is_noticed_where_no_step_is_left(
    name: str,
    changes: dict[str, Any],
    halves: Halves,
    undisturbed: Ending,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_dir = halves(LAST, tmp_path)
    tamper(monkeypatch, lambda _: changes)
    assert complete(run_dir).differences(undisturbed) == {name}


@pytest.mark.parametrize("wrong", [-1, +1])
def test_a_step_that_is_counted_wrongly_is_noticed(
    wrong: int, halves: Halves, undisturbed: Ending, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = halves(MIDDLE, tmp_path)
    tamper(monkeypatch, lambda state: {"step": state.step + wrong})
    with suppress(ValueError):  # the scheduler refuses a step too many
        assert complete(run_dir).differences(undisturbed) >= {"model", "rows"}


# --- After the loop ---------------------------------------------------------------------------------


def test_what_follows_the_loop_is_done_once_though_the_run_was_killed_before_it_could_say_so(
    tmp_path: Path,
) -> None:
    def make(_watch: Watcher) -> Callable[[Context], None]:
        def train(ctx: Context) -> None:
            ctx.total = 0.0
            for _ in ctx.steps():
                ctx.total += 1.0
            ctx.total /= ctx.total_steps
            totals.append(ctx.total)

        return train

    totals: list[float] = []
    run_dir = agent.RunDir(tmp_path / "jobs" / "run-1")
    play(run_dir, Watcher(None), make)
    Path(run_dir.attempt("1-r0").result).unlink()  # as if killed after its last commit
    play(run_dir, Watcher(None), make)
    assert set(totals) == {1.0}


# --- A disk that fails while an attempt resumes ------------------------------------------------------


def failing(watch: Watcher, fails: Callable[[Context], object]) -> Callable[[Context], None]:
    """Return a training that loses something on the disk before it assigns its first value."""
    train = make_training(watch)

    def losing(ctx: Context) -> None:
        fails(ctx)
        train(ctx)

    return losing


def test_a_file_of_a_checkpoint_that_cant_be_read_any_more_is_no_error_of_the_users_code(
    halves: Halves, tmp_path: Path
) -> None:
    run_dir = halves(MIDDLE, tmp_path)
    arrays = Path(run_dir.checkpoints).glob(f"*/step-{MIDDLE:08d}/histogram.npy")
    with pytest.raises(InfrastructureError, match="histogram"):
        play(run_dir, Watcher(None), lambda watch: failing(watch, lambda _: next(arrays).unlink()))


def test_attempts_that_cant_be_listed_any_more_are_no_error_of_the_users_code(
    halves: Halves, tmp_path: Path
) -> None:
    run_dir = halves(MIDDLE, tmp_path)
    attempts = Path(run_dir.attempts)
    with pytest.raises(InfrastructureError, match="attempts"):
        play(
            run_dir,
            Watcher(None),
            lambda watch: failing(watch, lambda _: attempts.rename(f"{attempts}-gone")),
        )


# --- A loader that rests ----------------------------------------------------------------------------


def test_a_loader_that_gave_nothing_between_two_checkpoints_keeps_its_place(tmp_path: Path) -> None:
    def labels(run_dir: agent.RunDir, *ends: int) -> list[int]:
        seen: list[int] = []
        for ends_after in ends:
            begin(run_dir, ends_after, lambda watch: at_times(watch, seen))
        play(run_dir, Watcher(None), lambda watch: at_times(watch, seen))
        return seen

    undisturbed = labels(agent.RunDir(tmp_path / "jobs" / "run-1"))
    assert labels(agent.RunDir(tmp_path / "jobs" / "run-2"), 3, 4) == undisturbed


def at_times(watch: Watcher, seen: list[int]) -> Callable[[Context], None]:
    """Return a training that takes a batch in its first and its last steps only."""

    def train(ctx: Context) -> None:
        ctx.loader = DataLoader(Waves(), batch_size=4, shuffle=True)
        batches = None
        for step in ctx.steps():
            watch.begins(ctx, step)
            if step < 3 or step > LAST - 3:
                batches = batches or iter(ctx.loader)
                seen.extend(next(batches)[1].tolist())

    return train
