"""`al.managed`: a loop without an experiment, and names for the kinds of values."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import alchemy as al
import alchemy_agent as agent
from alchemy.errors import ConfigurationError
from tests.support.agentlab import eventually, plain_environment, record, start_wrapped
from tests.support.sdklab import make_context

if TYPE_CHECKING:
    from typing_extensions import assert_type

managed = al.managed


@pytest.fixture(autouse=True)
def _no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(agent.TASK_ID, raising=False)


def test_called_like_a_function_it_trains_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    @al.managed(total_steps=5, checkpoint_every=2)
    def train(ctx: al.Context) -> int:
        """Count."""
        ctx.n = 0
        for _ in ctx.steps():
            ctx.n += ctx.param("by", 2)
        return int(ctx.n)

    assert (train(), vars(train)["__name__"], train.__doc__) == (10, "train", "Count.")
    assert list(tmp_path.iterdir()) == []


def _of_nothing() -> None: ...


@pytest.mark.parametrize(
    ("decorate", "complaint"),
    [
        (lambda: al.managed(total_steps=0), "total_steps"),
        (lambda: al.managed(total_steps=1, checkpoint_every=0), "checkpoint_every"),
        (lambda: al.managed(total_steps=1)(_of_nothing), "must take one argument"),  # type: ignore[arg-type]
        (lambda: al.managed(total_steps=1, context=int), "subclass of al.Context"),  # type: ignore[arg-type]
    ],
)
def test_what_can_not_be_meant_is_named(decorate: Any, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        decorate()


class Typed(al.Context):
    model = managed.Torch[torch.nn.Linear]()
    seen = managed.Json[int]()
    anything = managed.Torch[Any]()


def test_a_typed_context_has_the_users_types() -> None:
    ctx = make_context(kind=Typed)
    assert isinstance(ctx, Typed)
    ctx.model = torch.nn.Linear(1, 1)
    ctx.seen = 3
    if TYPE_CHECKING:  # `make lint` fails if these are not so
        assert_type(ctx.model, torch.nn.Linear)
        assert_type(ctx.seen, int)
    assert isinstance(ctx.model, torch.nn.Linear)
    assert ctx.seen == 3
    del ctx.seen
    assert not hasattr(ctx, "seen")


def test_a_declared_name_takes_only_what_it_was_declared_for() -> None:
    ctx = make_context(kind=Typed)
    with pytest.raises(ConfigurationError, match=r"ctx\.model can't be managed.*managed\.Torch.*int"):
        ctx.model = 3
    with pytest.raises(AttributeError, match=r"ctx\.model has no value yet"):
        _ = ctx.model
    plain = make_context()
    plain.model = managed.Torch()
    with pytest.raises(AttributeError):
        _ = plain.model
    with pytest.raises(ConfigurationError, match=r"ctx\.model can't be managed"):
        plain.model = {"a": 1}
    plain.model = torch.nn.Linear(1, 1)
    for declared, value in (
        (managed.Json(), object()),
        (managed.Array(), [1.0]),
        (managed.Generator(), 3),
        (managed.Loader(), [1]),
    ):
        plain.value = declared
        with pytest.raises(ConfigurationError, match=r"ctx\.value can't be managed"):
            plain.value = value


def test_a_class_of_contexts_can_not_take_our_names() -> None:
    with pytest.raises(ConfigurationError, match=r"ctx\.step is taken"):
        type("Bad", (al.Context,), {"step": managed.Json()})


PROGRAM = """
import alchemy as al, os, signal, sys, time

@al.managed(total_steps=2000, checkpoint_every=10)
def train(ctx):
    ctx.total = 0
    for step in ctx.steps():
        ctx.total += step
        time.sleep(0.002)
    print("total", ctx.total)

train()
"""


def test_a_wrapped_program_that_is_killed_goes_on_and_one_that_is_stopped_says_so(tmp_path: Path) -> None:
    program, run = tmp_path / "train.py", agent.RunDir(tmp_path / "run")
    program.write_text(PROGRAM)

    def has_saved(name: str) -> bool:
        return any(Path(run.checkpoints, name).glob("*/committed.json"))

    with start_wrapped(Path(run.path), [sys.executable, str(program)]) as first:
        eventually(lambda: has_saved("1-r0"))
        child = _child_of(first.pid)
        os.kill(child, signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
    with start_wrapped(Path(run.path), [sys.executable, str(program)]) as second:
        eventually(lambda: has_saved("2-r0"))
        second.send_signal(signal.SIGTERM)
        assert second.wait() == 75
    assert record(run.attempt("2-r0").resume)["from"]["attempt"] == "1-r0"
    assert record(run.attempt("2-r0").result)["status"] == "stopped"
    done = subprocess.run(
        [sys.executable, agent.__file__, "--job-dir", run.path, "--", sys.executable, str(program)],
        env=plain_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"total {sum(range(2000))}\n"
    third = record(run.attempt("3-r0").result)
    assert third["resumed_from"] == record(run.attempt("2-r0").result)["steps"] - 1
    assert json.dumps(third["checkpoint"])


def _child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
