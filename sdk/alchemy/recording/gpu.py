"""What the GPUs of this process are doing, as NVIDIA's driver tells.

It is asked through the optional package nvidia-ml-py (module `pynvml`). Without it, without a driver, without
GPUs or after the first error the answer is None, for ever and at no cost: this is an observation, and a
driver that failed once may take seconds over each further question.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

__all__ = ["Gpu", "Gpus", "read_gpus"]

Gpu = dict[str, float | int | str]


class Gpus:
    """The GPUs that `CUDA_VISIBLE_DEVICES` shows to this process, asked again and again by one thread.

    A number in that variable is meant as the driver counts, by PCI bus. So does CUDA under
    `CUDA_DEVICE_ORDER=PCI_BUS_ID`; without it, it puts the fastest first on machines whose GPUs differ.

    Args:
        environ: Where `CUDA_VISIBLE_DEVICES` is looked up, once.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._chosen = environ.get("CUDA_VISIBLE_DEVICES")
        self._is_dead = False
        self._handles: list[Any] | None = None
        self._nvml: Any = None

    def read(self) -> list[Gpu] | None:
        """Return a record for each GPU, None if nothing is known of any.

        `uuid`, `name`; `utilization`: the part of the last second or so in which something ran, 0 to 1;
        `memory_used`, `memory_total`: bytes. What a GPU doesn't tell is missing, such as the utilization of
        one part of a divided GPU (MIG).
        """
        if self._is_dead:
            return None
        try:
            if self._handles is None:
                self._handles = self._find()
            gpus = [self._ask(handle) for handle in self._handles]
        except Exception:  # noqa: BLE001  no package, no driver, a lost GPU: whatever it is, it stays so
            gpus = []
        self._is_dead = not gpus
        return gpus or None

    def _find(self) -> list[Any]:
        """Return the driver's handles of our GPUs."""
        if self._chosen is not None and not _names(self._chosen):
            return []  # hidden on purpose
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        if self._chosen is None:
            return self._all()
        handles: list[Any] = []
        with suppress(pynvml.NVMLError, LookupError):  # for CUDA, too, the first wrong name ends the list
            for name in _names(self._chosen):
                handles.append(self._handle(name))  # noqa: PERF401  those before a wrong name are kept
        return handles

    def _all(self) -> list[Any]:
        nvml = self._nvml
        return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]

    def _handle(self, name: str) -> Any:
        nvml = self._nvml
        if name.isdigit():
            return nvml.nvmlDeviceGetHandleByIndex(int(name))
        with suppress(nvml.NVMLError):
            return nvml.nvmlDeviceGetHandleByUUID(name)
        # CUDA is content with the first characters, if no other begins with them.
        found = [handle for handle in self._all() if _text(nvml.nvmlDeviceGetUUID(handle)).startswith(name)]
        if len(found) != 1:
            raise LookupError(name)
        return found[0]

    def _ask(self, handle: Any) -> Gpu:
        nvml = self._nvml
        told: Gpu = {"uuid": _text(nvml.nvmlDeviceGetUUID(handle))}
        with suppress(nvml.NVMLError_NotSupported):
            told["name"] = _text(nvml.nvmlDeviceGetName(handle))
        with suppress(nvml.NVMLError_NotSupported):
            told["utilization"] = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        with suppress(nvml.NVMLError_NotSupported):
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            told["memory_used"], told["memory_total"] = int(memory.used), int(memory.total)
        return told


def _names(chosen: str) -> list[str]:
    """Return the GPUs that are named before the first word that names none."""
    names = []
    for name in map(str.strip, chosen.split(",")):
        if not name.isdigit() and not name.startswith(("GPU-", "MIG-")):
            break
        names.append(name)
    return names


def _text(value: str | bytes) -> str:
    """Old versions of the package answer in bytes."""
    return value.decode() if isinstance(value, bytes) else value


_ours: Gpus | None = None


def read_gpus() -> list[Gpu] | None:
    """Return what each GPU of this process is doing, None if nothing is known; see `Gpus.read`."""
    global _ours  # noqa: PLW0603  the driver is asked once per process, whoever wants to know
    if _ours is None:
        _ours = Gpus()
    return _ours.read()
