"""What checkpoints, logging and heartbeats cost two small trainings, against the same loops without them.

The trainings are those of the examples, in this process, on one thread: `ctx_scaling` draws its batches
itself, `resume` reads them from a shuffling DataLoader. Both arms of each draw the same random numbers and
end with the same weights, which is checked.
"""

from __future__ import annotations

import importlib.util
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

import alchemy as al
import alchemy_agent as agent
from alchemy.execution import execute
from alchemy.recording.recorder import FileRecorder
from alchemy.runspec import CodeRef, RunSpec
from benchmarks._measure import PROJECT, arguments, goal, header, interleaved, medians, table

SEED = 7
GOAL = 1.03


class Plain:
    """A context without us: attributes, a bare loop, and calls that do nothing."""

    def __init__(self, steps: int) -> None:
        self.total_steps = steps

    def steps(self) -> Iterator[int]:
        return iter(range(self.total_steps))

    def log(self, **metrics: Any) -> None:
        """Forget them."""


def main() -> None:
    parser = arguments(__doc__, repeats=20)
    parser.add_argument("--steps", type=int, default=3000, metavar="N", help="steps (%(default)s)")
    parser.add_argument("--every", type=int, default=1000, metavar="N", help="cadence (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    header(f"trainings of {options.steps} steps, a checkpoint every {options.every}, log each step")
    for name, train in (("ctx_scaling", _ctx_scaling()), ("resume", _resume(options.steps))):
        _compare(name, train, options.steps, options.every, options.repeats)


def _compare(name: str, train: Callable[[Any], Any], steps: int, every: int, repeats: int) -> None:
    arms = {"stripped": partial(_stripped, train, steps), "managed": partial(_managed, train, steps, every)}
    for arm in arms.values():
        arm()  # imports, caches, the first touch of memory
    seen = interleaved(arms, repeats)
    weights = {weight for figures in seen.values() for _, weight in figures}
    assert len(weights) == 1, "the two arms did not train the same model"
    print(f"  {name}")
    table(medians(seen, lambda figure: figure[0]), base="stripped", unit="s", digits=3)
    pairs = zip(seen["managed"], seen["stripped"], strict=True)
    ratios = [managed[0] / stripped[0] for managed, stripped in pairs]
    goal(f"managed over stripped, median of {len(ratios)} pairs", statistics.median(ratios), GOAL)
    print()


def _example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, PROJECT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _ctx_scaling() -> Callable[[Any], Any]:
    example = _example("ctx_scaling")
    pictures, _, _ = example.digits()

    def train(ctx: Any) -> None:
        ctx.model = example.JEMAModel(ctx_len=32)
        ctx.optimizer = torch.optim.Adam(ctx.model.parameters(), lr=2e-3)
        for _ in ctx.steps():
            loss = ctx.model.loss(pictures[torch.randint(len(pictures), (256,))])
            ctx.optimizer.zero_grad()
            loss.backward()
            ctx.optimizer.step()
            ctx.model.follow()
            ctx.log(loss=loss)
        _weights.append(_sum(ctx.model))

    return train


def _resume(steps: int) -> Callable[[Any], Any]:
    example = _example("resume")
    data = example.load(train=True)

    def train(ctx: Any) -> None:
        ctx.loader = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True)
        ctx.model = torch.nn.Sequential(
            torch.nn.Linear(64, 256),
            torch.nn.BatchNorm1d(256),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(256, 10),
        )
        ctx.optimizer = torch.optim.AdamW(ctx.model.parameters(), lr=0.01)
        ctx.schedule = torch.optim.lr_scheduler.OneCycleLR(ctx.optimizer, max_lr=0.01, total_steps=steps)
        for _, (pictures, labels) in zip(ctx.steps(), example.batches(ctx.loader), strict=False):
            noisy = pictures + 0.2 * torch.randn_like(pictures)
            loss = torch.nn.functional.cross_entropy(ctx.model(noisy), labels)
            ctx.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            ctx.optimizer.step()
            ctx.schedule.step()
            ctx.log(loss=loss)
        _weights.append(_sum(ctx.model))

    return train


_weights: list[float] = []


def _sum(model: torch.nn.Module) -> float:
    return sum(float(parameter.detach().double().sum()) for parameter in model.parameters())


def _stripped(train: Callable[[Any], Any], steps: int) -> tuple[float, float]:
    random.seed(SEED)
    torch.manual_seed(SEED)
    started = time.perf_counter()
    train(Plain(steps))
    return time.perf_counter() - started, _weights.pop()


def _managed(train: Callable[[Any], Any], steps: int, every: int) -> tuple[float, float]:
    task = al.experiment("bench").task(train, total_steps=steps, checkpoint_every=every)
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=Path.cwd()) as name:
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
        return time.perf_counter() - started, _weights.pop()


if __name__ == "__main__":
    main()
