"""What checkpoints, logging and heartbeats cost a real small training, against the loop without them.

The network of examples/resume.py learns the digits, in this process, on one thread. Both arms draw the same
batches, noise and dropout, and end with the same weights, which is checked.
"""

from __future__ import annotations

import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

import alchemy as al
import alchemy_agent as agent
from alchemy.execution import execute
from alchemy.experiment import Task
from alchemy.recording.recorder import FileRecorder
from alchemy.runspec import CodeRef, RunSpec
from benchmarks._measure import arguments, goal, header, interleaved, medians, table

SEED = 7


def main() -> None:
    parser = arguments(__doc__, repeats=20)
    parser.add_argument("--steps", type=int, default=6000, metavar="N", help="steps (%(default)s)")
    parser.add_argument("--every", type=int, default=1000, metavar="N", help="cadence (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    header(f"a training of {options.steps} steps, a checkpoint every {options.every}, log each step")
    data = _digits()
    task = _task(options.steps, options.every, data)
    arms = {
        "stripped": partial(_stripped, options.steps, data),
        "managed": partial(_managed, task, options.steps),
    }
    for arm in arms.values():
        arm()  # imports, caches, the first touch of memory
    seen = interleaved(arms, options.repeats)
    weights = {weight for figures in seen.values() for _, weight in figures}
    assert len(weights) == 1, "the two arms did not train the same model"
    table(medians(seen, lambda figure: figure[0]), base="stripped", unit="s", digits=3)
    ratios = [
        managed[0] / stripped[0] for managed, stripped in zip(seen["managed"], seen["stripped"], strict=True)
    ]
    goal(f"managed over stripped, median of {len(ratios)} pairs", statistics.median(ratios), 1.03)


def _digits() -> TensorDataset:
    digits = load_digits()
    return TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))


def _model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 10)
    )


def _batches(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def _schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    batch: Any,
) -> torch.Tensor:
    pictures, labels = batch
    loss = F.cross_entropy(model(pictures + 0.2 * torch.randn_like(pictures)), labels)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    schedule.step()
    return loss


def _stripped(steps: int, data: TensorDataset) -> tuple[float, float]:
    random.seed(SEED)
    torch.manual_seed(SEED)
    started = time.perf_counter()
    loader = DataLoader(data, batch_size=64, shuffle=True)
    model = _model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = _schedule(optimizer, steps)
    for batch in itertools.islice(_batches(loader), steps):
        _step(model, optimizer, schedule, batch)
    return time.perf_counter() - started, _weight(model)


def _task(steps: int, every: int, data: TensorDataset) -> Task:
    exp = al.experiment("bench")

    @exp.task(total_steps=steps, checkpoint_every=every)
    def train(ctx: al.Context) -> None:
        ctx.loader = DataLoader(data, batch_size=64, shuffle=True)
        ctx.model = _model()
        ctx.optimizer = torch.optim.AdamW(ctx.model.parameters(), lr=0.01)
        ctx.schedule = _schedule(ctx.optimizer, steps)
        for _, batch in zip(ctx.steps(), _batches(ctx.loader), strict=False):
            ctx.log(loss=_step(ctx.model, ctx.optimizer, ctx.schedule, batch))
        _kept.append(_weight(ctx.model))

    return train


_kept: list[float] = []


def _managed(task: Task, steps: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(prefix="bench-", dir=Path.cwd()) as name:
        attempt = agent.claim_attempt(agent.RunDir(str(Path(name, "jobs", "run"))), 1, 0)
        incarnation = agent.begin(attempt)
        heartbeat = agent.Heartbeat(attempt, incarnation)
        spec = RunSpec(
            run="run",
            experiment="bench",
            task="train",
            case="",
            params={},
            total_steps=steps,
            eval_every=None,
            seed=SEED,
            seed_rng=True,
            fingerprint="0",
            code=CodeRef("", "", (), ""),
        )
        started = time.perf_counter()
        heartbeat.start()
        execute(task, spec, FileRecorder(attempt, incarnation))
        heartbeat.stop()
        return time.perf_counter() - started, _kept.pop()


def _weight(model: nn.Module) -> float:
    return sum(float(parameter.detach().double().sum()) for parameter in model.parameters())


if __name__ == "__main__":
    main()
