"""Transport: the only place where commands run and bytes move.

`LocalTransport` is for a dispatcher on a machine that has Slurm's commands and the run root. The
protocol is what a transport over SSH will keep as well, so it speaks of absolute paths in text, whole
files and short commands, and every failure of it is a `TransportError`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import alchemy_agent
from alchemy.errors import InfrastructureError
from pytest_alchemy.root import check_writable, make_root

__all__ = ["Completed", "LocalTransport", "News", "Transport", "TransportError", "command_environment"]

News = Mapping[str, Mapping[str, Any]]
"""Run id to what is new in its directory (`alchemy_agent.Scanner`)."""

_NOT_FOUND = 127
"""What a shell, and therefore sshd, answers for a program that is not there."""
_KEPT = frozenset({"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"})
_SUBMITS_OTHERWISE = frozenset({"SBATCH_ARRAY_INX", "SBATCH_WAIT"})
_FORMATTING = ("SLURM_", "SQUEUE_", "SCANCEL_", "SCONTROL_")


class TransportError(InfrastructureError):
    """A file could not be moved, or the far side could not be reached."""


@dataclass(frozen=True, slots=True)
class Completed:
    """What a command left behind."""

    returncode: int | None
    """None: it was ended because it took too long; what it had printed is kept."""
    stdout: str
    stderr: str

    @property
    def words(self) -> str:
        """What it said went wrong, else what it said."""
        return self.stderr.strip() or self.stdout.strip()


class Transport(Protocol):
    """Runs commands and moves bytes, here or elsewhere. Methods may be called from several threads."""

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        """Run a command to its end; a program that is not there answers 127."""

    def exists(self, path: str) -> bool:
        """Tell whether something has this name."""

    def prepare(self, root: str) -> None:
        """Make the run root unless it is there, and make sure that it can be written."""

    def mkdir(self, path: str) -> None:
        """Make a private directory and its parents, unless they are there."""

    def put(self, path: str, data: bytes) -> None:
        """Write a whole file atomically and durably."""

    def create(self, path: str, record: Mapping[str, Any]) -> bool:
        """Write a JSON record if its name is free; False if somebody else's content has it."""

    def publish(self, directory: str, files: Mapping[str, bytes]) -> None:
        """Make a directory appear with all of these files at once; one that is there already is right."""

    def claim(self, run_directory: str, by: str) -> int:
        """Take the next submission number of a run."""

    def conclude(self, attempt_directory: str, reason: str, by: str, evidence: str) -> bool:
        """Speak the last word on an attempt; False if somebody else did."""

    def read_tail(self, path: str, limit: int) -> bytes:
        """Return the last `limit` bytes of a file, nothing if it can't be read."""

    def scan(self, runs: Sequence[str]) -> News:
        """Return what is new in these runs' directories since the last call."""


class LocalTransport:
    """Runs commands and reads files on this machine."""

    def __init__(self, root: Path, environ: Mapping[str, str] | None = None) -> None:
        """Watch the run root `root`; commands get `environ`, by default this process's, made neutral."""
        self._environ = dict(os.environ if environ is None else environ)
        self._scanner = alchemy_agent.Scanner(str(root))

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        """Run a command in a session of its own: Ctrl-C in the terminal must not kill an sbatch half way."""
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                env=command_environment(argv[0], self._environ),
                start_new_session=True,
                check=False,
            )
        except FileNotFoundError:
            return Completed(_NOT_FOUND, "", f"{argv[0]}: command not found")
        except subprocess.TimeoutExpired as late:
            return Completed(None, _text(late.stdout), _text(late.stderr))
        except OSError as error:
            raise TransportError(f"{argv[0]} can't be started: {error}") from error
        return Completed(done.returncode, _text(done.stdout), _text(done.stderr))

    def exists(self, path: str) -> bool:
        """Tell whether something has this name."""
        return os.path.lexists(path)

    def prepare(self, root: str) -> None:
        """Make the run root unless it is there, and make sure that it can be written."""
        with _translated(root):
            make_root(Path(root))
            check_writable(Path(root))

    def mkdir(self, path: str) -> None:
        """Make a private directory and its parents, unless they are there."""
        with _translated(path):
            alchemy_agent.make_directory(path)

    def put(self, path: str, data: bytes) -> None:
        """Write a whole file atomically and durably."""
        with _translated(path):
            alchemy_agent.write_bytes(path, data)

    def create(self, path: str, record: Mapping[str, Any]) -> bool:
        """Write a JSON record if its name is free; False if somebody else's content has it."""
        with _translated(path):
            return alchemy_agent.create_record(path, record)

    def publish(self, directory: str, files: Mapping[str, bytes]) -> None:
        """Build the directory beside its place and rename it; losing the race is success."""
        target = Path(directory)
        with _translated(directory):
            temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
            try:
                for name, data in files.items():
                    alchemy_agent.make_directory(str((temporary / name).parent))
                    alchemy_agent.write_bytes(temporary / name, data)
                temporary.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            _sync(target.parent)

    def claim(self, run_directory: str, by: str) -> int:
        """Take the next submission number of a run."""
        with _translated(run_directory):
            return alchemy_agent.next_claim(alchemy_agent.RunDir(run_directory), by)

    def conclude(self, attempt_directory: str, reason: str, by: str, evidence: str) -> bool:
        """Speak the last word on an attempt; False if somebody else did."""
        with _translated(attempt_directory):
            return alchemy_agent.conclude(alchemy_agent.AttemptDir(attempt_directory), reason, by, evidence)

    def read_tail(self, path: str, limit: int) -> bytes:
        """Return the last `limit` bytes of a file, nothing if it can't be read."""
        try:
            with Path(path).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - limit))
                return file.read(limit)
        except OSError:
            return b""

    def scan(self, runs: Sequence[str]) -> News:
        """Return what is new in these runs' directories since the last call."""
        with _translated("the run root"):
            return self._scanner.poll(runs)


def command_environment(program: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which a command of Slurm answers in the form we read.

    What formats or filters answers is taken out, and so is what a surrounding job (`salloc`) says about
    itself, which sbatch would hand on. sbatch keeps the user's language, since its job inherits it.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if name in _KEPT or not (name.startswith(_FORMATTING) or name in _SUBMITS_OTHERWISE)
    }
    if program != "sbatch":
        kept["LC_ALL"] = "C"
        kept["SLURM_BITSTR_LEN"] = "0"  # array expressions whole, not cut after 64 bytes
    return kept


def _text(data: bytes | str | None) -> str:
    return data if isinstance(data, str) else (data or b"").decode("utf-8", "replace")


@contextlib.contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TransportError(f"{path}: {error.strerror or error}") from error


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
