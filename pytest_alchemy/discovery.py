"""Where experiment files are looked for.

A bare `pytest` in somebody's repository must not start every training: a file that `python_files` doesn't
match is collected only below a path the user named, in `testpaths`, in ini `alchemy_paths`, or when the
selection itself speaks of parameters (`pytest -k ctx_len=16`).
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from pytest_alchemy.options import may_hold_terms

__all__ = ["is_experiment", "is_wanted", "search_paths"]

_EXPERIMENTS = pytest.StashKey[dict[Path, bool]]()
_SEARCH = pytest.StashKey["tuple[Path, ...] | None"]()


def is_experiment(config: pytest.Config, path: Path) -> bool:
    """Tell whether the file declares an experiment, reading it once a session."""
    known = config.stash.setdefault(_EXPERIMENTS, {})
    if path not in known:
        known[path] = _declares_experiment(path)
    return known[path]


def _declares_experiment(path: Path) -> bool:
    try:
        if b"alchemy" not in path.read_bytes():  # almost every file, for the price of reading it
            return False
    except OSError:
        return False
    from pytest_alchemy.sniff import declares_experiment

    return declares_experiment(path)


def _speaks_of_parameters(expression: str) -> bool:
    if not may_hold_terms(expression):
        return False
    from pytest_alchemy import terms

    return bool(terms.parse(expression).terms)


def is_wanted(config: pytest.Config, path: Path) -> bool:
    """Tell whether an experiment file that `python_files` doesn't match may be collected."""
    if path.suffix != ".py" or matches_by_name(path, config.getini("python_files")):
        return False  # a matching name comes to us by pytest's own way
    search = search_paths(config)
    return (search is None or any(path.is_relative_to(root) for root in search)) and is_experiment(
        config, path
    )


def matches_by_name(path: Path, patterns: Sequence[str]) -> bool:
    """Tell whether pytest collects the file by its name anyway; patterns as in ini `python_files`."""
    for pattern in patterns:
        subject, full = (str(path), f"*{pattern}") if "/" in pattern else (path.name, pattern)
        if fnmatch.fnmatch(subject, full):
            return True
    return False


def search_paths(config: pytest.Config) -> tuple[Path, ...] | None:
    """Return the directories and files below which experiments are collected, None for everywhere."""
    if _SEARCH not in config.stash:
        config.stash[_SEARCH] = _search_paths(config)
    return config.stash[_SEARCH]


def _search_paths(config: pytest.Config) -> tuple[Path, ...] | None:
    handed_down = getattr(config, "workerinput", {})
    if "alchemy_search" in handed_down:  # a worker sees every path as if it had been typed
        paths = handed_down["alchemy_search"]
        return None if paths is None else tuple(map(Path, paths))
    if _speaks_of_parameters(config.option.keyword or "") or "alchemy" in (config.option.markexpr or ""):
        return None
    named: list[Path] = list(config.getini("alchemy_paths"))
    if config.args_source is not pytest.Config.ArgsSource.INVOCATION_DIR:
        named += [config.invocation_params.dir / argument.partition("::")[0] for argument in config.args]
    return tuple(Path(os.path.abspath(path)) for path in named)  # noqa: PTH100  as pytest: symlinks stay
