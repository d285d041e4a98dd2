"""The commands that a managed training takes while it runs."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import alchemy_agent as agent
from alchemy.checkpoint.selection import lineage
from alchemy.errors import ConfigurationError, InfrastructureError
from alchemy.live.params import Change
from alchemy.loop.saver import SaveFailed

if TYPE_CHECKING:
    from alchemy.loop.lifecycle import Lifecycle
    from alchemy.loop.resuming import Beginning

__all__ = ["Desk"]

_LEAST_POLL_S = 0.001
_STOP = f"the command {agent.GRACEFUL_STOP}"


class Desk:
    """Where letters of the run's mailbox are executed, by the training's thread between two steps.

    A change is acknowledged once a checkpoint has it, together with the letter's id. So an attempt that finds
    an unanswered letter of a dead one knows, from the checkpoint it resumes from, whether to execute it.
    """

    def __init__(self, beginning: Beginning, lifecycle: Lifecycle) -> None:
        """Announce which commands the training takes itself.

        Args:
            beginning: The attempt that executes, and the checkpoint it resumes from, which knows which
                letters' effects it has.
            lifecycle: What the commands act on.
        """
        attempt, resumed = beginning.attempt, beginning.checkpoint
        self._beginning = beginning
        self.poll_s = max(agent.seconds("ALCHEMY_COMMAND_POLL_S", agent.COMMAND_POLL_S), _LEAST_POLL_S)
        self._attempt, self._lifecycle = attempt, lifecycle
        self._applied = list(resumed.manifest.applied) if resumed and resumed.manifest else []
        self._mailbox = agent.Mailbox(attempt, self._stop_by_default, lambda: lifecycle.position.step)
        self._handlers = {
            "save_checkpoint": self._save_checkpoint,
            agent.GRACEFUL_STOP: self._graceful_stop,
            "update_params": self._update_params,
        }
        self._announce(self._handlers)

    @property
    def applied(self) -> tuple[str, ...]:
        """Ids of the letters whose effects a checkpoint made now would have."""
        return tuple(self._applied)

    def attend(self) -> None:
        """Execute the letters that lie there."""
        __tracebackhide__ = True
        self._mailbox.poll(self._handlers)

    def recover(self) -> None:
        """Answer, and where need be execute again, what earlier attempts took and left.

        Raises:
            InfrastructureError: It can't be read, so nobody knows what the parameters should be.
        """
        try:
            continued, others = self._earlier()
            self._mailbox.recover(others, (), self._handlers, own=_Anything())
            self._mailbox.recover(continued, self._applied, self._handlers)
        except OSError as error:
            raise InfrastructureError(
                f"the commands that earlier attempts of {self._attempt.run_dir.path} took can't be read: "
                f"{error}"
            ) from error

    def _earlier(self) -> tuple[list[agent.AttemptDir], list[agent.AttemptDir]]:
        """Return the earlier attempts that this one continues, oldest first, and the others."""
        run_dir, now = self._attempt.run_dir, (self._attempt.k, self._attempt.restarts)
        names = [] if self._beginning.is_fresh else lineage(self._attempt)
        attempts = map(run_dir.attempt, run_dir.attempt_names())
        earlier = [attempt for attempt in attempts if (attempt.k, attempt.restarts) < now]
        return (
            [attempt for attempt in earlier if attempt.name in names],
            [attempt for attempt in earlier if attempt.name not in names],
        )

    def shut(self) -> None:
        """Refuse what comes after the loop's end."""
        self._mailbox.poll(dict.fromkeys(self._handlers, _too_late))
        self._announce(())

    def _announce(self, ops: Iterable[str]) -> None:
        """Say which commands are ours, so that the supervisor leaves them to us."""
        with suppress(OSError):
            agent.announce(self._attempt, ops)

    def _stop_by_default(self) -> None:
        """Never called: graceful_stop has a handler."""

    def _save_checkpoint(self, command: agent.Command) -> dict[str, Any]:
        if not self._lifecycle.values:
            raise agent.Refuse("nothing is assigned to ctx, so there is nothing to save")
        return self._commit(command)

    def _graceful_stop(self, command: agent.Command) -> dict[str, Any]:
        self._lifecycle.stop(_STOP)
        return self._commit_if_possible(command)

    def _update_params(self, command: agent.Command) -> dict[str, Any]:
        lifecycle = self._lifecycle
        try:
            values = lifecycle.params.check(command.args)
            lifecycle.follower.can_follow(lifecycle.params.live, values)
        except ConfigurationError as error:
            raise agent.Refuse(str(error)) from None
        old = lifecycle.params.live
        followed = lifecycle.follower.follow(old, values)
        lifecycle.params.apply(Change(command.id, lifecycle.finished + 1, values))
        changed = [f"{name} {old[name]!r} -> {value!r}" for name, value in values.items()]
        return {**self._commit_if_possible(command), "changed": changed, "followed": followed}

    def _commit(self, command: agent.Command) -> dict[str, Any]:
        """Make a checkpoint that has the letter's id, and name it."""
        self._applied.append(command.id)
        try:
            ref = self._lifecycle.save(is_async=False)
        except Exception:
            self._applied.remove(command.id)
            raise
        return {"checkpoint": None if ref is None else f"{ref.attempt}/{ref.name}"}

    def _commit_if_possible(self, command: agent.Command) -> dict[str, Any]:
        """Do so; where that fails, the letter has its effect all the same, and the next checkpoint has it."""
        try:
            return self._commit(command)
        except (ConfigurationError, SaveFailed) as error:
            self._applied.append(command.id)
            return {"checkpoint": None, "warning": str(error)}


class _Anything:
    """Contains every op: what attempts took that this one does not continue is not to be done for them."""

    def __contains__(self, op: object) -> bool:
        return True


def _too_late(command: agent.Command) -> None:
    raise agent.Refuse(f"the loop has ended, and the run is about to: {command.op} comes too late")
