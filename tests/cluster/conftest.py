"""The real Slurm clusters that the tests of this directory talk to."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.slurmcluster import SlurmCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def _slurm(pytestconfig: pytest.Config) -> None:
    if missing := SlurmCluster.missing():
        reason = f"Slurm is not installed ({', '.join(missing)} missing); `make test-deps` installs it"
        if pytestconfig.getoption("require_cluster"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster(_slurm: None) -> Iterator[SlurmCluster]:
    """One cluster of two nodes, shared by all tests; leave it as it was: alive, no jobs of yours."""
    with SlurmCluster(gpus=2) as shared:
        yield shared


@pytest.fixture
def make_cluster(_slurm: None) -> Iterator[Callable[..., SlurmCluster]]:
    """Start a cluster of the test's own; takes the arguments of `SlurmCluster`, ends with the test."""
    with contextlib.ExitStack() as stack:

        def make(**arguments: Any) -> SlurmCluster:
            return stack.enter_context(SlurmCluster(**arguments))

        yield make
