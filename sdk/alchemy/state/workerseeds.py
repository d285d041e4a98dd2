"""Randomness inside a DataLoader's worker processes: seeded for each batch, by its place in the data.

What a worker drew before doesn't matter then, nor which worker it is, nor since when it has been running; so
a batch is the same whether or not the run was resumed in between. Without workers nothing of this happens:
what the dataset draws there comes from the training's own generators, which are saved.
"""

from __future__ import annotations

import hashlib
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from alchemy.state import generators

__all__ = ["Placed", "SparedStart", "WorkerStart", "can_seed"]


class Placed(NamedTuple):
    """What a worker is asked for: the indices of a batch, and where in the run they stand."""

    iteration: int
    """Counts the iterations over the loader, from 0."""
    position: int
    """Counts the batches of the iteration, from 0."""
    index: Any


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """A loader's `worker_init_fn`: lets this worker understand `Placed`, then calls the user's own."""

    seed: int
    then: Callable[[int], object] | None

    def __call__(self, worker_id: int) -> None:
        """Prepare the process it is called in, which is a worker's and ends with it."""
        spare()
        fetcher_type: Any = _fetcher_type()
        plain = fetcher_type.fetch

        def fetch(fetcher: Any, placed: Placed) -> Any:
            _seed(fetcher, f"{self.seed}/{placed.iteration}/{placed.position}")
            return plain(fetcher, placed.index)

        fetcher_type.fetch = fetch
        if self.then is not None:
            self.then(worker_id)


def spare() -> None:
    """Let this worker live through the SIGTERM that Slurm sends to every process of a job.

    The training ends its step and saves; a worker that had died by then would look like an error of its own.
    Workers end when the training tells them to, or is no more.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@dataclass(frozen=True, slots=True)
class SparedStart:
    """A loader's `worker_init_fn` where nothing is to be seeded."""

    then: Callable[[int], object] | None

    def __call__(self, worker_id: int) -> None:
        """Prepare the worker's process."""
        spare()
        if self.then is not None:
            self.then(worker_id)


def can_seed() -> bool:
    """Tell whether this torch is built as expected."""
    return callable(getattr(_fetcher_type(), "fetch", None))


def _fetcher_type() -> Any:
    from torch.utils.data._utils import fetch  # deferred: only who has a loader gets here

    return getattr(fetch, "_MapDatasetFetcher", None)


def _seed(fetcher: Any, place: str) -> None:
    """Seed the global generators, and those that the dataset and the collating function have of their own."""
    # Each gets a number of its own: from the same one, python and numpy would draw the same.
    random.seed(_number(f"{place}/python"))
    # Not torch.manual_seed: it prepares GPUs too, which a worker has no business with.
    sys.modules["torch"].default_generator.manual_seed(_number(f"{place}/torch") % 2**64)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(_words(_number(f"{place}/numpy")))
    for path, generator in generators.find(dataset=fetcher.dataset, collate_fn=fetcher.collate_fn).items():
        _seed_one(generator, _number(f"{place}/{path}"))


def _seed_one(generator: Any, seed: int) -> None:
    if isinstance(generator, random.Random):
        generator.seed(seed)
    elif hasattr(generator, "manual_seed"):
        generator.manual_seed(seed % 2**64)
    elif hasattr(generator, "seed"):
        generator.seed(_words(seed))
    else:
        bits = generator.bit_generator
        bits.state = type(bits)(seed).state


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")


def _words(seed: int) -> list[int]:
    return [seed >> shift & 0xFFFFFFFF for shift in (0, 32, 64, 96)]
