"""Where an attempt begins: at step 0, or after the newest checkpoint that can be trusted.

Decided once, before any code of the user's runs, with every hash checked by then. What was decided stands in
the attempt's `resume.json`, which is written when the loop begins, since only then is known whether the
machine is the same.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import alchemy_agent as agent
from alchemy.checkpoint.selection import Choice, choose
from alchemy.checkpoint.store import Checkpoint
from alchemy.errors import CheckpointUnusable
from alchemy.loop.loopstate import LOOP_FILE, LoopState
from alchemy.state.values import Checkpointed

__all__ = ["FRESH", "Beginning", "begin_attempt"]

FRESH = "ALCHEMY_FRESH"
"""Environment variable: where it is 1, a job starts at step 0 whatever other jobs left."""

_log = logging.getLogger("alchemy")


@dataclass(frozen=True, slots=True)
class Beginning:
    """From where an attempt goes on."""

    attempt: agent.AttemptDir
    choice: Choice
    state: LoopState | None
    """What the chosen checkpoint says; None at step 0."""
    is_fresh: bool = False
    """Whether the user wished to start over."""

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint to resume from; None at step 0."""
        return self.choice.checkpoint

    @property
    def step(self) -> int:
        """The first step to run."""
        return 0 if self.state is None else self.state.step + 1

    def checkpointed(self) -> Checkpointed | None:
        """Return what is to be restored."""
        if self.state is None or self.checkpoint is None:
            return None
        directory = self.checkpoint.path
        values = {name: stored.at(directory) for name, stored in self.state.values.items()}
        return Checkpointed(str(directory), values, self.state.deleted)

    def record(self, differences: Sequence[str], machine: Mapping[str, Any]) -> None:
        """Write `resume.json`.

        Args:
            differences: Why the attempt is not bit-exact; none if it is.
            machine: As `alchemy.loop.machine.facts` returns it.

        Raises:
            OSError: It is not there.
        """
        checkpoint = self.checkpoint
        rejected = [{"checkpoint": name, "why": why} for name, why in self.choice.rejected]
        agent.write_record(
            self.attempt.resume,
            {
                "run": self.attempt.run_dir.name,
                "attempt": self.attempt.name,
                "from": None if checkpoint is None else checkpoint.ref.to_record(),
                "fresh": self.is_fresh,
                "rejected": rejected,
                "exact": not differences,
                "differences": list(differences),
                "machine": dict(machine),
                "time": round(time.time(), 3),  # for people
            },
        )


def begin_attempt(attempt: agent.AttemptDir) -> Beginning:
    """Choose what an attempt resumes from; what had to be passed over is said loudly.

    Raises:
        CheckpointUnusable: The run had progress, and nothing of it can be trusted.
        OSError: The run directory can't be read.
    """
    is_to_be_fresh = os.environ.get(FRESH) == "1"
    if is_to_be_fresh and attempt.restarts == 0:
        return Beginning(attempt, Choice(None, ()), None, is_fresh=True)
    # A restart of a job that is to be fresh goes on with what that job began, if it came to anything.
    choice = choose(attempt, within_job=is_to_be_fresh)
    for name, why in choice.rejected:
        _log.warning("%s: checkpoint %s can't be used: %s", attempt.run_dir.path, name, why)
    if choice.checkpoint is None:
        return Beginning(attempt, choice, None, is_fresh=is_to_be_fresh)
    path = choice.checkpoint.path / LOOP_FILE
    try:
        state = LoopState.decode(path.read_bytes())
    except ValueError as error:
        raise CheckpointUnusable(
            f"{path} is as it was written and can't be understood: {error}. Was it written by another "
            "version of pytest-alchemy? Use that one, or start over: pytest --alchemy-fresh, or "
            "ALCHEMY_FRESH=1"
        ) from error
    return Beginning(attempt, choice, state)
