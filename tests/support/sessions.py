"""pytest as a user starts it, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["run_pytest", "run_python"]


def run_python(
    *args: str, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with nothing of pytest's, xdist's or ours in its environment."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_", "ALCHEMY_", "SLURM"))
    }
    return subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env={**kept, "COLUMNS": "120", **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def run_pytest(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run pytest with our plugin and no other."""
    argv = ("-m", "pytest", "-p", "pytest_alchemy.plugin", *args)
    return run_python(*argv, cwd=cwd, env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
