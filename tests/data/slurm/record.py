"""Record what a real Slurm answers to the commands we build: `python -m tests.data.slurm.record`.

Starts a private cluster (tests/support/slurmcluster.py), brings its jobs into the states of interest and
writes each answer to `<version>/<name>.json`. Run it again with another Slurm installed to add a version.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from alchemy.resources import Resources
from pytest_alchemy.slurm.squeue import JobId, list_jobs
from pytest_alchemy.slurm.submission import Submission, cancel_command, sbatch_command, script
from pytest_alchemy.transport import Completed, LocalTransport
from tests.support.slurmcluster import SlurmCluster

HERE = Path(__file__).parent
# what the jobs are told to be their interpreter
ENDS_AT_ONCE = "/bin/false"
NOT_THERE = "/nowhere/python"


class Recorder:
    """One cluster and the directory its answers go to."""

    def __init__(self, cluster: SlurmCluster, scratch: Path) -> None:
        self.cluster = cluster
        self.scratch = scratch
        self.transport = LocalTransport(scratch, cluster.env)
        version = self.ask("sbatch", "--version").stdout
        found = re.search(r"\d+\.\d+\.\d+", version)
        self.directory = HERE / (found[0] if found else version.strip())
        self.directory.mkdir(exist_ok=True)

    def ask(self, *argv: str) -> Completed:
        """Run a command the way the backend does."""
        return self.transport.run(argv, timeout_s=60)

    def keep(self, name: str, argv: Sequence[str]) -> Completed:
        """Run a command and keep its answer, free of this machine's paths."""
        answer = self.ask(*argv)
        record = {"returncode": answer.returncode, "stdout": answer.stdout, "stderr": answer.stderr}
        text = json.dumps({"program": argv[0], **record}, indent=1)
        for path in (self.scratch, self.cluster.directory):
            text = text.replace(str(path), "/scratch")
        (self.directory / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        return answer

    def submit(self, key: str, tasks: int, *, python: str | None = None, **wishes: object) -> list[str]:
        """Return the command that submits an array named `key`; without a `python` its tasks sleep."""
        directory = self.scratch / key
        directory.mkdir(exist_ok=True)
        (directory / "script.sh").write_bytes(script(() if python else ("exec sleep 600",)))
        resources = Resources.parse(wishes, "recorder")
        return sbatch_command(
            Submission(key, str(directory), tasks, 2, resources, (), python or ENDS_AT_ONCE, "/sdk")
        )

    def squeue(self, *keys: str) -> list[str]:
        """Return the command that lists these submissions."""
        return list_jobs(keys)


def main() -> None:
    """Record all answers."""
    with tempfile.TemporaryDirectory() as scratch, SlurmCluster(cpus=4) as cluster:
        recorder = Recorder(cluster, Path(scratch))
        refusals(recorder)
        job = JobId(recorder.keep("sbatch-accepted", recorder.submit("al-r-1", 6)).stdout.strip())
        recorder.keep("squeue-just-submitted", recorder.squeue("al-r-1"))
        cluster.run(["bash", "-c", "until squeue -h -t R -o x | grep -q x; do sleep 0.1; done"])
        recorder.keep("squeue-partly-running", recorder.squeue("al-r-1"))
        without_r = [option for option in recorder.squeue("al-r-1") if option != "--array"]
        recorder.keep("squeue-folded", without_r)
        recorder.keep("scancel-tasks", cancel_command(job, [3, 4]))
        recorder.keep("squeue-two-waiting-cancelled", recorder.squeue("al-r-1"))
        recorder.keep("scancel-waiting", cancel_command(job, None, pending_only=True))
        recorder.keep("squeue-all-waiting-cancelled", recorder.squeue("al-r-1"))
        recorder.keep("scancel-waiting-again", cancel_command(job, None, pending_only=True))
        recorder.ask(*recorder.submit("al-r-2", 2, python=ENDS_AT_ONCE))
        recorder.ask(*recorder.submit("al-r-3", 1, python=NOT_THERE))
        recorder.keep("scancel-job", cancel_command(job, None))
        cluster.wait_until_empty()
        recorder.keep("squeue-all-ended", recorder.squeue("al-r-1", "al-r-2", "al-r-3"))
        recorder.keep("squeue-nothing-of-that-name", recorder.squeue("al-r-99"))
        recorder.keep("scontrol-config", ["scontrol", "show", "config"])
        cluster.kill("slurmctld")
        recorder.keep("sbatch-no-controller", recorder.submit("al-r-4", 1))
        recorder.keep("squeue-no-controller", recorder.squeue("al-r-1"))


def refusals(recorder: Recorder) -> None:
    """Record the ways sbatch says no."""
    recorder.keep("sbatch-bad-partition", recorder.submit("al-r-0", 1, partition="nope"))
    recorder.keep("sbatch-too-much-memory", recorder.submit("al-r-0", 1, mem="9000G"))
    recorder.keep("sbatch-array-too-large", recorder.submit("al-r-0", 1002))
    command = recorder.submit("al-r-0", 1)
    recorder.keep("sbatch-unknown-option", [*command[:1], "--bogus=1", *command[1:]])
    recorder.keep("sbatch-bad-value", [*command[:1], "--time=soon", *command[1:]])


if __name__ == "__main__":
    main()
