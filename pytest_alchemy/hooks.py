"""Hooks that this plugin calls. Implement them in a conftest.py or a plugin of your own.

Mark such an implementation `@pytest.hookimpl(optionalhook=True)`, so that it does not become an error where
pytest-alchemy isn't installed or is switched off (`-p no:alchemy`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from pytest_alchemy.backends import BackendFactory


def pytest_alchemy_backends(config: pytest.Config) -> Mapping[str, BackendFactory]:  # type: ignore[empty-body]
    """Return backends by the name a user picks with `--alchemy-backend`.

    Called once, before collection; every implementation is asked. The factory of the chosen name is called
    with the same `config`, at the first moment a backend is needed, so it may import what is heavy. Two
    implementations that claim one name are a usage error.

    .. versionadded:: 0.1
    """
