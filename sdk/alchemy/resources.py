"""What one run needs of a machine, in Slurm's units, checked before anything is submitted."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from alchemy.errors import ConfigurationError

__all__ = ["Resources"]

# Trusted text that only a cluster's profile may hold: an experiment file must not reach the node's shell.
_OF_A_PROFILE = frozenset({"setup", "options", "extra", "sbatch", "python", "host", "root", "limits"})
_ALIASES = {
    "gpu": "gpus",
    "gres": "gpus",
    "cpu": "cpus",
    "cpus_per_task": "cpus",
    "cores": "cpus",
    "memory": "mem",
    "ram": "mem",
    "node": "nodes",
    "walltime": "time",
    "timeout": "time",
    "time_limit": "time",
    "queue": "partition",
    "project": "account",
}
_MEM = re.compile(r"\d+[KMGT]?", re.ASCII | re.IGNORECASE)
_TIME = re.compile(r"\d+(:\d{1,2}){0,2}|\d+-\d{1,2}(:\d{1,2}){0,2}|UNLIMITED", re.ASCII | re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,:@+=/-]{0,199}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Resources:
    """What one run needs; None means: not said here."""

    nodes: int | None = None
    gpus: int | None = None
    """Per node."""
    cpus: int | None = None
    """Per run and node, as in `--cpus-per-task`."""
    mem: str | None = None
    """Per node, as `--mem` takes it: a number with K, M (the default), G or T."""
    time: str | None = None
    """As `--time` takes it: `30` (minutes), `2:00:00`, `1-12:00:00`, `UNLIMITED`."""
    partition: str | None = None
    account: str | None = None

    @classmethod
    def parse(cls, mapping: Mapping[str, Any], where: str) -> Resources:
        """Read resources as an experiment, a profile or a command line gives them; None means: not said.

        Args:
            mapping: Resource name to value. Whole numbers may come as text; a bare number of `mem` counts
                mebibytes, one of `time` minutes, as Slurm has it.
            where: What error messages begin with, such as `experiment 'ctx_scaling'`.

        Raises:
            ConfigurationError: An unknown name (the close match is named) or a value of a wrong form.
        """
        if not isinstance(mapping, Mapping):
            raise ConfigurationError(
                f'{where}: resources must be a dict such as {{"gpus": 1}}, not {mapping!r}'
            )
        for name in mapping:
            if name not in _READ:
                raise ConfigurationError(f"{where}: unknown resource {name!r}; {_instead(name)}")
        given = {name: value for name, value in mapping.items() if value is not None}
        return cls(**{name: _READ[name](f"{where}: resource {name}", value) for name, value in given.items()})

    def over(self, other: Resources) -> Resources:
        """Return these resources, completed by the other's where nothing is said here."""
        return Resources(**{**other.given(), **self.given()})

    def given(self) -> dict[str, Any]:
        """Return what is said, by name."""
        return {name: value for name in _READ if (value := getattr(self, name)) is not None}


def _instead(name: object) -> str:
    if name in _OF_A_PROFILE:
        return "it belongs into a cluster's profile, [tool.alchemy.clusters.NAME] in pyproject.toml"
    known = f"known are {', '.join(_READ)}"
    key = str(name).casefold().replace("-", "_")
    import difflib  # deferred: only an error needs it

    close = [_ALIASES[key]] if key in _ALIASES else difflib.get_close_matches(key, _READ, n=1)
    return f"did you mean {close[0]!r}? ({known})" if close else known


def _count(minimum: int) -> Callable[[str, object], int]:
    def read(where: str, value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value, re.ASCII):
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and value >= minimum:
            return value
        raise ConfigurationError(f"{where} must be a whole number, {minimum} or more, not {value!r}")

    return read


def _mem(where: str, value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return f"{value}M"
    if isinstance(value, str) and _MEM.fullmatch(value):
        return value.upper()
    hint = ""
    if isinstance(value, str) and (found := re.fullmatch(r"\s*(\d+)\s*([KMGT])i?B\s*", value, re.IGNORECASE)):
        hint = f"; write '{found[1]}{found[2].upper()}'"
    raise ConfigurationError(
        f"{where} must be a whole number with K, M, G or T such as '16G', not {value!r}{hint}"
    )


def _time(where: str, value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    if isinstance(value, str) and _TIME.fullmatch(value):
        return value.upper()
    raise ConfigurationError(
        f"{where} must be minutes ('30'), 'hours:minutes:seconds' ('2:00:00') or "
        f"'days-hours:minutes:seconds' ('1-12:00:00'), not {value!r}"
    )


def _name(where: str, value: object) -> str:
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    raise ConfigurationError(
        f"{where} must be a name of letters, digits and _ . , : @ + = / -, not beginning with '-', "
        f"and not {value!r}"
    )


_READ: Mapping[str, Callable[[str, object], Any]] = {
    "nodes": _count(1),
    "gpus": _count(0),
    "cpus": _count(1),
    "mem": _mem,
    "time": _time,
    "partition": _name,
    "account": _name,
}
