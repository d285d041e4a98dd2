"""At most one attempt of a run commits anything: whoever finds a later one withdraws."""

from __future__ import annotations

import alchemy_agent as agent
from alchemy.errors import InfrastructureError

__all__ = ["Fenced", "yield_to_later"]


class Fenced(InfrastructureError):
    """A later attempt of the run has begun, so this one may commit neither a checkpoint nor a result."""


def yield_to_later(attempt: agent.AttemptDir, what: str = "what it has") -> None:
    """Withdraw if a later attempt of the same run exists; to be asked right before each commit.

    Args:
        attempt: The attempt that wants to commit.
        what: What it wants to commit, for people.

    Raises:
        Fenced: There is a later one.
        OSError: The attempts can't be listed.
    """
    latest = attempt.run_dir.latest()
    if latest is not None and (latest.k, latest.restarts) > (attempt.k, attempt.restarts):
        raise Fenced(
            f"attempt {latest.name} of {attempt.run_dir.path} has begun: {what} of {attempt.name} is void"
        )
