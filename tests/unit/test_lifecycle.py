"""An interrupted run goes on where its last checkpoint left it, and ends as if nothing had happened."""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import alchemy as al
import alchemy_agent as agent
from alchemy.errors import CheckpointUnusable, ConfigurationError, Stopped
from alchemy.fencing import Fenced
from alchemy.recording.history import read_evals, read_metrics
from tests.support.agentlab import drop, eventually, make_attempt, record
from tests.support.attempts import Died, Run


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (agent.TASK_ID, agent.JOB_DIR, agent.ATTEMPT, "ALCHEMY_PARAMS", "ALCHEMY_FRESH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALCHEMY_COMMAND_POLL_S", "0.01")


class Counting:
    """A training that adds up its steps, and dies, once, where it is told to."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.dies_at = dies_at
        self.seen: list[int] = []
        self.totals: list[int] = []

    def __call__(self, ctx: al.Context) -> int:
        ctx.total = 0
        ctx.history = list[int]()
        for step in ctx.steps():
            self.seen.append(step)
            if step == self.dies_at:
                self.dies_at = None
                raise Died
            ctx.total += step
            ctx.history.append(step)
            ctx.log(total=ctx.total)
            if ctx.should_eval():
                ctx.log_eval(total=ctx.total)
        assert ctx.history == list(range(ctx.total_steps))
        return int(ctx.total)

    __name__ = "train"


def test_an_attempt_goes_on_after_the_last_checkpoint(tmp_path: Path) -> None:
    training = Counting(dies_at=7)
    run = Run(tmp_path, training, eval_every=3)
    with pytest.raises(Died):
        run.attempt()
    result = run.attempt()
    assert training.seen == [0, 1, 2, 3, 4, 5, 6, 7, 6, 7, 8, 9]
    assert result.metrics == {"total": 45.0}
    assert result.resumed_from == 5
    assert run.resumed()["from"]["step"] == 5
    assert run.resumed()["exact"] is True
    assert [row["m"]["total"] for row in read_metrics(run.run_dir)] == [0, 1, 3, 6, 10, 15, 21, 28, 36, 45]
    assert [row["step"] for row in read_evals(run.run_dir)] == [2, 5, 8, 9]


def test_the_receipt_says_where_it_began_and_on_what_machine(tmp_path: Path) -> None:
    run = Run(tmp_path, Counting(dies_at=7), async_save=False)
    with pytest.raises(Died):
        run.attempt()
    assert run.resumed()["from"] is None
    run.attempt()
    golden = record(Path(__file__).parents[1] / "data/wire/v1/resume.json")
    assert set(run.resumed()) == set(golden)
    assert set(run.resumed()["from"]) == set(golden["from"])
    assert run.resumed()["machine"]["threads"] == torch.get_num_threads()
    assert run.resumed()["machine"]["cpu_instructions"] == torch.backends.cpu.get_cpu_capability()


def test_another_number_of_threads_is_not_bit_exact_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training, threads = Counting(dies_at=7), torch.get_num_threads()
    run = Run(tmp_path, training, async_save=False)
    with pytest.raises(Died):
        run.attempt()
    try:
        torch.set_num_threads(threads + 1)
        with caplog.at_level(logging.WARNING):
            result = run.attempt()
    finally:
        torch.set_num_threads(threads)
    assert result.inexact == (f"threads {threads} -> {threads + 1}",)
    assert (run.resumed()["exact"], run.resumed()["differences"]) == (False, list(result.inexact))
    assert "not bit-exact" in caplog.text


def test_the_result_names_its_final_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path, Counting())
    result = run.attempt()
    assert result.checkpoint == run.committed()[-1].ref.to_record()
    assert run.steps() == ["1-r0/7", "1-r0/9"]


def test_a_loop_that_is_left_early_ends_with_a_checkpoint_of_its_last_step(tmp_path: Path) -> None:
    def train(ctx: al.Context) -> None:
        ctx.total = 0
        for step in ctx.steps():
            ctx.total += 1
            if step == 4:
                break

    run = Run(tmp_path, train)
    assert run.attempt().steps == 5
    assert run.steps()[-1] == "1-r0/4"


def test_what_completed_is_run_anew_from_the_start(tmp_path: Path) -> None:
    training = Counting()
    run = Run(tmp_path, training)
    run.attempt()
    result = run.attempt()
    assert training.seen == [*range(10), *range(10)]
    assert result.resumed_from is None


def test_a_fresh_attempt_ignores_checkpoints_and_so_do_those_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Counting(dies_at=7)
    run = Run(tmp_path, training)
    with pytest.raises(Died):
        run.attempt()
    monkeypatch.setenv("ALCHEMY_FRESH", "1")
    training.dies_at = 3
    training.seen.clear()
    with pytest.raises(Died):
        run.attempt()
    assert run.resumed()["fresh"] is True
    monkeypatch.delenv("ALCHEMY_FRESH")
    run.attempt()
    assert training.seen == [0, 1, 2, 3, 2, 3, 4, 5, 6, 7, 8, 9]


def test_without_managed_values_there_are_no_checkpoints_and_a_run_starts_over(tmp_path: Path) -> None:
    seen = []

    def train(ctx: al.Context) -> None:
        for step in ctx.steps():
            seen.append(step)
            if len(seen) == 6:
                raise Died

    run = Run(tmp_path, train)
    with pytest.raises(Died):
        run.attempt()
    assert run.attempt().checkpoint is None
    assert seen == [*range(6), *range(10)]
    assert run.committed() == []


def test_the_last_evaluation_survives(tmp_path: Path) -> None:
    def train(ctx: al.Context) -> None:
        ctx.n = 0
        for step in ctx.steps():
            ctx.n += 1
            if step == 3:
                ctx.log_eval(acc=0.5)
                ctx.log(loss=0.25)
            if step == 5 and ctx.resumes:
                ctx.resumes.pop()
                raise Died

    resumes = [True]

    def with_flag(ctx: al.Context) -> None:
        vars(ctx)["resumes"] = resumes
        train(ctx)

    run = Run(tmp_path, with_flag)
    with pytest.raises(Died):
        run.attempt()
    result = run.attempt()
    assert result.evaluation is not None
    assert (result.evaluation.step, result.evaluation.metrics) == (3, {"acc": 0.5})
    assert result.metrics == {"loss": 0.25}


# Saving.


def test_checkpoints_are_made_every_so_many_steps_and_the_newest_stay(tmp_path: Path) -> None:
    run = Run(tmp_path, Counting(), checkpoint_every=3, keep=3, async_save=False)
    run.attempt()
    assert run.steps() == ["1-r0/5", "1-r0/8", "1-r0/9"]


def test_checkpoints_are_made_by_the_clock(tmp_path: Path) -> None:
    def train(ctx: al.Context) -> None:
        ctx.n = 0
        for step in ctx.steps():
            ctx.n += 1
            if step == 4:
                eventually(lambda: ctx._lifecycle.attention)

    run = Run(tmp_path, train, checkpoint_every=None, checkpoint_minutes=1e-6, keep=10, async_save=False)
    run.attempt()
    assert "1-r0/4" in run.steps()


def test_a_save_in_the_middle_of_a_step_is_made_when_the_step_ends(tmp_path: Path) -> None:
    def train(ctx: al.Context) -> None:
        ctx.n = 0
        for step in ctx.steps():
            if step == 4:
                ctx.save()
            ctx.n += 1

    run = Run(tmp_path, train, checkpoint_every=100)
    run.attempt()
    assert run.steps() == ["1-r0/4", "1-r0/9"]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_disk_that_is_full_costs_a_checkpoint_and_a_warning_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_async: bool
) -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    def train(ctx: al.Context) -> None:
        ctx.weights = np.zeros(100_000)
        for step in ctx.steps():
            ctx.weights += 1
            if step == 4:
                ctx._lifecycle.settle()
                resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, unlimited[1]))
            if step == 6:
                ctx._lifecycle.settle()
                run_while_full.extend(run.steps())
                resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)

    run_while_full: list[str] = []
    run = Run(tmp_path, train, async_save=is_async)
    try:
        with caplog.at_level(logging.WARNING):
            run.attempt()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert run_while_full == ["1-r0/1", "1-r0/3"]
    assert run.steps() == ["1-r0/7", "1-r0/9"]
    assert "after step 5 could not be written" in caplog.text
    assert "training goes on" in caplog.text


def test_an_attempt_that_was_superseded_commits_nothing_and_leaves(tmp_path: Path) -> None:
    def train(ctx: al.Context) -> None:
        ctx.n = 0
        for step in ctx.steps():
            ctx.n += 1
            if step == 4:
                make_attempt(tmp_path, k=2)

    run = Run(tmp_path, train, async_save=False)
    with pytest.raises(Fenced):
        run.attempt()
    assert run.steps() == ["1-r0/1", "1-r0/3"]
    assert run.last is not None
    assert not Path(run.last.result).exists()


def test_a_background_save_that_finds_itself_superseded_ends_the_training(tmp_path: Path) -> None:
    seen = []

    def train(ctx: al.Context) -> None:
        ctx.n = 0
        for step in ctx.steps():
            ctx.n += 1
            seen.append(step)
            if step == 0:
                make_attempt(tmp_path, k=2)
            if step > 1:
                eventually(lambda: ctx._lifecycle.attention)

    with pytest.raises(Fenced):
        Run(tmp_path, train, total_steps=1000, async_save=True).attempt()
    assert len(seen) < 10


# What can't be trusted.


def _damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_passed_over_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training = Counting(dies_at=7)
    run = Run(tmp_path, training, async_save=False)
    with pytest.raises(Died):
        run.attempt()
    _damage(run.committed()[-1].path / "loop.json")
    with caplog.at_level(logging.WARNING):
        assert run.attempt().resumed_from == 3
    assert "loop.json" in caplog.text
    assert run.resumed()["rejected"][0]["checkpoint"] == "1-r0/step-00000005"


def test_with_nothing_to_trust_a_run_stops_and_does_not_start_over(tmp_path: Path) -> None:
    training = Counting(dies_at=7)
    run = Run(tmp_path, training, async_save=False)
    with pytest.raises(Died):
        run.attempt()
    for checkpoint in run.committed():
        _damage(checkpoint.path / "loop.json")
    training.seen.clear()
    with pytest.raises(CheckpointUnusable, match=r"alchemy-fresh"):
        run.attempt()
    assert training.seen == []


# Managed values.


def test_what_is_assigned_is_restored_before_the_assignment_returns(tmp_path: Path) -> None:
    weights: list[list[float]] = []
    alive = [True]

    def train(ctx: al.Context) -> None:
        ctx.model = model = torch.nn.Linear(2, 2)
        assert ctx.model is model
        weights.append(model.weight.flatten().tolist())
        for step in ctx.steps():
            with torch.no_grad():
                ctx.model.weight += 1
            if step == 3:
                weights.append(model.weight.flatten().tolist())
            if step == 4 and alive.pop():
                raise Died

    run = Run(tmp_path, train, async_save=False)
    with pytest.raises(Died):
        run.attempt()
    alive.append(False)
    run.attempt()
    assert weights[2] == weights[1] != weights[0]


@pytest.mark.parametrize("value", [object(), {1, 2}, lambda: None, torch.nn.Linear, [object()], 1j])
def test_what_no_kind_fits_is_refused_at_the_assignment(tmp_path: Path, value: object) -> None:
    def train(ctx: al.Context) -> None:
        ctx.thing = value

    with pytest.raises(ConfigurationError, match=r"ctx\.thing can't be saved.*state_dict.*managed\.Custom"):
        Run(tmp_path, train).attempt()


def test_names_with_an_underscore_are_the_users_own_business(tmp_path: Path) -> None:
    def train(ctx: al.Context) -> None:
        ctx._thing = object()
        list(ctx.steps())

    assert Run(tmp_path, train).attempt().checkpoint is None


class Changing:
    """A training whose assignments differ between its first attempt and the next."""

    def __init__(self, first: Callable[[Any], None], then: Callable[[Any], None]) -> None:
        self.assigns = [first, then]
        self.at_end: Any = None

    __name__ = "train"

    def __call__(self, ctx: al.Context) -> None:
        self.assigns[0](ctx)
        for step in ctx.steps():
            if step == 4 and len(self.assigns) == 2:
                del self.assigns[0]
                raise Died
        self.at_end = ctx


def _interrupted(tmp_path: Path, first: Callable[[Any], None], then: Callable[[Any], None]) -> Run:
    run = Run(tmp_path, Changing(first, then), async_save=False)
    with pytest.raises(Died):
        run.attempt()
    return run


def _assign(**values: Any) -> Callable[[Any], None]:
    def assign(ctx: al.Context) -> None:
        for name, value in values.items():
            setattr(ctx, name, value)

    return assign


@pytest.mark.parametrize(
    ("first", "then", "says"),
    [
        ({"n": 1}, {"n": 1, "more": 2}, r"ctx\.more is not in the checkpoint .*-00000003, which has ctx\.n"),
        (
            {"n": 1, "model": torch.nn.Linear(1, 1)},
            {"n": 1},
            r"has ctx\.model \(torch\), which this code does not assign before ctx\.steps\(\)",
        ),
        (
            {"model": torch.nn.Linear(1, 1)},
            {"model": torch.nn.Linear(2, 1)},
            r"ctx\.model does not fit the checkpoint.*its load_state_dict raised RuntimeError",
        ),
        ({"model": torch.nn.Linear(1, 1)}, {"model": 3}, r"it was saved as torch, and is json now"),
        ({"w": np.zeros(3)}, {"w": np.zeros(4)}, r"shape \(3,\) and float64.*shape \(4,\)"),
        ({"w": torch.zeros(3)}, {"w": torch.zeros(3, dtype=torch.int8)}, r"torch\.float32.*torch\.int8"),
        (
            {"opt": torch.optim.SGD([torch.zeros(2), torch.zeros(3)])},
            {"opt": torch.optim.SGD([torch.zeros(3), torch.zeros(2)])},
            r"shapes \[\[\[2\], \[3\]\]\].*\[\[\[3\], \[2\]\]\] now",
        ),
    ],
    ids=["missing", "left over", "shape", "kind", "array", "tensor", "order of parameters"],
)  # fmt: skip
def test_code_that_does_not_fit_its_checkpoint_is_told_so(
    tmp_path: Path, first: dict[str, Any], then: dict[str, Any], says: str
) -> None:
    run = _interrupted(tmp_path, _assign(**first), _assign(**then))
    with pytest.raises(ConfigurationError, match=says) as caught:
        run.attempt()
    assert "start over" in str(caught.value)


def test_a_name_deleted_in_the_loop_is_deleted_again(tmp_path: Path) -> None:
    ends: list[bool] = []
    alive = [True]

    def train(ctx: al.Context) -> None:
        ctx.n = 0
        ctx.warmup = torch.nn.Linear(1, 1)
        for step in ctx.steps():
            ctx.n += 1
            if step == 2:
                del ctx.warmup
            if step == 4 and alive:
                alive.pop()
                raise Died
            ends.append(hasattr(ctx, "warmup"))

    run = Run(tmp_path, train, async_save=False)
    with pytest.raises(Died):
        run.attempt()
    run.attempt()
    assert ends == [True, True, *[False] * 8]


def test_a_value_first_assigned_in_the_loop_is_there_when_it_goes_on(tmp_path: Path) -> None:
    best: list[float] = []
    alive = [True]

    def train(ctx: al.Context) -> None:
        ctx.n = 0
        for step in ctx.steps():
            if step == 0:
                ctx.best = 7.5
            if step == 4 and alive:
                alive.pop()
                raise Died
        best.append(ctx.best)

    run = Run(tmp_path, train, async_save=False)
    with pytest.raises(Died):
        run.attempt()
    run.attempt()
    assert best == [7.5]


def test_a_name_bound_to_another_object_in_the_loop_is_saved_as_that(tmp_path: Path) -> None:
    alive = [True]
    seen: list[Any] = []

    def train(ctx: al.Context) -> None:
        ctx.model = torch.nn.Linear(1, 1)
        ctx.average = np.zeros(2)
        for step in ctx.steps():
            ctx.average = ctx.average * 0.5 + step
            if step == 2:
                ctx.model = torch.nn.Linear(1, 1)
                torch.nn.init.constant_(ctx.model.weight, 5.0)
            if step == 4 and alive:
                alive.pop()
                raise Died
        seen.append((ctx.average.tolist(), ctx.model.weight.item()))

    run = Run(tmp_path, train, async_save=False)
    with pytest.raises(Died):
        run.attempt()
    run.attempt()
    average = np.zeros(2)
    for step in range(10):
        average = average * 0.5 + step
    assert seen == [(average.tolist(), 5.0)]


def test_what_a_later_constructor_disturbs_is_set_right_before_the_first_step(tmp_path: Path) -> None:
    rates: list[float] = []
    alive = [True]

    def train(ctx: al.Context) -> None:
        ctx.model = torch.nn.Linear(1, 1)
        ctx.optimizer = torch.optim.SGD(ctx.model.parameters(), lr=1.0)
        ctx.schedule = torch.optim.lr_scheduler.LinearLR(ctx.optimizer, 0.1, 1.0, total_iters=8)
        torch.nn.init.zeros_(ctx.model.weight)
        for step in ctx.steps():
            ctx.optimizer.step()
            ctx.schedule.step()
            rates.append(ctx.optimizer.param_groups[0]["lr"])
            with torch.no_grad():
                ctx.model.weight += 1
            if step == 5 and alive:
                alive.pop()
                raise Died
        assert ctx.model.weight.item() == 10

    undisturbed = Run(tmp_path / "whole", train, async_save=False)
    alive.clear()
    undisturbed.attempt()
    expected, rates[:] = list(rates), []
    alive.append(True)
    run = Run(tmp_path / "cut", train, async_save=False)
    with pytest.raises(Died):
        run.attempt()
    del rates[4:]
    run.attempt()
    assert rates == expected


def test_a_typed_context_is_found_by_its_annotation_and_restores(tmp_path: Path) -> None:
    alive = [True]
    ends: list[tuple[float, int]] = []

    def train(ctx: Typed) -> None:
        ctx.model = torch.nn.Linear(1, 1)
        ctx.seen = 0
        for step in ctx.steps():
            with torch.no_grad():
                ctx.model.weight.fill_(step)
            ctx.seen += 1
            if step == 5 and alive:
                alive.pop()
                raise Died
        ends.append((ctx.model.weight.item(), ctx.seen))

    run = Run(tmp_path, train, async_save=False)
    with pytest.raises(Died):
        run.attempt()
    run.attempt()
    assert ends == [(9.0, 10)]


class Typed(al.Context):
    model = al.managed.Torch[torch.nn.Linear]()
    seen = al.managed.Json[int]()


# Being asked to stop.


def _stopped(run: Run) -> Stopped:
    with pytest.raises(Stopped) as caught:
        run.attempt()
    assert caught.value.code == 75
    return caught.value


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_lets_the_step_end_saves_and_leaves(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    signalled = [True]
    seen = []

    def train(ctx: al.Context) -> None:
        ctx.n = 0
        for step in ctx.steps():
            if step == 4 and signalled:
                signalled.pop()
                os.kill(os.getpid(), number)
                assert ctx.should_stop
            ctx.n += 1
            seen.append(step)

    run = Run(tmp_path, train)
    assert _stopped(run).why == number.name
    assert signal.getsignal(number) is before
    assert run.last is not None
    receipt = record(run.last.result)
    assert (receipt["status"], receipt["stopped"], receipt["steps"]) == ("stopped", number.name, 5)
    assert run.steps()[-1] == "1-r0/4"
    run.attempt()
    assert seen == list(range(10))


def test_an_evaluation_that_breaks_off_is_not_recorded_and_made_up_for(tmp_path: Path) -> None:
    signalled = [True]
    evaluated = []

    def train(ctx: al.Context) -> None:
        ctx.n = 0
        for step in ctx.steps():
            ctx.n += 1
            if ctx.should_eval():
                if step == 3 and signalled:
                    signalled.pop()
                    os.kill(os.getpid(), signal.SIGTERM)
                if not ctx.should_stop:
                    evaluated.append(step)
                ctx.log_eval(n=ctx.n)

    run = Run(tmp_path, train, eval_every=4)
    _stopped(run)
    run.attempt()
    assert evaluated == [4, 7, 9]
    assert [row["step"] for row in read_evals(run.run_dir)] == [4, 7, 9]


def test_a_last_evaluation_that_breaks_off_is_repeated_with_its_step(tmp_path: Path) -> None:
    signalled = [True]

    def train(ctx: al.Context) -> None:
        ctx.n = 0
        for step in ctx.steps():
            ctx.n += 1
            if ctx.should_eval():
                if step == 9 and signalled:
                    signalled.pop()
                    os.kill(os.getpid(), signal.SIGTERM)
                    assert ctx.should_stop
                ctx.log_eval(n=ctx.n)

    run = Run(tmp_path, train)
    _stopped(run)
    result = run.attempt()
    assert result.evaluation is not None
    assert result.evaluation.metrics == {"n": 10.0}


def test_a_signal_in_the_last_step_lets_the_run_complete(tmp_path: Path) -> None:
    def train(ctx: al.Context) -> None:
        ctx.n = 0
        for step in ctx.steps():
            ctx.n += 1
            if step == 9:
                os.kill(os.getpid(), signal.SIGTERM)

    assert Run(tmp_path, train).attempt().status == "completed"


def test_without_managed_values_sigusr1_is_a_warning_and_no_more(tmp_path: Path) -> None:
    def train(ctx: al.Context) -> None:
        for _ in ctx.steps():
            os.kill(os.getpid(), signal.SIGUSR1)

    assert Run(tmp_path, train).attempt().status == "completed"


# Commands.


def _acked(run: Run, name: str) -> dict[str, Any]:
    return record(Path(run.run_dir.ack) / name)


def test_graceful_stop_saves_answers_and_leaves(tmp_path: Path) -> None:
    training = Counting()
    run = Run(tmp_path, training)
    original = training.__call__

    def train(ctx: al.Context) -> None:
        for _ in range(1):
            ctx.param("lr")
        if not Path(run.run_dir.ack, "graceful_stop.json").exists():
            drop(run.run_dir, "graceful_stop.json")
        original(ctx)

    run.function = train
    assert "graceful_stop" in _stopped(run).why
    answer = _acked(run, "graceful_stop.json")
    assert answer["outcome"] == "applied"
    assert answer["result"]["checkpoint"] == f"1-r0/step-{answer['step']:08d}"
    run.attempt()
    assert training.seen == list(range(10))


def test_save_checkpoint_is_answered_with_what_it_made(tmp_path: Path) -> None:
    def train(ctx: al.Context) -> None:
        ctx.n = 0
        for step in ctx.steps():
            if step == 3:
                drop(run.run_dir, "save_checkpoint.json")
                eventually(lambda: ctx._lifecycle.attention)

    run = Run(tmp_path, train, checkpoint_every=100)
    run.attempt()
    assert _acked(run, "save_checkpoint.json")["result"] == {"checkpoint": "1-r0/step-00000003"}


def test_with_nothing_to_save_save_checkpoint_is_refused(tmp_path: Path) -> None:
    def train(ctx: al.Context) -> None:
        for step in ctx.steps():
            if step == 3:
                drop(run.run_dir, "save_checkpoint.json")
                eventually(lambda: ctx._lifecycle.attention)

    run = Run(tmp_path, train)
    run.attempt()
    assert _acked(run, "save_checkpoint.json")["outcome"] == "refused"


def test_update_params_changes_what_ctx_param_returns_and_the_optimizer_follows(tmp_path: Path) -> None:
    rates: list[tuple[float, float]] = []
    alive = [True]

    def train(ctx: al.Context) -> None:
        ctx.model = torch.nn.Linear(1, 1)
        ctx.optimizer = torch.optim.AdamW(ctx.model.parameters(), lr=ctx.param("lr"))
        for step in ctx.steps():
            rates.append((ctx.param("lr"), ctx.optimizer.param_groups[0]["lr"]))
            if step == 3 and alive:
                letters.append(agent.send_command(run.run_dir, "update_params", {"lr": 0.5}))
                eventually(lambda: ctx._lifecycle.attention)
            if step == 4 and alive:
                alive.pop()
                raise Died

    letters: list[str] = []
    run = Run(tmp_path, train, checkpoint_every=100)
    with pytest.raises(Died):
        run.attempt()
    answer = _acked(run, letters[0])
    assert answer["outcome"] == "applied"
    assert "optimizer.lr 0.1 -> 0.5" in answer["result"]["followed"][0]
    assert rates == [(0.1, 0.1)] * 4 + [(0.5, 0.5)]
    del rates[4:]
    result = run.attempt()
    assert rates == [(0.1, 0.1)] * 4 + [(0.5, 0.5)] * 6
    assert [change["values"] for change in result.changes] == [{"lr": 0.5}]
    assert result.changes[0]["step"] == 4


@pytest.mark.parametrize(
    ("args", "why"), [({"width": 3}, "there is no parameter"), ({"lr": "fast"}, "lr"), ({}, "at least one")]
)
def test_an_update_that_can_not_be_meant_is_refused(tmp_path: Path, args: dict[str, Any], why: str) -> None:
    letters: list[str] = []

    def train(ctx: al.Context) -> None:
        ctx.n = 0
        for step in ctx.steps():
            if step == 3:
                letters.append(agent.send_command(run.run_dir, "update_params", args))
                eventually(lambda: ctx._lifecycle.attention)

    run = Run(tmp_path, train)
    run.attempt()
    answer = _acked(run, letters[0])
    assert answer["outcome"] == "refused"
    assert why in answer["why"]


def test_a_command_after_the_loop_is_refused_and_not_forgotten(tmp_path: Path) -> None:
    letters: list[str] = []

    def train(ctx: al.Context) -> None:
        ctx.n = 0
        list(ctx.steps())
        letters.append(agent.send_command(run.run_dir, "update_params", {"lr": 0.5}))

    run = Run(tmp_path, train)
    run.attempt()
    assert "too late" in _acked(run, letters[0])["why"]


def test_the_progress_record_names_the_last_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path, Counting())
    run.attempt()
    assert record(run.run_dir.progress)["checkpoint"] == 9


def test_what_an_attempt_took_and_did_not_answer_is_void_for_one_that_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Counting(dies_at=5)
    run = Run(tmp_path, training, async_save=False)
    with pytest.raises(Died):
        run.attempt()
    assert run.last is not None
    name = agent.send_command(run.run_dir, "update_params", {"lr": 0.5})
    claimed = Path(run.last.claimed, f"{name.removesuffix('.json')}.000001aaaaaaaaaa.json")
    claimed.parent.mkdir(exist_ok=True)
    Path(run.run_dir.commands, name).rename(claimed)
    monkeypatch.setenv("ALCHEMY_FRESH", "1")
    assert run.attempt().changes == ()
    assert _acked(run, name)["outcome"] == "void"


def test_what_an_attempt_took_and_did_not_answer_is_done_by_the_next(tmp_path: Path) -> None:
    training = Counting(dies_at=5)
    run = Run(tmp_path, training, async_save=False)
    with pytest.raises(Died):
        run.attempt()
    assert run.last is not None
    name = agent.send_command(run.run_dir, "update_params", {"lr": 0.5})
    claimed = Path(run.last.claimed, f"{name.removesuffix('.json')}.000001aaaaaaaaaa.json")
    claimed.parent.mkdir(exist_ok=True)
    Path(run.run_dir.commands, name).rename(claimed)
    result = run.attempt()
    assert [(change["step"], change["values"]) for change in result.changes] == [(4, {"lr": 0.5})]
    assert _acked(run, name)["outcome"] == "applied"
