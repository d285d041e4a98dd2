"""The waiting display, in a real pseudo-terminal whose screen is read back, and without a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

import pyte
import pytest

if TYPE_CHECKING:
    from pathlib import Path

# A loop as ours: it waits, drawing, before every test; the time is its own.
LOOP = """
    import pytest
    from pytest_alchemy.events import Progressed, Queued, Started
    from pytest_alchemy.live import Live

    def pytest_runtestloop(session):
        if session.config.getoption("-V"):
            return None
        live = Live(session.config)
        now = live.board.started
        live.expect({"r1": "train[n=1]", "r2": "train[n=2]", "r3": "train[n=3]"})
        live.apply(Started("r1", "1-r0", "node1"), now)
        live.apply(Started("r2", "1-r0", "node2"), now)
        for number, (item, following) in enumerate(zip(session.items, [*session.items[1:], None])):
            for tick in range(3):
                now += 20
                live.apply(Progressed("r1", tick, 100, 3.5, 28.0, {"loss": 0.5}), now)
                DRAW
            if number == 2:
                live.say("alchemy: something to know")
            live.clear()
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        return True
"""
TESTS = """
    import pytest

    @pytest.mark.parametrize("n", range({tests}))
    def test_ordinary(n):
        print("from the test")
        assert n != 4
