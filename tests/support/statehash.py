"""One SHA-256 over whole states: two runs ended alike if all of it is alike, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["digest"]


def digest(*states: Any) -> str:
    """Return the hexadecimal SHA-256 of states: of every value in them, by type, and of tensors every byte.

    What has a `state_dict` counts by that. The order of a dict's keys makes no difference, nor how a tensor
    lies in memory. Equal digests mean equal states; a value of a type that isn't known here is an error, as
    its text could hide a difference.

    Raises:
        TypeError: A value is of an unknown type.
    """
    return _digest(states).hex()


def _digest(value: Any) -> bytes:
    kind, parts = _parts(value)
    whole = hashlib.sha256()
    for part in (kind.encode(), *parts):
        whole.update(len(part).to_bytes(8, "big"))
        whole.update(part)
    return whole.digest()


def _parts(value: Any) -> tuple[str, list[bytes]]:
    """Return the name of a value's kind, and bytes that tell it from all others of this kind."""
    if isinstance(value, torch.Tensor):
        return _tensor(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return _array(np.asarray(value), type(value).__name__)
    if hasattr(value, "state_dict"):
        return _parts(value.state_dict())
    if isinstance(value, Mapping):
        return "dict", sorted(_digest(key) + _digest(each) for key, each in value.items())
    if isinstance(value, (set, frozenset)):
        return "set", sorted(map(_digest, value))
    if isinstance(value, (list, tuple)):  # so is torch.Size
        return "list" if isinstance(value, list) else "tuple", [_digest(each) for each in value]
    if isinstance(value, (bytes, bytearray)):
        return "bytes", [bytes(value)]
    if value is None or type(value) in (bool, int, float, complex, str, torch.dtype, torch.device):
        return type(value).__name__, [repr(value).encode("utf-8", "surrogatepass")]
    raise TypeError(f"no digest of {type(value)}: {value!r}")


def _tensor(value: torch.Tensor) -> tuple[str, list[bytes]]:
    value = value.detach().cpu().resolve_conj().resolve_neg()
    head = [str((value.dtype, tuple(value.shape), value.layout)).encode()]
    if value.layout is torch.sparse_coo:
        whole = value.coalesce()
        return "sparse", [*head, _digest(whole.indices()), _digest(whole.values())]
    raw = value.contiguous().reshape(-1).view(torch.uint8)
    return "tensor", [*head, raw.numpy().tobytes()]


def _array(value: np.ndarray[Any, Any], kind: str) -> tuple[str, list[bytes]]:
    if value.dtype.hasobject:
        raise TypeError(f"no digest of an array of objects: {value!r}")
    return kind, [value.dtype.str.encode(), str(value.shape).encode(), value.tobytes()]
