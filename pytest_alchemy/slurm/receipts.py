"""The end of a run: its logs gathered, its outcome made, its attempt's receipt closed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_alchemy.outcome import Outcome, Reason
from pytest_alchemy.slurm.submission import output_path
from pytest_alchemy.slurm.watch import read_result
from pytest_alchemy.transport import TransportError

if TYPE_CHECKING:
    from pytest_alchemy.slurm.watch import Conclusion, RunState
    from pytest_alchemy.transport import Transport

__all__ = ["close_receipt", "outcome_of", "run_directory", "unsubmitted"]

_TAIL_BYTES = 64 << 10
"""How much of each log an outcome carries."""


def run_directory(root: str, run: str) -> str:
    """Return where a run's files are."""
    return f"{root}/jobs/{run}"


def unsubmitted(root: str, run: str, reason: Reason, evidence: str) -> Outcome:
    """Return the outcome of a run that never became a job."""
    return Outcome(reason, run, attempt=None, directory=Path(run_directory(root, run)), evidence=evidence)


def outcome_of(
    transport: Transport, root: str, state: RunState, conclusion: Conclusion, now: float
) -> Outcome:
    """Gather what is known of a run that ended."""
    directory = run_directory(root, state.run)
    slurm_log = output_path(f"{root}/submissions/{state.key}", state.index)
    logs = [slurm_log]
    stdout, stderr = "", _tail(transport, slurm_log)
    if state.attempt is not None:
        logs = [f"{directory}/attempts/{state.attempt}/{name}.log" for name in ("stdout", "stderr")]
        stdout, own = (_tail(transport, log) for log in logs)
        # Slurm's own words, such as `CANCELLED DUE TO TIME LIMIT`, end up outside the attempt.
        stderr, logs = own + stderr, [*logs, slurm_log]
    return Outcome(
        reason=conclusion.reason,
        run=state.run,
        attempt=state.attempt,
        directory=Path(directory),
        result=read_result(state.result),
        evidence=conclusion.evidence + _hint(root, conclusion, stderr),
        queued_s=(now if state.started is None else state.started) - state.submitted,
        duration_s=_duration(state),
        stdout=stdout,
        stderr=stderr,
        logs=tuple(map(Path, logs)),
    )


def close_receipt(
    transport: Transport, root: str, state: RunState, conclusion: Conclusion, by: str
) -> str | None:
    """Write the last word on an attempt, if there is one; return what went wrong, if something did."""
    if state.attempt is None:
        return None
    attempt = f"{run_directory(root, state.run)}/attempts/{state.attempt}"
    try:
        transport.conclude(attempt, conclusion.reason.value, by, conclusion.evidence)
    except TransportError as error:
        return f"the receipt of {state.run} could not be closed: {error}"
    return None


def _tail(transport: Transport, path: str) -> str:
    return transport.read_tail(path, _TAIL_BYTES).decode("utf-8", "replace")


def _hint(root: str, conclusion: Conclusion, stderr: str) -> str:
    if conclusion.reason is not Reason.ENVIRONMENT or stderr:
        return ""
    return f" (nothing can be read here; do the nodes share {root}, and does it look the same there?)"


def _duration(state: RunState) -> float:
    """Seconds the attempt ran: by a monotonic clock, else between two readings of the node's clock.

    The supervisor measured the whole of it; where it was killed, the trainer has its own part.
    """
    exit_record, start, beat = state.exit or {}, state.start or {}, state.beat or {}
    for record in (exit_record, state.result or {}):
        if (measured := _number(record, "duration_s")) is not None:
            return max(0.0, measured)
    begun, last = _number(start, "time"), _number(exit_record, "time") or _number(beat, "time")
    return max(0.0, last - begun) if begun is not None and last is not None else 0.0


def _number(record: Mapping[str, Any], name: str) -> float | None:
    value = record.get(name)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
