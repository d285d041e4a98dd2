"""The end of the session: a table per experiment, and our exit codes. Lives where reports arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_alchemy.exits import DETACHED, INFRASTRUCTURE
from pytest_alchemy.facts import CaseFacts
from pytest_alchemy.options import read_options
from pytest_alchemy.selection import UNKNOWN, UnknownNames
from pytest_alchemy.tally import Tally

if TYPE_CHECKING:
    from pytest_alchemy.loop import Dispatcher

__all__ = ["Summary"]


class Summary:
    """Collects the reports of cases, from this process or from workers."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._tally = Tally()
        self._facts: dict[str, CaseFacts] = {}
        """What the last report of a case said, by node id."""
        self._outcomes: dict[str, str] = {}
        self.dispatcher: Dispatcher | None = None
        self.unknown: UnknownNames | None = None
        """What a worker said about names in `-k`; in this process the stash has it."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in the report of a case; one of an ordinary test costs a look at its properties."""
        node = report.nodeid
        facts = CaseFacts.of(report.user_properties) if report.user_properties else None
        if facts is None:
            if node in self._facts and report.failed:  # its pytest-xdist worker died, so no report of its own
                self._tally.add(self._facts[node], node, "failed")
            return
        self._facts[node] = facts
        if report.when == "setup" and not report.passed:
            self._outcomes[node] = "error" if report.failed else _word(report)
        elif report.when == "call":
            self._outcomes[node] = _word(report)
        if report.when == "teardown" and (report.failed or node in self._outcomes):
            self._tally.add(facts, node, "error" if report.failed else self._outcomes[node])

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Turn pytest's exit code into ours where runs were lost or left behind."""
        was_told_to_leave = session.exitstatus == pytest.ExitCode.INTERRUPTED or session.exitstatus > 128
        if was_told_to_leave and self.dispatcher and self.dispatcher.detached:
            session.exitstatus = DETACHED
        finished = session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}
        if finished and self._tally.has_lost_runs():
            session.exitstatus = INFRASTRUCTURE

    def pytest_report_collectionfinish(self, config: pytest.Config) -> str | None:
        """Name a parameter in `-k` that no case has."""
        return config.stash[UNKNOWN].sentence() if UNKNOWN in config.stash else None

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print a table per experiment; that runs were shortened is said even where little is."""
        if self.unknown:
            terminalreporter.write_line(self.unknown.sentence())
        options = read_options(self._config)
        for tally in self._tally.experiments.values() if terminalreporter.verbosity >= 0 else ():
            terminalreporter.write_sep("=", f"experiment {tally.name} ({options.backend})")
            for line in tally.lines(limit=None) if terminalreporter.verbosity > 0 else tally.lines():
                terminalreporter.write_line(line)
        if shortened := self._tally.count_shortened():
            terminalreporter.write_line(
                f"shortened to {options.max_steps} steps: {shortened}, criteria shown but not judged",
                yellow=True,
            )


def _word(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.skipped else "xpassed"
    return report.outcome
