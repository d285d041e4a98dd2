"""What a report of a case may say. Registered with the first experiment file."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_alchemy.collect import CaseItem, CaseLost, CriteriaRefuted


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
    if isinstance(error, CaseLost):
        report.when = "setup"  # pytest and JUnit call a failed setup an error, a failed call a failure
        report.longrepr = item.repr_failure(call.excinfo)  # which pytest asks for after a call only
    return report
