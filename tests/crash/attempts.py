"""Attempts of one training as processes of their own, and what can be seen of them from outside.

The driver imports torch once and forks a supervisor for each attempt, which forks the training, as
`python -m alchemy.job` does; so an attempt costs milliseconds to start. The driver must have no threads.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import alchemy as al
import alchemy_agent as agent
from alchemy.checkpoint.store import Checkpoint, State, list_checkpoints, verify
from alchemy.context import Context
from alchemy.forking import run_forked
from alchemy.recording.history import read_evals, read_metrics
from alchemy.state.tensors import read_state
from tests.crash.training import PARAMS, make_training
from tests.support.sdklab import read_rows
from tests.support.statehash import digest

__all__ = ["Journal", "Outcome", "Plan", "Trainer", "committed", "outcome", "start"]

_OPS = ("graceful_stop", "save_checkpoint", "update_params")
_PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How a run is trained."""

    total_steps: int = 1400
    checkpoint_every: int = 30
    eval_every: int = 20


@dataclass(slots=True)
class Journal:
    """What a training said about itself, through a file that it wrote without buffers."""

    pid: int = 0
    """Of the training's process; 0 if its loop never began."""
    rows: list[tuple[str, int, float]] = field(default_factory=list)
    """Kind ("metrics" or "evals"), step, and monotonic seconds at which the row had been logged."""
    ending: dict[str, str] = field(default_factory=dict)
    """Digests of all states after the loop."""

    @classmethod
    def read(cls, path: Path) -> Journal:
        """Read the file as it is; a torn last line is passed over."""
        journal = cls()
        text = path.read_text() if path.exists() else ""
        for line in text.split("\n")[:-1]:
            kind, _, rest = line.partition(" ")
            if kind == "pid":
                journal.pid = int(rest)
            elif kind == "end":
                journal.ending = json.loads(rest)
            else:
                step, seconds = rest.split()
                journal.rows.append((kind, int(step), float(seconds)))
        return journal

    def steps(self) -> list[int]:
        """Return the steps that were logged, in order."""
        return [step for kind, step, _ in self.rows if kind == "metrics"]


