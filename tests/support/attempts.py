"""Attempts of one run, executed in this process one after the other, as a cluster would execute them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import alchemy as al
import alchemy_agent as agent
from alchemy.checkpoint.store import Checkpoint, State, list_checkpoints
from alchemy.execution import execute
from alchemy.recording.recorder import FileRecorder
from alchemy.result import Result
from tests.support.agentlab import make_attempt
from tests.support.sdklab import make_spec


class Died(BaseException):
    """What a process can't catch: it ends without a result."""


class Run:
    """A run of one function; every call of `attempt` continues it."""

    def __init__(
        self, root: Path, function: Callable[[Any], Any], *, total_steps: int = 10, **options: Any
    ) -> None:
        self.root = root
        self.function = function
        self.options = {"checkpoint_every": 2, **options}
        self.total_steps = total_steps
        self.params: dict[str, Any] = {"lr": 0.1}
        self.eval_every = self.options.pop("eval_every", None)
        self._numbers = itertools.count(1)
        self.last: agent.AttemptDir | None = None

    @property
    def run_dir(self) -> agent.RunDir:
        return agent.RunDir(self.root / "jobs" / "run-1")

    def attempt(self) -> Result:
        """Execute the function as the next attempt; what it raises comes through, after its result."""
        experiment = al.experiment("demo", matrix={name: [value] for name, value in self.params.items()})
        task = experiment.task(self.function, total_steps=self.total_steps, name="train", **self.options)
        self.last = make_attempt(self.root, k=next(self._numbers))
        spec = make_spec(
            Path(__file__),
            self.params,
            total_steps=self.total_steps,
            eval_every=self.eval_every,
        )
        return execute(task, spec, FileRecorder(self.last, agent.begin(self.last)))

    def resumed(self) -> dict[str, Any]:
        """Return the last attempt's `resume.json`."""
        assert self.last is not None
        answer = agent.read_record(self.last.resume)
        assert answer is not None, f"{self.last.resume} is not there"
        return answer

    def committed(self) -> list[Checkpoint]:
        return [each for each in list_checkpoints(self.run_dir) if each.state is State.COMMITTED]

    def steps(self) -> list[str]:
        """Return the committed checkpoints as `1-r0/3`, oldest first."""
        return [f"{each.attempt}/{each.step}" for each in self.committed()]
