"""A real NFS server and two clients of it, in namespaces of their own, for one command.

    python -m tests.support.nfs -- ls -l {first} {second}

Both names stand for paths where the same directory is mounted, by two clients that know nothing of each
other. When the command ends, servers, clients and mounts are gone with the namespaces. It needs root,
/dev/fuse, and what `why_not` names; no kernel support for NFS.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from ctypes.util import find_library
from pathlib import Path

from tests.support import nfsclient

__all__ = ["CACHE_S", "Servers", "command", "in_namespaces", "why_not"]

CACHE_S = 1.0
"""How long a client believes what it knows, in seconds."""
_PORTS = {"NFS_Port": 20490, "MNT_Port": 20491, "Rquota_Port": 20492, "NLM_Port": 20493}
_PATIENCE_S = 30.0
_CLIENTS = ("first", "second")
_NAMESPACES = ("--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL")
_CONFIGURATION = """
NFS_CORE_PARAM {{ Protocols = 3, 4; {ports} Enable_UDP = false; Enable_NLM = false; Enable_RQUOTA = false;
  Plugins_Dir = "{plugins}"; }}
NFSV4 {{ Graceless = true; RecoveryRoot = "{root}/recovery"; RecoveryBackend = fs; }}
EXPORT {{ Export_Id = 1; Path = "{root}/export"; Pseudo = "/export"; Access_Type = RW; SecType = sys;
  Squash = No_Root_Squash; Transports = TCP; Protocols = 3, 4; FSAL {{ Name = VFS; }} }}
NFS_KRB5 {{ Active_krb5 = false; }}
"""


def why_not() -> str:
    """Say what is missing on this machine, and how to install it; "" if nothing is."""
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK):
        return "a network file system of one's own needs root and /dev/fuse"
    programs = {"ganesha.nfsd": "nfs-ganesha nfs-ganesha-vfs", "rpcbind": "rpcbind", "ip": "iproute2"}
    missing = [package for program, package in programs.items() if shutil.which(program) is None]
    missing += [] if _plugins() else ["nfs-ganesha-vfs"]
    missing += [] if find_library("nfs") == nfsclient.LIBRARY else ["libnfs13"]
    missing += [] if find_library("fuse3") or find_library("fuse") else ["libfuse3-3 fuse3"]
    if missing:
        return f"apt-get install {' '.join(dict.fromkeys(missing))}"
    return "" if importlib.util.find_spec("mfusepy") else "pip install mfusepy"


def command(argv: Sequence[str]) -> list[str]:
    """Return what runs a command, in which `{first}` and `{second}` are replaced."""
    return [sys.executable, "-m", "tests.support.nfs", "--", *argv]


def in_namespaces(module: str, argv: Sequence[str]) -> int:
    """Run a module as the first process of namespaces; nothing started or mounted there outlives it."""
    return subprocess.run(["unshare", *_NAMESPACES, sys.executable, "-m", module, *argv]).returncode


def _plugins() -> Path | None:
    return next(Path("/usr/lib").glob("*/ganesha"), None)


def _main(argv: Sequence[str]) -> int:
    """Run as the first process of the namespaces."""
    if os.getpid() != 1:
        return in_namespaces("tests.support.nfs", ["--", *argv])
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        servers = Servers(root)
        try:
            _serve(servers)
            url = f"nfs://127.0.0.1{root}/export?nfsport={_PORTS['NFS_Port']}&mountport={_PORTS['MNT_Port']}"
            mounts = {name: _mount(servers, url, root / name) for name in _CLIENTS}
            return subprocess.run([word.format(**mounts) for word in argv]).returncode
        finally:
            servers.end()


class Servers:
    """Processes that run until the end."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, is_up: Callable[[], bool], program: str, *arguments: str) -> None:
        """Start one and wait until it is up."""
        path = self.root / f"{len(self._processes)}.log"
        with path.open("wb") as log:
            self._processes.append(subprocess.Popen([program, *arguments], stdout=log, stderr=log))
        end = time.monotonic() + _PATIENCE_S
        while not is_up():
            if time.monotonic() > end:
                said = path.read_text(errors="replace")[-2000:]
                raise RuntimeError(
                    f"{program} {' '.join(arguments)} is not up after {_PATIENCE_S:g} s: {said}"
                )
            time.sleep(0.02)

    def end(self) -> None:
        """Kill all, clients first."""
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        for line in Path("/proc/mounts").read_text().splitlines():
            mount = line.split()[1]
            if mount.startswith(f"{self.root}/"):
                subprocess.run(["umount", "--lazy", mount])


def _serve(servers: Servers) -> None:
    """Start the server and what it needs, out of sight of the machine's own."""
    root = servers.root
    for name in ("export", "recovery"):
        (root / name).mkdir()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "run", "/run"], check=True)
    for name in ("rpcbind", "sendsigs.omit.d"):
        Path("/run", name).mkdir()
    servers.start(Path("/run/rpcbind.sock").exists, "rpcbind", "-f", "-w")
    ports = " ".join(f"{name} = {number};" for name, number in _PORTS.items())
    configuration, log = root / "ganesha.conf", root / "ganesha.log"
    configuration.write_text(_CONFIGURATION.format(root=root, ports=ports, plugins=_plugins()))
    arguments = ("-F", "-f", str(configuration), "-L", str(log), "-p", str(root / "ganesha.pid"))
    servers.start(
        lambda: log.exists() and "NFS SERVER INITIALIZED" in log.read_text(), "ganesha.nfsd", *arguments
    )


def _mount(servers: Servers, url: str, mount: Path) -> str:
    mount.mkdir()
    arguments = ("-m", "tests.support.nfsclient", url, str(mount), str(CACHE_S))
    servers.start(mount.is_mount, sys.executable, *arguments)
    return str(mount)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[2:]))
