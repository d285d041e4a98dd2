"""A client of an NFS server as a mounted path, without the kernel's: FUSE in front of libnfs.

    python -m tests.support.nfsclient nfs://127.0.0.1/export?nfsport=20490&mountport=20491 MOUNT CACHE_S

Like the kernel's client it believes for a while (CACHE_S seconds) what it knows of names and sizes. It speaks
version 3 of the protocol; libnfs 4.0's version 4 can't write more than 2 kB at a time.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import sys
from ctypes import POINTER, byref, c_char_p, c_int, c_long, c_uint64, c_void_p
from typing import Any

__all__ = ["LIBRARY", "Client", "main"]

LIBRARY = "libnfs.so.13"
_CHUNK = 1 << 20
_ATTRIBUTES = (
    "dev ino mode nlink uid gid rdev size blksize blocks atime mtime ctime atime_ns mtime_ns ctime_ns used"
)
_FILESYSTEM = "bsize frsize blocks bfree bavail files ffree favail fsid flag namemax"


class _Stat(ctypes.Structure):
    _fields_ = [(name, c_uint64) for name in _ATTRIBUTES.split()]


class _StatVfs(ctypes.Structure):
    _fields_ = [(name, c_uint64) for name in _FILESYSTEM.split()]


class _Url(ctypes.Structure):
    _fields_ = [("server", c_char_p), ("path", c_char_p), ("file", c_char_p)]


class _Entry(ctypes.Structure):
    _fields_ = [("next", c_void_p), ("name", c_char_p), ("inode", c_uint64)]


class _Time(ctypes.Structure):
    _fields_ = [("s", c_long), ("us", c_long)]


_ARGUMENTS: dict[str, list[Any]] = {
    "parse_url_dir": [c_char_p],
    "mount": [c_char_p, c_char_p],
    "set_dircache": [c_int],
    "get_error": [],
    "lstat64": [c_char_p, POINTER(_Stat)],
    "open": [c_char_p, c_int, POINTER(c_void_p)],
    "create": [c_char_p, c_int, c_int, POINTER(c_void_p)],
    "close": [c_void_p],
    "pread": [c_void_p, c_uint64, c_uint64, c_char_p],
    "pwrite": [c_void_p, c_uint64, c_uint64, c_char_p],
    "fsync": [c_void_p],
    "truncate": [c_char_p, c_uint64],
    "mkdir2": [c_char_p, c_int],
    "rmdir": [c_char_p],
    "unlink": [c_char_p],
    "rename": [c_char_p, c_char_p],
    "link": [c_char_p, c_char_p],
    "chmod": [c_char_p, c_int],
    "utimes": [c_char_p, POINTER(_Time)],
    "opendir": [c_char_p, POINTER(c_void_p)],
    "readdir": [c_void_p],
    "closedir": [c_void_p],
    "statvfs64": [c_char_p, POINTER(_StatVfs)],
}
_RESULTS: dict[str, Any] = {"parse_url_dir": POINTER(_Url), "get_error": c_char_p, "readdir": POINTER(_Entry)}


class _Library:
    """One connection; not to be used by two threads."""

    def __init__(self, url: str) -> None:
        self._library = ctypes.CDLL(LIBRARY)
        self._library.nfs_init_context.restype = c_void_p
        self._context = self._library.nfs_init_context()
        for name, arguments in _ARGUMENTS.items():
            function = getattr(self._library, f"nfs_{name}")
            function.argtypes = [c_void_p, *arguments]
            function.restype = _RESULTS.get(name, c_int)
        parsed = self.ask("parse_url_dir", url.encode())
        if not parsed:
            raise OSError(errno.EINVAL, self._error())
        self.ask("set_dircache", 0)  # what is remembered, and how long, is FUSE's business
        self.call("mount", parsed.contents.server, parsed.contents.path)

    def ask(self, name: str, *arguments: Any) -> Any:
        """Call a function whose answer is no error code."""
        return getattr(self._library, f"nfs_{name}")(self._context, *arguments)

    def call(self, name: str, *arguments: Any) -> int:
        """Call a function; what is negative is raised as OSError."""
        answer = int(self.ask(name, *arguments))
        if answer < 0:
            raise OSError(-answer if answer != -1 else errno.EIO, f"{name}: {self._error()}")
        return answer

    def _error(self) -> str:
        return (self.ask("get_error") or b"").decode(errors="replace")


class Client:
    """The operations of a file system, as mfusepy calls them."""

    use_ns = True

    def __init__(self, url: str) -> None:
        self._url = url

    def init(self, *_: Any) -> None:
        self.nfs = _Library(self._url)  # here and not before, as mounting forks

    def getattr(self, path: str, *_: Any) -> dict[str, int]:
        stat = _Stat()
        self.nfs.call("lstat64", path.encode(), byref(stat))
        names = ("ino", "mode", "nlink", "uid", "gid", "size", "blocks")
        times = {
            f"st_{n}": getattr(stat, n) * 10**9 + getattr(stat, f"{n}_ns")
            for n in ("atime", "mtime", "ctime")
        }
        return {f"st_{name}": getattr(stat, name) for name in names} | times

    def readdir(self, path: str, *_: Any) -> list[str]:
        directory = c_void_p()
        self.nfs.call("opendir", path.encode(), byref(directory))
        names = []
        while entry := self.nfs.ask("readdir", directory):
            names.append(entry.contents.name.decode())
        self.nfs.ask("closedir", directory)
        return names

    def open(self, path: str, flags: int) -> int:
        handle = c_void_p()
        known = flags & (os.O_ACCMODE | os.O_APPEND | os.O_TRUNC | os.O_SYNC)
        self.nfs.call("open", path.encode(), known, byref(handle))
        return handle.value or 0

    def create(self, path: str, mode: int, *_: Any) -> int:
        # The kernel asks for this only where it knows of no such file; if another client has made one
        # meanwhile, whoever wants a new file must be told so.
        handle = c_void_p()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        self.nfs.call("create", path.encode(), flags, mode, byref(handle))
        return handle.value or 0

    def read(self, _path: str, size: int, offset: int, fh: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        count = self.nfs.call("pread", fh, offset, size, buffer)
        return buffer.raw[:count]

    def write(self, _path: str, data: bytes, offset: int, fh: int) -> int:
        written = 0
        while written < len(data):
            chunk = bytes(data[written : written + _CHUNK])
            written += self.nfs.call("pwrite", fh, offset + written, len(chunk), chunk)
        return written

    def fsync(self, _path: str, _datasync: int, fh: int) -> int:
        return self.nfs.call("fsync", fh)

    def truncate(self, path: str, length: int, *_: Any) -> int:
        return self.nfs.call("truncate", path.encode(), length)

    def release(self, _path: str, fh: int) -> int:
        return self.nfs.call("close", fh)

    def mkdir(self, path: str, mode: int) -> int:
        return self.nfs.call("mkdir2", path.encode(), mode)

    def rmdir(self, path: str) -> int:
        return self.nfs.call("rmdir", path.encode())

    def unlink(self, path: str) -> int:
        return self.nfs.call("unlink", path.encode())

    def rename(self, old: str, new: str, *_: Any) -> int:
        return self.nfs.call("rename", old.encode(), new.encode())

    def link(self, target: str, source: str) -> int:
        return self.nfs.call("link", source.encode(), target.encode())

    def chmod(self, path: str, mode: int) -> int:
        return self.nfs.call("chmod", path.encode(), mode & 0o7777)

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        both = (_Time * 2)(*(_Time(ns // 10**9, ns % 10**9 // 1000) for ns in times or (0, 0)))
        return self.nfs.call("utimes", path.encode(), both)

    def statfs(self, path: str) -> dict[str, int]:
        found = _StatVfs()
        self.nfs.call("statvfs64", path.encode(), byref(found))
        names = [name for name in _FILESYSTEM.split() if name != "fsid"]
        return {f"f_{name}": getattr(found, name) for name in names}


def main(argv: list[str]) -> None:
    """Mount, and serve until the process is ended."""
    url, mount, cache_s = argv
    fuse = importlib.import_module("mfusepy")
    caches = {f"{what}_timeout": float(cache_s) for what in ("attr", "entry", "negative")}
    fuse.FUSE(
        Client(url), mount, foreground=True, nothreads=True, default_permissions=True, fsname="nfs", **caches
    )


if __name__ == "__main__":
    main(sys.argv[1:])
