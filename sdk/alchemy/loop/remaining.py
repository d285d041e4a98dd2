"""How long a job may still run, from its environment alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["END_TIME", "remaining_time"]

END_TIME = "ALCHEMY_END_TIME"
"""When the job's time limit comes, in seconds since 1970; set by our batch script or by whoever knows."""
_OF_SLURM = "SLURM_JOB_END_TIME"
"""The same in Slurm's words, 23.02 or later."""
_NO_LIMIT_S = 0xFFFFFFFE
"""Slurm's numbers for `not set` and `without end` are this one and the next."""


def remaining_time(environ: Mapping[str, str], now: float) -> float | None:
    """Return the seconds until the job's time limit, 0 once it is over; None if there is none or none known.

    The controller's clock said when the limit comes and the node's says what time it is: Slurm needs clocks
    that agree within minutes, and no better than they do is this answer. A limit that is changed while the
    job runs is not noticed.

    Args:
        environ: The environment of the job.
        now: Seconds since 1970 (`time.time()`).
    """
    end = _seconds(environ.get(END_TIME)) or _seconds(environ.get(_OF_SLURM))
    return None if end is None else max(0.0, end - now)


def _seconds(text: str | None) -> float | None:
    """Read a time; None for what is none, such as squeue's `NONE` for a job without end."""
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and 0 < seconds < _NO_LIMIT_S else None
