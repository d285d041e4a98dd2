"""How the program `alchemy` ends, and what a user can cause."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Status", "Trouble"]


class Status(IntEnum):
    """Exit statuses, of all subcommands alike."""

    DONE = 0
    BAD = 1
    """The answer is bad news: something is broken, refused, failed or over."""
    USAGE = 2
    """The command line can't be meant, as argparse has it."""
    NO_ANSWER = 3
    """The run said nothing within the time."""
    NO_RUN = 4
    """No such run, or its directory can't be read or written."""
    INTERRUPTED = 130
    """Ctrl-C, as a shell has it."""
    CUT_SHORT = 141
    """Whoever read the output has left, as `| head` does; likewise."""


class Trouble(Exception):
    """Something a user can cause and mend: one line, no traceback.

    The text says what happened, where, and what to do; further lines, if any, list what to choose from.
    """

    def __init__(self, text: str, status: Status, choices: tuple[str, ...] = ()) -> None:
        """Take the line, the exit status, and what to choose from."""
        super().__init__(text)
        self.status = status
        self.choices = choices
