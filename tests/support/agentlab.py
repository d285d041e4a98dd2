"""What the agent's tests share: attempts in a temporary directory, real processes, letters in a mailbox."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import alchemy_agent as agent

T = TypeVar("T")

AGENT = Path(agent.__file__).resolve()
GIVE_UP_S = 60.0
"""A test that waits longer has failed; none is meant to come near."""


def make_attempt(root: Path, run: str = "run-1", k: int = 1, restarts: int = 0) -> agent.AttemptDir:
    """Claim an attempt below `root/jobs`."""
    return agent.claim_attempt(agent.RunDir(root / "jobs" / run), k, restarts)


def eventually(look: Callable[[], T | None]) -> T:
    """Return the first answer of `look` that is neither None nor empty."""
    end = time.monotonic() + GIVE_UP_S
    while time.monotonic() < end:
        answer = look()
        if answer:
            return answer
        time.sleep(0.005)
    raise AssertionError(f"waited {GIVE_UP_S:g} s in vain")


def record(path: str | Path) -> dict[str, Any]:
    """Read a record that must be there."""
    answer = agent.read_record(path)
    assert answer is not None, f"{path} is not there or no record"
    return answer


def names(directory: str | Path) -> list[str]:
    """Return what lies in a directory, sorted."""
    return sorted(path.name for path in Path(directory).iterdir())


def drop(run_dir: agent.RunDir, name: str, content: bytes = b"{}") -> None:
    """Put a letter into `commands/`, whole, as a careful sender does."""
    commands = Path(run_dir.commands)
    (commands / f".{name}.part").write_bytes(content)
    (commands / f".{name}.part").rename(commands / name)


def plain_environment(**extra: str) -> dict[str, str]:
    """Return this environment without anything a run or Slurm would have set, and with quick timers."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ALCHEMY_", "SLURM_", "RANK"))}
    timers = {"ALCHEMY_HEARTBEAT_S": "0.02", "ALCHEMY_COMMAND_POLL_S": "0.02"}
    return {**inherited, **timers, **extra}


def start_wrapped(job_dir: Path, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Start `command` under the wrapper, in a session of its own and thus without a terminal."""
    options.setdefault("env", plain_environment())
    return subprocess.Popen(
        [sys.executable, str(AGENT), "--job-dir", str(job_dir), "--", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def python(source: str) -> list[str]:
    """Return the command that runs `source`."""
    return [sys.executable, "-u", "-c", source]
