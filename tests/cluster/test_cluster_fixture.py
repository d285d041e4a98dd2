"""The test cluster itself: quick, real, and gone without a trace."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import slurmcluster
from tests.support.slurmcluster import SlurmCluster, SlurmClusterError

if TYPE_CHECKING:
    from collections.abc import Callable


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _submit(cluster: SlurmCluster, *arguments: str) -> str:
    return cluster.run(["sbatch", "--parsable", *arguments]).stdout.strip()


def _wait_for_output(cluster: SlurmCluster, path: Path) -> None:
    slurmcluster.poll(path.exists, 30, cluster.logs)


def test_an_array_of_ten_runs_on_the_nodes(cluster: SlurmCluster, tmp_path: Path) -> None:
    _submit(cluster, "--array=0-9", f"--output={tmp_path}/%a", "--wrap", "echo $SLURMD_NODENAME")
    cluster.wait_until_empty()
    said = {path.name: path.read_text().strip() for path in tmp_path.iterdir()}
    assert sorted(said) == sorted(str(index) for index in range(10))
    assert set(said.values()) <= set(cluster.nodes)


def test_a_job_sees_the_gpus_it_was_given(cluster: SlurmCluster, tmp_path: Path) -> None:
    _submit(cluster, "--gpus-per-node=2", f"--output={tmp_path}/out", "--wrap", "echo $CUDA_VISIBLE_DEVICES")
    cluster.wait_until_empty()
    assert (tmp_path / "out").read_text().strip() == "0,1"


@pytest.mark.usefixtures("_slurm")
@pytest.mark.parametrize("namespace", [True, False], ids=["namespace", "no-namespace"])
def test_nothing_is_left_after_it_ends(
    namespace: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither daemons nor steps nor a job that hides from its session and ignores every signal it can."""
    if not namespace:
        monkeypatch.setattr(slurmcluster, "_unshare", tuple)
    with SlurmCluster() as cluster:
        stubborn = f"trap '' TERM HUP INT; setsid sleep 1000 & touch {tmp_path}/up; sleep 1000"
        _submit(cluster, "--output=/dev/null", "--wrap", stubborn)
        _wait_for_output(cluster, tmp_path / "up")
        processes = cluster.processes()
        commands = {Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] for pid in processes}
    assert {b"munged", b"slurmctld", b"slurmd", b"sleep"} <= commands
    assert [pid for pid in processes if _alive(pid)] == []
    assert not cluster.directory.exists()


@pytest.mark.usefixtures("_slurm")
def test_it_dies_with_the_process_that_made_it() -> None:
    """Even when that process gets no chance to clean up."""
    program = "import sys; from tests.support.slurmcluster import SlurmCluster as C\n"
    program += "with C() as c: print(c.directory, *c.processes(), flush=True); sys.stdin.read()"
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        directory, *numbers = owner.stdout.readline().split()
        processes = [int(pid) for pid in numbers]
        owner.send_signal(signal.SIGKILL)
    assert len(processes) > 4
    slurmcluster.poll(lambda: not any(map(_alive, processes)), 30, lambda: str(processes))
    assert not Path(directory).exists()


def test_two_at_once_do_not_meet(cluster: SlurmCluster, make_cluster: Callable[..., SlurmCluster]) -> None:
    other = make_cluster(nodes=1)
    job = _submit(other, "--hold", "--wrap", "true", "--output=/dev/null")
    assert other.run(["squeue", "--noheader", "--format=%i"]).stdout.split() == [job]
    assert cluster.run(["squeue", "--noheader", "--format=%i"]).stdout.split() == []


def test_the_controller_comes_back_with_its_jobs(make_cluster: Callable[..., SlurmCluster]) -> None:
    cluster = make_cluster(nodes=1)
    job = _submit(cluster, "--hold", "--wrap", "true", "--output=/dev/null")
    cluster.kill("slurmctld", signal.SIGTERM)
    cluster.start("slurmctld")
    cluster.wait_until_idle()
    assert cluster.run(["squeue", "--noheader", "--format=%i"]).stdout.split() == [job]


def test_an_extra_line_replaces_the_default(make_cluster: Callable[..., SlurmCluster]) -> None:
    cluster = make_cluster(nodes=1, extra=["KillWait=7", "PartitionName=second Nodes=ALL"], min_job_age=3)
    shown = cluster.run(["scontrol", "show", "config"]).stdout
    settings = {
        key.strip(): value.strip() for key, _, value in (line.partition("=") for line in shown.splitlines())
    }
    assert (settings["KillWait"], settings["MinJobAge"]) == ("7 sec", "3 sec")
    assert "second" in cluster.run(["sinfo", "--noheader", "--format=%P"]).stdout.split()


def test_a_bad_configuration_is_reported_in_slurms_words(make_cluster: Callable[..., SlurmCluster]) -> None:
    with pytest.raises(SlurmClusterError, match=r"(?s)slurmctld ended.*select/nonsense"):
        make_cluster(extra=["SelectType=select/nonsense"])


def test_a_refused_command_is_reported_in_slurms_words(cluster: SlurmCluster) -> None:
    with pytest.raises(SlurmClusterError, match="invalid partition specified: nowhere"):
        _submit(cluster, "--partition=nowhere", "--wrap", "true")
