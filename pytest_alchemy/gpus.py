"""Which GPUs this process may use, found without initialising CUDA or importing torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["Pool", "visible_gpus"]

_DRIVER = Path("/proc/driver/nvidia/gpus")
_DEVICES = Path("/dev")


def visible_gpus(
    environ: Mapping[str, str] = os.environ, driver: Path = _DRIVER, devices: Path = _DEVICES
) -> tuple[str, ...]:
    """Return GPU names as `CUDA_VISIBLE_DEVICES` spells them, in order; empty where there are none.

    A `CUDA_VISIBLE_DEVICES` that is set decides; else the NVIDIA driver's own list in /proc is counted, or
    the device files where a container hides that.
    """
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(name for name in (part.strip() for part in chosen.split(",")) if name and name != "-1")
    count = _count(driver) or sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in _listdir(devices))
    return tuple(str(index) for index in range(count))


class Pool:
    """Gives each worker a GPU, the least used one; a worker that ends gives its own back."""

    def __init__(self, gpus: Sequence[str]) -> None:
        self._holders: dict[str, set[str]] = {gpu: set() for gpu in gpus}

    def take(self, worker: str) -> str | None:
        """Return the GPU for a worker, None where there are none."""
        if not self._holders:
            return None
        gpu = min(self._holders, key=lambda name: len(self._holders[name]))
        self._holders[gpu].add(worker)
        return gpu

    def give_back(self, worker: str) -> None:
        """Note that a worker has ended."""
        for holders in self._holders.values():
            holders.discard(worker)


def _count(directory: Path) -> int:
    return len(_listdir(directory))


def _listdir(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []
