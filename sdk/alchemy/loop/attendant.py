"""A thread that looks for what concerns the loop, so that a step costs no look at clocks or directories."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import alchemy_agent as agent

__all__ = ["Attendant"]


class Attendant:
    """Calls for the loop's attention when commands lie in the mailbox or a checkpoint is due by the clock."""

    def __init__(
        self,
        attempt: agent.AttemptDir,
        call: Callable[[], None],
        *,
        poll_s: float,
        period_s: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            attempt: The attempt whose loop it is.
            call: Called from the thread, when there is something.
            poll_s: Seconds between two looks.
            period_s: Seconds between checkpoints; None if the clock doesn't matter.
            clock: Monotonic, in seconds.
        """
        self._attempt, self._commands, self._call = attempt.name, attempt.run_dir.commands, call
        self._poll_s, self._period_s, self._clock = poll_s, period_s, clock
        self._saved = clock()
        self.stop_waits = False
        """Whether a command to stop lies there, unopened."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alchemy-attendant", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._saved = self._clock()
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()

    def saved(self) -> None:
        """Count the time until the next checkpoint from now on."""
        self._saved = self._clock()

    @property
    def is_save_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return self._period_s is not None and self._clock() - self._saved >= self._period_s

    def _run(self) -> None:
        while not self._stopped.wait(self._poll_s):
            if self.is_save_due or self._has_letters():
                self._call()

    def _has_letters(self) -> bool:
        try:
            names = [name for name in os.listdir(self._commands) if name.endswith(".json") and name[0] != "."]  # noqa: PTH208
        except OSError:
            return False  # not there yet, or not to be read this time
        self.stop_waits = any(map(self._asks_to_stop, names))
        return bool(names)

    def _asks_to_stop(self, name: str) -> bool:
        if name == f"{agent.GRACEFUL_STOP}.json":
            return True
        path = os.path.join(self._commands, name)  # noqa: PTH118  as the agent, which knows no pathlib
        record = agent.read_record(path, agent.COMMAND_BYTES) or {}
        is_ours = record.get("attempt", self._attempt) == self._attempt
        return is_ours and record.get("op") == agent.GRACEFUL_STOP
