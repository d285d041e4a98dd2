"""Collecting 10,000 cases of one experiment, against `pytest.mark.parametrize` with the same 10,000.

Both sides are a pytest process that collects and prints only a count (`--co -qq`), and have the same node
ids. "net" is without what the same process costs with one test in place of 10,000.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks._measure import (
    PLUGIN,
    PYTEST,
    PYTEST_ENV,
    Figure,
    arguments,
    goal,
    header,
    interleaved,
    measured,
    scratch,
)

EXPERIMENT = """
import alchemy as al

exp = al.experiment("wide", criteria={{"x": "> 0"}}, matrix={{"a": range({side}), "seed": range({side})}})


@exp.task(total_steps=1)
def train(ctx):
    ctx.log_eval(x=1.0)
"""
TWO_AXES = """
import pytest


@pytest.mark.parametrize("a", range({side}), ids="a={{}}".format)
@pytest.mark.parametrize("seed", range({side}), ids="seed={{}}".format)
def test_train(a, seed):
    assert True
"""
ONE_AXIS = """
import itertools
import pytest

CASES = list(itertools.product(range({side}), range({side})))


@pytest.mark.parametrize(("a", "seed"), CASES, ids=[f"a={{a}}-seed={{seed}}" for a, seed in CASES])
def test_train(a, seed):
    assert True
"""


def main() -> None:
    parser = arguments(__doc__, repeats=7)
    parser.add_argument("--cases", type=int, default=10_000, metavar="N", help="a square (%(default)s)")
    options = parser.parse_args()
    side = round(options.cases**0.5)
    with scratch() as directory:
        files = {"alchemy": EXPERIMENT, "parametrize, two axes": TWO_AXES, "parametrize, one axis": ONE_AXIS}
        peaks: dict[str, list[float]] = {}

        def collect(name: str, code: str, length: int) -> float:
            figure = _collect(directory, name, code.format(side=length))
            peaks.setdefault(f"{name}/{length}", []).append(figure.peak_mb)
            return figure.seconds

        arms = {
            f"{name}/{length}": partial(collect, name, code, length)
            for name, code in files.items()
            for length in (side, 1)
        }
        header(f"collect {side * side} cases")
        seconds = interleaved(arms, options.repeats)
    megabytes = {name: sorted(values)[len(values) // 2] for name, values in peaks.items()}
    _report(list(files), side, seconds, megabytes)


def _collect(directory: Path, name: str, code: str) -> Figure:
    path = directory / f"test_{abs(hash((name, code)))}.py"
    if not path.exists():
        path.write_text(code)
    plugin = PLUGIN if name == "alchemy" else ()
    return measured([*PYTEST, *plugin, "--co", "-qq", str(path)], cwd=directory, env=PYTEST_ENV)


def _report(names: list[str], side: int, seconds: dict[str, float], megabytes: dict[str, float]) -> None:
    print(f"  {'':<24}{'time':>10}{'net':>10}{'peak':>12}{'net':>10}")
    net: dict[str, tuple[float, float]] = {}
    for name in names:
        all_, one = f"{name}/{side}", f"{name}/1"
        net[name] = (seconds[all_] - seconds[one], megabytes[all_] - megabytes[one])
        print(
            f"  {name:<24}{seconds[all_]:8.2f} s{net[name][0]:8.2f} s"
            f"{megabytes[all_]:9.0f} MB{net[name][1]:7.1f} MB"
        )
    print()
    for name in names[1:]:
        goal(f"time against {name}, net", net["alchemy"][0] / net[name][0], 0.6)
        goal(f"memory against {name}, net", net["alchemy"][1] / net[name][1], 0.75)
        ratio = seconds[f"alchemy/{side}"] / seconds[f"{name}/{side}"]
        memory = megabytes[f"alchemy/{side}"] / megabytes[f"{name}/{side}"]
        print(f"               (whole process: time {ratio:.2f} x, peak memory {memory:.2f} x)")


if __name__ == "__main__":
    main()
