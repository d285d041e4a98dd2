"""How an execution of a task ended: the contents of `result.json`, written by the trainer itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ErrorInfo", "Evaluation", "Result"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One `log_eval`: the metrics and the step after which they were taken."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An exception that left the user's code."""

    type: str
    """Qualified class name, for example `builtins.ValueError`."""
    message: str
    traceback: str
    """As Python prints it, without the frames of this project."""


@dataclass(frozen=True, slots=True)
class Result:
    """What the trainer knows when it ends: the task returned exactly if `error` and `stopped` are None."""

    steps: int
    """Steps finished, 0 … total_steps."""
    total_steps: int
    evaluation: Evaluation | None
    """The last `log_eval`, which the criteria read; None if there was none."""
    metrics: Mapping[str, float]
    """Last value of each metric passed to `log`."""
    duration_s: float
    """Seconds in the user's function."""
    error: ErrorInfo | None = None
    stopped: str | None = None
    """Who asked it to stop before its end, such as `SIGTERM` or `the command graceful_stop`."""
    checkpoint: Mapping[str, Any] | None = None
    """The record of the last checkpoint committed; None if there is none."""
    resumed_from: int | None = None
    """The step after which the checkpoint was taken that it began from; None if it began afresh."""
    inexact: tuple[str, ...] = ()
    """Why it may differ from a run without interruptions, such as `threads 8 -> 4`; empty if it does not."""
    notes: tuple[str, ...] = ()
    """What else people should know: checkpoints that were passed over, or could not be written."""
    changes: tuple[Mapping[str, Any], ...] = ()
    """Changes of live parameters, each `{"id", "step", "values"}`, in the order they took effect."""

    @property
    def status(self) -> str:
        """`completed`, `stopped` in good order before its end, or `failed` by an error."""
        if self.error:
            return "failed"
        return "completed" if self.stopped is None else "stopped"

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form, without the version field; the wire writes non-finite floats as strings."""
        evaluation, error = self.evaluation, self.error
        return {
            "status": self.status,
            "steps": self.steps,
            "total_steps": self.total_steps,
            "evaluation": evaluation and {"step": evaluation.step, "metrics": dict(evaluation.metrics)},
            "metrics": dict(self.metrics),
            "duration_s": self.duration_s,
            "error": error and {"type": error.type, "message": error.message, "traceback": error.traceback},
            "stopped": self.stopped,
            "checkpoint": None if self.checkpoint is None else dict(self.checkpoint),
            "resumed_from": self.resumed_from,
            "inexact": list(self.inexact),
            "notes": list(self.notes),
            "changes": [dict(change) for change in self.changes],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Result:
        """Read the JSON form; unknown fields are ignored, those after `error` may be missing.

        Raises:
            KeyError: A field is missing.
        """
        evaluation, error = record["evaluation"], record["error"]
        return cls(
            steps=record["steps"],
            total_steps=record["total_steps"],
            evaluation=evaluation and Evaluation(evaluation["step"], _floats(evaluation["metrics"])),
            metrics=_floats(record["metrics"]),
            duration_s=float(record["duration_s"]),
            error=error and ErrorInfo(error["type"], error["message"], error["traceback"]),
            stopped=record.get("stopped"),
            checkpoint=dict(record["checkpoint"]) if record.get("checkpoint") else None,
            resumed_from=record.get("resumed_from"),
            inexact=tuple(map(str, record.get("inexact") or ())),
            notes=tuple(map(str, record.get("notes") or ())),
            changes=tuple(map(dict, record.get("changes") or ())),
        )


def _floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Undo the wire's strings for non-finite numbers: float() reads "NaN" and "Infinity"."""
    return {name: float(value) for name, value in metrics.items()}
