"""How often something is looked at: often while things happen, rarely while nothing does."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Pace"]


@dataclass(frozen=True, slots=True)
class Pace:
    """When something is next due: soon after news, then less and less often."""

    fast_s: float
    slow_s: float
    due: float
    interval_s: float = 0.0

    def hurry(self, now: float) -> Pace:
        """Start over with the shortest interval; never later than already due."""
        return replace(self, interval_s=self.fast_s, due=min(self.due, now + self.fast_s))

    def done(self, now: float, cap_s: float, *, floor_s: float = 0.0) -> Pace:
        """Return the pace after a round that ended at `now`.

        The interval doubles, up to `cap_s` (the fastest after a lively round, the slowest after a quiet
        one), but is never below `floor_s`.
        """
        interval = max(self.fast_s, min(2 * self.interval_s, cap_s, self.slow_s), floor_s)
        return replace(self, interval_s=interval, due=now + interval)
