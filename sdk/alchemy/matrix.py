"""The variable space of an experiment: axes of values, expanded to cases with readable, unique ids."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, product, repeat
from typing import Any, NoReturn, TypeAlias

from alchemy.errors import ConfigurationError
from alchemy.labels import slug, text_of_id, text_of_value

__all__ = [
    "Axis",
    "Case",
    "Value",
    "cases_of",
    "decode_params",
    "encode_params",
    "parse_axes",
    "slug",
]

Value: TypeAlias = "bool | int | float | str | tuple[Value, ...] | dict[str, Value] | None"
"""What a parameter may be: exactly these types, so that it is the same object after a trip through JSON."""

MAX_CASES = 1_000_000
_MAX_DEPTH = 16
_MAX_SHOWN = 80
# What every JSON writer in use keeps exactly; orjson refuses anything larger.
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1


@dataclass(frozen=True, slots=True)
class Case:
    """One point of the matrix."""

    id: str
    """As in the node id, for example `ctx_len=16-seed=42`; empty without a matrix."""
    params: Mapping[str, Value] = field(hash=False)
    """Axis name to value, in the order of declaration."""
    marks: tuple[Any, ...] = field(default=(), hash=False)
    """Marks of the `pytest.param` values this case is made of; the SDK only hands them on."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension of the matrix; the three tuples run in parallel."""

    name: str
    values: tuple[Value, ...]
    labels: tuple[str, ...]
    """What stands for each value in an id, for example `ctx_len=16`."""
    marks: tuple[tuple[Any, ...], ...]


def parse_axes(matrix: object) -> tuple[Axis, ...]:
    """Check a matrix without expanding it.

    Args:
        matrix: Axis name to its values; a value may be wrapped in `pytest.param(value, marks=..., id=...)`.

    Raises:
        ConfigurationError: Names the axis and the value that can't be meant.
    """
    if matrix is None:
        return ()
    if not isinstance(matrix, Mapping):
        raise ConfigurationError(
            f'matrix must be a dict such as {{"seed": [1, 2, 3]}}, not {_kind(matrix)}: {_brief(matrix)}'
        )
    axes = tuple(_parse_axis(name, values) for name, values in matrix.items())
    count = math.prod(len(axis.values) for axis in axes)
    if count > MAX_CASES:
        sizes = " x ".join(str(len(axis.values)) for axis in axes)
        raise ConfigurationError(f"the matrix has {count:,} cases ({sizes}); {MAX_CASES:,} is the limit")
    return axes


def cases_of(axes: Sequence[Axis]) -> tuple[Case, ...]:
    """Return the cases of checked axes, the last one running fastest; without axes one nameless case."""
    names = tuple(axis.name for axis in axes)
    ids = map("-".join, product(*(axis.labels for axis in axes)))
    points = product(*(axis.values for axis in axes))
    params = map(dict, map(zip, repeat(names), points))
    if not any(chain.from_iterable(axis.marks for axis in axes)):
        return tuple(map(Case, ids, params))
    marks = map(tuple, map(chain.from_iterable, product(*(axis.marks for axis in axes))))
    return tuple(map(Case, ids, params, marks))


def encode_params(params: Mapping[str, Value]) -> dict[str, Any]:
    """Return the JSON form of parameters: tuples become arrays, everything else stays."""
    return {name: _encode(value) for name, value in params.items()}


def decode_params(record: Mapping[str, Any]) -> dict[str, Value]:
    """Undo `encode_params`: arrays become tuples; every dict is a new one, safe to change."""
    return {name: _decode(value) for name, value in record.items()}


def _encode(value: Value) -> Any:
    if isinstance(value, tuple):
        return [_encode(each) for each in value]
    if isinstance(value, dict):
        return {key: _encode(each) for key, each in value.items()}
    return value


def _decode(value: Any) -> Value:
    if isinstance(value, (list, tuple)):
        return tuple(_decode(each) for each in value)
    if isinstance(value, dict):
        return {key: _decode(each) for key, each in value.items()}
    return value  # type: ignore[no-any-return]  # the rest of JSON is what Value holds


def _parse_axis(name: object, values: object) -> Axis:
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise ConfigurationError(
            f"matrix: an axis name must be an identifier such as ctx_len, not {_brief(name)}"
        )
    found = [_unwrap(name, wrapped) for wrapped in _elements(name, values)]
    if not found:
        raise ConfigurationError(
            f"matrix axis {name!r} is empty: give it at least one value, or leave it out"
        )
    texts = [text_of_value(value) for value, _, _ in found]
    shown = [
        text if given is None else text_of_id(given) for text, (_, given, _) in zip(texts, found, strict=True)
    ]
    _refuse_duplicates(name, texts, "has the value {} twice: one case is enough")
    _refuse_duplicates(name, shown, "has the id {} twice: ids tell its values apart")
    return Axis(
        name=name,
        values=tuple(value for value, _, _ in found),
        labels=tuple(f"{name}={text}" for text in shown),
        marks=tuple(marks for _, _, marks in found),
    )


