"""First process of a test cluster: starts the daemons, reaps every orphan, leaves only when nothing is left.

Run as a program, it reads one JSON request per line and answers each with the names of the daemons that live:
`{"start": NAME, "argv": [...], "log": PATH}`, `{"kill": NAME, "signal": N}`, `{}` (who lives?). The end of
its input is the order to leave, so the cluster dies with the process that made it, even by SIGKILL.

As the first process of a PID namespace its end is the end of everything inside: the kernel sees to that.
Where no namespace can be had it is the reaper of all its descendants and kills them itself before it goes.
Last it removes the cluster's directory, its only argument.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_REAP_S = 0.1


class Daemons:
    """The named daemons, by their process ids."""

    def __init__(self) -> None:
        self._pids: dict[str, int] = {}

    def serve(self, request: dict[str, Any]) -> list[str]:
        """Do what one request asks and return the names of the living."""
        if "start" in request:
            with Path(request["log"]).open("ab") as log:
                process = subprocess.Popen(
                    request["argv"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            process.returncode = 0  # reap() collects it, so Popen is to neither wait nor warn
            self._pids[request["start"]] = process.pid
        if "kill" in request:
            self._kill(request["kill"], request["signal"])
        self.reap()
        return sorted(self._pids)

    def reap(self) -> None:
        """Collect every child that has ended: daemons and adopted orphans alike."""
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                self._forget(pid)

    def _kill(self, name: str, number: int) -> None:
        pid = self._pids.get(name)
        if pid is None:
            return
        os.kill(pid, number)
        os.waitpid(pid, 0)
        self._forget(pid)

    def _forget(self, pid: int) -> None:
        self._pids = {name: known for name, known in self._pids.items() if known != pid}


def _children() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):  # gone meanwhile, or not a process
            status = (entry / "stat").read_text()
            if int(status.rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(entry.name))
    return found


def _kill_everything() -> None:
    # a killed parent leaves us its children, so this goes on until there are none
    while pids := _children():
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)


def main() -> None:
    """Serve until the input ends."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    daemons = Daemons()
    while True:
        daemons.reap()
        # one request at a time: the other side waits for its answer, so nothing hides in the buffer
        if select.select([sys.stdin], [], [], _REAP_S)[0]:
            line = sys.stdin.readline()
            if not line:
                break
            sys.stdout.write(json.dumps(daemons.serve(json.loads(line))) + "\n")
            sys.stdout.flush()
    _kill_everything()
    shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    main()