class _Writer:
    """Writes a journal; the training's `Watch`."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(self._fd, f"pid {os.getpid()}\n".encode())

    def begins(self, ctx: Context, step: int) -> None:
        pass

    def logged(self, step: int, kind: str) -> None:
        os.write(self._fd, f"{kind} {step} {time.monotonic()}\n".encode())

    def ends(self, states: dict[str, Any]) -> None:
        digests = {name: digest(state) for name, state in states.items()}
        os.write(self._fd, f"end {json.dumps(digests)}\n".encode())


class Trainer:
    """A running attempt: its supervisor, which leads a process group, and the training."""

    def __init__(self, attempt: agent.AttemptDir, pid: int, alive: int, journal: Path) -> None:
        self.attempt = attempt
        self._pid, self._alive, self._journal = pid, alive, journal

    @property
    def journal(self) -> Journal:
        """What the training has said so far."""
        return Journal.read(self._journal)

    def wait(self, seconds: float) -> bool:
        """Wait until none of its processes lives any more, or for some seconds; tell whether none does."""
        return bool(select.select([self._alive], [], [], max(0.0, seconds))[0])

    def send(self, number: signal.Signals, *, to_all: bool) -> None:
        """Signal the training, or all processes as Slurm does."""
        pid = self.journal.pid
        try:
            if to_all or not pid:
                os.killpg(self._pid, number)
            else:
                os.kill(pid, number)
        except ProcessLookupError:
            pass  # it has just ended

    def reap(self) -> int:
        """Return the supervisor's exit status, or minus a signal's number, once all have ended."""
        if not self.wait(_PATIENCE_S):
            os.killpg(self._pid, signal.SIGKILL)
            raise AssertionError(f"{self.attempt.path} did not end within {_PATIENCE_S:g} s")
        os.close(self._alive)
        _, status = os.waitpid(self._pid, 0)
        return os.waitstatus_to_exitcode(status)


def start(run_dir: agent.RunDir, view: agent.RunDir, k: int, plan: Plan, journal: Path) -> Trainer:
    """Start attempt number `k`, which writes its journal to a new file.

    Args:
        run_dir: The run as the attempt sees it.
        view: The run as the driver sees it.
        k: The attempt's number.
        plan: How to train.
        journal: The file.
    """
    alive, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(alive)
        _supervise(run_dir, k, plan, journal)
    os.close(theirs)
    return Trainer(view.attempt(agent.attempt_name(k, 0)), pid, alive, journal)


def _supervise(run_dir: agent.RunDir, k: int, plan: Plan, journal: Path) -> NoReturn:
    status = 70
    try:
        os.setsid()
        os.environ["ALCHEMY_PARAMS"] = json.dumps(PARAMS)
        attempt = agent.claim_attempt(run_dir, k, 0)
        agent.announce(attempt, _OPS)
        status = run_forked(attempt, lambda: _train(plan, journal))
    except BaseException:  # noqa: BLE001  nothing may climb into the driver's frames
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(agent.pass_on(status) & 0xFF)


def _train(plan: Plan, journal: Path) -> int:
    loop = al.managed(
        total_steps=plan.total_steps, checkpoint_every=plan.checkpoint_every, eval_every=plan.eval_every
    )
    loop(make_training(_Writer(journal)))()
    return 0


# --- What a run has left ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that a completed run must have in common with an undisturbed one, by name."""

    states: dict[str, str]
    """Digests of the live objects when the loop was over."""
    saved: dict[str, str]
    """Digests of what the last checkpoint holds."""
    rows: list[Any]
    """Step and metrics of each row that a reader sees, in order."""
    evaluations: list[Any]
    result: dict[str, Any]

    def differences(self, other: Outcome) -> list[str]:
        """Name what isn't alike."""
        named = []
        for part in ("states", "saved", "result"):
            ours, theirs = getattr(self, part), getattr(other, part)
            names = sorted(ours.keys() | theirs.keys())
            named += [f"{part}: {name}" for name in names if ours.get(name) != theirs.get(name)]
        for part in ("rows", "evaluations"):
            ours, theirs = getattr(self, part), getattr(other, part)
            if ours != theirs:
                pairs = enumerate(zip(ours, theirs, strict=False))
                at = next((place for place, (our, their) in pairs if our != their), None)
                named.append(f"{part}: {len(ours)} of {len(theirs)}, the first difference at {at}")
        return named


def committed(run_dir: agent.RunDir) -> list[Checkpoint]:
    """Return the run's committed checkpoints, oldest first."""
    return [each for each in list_checkpoints(run_dir) if each.state is State.COMMITTED]


def outcome(run_dir: agent.RunDir, ending: dict[str, str]) -> Outcome:
    """Read what a completed run has left; `ending` is from the journal of its last attempt."""
    latest = run_dir.latest()
    assert latest is not None
    result = agent.read_record(latest.result) or {}
    kept = {name: result.get(name) for name in ("status", "steps", "total_steps", "evaluation", "metrics")}
    kept["changes"] = [(each["step"], each["values"]) for each in result.get("changes", ())]
    kept["inexact"] = result.get("inexact")
    rows, evaluations = (
        [(row["step"], row["m"]) for row in read(run_dir)] for read in (read_metrics, read_evals)
    )
    return Outcome(ending, _saved(committed(run_dir)[-1]), rows, evaluations, kept)


def _saved(checkpoint: Checkpoint) -> dict[str, str]:
    verify(checkpoint)
    loop = json.loads((checkpoint.path / "loop.json").read_bytes())
    loop["params"] = [(each["step"], each["values"]) for each in loop["params"]["changes"]]
    digests = {f"loop.json/{name}": digest(value) for name, value in loop.items()}
    for path in checkpoint.path.iterdir():
        if path.suffix == ".pt":
            digests[path.name] = digest(read_state(str(path), mapped=False))
        elif path.suffix != ".json":
            digests[path.name] = digest(path.read_bytes())
    return digests


def logged_steps(attempt: agent.AttemptDir, kind: str) -> list[int]:
    """Return the steps of the rows of an attempt that are on the disk."""
    path = Path(attempt.path, f"{kind}.jsonl")
    return [row["step"] for row in read_rows(path)] if path.exists() else []


if __name__ == "__main__":
    sys.exit(_train(Plan(), Path(sys.argv[1])))