def _elements(name: str, values: object) -> Iterator[object]:
    if isinstance(values, (str, bytes, bytearray)):
        hint = f"a text is not a list of values: write [{_brief(values)}]"
    elif _is_parameter_set(values):
        hint = "put the pytest.param(...) into a list"
    elif isinstance(values, Sequence):
        return iter(values)
    elif _is_array(values):
        hint = f"of that {_kind(values)} take .tolist()"
    elif isinstance(values, Iterable):
        hint = f"{_kind(values)} has no lasting order: write a list or a tuple"
    else:
        hint = f"one value is a list too: write [{_brief(values)}]"
    raise ConfigurationError(f"matrix axis {name!r} must be a list, a tuple or a range; {hint}")


def _is_parameter_set(value: object) -> bool:
    """Whether this is what `pytest.param` returns, told by its shape: the SDK doesn't import pytest."""
    return (
        isinstance(getattr(value, "values", None), tuple) and hasattr(value, "marks") and hasattr(value, "id")
    )


def _is_array(value: object) -> bool:
    """Whether this is an array, a tensor or one of their scalars, told by its shape."""
    return (
        isinstance(getattr(value, "ndim", None), int) and hasattr(value, "item") and hasattr(value, "tolist")
    )


def _unwrap(name: str, wrapped: Any) -> tuple[Value, str | None, tuple[Any, ...]]:
    """Return an axis element's value, its own id if it has one, and its marks."""
    if not _is_parameter_set(wrapped):
        return _checked(name, wrapped, wrapped, 0), None, ()
    if len(wrapped.values) != 1:
        raise ConfigurationError(
            f"matrix axis {name!r}: pytest.param takes one value here, the one of this axis, "
            f"not {len(wrapped.values)}: {_brief(wrapped.values)} (for a pair write pytest.param((a, b)))"
        )
    if wrapped.id is not None and not isinstance(wrapped.id, str):
        raise ConfigurationError(
            f"matrix axis {name!r}: the id of a pytest.param must be a str, not {wrapped.id!r}"
        )
    value = wrapped.values[0]
    return _checked(name, value, value, 0), wrapped.id, tuple(wrapped.marks)


def _checked(axis: str, value: Any, whole: object, depth: int) -> Value:
    """Return the value, containers copied, so that no later change of the declaration gets into a case."""
    if depth > _MAX_DEPTH:
        _refuse(axis, whole, f"it is nested deeper than {_MAX_DEPTH} levels")
    kind = type(value)
    if kind is tuple:
        return tuple(_checked(axis, each, whole, depth + 1) for each in value)
    if kind is dict:
        return {_checked_key(axis, key, whole): _checked(axis, value[key], whole, depth + 1) for key in value}
    why = _why_not_scalar(value)
    if why is not None:
        _refuse(axis, whole, why)
    return value  # type: ignore[no-any-return]  # one of the scalars of Value, as just checked


def _checked_key(axis: str, key: object, whole: object) -> str:
    if type(key) is not str:
        _refuse(axis, whole, f"a dict's keys must be str, not {_kind(key)} ({_brief(key)})")
    why = _why_not_scalar(key)
    if why is not None:
        _refuse(axis, whole, why)
    return key


def _why_not_scalar(value: Any) -> str | None:
    """Say what is wrong with a value that is neither a plain tuple nor a plain dict; None if nothing is."""
    kind = type(value)
    if value is None or kind is bool:
        return None
    if kind is int:
        return None if _MIN_INT <= value <= _MAX_INT else "an int must fit into 64 bits"
    if kind is float:
        return (
            None
            if math.isfinite(value)
            else "JSON has no NaN and no infinity; a str such as 'inf' can stand for it"
        )
    if kind is str:
        return None if _is_unicode(value) else "it holds half a surrogate pair, which no file can"
    return _way_out(value)


def _way_out(value: Any) -> str:
    """Say what to write instead of a value of a type that JSON would change or can't write."""
    kind = type(value)
    if kind is list:
        return "a list can be changed by the code that gets it: use a tuple"
    if hasattr(value, "item") and hasattr(value, "tolist"):
        ndim = getattr(value, "ndim", None)
        return (
            f"{_kind(value)} is not a Python number: use {'.item()' if ndim == 0 else 'tuples of .tolist()'}"
        )
    for plain in (bool, int, float, str, tuple, dict):
        if isinstance(value, plain):
            return f"{_kind(value)} would arrive as a plain {plain.__name__}: use {plain.__name__}(...)"
    return (
        f"{_kind(value)} can't be written as JSON: use int, float, str, bool, None or tuples and dicts of "
        "these, and build the object from them in the task"
    )


def _refuse(axis: str, value: object, why: str) -> NoReturn:
    raise ConfigurationError(f"matrix axis {axis!r}, value {_brief(value)}: {why}")


def _refuse_duplicates(axis: str, texts: Sequence[str], message: str) -> None:
    seen: set[str] = set()
    for text in texts:
        if text in seen:
            raise ConfigurationError(f"matrix axis {axis!r} {message.format(text)}")
        seen.add(text)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _brief(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[: _MAX_SHOWN - 1]}…"
