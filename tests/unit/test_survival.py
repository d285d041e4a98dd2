"""What users do in their loops, killed once on the way: it comes to the same, or is refused early."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import alchemy as al
import alchemy_agent as agent
from alchemy.errors import ConfigurationError, Stopped
from alchemy.fencing import Fenced
from alchemy.recording.history import read_evals
from tests.support.agentlab import drop, eventually, make_attempt, record
from tests.support.attempts import Died, Run

if TYPE_CHECKING:
    from tests.support.attempts import Died as OnlyForTypes  # a name that isn't there at run time


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (agent.TASK_ID, agent.JOB_DIR, agent.ATTEMPT, "ALCHEMY_PARAMS", "ALCHEMY_FRESH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALCHEMY_COMMAND_POLL_S", "0.01")


def undisturbed_and_killed(tmp_path: Path, train: Callable[[Any, Callable[[int], None]], Any]) -> list[Any]:
    """Return what the training comes to without a death, and with one in step 7."""
    ends: list[Any] = []
    for where, deaths in (("whole", []), ("killed", [7])):

        def fate(step: int, deaths: list[int] = deaths) -> None:
            if step in deaths:
                deaths.remove(step)
                raise Died

        def once(ctx: Any, fate: Callable[[int], None] = fate) -> None:
            ends.append(train(ctx, fate))

        run = Run(tmp_path / where, once, async_save=False)
        if deaths:
            with pytest.raises(Died):
                run.attempt()
        run.attempt()
    return ends


def best_of_numpy(ctx: Any, fate: Callable[[int], None]) -> Any:
    ctx.best = 0.0
    for step in ctx.steps():
        fate(step)
        ctx.best = max(ctx.best, np.mean([0.5, step], dtype=np.float32))
    return ctx.best, type(ctx.best)


def best_of_torch(ctx: Any, fate: Callable[[int], None]) -> Any:
    ctx.best = float("inf")
    for step in ctx.steps():
        fate(step)
        loss = torch.tensor(1.0 / (step + 1), requires_grad=True) * 1
        if loss < ctx.best:
            ctx.best = loss
    return ctx.best.item()


def first_assigned_in_the_loop(ctx: Any, fate: Callable[[int], None]) -> Any:
    ctx.n = 0
    for step in ctx.steps():
        fate(step)
        if step == 0:
            ctx.running = torch.zeros(3)
            ctx.seen = np.zeros(2, dtype=np.int8)
        ctx.running += step
        ctx.seen[step % 2] += 1
    return ctx.running.tolist(), ctx.seen.tolist()


def growing(ctx: Any, fate: Callable[[int], None]) -> Any:
    ctx.rows = np.zeros(0)
    for step in ctx.steps():
        fate(step)
        ctx.rows = np.concatenate([ctx.rows, [step]])
    return ctx.rows.tolist()


def replay_buffer(ctx: Any, fate: Callable[[int], None]) -> Any:
    class Buffer(list[int]):
        pass

    ctx.buffer = al.managed.Custom[Buffer](
        save=lambda value: json.dumps(list(value)).encode(),
        load=lambda value, data: value.extend(json.loads(data)),
    )
    ctx.buffer = Buffer()
    for step in ctx.steps():
        fate(step)
        ctx.buffer.append(step)
    return list(ctx.buffer)


def replaced_by_its_load(ctx: Any, fate: Callable[[int], None]) -> Any:
    class Counter:
        def __init__(self, n: int = 0) -> None:
            self.n = n

    ctx.counter = al.managed.Custom[Counter](
        save=lambda value: str(value.n).encode(), load=lambda _, data: Counter(int(data))
    )
    ctx.counter = Counter()
    alias = ctx.counter
    for step in ctx.steps():
        fate(step)
        alias.n += 1
    return ctx.counter.n, alias is ctx.counter


@pytest.mark.parametrize(
    "train",
    [
        best_of_numpy,
        best_of_torch,
        first_assigned_in_the_loop,
        growing,
        replay_buffer,
        replaced_by_its_load,
    ],
    ids=lambda train: train.__name__,
)
def test_a_death_makes_no_difference(tmp_path: Path, train: Any) -> None:
    whole, killed = undisturbed_and_killed(tmp_path, train)
    assert killed == whole


class WithDefault(al.Context):
    count: int = 0


def test_a_default_of_the_class_is_where_a_managed_value_begins(tmp_path: Path) -> None:
    deaths, ends = [7], []

    def train(ctx: WithDefault) -> None:
        for step in ctx.steps():
            if step in deaths:
                deaths.remove(step)
                raise Died
            ctx.count += 1
        ends.append(ctx.count)

    run = Run(tmp_path, train, async_save=False)
    with pytest.raises(Died):
        run.attempt()
    run.attempt()
    assert ends == [10]


# Refused before it matters.


class Sub(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.ma.masked_array(np.zeros(3), mask=[True, False, False]), "more than a plain numpy array"),
        (torch.zeros(3).as_subclass(Sub), r"ctx\.thing can't be saved"),
        ("caf\udce9.png", "UTF-8"),
        ({"caf\udce9.png": 1}, "UTF-8"),
    ],
    ids=["masked", "tensor subclass", "surrogate", "surrogate key"],
)
def test_what_would_come_back_changed_is_refused_at_the_assignment(
    tmp_path: Path, value: Any, says: str
) -> None:
    def train(ctx: al.Context) -> None:
        ctx.thing = value

    with pytest.raises(ConfigurationError, match=says):
        Run(tmp_path, train).attempt()


def test_a_name_that_can_be_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="identifier"):
        Run(tmp_path, lambda ctx: setattr(ctx, "layer/1", 1)).attempt()


def test_an_object_that_is_new_in_the_loop_is_refused_there_and_not_at_the_resume(tmp_path: Path) -> None:
    def train(ctx: al.Context) -> None:
        ctx.n = 0
        for _ in ctx.steps():
            ctx.average = torch.nn.Linear(1, 1)

    with pytest.raises(ConfigurationError, match=r"ctx\.average is new in the loop.*before ctx\.steps"):
        Run(tmp_path, train).attempt()


def test_fewer_steps_than_were_done_are_refused(tmp_path: Path) -> None:
    deaths = [8]

    def train(ctx: al.Context) -> None:
        ctx.n = 0
        for step in ctx.steps():
            if step in deaths:
                deaths.remove(step)
                raise Died

    run = Run(tmp_path, train, async_save=False)
    with pytest.raises(Died):
        run.attempt()
    run.total_steps = 5
    with pytest.raises(ConfigurationError, match="after 8 steps, and there are 5 now"):
        run.attempt()


def test_a_class_of_contexts_that_can_not_be_found_is_an_error(tmp_path: Path) -> None:
    def train(ctx: OnlyForTypes) -> None:
        list(ctx.steps())  # type: ignore[attr-defined]

    with pytest.raises(ConfigurationError, match=r"'OnlyForTypes' of ctx can't be resolved.*context="):
        Run(tmp_path, train).attempt()


# Being asked to stop, and not stopping.


def test_a_stop_for_another_attempt_costs_no_evaluation(tmp_path: Path) -> None:
    def train(ctx: al.Context) -> None:
        ctx.n = 0
        for step in ctx.steps():
            if step == 2:
                drop(run.run_dir, "graceful_stop.json", b"not JSON")
                agent.send_command(run.run_dir, "graceful_stop", {}, "9-r9")
                eventually(lambda: ctx.should_stop)
            if ctx.should_eval():
                _ = ctx.should_stop
                ctx.log_eval(acc=step)

    run = Run(tmp_path, train, eval_every=1)
    result = run.attempt()
    rows = [row["step"] for row in read_evals(run.run_dir)]
    assert rows in ([0, 1, *range(3, 10)], [0, 1, *range(2, 10)])
    assert result.status == "completed"
    assert run.steps()[-1] == "1-r0/9"


@pytest.mark.parametrize("when", ["before", "after"])
def test_outside_of_the_loop_sigterm_does_what_it_always_does(tmp_path: Path, when: str) -> None:
    came: list[int] = []

    def train(ctx: al.Context) -> None:
        ctx.n = 0
        if when == "before":
            os.kill(os.getpid(), signal.SIGTERM)
        list(ctx.steps())
        if when == "after":
            os.kill(os.getpid(), signal.SIGTERM)
        assert came == [1]

    before = signal.signal(signal.SIGTERM, lambda *_: came.append(1))
    try:
        Run(tmp_path, train).attempt()
    finally:
        signal.signal(signal.SIGTERM, before)


def _sleeps(pid: int | None) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "S"


def test_children_of_a_training_die_of_sigterm_as_ever(tmp_path: Path) -> None:
    ends: list[int | None] = []

    def train(ctx: al.Context) -> None:
        ctx.n = 0
        fork = multiprocessing.get_context("fork")
        for step in ctx.steps():
            if step == 1:
                child = fork.Process(target=signal.pause)
                child.start()
                eventually(partial(_sleeps, child.pid))
                child.terminate()
                child.join(30)
                ends.append(child.exitcode)

    Run(tmp_path, train).attempt()
    assert ends == [-signal.SIGTERM]


# What must cost a checkpoint and not the run.


def test_without_a_thread_a_checkpoint_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "alchemy-saver":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)

    def train(ctx: al.Context) -> None:
        ctx.n = 0
        list(ctx.steps())

    run = Run(tmp_path, train)
    run.attempt()
    assert run.steps() == ["1-r0/7", "1-r0/9"]


class Hungry:
    """Its state can't be taken for a while."""

    def __init__(self) -> None:
        self.calls = 0

    def state_dict(self) -> dict[str, int]:
        self.calls += 1
        if self.calls in (2, 3):
            raise MemoryError
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


