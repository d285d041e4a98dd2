"""Beside pytest-xdist: local cases in parallel, one GPU per worker; a remote backend needs no workers."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pytest_alchemy.gpus import share_of, visible_gpus
from pytest_alchemy.options import read_options

__all__ = ["XdistHooks", "configure_controller", "configure_worker", "ignored_workers", "is_worker"]

_IGNORED = pytest.StashKey[str]()


def is_worker(config: pytest.Config) -> bool:
    """Tell whether this process is a worker of pytest-xdist."""
    return hasattr(config, "workerinput")


def configure_worker(config: pytest.Config) -> None:
    """Confine a worker to its GPU; before anything of the user's could initialise CUDA in a case."""
    gpu = config.workerinput.get("alchemy_gpu")  # type: ignore[attr-defined]
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu


def configure_controller(config: pytest.Config, *, is_remote: bool) -> None:
    """Settle `-n`: ignored with a remote backend, else cases are spread by work stealing.

    Must run before pytest-xdist's own `pytest_configure`, which is trylast.
    """
    workers = config.getoption("numprocesses", None)
    if not workers:
        return
    if is_remote:
        config.stash[_IGNORED] = str(workers)
        config.option.numprocesses, config.option.dist, config.option.tx = 0, "no", []
    elif not _asked_for_dist(config):
        config.option.dist = "worksteal"  # cases are few and long: `load` hands out two each up front
    config.pluginmanager.register(XdistHooks(config), "alchemy-xdist")


def _asked_for_dist(config: pytest.Config) -> bool:
    return any(argument.startswith("--dist") for argument in map(str, config.invocation_params.args))


def ignored_workers(config: pytest.Config) -> str | None:
    """Return the value of `-n` that was set aside, None if there was none."""
    return config.stash.get(_IGNORED, None)


class XdistHooks:
    """Hooks of pytest-xdist, in the controller only."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._gpus = visible_gpus()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker its GPU, the session it belongs to and where experiments may be collected from."""
        from pytest_alchemy.discovery import search_paths

        number = int(node.workerinput["workerid"].removeprefix("gw"))
        node.workerinput["alchemy_gpu"] = share_of(number, self._gpus)
        node.workerinput["alchemy_session"] = read_options(self._config).session
        paths = search_paths(self._config)
        node.workerinput["alchemy_search"] = None if paths is None else [str(path) for path in paths]

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_auto_num_workers(self, config: pytest.Config) -> int | None:
        """Let `-n auto` mean one worker per GPU where there are GPUs."""
        return len(self._gpus) or None if config.getoption("numprocesses") == "auto" else None
