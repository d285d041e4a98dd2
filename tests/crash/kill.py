"""Kills a training at random instants, again and again, and checks that nothing of it is lost.

    python -m tests.crash.kill --kills 1000 --seed 1

Every run is killed until it completes, and is then compared, bit for bit, with one that nobody disturbed. The
exit status is 1 if anything was wrong; the same seed draws the same instants again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.crash.harness import Harness

__all__ = ["main"]

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a program; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="signals to send at least (default: 20)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument(
        "--root",
        type=Path,
        action="append",
        help="kept, as it also is on a violation; more than one: the same directory",
    )
    parser.add_argument("--sound", type=Path, help="another path of a root that fails now and then")
    options = parser.parse_args(argv)
    os.environ.update(
        dict.fromkeys(_ONE_THREAD, "1")
    )  # before numpy and torch start threads, which no fork has
    from tests.crash.attempts import Plan
    from tests.crash.harness import Harness

    roots = options.root or [Path(tempfile.mkdtemp(prefix="runs-"))]
    number = signal.Signals[f"SIG{options.signal}"]
    harness = Harness(roots, options.seed, number, Plan(), options.sound)
    status = _drive(harness, options.kills, options.seed)
    if status == 0:  # else somebody wants to look; no TemporaryDirectory, as every fork would remove it
        harness.close()
        if not options.root:
            shutil.rmtree(roots[0])
    return status


def _drive(harness: Harness, kills: int, seed: int) -> int:
    from tests.crash.harness import Violation

    began = time.monotonic()
    trouble = ""
    try:
        harness.reference()
        undisturbed_s = time.monotonic() - began
        print(f"seed {seed}: an undisturbed run takes {undisturbed_s:.1f} s", flush=True)
        while harness.tally["kills"] < kills:
            harness.run(f"run-{harness.tally['runs'] + 1}")
            print(
                f"{harness.tally['runs']} runs, {harness.tally['kills']} kills", file=sys.stderr, flush=True
            )
    except Violation as violation:
        trouble = str(violation)
    for name, count in sorted((+harness.tally).items()):
        print(f"{count:7d}  {name}")
    print(f"{time.monotonic() - began:7.1f}  seconds")
    print(f"seed {seed}: VIOLATION: {trouble}" if trouble else f"seed {seed}: nothing was lost")
    return 1 if trouble else 0


if __name__ == "__main__":
    sys.exit(main())
