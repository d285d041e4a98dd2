"""What a declaration's arguments must be, said in the same words everywhere."""

from __future__ import annotations

import inspect
import operator
from typing import TYPE_CHECKING, Any

from alchemy.errors import ConfigurationError

if TYPE_CHECKING:
    from alchemy.context import Context

__all__ = ["check_context", "check_function", "flag", "positive"]


def positive(what: str, value: object) -> int:
    """Return a positive whole number; numpy's integers count, True and 1e6 are accidents.

    Raises:
        ConfigurationError: It is something else; `what` names the argument.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        hint = f": write {int(value)}" if isinstance(value, float) and value.is_integer() else ""
        raise ConfigurationError(f"{what} must be a positive int, not {type(value).__name__} {value!r}{hint}")
    number = operator.index(value)
    if number < 1:
        raise ConfigurationError(f"{what} must be a positive int, not {number}")
    return number


def flag(what: str, value: object) -> bool:
    """Return a bool.

    Raises:
        ConfigurationError: It is something else; `what` names the argument.
    """
    if isinstance(value, bool):
        return value
    raise ConfigurationError(f"{what} must be True or False, not {value!r}")


def check_context(value: Any) -> type[Context] | None:
    """Return a class of contexts, or None for the usual one.

    Raises:
        ConfigurationError: It is something else.
    """
    from alchemy.context import Context  # deferred: a declaration needs nothing that runs

    if value is None or (isinstance(value, type) and issubclass(value, Context)):
        return value
    raise ConfigurationError(f"context= must be a subclass of al.Context, not {value!r}")


def check_function(fn: object, where: str, decorator: str) -> None:
    """Refuse what could never run as a task, above all functions whose call would run nothing.

    Raises:
        ConfigurationError: Says `where`, and why.
    """
    if not callable(fn) or not hasattr(fn, "__name__"):
        raise ConfigurationError(f"{where}: {decorator} belongs on a function, not on {fn!r}")
    if inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn):
        raise ConfigurationError(f"{where}: {fn.__name__}() can't be async; calling it would run nothing")
    if inspect.isgeneratorfunction(fn):
        raise ConfigurationError(f"{where}: {fn.__name__}() can't yield; calling it would run nothing")
    try:
        inspect.signature(fn).bind(object())
    except TypeError as error:
        raise ConfigurationError(
            f"{where}: {fn.__name__}() must take one argument, the context ({error})"
        ) from None
