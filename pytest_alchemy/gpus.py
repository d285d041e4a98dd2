"""Which GPUs this process may use, found without initialising CUDA or importing torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["share_of", "visible_gpus"]

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


def share_of(worker: int, gpus: Sequence[str]) -> str | None:
    """Return the GPU of the worker with this number, None where there are none; surplus workers share."""
    return gpus[worker % len(gpus)] if gpus else None


def _count(directory: Path) -> int:
    return len(_listdir(directory))


def _listdir(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []
