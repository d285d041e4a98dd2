"""Tensors copied into memory that is kept, as fast as the memory is: what a training waits for at a save."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeAlias

from alchemy.state.torchform import replace_tensors

__all__ = ["Pool", "copied"]

_LARGE = 128 << 10
"""Bytes; torch copies smaller tensors by one thread."""
_PIECE = 4 << 20
"""Bytes that one thread moves at a time."""
_WORTH_A_THREAD = 2
"""Pieces for each, at least; to start a thread takes about as long as to move one."""
_MOST_THREADS = 8
"""By which the memory is busy; and no more than torch was given."""

_Piece: TypeAlias = "tuple[int, int, int]"
"""To which address, from which, and how many bytes."""


class _View(NamedTuple):
    """What a tensor looks at within its storage; two tensors of the same view hold the same."""

    storage: int
    begin: int
    """In elements."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: Any
    resolved: bool
    """False: the values are negated or conjugated while they are read."""

    @classmethod
    def of(cls, tensor: Any) -> _View:
        shape, stride = tuple(tensor.shape), tensor.stride()
        resolved = not (tensor.is_conj() or tensor.is_neg())
        storage = tensor.untyped_storage().data_ptr()
        return cls(storage, tensor.storage_offset(), shape, stride, tensor.dtype, resolved)

    @property
    def end(self) -> int:
        return self.begin + 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))


class Pool:
    """Buffers by what fits into them: what the last capture used, the next one uses first."""

    def __init__(self) -> None:
        self._free: dict[object, list[Any]] = {}
        self._taken: dict[object, list[Any]] = {}

    @contextmanager
    def reused(self) -> Iterator[None]:
        """Have all buffers to take from; those not taken within the block are given up."""
        self._free, self._taken = self._taken, {}
        try:
            yield
        finally:
            self._free = {}

    def take(self, key: object, make: Callable[[], Any]) -> Any:
        """Return a buffer of this key; a new one if none is free."""
        free = self._free.get(key)
        buffer = free.pop() if free else make()
        self._taken.setdefault(key, []).append(buffer)
        return buffer


def copied(tree: Any, pool: Pool) -> Any:
    """Put copies in the place of a tree's tensors."""
    import torch

    originals: list[Any] = []

    def see(tensor: Any) -> Any:
        originals.append(tensor)
        return tensor

    replace_tensors(tree, see)
    # Whatever mode the caller is in: buffers made in inference mode could not be written to outside of it.
    with torch.inference_mode(False), torch.no_grad(), pool.reused():
        copier = _Copier(pool)
        copies = copier.copies(originals)
        copier.copy()
        return replace_tensors(tree, lambda tensor: copies[id(tensor)])


