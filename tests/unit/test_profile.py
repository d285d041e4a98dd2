"""A site's profile: read strictly, joined in one order, limits kept."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from alchemy.errors import ConfigurationError
from alchemy.resources import Resources
from pytest_alchemy.profile import PATIENCE, Profile, effective, load_profile
from pytest_alchemy.slurm.settings import Knobs

FULL = """
[tool.alchemy.clusters.alps]
root = "/scratch/me/runs"
python = "/opt/venv/bin/python"
setup = ["module purge", "module load cuda/12.4"]
options = ["--qos=high", "--exclusive"]
resources = { cpus = 4, time = "1:00:00" }
override = { partition = "gpu" }
limits = { gpus = 4, time = "1-00:00:00", mem = "64G" }
patience = { stall_s = 240, grace_s = 60.5 }
"""


def write(directory: Path, text: str) -> Path:
    (directory / "pyproject.toml").write_text(text, encoding="utf-8")
    return directory


def test_a_full_profile(tmp_path: Path) -> None:
    assert load_profile(write(tmp_path, FULL), "alps") == Profile(
        name="alps",
        root="/scratch/me/runs",
        python="/opt/venv/bin/python",
        setup=("module purge", "module load cuda/12.4"),
        options=("--qos=high", "--exclusive"),
        resources=Resources(cpus=4, time="1:00:00"),
        override=Resources(partition="gpu"),
        limits=Resources(gpus=4, time="1-00:00:00", mem="64G"),
        patience={"stall_s": 240.0, "grace_s": 60.5},
    )


def test_every_patience_is_one_that_the_backend_has() -> None:
    assert set(PATIENCE) <= {knob.name for knob in fields(Knobs)}


def test_without_a_name_nothing_is_read(tmp_path: Path) -> None:
    assert load_profile(tmp_path, None) == Profile()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FULL, "no cluster 'alpes'; did you mean 'alps'"),
        ("", "no cluster 'alpes'"),
        ("[tool.alchemy]\nclusters = 1", "must be a table"),
        ("[tool.alchemy.clusters]\nalpes = 1", "must be a table"),
        ("not toml", "can't be read"),
        ("[tool.alchemy.clusters.alpes]\nsetpu = []", "unknown key 'setpu'; did you mean 'setup'"),
        ("[tool.alchemy.clusters.alpes]\nsetup = 'module load x'", "setup must be a list of lines"),
        ('[tool.alchemy.clusters.alpes]\nsetup = ["a\\nb"]', "is not a line of text"),
        ("[tool.alchemy.clusters.alpes]\nroot = 3", "root: 3 is not a line of text"),
        ('[tool.alchemy.clusters.alpes]\noptions = ["--array=0-3"]', "pytest-alchemy sets it itself"),
        ("[tool.alchemy.clusters.alpes]\nresources = { gpu = 1 }", "did you mean 'gpus'"),
        ('[tool.alchemy.clusters.alpes]\nlimits = { partition = "x" }', "partition can't be limited"),
        (
            "[tool.alchemy.clusters.alpes]\npatience = { stall = 1 }",
            "unknown key 'stall'; did you mean 'stall_s'",
        ),
        ("[tool.alchemy.clusters.alpes]\npatience = { stall_s = '1m' }", "stall_s must be a positive number"),
        ("[tool.alchemy.clusters.alpes]\npatience = { stall_s = inf }", "stall_s must be a positive number"),
    ],
)
def test_what_can_not_be_meant_is_said(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_profile(write(tmp_path, text), "alpes")


def test_without_a_file_the_message_says_where_clusters_are_described(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"\[tool.alchemy.clusters.NAME\]"):
        load_profile(tmp_path, "alps")


def test_profile_then_experiment_then_override_then_command_line() -> None:
    profile = Profile(
        resources=Resources(cpus=1, gpus=1, mem="1G", time="1"),
        override=Resources(mem="3G", time="3"),
    )
    experiment = Resources(gpus=2, mem="2G", time="2")
    assert effective(profile, experiment, Resources(time="4")) == Resources(
        cpus=1, gpus=2, mem="3G", time="4"
    )


@pytest.mark.parametrize(
    ("limits", "wish"),
    [
        (Resources(gpus=4), Resources(gpus=8)),
        (Resources(mem="16G"), Resources(mem="16385")),
        (Resources(mem="1G"), Resources(mem="0")),
        (Resources(time="60"), Resources(time="1:00:01")),
        (Resources(time="60"), Resources(time="61:00")),
        (Resources(time="1-00:00:00"), Resources(time="24:00:01")),
        (Resources(time="1-00"), Resources(time="1-00:01")),
        (Resources(time="60"), Resources(time="UNLIMITED")),
    ],
)
def test_more_than_a_limit_is_an_error_that_names_both(limits: Resources, wish: Resources) -> None:
    with pytest.raises(ConfigurationError, match="is asked for, but cluster 'c' allows") as caught:
        effective(Profile(name="c", limits=limits), wish, Resources())
    (name, value), (_, limit) = *wish.given().items(), *limits.given().items()
    assert f"{name}={value}" in str(caught.value)
    assert f"{name}={limit}" in str(caught.value)


@pytest.mark.parametrize(
    ("limits", "wish"),
    [
        (Resources(gpus=4), Resources(gpus=4)),
        (Resources(mem="16G"), Resources(mem="16384M")),
        (Resources(mem="1T"), Resources(mem="1024G")),
        (Resources(time="1-00:00:00"), Resources(time="24:00:00")),
        (Resources(time="90"), Resources(time="1:30:00")),
        (Resources(time="UNLIMITED"), Resources(time="30-0")),
        (Resources(gpus=4), Resources()),
    ],
)
def test_up_to_a_limit_is_fine(limits: Resources, wish: Resources) -> None:
    assert effective(Profile(limits=limits), wish, Resources()) == wish


def test_the_command_line_is_limited_too() -> None:
    with pytest.raises(ConfigurationError, match="gpus=8"):
        effective(Profile(limits=Resources(gpus=4)), Resources(), Resources(gpus=8))
