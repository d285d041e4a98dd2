"""Plain Python values as strict JSON and back, types kept: the form in which a checkpoint holds them.

None, bool, int, float, str, list, tuple and dict, of exactly these types. What JSON has no form for stands in
an object with the key "$": tuples, non-finite floats, dicts whose keys aren't all text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["NotPlain", "decode", "encode"]

_TAG = "$"
_DEPTH = 100


class NotPlain(TypeError):
    """A value has no JSON form; says where in it and of which type."""


def encode(value: object) -> Any:
    """Return the JSON form.

    Raises:
        NotPlain: Something in it is not of the types above, or it is nested too deeply.
    """
    return _encode(value, "", 0)


def decode(form: Any) -> Any:
    """Return the value behind a JSON form; containers are new.

    Raises:
        ValueError: It is no such form.
    """
    if isinstance(form, list):
        return [decode(each) for each in form]
    if not isinstance(form, Mapping):
        return form
    if _TAG not in form:
        return {key: decode(each) for key, each in form.items()}
    tag, content = form[_TAG], form.get("value")
    if tag == "float" and isinstance(content, str):
        return float(content)
    if tag == "tuple" and isinstance(content, list):
        return tuple(decode(each) for each in content)
    if tag == "dict" and isinstance(content, list):
        return {decode(key): decode(each) for key, each in content}
    raise ValueError(f"unknown form {tag!r}")


def _encode(value: object, where: str, depth: int) -> Any:
    kind = type(value)
    if isinstance(value, str) and kind is str:
        return _encodable(value, where)
    if value is None or kind in (bool, int):
        return value
    if kind is float:
        assert isinstance(value, float)  # noqa: S101  for the type checker
        return value if math.isfinite(value) else {_TAG: "float", "value": str(value)}
    if depth > _DEPTH:
        raise NotPlain(f"{where or 'it'} is nested more than {_DEPTH} deep")
    if isinstance(value, (list, tuple)) and kind in (list, tuple):
        items = [_encode(each, f"{where}[{index}]", depth + 1) for index, each in enumerate(value)]
        return items if kind is list else {_TAG: "tuple", "value": items}
    if isinstance(value, dict) and kind is dict:
        return _encode_dict(value, where, depth)
    raise NotPlain(f"{where or 'it'} is of type {kind.__module__}.{kind.__qualname__}")


def _encodable(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        # As in an undecodable file name; the wire would write something else.
        raise NotPlain(f"{where or 'it'} is a text that UTF-8 has no form for: {text!r}") from None
    return text


def _encode_dict(value: dict[Any, Any], where: str, depth: int) -> Any:
    if _TAG not in value and all(type(key) is str for key in value):
        return {
            _encodable(key, f"a key of {where or 'it'}"): _encode(each, f"{where}[{key!r}]", depth + 1)
            for key, each in value.items()
        }
    pairs = [
        [_encode(key, f"a key of {where or 'it'}", depth + 1), _encode(each, f"{where}[{key!r}]", depth + 1)]
        for key, each in value.items()
    ]
    return {_TAG: "dict", "value": pairs}
