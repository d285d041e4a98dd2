"""Disturbs runs of one training until they complete, and compares them with one that nobody disturbed."""

from __future__ import annotations

import collections
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch._dynamo  # an optimizer's first step would load it: a second in every fork

import alchemy_agent as agent
from tests.crash import attempts
from tests.crash.attempts import Outcome, Plan, Trainer

if TYPE_CHECKING:
    from alchemy.checkpoint.store import Checkpoint

__all__ = ["Harness", "Violation"]

_ON_DISK_S = 1.0
"""A row logged longer ago than this survives a SIGKILL."""
_NOISE = 0.2
_STOPPED = 75
_ITS_WORDS = ("CheckpointUnusable", "InfrastructureError", "SaveFailed")
"""What an attempt says that gives up because of its disk."""


class Violation(AssertionError):
    """Something was lost or is not what it was."""


class Harness:
    """Runs of one training, and the tally of what was done to them."""

    def __init__(
        self,
        roots: Sequence[Path],
        seed: int,
        number: signal.Signals,
        plan: Plan,
        sound: Path | None = None,
    ) -> None:
        """Take where and how.

        Args:
            roots: A directory; or several paths of the same one, such as the mounts of two clients, which the
                attempts of a run use in turn.
            seed: Draws the instants.
            number: SIGKILL, or SIGTERM, at which a training must save before it leaves.
            plan: How the runs are trained.
            sound: Where the root fails now and then, another path of it that doesn't, to look through. An
                attempt may then give up, or go on from an older checkpoint.
        """
        self.tally: collections.Counter[str] = collections.Counter()
        self._roots, self._number, self._plan, self._sound = roots, number, plan, sound
        self._journals = Path(tempfile.mkdtemp(prefix="journals-"))
        self._random = random.Random(seed)  # noqa: S311
        self._reference: Outcome | None = None
        torch.set_num_threads(1)  # others wouldn't survive the fork

    def reference(self) -> None:
        """Train once, on what does not fail, without disturbing it."""
        view = self._new_run("undisturbed")
        trainer = attempts.start(view, view, 1, self._plan, self._journal(view.name, 1))
        status = trainer.reap()
        if status != 0:
            raise Violation(f"the undisturbed run ended with status {status}: {_error_of(trainer)}")
        self._reference = attempts.outcome(view, trainer.journal.ending)

    def close(self) -> None:
        """Forget what the trainings said of themselves."""
        shutil.rmtree(self._journals)

    def run(self, name: str) -> None:
        """Disturb a run until it completes.

        Raises:
            Violation: Something was wrong.
        """
        self._new_run(name)
        k, is_over = 0, False
        while not is_over:
            k += 1
            is_over = self._attempt(name, k)
        last, view = attempts.Journal.read(self._journal(name, k)), self._view(name, k + 1)
        assert self._reference is not None
        differences = attempts.outcome(view, last.ending).differences(self._reference)
        if not last.steps():  # it resumed after the loop, where nobody asks the loader any more
            differences = [each for each in differences if each != "states: loader"]
        if self._sound and attempts.committed(view)[-1].step < self._plan.total_steps - 1:
            self.tally["runs without a last checkpoint, as the disk refused it"] += 1
            differences = [each for each in differences if not each.startswith("saved: ")]
        if differences:
            raise Violation(f"{view.path} is not what an undisturbed run is: {'; '.join(differences)}")
        self.tally["runs"] += 1

    def _attempt(self, name: str, k: int) -> bool:
        """Run one attempt and disturb it; tell whether it completed the run."""
        before = attempts.committed(self._view(name, k))
        trainer = self._start(name, k)
        if not before:
            self._await_commit(trainer)
        delay_s, to_all = self._draw_delay(), self._random.random() < 0.5
        killed_at = None
        if not trainer.wait(delay_s):
            killed_at = time.monotonic()
            trainer.send(self._number, to_all=to_all)
        status = trainer.reap()
        self._check_beginning(trainer, before)
        is_over = (agent.read_record(trainer.attempt.result) or {}).get("status") == "completed"
        if self._number == signal.SIGTERM:
            self._check_stop(trainer, status, is_over=is_over)
        elif status not in (0, -signal.SIGKILL) or (status == 0 and not is_over):
            self._give_up(trainer, status)
        if killed_at is not None:
            self._check_rows(trainer, killed_at)
            self._count(trainer)
        return is_over

    def _give_up(self, trainer: Trainer, status: int) -> None:
        if self._sound is None or not any(word in _error_of(trainer) for word in _ITS_WORDS):
            raise Violation(f"{trainer.attempt.path} ended with status {status}: {_error_of(trainer)}")
        self.tally["attempts that gave up"] += 1

    def _draw_delay(self) -> float:
        """Return seconds from start to signal: mostly few, sometimes more than a row takes to the disk."""
        kind = self._random.random()
        low, high = (0.0, 0.3) if kind < 0.5 else (0.2, 0.9) if kind < 0.8 else (1.1, 1.7)
        return self._random.uniform(low, high)

    def _check_beginning(self, trainer: Trainer, before: Sequence[Checkpoint]) -> None:
        """Check that it went on from the newest checkpoint there was, at the very next step."""
        record = agent.read_record(trainer.attempt.resume)
        steps = trainer.journal.steps()
        if record is None:
            if steps:
                raise Violation(f"{trainer.attempt.path} has trained and has no resume.json")
            return
        fitting = [each for each in before if each.ref.to_record() == record["from"]]
        is_newest = fitting == list(before[-1:]) and not record["rejected"]
        if not record["exact"] or not (is_newest or (self._sound and fitting)):
            raise Violation(
                f"{trainer.attempt.path} says {record}, and there were {[c.name for c in before]}"
            )
        self.tally["attempts that went on from an older checkpoint"] += not is_newest
        first = fitting[0].step + 1 if fitting else 0
        if steps != list(range(first, first + len(steps))):
            raise Violation(f"{trainer.attempt.path} should go on with step {first}, and did {steps[:3]} …")

    def _check_rows(self, trainer: Trainer, killed_at: float) -> None:
        """Check that what was logged more than a second ago is there."""
        journal = trainer.journal
        for kind in ("metrics", "evals"):
            due = [step for each, step, t in journal.rows if each == kind and t < killed_at - _ON_DISK_S]
            there = attempts.logged_steps(trainer.attempt, kind)
            self.tally[f"{kind} older than a second when killed"] += len(due)
            lost = sorted(set(due) - set(there))
            if lost:
                ages = [killed_at - t for each, step, t in journal.rows if each == kind and step == lost[0]]
                raise Violation(
                    f"{trainer.attempt.path} lost {kind} of {lost}, the first {ages[0]:.3f} s old"
                )

    def _check_stop(self, trainer: Trainer, status: int, *, is_over: bool) -> None:
        """Check that a training that was asked to stop did so with all its steps saved."""
        if is_over and status in (0, -signal.SIGTERM):  # the latter if it had nothing left to do but exit
            return
        steps = trainer.journal.steps()
        if not steps and status in (-signal.SIGTERM, _STOPPED):
            return  # it was asked before its first step
        saved = [each.step for each in attempts.committed(trainer.attempt.run_dir)]
        if status != _STOPPED or saved[-1:] != steps[-1:]:
            raise Violation(
                f"{trainer.attempt.path} was asked to stop after step {steps[-1:]}: status {status}, "
                f"checkpoints {saved}: {_error_of(trainer)}"
            )

    def _count(self, trainer: Trainer) -> None:
        journal = trainer.journal
        where = "after" if journal.ending else "in" if journal.rows else "before"
        self.tally["kills"] += 1
        self.tally[f"kills {where} the loop"] += 1
        own = Path(trainer.attempt.run_dir.checkpoints, trainer.attempt.name)
        names = [path for path in own.iterdir() if path.is_dir()] if own.is_dir() else []
        self.tally["kills within a save"] += any(not (path / "committed.json").exists() for path in names)

    def _await_commit(self, trainer: Trainer) -> None:
        while not trainer.wait(0.01):
            if attempts.committed(trainer.attempt.run_dir):
                return

    def _start(self, name: str, k: int) -> Trainer:
        run_dir = agent.RunDir(self._root(k) / "jobs" / name)
        return attempts.start(run_dir, self._view(name, k), k, self._plan, self._journal(name, k))

    def _new_run(self, name: str) -> agent.RunDir:
        view = self._view(name, 1)
        Path(view.commands).mkdir(parents=True)
        agent.send_command(view, "update_params", {"noise": _NOISE})  # executed after the first step
        return view

    def _root(self, k: int) -> Path:
        return self._roots[k % len(self._roots)]

    def _view(self, name: str, k: int) -> agent.RunDir:
        return agent.RunDir((self._sound or self._root(k)) / "jobs" / name)

    def _journal(self, name: str, k: int) -> Path:
        return self._journals / f"{name}-{k}"


def _error_of(trainer: Trainer) -> str:
    path = Path(trainer.attempt.stderr)
    return path.read_text(errors="replace")[-3000:] if path.exists() else "no stderr"
