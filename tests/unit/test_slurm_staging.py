"""Our code on its way to the nodes: complete, content-addressed, ready to run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pytest_alchemy.slurm.staging import sdk_digest, sdk_files, stage
from pytest_alchemy.transport import LocalTransport

ROOT = Path(__file__).parents[2]


def test_all_of_the_sdk_and_the_agent_travel() -> None:
    sdk = ROOT / "sdk"
    expected = {str(path.relative_to(sdk)) for path in sdk.rglob("*.py")} | {"alchemy_agent.py"}
    assert set(sdk_files()) == expected


def test_the_name_depends_on_every_name_and_byte() -> None:
    base = {"a": b"1", "b": b"2"}
    others = [
        {"a": b"1", "b": b"3"},
        {"a": b"1", "c": b"2"},
        {"a": b"1"},
        {"a": b"12", "b": b""},
        {"a": b"1b\x002"},
    ]
    assert len({sdk_digest(files) for files in [base, *others]}) == 6
    assert sdk_digest(dict(reversed(base.items()))) == sdk_digest(base)


def test_a_job_imports_the_staged_code_and_nothing_of_ours_besides(tmp_path: Path) -> None:
    directory = stage(LocalTransport(tmp_path), str(tmp_path))
    code = (
        "import alchemy, alchemy_agent, alchemy.job; print(alchemy.__file__); print(alchemy_agent.__cached__)"
    )
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environ, "PYTHONPATH": directory}, capture_output=True, text=True
    )
    files = done.stdout.splitlines()
    assert [Path(file).is_relative_to(directory) for file in files] == [True, True], done.stderr


def test_staging_again_touches_nothing(tmp_path: Path) -> None:
    transport = LocalTransport(tmp_path)
    directory = Path(stage(transport, str(tmp_path)))
    before = {path: path.stat().st_ctime_ns for path in directory.rglob("*")}
    assert stage(transport, str(tmp_path)) == str(directory)
    assert {path: path.stat().st_ctime_ns for path in directory.rglob("*")} == before


def test_compiled_files_are_used_as_they_are(tmp_path: Path) -> None:
    """A thousand jobs of an array must neither compile at once nor write into the shared directory."""
    directory = stage(LocalTransport(tmp_path), str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-v", "-c", "import alchemy_agent"],
        env={"PYTHONPATH": directory},
        capture_output=True,
        text=True,
    )
    assert f"# code object from '{directory}/__pycache__/alchemy_agent" in done.stderr
    assert f"# wrote '{directory}" not in done.stderr
