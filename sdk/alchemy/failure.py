"""An exception of the user's code as a record that another machine can show."""

from __future__ import annotations

import traceback
from pathlib import Path

from alchemy.result import ErrorInfo

__all__ = ["describe"]

_OURS = str(Path(__file__).parent)
_MAX_MESSAGE = 10_000
_MAX_TRACEBACK = 100_000


def describe(error: BaseException) -> ErrorInfo:
    """Return what is known of an exception, without the frames of this package and of importing."""
    kind = type(error)
    formatted = traceback.TracebackException.from_exception(error)
    _strip(formatted)
    return ErrorInfo(
        type=f"{kind.__module__}.{kind.__qualname__}",
        message=_shortened(_message(error), _MAX_MESSAGE),
        traceback=_shortened("".join(formatted.format()), _MAX_TRACEBACK),
    )


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"the task called sys.exit({error.code!r}), which ends a program, not a task: return instead"
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001  a __str__ of the user's may raise anything
        return f"<{type(error).__qualname__}.__str__ raised {type(broken).__qualname__}>"


def _strip(formatted: traceback.TracebackException) -> None:
    """Leave out frames that say nothing about the user's code, in the whole chain of exceptions."""
    waiting: list[traceback.TracebackException | None] = [formatted]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        frames = [frame for frame in each.stack if not _is_noise(frame.filename)]
        each.stack = traceback.StackSummary.from_list(frames)
        waiting += [each.__cause__, each.__context__, *(getattr(each, "exceptions", None) or ())]


def _is_noise(filename: str) -> bool:
    return filename.startswith((f"{_OURS}/", "<frozen importlib"))


def _shortened(text: str, limit: int) -> str:
    """Cut the middle out of what is too long, and make sure that UTF-8 can hold it."""
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}\n[... {len(text) - limit} characters ...]\n{text[-limit // 2 :]}"
