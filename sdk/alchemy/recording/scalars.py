"""What counts as a number in `log` and `log_eval`, told without importing numpy or torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TypeAlias

from alchemy.errors import ConfigurationError

__all__ = ["PendingScalar", "Scalar", "as_float", "as_scalar", "names_and_values"]


class PendingScalar:
    """A number that a GPU is still computing: a copy made there, read by whoever needs the value.

    Nothing waits for the GPU before `read` is called, and `read` waits only for what had been queued when the
    copy was made.
    """

    __slots__ = ("_copied", "_tensor")

    def __init__(self, tensor: Any) -> None:
        torch = sys.modules["torch"]
        with torch.cuda.device(tensor.device):
            self._tensor = tensor.detach().clone()
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> float:
        """Return the value, waiting for the copy.

        Raises:
            RuntimeError: The GPU failed.
        """
        torch = sys.modules["torch"]
        self._copied.synchronize()
        # On a stream of its own, as the default one would wait for work queued since.
        with torch.cuda.stream(torch.cuda.Stream(self._tensor.device)):
            return float(self._tensor.item())


Scalar: TypeAlias = "float | PendingScalar"


def as_float(name: str, value: Any) -> float:
    """Return a metric's value as a float, waiting for a GPU if need be. NaN and infinity are kept.

    Raises:
        ConfigurationError: It is not a number; names the metric.
    """
    __tracebackhide__ = True
    scalar = as_scalar(name, value)
    return scalar.read() if isinstance(scalar, PendingScalar) else scalar


def as_scalar(name: str, value: Any) -> Scalar:
    """Return a metric's value as a float, or as a pending one if it lies on a GPU.

    Raises:
        ConfigurationError: It is not a number; names the metric.
    """
    __tracebackhide__ = True
    if isinstance(value, (int, float)):
        try:
            return float(value)
        except OverflowError:
            raise ConfigurationError(f"metric {name!r} is an int too large for a float") from None
    # Arrays and tensors of any library have these two.
    if getattr(value, "ndim", None) != 0 or not callable(getattr(value, "item", None)):
        raise ConfigurationError(_complaint(name, value))
    if getattr(value, "is_cuda", False) and not value.is_complex():
        return PendingScalar(value)
    number = value.item()
    if not isinstance(number, (int, float)):
        raise ConfigurationError(_complaint(name, value))
    return float(number)


def names_and_values(caller: str, metrics: Any, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping and keywords as one dict.

    Raises:
        ConfigurationError: `metrics` is not a mapping, or a name in it is not a str.
    """
    __tracebackhide__ = True
    if metrics is None:
        return dict(more)
    if not isinstance(metrics, Mapping):
        raise ConfigurationError(
            f'ctx.{caller} takes a mapping of names to numbers, such as {{"loss": 0.3}}, or keywords; '
            f"not {_kind(metrics)}"
        )
    for name in metrics:
        if not isinstance(name, str):
            raise ConfigurationError(
                f"ctx.{caller}: the name of a metric must be a str, not {_kind(name)}: {name!r}"
            )
    return {**metrics, **more}


def _complaint(name: str, value: Any) -> str:
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return (
            f"metric {name!r} must be one number, not {_kind(value)} of shape {tuple(shape)}: "
            "reduce it first, for example with .mean()"
        )
    numbers = "int, float, bool, or an array or tensor without dimensions"
    return f"metric {name!r} must be one number ({numbers}), not {_kind(value)}"


def _kind(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
