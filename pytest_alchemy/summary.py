"""The end of the session: a table per experiment, and our exit codes. Lives where reports arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_alchemy.exits import DETACHED, INFRASTRUCTURE
from pytest_alchemy.options import read_options

if TYPE_CHECKING:
    from pytest_alchemy.loop import Dispatcher
    from pytest_alchemy.tally import Tally

__all__ = ["Summary"]


class Summary:
    """Collects the reports of cases, from this process or from workers."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._tally: Tally | None = None
        """None until a case is reported: most sessions have none."""
        self.dispatcher: Dispatcher | None = None
        self.unknown_names = ""
        """What a worker has to say about names in `-k`; of this process the plugin says it."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in the report of a case; one of an ordinary test costs a look at its properties."""
        if self._tally is None:
            if not report.user_properties:
                return
            from pytest_alchemy.tally import Tally

            self._tally = Tally()
        self._tally.take(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Turn pytest's exit code into ours where runs were lost or left behind."""
        was_told_to_leave = session.exitstatus == pytest.ExitCode.INTERRUPTED or session.exitstatus > 128
        if was_told_to_leave and self.dispatcher and self.dispatcher.detached:
            session.exitstatus = DETACHED
        finished = session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}
        if finished and self._tally and self._tally.has_lost_runs():
            session.exitstatus = INFRASTRUCTURE

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print a table per experiment; that runs were shortened is said even where little is."""
        if self.unknown_names:
            terminalreporter.write_line(self.unknown_names)
        if self._tally is not None:
            self._print(self._tally, terminalreporter)

    def _print(self, tally: Tally, terminal: pytest.TerminalReporter) -> None:
        options = read_options(self._config)
        for experiment in tally.experiments.values() if terminal.verbosity >= 0 else ():
            terminal.write_sep("=", f"experiment {experiment.name} ({options.backend})")
            for line in experiment.lines(limit=None) if terminal.verbosity > 0 else experiment.lines():
                terminal.write_line(line)
        if shortened := tally.count_shortened():
            terminal.write_line(
                f"shortened to {options.max_steps} steps: {shortened}, criteria shown but not judged",
                yellow=True,
            )
