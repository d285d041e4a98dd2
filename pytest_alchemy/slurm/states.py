"""Slurm's words for the state of a job, all of them, in one table for `squeue` and `sacct`.

Slurm prints one word per job: one of twelve base states, or a flag that hides the base state. Which
words mean that nothing more will happen is decided here and nowhere else; an unknown word never does.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pytest_alchemy.outcome import Reason

__all__ = ["JobState", "StateWord", "read_state"]


class JobState(Enum):
    """A base state or flag of Slurm; the value is the word Slurm prints."""

    # Base states
    BOOT_FAIL = "BOOT_FAIL"
    """Ended: a node failed to boot for it."""
    CANCELLED = "CANCELLED"
    """Ended: cancelled by its user or an administrator, perhaps before it started."""
    COMPLETED = "COMPLETED"
    """Ended: all processes left with exit code zero."""
    DEADLINE = "DEADLINE"
    """Ended: its deadline came first."""
    FAILED = "FAILED"
    """Ended: a non-zero exit code or another failure."""
    NODE_FAIL = "NODE_FAIL"
    """Ended: one of its nodes failed."""
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    """Ended: it exceeded the memory it was given."""
    PENDING = "PENDING"
    """Waits for resources, a limit, a dependency or a hold."""
    PREEMPTED = "PREEMPTED"
    """Ended: made room for another job."""
    RUNNING = "RUNNING"
    """Has resources and executes."""
    SUSPENDED = "SUSPENDED"
    """Has resources, its processes are stopped and may go on."""
    TIMEOUT = "TIMEOUT"
    """Ended: reached its time limit."""

    # Flags
    COMPLETING = "COMPLETING"
    """Ends: some processes or an epilog still run."""
    CONFIGURING = "CONFIGURING"
    """Has nodes that are being made ready."""
    EXPEDITING = "EXPEDITING"
    """Waits ahead of others, to be requeued at once."""
    LAUNCH_FAILED = "LAUNCH_FAILED"
    """Did not launch on its nodes, as when a prolog failed; Slurm may hold or requeue it."""
    POWER_UP_NODE = "POWER_UP_NODE"
    """Has nodes that are powered down and being started."""
    RECONFIG_FAIL = "RECONFIG_FAIL"
    """Its nodes could not be reconfigured for it."""
    REQUEUED = "REQUEUED"
    """Is being put back into the queue."""
    REQUEUE_FED = "REQUEUE_FED"
    """Is being put back into the queue of a federation."""
    REQUEUE_HOLD = "REQUEUE_HOLD"
    """Was put back into the queue and is held there."""
    RESIZING = "RESIZING"
    """Changes its size."""
    RESV_DEL_HOLD = "RESV_DEL_HOLD"
    """Is held because its reservation was deleted."""
    REVOKED = "REVOKED"
    """Was removed because another cluster of the federation started it."""
    SIGNALING = "SIGNALING"
    """Is being sent a signal."""
    SPECIAL_EXIT = "SPECIAL_EXIT"
    """Was put back into the queue in a special state, and is held."""
    STAGE_OUT = "STAGE_OUT"
    """Ends: its files are being staged out of a burst buffer."""
    STOPPED = "STOPPED"
    """Has resources, its processes were stopped by a signal."""
    UPDATE_DB = "UPDATE_DB"
    """Is being written to the accounting database."""

    # Ours
    UNKNOWN = "UNKNOWN"
    """A word that is not in this table: kept as text, never taken for an end."""

    @property
    def is_terminal(self) -> bool:
        """Whether the job can't execute any more. A flag hides the base state and so proves nothing."""
        return self in _TERMINAL

    @property
    def is_waiting(self) -> bool:
        """Whether the job will start, or start again, without anybody submitting it."""
        return self in _WAITING

    @property
    def reason(self) -> Reason | None:
        """What this end means by itself; None where only the job's own files can tell, or for no end."""
        return _REASONS.get(self)


_REASONS = {
    JobState.BOOT_FAIL: Reason.NODE_FAILURE,
    JobState.CANCELLED: Reason.CANCELLED,
    JobState.DEADLINE: Reason.DEADLINE,
    JobState.NODE_FAIL: Reason.NODE_FAILURE,
    JobState.OUT_OF_MEMORY: Reason.OUT_OF_MEMORY,
    JobState.PREEMPTED: Reason.PREEMPTED,
    JobState.TIMEOUT: Reason.TIMEOUT,
}
_TERMINAL = frozenset({*_REASONS, JobState.COMPLETED, JobState.FAILED})
_WAITING = frozenset(
    {
        JobState.CONFIGURING,
        JobState.EXPEDITING,
        JobState.PENDING,
        JobState.POWER_UP_NODE,
        JobState.REQUEUED,
        JobState.REQUEUE_FED,
        JobState.REQUEUE_HOLD,
        JobState.RESV_DEL_HOLD,
        JobState.SPECIAL_EXIT,
    }
)
_BY_WORD = {state.value: state for state in JobState}


@dataclass(frozen=True, slots=True)
class StateWord:
    """A state and the words Slurm used for it."""

    state: JobState
    raw: str


def read_state(text: str) -> StateWord:
    """Read a state as squeue or sacct print it: `CANCELLED by 1000` and the cut `CANCELLED+` included."""
    raw = text.strip()
    word = raw.split(" ", 1)[0].rstrip("+").upper()
    return StateWord(_BY_WORD.get(word, JobState.UNKNOWN), raw)
