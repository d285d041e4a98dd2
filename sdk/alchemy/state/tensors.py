"""Tensors to a file and back: copied quickly, written while training goes on, loaded as data only.

A save has two halves. `Buffers.capture` runs on the thread that trains, and is what the training waits for:
it copies every tensor into memory that is kept between saves, since fresh memory costs several times the
copy. `write_state` then writes the copy from another thread, as a plain torch file: `torch.load` reads it.
"""

from __future__ import annotations

import errno
import importlib.util
import sys
import threading
from collections.abc import Callable
from typing import IO, Any, cast

from alchemy.errors import BrokenCheckpoint
from alchemy.state.copying import Pool, copied
from alchemy.state.torchform import Unsaveable, decode, encode

__all__ = ["Buffers", "Unsaveable", "check_saveable", "load_into", "read_state", "write_state"]

_SETTING = threading.Lock()
"""Held while torch's setting for checksums is not the user's."""


class Buffers:
    """The memory that one managed value is copied to, used again by the next capture.

    Until the copy has been written, or given up, nothing may be captured anew: the caller has one save in
    flight at most.
    """

    def __init__(self, name: str = "state") -> None:
        """Begin without memory.

        Args:
            name: The managed value's, for errors.
        """
        self._name = name
        self._pool = Pool()

    def capture(self, state: Any) -> Any:
        """Copy a state, after which the original may change; the copy lives until the next capture.

        Tensors that share memory share it in the copy too; of a large storage only what is looked at is
        copied. GPUs are waited for.

        Args:
            state: What a `state_dict()` returned.

        Raises:
            Unsaveable: It holds something that can't be saved; names it.
        """
        __tracebackhide__ = True
        tree = encode(state, self._name)
        return copied(tree, self._pool)


def check_saveable(state: Any, name: str = "state") -> None:
    """See whether a state can be saved, without copying its tensors.

    Raises:
        Unsaveable: It can't; names what and where.
    """
    __tracebackhide__ = True
    if "torch" not in sys.modules and importlib.util.find_spec("torch") is None:
        raise Unsaveable(f"{name} can't be saved: torch writes such files, and it isn't installed")
    encode(state, name)


def write_state(state: Any, sink: Any) -> None:
    """Write what `Buffers.capture` returned as a torch file.

    Args:
        state: The copy.
        sink: What has `write(bytes-like) -> int` and `flush()`.

    Raises:
        Exception: Whatever `sink` raised.
    """
    import torch

    setting = _NoChecksums()
    careful = _Careful(sink, begun=setting.put_back)
    try:
        torch.save(state, cast("IO[bytes]", careful))
    finally:
        setting.put_back()
    if careful.failure is not None:
        raise careful.failure


def read_state(path: str, *, mapped: bool) -> Any:
    """Load a state as data only; nothing in the file is imported or called. All tensors are on the CPU.

    Args:
        path: A file of `write_state` whose hash has been verified.
        mapped: Leave the tensors in the file, from which they are read when they are looked at. The file must
            not be changed as long as any of them lives; tensors that are written to don't change it.

    Raises:
        BrokenCheckpoint: It isn't such a file; names it.
        OSError: It can't be read.
    """
    tree = _loaded(path)
    return _decoded(tree if mapped else _owned(tree), path)


def load_into(value: Any, path: str) -> None:
    """Load a file's state into an object with `load_state_dict`.

    A module copies what it is given, so it is given tensors that are still in the file. Everything else may
    keep them (optimizers do), and so may a module with its extra state: these get memory of their own.

    Args:
        value: A module, an optimizer, or whatever else has `load_state_dict`.
        path: A file of `write_state` whose hash has been verified.

    Raises:
        BrokenCheckpoint: It isn't such a file; names it.
        OSError: It can't be read.
        Exception: Whatever `load_state_dict` raises, for example as the shapes have changed.
    """
    tree = _loaded(path)
    if isinstance(tree, dict) and _copies_what_it_loads(value):
        for key in tree:
            if str(key).endswith("_extra_state"):
                tree[key] = _owned(tree[key])
    else:
        tree = _owned(tree)
    value.load_state_dict(_decoded(tree, path))


def _loaded(path: str) -> Any:
    """Return a file's tree, from the mapped file where the file system can do that."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # noqa: BLE001, S110  what is wrong is found out by reading it
        pass
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except MemoryError:
        raise
    except Exception as error:
        # of a file that was cut, torch looks for the end before its beginning
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise _broken(path, error) from error


def _decoded(tree: Any, path: str) -> Any:
    try:
        return decode(tree)
    except Exception as error:
        raise _broken(path, error) from error


def _broken(path: str, error: Exception) -> BrokenCheckpoint:
    said = str(error).strip().partition("\n")[0]
    return BrokenCheckpoint(f"{path} can't be loaded as plain data: {type(error).__name__}: {said}")


def _owned(tree: Any) -> Any:
    """Copy a loaded tree's tensors out of the file: by several threads, while torch would read it by one."""
    return copied(tree, Pool())


def _copies_what_it_loads(value: Any) -> bool:
    """Tell whether a value keeps none of the tensors that it is given to load."""
    import torch

    if not isinstance(value, torch.nn.Module):
        return False
    for part in value.modules():
        if part._load_state_dict_pre_hooks:  # noqa: SLF001  they are given the tensors and could keep them
            return False
        for name in ("load_state_dict", "_load_from_state_dict"):
            if not getattr(part, name).__module__.startswith("torch.nn.modules."):
                return False
    return True


class _Careful:
    """Keeps an exception of the sink from torch's writer, which would end the process or lose it."""

    def __init__(self, sink: Any, begun: Callable[[], object]) -> None:
        """Take what is written to, and what to call once the writer is at work."""
        self._sink = sink
        self._begun = begun
        self.failure: BaseException | None = None

    def write(self, data: Any) -> int:
        self._begun()
        rest = memoryview(data).cast("B")
        size = len(rest)
        if self.failure is None:
            try:
                while rest:
                    rest = rest[self._sink.write(rest) :]
            except BaseException as error:  # noqa: BLE001  raised by write_state
                self.failure = error
        return size

    def flush(self) -> None:
        if self.failure is None:
            try:
                self._sink.flush()
            except BaseException as error:  # noqa: BLE001  raised by write_state
                self.failure = error


class _NoChecksums:
    """Has torch compute no CRC, which takes as long as the writing and is less than the manifest's SHA-256.

    The setting is the whole process's in some releases of torch, and the thread's in others; a writer looks
    at it when it is made. It is put back as soon as one writes: a file that the user saves in that instant
    may lack its checksums too, which `torch.load` doesn't look at.
    """

    def __init__(self) -> None:
        import torch

        _SETTING.acquire()
        self._before: bool | None = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)

    def put_back(self) -> None:
        """Give the user's setting back, once; for the thread that made this."""
        import torch

        if self._before is not None:
            torch.serialization.set_crc32_options(self._before)
            self._before = None
            _SETTING.release()
