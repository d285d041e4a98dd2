"""The program `alchemy` as a whole: how it starts, how it ends, what it says when it can't."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_alchemy.cli.main import SUBCOMMANDS, main
from pytest_alchemy.cli.trouble import Status
from tests.support.agentlab import make_attempt
from tests.support.clilab import Program, commit


@pytest.fixture
def alchemy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(tmp_path, capsys)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["dance"],
        ["checkpoints"],
        ["checkpoints", "x", "--roo=y"],
        ["checkpoints", "x", "y"],
        ["command", "x"],
    ],
)
def test_what_argparse_cannot_read_is_a_usage_error(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(argv)
    assert raised.value.code == Status.USAGE
    assert "usage: alchemy" in capsys.readouterr().err


@pytest.mark.parametrize("module", SUBCOMMANDS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_subcommand_explains_itself(module: object, capsys: pytest.CaptureFixture[str]) -> None:
    name = str(getattr(module, "__name__", "")).rpartition(".")[2]
    with pytest.raises(SystemExit) as raised:
        main([name, "--help"])
    assert raised.value.code == Status.DONE
    assert f"usage: alchemy {name}" in capsys.readouterr().out


def test_an_error_is_one_line_and_the_choices_stand_below(alchemy: Program) -> None:
    for run in ("a-1", "a-\x1b[31m"):
        make_attempt(alchemy.root, run)
    said = alchemy("checkpoints", "a")
    assert said.status == Status.NO_RUN
    assert said.out == ""
    assert said.err.splitlines() == [
        f"alchemy: 'a' fits 2 runs in {alchemy.root}/jobs: write more of the id you mean",
        "  a-\\x1b[31m",
        "  a-1",
    ]


def test_it_loads_neither_pytest_nor_anything_heavy(tmp_path: Path) -> None:
    commit(make_attempt(tmp_path), 4, 1)
    code = """
import sys
from pytest_alchemy.cli.main import main
light = {"pytest", "torch", "numpy", "alchemy", "orjson", "junitparser"}
assert not light & set(sys.modules), light & set(sys.modules)
assert main(["checkpoints", "run-1", "--verify", "--root", sys.argv[1]]) == 0
assert not light - {"alchemy"} & set(sys.modules), light & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_reader_who_leaves_early_is_no_error(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    for step in range(3):
        commit(attempt, step, step)
    argv = [sys.executable, "-m", "pytest_alchemy.cli.main", "checkpoints", "run-1", "--root", str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == Status.CUT_SHORT


def test_the_console_script_is_this_function() -> None:
    from importlib.metadata import entry_points

    [script] = entry_points(group="console_scripts", name="alchemy")
    module, _, function = script.value.partition(":")
    assert getattr(importlib.import_module(module), function) is main
