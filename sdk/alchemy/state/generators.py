"""Finds the random number generators that objects hold as attributes, at any depth that people use."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

from alchemy.state import rng

__all__ = ["find", "walk"]

_OBJECTS = 256
_ITEMS = 32
_DEPTH = 6
_LEAVES = (
    str,
    bytes,
    int,
    float,
    complex,
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
)


def find(**roots: Any) -> dict[str, Any]:
    """Return the private generators reachable from some objects, each once, by path.

    Args:
        roots: The objects, by the names that the paths begin with: `dataset.transforms[1].rng`.
    """
    return {path: value for path, value in walk(**roots) if rng.is_generator(value)}


def walk(**roots: Any) -> Iterator[tuple[str, Any]]:
    """Yield objects reachable through attributes, short lists and short dicts, nearest first, each once.

    It ends after a few hundred objects and doesn't look into long containers, so that a large dataset
    costs no more than a small one.
    """
    seen: set[int] = set()
    level = list(roots.items())
    for _ in range(_DEPTH):
        deeper: list[tuple[str, Any]] = []
        for path, value in level:
            if value is None or isinstance(value, _LEAVES) or id(value) in seen:
                continue
            seen.add(id(value))
            yield path, value
            if len(seen) >= _OBJECTS:
                return
            deeper += _inside(path, value)
        level = deeper


def _inside(path: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, (list, tuple)):
        return [(f"{path}[{i}]", item) for i, item in enumerate(value)] if len(value) <= _ITEMS else []
    if isinstance(value, dict):
        return [(f"{path}[{k!r}]", v) for k, v in value.items()] if len(value) <= _ITEMS else []
    attributes = getattr(value, "__dict__", None)
    return [(f"{path}.{name}", v) for name, v in attributes.items()] if isinstance(attributes, dict) else []
