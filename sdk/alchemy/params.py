"""Parameters by name: `lr = al.param("lr", default=1e-3)`, at module level or inside a task.

A value is looked up in the case being executed in this process, then in the environment of a job
(`ALCHEMY_PARAMS`, read only where `ALCHEMY_TASK_ID` is set), then in the default. A module-level call gets
each case's own value because the module is executed anew for every case (`alchemy.loading.fresh`); in which
modules there are such calls is noted here (`readers`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from alchemy.errors import ConfigurationError, MissingParameter
from alchemy.matrix import decode_params

if TYPE_CHECKING:
    from types import FrameType

    from alchemy.matrix import Value

__all__ = [
    "MISSING",
    "Missing",
    "Placeholder",
    "collecting",
    "environment_params",
    "lookup",
    "param",
    "readers",
    "scope",
]

T = TypeVar("T")


class Missing(Enum):
    """The type of `MISSING`, so that None can be a default."""

    MISSING = "missing"


MISSING: Final = Missing.MISSING


class _State:
    """What holds for the whole process, which executes one case at a time, and for all its threads."""

    __slots__ = ("collecting", "params", "readers")

    def __init__(self) -> None:
        self.params: Mapping[str, Value] | None = None
        self.collecting = False
        self.readers: set[str] = set()


_state = _State()


@overload
def param(name: str) -> Any: ...
@overload
def param(name: str, default: T) -> T: ...
def param(name: str, default: Any = MISSING) -> Any:
    """Return the value of a parameter for the case being executed, else `default`.

    Args:
        name: As it stands in the matrix.
        default: What to use where nothing supplies the parameter, for example in a plain local run.

    Raises:
        MissingParameter: Nothing supplies the parameter and there is no default.
        ConfigurationError: `ALCHEMY_PARAMS` can't be read.
    """
    __tracebackhide__ = True
    _note_readers()
    if _state.params is not None and name in _state.params:
        return lookup(_state.params, name)
    supplied = environment_params()
    if name in supplied:
        return lookup(supplied, name)
    if default is not MISSING:
        return default
    if _state.collecting:
        return Placeholder(name)
    raise MissingParameter(_nothing_supplies(name, {**supplied, **(_state.params or {})}))


def lookup(params: Mapping[str, Value], name: str, default: Any = MISSING) -> Any:
    """Return one parameter of a case; a dict is a copy, so that changing it reaches no other case.

    Raises:
        MissingParameter: The case doesn't have it and there is no default.
    """
    __tracebackhide__ = True
    if name in params:
        value = params[name]
        return decode_params({name: value})[name] if isinstance(value, (dict, tuple)) else value
    if default is not MISSING:
        return default
    raise MissingParameter(_nothing_supplies(name, params))


def readers() -> frozenset[str]:
    """Return the names of modules during whose import a parameter was read; they hold one case's values."""
    return frozenset(_state.readers)


def _note_readers() -> None:
    """Note every module that is just being imported: also the one that imports the one with the call."""
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001  the way to one's caller that doesn't read source files
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            _state.readers.add(frame.f_globals.get("__name__", ""))
        frame = frame.f_back


@contextmanager
def scope(params: Mapping[str, Value]) -> Iterator[None]:
    """Make `params` those of the case being executed; the ones before come back at the end."""
    before, _state.params = _state.params, params
    try:
        yield
    finally:
        _state.params = before


@contextmanager
def collecting() -> Iterator[None]:
    """Let `param` without default return a placeholder: a file that is only being read has no case yet."""
    before, _state.collecting = _state.collecting, True
    try:
        yield
    finally:
        _state.collecting = before


def environment_params() -> dict[str, Value]:
    """Return what the job's environment supplies; nothing without `ALCHEMY_TASK_ID`.

    Raises:
        ConfigurationError: `ALCHEMY_PARAMS` is not a JSON object.
    """
    if "ALCHEMY_TASK_ID" not in os.environ:
        return {}
    text = os.environ.get("ALCHEMY_PARAMS", "{}")
    try:
        record = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"ALCHEMY_PARAMS is not JSON ({error}): {text[:200]!r}") from error
    if not isinstance(record, dict):
        raise ConfigurationError(
            f'ALCHEMY_PARAMS must be a JSON object such as {{"lr": 0.001}}, not {text[:200]!r}'
        )
    return decode_params(record)


def _nothing_supplies(name: str, params: Mapping[str, object]) -> str:
    known = (
        f"the case has {', '.join(params)}"
        if params
        else "no case is being executed, or it has no parameters"
    )
    return (
        f"nothing supplies parameter {name!r} ({known}): add it to the matrix, or give a default that holds "
        f"without one: param({name!r}, ...)"
    )


class Placeholder:
    """Stands for a parameter without default while a file is only being collected.

    It absorbs arithmetic, comparison, calls, items and attributes, so that `half = al.param("width") // 2` at
    module level gets through, and raises on conversion (`int`, `bool`, `str`, iteration …), naming itself.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return f"<parameter {self._name!r}: no value while collecting>"

    def __getattr__(self, name: str) -> Placeholder:
        # Names with an underscore are asked for by copy, pickle, inspect and pytest, which must hear "no".
        if name.startswith("_"):
            raise AttributeError(name)
        return self


def _absorb(self: Placeholder, *_args: object, **_kwargs: object) -> Placeholder:
    return self


def _refuse(self: Placeholder, *_args: object) -> Any:
    __tracebackhide__ = True
    raise MissingParameter(
        f"parameter {self._name!r} has no value while the file is only being collected, and something "
        f"converts it: give it a default, param({self._name!r}, ...), or read it inside the task by ctx.param"
    )


_BINARY = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "lshift",
    "rshift",
    "and",
    "or",
    "xor",
)
_ABSORBED = (
    *(f"__{prefix}{name}__" for name in _BINARY for prefix in ("", "r")),
    *(
        f"__{name}__"
        for name in ("neg", "pos", "abs", "invert", "call", "getitem", "round", "floor", "ceil", "trunc")
    ),
    *(f"__{name}__" for name in ("eq", "ne", "lt", "le", "gt", "ge", "divmod", "rdivmod")),
)
_REFUSED = (
    "bool",
    "int",
    "float",
    "complex",
    "index",
    "str",
    "bytes",
    "format",
    "hash",
    "len",
    "iter",
    "contains",
)


def _define(names: tuple[str, ...], method: Callable[..., Any]) -> None:
    for name in names:
        setattr(Placeholder, name, method)


_define(_ABSORBED, _absorb)
_define(tuple(f"__{name}__" for name in _REFUSED), _refuse)
