"""Shows how runs fare while the loop waits: a block of lines on a terminal, else one line a minute.

Only the main thread writes, and only between tests, when pytest captures nothing: a line written from another
thread would end up in some test's captured output. The block goes to the stream itself, not through pytest's
reporter, whose idea of how wide the current line is has to stay true; it is erased before others write.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import TYPE_CHECKING

from pytest_alchemy.board import Board, plain_line, render

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

    from pytest_alchemy.events import Event

__all__ = ["Live"]

_GAP_S = 0.1
"""Between two drawings, so that a burst of news doesn't flicker."""


class Live:
    """To be made when the loop begins: before, sys.stdout may be pytest's capture.

    Times handed in are those of `time.monotonic`. A quiet session (`-q`) gets lines but no block, a quieter
    one (`-qq`) only what is said.
    """

    def __init__(self, config: pytest.Config, *, interval_s: float = 60.0, rows: int = 8) -> None:
        """Look at the terminal.

        Args:
            config: Of the session.
            interval_s: Seconds between two lines where there is no terminal.
            rows: Lines of the block at most.
        """
        self.board = Board(time.monotonic())
        self._config = config
        self._reporter: pytest.TerminalReporter | None = config.pluginmanager.get_plugin("terminalreporter")
        self._stream = sys.stdout
        verbosity = config.get_verbosity()
        self._block = self._stream.isatty() and os.environ.get("TERM") != "dumb" and verbosity >= 0
        self._lines = verbosity >= -1
        self._interval_s, self._rows = interval_s, rows
        # with -s, tests write unseen by pytest: where its line goes on is then not known
        self._captured = config.getoption("capture", "no") != "no"
        self._last = self.board.started
        """When something was last shown."""
        self._height = 0
        """Lines of the block as it stands; the cursor is on the line below."""
        self._column = 0
        """Where pytest's half-written line goes on."""

    def expect(self, labels: Mapping[str, str]) -> None:
        """Tell which runs there will be, by run id, and what to call them."""
        self.board.expect(labels)

    def apply(self, event: Event, now: float) -> None:
        """Take in news; nothing is written."""
        self.board.apply(event, now)

    def draw(self, now: float) -> None:
        """Show how things stand if it is time to, otherwise return at once."""
        if self._reporter is None:
            return
        if self._block and now - self._last >= _GAP_S:
            self._last = now
            self._draw(now)
        elif self._lines and not self._block and now - self._last >= self._interval_s:
            self._last = now
            self.say(plain_line(self.board, now))

    def clear(self) -> None:
        """Leave the screen as if nothing had been drawn; to be called before anybody else writes."""
        if not self._height:
            return
        text = f"\x1b[{self._height}A\r\x1b[J"
        if self._column:
            text += f"\x1b[1A\x1b[{self._column}C"
        self._height = 0
        self._write(text)

    def say(self, text: str) -> None:
        """Write a line that stays, below a half-written row of dots if there is one."""
        self.clear()
        if self._reporter is None:  # -p no:terminal: who leaves jobs behind has to know all the same
            sys.stderr.write(f"{text}\n")
            return
        if self._width() and self._reporter.currentfspath is None:
            self._reporter.currentfspath = -2  # as pytest itself marks a line that is to be ended first
        self._reporter.write_line(text)

    def _draw(self, now: float) -> None:
        size = shutil.get_terminal_size()
        # the last column stays free, lest the terminal wraps, and a row each for pytest's line and the cursor
        lines = render(self.board, now, size.columns - 1, max(1, min(self._rows, size.lines - 2)))
        if self._height:
            begin = f"\x1b[{self._height}A"
        else:
            width = self._width()
            begin = "\n" if width else ""
            # 0 after a full row: the next dot begins a new one anyway
            self._column = width % size.columns if self._captured else 0
        self._height = len(lines)
        self._write(begin + "".join(f"\r{line}\x1b[K\n" for line in lines) + "\x1b[J")

    def _width(self) -> int:
        """Return how much pytest has written of the current line."""
        return self._config.get_terminal_writer().width_of_current_line

    def _write(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self._stream.flush()
