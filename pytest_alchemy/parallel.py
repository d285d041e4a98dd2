"""Beside pytest-xdist: local cases in parallel, one GPU per worker; a remote backend needs no workers."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pytest_alchemy.discovery import search_paths
from pytest_alchemy.gpus import Pool, visible_gpus
from pytest_alchemy.options import IGNORED_WORKERS, UNKNOWN_NAMES, read_options
from pytest_alchemy.summary import Summary

__all__ = ["XdistHooks", "configure_controller", "configure_worker", "tell_controller"]

_TOLD = "alchemy_unknown"


def configure_worker(config: pytest.Config) -> None:
    """Confine a worker to its GPU, before anything of the user's could initialise CUDA in a case."""
    gpu = config.workerinput.get("alchemy_gpu")  # type: ignore[attr-defined]
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu


def tell_controller(config: pytest.Config) -> None:
    """Hand what a worker found out about names in `-k` to the process that prints."""
    if UNKNOWN_NAMES in config.stash:
        config.workeroutput[_TOLD] = config.stash[UNKNOWN_NAMES]  # type: ignore[attr-defined]


def configure_controller(config: pytest.Config, summary: Summary, *, is_remote: bool) -> None:
    """Settle `-n`: ignored with a remote backend; else each worker is told its GPU.

    Must run before pytest-xdist's own `pytest_configure`, which is trylast.
    """
    if is_remote:
        config.stash[IGNORED_WORKERS] = str(config.option.numprocesses)
        config.option.numprocesses, config.option.dist, config.option.tx = 0, "no", []
    else:
        config.pluginmanager.register(XdistHooks(config, summary), "alchemy-xdist")


class XdistHooks:
    """Hooks of pytest-xdist, in the controller only."""

    def __init__(self, config: pytest.Config, summary: Summary) -> None:
        self._config = config
        self._summary = summary
        self._pool = Pool(visible_gpus())

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker its GPU, the session it belongs to and where experiments may be collected from."""
        paths = search_paths(self._config)
        node.workerinput["alchemy_gpu"] = self._pool.take(node.workerinput["workerid"])
        node.workerinput["alchemy_session"] = read_options(self._config).session
        node.workerinput["alchemy_search"] = None if paths is None else [str(path) for path in paths]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take the worker's GPU back, and note what it found out."""
        self._pool.give_back(node.workerinput["workerid"])
        self._summary.unknown_names = getattr(node, "workeroutput", {}).get(_TOLD, "")
