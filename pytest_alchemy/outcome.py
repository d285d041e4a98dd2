"""How a run ended, as the dispatcher sees it: what a backend hands to the judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from alchemy.result import Result

__all__ = ["Outcome", "Reason", "tell_checkpoint", "tell_stop"]


class Reason(str, Enum):
    """Why an attempt ended (docs/design.md, Failure policy); the value is what stands in `close.json`."""

    COMPLETED = "completed"
    STOPPED = "stopped"
    PREEMPTED = "preempted"
    TIMEOUT = "timeout"
    DEADLINE = "deadline"
    NODE_FAILURE = "node_failure"
    OUT_OF_MEMORY = "out_of_memory"
    OUT_OF_GPU_MEMORY = "out_of_gpu_memory"
    DATA_ERROR = "data_error"
    EVALUATOR_ERROR = "evaluator_error"
    USER_ERROR = "user_error"
    STORAGE = "storage"
    ENVIRONMENT = "environment"
    SUBMIT_REFUSED = "submit_refused"
    INFRASTRUCTURE = "infrastructure"
    CANCELLED = "cancelled"
    VANISHED = "vanished"
    LOST = "lost"
    DUPLICATE = "duplicate"
    FENCED = "fenced"

    @property
    def is_infrastructure(self) -> bool:
        """Whether pytest reports it as ERROR: neither the hypothesis nor the user's code is to blame."""
        return self not in _OF_THE_RUN


_OF_THE_RUN = frozenset(
    {
        Reason.COMPLETED,
        Reason.DATA_ERROR,
        Reason.EVALUATOR_ERROR,
        Reason.OUT_OF_GPU_MEMORY,
        Reason.OUT_OF_MEMORY,
        Reason.USER_ERROR,
    }
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one run."""

    reason: Reason
    run: str
    """Run id."""
    attempt: str | None
    """Name of the attempt's directory, such as `1-r0`; None if none was claimed."""
    directory: Path
    """The run directory."""
    result: Result | None = None
    exception: BaseException | None = None
    """What the user's code raised in this process, to be raised again with its traceback; jobs have none."""
    evidence: str = ""
    """For people: what the reason was concluded from, such as `Slurm says TIMEOUT (job 12_3)`."""
    queued_s: float = 0.0
    """Seconds between submission and start, on the dispatcher's clock."""
    duration_s: float = 0.0
    """Seconds the attempt ran, on the node's monotonic clock."""
    stdout: str = ""
    """The end of what the job printed, as far as it is worth showing."""
    stderr: str = ""
    logs: tuple[Path, ...] = field(default=())
    """Files in which the whole output stands."""

    @property
    def is_stopped(self) -> bool:
        """Whether it left in good order before its end, so that there is nothing to judge yet."""
        return self.result is not None and self.result.status == "stopped"


def tell_stop(result: Result) -> str:
    """Say of a run that was asked to stop how far it came, who asked, and how it goes on."""
    saved = result.checkpoint is not None
    advice = "run the same command again to continue" if saved else "nothing was saved, so it will begin anew"
    return f"after {result.steps} of {result.total_steps} steps by {result.stopped}; {advice}"


def tell_checkpoint(result: Result) -> str:
    """Name the last checkpoint, such as `1-r0/step-00001199`; empty if there is none."""
    checkpoint = result.checkpoint
    return f"{checkpoint.get('attempt')}/{checkpoint.get('name')}" if checkpoint else ""
