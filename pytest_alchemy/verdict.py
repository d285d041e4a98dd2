"""The words for what became of a case as a statement about the world."""

from __future__ import annotations

from enum import Enum

__all__ = ["Verdict"]


class Verdict(str, Enum):
    """What became of a case as a statement about the world."""

    SUPPORTED = "SUPPORTED"
    REFUTED = "REFUTED"
    CRASHED = "CRASHED"
    """Neither: the user's code failed."""
    ERROR = "ERROR"
    """Neither: the machinery failed."""
    SHORTENED = "SHORTENED"
    """Not judged: the run was shortened on purpose."""
    COMPLETED = "COMPLETED"
    """Not judged: there is no criterion."""
