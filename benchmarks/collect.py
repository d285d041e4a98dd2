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
    medians,
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
FILES = {"alchemy": EXPERIMENT, "parametrize, two axes": TWO_AXES, "parametrize, one axis": ONE_AXIS}


def main() -> None:
    parser = arguments(__doc__, repeats=7)
    parser.add_argument("--cases", type=int, default=10_000, metavar="N", help="a square (%(default)s)")
    options = parser.parse_args()
    side = round(options.cases**0.5)
    with scratch() as directory:
        arms = {
            f"{name}/{length}": partial(_collect, directory, name, length)
            for name in FILES
            for length in (side, 1)
        }
        header(f"collect {side * side} cases")
        seen = interleaved(arms, options.repeats)
    _report(side, seen)


def _collect(directory: Path, name: str, side: int) -> Figure:
    path = directory / f"test_{list(FILES).index(name)}_{side}.py"
    if not path.exists():
        path.write_text(FILES[name].format(side=side))
    plugin = PLUGIN if name == "alchemy" else ()
    return measured([*PYTEST, *plugin, "--co", "-qq", path.name], cwd=directory, env=PYTEST_ENV)


def _report(side: int, seen: dict[str, list[Figure]]) -> None:
    seconds, cpu, peak = (
        medians(seen, of)
        for of in (lambda figure: figure.seconds, lambda figure: figure.cpu_s, lambda figure: figure.peak_mb)
    )

    def net(quantity: dict[str, float], name: str) -> float:
        return quantity[f"{name}/{side}"] - quantity[f"{name}/1"]

    print(f"  {'':<22}{'time':>9}{'net':>9}{'CPU':>11}{'net':>9}{'peak':>12}{'net':>10}")
    for name in FILES:
        whole = f"{name}/{side}"
        print(
            f"  {name:<22}{seconds[whole]:7.2f} s{net(seconds, name):7.2f} s{cpu[whole]:9.2f} s"
            f"{net(cpu, name):7.2f} s{peak[whole]:9.0f} MB{net(peak, name):7.1f} MB"
        )
    print()
    for name in list(FILES)[1:]:
        print(f"  against {name}, CPU {net(cpu, 'alchemy') / net(cpu, name):.2f} x net;", end=" ")
        print(f"whole process {seconds[f'alchemy/{side}'] / seconds[f'{name}/{side}']:.2f} x time,", end=" ")
        print(f"{peak[f'alchemy/{side}'] / peak[f'{name}/{side}']:.2f} x peak memory")
        goal("time, net", net(seconds, "alchemy") / net(seconds, name), 0.6)
        goal("memory, net", net(peak, "alchemy") / net(peak, name), 0.75)


if __name__ == "__main__":
    main()
