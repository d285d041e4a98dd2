"""A site as pyproject.toml describes it: `[tool.alchemy.clusters.NAME]`.

The only place from which text reaches a shell (`setup`) or sbatch (`options`): whoever may edit this
file may run code here anyway.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from alchemy.errors import ConfigurationError
from alchemy.resources import Resources
from pytest_alchemy.options import did_you_mean
from pytest_alchemy.slurm.submission import check_option

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PATIENCE", "Profile", "effective", "load_profile", "read_minutes"]

PATIENCE = ("grace_s", "vanish_s", "stall_s", "submit_s", "command_s", "lookup_s", "cancel_s", "warn_s")
"""The backend's `Knobs` that a site may set: they depend on its file system and its controller."""

_MEBIBYTES = {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2}
_TEXTS = ("host", "root", "python")
_LISTS = ("setup", "options")
_TABLES = ("resources", "override", "limits")
_LIMITABLE = ("nodes", "gpus", "cpus", "mem", "time")


@dataclass(frozen=True, slots=True)
class Profile:
    """What is particular about one cluster."""

    name: str = "default"
    host: str | None = None
    """Login node to go through; None: Slurm's commands are on PATH here."""
    root: str | None = None
    """Run root on a file system that all nodes share."""
    python: str | None = None
    """Interpreter of the jobs; None: the one that runs pytest."""
    setup: tuple[str, ...] = ()
    """Shell lines before the interpreter starts, such as `module load cuda`. Trusted."""
    resources: Resources = field(default_factory=Resources)
    """Defaults, for what an experiment does not say."""
    override: Resources = field(default_factory=Resources)
    """What holds here whatever an experiment says."""
    limits: Resources = field(default_factory=Resources)
    """More than this is an error."""
    options: tuple[str, ...] = ()
    """Further options of sbatch, one `--key=value` each."""
    patience: Mapping[str, float] = field(default_factory=dict)
    """Seconds by name, for names in `PATIENCE`; the backend has defaults."""


def load_profile(rootdir: Path, name: str | None) -> Profile:
    """Read a cluster's profile from the pyproject.toml in pytest's rootdir; without a name, an empty one.

    Raises:
        ConfigurationError: There is no such file or cluster, a key is unknown, a value can't be meant.
    """
    if name is None:
        return Profile()
    path = rootdir / "pyproject.toml"
    clusters = _clusters(path)
    if name not in clusters:
        raise ConfigurationError(f"{path} describes no cluster {name!r}{did_you_mean(name, clusters)}")
    where = f"{path}: [tool.alchemy.clusters.{name}]"
    return _parse(name, _table(clusters[name], where), where)


def effective(profile: Profile, experiment: Resources, command_line: Resources) -> Resources:
    """Join what is asked for: profile < experiment < the profile's override < command line.

    Raises:
        ConfigurationError: The outcome exceeds a limit of the profile.
    """
    wished = command_line.over(profile.override).over(experiment).over(profile.resources)
    for name, limit in profile.limits.given().items():
        value = wished.given().get(name)
        if value is not None and _amount(name, value) > _amount(name, limit):
            raise ConfigurationError(
                f"{name}={value} is asked for, but cluster {profile.name!r} allows {name}={limit}; ask for "
                f"less, or raise the limit in [tool.alchemy.clusters.{profile.name}.limits]"
            )
    return wished


def _clusters(path: Path) -> Mapping[str, Any]:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path} is not there; clusters are described in it as [tool.alchemy.clusters.NAME]"
        ) from None
    except (OSError, ValueError) as error:  # a TOMLDecodeError is a ValueError
        raise ConfigurationError(f"{path} can't be read: {error}") from error
    table: Mapping[str, Any] = document
    for key in ("tool", "alchemy", "clusters"):
        table = _table(table.get(key, {}), f"{path}: [{key}]")
    return table


def _parse(name: str, table: Mapping[str, Any], where: str) -> Profile:
    _check_keys(table, (*_TEXTS, *_LISTS, *_TABLES, "patience"), where)
    tables = {
        key: Resources.parse(_table(table[key], f"{where}.{key}"), f"{where}.{key}")
        for key in _TABLES
        if key in table
    }
    unlimited = set(tables.get("limits", Resources()).given()) - set(_LIMITABLE)
    if unlimited:
        raise ConfigurationError(
            f"{where}.limits: {', '.join(sorted(unlimited))} can't be limited, only {', '.join(_LIMITABLE)}"
        )
    texts = {key: _line(table[key], f"{where}.{key}") for key in _TEXTS if key in table}
    lists = {key: _lines(table[key], f"{where}.{key}") for key in _LISTS if key in table}
    for option in lists.get("options", ()):
        check_option(option, f"{where}.options")
    patience = _patience(table.get("patience", {}), f"{where}.patience")
    return Profile(name=name, patience=patience, **texts, **lists, **tables)  # type: ignore[arg-type]


def _check_keys(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            hint = did_you_mean(key, dict.fromkeys(known))
            raise ConfigurationError(f"{where} has an unknown key {key!r}{hint}")


def _patience(value: object, where: str) -> Mapping[str, float]:
    table = _table(value, where)
    _check_keys(table, PATIENCE, where)
    for name, seconds in table.items():
        number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if not number or not 0 < seconds < math.inf:
            raise ConfigurationError(f"{where}.{name} must be a positive number of seconds, not {seconds!r}")
    return {name: float(seconds) for name, seconds in table.items()}


def _table(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{where} must be a table, not {value!r}")
    return value


def _lines(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ConfigurationError(f"{where} must be a list of lines, not {value!r}")
    return tuple(_line(line, where) for line in value)


def _line(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ConfigurationError(f"{where}: {value!r} is not a line of text")
    return value


def _amount(name: str, value: int | str) -> float:
    if isinstance(value, int):
        return value
    return _mebibytes(value) if name == "mem" else read_minutes(value)


def _mebibytes(mem: str) -> float:
    """`16G` is 16384; a bare number counts mebibytes. 0 is Slurm's word for all of a node's memory."""
    number = float(mem.rstrip("KMGT")) * _MEBIBYTES.get(mem[-1], 1.0)
    return number or float("inf")


def read_minutes(time: str) -> float:
    """Read a time limit: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S; 0 and UNLIMITED are without end."""
    if time == "UNLIMITED":
        return float("inf")
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    total = int(days or 0) * 24 * 60 + hours * 60 + minutes + seconds / 60
    return total or float("inf")
