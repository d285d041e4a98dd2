"""Options and markers of this project's own test suite."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the options that choose how much of the suite runs."""
    group = parser.getgroup("suite", "this project's own test suite")
    group.addoption(
        "--run-long", action="store_true", help="also run the tests marked long (`make test-long`)"
    )
    group.addoption(
        "--require-cluster",
        action="store_true",
        help="fail, rather than skip, a test whose Slurm or sshd is not installed",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the long tests unless asked for."""
    if config.getoption("run_long"):
        return
    skip = pytest.mark.skip(reason="long; run it with --run-long or `make test-long`")
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(skip)
