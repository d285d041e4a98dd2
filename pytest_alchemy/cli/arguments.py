"""KEY=VALUE as it is typed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, NoReturn

from pytest_alchemy.cli.trouble import Status, Trouble

__all__ = ["read_assignments"]


def read_assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Return the values by name; each is JSON where it is JSON, else text.

    Raises:
        Trouble: One is no KEY=VALUE, a key comes twice, or a value begins as JSON and isn't.
    """
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise Trouble(f"{text!r} is not KEY=VALUE, such as lr=1e-4", Status.USAGE)
        if key in values:
            raise Trouble(f"{key!r} is given twice", Status.USAGE)
        values[key] = _read(key, value)
    return values


def _read(key: str, text: str) -> Any:
    try:
        text.encode()
        return json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique)
    except UnicodeEncodeError:
        raise Trouble(f"{key}={text!r} is not UTF-8", Status.USAGE) from None
    except (ValueError, RecursionError) as error:
        # An unquoted brace or bracket is a slip, and no text that anybody means.
        if text.startswith(("{", "[", '"')):
            why = "it is nested too deeply" if isinstance(error, RecursionError) else error
            raise Trouble(
                f"{key}={text} is not JSON ({why}); in a shell, write {key}='…'", Status.USAGE
            ) from None
    return text


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found
