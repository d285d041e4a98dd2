"""What a kill leaves behind is whole on a real NFS mount, too, and on file systems that fail now and then."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import faultyfs, nfs
from tests.support.agentlab import plain_environment

pytestmark = [pytest.mark.long, pytest.mark.timeout(0)]
ROOT = Path(__file__).parents[2]
CHECKPOINTS = "/checkpoints(/|$)"
FAULTS = {
    "eio-on-read": f"read EIO 0.005 {CHECKPOINTS}",
    "estale-on-open": f"open ESTALE 0.005 {CHECKPOINTS}",
    "estale-on-readdir": "readdir ESTALE 0.01 /(checkpoints|attempts)(/|$)",
    "enospc-on-write": f"write ENOSPC 0.005 {CHECKPOINTS}",
    "edquot-on-close": f"flush EDQUOT 0.005 {CHECKPOINTS}",
    "eio-on-fsync": f"fsync EIO 0.005 {CHECKPOINTS}",
    "eio-on-rename": f"rename EIO 0.005 {CHECKPOINTS}",
}


def disturb(command: list[str]) -> None:
    """Run the driver of the kill test where another program has mounted something."""
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=plain_environment())
    assert ended.returncode == 0, ended.stdout + ended.stderr
    print(ended.stdout)


def driver(kills: int, seed: int, *arguments: str) -> list[str]:
    """Return the command of the driver."""
    wanted = ["--kills", str(kills), "--seed", str(seed)]
    return [sys.executable, "-m", "tests.crash.kill", *wanted, *arguments]


@pytest.mark.skipif(nfs.why_not() != "", reason=nfs.why_not())
@pytest.mark.parametrize("number", ["KILL", "TERM"])
def test_attempts_that_run_in_turn_on_two_clients_of_one_server_lose_nothing(number: str) -> None:
    roots = ("--root", "{first}", "--root", "{second}")
    disturb(nfs.command(driver(100, 1, "--signal", number, *roots)))


@pytest.mark.skipif(faultyfs.why_not() != "", reason=faultyfs.why_not())
@pytest.mark.parametrize(
    "rules", [[rule] for rule in FAULTS.values()] + [[*FAULTS.values()]], ids=[*FAULTS, "all"]
)
def test_a_file_system_that_fails_now_and_then_costs_steps_at_most(rules: list[str]) -> None:
    disturb(faultyfs.command(rules, 1, driver(30, 1, "--root", "{mount}", "--sound", "{backing}")))
