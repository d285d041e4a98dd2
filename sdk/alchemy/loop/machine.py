"""What decides, besides code and data, whether a training comes out bit-identical: build, threads, processor.

torch promises nothing across builds, thread counts and instruction sets; so they are recorded, and where a
resumed run finds others it says so instead of pretending.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from typing import Any, TypeAlias

__all__ = ["Facts", "differences", "facts"]

Facts: TypeAlias = "dict[str, str | int | bool]"

_NONE = "none"


def facts() -> Facts:
    """Return the facts of this process, about the libraries that are loaded."""
    found: Facts = {"python": platform.python_version(), "machine": platform.machine()}
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        found["numpy"] = str(numpy.__version__)
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        found |= _of_torch(torch)
    return found


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what both know and differ in, for people: `threads 8 -> 4`.

    What only one knows is of a library that the other hadn't loaded, and thus computed nothing with.
    """
    return [
        f"{name.replace('_', ' ')} {then[name]} -> {now[name]}"
        for name in then
        if name in now and then[name] != now[name]
    ]


def _of_torch(torch: Any) -> Facts:
    return {
        "torch": str(torch.__version__),
        "torch_commit": str(torch.version.git_version),
        "threads": torch.get_num_threads(),
        "cpu_instructions": str(torch.backends.cpu.get_cpu_capability()),
        "deterministic": bool(torch.are_deterministic_algorithms_enabled()),
        **_of_gpu(torch),
    }


def _of_gpu(torch: Any) -> Facts:
    """Return the facts about the GPU, `none` where none is in use: to go without one is a difference, too."""
    if not torch.cuda.is_initialized():  # asking would start the GPU
        return dict.fromkeys(("gpu", "cuda", "cudnn_deterministic"), _NONE)
    return {
        "gpu": str(torch.cuda.get_device_name()),
        "cuda": str(torch.version.cuda),
        "cudnn_deterministic": bool(torch.backends.cudnn.deterministic),
    }
