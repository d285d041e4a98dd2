"""200 trivial cases on a real (private, temporary) Slurm cluster, from the command's start to its end.

Against submitit's `map_array` of 200 trivial functions with its own defaults, and against the floor: a bare
`sbatch --array` whose tasks start the same Python imports and leave a file, watched by a loop that only
counts these. The cluster is the tests': its nodes are this machine, so the tasks compete for its cores with
whatever waits for them, and starting 200 interpreters is most of every arm.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from benchmarks._measure import (
    PLUGIN,
    PYTEST,
    PYTEST_ENV,
    arguments,
    goal,
    header,
    interleaved,
    measured,
    medians,
    scratch,
    table,
)
from tests.support.slurmcluster import SlurmCluster

ALCHEMY = """
import alchemy as al

exp = al.experiment("trivial", criteria={{"x": ">= 0"}}, matrix={{"i": range({n})}})


@exp.task(total_steps=1)
def train(ctx):
    ctx.log_eval(x=ctx.param("i"))
"""
SUBMITIT = """
import sys

import submitit


def train(i):
    return i


if __name__ == "__main__":
    executor = submitit.AutoExecutor(folder=sys.argv[1], cluster="slurm")
    executor.update_parameters(timeout_min=5)
    jobs = executor.map_array(train, range({n}))
    assert [job.result() for job in jobs] == list(range({n}))
"""
# What a case of ours imports before the user's code runs, and nothing else.
FLOOR = """
import os

import alchemy
import alchemy.execution
import alchemy.job
import alchemy.loading
import alchemy.recording.recorder
import orjson

open(f"{os.environ['FLOOR']}/{os.environ['SLURM_ARRAY_TASK_ID']}", "x").close()
"""


def main() -> None:
    parser = arguments(__doc__, repeats=7)
    parser.add_argument("--cases", type=int, default=200, metavar="N", help="how many (%(default)s)")
    parser.add_argument("--nodes", type=int, default=2, metavar="N", help="of the cluster (%(default)s)")
    options = parser.parse_args()
    number, turns = options.cases, count()
    with scratch() as directory, SlurmCluster(nodes=options.nodes) as cluster:
        for file, text in (("exp.py", ALCHEMY), ("jobs.py", SUBMITIT), ("floor.py", FLOOR)):
            (directory / file).write_text(text.format(n=number) if file != "floor.py" else text)
        env = {**cluster.env, **PYTEST_ENV}

        def alchemy() -> float:
            root = f"--alchemy-root={directory / f'root-{next(turns)}'}"
            argv = [*PYTEST, *PLUGIN, "-q", "exp.py", "--alchemy-backend=slurm", root]
            return measured(argv, cwd=directory, env=env).seconds

        def submitit() -> float:
            argv = [sys.executable, "jobs.py", f"logs-{next(turns)}"]
            return measured(argv, cwd=directory, env=env).seconds

        arms: dict[str, Callable[[], float]] = {
            "bare sbatch --array": lambda: _floor(directory, env, number, next(turns)),
            "alchemy": alchemy,
            "submitit": submitit,
        }
        header(f"{number} trivial cases on a cluster of {options.nodes} nodes")
        seconds = medians(interleaved(arms, options.repeats, between=cluster.wait_until_empty), float)
    table(seconds, base="bare sbatch --array", unit="s")
    goal("against the floor", seconds["alchemy"] / seconds["bare sbatch --array"], 1.5)
    goal("against submitit", seconds["alchemy"] / seconds["submitit"], 0.5)


def _floor(directory: Path, env: dict[str, str], number: int, turn: int) -> float:
    done = directory / f"floor-{turn}"
    done.mkdir()
    script = f"#!/bin/sh\nexec {sys.executable} {directory / 'floor.py'}\n"
    started = time.perf_counter()
    subprocess.run(
        ["sbatch", f"--array=0-{number - 1}", "--output=/dev/null", "--time=5"],
        input=script,
        env={**os.environ, **env, "FLOOR": str(done)},
        check=True,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    while sum(1 for _ in os.scandir(done)) < number:
        time.sleep(0.02)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