"""


class Terminal:
    """A pseudo-terminal with a screen that understands what is written to it."""

    def __init__(self, columns: int = 80, lines: int = 60) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=10_000)
        self._stream = pyte.Stream(self.screen)
        self.written = ""

    def run(self, *args: str, env: dict[str, str]) -> int:
        """Run pytest in it until it ends; return its exit code."""
        ours, theirs = pty.openpty()
        size = struct.pack("HHHH", self.screen.lines, self.screen.columns, 0, 0)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
        argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args]
        with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
            os.close(theirs)
            self.written = self._read(ours)
        os.close(ours)
        self._stream.feed(self.written)
        return process.returncode

    def _read(self, descriptor: int) -> str:
        data = b""
        while True:
            try:
                chunk = os.read(descriptor, 65536)
            except OSError:  # Linux says EIO once nobody has the other side open
                chunk = b""
            if not chunk:
                return data.decode()
            data += chunk

    @property
    def lines(self) -> list[str]:
        """What stands on the screen and what scrolled out of it, without durations and empty lines."""
        above = ("".join(row[x].data for x in range(self.screen.columns)) for row in self.screen.history.top)
        texts = (re.sub(r"in \d+\.\d+s", "in x", line) for line in (*above, *self.screen.display))
        return [re.sub(r"=+", "==", text.rstrip()) for text in texts if text.strip()]


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment in which no other plugin is loaded and the terminal is an ordinary one."""
    for name in ("COLUMNS", "LINES", "PYTEST_ADDOPTS", "NO_COLOR", "FORCE_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)
    return {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "TERM": "xterm"}


def write_session(pytester: pytest.Pytester, *, draw: str = "live.draw(now)", tests: int = 6) -> Path:
    pytester.makeconftest(LOOP.replace("DRAW", draw))
    pytester.makepyfile(test_it=TESTS.format(tests=tests))
    return pytester.path


@pytest.mark.parametrize(
    ("tests", "args"),
    [
        (6, ()),
        (6, ("-x",)),
        (6, ("-o", "console_output_style=count")),
        (6, ("-p", "no:terminalprogress")),
        (200, ()),
        (200, ("-v",)),
        (200, ("-o", "console_output_style=classic")),
    ],
)
def test_the_block_leaves_no_debris(
    pytester: pytest.Pytester, env: dict[str, str], tests: int, args: tuple[str, ...]
) -> None:
    """The screen after a session with a block is the one after the same session without."""
    screens = []
    for draw in ("pass", "live.draw(now)"):
        write_session(pytester, draw=draw, tests=tests)
        terminal = Terminal(lines=300)
        assert terminal.run(*args, env=env) == pytest.ExitCode.TESTS_FAILED
        assert ("alchemy: 0 of 3 finished, 2 running" in terminal.written) == (draw != "pass")
        assert not terminal.screen.cursor.hidden
        screens.append(terminal)
    undisturbed, drawn = screens
    assert drawn.lines == undisturbed.lines
    assert (drawn.screen.cursor.x, drawn.screen.cursor.y) == (0, undisturbed.screen.cursor.y)


def test_with_output_uncaptured_nothing_is_overwritten(
    pytester: pytest.Pytester, env: dict[str, str]
) -> None:
    """What tests print stays whole; where pytest's dots go on is not known then, so they begin a row."""
    write_session(pytester)
    terminal = Terminal()
    terminal.run("-s", env=env)
    body = "".join(terminal.lines).partition("collected 6 items")[2].partition("== FAILURES")[0]
    assert body.count("from the test") == 6
    kept = body.replace("from the test", "").partition("alchemy: something to know")
    assert (kept[0], kept[2]) == ("test_it.py ..", "test_it.py ..F.")  # pytest repeats the name after a line


@pytest.mark.parametrize("lines", [3, 4, 12])
def test_a_screen_that_scrolls_has_no_debris_either(
    pytester: pytest.Pytester, env: dict[str, str], lines: int
) -> None:
    write_session(pytester, draw="pass")
    whole = Terminal(lines=300)
    whole.run("-v", env=env)
    write_session(pytester)
    small = Terminal(lines=lines)
    small.run("-v", env=env)
    assert small.lines == whole.lines


def test_the_block_stands_below_the_dots(pytester: pytest.Pytester, env: dict[str, str]) -> None:
    write_session(pytester)
    terminal = Terminal()
    terminal.run(env=env)
    upto = terminal.written.rindex(
        "\x1b[J", 0, terminal.written.index("FAILURES")
    )  # before the last is erased
    screen = pyte.Screen(80, 60)
    pyte.Stream(screen).feed(terminal.written[: terminal.written.rindex("\x1b[J", 0, upto)])
    shown = [line.rstrip() for line in screen.display if line.strip()]
    assert shown[-4].startswith("test_it.py ..") or shown[-4].startswith("..")
    assert shown[-3].startswith("alchemy: 0 of 3 finished, 2 running, 1 queued, ")
    assert shown[-2].startswith("  train[n=1]  2/100")
    assert shown[-1].startswith("  train[n=2]")


def test_a_line_to_keep_stands_on_its_own(pytester: pytest.Pytester, env: dict[str, str]) -> None:
    write_session(pytester)
    terminal = Terminal()
    terminal.run(env=env)
    assert "alchemy: something to know" in terminal.lines


@pytest.mark.parametrize(("args", "term"), [((), "dumb"), (("-q",), "xterm"), (("-q", "-q"), "xterm")])
def test_no_block_where_it_is_not_wanted(
    pytester: pytest.Pytester, env: dict[str, str], args: tuple[str, ...], term: str
) -> None:
    write_session(pytester)
    terminal = Terminal(columns=200)
    terminal.run("-p", "no:terminalprogress", "--color=no", *args, env={**env, "TERM": term})
    assert "\x1b[" not in terminal.written
    lines = [line for line in terminal.lines if "running" in line]
    assert all(line.startswith("alchemy: 0 of 3 finished") for line in lines)
    assert len(lines) == (0 if len(args) == 2 else 6)


def test_without_a_terminal_there_is_a_line_a_minute(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    write_session(pytester)
    result = pytester.runpytest_subprocess()
    lines = [line for line in result.outlines if line.startswith("alchemy: 0 of 3 finished")]
    assert len(lines) == 6  # six tests with three drawings each, 20 s apart
    assert "1m00s so far; longest-running: train[n=1] 2/100 2%" in lines[0]
    assert "\x1b" not in result.stdout.str()
    assert [line for line in result.outlines if re.search(r"\.alchemy|alchemy.*\.\.$", line)] == []


def test_without_a_reporter_only_what_must_be_known_is_written(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    write_session(pytester)
    result = pytester.runpytest_subprocess("-p", "no:terminal")
    assert result.outlines == []
    assert result.errlines == ["alchemy: something to know"]


def test_an_ascii_terminal_shows_what_it_can(pytester: pytest.Pytester, env: dict[str, str]) -> None:
    write_session(pytester, draw="live.expect({'r1': 'größe'}); live.draw(now)")
    terminal = Terminal()
    code = terminal.run(env={**env, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert code == pytest.ExitCode.TESTS_FAILED
    assert r"gr\xf6\xdfe" in terminal.written
