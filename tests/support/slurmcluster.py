"""A private, real Slurm cluster in a temp directory: munged, slurmctld and several slurmd on one machine.

    with SlurmCluster(nodes=3) as cluster:
        cluster.run(["sbatch", "--wrap", "hostname"])

It needs neither root nor systemd, touches nothing in /etc, and several can run side by side. It is up in a
fraction of a second, and when it is left no process and no file of it remains.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.slurmconf import default_settings, slurm_conf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from typing_extensions import Self

__all__ = ["SlurmCluster", "SlurmClusterError", "poll"]

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "scancel", "scontrol")
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_INIT = Path(__file__).with_name("cluster_init.py")
_DEVICES = (
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
)  # stand-ins for GPUs: Slurm wants device files
# what an outer Slurm job, or the user's own defaults for the clients, would smuggle in
_FOREIGN = re.compile("SLURM|SBATCH_|SQUEUE_|SCANCEL_|SINFO_|SCONTROL_|SRUN_|SALLOC_|SACCT_")
_NAMESPACE = ("--pid", "--fork", "--mount-proc", "--propagation", "slave", "--kill-child=KILL")


class SlurmClusterError(Exception):
    """The cluster, or a command on it, failed; the message has what the programs said."""


class SlurmCluster:
    """One cluster, up between `__enter__` and `__exit__`.

    Where the machine permits, it has a PID namespace of its own: a process id that a job reports is valid
    among the jobs of this cluster, not outside; files, network and host name are the machine's.

    Args:
        nodes: How many nodes; they are called node1, node2, ...
        cpus: CPUs that each node claims to have, whatever the machine has.
        memory: MB that each node claims to have.
        gpus: GPUs that each node claims to have, four at most; a job gets CUDA_VISIBLE_DEVICES and no more.
        min_job_age: Seconds after which Slurm forgets a job that has ended.
        extra: Further lines of slurm.conf; a line replaces the default that sets the same key.
        timeout: Seconds that start, and each client command, may take.
    """

    def __init__(
        self,
        *,
        nodes: int = 2,
        cpus: int = 32,
        memory: int = 4000,
        gpus: int = 0,
        min_job_age: int = 300,
        extra: Sequence[str] = (),
        timeout: float = 30.0,
    ) -> None:
        self.nodes = tuple(f"node{number}" for number in range(1, nodes + 1))
        self.env: dict[str, str] = {}
        """Environment in which Slurm's clients talk to this cluster."""
        self._node_line = f"CPUs={cpus} RealMemory={memory}" + (f" Gres=gpu:{gpus}" if gpus else "")
        self._devices = _DEVICES[:gpus]
        self._settings = {"MinJobAge": str(min_job_age)} | ({"GresTypes": "gpu"} if gpus else {})
        self._extra = tuple(extra)
        self._timeout = timeout
        self._exit = contextlib.ExitStack()

    @staticmethod
    def missing() -> tuple[str, ...]:
        """Return the programs a cluster needs and this machine does not have."""
        return tuple(program for program in _PROGRAMS if shutil.which(program, path=_PATH) is None)

    @classmethod
    def is_available(cls) -> bool:
        """Whether everything a cluster needs is installed."""
        return not cls.missing()

    def __enter__(self) -> Self:
        if missing := self.missing():
            raise SlurmClusterError(f"not installed: {', '.join(missing)}; `make test-deps` installs them")
        with self._exit:
            # Slurm's and munge's sockets live in it, so its name must be short, wherever TMPDIR points
            directory = tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp", ignore_cleanup_errors=True)
            self.directory = Path(self._exit.enter_context(directory))
            self.directory.chmod(0o755)  # other users' clients may come in; the key is private
            self._ports = [self._exit.enter_context(_reserved_port()) for _ in range(len(self.nodes) + 1)]
            self._write_configuration()
            self.env = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
            self.env |= {"SLURM_CONF": str(self.directory / "slurm.conf"), "PATH": _PATH}
            self._init = self._start_init()
            self._exit.callback(self._stop_init)
            self._start_daemons()
            self._exit = self._exit.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command against this cluster and return what it said.

        Args:
            argv: The command.
            check: Whether an exit status other than 0 is an error.
            cwd: Working directory; for sbatch also the job's.
            env: Variables besides those of the cluster.

        Raises:
            SlurmClusterError: The command failed (with `check`) or took longer than the cluster's timeout.
        """
        try:
            done = subprocess.run(
                argv,
                env={**self.env, **(env or {})},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=self._timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SlurmClusterError(f"{argv} took more than {self._timeout:g} s\n{self.logs()}") from None
        if check and done.returncode != 0:
            raise SlurmClusterError(
                f"{argv} ended with {done.returncode}: {done.stderr.strip()}\n{self.logs()}"
            )
        return done

    def wait_until_empty(self, timeout: float = 60.0) -> None:
        """Wait until no job is pending, running or completing.

        Raises:
            SlurmClusterError: Some are after `timeout` seconds; the message has the queue.
        """
        poll(
            lambda: not self.run(["squeue", "--noheader"]).stdout.strip(),
            timeout,
            lambda: self._describe("squeue"),
        )

    def start(self, daemon: str) -> None:
        """Start a daemon that `kill` has ended: slurmctld, munged or a node's name. Waits for nothing."""
        log = str(self.directory / f"{daemon}.out")
        self._ask({"start": daemon, "argv": self._commands()[daemon], "log": log})

    def kill(self, daemon: str, number: int = signal.SIGKILL) -> None:
        """End a daemon by a signal and return when it is gone; the jobs of a node live on, as in life."""
        self._ask({"kill": daemon, "signal": int(number)})

    def wait_until_idle(self, timeout: float | None = None) -> None:
        """Wait until the controller answers and every node is idle.

        Raises:
            SlurmClusterError: They aren't within `timeout` seconds, or a daemon ended; it has the logs.
        """
        poll(self._is_idle, timeout or self._timeout, lambda: self._describe("sinfo"))

    def processes(self) -> tuple[int, ...]:
        """Return the ids, as seen from outside, of all processes of this cluster: daemons, steps and jobs."""
        parents = _parents()
        found = [self._init.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return tuple(found)

    def logs(self, lines: int = 15) -> str:
        """Return the last lines of every daemon's log."""
        paths = sorted([*self.directory.glob("*.log"), *self.directory.glob("*.out")])
        tails = {path.name: path.read_text(errors="replace").splitlines()[-lines:] for path in paths}
        return "\n".join("\n".join([f"--- {name}", *tail]) for name, tail in tails.items() if tail)

    def _write_configuration(self) -> None:
        here = self.directory
        for name in ("munge", "state", "spool", *(f"spool/{node}" for node in self.nodes)):
            (here / name).mkdir()
        (here / "munge.key").write_bytes(secrets.token_bytes(128))
        (here / "munge.key").chmod(0o600)
        (here / "cgroup.conf").write_text("CgroupPlugin=disabled\n" if _version() >= (24, 5) else "")
        (here / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in self._devices))
        controller, *ports = self._ports
        settings = default_settings(here, controller) | self._settings
        nodes = dict(zip(self.nodes, ports, strict=True))
        (here / "slurm.conf").write_text(slurm_conf(settings, nodes, self._node_line, self._extra))

    def _commands(self) -> dict[str, list[str]]:
        here, configuration = self.directory, str(self.directory / "slurm.conf")
        munged = [
            "munged",
            "--foreground",
            "--force",
            f"--socket={here}/munge/socket",
            f"--key-file={here}/munge.key",
        ]
        munged += [
            f"--pid-file={here}/munged.pid",
            f"--log-file={here}/munged.log",
            f"--seed-file={here}/munge/seed",
        ]
        nodes = {node: ["slurmd", "-D", "-N", node, "-f", configuration] for node in self.nodes}
        return {"munged": munged, "slurmctld": ["slurmctld", "-D", "-f", configuration], **nodes}

    def _start_daemons(self) -> None:
        self.start("munged")
        self._wait_for("munged", (self.directory / "munge/socket").exists)
        self.start("slurmctld")
        # a node that starts before its controller listens tries again only a second later
        self._wait_for("slurmctld", lambda: _listens(self._ports[0]))
        for node in self.nodes:
            self.start(node)
        self.wait_until_idle()

    def _wait_for(self, daemon: str, condition: Callable[[], bool]) -> None:
        def ready() -> bool:
            self._check_alive(daemon)
            return condition()

        poll(ready, self._timeout, lambda: f"{daemon} is not ready\n{self.logs()}")

    def _is_idle(self) -> bool:
        self._check_alive(*self._commands())
        shown = self.run(["sinfo", "--noheader", "--Node", "--format=%N %T"], check=False).stdout
        return set(shown.splitlines()) == {f"{node} idle" for node in self.nodes}

    def _check_alive(self, *daemons: str) -> None:
        if dead := set(daemons) - set(self._ask({})):
            raise SlurmClusterError(f"{', '.join(sorted(dead))} ended\n{self.logs()}")

    def _describe(self, client: str) -> str:
        return f"{client}: {self.run([client], check=False).stdout}\n{self.logs()}"

    def _start_init(self) -> subprocess.Popen[str]:
        with (self.directory / "init.out").open("wb") as log:
            return subprocess.Popen(
                [*_unshare(), sys.executable, "-I", "-S", str(_INIT), str(self.directory)],
                env=self.env,
                cwd=self.directory,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                text=True,
            )

    def _stop_init(self) -> None:
        assert self._init.stdin is not None
        assert self._init.stdout is not None
        with contextlib.suppress(OSError):
            self._init.stdin.close()
        try:
            self._init.wait(self._timeout)
        except subprocess.TimeoutExpired:
            self._init.kill()
            self._init.wait()
        self._init.stdout.close()

    def _ask(self, request: dict[str, object]) -> list[str]:
        assert self._init.stdin is not None
        assert self._init.stdout is not None
        try:
            self._init.stdin.write(json.dumps(request) + "\n")
            self._init.stdin.flush()
            answer = self._init.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise SlurmClusterError(f"the cluster's first process ended\n{self.logs()}")
        living: list[str] = json.loads(answer)
        return living


