"""What the Slurm worker is asked to do, and the answers that come back to it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pytest_alchemy.backends import Plan
    from pytest_alchemy.transport import Completed

__all__ = ["Answer", "Cancel", "Close", "Request", "Submit"]


@dataclass(frozen=True, slots=True)
class Submit:
    """Submit these and set `done`."""

    plans: Sequence[Plan]
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Cancel:
    """End these runs, or those of them that wait; set `failed` if some may live on, and then `done`."""

    runs: frozenset[str]
    pending_only: bool
    failed: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Close:
    """Stop watching."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What squeue said."""

    completed: Completed
    keys: frozenset[str]
    """The submissions asked about: of others, silence means nothing."""


Request: TypeAlias = Submit | Cancel | Close | Answer