@pytest.mark.parametrize("is_async", [True, False])
def test_a_copy_that_can_not_be_made_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_async: bool
) -> None:
    def train(ctx: al.Context) -> None:
        ctx.hungry = Hungry()
        list(ctx.steps())

    run = Run(tmp_path, train, async_save=is_async)
    with caplog.at_level(logging.WARNING):
        run.attempt()
    assert run.steps() == ["1-r0/7", "1-r0/9"]
    assert "could not be copied: MemoryError" in caplog.text


def test_a_save_that_failed_is_tried_again_when_the_next_is_due(tmp_path: Path) -> None:
    overdue: list[bool] = []

    def train(ctx: al.Context) -> None:
        ctx.n = 0
        attendant = ctx._lifecycle._attendant
        assert attendant is not None
        Path(run.run_dir.checkpoints).write_text("in the way")
        for step in ctx.steps():
            if step == 2:
                attendant._saved -= 3600
                ctx._lifecycle.attention = True
            if step == 3:
                overdue.append(attendant.is_save_due)

    run = Run(tmp_path, train, checkpoint_every=None, checkpoint_minutes=10, async_save=False)
    run.attempt()
    assert overdue == [False]


def test_a_bad_setting_leaves_no_thread_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALCHEMY_COMMAND_POLL_S", "soon")
    before = set(threading.enumerate())
    with pytest.raises(ValueError, match="a number of seconds is wanted"):
        Run(tmp_path, lambda ctx: list(ctx.steps())).attempt()
    assert [each.name for each in set(threading.enumerate()) - before if each.is_alive()] == []


