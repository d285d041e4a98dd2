"""What it takes to continue: the newest checkpoint found, verified byte by byte, and loaded.

Compared with `hashlib.sha256` over the same files by one thread, the least that a verification by one thread
could take. All files are in the page cache. Two peers that verify nothing are there for information.
"""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import alchemy_agent as agent
from alchemy.checkpoint.selection import choose
from alchemy.checkpoint.store import write_checkpoint
from alchemy.checkpoint.writing import Part
from alchemy.state.tensors import Buffers, load_into, write_state
from benchmarks._measure import arguments, goal, header, interleaved, medians, table
from benchmarks._training import Training, directory

OURS, HASHED = "ours: choose, verify, load", "hashlib.sha256, one thread"
AT_MOST = 1.2


def main() -> None:
    parser = arguments(__doc__, repeats=9)
    parser.add_argument(
        "--mb", type=int, nargs="+", default=[100, 1000], metavar="MB", help="sizes (%(default)s)"
    )
    parser.add_argument("--directory", default=".", help="where to write the checkpoint (%(default)s)")
    options = parser.parse_args()
    header("verified restore")
    for mb in options.mb:
        with directory(options.directory) as place:
            _compare(mb, place, options.repeats)


def _compare(mb: int, place: Path, repeats: int) -> None:
    training = Training(mb * 10**6)
    run_dir = agent.RunDir(str(place / "run"))
    attempt = agent.claim_attempt(run_dir, 1, 0)
    parts = [
        Part(f"{name}.pt", partial(write_state, Buffers(name).capture(state)))
        for name, state in training.state().items()
    ]
    write_checkpoint(attempt, 0, parts, seq=1, parent=None, kinds={}, applied=())
    expected = [tensor.clone() for tensor in training.tensors()]
    later = agent.claim_attempt(run_dir, 2, 0)
    files = sorted((place / "run").glob("checkpoints/*/*/*.pt"))
    arms: dict[str, Callable[[], float]] = {
        OURS: partial(_ours, training, later),
        HASHED: partial(_hash, files),
        "torch.load and load_state_dict, unverified": partial(_load, training, files, mmap=False),
        "the same with mmap, which leaves Adam's in the file": partial(_load, training, files, mmap=True),
    }
    _hash(files)
    seconds = medians(interleaved(arms, repeats, between=partial(_forget, training)), float)
    print(f"{training.size / 1e6:.0f} MB in {len(files)} files")
    table(seconds, base=HASHED, unit="s", digits=4)
    goal("verified restore, to hashing", seconds[OURS] / seconds[HASHED], AT_MOST)
    _forget(training)
    _ours(training, later)
    same = all(torch.equal(*pair) for pair in zip(training.tensors(), expected, strict=True))
    print(f"  what was restored is {'what was saved' if same else 'NOT what was saved'}\n")


def _forget(training: Training) -> None:
    """Leave a model and an Adam as a new process has them: other weights, in memory, and no moments."""
    with torch.no_grad():
        for parameter in training.model.parameters():
            parameter.fill_(1)
    training.optimizer = torch.optim.Adam(training.model.parameters())
    gc.collect()


def _ours(training: Training, attempt: agent.AttemptDir) -> float:
    started = time.perf_counter()
    checkpoint = choose(attempt).checkpoint
    assert checkpoint is not None
    load_into(training.model, str(checkpoint.path / "model.pt"))
    load_into(training.optimizer, str(checkpoint.path / "optimizer.pt"))
    return time.perf_counter() - started


def _hash(files: list[Path]) -> float:
    started = time.perf_counter()
    buffer = memoryview(bytearray(1 << 20))
    for path in files:
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
        digest.digest()
    return time.perf_counter() - started


def _load(training: Training, files: list[Path], *, mmap: bool) -> float:
    started = time.perf_counter()
    values: tuple[Any, ...] = training.model, training.optimizer
    for path, value in zip(files, values, strict=True):
        value.load_state_dict(torch.load(path, weights_only=True, mmap=mmap))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
