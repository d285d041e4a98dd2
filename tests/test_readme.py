"""What README and documents show is true: experiments in them run, commands and settings in them exist."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pytest_alchemy.exits import DETACHED, INFRASTRUCTURE
from pytest_alchemy.profile import Profile, load_profile
from pytest_alchemy.terms import parse
from tests.support.sessions import run_pytest

tomllib: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [
    README,
    *sorted(ROOT.glob("docs/*.md")),
    ROOT / "examples/README.md",
    ROOT / "benchmarks/README.md",
]


def _blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def _named(language: str) -> list[object]:
    """All blocks of a language, with the name of their document and their number in it."""
    return [
        pytest.param(block, id=f"{path.stem}-{number}")
        for path in DOCUMENTS
        for number, block in enumerate(_blocks(path, language), 1)
    ]


def _is_experiment(block: str) -> bool:
    return "al.experiment(" in block and "@exp.task" in block


def _experiments() -> list[object]:
    return [
        pytest.param(block, id=f"{path.stem}-{number}")
        for path in DOCUMENTS
        for number, block in enumerate(filter(_is_experiment, _blocks(path, "python")), 1)
    ]


def _shell_lines() -> Iterator[tuple[str, list[str]]]:
    """Every indented line that runs pytest, as document name and words."""
    for path in DOCUMENTS:
        for line in re.findall(r"^    (?:\$ )?(pytest .*)$", path.read_text(), re.MULTILINE):
            yield path.name, shlex.split(line, comments=True)


COMMANDS = [pytest.param(words, id=f"{name}-{' '.join(words)[:60]}") for name, words in _shell_lines()]


@pytest.mark.parametrize("block", _named("python"))
def test_every_block_of_python_is_python(block: str) -> None:
    ast.parse(block)


@pytest.mark.parametrize("block", _experiments())
def test_an_experiment_in_the_documents_runs(block: str, tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text(block)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    done = run_pytest("shown.py", "--alchemy-max-steps=3", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "shortened to 3 steps" in done.stdout


def test_the_first_experiment_of_readme_ends_as_shown(tmp_path: Path) -> None:
    (tmp_path / "step_size.py").write_text(_blocks(README, "python")[0])
    done = run_pytest("step_size.py", "--tb=no", cwd=tmp_path)
    assert done.returncode == 1
    shown = _rows(README.read_text(), "lr=0")
    assert len(shown) == 6
    assert _rows(done.stdout, "lr=0") == shown
    assert "6 cases: 3 refuted, 3 supported" in done.stdout


def test_the_experiment_of_the_how_to_is_supported(tmp_path: Path) -> None:
    (tmp_path / "averaging.py").write_text(_blocks(ROOT / "docs/how-to.md", "python")[0])
    done = run_pytest("averaging.py", cwd=tmp_path)
    assert "6 cases: 6 supported" in done.stdout, done.stdout


def test_an_expected_refutation_ends_green(tmp_path: Path) -> None:
    (tmp_path / "memory.py").write_text(_blocks(ROOT / "docs/how-to.md", "python")[1])
    done = run_pytest("memory.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "1 refuted, as expected, 1 supported" in done.stdout


def _rows(text: str, beginning: str) -> list[list[str]]:
    """The rows of a summary table, without the time a case took."""
    rows = [line.split() for line in text.splitlines() if line.strip().startswith(beginning)]
    return [
        [word for word in row if not re.fullmatch(r"[\d.]+|s", word) or row.index(word) == 1] for row in rows
    ]


@pytest.mark.parametrize("block", _named("toml"))
def test_settings_in_the_documents_are_understood(
    block: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    document = tomllib.loads(block)["tool"]
    (tmp_path / "pyproject.toml").write_text(block)
    for name in document.get("alchemy", {}).get("clusters", {}):
        assert load_profile(tmp_path, name).name == name
    for key in document.get("pytest", {}).get("ini_options", {}):
        request.config.getini(key)  # raises for a key that doesn't exist


def test_the_documents_name_every_key_of_a_profile() -> None:
    [block] = _blocks(ROOT / "docs/reference.md", "toml")
    shown = set(tomllib.loads(block)["tool"]["alchemy"]["clusters"]["snellius"])
    assert shown == {field.name for field in fields(Profile)} - {
        "name",
        "host",
    }  # no SSH yet


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_in_the_documents_has_options_that_exist(words: list[str], known_options: set[str]) -> None:
    used = {word.partition("=")[0] for word in words[1:] if word.startswith("-")}
    assert sorted(used - known_options) == []
    if "-k" in words:
        expression = words[words.index("-k") + 1]
        assert ("=" in expression) == bool(parse(expression).terms)


@pytest.fixture(scope="module")
def known_options(pytestconfig: pytest.Config) -> set[str]:
    """Every option of pytest, of pytest-xdist and of ours, long and short."""
    done = run_pytest("--help", cwd=pytestconfig.rootpath)
    listed = re.findall(r"(?<![\w-])(--?[a-zA-Z][\w-]*)", done.stdout)
    return {*listed, "-n", "--junitxml"}  # the latter is an unlisted spelling of --junit-xml


def test_the_documents_name_no_option_that_is_gone(known_options: set[str]) -> None:
    for path in DOCUMENTS:
        named = set(re.findall(r"--alchemy-[a-z-]*[a-z]", path.read_text()))
        assert sorted(named - known_options) == [], path.name


def test_make_has_the_targets_that_the_documents_name() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in [*DOCUMENTS, ROOT / "CONTRIBUTING.md"]:
        named = set(
            re.findall(r"(?:`|^ {4}(?:\$ )?)make ([a-z]+(?:-[a-z]+)*)", path.read_text(), re.MULTILINE)
        )
        assert sorted(named - targets) == [], path.name


def test_the_exit_codes_are_those_of_the_code() -> None:
    text = (ROOT / "docs/reference.md").read_text()
    assert re.findall(r"^\| (\d+) \|", text, re.MULTILINE) == [str(INFRASTRUCTURE), str(DETACHED)]
