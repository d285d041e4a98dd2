"""How far a task has come."""

from __future__ import annotations

from alchemy.result import Evaluation

__all__ = ["Position"]


class Position:
    """How far a task has come. Written by the task's thread alone; others may read it at any time."""

    __slots__ = ("begun", "evaluation", "exhausted", "is_cut", "is_evaluating", "is_overdue", "step")

    def __init__(self) -> None:
        self.step = 0
        """The current step; 0 before the loop, the last one after it."""
        self.begun = False
        self.exhausted = False
        """Whether the last step's body has been left."""
        self.evaluation: Evaluation | None = None
        """The last `log_eval`, which the criteria read."""
        self.is_evaluating = False
        """Whether `should_eval` said yes and no `log_eval` came yet."""
        self.is_cut = False
        """Whether an evaluation was told, by `should_stop`, that there is no time for it."""
        self.is_overdue = False
        """Whether the step before ended without the evaluation that was due."""
