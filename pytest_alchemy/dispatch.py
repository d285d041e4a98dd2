"""Decides whether this process dispatches, and if so puts the loop in charge."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from pytest_alchemy.summary import Summary

__all__ = ["register"]


def register(session: pytest.Session, summary: Summary | None) -> None:
    """Register the dispatcher if a case was collected that a remote backend runs.

    `summary` is None in a worker of pytest-xdist, which never dispatches.
    """
    if summary is None or "pytest_alchemy.collect" not in sys.modules:
        return
    from pytest_alchemy.collect import CaseItem

    backend = next((item.alchemy.backend for item in session.items if isinstance(item, CaseItem)), None)
    from pytest_alchemy.backends import RemoteBackend

    if isinstance(backend, RemoteBackend):
        from pytest_alchemy.loop import Dispatcher

        summary.dispatcher = Dispatcher(session.config, backend)
        session.config.pluginmanager.register(summary.dispatcher, "alchemy-dispatcher")
