"""What a run logged over all its attempts, as if it had never been interrupted.

Each attempt writes rows of its own. One that resumed after step k repeats the steps from k + 1 on, so what
its predecessor logged of these is void: its `resume.json` says where it went on from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import alchemy_agent as agent
from alchemy.checkpoint.records import CheckpointRef

__all__ = ["Segment", "read_evals", "read_metrics", "segments"]

Segment = tuple[agent.AttemptDir, "int | None"]
"""An attempt, and the last of its steps that counts; None: all of them."""


def segments(attempt: agent.AttemptDir) -> list[Segment]:
    """Return the attempts that an attempt is the end of, oldest first, with what counts of each."""
    chain: list[Segment] = [(attempt, None)]
    seen = {attempt.name}
    while (ref := _resumed_from(chain[0][0])) is not None and ref.attempt not in seen:
        seen.add(ref.attempt)
        chain.insert(0, (attempt.run_dir.attempt(ref.attempt), ref.step))
    return _narrowed(chain)


def read_metrics(run_dir: agent.RunDir) -> Iterator[dict[str, Any]]:
    """Yield the rows of `log` of a run's latest attempt and of those it continued.

    A row is `{"step": 7, "t": 1700000000.1, "m": {"loss": 0.3}}`; lines that can't be read, such as a torn
    last one, are passed over.
    """
    yield from _read(run_dir, lambda attempt: attempt.metrics)


def read_evals(run_dir: agent.RunDir) -> Iterator[dict[str, Any]]:
    """Yield the rows of `log_eval`, likewise."""
    yield from _read(run_dir, lambda attempt: attempt.evals)


def _narrowed(chain: list[Segment]) -> list[Segment]:
    """Let no attempt count beyond the point from which any later one went on: that may lie before its own."""
    narrowed: list[Segment] = []
    limit: int | None = None
    for attempt, last in reversed(chain):
        limit = last if limit is None else limit if last is None else min(limit, last)
        narrowed.append((attempt, limit))
    return narrowed[::-1]


def _read(run_dir: agent.RunDir, path: Callable[[agent.AttemptDir], str]) -> Iterator[dict[str, Any]]:
    latest = _latest_begun(run_dir)
    for attempt, last in segments(latest) if latest is not None else ():
        for row in _rows(Path(path(attempt))):
            if last is None or row["step"] <= last:
                yield row


def _latest_begun(run_dir: agent.RunDir) -> agent.AttemptDir | None:
    """Return the highest attempt whose loop has begun: one that only starts hides nothing."""
    attempts = [run_dir.attempt(name) for name in reversed(run_dir.attempt_names())]
    begun = (attempt for attempt in attempts if agent.read_record(attempt.resume) is not None)
    return next(begun, attempts[0] if attempts else None)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return
    for line in lines:
        try:
            row = agent.loads(line)
        except ValueError:
            continue
        if isinstance(row.get("step"), int):
            yield row


def _resumed_from(attempt: agent.AttemptDir) -> CheckpointRef | None:
    record = agent.read_record(attempt.resume) or {}
    try:
        return CheckpointRef.from_record(record["from"]) if record.get("from") else None
    except (KeyError, TypeError, ValueError):
        return None
