"""Values as they stand in ids and in file names.

A case's id, such as `ctx_len=16-seed=42`, stands in pytest's node id. It can be read in one way only: a str
that would read as something else (a number, `True`, a text with `=` or a comma) stands in quotes, and what a
node id can't hold (space, brackets, `/`, `::`, control characters) is percent-encoded as in a URL.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alchemy.matrix import Value

__all__ = ["slug", "text_of_id", "text_of_value"]

_MAX_TEXT = 80
_UNFIT_FOR_NODE_ID = re.compile(r"[\s%/\[\]']|::")
_NEEDS_QUOTES = re.compile(r"[=,(){}']|^$")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.+:-]*", re.ASCII)
_UNFIT_FOR_FILE_NAME = re.compile(r"(?:%[0-9A-F]{2}|[^A-Za-z0-9._=+-])+")


def text_of_value(value: Value) -> str:
    """Return the value as it stands in an id; different values have different texts."""
    return _fitting(_whole_text(value))


def text_of_id(given: str) -> str:
    """Return what stands in an id for a value that the user has named."""
    return _fitting(_quoted(given))


def _whole_text(value: Value) -> str:
    if isinstance(value, str):
        return _str_text(value)
    if isinstance(value, tuple):
        return f"({','.join(map(_whole_text, value))})"
    if isinstance(value, dict):
        # Sorted, since equal dicts are one value in whatever order they were written.
        return f"{{{','.join(f'{_str_text(key)}={_whole_text(value[key])}' for key in sorted(value))}}}"
    return repr(value)


def _str_text(text: str) -> str:
    return f"'{_escape(text)}'" if _reads_as_something_else(text) else _quoted(text)


def _quoted(text: str) -> str:
    """Return a text in the characters of a node id, in quotes if it could be read as several parts."""
    escaped = _escape(text)
    return f"'{escaped}'" if _NEEDS_QUOTES.search(text) else escaped


def _reads_as_something_else(text: str) -> bool:
    """Whether a str, without quotes, would be taken for a number, a bool or None."""
    if text.lower() in {"true", "false", "none"}:
        return True
    for read in (float, lambda text: int(text, 0)):
        try:
            read(text)
        except ValueError:
            continue
        return True
    return False


def _escape(text: str) -> str:
    if _PLAIN.fullmatch(text) and "::" not in text:
        return text
    text = _UNFIT_FOR_NODE_ID.sub(lambda match: _percent(match.group()), text)
    return "".join(char if char.isprintable() else _percent(char) for char in text)


def _percent(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))


def _fitting(text: str) -> str:
    """Cut a long text; its digest keeps it apart from others, and no quote or bracket is left open."""
    if len(text) <= _MAX_TEXT:
        return text
    import hashlib  # deferred: loads OpenSSL, and few ids are long

    head = re.sub(r"[=,(){}']+", "_", text[: _MAX_TEXT // 2])
    return f"{head}~{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def slug(text: str, limit: int = 80) -> str:
    """Return `text` as part of a file name: only `[A-Za-z0-9._=+-]`, not starting with `-` or `.`.

    Args:
        text: Anything; two texts may get the same slug.
        limit: Longest result, in characters.
    """
    return _UNFIT_FOR_FILE_NAME.sub("_", text).lstrip("-.")[:limit] or "_"
