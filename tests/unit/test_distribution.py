"""What is installed: the three import packages, for the Pythons that we promise."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AGENT = ROOT / "agent/alchemy_agent.py"
OLDEST_FOR_AGENT = "3.8"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `pip install` builds and a release would ship."""
    directory = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, f"--wheel-dir={directory}", str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = directory.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the wheel holds, as on a machine without this source tree."""
    directory = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
    return directory


def test_every_module_is_in_the_wheel_and_nothing_else(installed: Path) -> None:
    shipped = {str(path.relative_to(installed)) for path in installed.rglob("*.py")}
    packages = [(ROOT, "pytest_alchemy"), (ROOT / "sdk", "alchemy")]
    sources = {str(path.relative_to(base)) for base, name in packages for path in (base / name).rglob("*.py")}
    assert shipped == sources | {"alchemy_agent.py"}


def test_type_checkers_see_our_types(installed: Path) -> None:
    assert (installed / "alchemy/py.typed").exists()
    assert (installed / "pytest_alchemy/py.typed").exists()


def test_an_installed_agent_runs_alone(installed: Path, tmp_path: Path) -> None:
    """Copied to a node without anything else, it still wraps a program and passes its exit code on."""
    alone = shutil.copy(installed / "alchemy_agent.py", tmp_path)
    program = [
        sys.executable,
        "-I",
        alone,
        f"--job-dir={tmp_path}/job",
        "--",
        sys.executable,
        "-c",
        "exit(7)",
    ]
    done = subprocess.run(program, cwd=tmp_path, env={"PATH": os.defpath}, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr


def test_pytest_finds_the_plugin() -> None:
    (found,) = entry_points(group="pytest11", name="alchemy")
    assert found.value == "pytest_alchemy.plugin"


def test_a_dispatcher_needs_no_torch() -> None:
    needed = [line for line in requires("pytest-alchemy") or [] if "extra ==" not in line]
    assert {re.split(r"[^\w-]", line)[0] for line in needed} >= {"pytest", "pluggy", "junitparser", "orjson"}
    assert [line for line in needed if line.startswith(("torch", "numpy", "scipy", "paramiko"))] == []


def test_the_agent_asks_for_no_newer_python_than_it_promises() -> None:
    target = f"--target={OLDEST_FOR_AGENT}-"
    vermin = [
        str(Path(sys.executable).with_name("vermin")),
        "--quiet",
        "--no-tips",
        "--violations",
        target,
        str(AGENT),
    ]
    done = subprocess.run(vermin, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", ["3.8", "3.9"])
def test_the_agent_runs_on_an_old_python(version: str, tmp_path: Path) -> None:
    """Where the machine has that Python."""
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "--version"], capture_output=True).returncode != 0:
        pytest.skip(f"there is no Python {version} here; the test with vermin covers its syntax")
    wrapped = [python, str(AGENT), f"--job-dir={tmp_path}/job", "--", "sh", "-c", "exit 7"]
    done = subprocess.run(wrapped, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
