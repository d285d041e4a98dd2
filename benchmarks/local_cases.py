"""50 trivial cases on this machine: in pytest with this project, and with what else one might take.

Each side is one process from its start to its end that runs 50 cases and keeps each one's result: a pytest
session with an experiment; plain pytest with parametrize (keeps nothing); Hydra's multirun; MLXP's, which
is built on it and logs; submitit's LocalExecutor, which starts a process per job.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
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

ALCHEMY = """
import alchemy as al

exp = al.experiment("trivial", criteria={{"x": ">= 0"}}, matrix={{"i": range({n})}})


@exp.task(total_steps=1)
def train(ctx):
    for _ in ctx.steps():
        ctx.log(x=ctx.param("i"))
    ctx.log_eval(x=ctx.param("i"))
"""
PLAIN = """
import pytest


@pytest.mark.parametrize("i", range({n}))
def test_train(i):
    assert i >= 0
"""
HYDRA = """
import hydra


@hydra.main(version_base=None, config_path="conf", config_name="config")
def train(config):
    with open("result.txt", "w") as file:
        print(config.i, file=file)


train()
"""
MLXP = """
import mlxp


@mlxp.launch(config_path="./configs")
def train(ctx):
    ctx.logger.log_metrics({"x": ctx.config.i}, log_name="train")


train()
"""
MLXP_SETTINGS = "use_scheduler: false\nuse_version_manager: false\ninteractive_mode: false\n"
SUBMITIT = """
import submitit


def train(i):
    return i


if __name__ == "__main__":
    executor = submitit.AutoExecutor(folder="logs", cluster="local")
    jobs = executor.map_array(train, range({n}))
    assert [job.result() for job in jobs] == list(range({n}))
"""


def main() -> None:
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--cases", type=int, default=50, metavar="N", help="how many (%(default)s)")
    options = parser.parse_args()
    number = options.cases
    with scratch() as directory:
        _write(directory, number)
        arms = {name: _arm(directory / name, argv) for name, argv in _commands(number).items()}
        header(f"{number} trivial cases, locally")
        seconds = medians(interleaved(arms, options.repeats), float)
    alchemy, one = seconds["alchemy"], seconds["one case"]
    per_case = {name: 1000 * value / number for name, value in seconds.items() if name != "one case"}
    table(per_case, base="alchemy", unit="ms per case", digits=1)
    print(f"  a pytest session with one case takes {one:.2f} s; each further one costs\n")
    goal("in process", 1000 * (alchemy - one) / (number - 1), 20, "ms per further case")
    for name in ("hydra", "mlxp", "submitit"):
        goal(f"whole process against {name}", alchemy / seconds[name], 0.2)


def _commands(number: int) -> dict[str, list[str]]:
    values = f"i={','.join(map(str, range(number)))}"
    return {
        "alchemy": [*PYTEST, *PLUGIN, "-q", "exp.py"],
        "one case": [*PYTEST, *PLUGIN, "-q", "exp.py", "-k", "i=0"],
        "plain pytest": [*PYTEST, "-q", "test_train.py"],
        "hydra": [sys.executable, "train.py", "--multirun", values],
        "mlxp": [sys.executable, "train.py", values],
        "submitit": [sys.executable, "train.py"],
    }


def _write(directory: Path, number: int) -> None:
    for name, file, text in (
        ("alchemy", "exp.py", ALCHEMY.format(n=number)),
        ("one case", "exp.py", ALCHEMY.format(n=number)),
        ("plain pytest", "test_train.py", PLAIN.format(n=number)),
        ("hydra", "train.py", HYDRA),
        ("hydra", "conf/config.yaml", "i: 0\n"),
        ("mlxp", "train.py", MLXP),
        ("mlxp", "configs/config.yaml", "i: 0\n"),
        (
            "mlxp",
            "configs/mlxp.yaml",
            MLXP_SETTINGS,
        ),
        ("submitit", "train.py", SUBMITIT.format(n=number)),
    ):
        path = directory / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _arm(directory: Path, argv: list[str]) -> Callable[[], float]:
    def run() -> float:
        shutil.rmtree(directory.parent / ".alchemy", ignore_errors=True)  # each session begins afresh
        return measured(argv, cwd=directory, env=PYTEST_ENV).seconds

    return run


if __name__ == "__main__":
    main()
