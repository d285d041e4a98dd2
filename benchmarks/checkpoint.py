"""What a checkpoint of model and Adam costs: how long the loop waits, and how long until it is safe.

"Blocked" is what the training waits for, "committed" the time from the call until the bytes would survive a
power loss, ours with all hashes, manifest and marker. All peers write the same state to the same disk in
turns; each one's first save, in which memory is allocated, isn't counted. While the bytes are being written
nothing else runs.
"""

from __future__ import annotations

import gc
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint.state_dict_saver import async_save

import alchemy_agent as agent
from alchemy.checkpoint.writing import Part
from alchemy.loop.saver import Contents, Saver
from alchemy.state.kinds import Blob
from alchemy.state.values import ManagedValues
from benchmarks._measure import arguments, goal, header, interleaved, medians, table
from benchmarks._training import Training, directory

OURS, RAW, SAVE, DCP = "ours", "raw write + fsync", "torch.save + fsync, atomic", "DCP async_save"


class Saved(NamedTuple):
    """What one save took, in seconds since it was asked for."""

    blocked: float
    """Until the loop went on."""
    committed: float
    """Until it was on the disk."""


class Goals(NamedTuple):
    """The most that ours may take, relative to a peer."""

    blocked: float
    """To torch.save + fsync."""
    committed: float
    """To a raw write + fsync."""


GOALS = {100: Goals(0.25, 2.5), 1000: Goals(0.15, 1.6)}
BLOCKED_TO_DCP = 0.8


def main() -> None:
    parser = arguments(__doc__, repeats=9)
    parser.add_argument(
        "--mb", type=int, nargs="+", default=list(GOALS), metavar="MB", help="sizes (%(default)s)"
    )
    parser.add_argument(
        "--directory", default=".", help="where to write, and what disk to measure (%(default)s)"
    )
    options = parser.parse_args()
    header("checkpoints")
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is meant to be
    for mb in options.mb:
        with directory(options.directory) as place:
            _compare(mb, place, options.repeats)


def _compare(mb: int, place: Path, repeats: int) -> None:
    training = Training(mb * 10**6)
    count = sum(1 for _ in training.tensors())
    print(f"{training.size / 1e6:.0f} MB in {count} tensors, {torch.get_num_threads()} threads of torch")
    with ours(training, place / "run") as save_ours:
        arms: dict[str, Callable[[], Saved]] = {
            OURS: save_ours,
            RAW: partial(_raw, training, place / "raw"),
            SAVE: partial(_torch_save, training, place / "torch"),
            DCP: partial(_dcp, training, place / "dcp"),
        }
        between = partial(_clean, place)
        interleaved(arms, 1, between=between)
        seen = interleaved(arms, repeats, between=between)
    blocked, committed = (medians(seen, of) for of in (lambda s: s.blocked, lambda s: s.committed))
    print(" blocked")
    table(blocked, base=OURS, unit="s", digits=4)
    print(" committed")
    table(committed, base=OURS, unit="s", digits=4)
    limits = GOALS.get(mb)
    if limits is not None:
        goal(f"blocked, to {SAVE}", blocked[OURS] / blocked[SAVE], limits.blocked)
        goal(f"blocked, to {DCP}", blocked[OURS] / blocked[DCP], BLOCKED_TO_DCP)
        goal(f"committed, to {RAW}", committed[OURS] / committed[RAW], limits.committed)
    print()


def _clean(place: Path) -> None:
    """Let no arm pay for what the one before it has left to the disk."""
    for path in place.glob("*/checkpoints/*/*"):
        shutil.rmtree(path)
    for name in ("raw", "torch", "dcp"):
        shutil.rmtree(place / name, ignore_errors=True)
        (place / name).mkdir()
    os.sync()
    gc.collect()


@contextmanager
def ours(training: Training, run: Path) -> Iterator[Callable[[], Saved]]:
    """Lend a function that saves as the loop does: copies on this thread, writes and commits on another."""
    attempt = agent.claim_attempt(agent.RunDir(str(run)), 1, 0)
    values = ManagedValues(seed=0)
    values.assign("model", training.model)
    values.assign("optimizer", training.optimizer)
    steps = iter(range(10**6))
    ended: list[float] = []

    def capture() -> Contents:
        captured = values.capture().items()
        parts = [
            Part(name + each.suffix, each.write) for name, (_, each) in captured if isinstance(each, Blob)
        ]
        return Contents(next(steps), parts, {name: kind for name, (kind, _) in captured}, ())

    saver = Saver(
        attempt,
        keep=2,
        resumed=None,
        before_commit=lambda: None,
        on_end=lambda _: ended.append(time.perf_counter()),
    )

    def save() -> Saved:
        started = time.perf_counter()
        saver.save(capture, is_async=True)
        blocked = time.perf_counter() - started
        saver.wait()
        return Saved(blocked, ended[-1] - started)

    yield save


def _raw(training: Training, place: Path) -> Saved:
    started = time.perf_counter()
    fd = os.open(place / "state", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    for tensor in training.tensors():
        array: Any = tensor.detach().reshape(-1).numpy()
        data = memoryview(array).cast("B")
        while data:
            data = data[os.write(fd, data) :]
    os.fsync(fd)
    os.close(fd)
    return _all_of_it(started)


def _torch_save(training: Training, place: Path) -> Saved:
    started = time.perf_counter()
    with (place / "state.tmp").open("wb") as file:
        torch.save(training.state(), file)
        file.flush()
        os.fsync(file.fileno())
    (place / "state.tmp").rename(place / "state.pt")
    fd = os.open(place, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    return _all_of_it(started)


def _all_of_it(started: float) -> Saved:
    seconds = time.perf_counter() - started
    return Saved(seconds, seconds)


def _dcp(training: Training, place: Path) -> Saved:
    started = time.perf_counter()
    future: Any = async_save(training.state(), checkpoint_id=place / "state", no_dist=True)
    blocked = time.perf_counter() - started
    future.result()
    return Saved(blocked, time.perf_counter() - started)


if __name__ == "__main__":
    main()
