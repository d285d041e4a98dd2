"""What the user can set: command line, ini keys, and how they become one frozen value.

Kept free of the SDK: these lines run in every pytest session of everybody who has the plugin installed.
"""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from alchemy.resources import Resources
    from pytest_alchemy.backends import BackendFactory

__all__ = [
    "BACKENDS",
    "IGNORED_WORKERS",
    "UNKNOWN_NAMES",
    "Options",
    "add_options",
    "did_you_mean",
    "find_backends",
    "may_hold_terms",
    "read_options",
    "read_resources",
]

BACKENDS = pytest.StashKey[Mapping[str, "BackendFactory"]]()
_OPTIONS = pytest.StashKey["Options"]()
IGNORED_WORKERS = pytest.StashKey[str]()
"""The value of pytest-xdist's `-n` that a remote backend set aside."""
UNKNOWN_NAMES = pytest.StashKey[str]()
"""What to say about parameter names in `-k` that no collected case has."""


def add_options(parser: pytest.Parser) -> None:
    """Register the `--alchemy-*` options and the `alchemy_*` ini keys."""
    group = parser.getgroup("alchemy", "experiments as tests (pytest-alchemy)")
    option = group.addoption
    option(
        "--alchemy-backend", metavar="NAME", help="where cases run: local (default), slurm, or a plugin's own"
    )
    option(
        "--alchemy-root",
        metavar="DIR",
        help="run root; on a cluster a directory that all nodes share (default: .alchemy)",
    )
    option("--alchemy-cluster", metavar="NAME", help="profile [tool.alchemy.clusters.NAME] of pyproject.toml")
    option(
        "--alchemy-resource",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override a resource of every case, e.g. time=2:00:00, gpus=1, partition=long; may be repeated",
    )
    option(
        "--alchemy-max-jobs",
        metavar="N",
        type=_positive,
        help="let at most N jobs of one array run at a time",
    )
    option(
        "--alchemy-max-steps",
        metavar="N",
        type=_positive,
        help="end every run after N steps: a smoke test, criteria are shown but not judged",
    )
    option(
        "--alchemy-fresh",
        action="store_true",
        help="start every run at step 0, also one that was interrupted and has checkpoints to go on from",
    )
    parser.addini("alchemy_backend", "default of --alchemy-backend", default="local")
    parser.addini("alchemy_root", "default of --alchemy-root, relative to the rootdir", default="")
    parser.addini("alchemy_cluster", "default of --alchemy-cluster", default="")
    parser.addini(
        "alchemy_paths", "where experiments are collected from besides the command line", type="paths"
    )
    parser.addini(
        "alchemy_local_max_steps", "like --alchemy-max-steps, for the local backend only", default=""
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, not {text!r}")
    return int(text)


def may_hold_terms(expression: str) -> bool:
    """Tell whether a `-k` expression needs a closer look: stock ones hold none of these characters."""
    return any(character in expression for character in "=<>")


@dataclass(frozen=True, slots=True)
class Options:
    """Everything the user set, command line over ini."""

    backend: str
    root: Path | None
    """None: the profile's root, else `.alchemy` in the rootdir."""
    cluster: str | None
    resources: tuple[str, ...]
    """`KEY=VALUE` from the command line, not yet parsed."""
    max_jobs: int | None
    max_steps: int | None
    fresh: bool
    """Whether runs start over where they could go on."""
    rootdir: Path
    session: str
    """Id of this pytest session, unique; under pytest-xdist the controller's."""

    @property
    def default_root(self) -> Path:
        """The run root where neither the user nor a profile names one."""
        return self.root or self.rootdir / ".alchemy"


def read_options(config: pytest.Config) -> Options:
    """Return the options of this session, read once.

    Raises:
        pytest.UsageError: An ini value can't be read.
    """
    if _OPTIONS not in config.stash:
        config.stash[_OPTIONS] = _read(config)
    return config.stash[_OPTIONS]


def _read(config: pytest.Config) -> Options:
    backend = config.getoption("alchemy_backend") or config.getini("alchemy_backend")
    root = config.getoption("alchemy_root")
    if root == "":
        raise pytest.UsageError("--alchemy-root is empty: is the variable it comes from set?")
    if root:
        path: Path | None = Path(config.invocation_params.dir, Path(root).expanduser())
    else:
        path = (
            Path(config.rootpath, Path(config.getini("alchemy_root")).expanduser())
            if config.getini("alchemy_root")
            else None
        )
    return Options(
        backend=backend,
        root=path,
        cluster=config.getoption("alchemy_cluster") or config.getini("alchemy_cluster") or None,
        resources=tuple(config.getoption("alchemy_resource")),
        max_jobs=config.getoption("alchemy_max_jobs"),
        max_steps=config.getoption("alchemy_max_steps") or _local_max_steps(config, backend),
        fresh=config.getoption("alchemy_fresh"),
        rootdir=config.rootpath,
        session=getattr(config, "workerinput", {}).get("alchemy_session") or uuid.uuid4().hex[:12],
    )


def _local_max_steps(config: pytest.Config, backend: str) -> int | None:
    text = config.getini("alchemy_local_max_steps")
    if not text or backend != "local":
        return None
    try:
        return _positive(text)
    except argparse.ArgumentTypeError as error:
        raise pytest.UsageError(f"ini key alchemy_local_max_steps {error}") from None


def read_resources(texts: Iterable[str]) -> Resources:
    """Read the `KEY=VALUE` of `--alchemy-resource`; the last of a key counts.

    Raises:
        ConfigurationError: One of them can't be meant.
    """
    from alchemy.errors import ConfigurationError
    from alchemy.resources import Resources

    given = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise ConfigurationError(
                f"--alchemy-resource takes KEY=VALUE, such as time=2:00:00, not {text!r}"
            )
        given[key.strip()] = value.strip()
    return Resources.parse(given, "--alchemy-resource")


def find_backends(config: pytest.Config) -> Mapping[str, BackendFactory]:
    """Ask all plugins for their backends and check that the chosen one is among them.

    Raises:
        pytest.UsageError: Two plugins claim one name, or nobody has the chosen one.
    """
    found: dict[str, BackendFactory] = {}
    for backends in config.hook.pytest_alchemy_backends(config=config):
        for name, factory in backends.items():
            if name in found:
                raise pytest.UsageError(f"two plugins offer an alchemy backend named {name!r}")
            found[name] = factory
    chosen = read_options(config).backend
    if chosen not in found:
        raise pytest.UsageError(
            f"--alchemy-backend: there is no backend {chosen!r}{did_you_mean(chosen, found)}"
        )
    return found


def did_you_mean(word: str, known: Mapping[str, object]) -> str:
    """Return `; did you mean 'x'? There are a, b, x`, ready to be appended to an error."""
    import difflib  # deferred: only an error needs it

    close = difflib.get_close_matches(word, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} There are {', '.join(sorted(known)) or 'none'}"
