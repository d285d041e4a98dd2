"""News about runs, produced by backends on any thread and consumed by the loop on the main thread only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pytest_alchemy.outcome import Outcome

__all__ = ["Event", "Finished", "Notice", "Progressed", "Queued", "Started"]


@dataclass(frozen=True, slots=True)
class Queued:
    """The scheduler accepted the run."""

    run: str
    job: str
    """The scheduler's name for it, such as `123_4`."""
    why: str = ""
    """Why it waits, in the scheduler's words, if it said so."""


@dataclass(frozen=True, slots=True)
class Started:
    """An attempt of the run began on a machine."""

    run: str
    attempt: str
    host: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """The run reported a step."""

    run: str
    step: int
    total: int | None
    rate: float | None
    """Steps per second over a recent window."""
    eta_s: float | None
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Finished:
    """The run ended; no further event of it follows."""

    run: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should read once, such as a scheduler that stopped answering."""

    text: str


Event: TypeAlias = "Queued | Started | Progressed | Finished | Notice"
