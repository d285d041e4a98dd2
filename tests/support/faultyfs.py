"""A directory behind a file system that fails now and then, for one command.

    python -m tests.support.faultyfs --seed 1 'read EIO 0.01 /checkpoints/' -- ls -l {mount} {backing}

Both names stand for the same directory: `mount` fails as the rules say, `backing` never. A rule is an
operation of FUSE (`flush` is what close(2) waits for), an error, how likely it is, and a pattern for paths.
It needs root, /dev/fuse and what `why_not` names.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import importlib.util
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from ctypes.util import find_library
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.nfs import Servers, in_namespaces

__all__ = ["command", "why_not"]

_TIMES = ("atime", "mtime", "ctime")
_NUMBERS = ("ino", "mode", "nlink", "uid", "gid", "size", "blocks")


class Rule(NamedTuple):
    """What fails."""

    operation: str
    error: int
    chance: float
    path: re.Pattern[str]

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read `read EIO 0.01 /checkpoints/`."""
        operation, name, chance, path = text.split()
        return cls(operation, getattr(errno, name), float(chance), re.compile(path))


def why_not() -> str:
    """Say what is missing on this machine, and how to install it; "" if nothing is."""
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK):
        return "a file system of one's own needs root and /dev/fuse"
    if not (find_library("fuse3") or find_library("fuse")):
        return "apt-get install libfuse3-3 fuse3"
    return "" if importlib.util.find_spec("mfusepy") else "pip install mfusepy"


def command(rules: Sequence[str], seed: int, argv: Sequence[str]) -> list[str]:
    """Return what runs a command, in which `{mount}` and `{backing}` are replaced."""
    return [sys.executable, "-m", "tests.support.faultyfs", "--seed", str(seed), *rules, "--", *argv]


class Passthrough:
    """The operations of a file system, as mfusepy calls them."""

    use_ns = True

    def __init__(self, root: str, rules: Sequence[Rule], seed: int) -> None:
        self._root, self._rules = root, rules
        self._random, self._drawing = random.Random(seed), threading.Lock()  # noqa: S311

    def _at(self, operation: str, path: str) -> str:
        """Return the path behind, unless a rule wants an error now."""
        for rule in self._rules:
            if rule.operation == operation and rule.path.search(path):
                with self._drawing:
                    fails = self._random.random() < rule.chance
                if fails:
                    raise OSError(rule.error, os.strerror(rule.error))
        return self._root + path

    def getattr(self, path: str, *_: Any) -> dict[str, int]:
        found = os.lstat(self._at("getattr", path))
        times = {f"st_{name}": getattr(found, f"st_{name}_ns") for name in _TIMES}
        return {f"st_{name}": getattr(found, f"st_{name}") for name in _NUMBERS} | times

    def readdir(self, path: str, *_: Any) -> list[str]:
        return [".", "..", *os.listdir(self._at("readdir", path))]  # noqa: PTH208

    def open(self, path: str, flags: int) -> int:
        return os.open(self._at("open", path), flags)

    def create(self, path: str, mode: int, *_: Any) -> int:
        return os.open(self._at("create", path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self._at("read", path)
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._at("write", path)
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, *_: Any) -> int:
        os.truncate(self._at("truncate", path), length)
        return 0

    def flush(self, path: str, _fh: int) -> int:
        self._at("flush", path)
        return 0

    def release(self, _path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def fsync(self, path: str, _datasync: int, _fh: int) -> int:
        self._at("fsync", path)
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        Path(self._at("mkdir", path)).mkdir(mode)
        return 0

    def rmdir(self, path: str) -> int:
        Path(self._at("rmdir", path)).rmdir()
        return 0

    def unlink(self, path: str) -> int:
        Path(self._at("unlink", path)).unlink()
        return 0

    def rename(self, old: str, new: str, *_: Any) -> int:
        Path(self._at("rename", old)).rename(self._root + new)
        return 0

    def link(self, target: str, source: str) -> int:
        os.link(self._root + source, self._at("link", target))
        return 0

    def chmod(self, path: str, mode: int) -> int:
        Path(self._at("chmod", path)).chmod(mode)
        return 0

    def statfs(self, _path: str) -> dict[str, int]:
        found = os.statvfs(self._root)
        names = (
            "bsize",
            "frsize",
            "blocks",
            "bfree",
            "bavail",
            "files",
            "ffree",
            "favail",
            "flag",
            "namemax",
        )
        return {f"f_{name}": getattr(found, f"f_{name}") for name in names}


def _mount(argv: Sequence[str]) -> None:
    """Mount, and serve until the process is ended."""
    seed, backing, mount, *rules = argv
    operations = Passthrough(backing, [Rule.parse(rule) for rule in rules], int(seed))
    caches = {f"{what}_timeout": 0.0 for what in ("attr", "entry", "negative")}
    fuse = importlib.import_module("mfusepy")
    fuse.FUSE(operations, mount, foreground=True, default_permissions=True, fsname="faulty", **caches)


def _main(argv: Sequence[str]) -> int:
    split = argv.index("--")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("rules", nargs="*")
    options, ours = parser.parse_args(argv[:split]), argv[split + 1 :]
    if os.getpid() != 1:
        return in_namespaces("tests.support.faultyfs", argv)
    with tempfile.TemporaryDirectory() as scratch:
        servers = Servers(Path(scratch))
        mount, backing = servers.root / "mount", servers.root / "backing"
        mount.mkdir()
        backing.mkdir()
        serve = ("-m", "tests.support.faultyfs", "--serve", str(options.seed), str(backing), str(mount))
        try:
            servers.start(mount.is_mount, sys.executable, *serve, *options.rules)
            paths = {"mount": str(mount), "backing": str(backing)}
            return subprocess.run([word.format(**paths) for word in ours]).returncode
        finally:
            servers.end()


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        _mount(sys.argv[2:])
    else:
        sys.exit(_main(sys.argv[1:]))
