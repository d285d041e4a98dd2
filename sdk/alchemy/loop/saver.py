"""Checkpoints of one attempt: copied on the training's thread, written by another, one at a time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import alchemy_agent as agent
from alchemy.checkpoint.retention import retire
from alchemy.checkpoint.store import write_checkpoint
from alchemy.errors import ConfigurationError, InfrastructureError
from alchemy.fencing import Fenced

if TYPE_CHECKING:
    from alchemy.checkpoint.records import CheckpointRef
    from alchemy.checkpoint.store import Checkpoint
    from alchemy.checkpoint.writing import Part

__all__ = ["Contents", "SaveFailed", "Saver"]

_log = logging.getLogger("alchemy")


class SaveFailed(InfrastructureError):
    """A checkpoint could not be written; those before it are as they were."""


@dataclass(frozen=True, slots=True)
class Contents:
    """A consistent copy of everything that a checkpoint holds."""

    step: int
    parts: Sequence[Part]
    kinds: Mapping[str, str]
    applied: tuple[str, ...]
    """Ids of the commands whose effects are in it."""


class Saver:
    """Writes the checkpoints of an attempt. Called from the training's thread alone."""

    def __init__(
        self,
        attempt: agent.AttemptDir,
        *,
        keep: int,
        resumed: Checkpoint | None,
        before_commit: Callable[[], None],
        on_end: Callable[[CheckpointRef | None], None],
    ) -> None:
        """Make the saver of a claimed attempt.

        Args:
            attempt: The attempt.
            keep: How many checkpoints stay.
            resumed: What the attempt resumed from, which stays as long as it runs.
            before_commit: Called by the writing thread before the marker is set.
            on_end: Called by the writing thread when a save has ended, with the checkpoint, None if it
                failed.
        """
        self._attempt = attempt
        self._keep = keep
        self._resumed = resumed
        self._before_commit, self._on_end = before_commit, on_end
        self._parent = resumed.ref if resumed else None
        self._seq = resumed.manifest.seq if resumed and resumed.manifest else 0
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self.failures = 0
        """How many checkpoints could not be made."""
        self.failure = ""
        """Why the last of them could not."""
        self.last: CheckpointRef | None = self._parent
        """The newest committed one, at first what the attempt resumed from."""

    @property
    def fenced(self) -> Fenced | None:
        """That a later attempt exists, if a save has found one; there is no use in going on."""
        return self._error if isinstance(self._error, Fenced) else None

    def save(self, capture: Callable[[], Contents], *, is_async: bool) -> None:
        """Copy what `capture` returns, once the save before has ended, and write it.

        Raises:
            SaveFailed: Nothing was committed; only where this call waits. In the background it is a warning.
            Fenced: A later attempt of the run exists; likewise.
            ConfigurationError: Something can't be saved.
        """
        self.wait()
        self._error = None
        contents = self._captured(capture)
        if not is_async:
            self._write(contents, warns=False)
            if self._error is not None:
                raise self._error
            return
        thread = threading.Thread(
            target=self._write, args=(contents, True), name="alchemy-saver", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # no thread to be had: too many of them
            self._write(contents, warns=True)
        else:
            self._thread = thread

    def _captured(self, capture: Callable[[], Contents]) -> Contents:
        try:
            return capture()
        except ConfigurationError:
            raise
        except Exception as error:  # no memory, a user's state_dict: it costs a checkpoint, not the run
            what = f"{type(error).__name__}: {error}"
            raise self._failed(f"a checkpoint could not be copied: {what}") from error

    def _failed(self, why: str) -> SaveFailed:
        self.failures, self.failure = self.failures + 1, why
        return SaveFailed(why)

    def wait(self) -> None:
        """Wait until the save under way, if any, has ended."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, contents: Contents, warns: bool) -> None:
        """Write, commit and tidy up; the body of the thread."""
        committed = None
        try:
            committed = self._commit(contents)
        except Fenced as fenced:
            self._error = fenced
        except Exception as error:  # noqa: BLE001  torch wraps what the disk says in errors of its own
            self._error = self._failed(
                f"the checkpoint after step {contents.step} could not be written to "
                f"{self._attempt.run_dir.path}: {error}"
            )
            if warns:
                kept = (
                    f"the one after step {self.last.step} is untouched" if self.last else "there is none yet"
                )
                _log.warning("%s; training goes on, %s", self._error, kept)
        self._on_end(committed)
        if committed is not None:
            self._retire()

    def _commit(self, contents: Contents) -> CheckpointRef:
        ref = write_checkpoint(
            self._attempt,
            contents.step,
            contents.parts,
            seq=self._seq + 1,
            parent=self._parent,
            kinds=contents.kinds,
            applied=contents.applied,
            before_commit=self._before_commit,
        )
        self._seq += 1
        self._parent = self.last = ref
        return ref

    def _retire(self) -> None:
        protected = self._resumed.ref if self._resumed else None
        for trouble in retire(self._attempt, keep=self._keep, protected=protected):
            _log.warning("%s: %s; training goes on", self._attempt.run_dir.path, trouble)