@functools.cache
def _unshare() -> tuple[str, ...]:
    """Return what starts a command in a PID namespace of its own, nothing where that is not permitted."""
    user = () if os.geteuid() == 0 else ("--user", "--map-current-user")
    prefix = ("unshare", *user, *_NAMESPACE)
    try:
        permitted = (
            subprocess.run([*prefix, "true"], capture_output=True, timeout=10, check=False).returncode == 0
        )
    except (OSError, subprocess.TimeoutExpired):
        permitted = False
    return prefix if permitted else ()


@functools.cache
def _version() -> tuple[int, ...]:
    said = subprocess.run(
        ["slurmctld", "-V"], env={"PATH": _PATH}, capture_output=True, text=True, check=True
    )
    return tuple(int(number) for number in re.findall(r"\d+", said.stdout)[:2])


@contextlib.contextmanager
def _reserved_port() -> Iterator[int]:
    # Bound, not listening, with SO_REUSEADDR: the kernel offers the port to nobody else, Slurm may have it
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("0.0.0.0", 0))  # noqa: S104  slurmd listens on all addresses, so the port must be free on all
        port: int = holder.getsockname()[1]
        yield port


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def poll(condition: Callable[[], bool], timeout: float, describe: Callable[[], str]) -> None:
    """Wait until `condition` holds.

    Raises:
        SlurmClusterError: It doesn't within `timeout` seconds; the message is what `describe` returns.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise SlurmClusterError(f"gave up after {timeout:g} s\n{describe()}")
        time.sleep(0.03)


def _parents() -> dict[int, int]:
    """Return the parent of every process of this machine."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):  # gone meanwhile, or not a process
            stat = (entry / "stat").read_text()
            found[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    return found


if __name__ == "__main__":
    with SlurmCluster(gpus=2) as example:
        subprocess.run([os.environ.get("SHELL", "/bin/sh")], env=example.env, check=False)
