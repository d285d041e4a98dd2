"""What a checkpoint says besides the values that have files of their own: the contents of `loop.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import alchemy_agent as agent
from alchemy.result import Evaluation
from alchemy.state.kinds import Blob, Captured, Saved

__all__ = ["LOOP_FILE", "LoopState", "Stored"]

LOOP_FILE = "loop.json"


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a managed value of a checkpoint is: in a file beside, or here."""

    kind: str
    form: Any = None
    file: str | None = None
    is_rebound: bool = False

    @classmethod
    def of(cls, name: str, kind: str, captured: Captured, *, is_rebound: bool) -> Stored:
        """Describe a captured value."""
        if isinstance(captured, Blob):
            return cls(kind, captured.note, name + captured.suffix, is_rebound)
        return cls(kind, captured.form, None, is_rebound)

    def at(self, directory: Path) -> Saved:
        """Return what a holder needs to restore it from the checkpoint in this directory."""
        path = None if self.file is None else directory / self.file
        return Saved(self.kind, self.form, path, self.is_rebound)


@dataclass(frozen=True, slots=True)
class LoopState:
    """Where the loop is after a step, and all that must be the same when it goes on."""

    step: int
    """The last finished step."""
    seed: int
    """What the randomness inside the workers of loaders is seeded from."""
    evaluation: Evaluation | None
    """The last `log_eval`."""
    is_overdue: bool
    """Whether an evaluation was cut short, so that the next step must make up for it."""
    metrics: Mapping[str, float]
    """Last value of each metric passed to `log`."""
    rng: Mapping[str, Any]
    """As `alchemy.state.rng.capture` returns it."""
    params: Any
    """Changes of live parameters, as `LiveParams.state` returns them."""
    values: Mapping[str, Stored]
    """The managed values by name."""
    deleted: tuple[str, ...] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)
    """As `alchemy.loop.machine.facts` returns it."""
    inexact: tuple[str, ...] = ()
    """Why the run differs by now from an undisturbed one, for people."""
    is_final: bool = False
    """Whether the task's function had returned, so that nothing is left to do."""

    def encode(self) -> bytes:
        """Return the file's contents."""
        evaluation = self.evaluation
        record = {
            "v": agent.WIRE_VERSION,
            "step": self.step,
            "seed": self.seed,
            "evaluation": evaluation and {"step": evaluation.step, "metrics": dict(evaluation.metrics)},
            "is_overdue": self.is_overdue,
            "metrics": dict(self.metrics),
            "rng": self.rng,
            "params": self.params,
            "values": {
                name: {"kind": each.kind, "form": each.form, "file": each.file, "rebound": each.is_rebound}
                for name, each in self.values.items()
            },
            "deleted": list(self.deleted),
            "machine": dict(self.machine),
            "inexact": list(self.inexact),
            "is_final": self.is_final,
        }
        return agent.dumps(record)

    @classmethod
    def decode(cls, data: bytes) -> LoopState:
        """Read the file's contents; unknown fields are ignored.

        Raises:
            ValueError: It is not what `encode` writes, or of another version.
        """
        record = agent.loads(data)
        if record.get("v") != agent.WIRE_VERSION:
            raise ValueError(f"it is of version {record.get('v')!r}, and this SDK reads {agent.WIRE_VERSION}")
        try:
            return cls._of(record)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

    @classmethod
    def _of(cls, record: Mapping[str, Any]) -> LoopState:
        evaluation = record["evaluation"]
        return cls(
            step=record["step"],
            seed=record["seed"],
            evaluation=evaluation and Evaluation(evaluation["step"], _floats(evaluation["metrics"])),
            is_overdue=record["is_overdue"],
            metrics=_floats(record["metrics"]),
            rng=record["rng"],
            params=record["params"],
            values={
                name: Stored(each["kind"], each["form"], each["file"], each["rebound"])
                for name, each in record["values"].items()
            },
            deleted=tuple(record["deleted"]),
            machine=record["machine"],
            inexact=tuple(record["inexact"]),
            is_final=record["is_final"],
        )


def _floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Undo the wire's strings for non-finite numbers: float() reads "NaN" and "Infinity"."""
    return {name: float(value) for name, value in metrics.items()}
