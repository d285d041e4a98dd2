"""What the benchmarks share: interleaved arms, children with their peak memory, and tables of ratios.

Absolute figures move from machine to machine and from minute to minute, so all arms of a benchmark run in
one go, in turns, and what counts is the ratio of their medians.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

__all__ = [
    "PLUGIN",
    "PROJECT",
    "PYTEST",
    "PYTEST_ENV",
    "Figure",
    "arguments",
    "goal",
    "header",
    "interleaved",
    "measured",
    "medians",
    "scratch",
    "table",
]

T = TypeVar("T")

PROJECT = Path(__file__).resolve().parent.parent
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
PLUGIN = ("-p", "pytest_alchemy.plugin")
PYTEST_ENV = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
"""No plugin but those named: what else is installed (Hydra brings one too) must not slow down either side."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement of a child process."""

    seconds: float
    """By the clock on the wall."""
    cpu_s: float
    """User and system time of the child and what it waited for; steadier where others use the machine."""
    peak_mb: float


def arguments(description: str | None, *, repeats: int) -> argparse.ArgumentParser:
    """Return a parser that knows `--repeats`."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=repeats, metavar="N", help="rounds (%(default)s)")
    return parser


def header(title: str) -> None:
    """Say what is measured, and on which machine."""
    load = os.getloadavg()[0]
    print(
        f"{title}\n{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}", end=""
    )
    print(f", {time.strftime('%Y-%m-%d')}, load {load:.1f}{' (busy: mistrust what follows)' * (load > 1)}\n")


def interleaved(
    arms: Mapping[str, Callable[[], T]], repeats: int, *, between: Callable[[], object] = lambda: None
) -> dict[str, list[T]]:
    """Run all arms in turns and return what each one measured; every other round goes backwards.

    Args:
        arms: Name to a function that returns a measurement.
        repeats: Rounds.
        between: Called before every measurement, not measured.
    """
    seen: dict[str, list[T]] = {name: [] for name in arms}
    for number in range(repeats):
        for name in list(arms)[:: 1 if number % 2 == 0 else -1]:
            between()
            seen[name].append(arms[name]())
        if sys.stderr.isatty():
            print(f"\rround {number + 1} of {repeats}", end="\n" * (number + 1 == repeats), file=sys.stderr)
    return seen


def medians(seen: Mapping[str, Sequence[T]], of: Callable[[T], float]) -> dict[str, float]:
    """Return each arm's median of one quantity."""
    return {name: statistics.median(map(of, values)) for name, values in seen.items()}


def measured(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None) -> Figure:
    """Run a child to its end.

    Raises:
        SystemExit: It failed; with what it said.
    """
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        child = subprocess.Popen(
            argv,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            said.seek(0)
            text = said.read()[-3000:].decode(errors="replace")
            raise SystemExit(f"{' '.join(argv)} ended with {child.returncode}:\n{text}")
    return Figure(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def table(medians: Mapping[str, float], *, base: str, unit: str, digits: int = 2) -> None:
    """Print medians and what they are relative to one of them."""
    width = max(map(len, medians))
    for name, value in medians.items():
        print(f"  {name:<{width}}  {value:10.{digits}f} {unit}  {value / medians[base]:7.2f} x")
    print()


def goal(what: str, value: float, limit: float, unit: str = "x") -> None:
    """Print a figure beside its goal, met or not."""
    print(
        f"  goal {'met   ' if value <= limit else 'MISSED'}  {what}: {value:.2f} {unit} (at most {limit:g})"
    )


@contextmanager
def scratch() -> Iterator[Path]:
    """Lend a temporary directory, with a pytest.ini in it so that nothing above is read."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        path = Path(name)
        (path / "pytest.ini").write_text("[pytest]\n")
        yield path
