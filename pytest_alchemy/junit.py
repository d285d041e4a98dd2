"""Experiments in the JUnit file that `--junitxml` writes.

pytest writes the file as always; we then replace it by one in which every experiment is a flat `<testsuite>`
of its own, while ordinary tests keep pytest's suite with its properties. Only reports are read (their user
properties), so it is the same with pytest-xdist, where no item ever reaches this process.

Where things stand, and for whom:

  testsuite@name        The experiment. Its `<properties>` are what concerns the experiment as a whole
                        (`alchemy.suite.<key>` on every case, lifted here as `<key>`).
  testcase@classname    pytest's dotted path of the file, then the experiment unless the file is named after
                        it: GitLab and dorny/test-reporter show no suites but group by classname, Jenkins
                        takes what is before the last dot for the package. So a file with two experiments
                        gives two groups.
  testcase@name         As in the node id, so unique within a classname. A case that failed and then broke in
                        teardown is one testcase with both, where pytest writes two of the same name.
  testcase@time         `alchemy.duration_s`, the seconds the job ran, where the case has it.
  testcase/system-out   A line `[[PROPERTY|key=value]]` for each property, `[[ATTACHMENT|path]]` for each log
                        (`alchemy.log`), then beginning and end of what was printed: no schema we know of has
                        `<properties>` inside a testcase. Invalid characters are written as pytest writes
                        them (`#x1B`). With ini `junit_logging` the output is pytest's own choice instead.
  testsuites@time       Seconds the session took by the wall clock. Those of a suite are the sum of its
                        cases, which ran side by side.

Two user properties do the work: `alchemy.experiment` marks a testcase as ours, and `alchemy.node`, its node
id, finds what it printed. A case whose pytest-xdist worker died has neither there and is found by address.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_alchemy.facts import EXPERIMENT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_alchemy.junit_suites import Printed

__all__ = ["JUnit", "rewrite"]


class JUnit:
    """Hooks that remember what cases printed and rewrite the file when pytest has written it.

    To be registered where `--junitxml` was given, except in a worker of pytest-xdist, which writes none.
    """

    def __init__(self, config: pytest.Config) -> None:
        # made absolute now, because a test may change the working directory
        self.path = Path(os.path.expandvars(config.getoption("xmlpath"))).expanduser().absolute()
        self._printed: dict[str, Printed] = {}
        self._problem = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember the report if it is one of a case: each report has what the ones before it had."""
        if not any(name == EXPERIMENT for name, _ in report.user_properties):
            return
        from pytest_alchemy.junit_suites import Printed  # here, so that only experiments pay for junitparser

        sections = [(title, text) for title, text in report.sections if title.startswith("Captured")]
        self._printed[report.nodeid] = Printed(
            tuple((name, str(value)) for name, value in report.user_properties), tuple(sections)
        )

    @pytest.hookimpl(trylast=True)  # pytest writes the file in the same hook
    def pytest_sessionfinish(self) -> None:
        """Rewrite the file; whatever surprises us in it stays as pytest wrote it."""
        if not self._printed:
            return
        try:
            rewrite(self.path, self._printed)
        except (OSError, SyntaxError, ValueError) as error:  # XML that can't be parsed is a SyntaxError
            self._problem = f"{type(error).__name__}: {error}"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say why experiments are not suites of their own, if they are not."""
        if self._problem:
            text = f"{self.path} is as pytest wrote it, without a suite per experiment ({self._problem})"
            terminalreporter.write_line(f"alchemy: {text}", yellow=True)


def rewrite(path: Path, printed: Mapping[str, Printed]) -> None:
    """Regroup the file at `path`, in one step: a reader sees the old one or the new one.

    Raises:
        OSError: It can't be read or replaced.
        SyntaxError: It is not XML.
        ValueError: It is not what pytest writes.
    """
    from pytest_alchemy import junit_suites

    path = path.resolve()  # a link is to stay one
    if not path.is_file():
        raise ValueError("not a regular file" if path.exists() else "no such file")
    report = junit_suites.regroup(junit_suites.read(path), printed)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            report.write(file)
        Path(temporary).chmod(path.stat().st_mode & 0o7777)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise
