"""What the tests of running a task share: specs, contexts, rows as a reader sees them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alchemy.context import Context
from alchemy.live.params import LiveParams
from alchemy.loop.cadence import Checkpointing
from alchemy.loop.lifecycle import Lifecycle
from alchemy.loop.position import Position
from alchemy.recording.recorder import NullRecorder, Recorder
from alchemy.recording.scalars import Scalar
from alchemy.result import Evaluation
from alchemy.runspec import CodeRef, RunSpec

if TYPE_CHECKING:
    from alchemy.matrix import Value


def make_spec(path: Path, params: Mapping[str, Value] | None = None, **changes: Any) -> RunSpec:
    """Describe a run of `train` in the experiment `demo`, declared in the file `path`."""
    fields: dict[str, Any] = {
        "run": "demo-train-0123456789ab",
        "experiment": "demo",
        "task": "train",
        "case": "",
        "params": params or {},
        "total_steps": 3,
        "eval_every": None,
        "seed": 7,
        "seed_rng": True,
        "fingerprint": "0123456789ab",
        "code": CodeRef(str(path), path.stem, (str(path.parent),), str(path.parent)),
    }
    return RunSpec(**{**fields, **changes})


def make_context(
    total_steps: int = 10,
    eval_every: int | None = None,
    *,
    params: Mapping[str, Value] | None = None,
    recorder: Recorder | None = None,
    before_steps: Callable[[], None] = lambda: None,
    kind: type[Context] = Context,
) -> Context:
    """Make a context that keeps what it is told in a `Notes`."""
    recorder, position = recorder or Notes(), Position()
    recorder.follow(position, total_steps)
    lifecycle = Lifecycle(
        position=position,
        params=LiveParams(params or {}),
        recorder=recorder,
        checkpointing=Checkpointing(),
        seed=0,
        total_steps=total_steps,
        before_steps=before_steps,
    )
    return kind(lifecycle=lifecycle, recorder=recorder, eval_every=eval_every)


class Notes(NullRecorder):
    """A recorder that keeps everything in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, Scalar]]] = []
        self.evaluations: list[Evaluation] = []

    def log(self, step: int, seconds: float, metrics: Mapping[str, Scalar]) -> None:
        super().log(step, seconds, metrics)
        self.rows.append((step, dict(metrics)))

    def log_eval(self, evaluation: Evaluation, seconds: float) -> None:  # noqa: ARG002
        self.evaluations.append(evaluation)


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read a file of rows as a reader must: what isn't a whole line of JSON is passed over."""
    rows = []
    for line in Path(path).read_bytes().split(b"\n"):
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows
