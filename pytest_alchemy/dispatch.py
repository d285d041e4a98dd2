"""The last look before anything runs: is there a case, can its backend work, who runs the loop?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_alchemy.summary import Summary

__all__ = ["prepare"]


def prepare(session: pytest.Session, summary: Summary) -> None:
    """Get ready to run cases, if any were collected; never called in a worker of pytest-xdist.

    Raises:
        pytest.UsageError: The backend can't work as it is set up.
    """
    if "pytest_alchemy.case" not in sys.modules or session.config.option.collectonly:
        return
    from pytest_alchemy.case import CaseItem

    if any(isinstance(item, CaseItem) for item in session.items):
        _prepare(session.config, summary)


def _prepare(config: pytest.Config, summary: Summary) -> None:
    from alchemy.errors import ConfigurationError
    from pytest_alchemy.backends import RemoteBackend
    from pytest_alchemy.loop import Dispatcher
    from pytest_alchemy.session import Alchemy
    from pytest_alchemy.signals import end_session_on_signals

    backend = Alchemy.of(config).backend
    end_session_on_signals(config)
    if isinstance(backend, RemoteBackend):
        summary.dispatcher = Dispatcher(config, backend)
        config.pluginmanager.register(summary.dispatcher, "alchemy-dispatcher")
        return
    try:
        backend.check()
    except ConfigurationError as error:
        raise pytest.UsageError(str(error)) from error
