"""Random number generators and global settings: seeded before a case, put back after it.

Only libraries that are loaded are touched; numpy and torch are never imported for this.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Seeder", "preserved"]


class Seeder:
    """Seeds python's `random`, and numpy and torch (CPU and GPUs) if they are loaded.

    Each library is seeded once: those loaded when it is first applied, later ones when it is applied again.
    """

    def __init__(self, seed: int) -> None:
        """Take the seed.

        Args:
            seed: Any int. From 0 to 2**32 − 1 every library gets exactly this number; of others, numpy gets
                the lowest 32 bits and torch the lowest 64.
        """
        self._seed = seed
        self._seeded: set[str] = set()

    def apply(self) -> None:
        """Seed the loaded libraries that haven't been seeded by this object."""
        for name, seed in _SEEDERS.items():
            module = sys.modules.get(name)
            if module is not None and name not in self._seeded:
                seed(module, self._seed)
                self._seeded.add(name)


@contextmanager
def preserved() -> Iterator[None]:
    """Put back, after a case, what it may have changed for the next one in this process.

    That is the working directory, the states of the random number generators, and torch's thread count,
    default dtype and device, gradient mode, matmul precision and flags for deterministic algorithms and
    cuDNN. What a library loaded meanwhile began with isn't known, and stays as the case left it.
    """
    restore = [*_saved_python(), *_saved_numpy(), *_saved_torch()]
    try:
        yield
    finally:
        for put_back in restore:
            put_back()


def _seed_numpy(numpy: Any, seed: int) -> None:
    numpy.random.seed(seed % 2**32)


def _seed_torch(torch: Any, seed: int) -> None:
    torch.manual_seed(seed % 2**64)  # GPUs too, when they are first used


_SEEDERS: dict[str, Callable[[Any, int], None]] = {
    "random": lambda module, seed: module.seed(seed),
    "numpy": _seed_numpy,
    "torch": _seed_torch,
}


def _saved_python() -> Iterator[Callable[[], object]]:
    state, directory = random.getstate(), Path.cwd()
    yield lambda: random.setstate(state)
    yield lambda: os.chdir(directory)


def _saved_numpy() -> Iterator[Callable[[], object]]:
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        state = numpy.random.get_state()
        yield lambda: numpy.random.set_state(state)


def _saved_torch() -> Iterator[Callable[[], object]]:
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return
    rng_state, threads, dtype = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
    yield lambda: torch.set_rng_state(rng_state)
    yield lambda: torch.set_default_dtype(dtype)
    gradients, precision = torch.is_grad_enabled(), torch.get_float32_matmul_precision()
    yield lambda: torch.set_grad_enabled(gradients)
    yield lambda: torch.set_float32_matmul_precision(precision)
    deterministic = _deterministic(torch)
    yield lambda: _set_deterministic(torch, *deterministic)
    device = torch.get_default_device()
    yield lambda: _set_device(torch, device)
    yield lambda: _set_threads(torch, threads)
    yield from _saved_cuda(torch)


def _deterministic(torch: Any) -> tuple[bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def _set_deterministic(torch: Any, enabled: bool, warn_only: bool) -> None:
    if _deterministic(torch) != (
        enabled,
        warn_only,
    ):  # setting it loads torch's compiler, which takes a second
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def _set_device(torch: Any, device: Any) -> None:
    if torch.get_default_device() != device:  # setting one slows every call that makes a tensor
        torch.set_default_device(None if device.type == "cpu" else device)


def _set_threads(torch: Any, count: int) -> None:
    if torch.get_num_threads() != count:  # setting it, even to the same, rebuilds the pool
        torch.set_num_threads(count)


def _set_attributes(target: object, values: Mapping[str, object]) -> None:
    for name, value in values.items():
        setattr(target, name, value)


def _saved_cuda(torch: Any) -> Iterator[Callable[[], object]]:
    flags = torch.backends.cudnn
    before = {name: getattr(flags, name) for name in ("enabled", "benchmark", "deterministic")}
    yield lambda: _set_attributes(flags, before)
    if torch.cuda.is_initialized():  # asking for states would start the GPU otherwise
        states = torch.cuda.get_rng_state_all()
        yield lambda: torch.cuda.set_rng_state_all(states)
