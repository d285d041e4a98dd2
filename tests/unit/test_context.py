"""What a task may do with its context, and what it is told when it can't."""

from __future__ import annotations

import decimal
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alchemy.errors import ConfigurationError, MissingParameter
from alchemy.recording.scalars import PendingScalar, Scalar
from alchemy.result import Evaluation
from tests.support.sdklab import Notes, make_context


def test_the_loop_counts_its_steps_and_shows_the_current_one() -> None:
    ctx = make_context(total_steps=4)
    assert (ctx.step, ctx.total_steps) == (0, 4)
    assert [(step, ctx.step) for step in ctx.steps()] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert ctx.step == 3


def test_a_task_has_one_loop() -> None:
    ctx = make_context()
    for _ in ctx.steps():
        break
    with pytest.raises(ConfigurationError, match=r"second time.*epochs"):
        ctx.steps()


def test_what_has_to_happen_before_the_first_step_happens_once() -> None:
    calls: list[str] = []
    ctx = make_context(total_steps=3, before_steps=lambda: calls.append("before"))
    assert calls == []
    calls += [f"step {step}" for step in ctx.steps()]
    assert calls == ["before", "step 0", "step 1", "step 2"]


@given(total=st.integers(1, 60), every=st.integers(1, 70))
def test_an_evaluation_is_due_every_so_many_steps_and_after_the_last(total: int, every: int) -> None:
    ctx = make_context(total, every)
    due = [step for step in ctx.steps() if ctx.should_eval()]
    assert due == sorted({*range(every - 1, total, every), total - 1})


def test_without_a_period_the_only_evaluation_is_after_the_last_step() -> None:
    ctx = make_context(total_steps=5)
    assert not ctx.should_eval()
    assert [step for step in ctx.steps() if ctx.should_eval()] == [4]


def test_rows_carry_the_step_before_within_and_after_the_loop() -> None:
    notes = Notes()
    ctx = make_context(total_steps=2, recorder=notes)
    ctx.log(loss=9)
    for step in ctx.steps():
        ctx.log(loss=step)
    ctx.log({"loss": 0.5, "x/y": 1}, acc=0.25)
    rows: list[tuple[int, dict[str, Scalar]]] = [
        (0, {"loss": 9.0}),
        (0, {"loss": 0.0}),
        (1, {"loss": 1.0}),
        (1, {"loss": 0.5, "x/y": 1.0, "acc": 0.25}),
    ]
    assert notes.rows == rows
    assert notes.last_metrics() == {"loss": 0.5, "x/y": 1.0, "acc": 0.25}


NUMBERS: list[tuple[Any, float]] = [
    (2, 2.0),
    (True, 1.0),
    (np.float32(0.5), 0.5),
    (np.float64(0.5), 0.5),
    (np.int8(3), 3.0),
    (np.bool_(True), 1.0),
    (np.array(0.25), 0.25),
    (torch.tensor(0.5, requires_grad=True), 0.5),
    (torch.tensor(3), 3.0),
    (torch.tensor(True), 1.0),
    (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
    (math.inf, math.inf),
]


@pytest.mark.parametrize(("value", "number"), NUMBERS)
def test_numbers_of_any_library_become_floats_at_the_call(value: Any, number: float) -> None:
    notes = Notes()
    ctx = make_context(recorder=notes)
    ctx.log(loss=value)
    ctx.log_eval({"loss": value})
    (logged,) = notes.rows[0][1].values()
    assert (logged, type(logged)) == (number, float)
    assert notes.evaluations == [Evaluation(0, {"loss": number})]


def test_a_tensor_changed_later_was_read_before() -> None:
    notes = Notes()
    loss = torch.tensor(1.0)
    make_context(recorder=notes).log(loss=loss)
    loss += 1
    assert notes.rows == [(0, {"loss": 1.0})]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_tensor_on_a_gpu_is_copied_there_and_read_later() -> None:
    notes = Notes()
    ctx = make_context(recorder=notes)
    loss = torch.tensor(1.0, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        ctx.log(loss=loss)
        loss += 1
    assert isinstance(notes.rows[0][1]["loss"], PendingScalar)
    assert notes.last_metrics() == {"loss": 1.0}


def test_nan_is_a_value() -> None:
    notes = Notes()
    ctx = make_context(recorder=notes)
    ctx.log(loss=torch.tensor(math.nan))
    assert math.isnan(notes.last_metrics()["loss"])


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("0.3", "str"),
        (None, "NoneType"),
        (1j, "complex"),
        ([1.0], "list"),
        ({"a": 1}, "dict"),
        (np.array("x"), "numpy.ndarray"),
        (np.datetime64("2020-01-01"), "numpy.datetime64"),
        (torch.tensor(1j), "torch.Tensor"),
        (decimal.Decimal(1), "decimal.Decimal"),
        (Fraction(1, 2), "fractions.Fraction"),
        (10**400, "too large"),
    ],
)
def test_anything_else_is_refused_at_the_call_which_names_the_metric(value: Any, kind: str) -> None:
    ctx = make_context()
    for record in (ctx.log, ctx.log_eval):
        with pytest.raises(ConfigurationError, match=rf"'loss'.*{kind}"):
            record(acc=0.5, loss=value)
        with pytest.raises(ConfigurationError, match=rf"'loss'.*{kind}"):
            record({"loss": value})


@pytest.mark.parametrize("value", [torch.ones(1), torch.ones(2, 3), np.ones(4)])
def test_several_numbers_are_refused_with_their_shape_and_a_way_out(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"'loss'.*of shape \(.*mean"):
        make_context().log(loss=value)


def test_metrics_are_a_mapping_with_names() -> None:
    ctx = make_context()
    with pytest.raises(ConfigurationError, match=r"ctx.log takes a mapping.*not float"):
        ctx.log(0.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"ctx.log_eval.*must be a str, not int"):
        ctx.log_eval({1: 0.5})  # type: ignore[dict-item]


def test_parameters_are_those_of_the_case() -> None:
    ctx = make_context(params={"ctx_len": 16})
    assert ctx.param("ctx_len") == 16
    assert ctx.param("lr", default=1e-3) == 1e-3
    with pytest.raises(MissingParameter, match=r"'lr'.*the case has ctx_len"):
        ctx.param("lr")


def test_attributes_of_ones_own_are_free_and_ours_are_taken() -> None:
    ctx = make_context()
    ctx.history = history = [1, 2]
    assert ctx.history is history
    for name in ("step", "steps", "params", "log", "total_steps"):
        with pytest.raises(ConfigurationError, match=rf"ctx.{name} is taken"):
            setattr(ctx, name, 1)
    with pytest.raises(AttributeError, match=r"optimizer"):
        _ = ctx.optimizer


def test_parameters_are_for_reading() -> None:
    ctx = make_context(params={"lr": 0.1})
    with pytest.raises(TypeError):
        ctx.params["lr"] = 5.0  # type: ignore[index]
    assert ctx.param("lr") == 0.1
