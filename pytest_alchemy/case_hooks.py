"""Hooks that only sessions with experiments pay for: registered with the first experiment file."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_alchemy.case import CaseCrashed, CaseItem, CaseLost, CriteriaRefuted
from pytest_alchemy.collect import ExperimentModule, make_items


def pytest_pycollect_makeitem(collector: Any, obj: object) -> list[CaseItem] | None:
    """Make the cases of a task."""
    return make_items(collector, obj) if isinstance(collector, ExperimentModule) else None


@pytest.hookimpl(tryfirst=True)  # before a skip could keep the case from saying what it is
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let every report of a case say which it is."""
    if isinstance(item, CaseItem):
        item.describe()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    """Keep two promises: only a refuted criterion is an expected failure, lost infrastructure is an error."""
    report: pytest.TestReport = yield
    if not isinstance(item, CaseItem) or call.excinfo is None:
        return report
    error = call.excinfo.value
    if hasattr(report, "wasxfail") and not isinstance(error, (CriteriaRefuted, pytest.xfail.Exception)):
        report.outcome = "failed"
        del report.wasxfail
    if report.failed and not isinstance(error, (CaseCrashed, CaseLost, CriteriaRefuted)):
        report.sections.append(("run", item.where()))  # our own failures end with that
    if isinstance(error, CaseLost):
        report.when = "setup"  # pytest and JUnit call a failed setup an error, a failed call a failure
        report.longrepr = item.repr_failure(call.excinfo)  # which pytest asks for after a call only
    return report
