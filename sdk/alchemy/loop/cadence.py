"""When checkpoints are made, and how many are kept."""

from __future__ import annotations

from dataclasses import dataclass

from alchemy.checks import flag, positive
from alchemy.errors import ConfigurationError

__all__ = ["Checkpointing"]

DEFAULT_MINUTES = 10.0
"""Where nobody says how often: what a preempted run loses at most."""
KEEP_LEAST = 2
"""Fewer would leave a damaged checkpoint without one to fall back to."""


@dataclass(frozen=True, slots=True)
class Checkpointing:
    """The user's wishes, checked."""

    steps: int | None = None
    """Steps between checkpoints; None: by time alone."""
    minutes: float | None = DEFAULT_MINUTES
    """Minutes between checkpoints; None: by steps alone."""
    keep: int = KEEP_LEAST
    """How many stay, besides those that are pinned."""
    is_async: bool = True
    """Whether the training goes on while bytes go to disk."""

    @classmethod
    def parse(
        cls, checkpoint_every: object, checkpoint_minutes: object, keep: object, async_save: object
    ) -> Checkpointing:
        """Check what a declaration says; None means unsaid.

        Raises:
            ConfigurationError: Names the argument and what can't be meant.
        """
        steps = None if checkpoint_every is None else positive("checkpoint_every", checkpoint_every)
        minutes = _minutes(checkpoint_minutes)
        if steps is None and minutes is None:
            minutes = DEFAULT_MINUTES
        kept = positive("keep", keep)
        if kept < KEEP_LEAST:
            raise ConfigurationError(
                f"keep must be {KEEP_LEAST} or more, so that one is there to fall back to"
            )
        return cls(steps, minutes, kept, flag("async_save", async_save))

    def next_after(self, step: int) -> int:
        """Return the first step after this one that ends with a checkpoint; -1 if none does."""
        return -1 if self.steps is None else (step + 1) // self.steps * self.steps + self.steps - 1


def _minutes(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ConfigurationError(f"checkpoint_minutes must be a positive number of minutes, not {value!r}")
    return float(value)
