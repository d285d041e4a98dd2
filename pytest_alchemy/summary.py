"""The end of the session: a table per experiment, and our exit codes. Lives where reports arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_alchemy.exits import DETACHED, INFRASTRUCTURE
from pytest_alchemy.facts import CaseFacts
from pytest_alchemy.options import read_options
from pytest_alchemy.outcome import Reason
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
        self._outcomes: dict[str, str] = {}
        self.dispatcher: Dispatcher | None = None
        self.unknown: UnknownNames | None = None
        """What a worker said about names in `-k`; in this process the stash has it."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in the report of a case; one of an ordinary test costs a look at its properties."""
        if not report.user_properties or (facts := CaseFacts.of(report.user_properties)) is None:
            return
        node = report.nodeid
        if report.when == "setup":
            self._outcomes[node] = "error" if report.failed else _word(report)
        elif report.when == "call":
            self._outcomes[node] = _word(report)
        if report.when == "teardown":
            self._tally.add(facts, node, "error" if report.failed else self._outcomes.get(node, "passed"))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Turn pytest's exit code into ours where runs were lost or left behind."""
        if self.dispatcher and self.dispatcher.detached and session.exitstatus == pytest.ExitCode.INTERRUPTED:
            session.exitstatus = DETACHED
        if session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED} and self._lost_runs():
            session.exitstatus = INFRASTRUCTURE

    def _lost_runs(self) -> bool:
        return any(Reason(reason).is_infrastructure for reason in self._tally.reasons())

    def pytest_report_collectionfinish(self, config: pytest.Config) -> str | None:
        """Name a parameter in `-k` that no case has."""
        return config.stash[UNKNOWN].sentence() if UNKNOWN in config.stash else None

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print a table per experiment."""
        if self.unknown:
            terminalreporter.write_line(self.unknown.sentence())
        if terminalreporter.verbosity < 0:
            return
        options = read_options(self._config)
        for tally in self._tally.experiments.values():
            terminalreporter.write_sep("=", f"experiment {tally.name} ({options.backend})")
            for line in tally.lines(limit=None) if terminalreporter.verbosity > 0 else tally.lines():
                terminalreporter.write_line(line)
        if self._tally.experiments and options.max_steps:
            terminalreporter.write_line(
                f"shortened to {options.max_steps} steps: criteria are shown above, but fail no case",
                yellow=True,
            )


def _word(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.skipped else "xpassed"
    return report.outcome
