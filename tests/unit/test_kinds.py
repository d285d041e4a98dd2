"""Each kind of managed value is captured as it is now and restored into the object that the user has."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alchemy.checkpoint.writing import Sink
from alchemy.errors import ConfigurationError
from alchemy.state import kinds
from alchemy.state.kinds import Blob, Holder, Owner, Saved, hold
from tests.support.statehash import digest


def saved(holder: Holder, directory: Path) -> Saved:
    """Capture, change nothing, and write; return what a checkpoint would say."""
    captured = holder.capture()
    if not isinstance(captured, Blob):
        return Saved(holder.kind, captured.form)
    path = directory / f"value{captured.suffix}"
    with Sink(path) as sink:
        captured.write(sink)
        sink.finish()
    return Saved(holder.kind, captured.note, path)


def _trained() -> Any:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


STATES = {
    "module": lambda: _trained()[0],
    "optimizer": lambda: _trained()[1],
    "scheduler": lambda: torch.optim.lr_scheduler.MultiStepLR(_trained()[1], [3, 3, 7]),
    "scaler": lambda: torch.amp.GradScaler("cpu", init_scale=3.0),
    "average": lambda: torch.optim.swa_utils.AveragedModel(_trained()[0]),
}


@pytest.mark.parametrize("make", STATES.values(), ids=STATES.keys())
def test_objects_with_a_state_dict(tmp_path: Path, make: Any) -> None:
    first, then = make(), make()
    holder = hold(then, Owner(0))
    holder.restore(saved(hold(first, Owner(0)), tmp_path))
    assert holder.value is then
    assert digest(then.state_dict()) == digest(first.state_dict())


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (np.arange(6.0).reshape(2, 3), np.zeros((2, 3))),
        (np.array([1, 2], dtype=np.int8), np.array([0, 0], dtype=np.int8)),
        (np.array(5.0), np.array(0.0)),
        (torch.arange(4), torch.zeros(4, dtype=torch.int64)),
        (torch.tensor(2.0, requires_grad=True), torch.tensor(0.0, requires_grad=True)),
        ([1, {"a": (2.5, None)}], []),
        ({"a": 1}, {"b": 2}),
    ],
    ids=["array", "int8", "array of one", "tensor", "parameter", "list", "dict"],
)
def test_values_that_can_change_change_in_place(tmp_path: Path, value: Any, other: Any) -> None:
    holder = hold(other, Owner(0))
    holder.restore(saved(hold(value, Owner(0)), tmp_path))
    assert holder.value is other
    assert repr(other) == repr(value)


@pytest.mark.parametrize("value", [1, 2.5, True, None, "text", (1, 2), np.float32(0.1), np.int64(7)])
def test_values_that_can_not_are_replaced(tmp_path: Path, value: Any) -> None:
    holder = hold(type(value)(0) if isinstance(value, np.generic) else 0, Owner(0))
    holder.restore(saved(hold(value, Owner(0)), tmp_path))
    assert (holder.value, type(holder.value)) == (value, type(value))


def test_private_generators_go_on(tmp_path: Path) -> None:
    draws: dict[Any, Any] = {
        lambda: random.Random(3): lambda g: g.random(),  # noqa: S311
        lambda: np.random.default_rng(3): lambda g: g.random(),
        lambda: torch.Generator().manual_seed(3): lambda g: torch.rand(1, generator=g).item(),
    }
    for make, draw in draws.items():
        first, then = make(), make()
        draw(first)
        state = saved(hold(first, Owner(0)), tmp_path)
        hold(then, Owner(0)).restore(state)
        assert draw(then) == draw(first)


def test_a_capture_is_not_reached_by_later_changes(tmp_path: Path) -> None:
    for value, change in (
        (np.zeros(3), lambda v: v.fill(1)),
        (torch.zeros(3), lambda v: v.fill_(1)),
        ([0], lambda v: v.append(1)),
        (torch.nn.Linear(1, 1), lambda v: torch.nn.init.constant_(v.weight, 9.0)),
    ):
        holder = hold(value, Owner(0))
        before = saved(holder, _fresh(tmp_path))
        captured = holder.capture()
        change(value)
        if isinstance(captured, Blob):
            path = _fresh(tmp_path) / "value"
            with Sink(path) as sink:
                captured.write(sink)
                sink.finish()
            assert before.path is not None
            assert path.read_bytes() == before.path.read_bytes()
        else:
            assert captured.form == before.form


def _fresh(tmp_path: Path) -> Path:
    directory = tmp_path / str(len(list(tmp_path.iterdir())))
    directory.mkdir()
    return directory


def test_an_array_of_python_objects_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Python objects"):
        hold(np.array([object()]), Owner(0))


def test_a_custom_value_is_what_its_functions_make_of_it(tmp_path: Path) -> None:
    def save(value: set[int]) -> bytes:
        return ",".join(map(str, sorted(value))).encode()

    def load(value: set[int], data: bytes) -> None:
        value |= set(map(int, data.split(b",")))

    first, then = {3, 5}, set[int]()
    kinds.CustomHolder(then, save, load).restore(saved(kinds.CustomHolder(first, save, load), tmp_path))
    assert then == first


def test_a_custom_value_that_is_not_bytes_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="returned str and not bytes"):
        kinds.CustomHolder(1, str, lambda *_: None).capture()  # type: ignore[arg-type]
