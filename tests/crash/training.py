"""A small training that has one of everything that must survive; what the kill tests and ablations run.

It takes two milliseconds a step. All that it draws and counts is seeded by the parameters `PARAMS`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from alchemy.context import Context
from alchemy.state import loader, rng

__all__ = ["BATCHES", "PARAMS", "STATES", "Watch", "Waves", "make_training", "states"]

PARAMS: dict[str, Any] = {"seed": 11, "lr": 0.01, "noise": 0.05}
BATCHES = 11
"""Batches in an epoch."""
STATES = ("model", "optimizer", "scheduler", "scaler", "ema", "loader", "private", "histogram", "counters")
"""Names of the managed values."""
_BATCH = 4
_CLASSES = 3


class Watch(Protocol):
    """Sees the training from inside."""

    def begins(self, ctx: Context, step: int) -> None:
        """A step begins."""

    def logged(self, step: int, kind: str) -> None:
        """The step's row has been handed to `ctx.log` ("metrics") or `ctx.log_eval` ("evals")."""

    def ends(self, states: dict[str, Any]) -> None:
        """The loop is over."""


class Waves(Dataset[tuple[torch.Tensor, int]]):
    """Noisy waves to be told apart, augmented by Python's and numpy's global generators."""

    def __init__(self) -> None:
        fixed = np.random.default_rng(5)
        self.labels = fixed.integers(0, _CLASSES, _BATCH * BATCHES)
        times = np.linspace(0, 1, 8)
        self.waves = np.sin(times * (1 + self.labels[:, None])) + 0.3 * fixed.standard_normal((44, 8))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        wave = self.waves[index] * random.choice((1.0, 0.9, 1.1))  # noqa: S311
        wave = wave + 0.01 * np.random.standard_normal(wave.shape)
        return torch.tensor(wave, dtype=torch.float32), int(self.labels[index])


def make_training(watch: Watch) -> Callable[[Context], None]:
    """Return the user's function; it contains no line about saving or resuming."""

    def train(ctx: Context) -> None:
        _assign(ctx)
        batches = _endless(ctx.loader)
        for step in ctx.steps():
            watch.begins(ctx, step)
            inputs, labels = next(batches)
            loss = _update(ctx, inputs, labels)
            _count(ctx, labels, loss)
            ctx.log(loss=loss, lr=ctx.scheduler.get_last_lr()[0], scale=ctx.scaler.get_scale())
            watch.logged(step, "metrics")
            if ctx.should_eval():
                ctx.log_eval(_evaluate(ctx))
                watch.logged(step, "evals")
        watch.ends(states(ctx))

    return train


def states(ctx: Context) -> dict[str, Any]:
    """Return every state of a training whose loop is over, by name; drawing and changing nothing."""
    live = {name: getattr(ctx, name) for name in STATES}
    live["private"] = rng.capture_generator(ctx.private)
    live["loader"] = loader.adopt(ctx.loader, seed=0).capture()
    generators = {f"rng.{library}": state for library, state in rng.capture().items()}
    return {**live, **generators, "total": ctx.total, "noise": ctx.param("noise")}


def _evaluate(ctx: Context) -> dict[str, float]:
    """Return what the averaged model makes of fixed data."""
    ctx.ema.eval()
    with torch.no_grad():
        inputs = torch.linspace(-1, 1, 5 * 8).reshape(5, 8)
        values = ctx.ema(inputs).double()
    ctx.ema.train()
    return {"mean": values.mean().item(), "spread": values.std().item()}


def _assign(ctx: Context) -> None:
    ctx.model = torch.nn.Sequential(
        torch.nn.Linear(8, 16),
        torch.nn.BatchNorm1d(16),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(16, _CLASSES),
    )
    lr = ctx.param("lr")
    ctx.optimizer = torch.optim.AdamW(ctx.model.parameters(), lr=lr)
    ctx.scheduler = OneCycleLR(ctx.optimizer, max_lr=10 * lr, total_steps=ctx.total_steps)
    ctx.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=7)
    ctx.ema = AveragedModel(ctx.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))  # type: ignore[no-untyped-call]
    ctx.loader = DataLoader(Waves(), batch_size=_BATCH, shuffle=True)
    ctx.private = torch.Generator().manual_seed(3)
    ctx.histogram = np.zeros(_CLASSES, dtype=np.int64)
    ctx.counters = {"samples": 0, "best": None, "last losses": []}
    ctx.total = 0.0


def _update(ctx: Context, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    inputs = inputs + ctx.param("noise") * torch.randn(inputs.shape, generator=ctx.private)
    loss = torch.nn.functional.cross_entropy(ctx.model(inputs), labels)
    ctx.optimizer.zero_grad()
    ctx.scaler.scale(loss).backward()
    ctx.scaler.unscale_(ctx.optimizer)
    torch.nn.utils.clip_grad_norm_(ctx.model.parameters(), 1.0)
    ctx.scaler.step(ctx.optimizer)
    ctx.scaler.update()
    ctx.scheduler.step()
    ctx.ema.update_parameters(ctx.model)
    return loss.item()


def _count(ctx: Context, labels: torch.Tensor, loss: float) -> None:
    ctx.total += loss
    ctx.histogram += np.bincount(labels.numpy(), minlength=_CLASSES)
    counters = ctx.counters
    counters["samples"] += len(labels)
    counters["best"] = loss if counters["best"] is None else min(loss, counters["best"])
    counters["last losses"] = [*counters["last losses"][-3:], loss]


def _endless(batches: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from batches
