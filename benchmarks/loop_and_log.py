"""What a step pays: `ctx.steps()` against a bare loop, tqdm and rich; `ctx.log` of floats and of a tensor.

The loops have empty bodies; tqdm and rich write to a file that is no terminal, their cheapest case. A
loop's cost is what a step takes beyond the bare `for`. For `ctx.log`, "caller" is the time until the call
returns, while the writing thread sleeps (it wakes twice a second); "until written" is the time from the
first of many calls until all rows have been handed to the operating system, per row.
"""

from __future__ import annotations

import importlib.util
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import alchemy_agent as agent
from alchemy.context import Context
from alchemy.live.params import LiveParams
from alchemy.loop.cadence import Checkpointing
from alchemy.loop.lifecycle import Lifecycle
from alchemy.loop.position import Position
from alchemy.recording.recorder import FileRecorder, NullRecorder, Recorder
from benchmarks._measure import arguments, goal, header, interleaved, medians, table

BURST = 1000


def main() -> None:
    parser = arguments(__doc__, repeats=7)
    parser.add_argument("--steps", type=int, default=1_000_000, metavar="N", help="per loop (%(default)s)")
    options = parser.parse_args()
    header("the loop and the log")
    _loops(options.steps, options.repeats)
    _logs(options.steps // 10, options.repeats)


def _loops(steps: int, repeats: int) -> None:
    tqdm: Any = importlib.import_module("tqdm")  # has no types
    progress: Any = importlib.import_module("rich.progress")
    console: Any = importlib.import_module("rich.console")

    def ours() -> Iterable[int]:
        return _context(steps, NullRecorder()).steps()

    def with_rich() -> Iterable[int]:
        tracked: Iterable[int] = progress.track(range(steps), console=console.Console(file=io.StringIO()))
        return tracked

    loops: dict[str, Callable[[], Iterable[int]]] = {
        "bare for": lambda: range(steps),
        "ctx.steps()": ours,
        "tqdm": lambda: tqdm.tqdm(range(steps), file=io.StringIO()),
        "rich.progress.track": with_rich,
    }
    arms = {name: partial(_per_step, make, steps) for name, make in loops.items()}
    costs = medians(interleaved(arms, repeats), float)
    table(costs, base="ctx.steps()", unit="ns per step", digits=1)
    over = {name: value - costs["bare for"] for name, value in costs.items()}
    goal("ctx.steps() over the bare loop, against tqdm", over["ctx.steps()"] / over["tqdm"], 0.4)
    goal("and against rich", over["ctx.steps()"] / over["rich.progress.track"], 1.0)
    print()


def _per_step(make: Callable[[], Iterable[int]], steps: int) -> float:
    started = time.perf_counter()
    for _ in make():
        pass
    return 1e9 * (time.perf_counter() - started) / steps


def _logs(rows: int, repeats: int) -> None:
    arms: dict[str, Callable[[], float]] = {
        "ctx.log of 3 floats, caller": lambda: _caller(_log_floats),
        "ctx.log of 3 floats, until written": lambda: _until_written(rows),
        "json.dumps and write, flushed at the end": lambda: _plain_json(rows),
        **_tensor_arms(),
    }
    costs = medians(interleaved(arms, repeats), float)
    table(costs, base="ctx.log of 3 floats, caller", unit="us per call")
    goal("ctx.log of 3 floats, caller", costs["ctx.log of 3 floats, caller"], 0.5, "us")
    goal("until written", costs["ctx.log of 3 floats, until written"], 1.5, "us")


def _log_floats(context: Context) -> None:
    for _ in range(BURST):
        context.log(loss=0.25, accuracy=0.875, lr=0.001)


def _caller(burst: Callable[[Context], None]) -> float:
    """Return the median microseconds per call of a burst after which the writer catches up, untimed."""
    with _recording() as (context, recorder):
        times = []
        for _ in range(30):
            started = time.perf_counter()
            burst(context)
            times.append(time.perf_counter() - started)
            recorder.flush()
    return 1e6 * sorted(times)[len(times) // 2] / BURST


def _until_written(rows: int) -> float:
    with _recording() as (context, recorder):
        started = time.perf_counter()
        for _ in range(rows // BURST):
            _log_floats(context)
        recorder.flush()
        return 1e6 * (time.perf_counter() - started) / (rows // BURST * BURST)


def _plain_json(rows: int) -> float:
    with tempfile.TemporaryFile("w") as file:
        started = time.perf_counter()
        for step in range(rows):
            row: Mapping[str, Any] = {"loss": 0.25, "accuracy": 0.875, "lr": 0.001}
            file.write(json.dumps({"step": step, "t": time.time(), "m": row}) + "\n")
        file.flush()
        return 1e6 * (time.perf_counter() - started) / rows


def _tensor_arms() -> dict[str, Callable[[], float]]:
    if importlib.util.find_spec("torch") is None:
        print("  (torch is not installed: no tensors)")
        return {}
    loss: Any = importlib.import_module("torch").tensor(0.25)

    def log(context: Context) -> None:
        for _ in range(BURST):
            context.log(loss=loss)

    def log_item(context: Context) -> None:
        for _ in range(BURST):
            context.log(loss=loss.item())

    return {
        "ctx.log of a CPU tensor, caller": lambda: _caller(log),
        "ctx.log of its .item(), caller": lambda: _caller(log_item),
    }


def _context(steps: int, recorder: Recorder) -> Context:
    position = Position()
    recorder.follow(position, steps)
    lifecycle = Lifecycle(
        position=position,
        params=LiveParams({}),
        recorder=recorder,
        checkpointing=Checkpointing(),
        seed=0,
        total_steps=steps,
    )
    return Context(lifecycle=lifecycle, recorder=recorder, eval_every=None)


@contextmanager
def _recording() -> Iterator[tuple[Context, FileRecorder]]:
    """Lend a context that writes the files of a real attempt."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        attempt = agent.claim_attempt(agent.RunDir(str(Path(name, "run"))), 1, 0)
        recorder = FileRecorder(attempt, agent.begin(attempt))
        yield _context(1, recorder), recorder
        recorder.abandon()


if __name__ == "__main__":
    main()