class _Copier:
    """Plans the copies of one capture, then makes them."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._work: list[tuple[Any, Any]] = []

    def copies(self, originals: Iterable[Any]) -> dict[int, Any]:
        """Return each tensor's copy, by the identity of the original; they hold nothing before `copy`."""
        import torch

        by_storage: dict[int, dict[_View, list[Any]]] = {}
        made: dict[int, Any] = {}
        for tensor in {id(tensor): tensor for tensor in originals}.values():
            if tensor.layout is not torch.strided or tensor.is_quantized:
                made[id(tensor)] = tensor.detach().clone().cpu()
                continue
            view = _View.of(tensor)
            # what has no elements shares nothing
            key = view.storage if tensor.numel() else -len(by_storage) - 1
            by_storage.setdefault(key, {}).setdefault(view, []).append(tensor)
        for views in by_storage.values():
            for cluster in _overlapping(views):
                made.update(self._cluster({view: views[view] for view in cluster}))
        return made

    def copy(self) -> None:
        """Make the copies, and wait until GPUs have sent theirs."""
        import torch

        pieces: deque[_Piece] = deque()
        for buffer, original in self._work:
            if not _large_and_alike(buffer, original):
                buffer.copy_(original, non_blocking=original.is_cuda)
                continue
            size = original.nbytes
            for begin in range(0, size, _PIECE):
                length = min(_PIECE, size - begin)
                pieces.append((buffer.data_ptr() + begin, original.data_ptr() + begin, length))
        _move(pieces, min(torch.get_num_threads(), _MOST_THREADS), keep=self._work)
        for device in {original.device for _, original in self._work if original.is_cuda}:
            torch.cuda.current_stream(device).synchronize()

    def _cluster(self, views: dict[_View, list[Any]]) -> dict[int, Any]:
        """Return copies of tensors of which each view touches another one."""
        made: dict[int, Any] = {}
        span = self._span(views) if len(views) > 1 else None
        for view, tensors in views.items():
            if span is None:
                copy = self._buffer(tensors[0])
            else:
                buffer, begin = span
                copy = buffer.as_strided(view.shape, view.stride, view.begin - begin)
            for tensor in tensors:
                made[id(tensor)] = _like(tensor, copy)
        return made

    def _span(self, views: dict[_View, list[Any]]) -> tuple[Any, int] | None:
        """Copy what several views cover in one piece, in which they share what they shared.

        A file can't hold two types for the same bytes; such views get a copy each.
        """
        if len({view.dtype for view in views}) > 1 or not all(view.resolved for view in views):
            return None
        begin, end = min(view.begin for view in views), max(view.end for view in views)
        tensor = next(iter(views.values()))[0]
        return self._buffer(tensor.detach().as_strided((end - begin,), (1,), begin)), begin

    def _buffer(self, original: Any) -> Any:
        pinned = original.is_cuda
        key = (original.dtype, original.shape, original.stride(), pinned)
        buffer = self._pool.take(key, lambda: _empty(original, pinned=pinned))
        self._work.append((buffer, original.detach()))
        return buffer


def _large_and_alike(buffer: Any, original: Any) -> bool:
    """Tell whether both lie in one piece and in the same order on the CPU, so that bytes can be moved."""
    # A buffer has no holes, so an original with the same strides has none.
    return (
        original.nbytes >= _LARGE
        and original.device.type == "cpu"
        and buffer.stride() == original.stride()
        and not (original.is_conj() or original.is_neg())
    )


def _move(pieces: deque[_Piece], threads: int, keep: object) -> None:
    """Move pieces of memory by several threads, each taking the next piece when it is done with one.

    torch would divide each tensor among its threads and wait for the last of them, which takes many times as
    long as soon as something else runs on one of the cores.

    Args:
        pieces: All of them.
        threads: How many, this one included.
        keep: What the memory belongs to.
    """
    import ctypes  # deferred: most processes never copy anything

    def work(_: object) -> None:
        with suppress(IndexError):  # none left
            while True:
                ctypes.memmove(*pieces.popleft())  # lets go of the interpreter

    helpers = [
        threading.Thread(target=work, args=(keep,), name="alchemy-copy", daemon=True)
        for _ in range(min(threads, len(pieces) // _WORTH_A_THREAD) - 1)
    ]
    started = []
    try:
        with suppress(RuntimeError):  # no thread to be had: this one does it
            for helper in helpers:
                helper.start()
                started.append(helper)
        work(keep)
    finally:
        pieces.clear()  # after a KeyboardInterrupt
        for helper in started:
            helper.join()


def _overlapping(views: Iterable[_View]) -> Iterator[list[_View]]:
    """Yield the views of one storage in groups that have no bytes in common."""
    group: list[_View] = []
    reached = 0
    for view in sorted(views, key=lambda view: view.begin * view.dtype.itemsize):
        if group and view.begin * view.dtype.itemsize >= reached:
            yield group
            group = []
        group.append(view)
        reached = max(reached, view.end * view.dtype.itemsize)
    yield group


def _empty(original: Any, *, pinned: bool) -> Any:
    """Return memory for a copy: in the original's order if that leaves no holes, else one after the other."""
    import torch

    order = torch.empty_like(original, device="meta").stride()
    return torch.empty_strided(original.shape, order, dtype=original.dtype, device="cpu", pin_memory=pinned)


def _like(original: Any, copy: Any) -> Any:
    """Return the copy as what the original is: a parameter or not, with gradient or not."""
    import torch

    copy = copy.detach()  # not the buffer itself, which stays without gradient
    if isinstance(original, torch.nn.Parameter):
        return torch.nn.Parameter(copy, requires_grad=original.requires_grad)
    return copy.requires_grad_(original.requires_grad)