# What is said.


def test_an_update_that_took_effect_is_not_called_failed(tmp_path: Path) -> None:
    rates: list[float] = []

    def train(ctx: al.Context) -> None:
        ctx.history = []
        for step in ctx.steps():
            if step == 2:
                ctx.history.append(object())
                drop(run.run_dir, "update_params.json", b'{"lr": 0.5}')
                eventually(lambda: ctx._lifecycle.attention)
            if step == 3:
                ctx.history.clear()
            rates.append(ctx.param("lr"))

    run = Run(tmp_path, train, checkpoint_every=100)
    run.attempt()
    answer = record(Path(run.run_dir.ack, "update_params.json"))
    assert (answer["outcome"], rates) == ("applied", [0.1] * 3 + [0.5] * 7)
    assert "can't be saved any more" in answer["result"]["warning"]


def test_the_rate_of_a_run_that_goes_on_counts_its_own_steps(tmp_path: Path) -> None:
    deaths: list[int] = [8]
    first: list[int] = []

    def train(ctx: al.Context) -> None:
        ctx.n = 0
        if not deaths:
            vars(ctx)["_recorder"]._report_if_due()  # as its thread does, while things load
        for step in ctx.steps():
            if step in deaths:
                deaths.remove(step)
                raise Died
            if not first and run.last is not None and not deaths:
                path = f"{run.last.rank(0)}/progress.json"
                first.append(eventually(partial(agent.read_record, path))["step"])

    run = Run(tmp_path, train, async_save=False)
    with pytest.raises(Died):
        run.attempt()
    run.attempt()
    assert first == [8]


def test_a_second_managed_loop_of_a_program_is_said_to_be_unprotected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = agent.RunDir(tmp_path / "jobs" / "run")
    attempt = agent.claim_attempt(run_dir, 1, 0)
    agent.begin(attempt)
    for name, value in agent.environment(attempt).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(agent.ATTEMPT, attempt.name)

    @al.managed(total_steps=4, checkpoint_every=2)
    def train(ctx: Any) -> int:
        ctx.n = 0
        for _ in ctx.steps():
            ctx.n += 1
        return int(ctx.n)

    monkeypatch.setattr("alchemy.execution._Process.claimed", None)
    with caplog.at_level(logging.WARNING):
        assert (train(), train()) == (4, 4)
    assert caplog.text.count("a second managed loop") == 1
    assert len(list(Path(run_dir.checkpoints).glob("*/*"))) == 2


