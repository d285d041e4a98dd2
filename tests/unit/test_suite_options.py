"""The options of this test suite: nothing is skipped in silence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ONE_CLUSTER_TEST = "tests/cluster/test_cluster_fixture.py::test_an_array_of_ten_runs_on_the_nodes"


def _run_without_slurm(plugins: Path, *arguments: str) -> str:
    """Run one cluster test as on a machine where nothing is installed, and return pytest's short summary."""
    (plugins / "nothing_installed.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.support import slurmcluster\n"
        "slurmcluster._PATH = '/nowhere'\n"
    )
    launch = f"import sys, pytest; sys.path.insert(0, {str(plugins)!r}); sys.exit(pytest.main(sys.argv[1:]))"
    pytest_arguments = ["-rsE", "-p", "no:cacheprovider", "-p", "nothing_installed", *arguments]
    command = [sys.executable, "-c", launch, *pytest_arguments, ONE_CLUSTER_TEST]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


def test_a_cluster_test_without_slurm_is_skipped_and_says_what_to_do(tmp_path: Path) -> None:
    summary = _run_without_slurm(tmp_path)
    assert "1 skipped" in summary
    assert "Slurm is not installed" in summary
    assert "`make test-deps` installs it" in summary


def test_such_a_skip_is_an_error_where_the_cluster_is_required(tmp_path: Path) -> None:
    summary = _run_without_slurm(tmp_path, "--require-cluster")
    assert "1 error" in summary
    assert "`make test-deps` installs it" in summary


@pytest.mark.parametrize(("arguments", "outcome"), [([], "skipped"), (["--run-long"], "passed")])
def test_long_tests_run_when_asked_for(pytester: pytest.Pytester, arguments: list[str], outcome: str) -> None:
    pytester.makeconftest((ROOT / "conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers = long")
    pytester.makepyfile("import pytest\n@pytest.mark.long\ndef test_long(): pass")
    pytester.runpytest_subprocess("-p", "no:randomly", *arguments).assert_outcomes(**{outcome: 1})
