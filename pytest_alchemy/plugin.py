"""Entry point of the plugin: hooks only.

Loaded in every pytest run of everybody who has the package installed, so it stays light: the SDK, paramiko
and the like are imported when the first experiment appears (tests/unit/test_imports.py watches that).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_alchemy import discovery, hooks, options

if TYPE_CHECKING:
    from pytest_alchemy.backends import Backend, BackendFactory
    from pytest_alchemy.summary import Summary

_SUMMARY = pytest.StashKey["Summary"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hooks)


def pytest_alchemy_backends(config: pytest.Config) -> Mapping[str, BackendFactory]:  # noqa: ARG001
    return {"local": _local, "slurm": _slurm}


def _local(config: pytest.Config) -> Backend:
    from pytest_alchemy import local

    return local.from_config(config)


def _slurm(config: pytest.Config) -> Backend:
    from pytest_alchemy.slurm import configure

    return configure.from_config(config)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads -n
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alchemy(**params): parameters of an experiment's case, for -m")
    config.stash[options.BACKENDS] = options.find_backends(config)
    if _is_worker(config):
        from pytest_alchemy import parallel

        parallel.configure_worker(config)
        return
    is_remote = _is_remote(config)
    if config.getoption("numprocesses", None):
        from pytest_alchemy import parallel

        parallel.configure_controller(config, _summary(config), is_remote=is_remote)
    if config.getoption("xmlpath", None):
        from pytest_alchemy.junit import JUnit

        config.pluginmanager.register(JUnit(config), "alchemy-junit")


def _summary(config: pytest.Config) -> Summary:
    """Return the session's summary, registered when something is to be summed up, or may be by workers."""
    if _SUMMARY not in config.stash:
        from pytest_alchemy.summary import Summary

        config.stash[_SUMMARY] = Summary(config)
        config.pluginmanager.register(config.stash[_SUMMARY], "alchemy-summary")
    return config.stash[_SUMMARY]


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def _is_remote(config: pytest.Config) -> bool:
    """Set up a backend that was asked for, now, so that a mistake in its settings is a usage error."""
    told = config.getoption("alchemy_resource") or config.getoption("alchemy_cluster")
    if options.read_options(config).backend == "local" and not told:
        return False
    from pytest_alchemy.session import Alchemy

    is_remote = Alchemy.of(config).is_remote
    if is_remote and config.getoption("stepwise", False):
        raise pytest.UsageError("--stepwise needs a fixed order of tests; with a remote backend use --lf")
    return is_remote


def pytest_report_header(config: pytest.Config) -> list[str]:
    chosen = options.read_options(config)
    lines = [] if chosen.backend == "local" else [f"alchemy: backend {chosen.backend}, root {_root(config)}"]
    if steps := config.getoption("alchemy_max_steps"):
        lines.append(f"alchemy: no run is longer than {steps} steps; those cut short are not judged")
    if ignored := config.stash.get(options.IGNORED_WORKERS, None):
        lines.append(
            f"alchemy: -n {ignored} ignored: one process dispatches all jobs (--alchemy-max-jobs limits them)"
        )
    return lines


def _root(config: pytest.Config) -> Path:
    from pytest_alchemy.session import Alchemy

    return Alchemy.of(config).backend.root


# Collecting.


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if not discovery.is_wanted(parent.config, file_path) or parent.session.isinitpath(file_path):
        return None  # a file named on the command line comes through pytest's own hook
    proxy = parent.session.gethookproxy(file_path)
    module: pytest.Collector | None = proxy.pytest_pycollect_makemodule(module_path=file_path, parent=parent)
    return module


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if not discovery.is_experiment(parent.config, module_path):
        return None
    from pytest_alchemy import case_hooks
    from pytest_alchemy.collect import ExperimentModule

    if not parent.config.pluginmanager.is_registered(case_hooks):
        parent.config.pluginmanager.register(case_hooks, "alchemy-cases")
        if not _is_worker(parent.config):
            _summary(parent.config)
    module: ExperimentModule = ExperimentModule.from_parent(parent, path=module_path)
    return module


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    if not options.may_hold_terms(config.option.keyword or ""):
        return (yield)
    from pytest_alchemy import selection

    with selection.typed_keywords(config, items):
        return (yield)


# Running.


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Let `-n auto` mean one worker per GPU where there are GPUs; asked before `pytest_configure`."""
    from pytest_alchemy.gpus import visible_gpus

    return len(visible_gpus()) or None if config.getoption("numprocesses") == "auto" else None


def pytest_collection_finish(session: pytest.Session) -> None:
    if _SUMMARY in session.config.stash:
        from pytest_alchemy import dispatch

        dispatch.prepare(session, session.config.stash[_SUMMARY])


def pytest_report_collectionfinish(config: pytest.Config) -> str | None:
    """Name a parameter in `-k` that no case has."""
    return config.stash.get(options.UNKNOWN_NAMES, None)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _is_worker(session.config):
        from pytest_alchemy import parallel

        parallel.tell_controller(session.config)
