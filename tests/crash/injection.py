"""Faults at the k-th file-system call of a program, by strace."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("commit.py")
CALLS = {
    *(
        "open",
        "openat",
        "creat",
        "read",
        "readv",
        "pread64",
        "write",
        "pwrite64",
        "fsync",
        "fdatasync",
        "close",
    ),
    *("rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir"),
    *("stat", "lstat", "fstat", "newfstatat", "statx", "access", "faccessat", "faccessat2", "getdents64"),
    *("fadvise64", "lseek", "ftruncate", "sync_file_range", "fchmod", "symlink", "symlinkat"),
}
"""What faults are injected into, as far as the program calls it on this machine."""
_LINE = re.compile(r"(?P<pid>\d+) +(?P<call>\w+)\((?P<rest>.*)")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a commit ended, as far as the program itself could tell."""

    ended: int
    said: list[str] = field(default_factory=list)
    trace: str = ""

    @property
    def committed(self) -> str:
        """The checkpoint it claims to have committed, empty if none."""
        return next((line.split()[1] for line in self.said if line.startswith("committed")), "")

    @property
    def failed(self) -> str:
        return next((line for line in self.said if line.startswith("failed")), "")

    @property
    def problems(self) -> list[str]:
        return [line for line in self.said if line.startswith("problem")]

    @property
    def injected(self) -> bool:
        return "(INJECTED" in self.trace or self.ended == -signal.SIGKILL


class Program:
    """The running `commit.py`; one commit at a time."""

    def __init__(self, scratch: Path, environment: dict[str, str] | None = None) -> None:
        self._trace = scratch / "trace"
        command = [sys.executable, "-S", "-I", PROGRAM, ROOT / "sdk", ROOT / "agent", scratch]
        self._process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        assert self._line() == "ready"

    def commit(self, run: Path, attempt: str, step: int, seq: int, strace: Sequence[str] = ()) -> Outcome:
        """Let a child commit, under strace with these options if there are any."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{run} {attempt} {step} {seq}\n")
        self._process.stdin.flush()
        pid = int(self._line().removeprefix("stopped "))
        with self._traced(pid, strace) if strace else contextlib.nullcontext():
            os.kill(pid, signal.SIGCONT)
            said = list(iter(self._line_until_end, ""))
        trace = self._trace.read_text(errors="replace") if strace else ""
        return Outcome(self._ended, said, trace)

    def close(self) -> None:
        """End the program."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    @contextlib.contextmanager
    def _traced(self, pid: int, options: Sequence[str]) -> Iterator[None]:
        command = ["strace", "-f", "-o", str(self._trace), *options, "-p", str(pid)]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert tracer.stderr is not None
        with tracer.stderr as said:
            first = said.readline()
            if "attached" not in first:
                os.kill(pid, signal.SIGKILL)
                tracer.kill()
                raise AssertionError(f"strace could not attach: {first}{said.read()}")
            yield
            said.read()
        tracer.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "commit.py ended"
        return line.rstrip("\n")

    def _line_until_end(self) -> str:
        line = self._line()
        if line.startswith("ended "):
            self._ended = int(line.removeprefix("ended "))
            return ""
        return line


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the traced program's first thread."""

    name: str
    k: int
    """It is the k-th of its name."""
    text: str
    """As strace shows it, with the paths of open files."""


def calls(outcome: Outcome) -> list[Call]:
    """Return the calls that count, in order."""
    lines = [match for match in map(_LINE.match, outcome.trace.splitlines()) if match]
    counts: collections.Counter[str] = collections.Counter()
    found = []
    for line in lines:
        if line["pid"] == lines[0]["pid"] and line["call"] in CALLS:
            counts[line["call"]] += 1
            found.append(Call(line["call"], counts[line["call"]], line["rest"]))
    return found


def trace_all() -> list[str]:
    """Return the strace options that show every call that counts."""
    return ["-y", "-e", "trace=" + ",".join(f"?{call}" for call in sorted(CALLS))]


def inject(call: str, fault: str, k: int) -> list[str]:
    """Return the strace options for `fault` (`signal=SIGKILL`, `error=EIO`) at the k-th `call`."""
    return ["-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={k}"]


def require_strace(config: pytest.Config) -> None:
    """Skip the test, or fail it under --require-cluster, where strace is missing or must not trace."""
    if reason := _why_not():
        if config.getoption("require_cluster"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def _why_not() -> str:
    if shutil.which("strace") is None:
        return "strace is not installed; `make test-deps` installs it"
    tried = subprocess.run(
        ["strace", "-o", "/dev/null", "-e", "trace=close", "true"], capture_output=True, text=True
    )
    return f"strace may not trace here: {tried.stderr.strip()}" if tried.returncode else ""
