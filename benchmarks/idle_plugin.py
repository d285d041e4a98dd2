"""What all pay who have the plugin installed: `pytest --co` on 2,000 ordinary tests, with and without it.

Makes two virtual environments, one with pytest and one with pytest and this project, installed as a user
would; `--without` and `--with` name interpreters to use instead.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks._measure import (
    PROJECT,
    Figure,
    arguments,
    goal,
    header,
    interleaved,
    measured,
    medians,
    scratch,
    table,
)

FILES, TESTS = 40, 50
# Loaded in an ordinary session, each of these would be a mistake.
HEAVY = ("torch", "paramiko", "scipy", "duckdb", "numpy", "orjson", "junitparser", "alchemy", "alchemy_agent")
PROBE = """
import sys

def pytest_unconfigure():
    loaded = [name for name in {heavy!r} if name in sys.modules]
    assert not loaded, f"an ordinary session loads {{loaded}}"
"""


def main() -> None:
    parser = arguments(__doc__, repeats=20)
    parser.add_argument("--without", metavar="PYTHON", help="an environment with pytest alone")
    parser.add_argument("--with", dest="with_", metavar="PYTHON", help="the same and this project")
    options = parser.parse_args()
    with scratch() as directory:
        without = options.without or _environment(directory / "without")
        with_ = options.with_ or _environment(directory / "with", str(PROJECT))
        tests = directory / "tests"
        tests.mkdir()
        for number in range(FILES):
            body = "".join(f"def test_{test}():\n    assert True\n\n\n" for test in range(TESTS))
            (tests / f"test_{number}.py").write_text(body)
        (tests / "probe.py").write_text(PROBE.format(heavy=HEAVY))

        def collect(python: str) -> Figure:
            return measured(
                [python, "-m", "pytest", "-p", "no:cacheprovider", "--co", "-qq", "tests"], cwd=directory
            )

        probe = [with_, "-m", "pytest", "-p", "probe", "--co", "-qq", "tests"]
        measured(probe, cwd=directory, env={"PYTHONPATH": str(tests)})
        collect(without)  # writes the compiled tests, which both sides then read
        header(f"pytest --co on {FILES * TESTS} ordinary tests")
        arms = {"without": partial(collect, without), "with": partial(collect, with_)}
        seen = interleaved(arms, options.repeats)
    seconds = medians(seen, lambda figure: figure.seconds)
    cpu = medians(seen, lambda figure: figure.cpu_s)
    table(seconds, base="without", unit="s", digits=3)
    table(cpu, base="without", unit="s of CPU", digits=3)
    goal("with the plugin against without", seconds["with"] / seconds["without"], 1.03)
    print(f"  an ordinary session loads none of {', '.join(HEAVY)}")


def _environment(path: Path, *extra: str) -> str:
    subprocess.run([sys.executable, "-m", "venv", str(path)], check=True)
    python = str(path / "bin" / "python")
    pytest = f"pytest=={importlib.metadata.version('pytest')}"
    subprocess.run([python, "-m", "pip", "install", "-q", pytest, *extra], check=True)
    return python


if __name__ == "__main__":
    main()