@pytest.mark.parametrize("steps_first", [True, False])
def test_a_loader_that_runs_ahead_of_the_steps_is_not_called_exact(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, steps_first: bool
) -> None:
    def train(ctx: al.Context) -> None:
        ctx.loader = DataLoader(TensorDataset(torch.arange(20)), batch_size=1)
        for _ in zip(ctx.steps(), ctx.loader) if steps_first else zip(ctx.loader, ctx.steps()):  # noqa: B905
            pass

    with caplog.at_level(logging.WARNING):
        result = Run(tmp_path, train).attempt()
    assert (result.inexact == ()) is steps_first
    assert ("not bit-exact" in caplog.text) is not steps_first


def test_two_cases_that_share_a_loader_each_begin_with_a_new_one(tmp_path: Path) -> None:
    shared = DataLoader(TensorDataset(torch.arange(20)), batch_size=1, shuffle=True)
    seen: list[list[int]] = []

    def train(ctx: al.Context) -> None:
        ctx.loader = shared
        seen.append([int(batch) for _, (batch,) in zip(ctx.steps(), ctx.loader, strict=False)])

    for name in ("first", "second"):
        Run(tmp_path / name, train).attempt()
    assert seen[0] == seen[1]


def test_what_happened_to_checkpoints_is_told_where_nobody_reads_logs(tmp_path: Path) -> None:
    def train(ctx: al.Context) -> None:
        ctx.hungry = Hungry()
        list(ctx.steps())

    notes = Run(tmp_path, train, async_save=False).attempt().notes
    assert notes == (
        "2 checkpoints failed, the last one so: a checkpoint could not be copied: MemoryError: ",
    )


def test_a_checkpoint_that_was_passed_over_is_told_too(tmp_path: Path) -> None:
    deaths = [7]

    def train(ctx: al.Context) -> None:
        ctx.n = 0
        for step in ctx.steps():
            if step in deaths:
                deaths.remove(step)
                raise Died

    run = Run(tmp_path, train, async_save=False)
    with pytest.raises(Died):
        run.attempt()
    (run.committed()[-1].path / "loop.json").write_bytes(b"{}")
    [note] = run.attempt().notes
    assert note.startswith("passed over checkpoint 1-r0/step-00000005: ")


def test_an_error_that_a_signal_caused_is_a_stop_and_one_without_is_not(tmp_path: Path) -> None:
    def train(ctx: al.Context) -> None:
        ctx.n = 0
        for step in ctx.steps():
            if step == 5:
                if signals:
                    os.kill(os.getpid(), signals.pop())
                raise RuntimeError("DataLoader worker (pid 7) exited unexpectedly")

    signals = [signal.SIGTERM]
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        run = Run(tmp_path, train, async_save=False)
        with pytest.raises(Stopped):
            run.attempt()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert run.last is not None
    assert record(run.last.result)["stopped"] == "SIGTERM"
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        run.attempt()


def test_workers_of_a_loader_live_through_the_sigterm_of_the_whole_job(tmp_path: Path) -> None:
    def train(ctx: al.Context) -> None:
        ctx.loader = DataLoader(TensorDataset(torch.arange(64)), batch_size=1, num_workers=2)
        for step, _ in zip(ctx.steps(), ctx.loader, strict=False):
            if step == 3:
                children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
                assert len(children) >= 2
                for pid in children:
                    os.kill(int(pid), signal.SIGTERM)

    assert Run(tmp_path, train, total_steps=30).attempt().status == "completed"


def test_the_final_checkpoint_of_what_completed_stays_until_another_completes(tmp_path: Path) -> None:
    deaths: list[int] = []

    def train(ctx: al.Context) -> None:
        ctx.n = 0
        for step in ctx.steps():
            if step in deaths:
                deaths.remove(step)
                raise Died

    run = Run(tmp_path, train, async_save=False)
    run.attempt()
    deaths.append(8)
    with pytest.raises(Died):
        run.attempt()
    assert run.steps() == ["1-r0/9", "2-r0/5", "2-r0/7"]
    run.attempt()
    assert run.steps()[-1] == "3-r0/9"


@pytest.mark.parametrize("when", ["fenced", "after the loop"])
def test_after_a_signal_what_is_no_consequence_of_it_keeps_its_name(tmp_path: Path, when: str) -> None:
    def train(ctx: al.Context) -> None:
        ctx.n = 0
        for step in ctx.steps():
            if step == 4 and when == "fenced":
                make_attempt(tmp_path, k=2)
            if step == (4 if when == "fenced" else 9):
                os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("after the loop")

    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises((Fenced, ValueError), match="has begun" if when == "fenced" else when):
            Run(tmp_path, train, async_save=False).attempt()
    finally:
        signal.signal(signal.SIGTERM, before)
