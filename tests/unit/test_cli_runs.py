"""Which run is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

import alchemy_agent as agent
from pytest_alchemy.cli.runs import find_run
from pytest_alchemy.cli.trouble import Status, Trouble
from tests.support.agentlab import make_attempt
from tests.support.clilab import Program


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for run in ("scaling-train-lr=0.1-aaaa", "scaling-train-lr=0.12-bbbb", "digits-train-cccc", "digits"):
        make_attempt(tmp_path, run)
    (tmp_path / "jobs/.hidden").mkdir()
    (tmp_path / "jobs/file").touch()
    return tmp_path


def why(name: str, root: Path | None = None) -> Trouble:
    with pytest.raises(Trouble) as raised:
        find_run(name, root)
    assert raised.value.status == Status.NO_RUN
    return raised.value


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("scaling-train-lr=0.1-aaaa", "scaling-train-lr=0.1-aaaa"),
        ("scaling-train-lr=0.1-", "scaling-train-lr=0.1-aaaa"),
        ("bbbb", "scaling-train-lr=0.12-bbbb"),
        ("digits", "digits"),
        ("digits-", "digits-train-cccc"),
    ],
)
def test_an_id_or_a_part_that_only_one_has_names_a_run(root: Path, name: str, run: str) -> None:
    assert find_run(name, root).path == str(root / "jobs" / run)


def test_a_part_that_several_have_names_none(root: Path) -> None:
    trouble = why("scaling", root)
    assert str(trouble) == f"'scaling' fits 2 runs in {root}/jobs: write more of the id you mean"
    assert trouble.choices == ("scaling-train-lr=0.1-aaaa", "scaling-train-lr=0.12-bbbb")


def test_of_a_run_that_is_not_there_those_that_are_get_listed(root: Path) -> None:
    trouble = why("nothing", root)
    assert "has 'nothing' in its id" in str(trouble)
    assert len(trouble.choices) == 4


def test_of_many_runs_the_first_are_listed(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / "jobs" / f"run-{number:02}").mkdir(parents=True)
    choices = why("run", tmp_path).choices
    assert (choices[0], choices[-1], len(choices)) == ("run-00", "... and 30 more", 21)


def test_a_root_without_runs_says_so(tmp_path: Path) -> None:
    assert "can't be listed: No such file or directory" in str(why("x", tmp_path))
    (tmp_path / "jobs").mkdir()
    assert "no runs at all" in str(why("x", tmp_path))


def test_a_path_names_a_run_directory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / "jobs/digits"
    assert find_run(str(path), None).path == str(path)
    monkeypatch.chdir(path)
    assert find_run("./", None).name == "digits"
    (root / "link").symlink_to(path)
    assert find_run(str(root / "link"), None).name == "digits"


def test_a_path_to_something_else_is_refused(root: Path) -> None:
    assert "is no run directory" in str(why(str(root / "jobs")))
    assert "No such file or directory" in str(why(str(root / "gone")))
    assert "Not a directory" in str(why(str(root / "jobs/file")))


def test_the_root_is_the_nearest_above_unless_the_environment_names_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ALCHEMY_ROOT", raising=False)
    below = tmp_path / "project/src/deep"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    make_attempt(tmp_path / "project/.alchemy", "mine")
    make_attempt(tmp_path / "named", "another")
    assert find_run("mine", None).path == str(tmp_path / "project/.alchemy/jobs/mine")
    monkeypatch.setenv("ALCHEMY_ROOT", str(tmp_path / "named"))
    assert find_run("another", None).path == str(tmp_path / "named/jobs/another")
    assert find_run("mine", tmp_path / "project/.alchemy").name == "mine"


def test_without_any_root_the_error_says_how_to_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ALCHEMY_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert str(why("x")) == (
        f"there is no .alchemy in {tmp_path} or above it: name the run root by --root or ALCHEMY_ROOT"
    )


def test_a_run_that_cannot_be_read_is_no_traceback(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attempts = Path(agent.RunDir(root / "jobs/digits").attempts)
    attempts.rename(root / "elsewhere")
    attempts.touch()
    said = Program(root, capsys)("checkpoints", "digits")
    assert (said.status, said.out) == (Status.NO_RUN, "")
    assert said.err.startswith(f"alchemy: {attempts}: Not a directory")
