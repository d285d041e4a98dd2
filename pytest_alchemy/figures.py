"""Figures as people read them on a terminal, and text cut to its columns."""

from __future__ import annotations

import math
import unicodedata

__all__ = ["columns", "count", "cut", "duration", "number", "rate"]


def count(value: int) -> str:
    """Write a number of steps: `9999`, then `12.3k`, `1.5M`."""
    if value < 10_000:
        return str(value)
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        scaled = value / size
        if scaled >= 0.9995:  # what would be rounded to 1000 of the smaller unit
            return _three_digits(scaled) + unit
    raise AssertionError(value)  # 10,000 is above 1k


def _three_digits(value: float) -> str:
    text = f"{value:.{max(0, 3 - len(str(int(value))))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def duration(seconds: float) -> str:
    """Write a time in its two largest units: `5s`, `1m02s`, `3h07m`, `2d11h`."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def rate(per_second: float | None) -> str:
    """Write a speed: `35.2/s`, or by minute or hour if it is slow; empty if it isn't known."""
    if per_second is None or not math.isfinite(per_second) or per_second <= 0:
        return ""
    for factor, unit in ((1, "s"), (60, "min")):
        if per_second * factor >= 1:
            value = per_second * factor
            return f"{count(round(value)) if value >= 1000 else _three_digits(value)}/{unit}"
    return f"{per_second * 3600:.2g}/h"


def number(value: float) -> str:
    """Write a metric: `0.123`, `1234`, `1.2e-05`, `nan`."""
    return f"{value:.0f}" if 1000 <= abs(value) < 10**6 else f"{value:.3g}"


def columns(text: str) -> int:
    """Return how many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    return sum(_columns_of(character) for character in text)


def _columns_of(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int) -> str:
    """Return the text on one line of at most `width` columns, with `...` where something is missing."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    if columns(text) <= width:
        return text
    dots = "..."[:width]
    kept, room = 0, width - len(dots)
    for character in text:
        room -= _columns_of(character)
        if room < 0:
            break
        kept += 1
    return text[:kept] + dots
