"""One file on its way to the disk: what arrives is what was written, and what was hashed."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import stat
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alchemy.checkpoint.records import FileEntry
from alchemy.checkpoint.writing import Sink

MB = 1 << 20
FULL = Path("/dev/full")


def entry(data: bytes) -> FileEntry:
    return FileEntry(len(data), hashlib.sha256(data).hexdigest())


SIZES = [0, 1, 63, 256 << 10, MB - 1, MB, MB + 1, 3 * MB]


@given(st.lists(st.sampled_from(SIZES), max_size=8))
def test_pieces_of_any_size_arrive_in_order_and_are_hashed(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    pieces = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    path = tmp_path_factory.mktemp("sink") / "file"
    with Sink(path) as sink:
        assert [sink.write(piece) for piece in pieces] == sizes
        assert sink.tell() == sum(sizes)
        found = sink.finish()
    assert path.read_bytes() == b"".join(pieces)
    assert found == entry(b"".join(pieces))


def test_a_buffer_may_change_once_it_was_taken(tmp_path: Path) -> None:
    with Sink(tmp_path / "file") as sink:
        for size in (100, 2 * MB):
            buffer = bytearray(b"a" * size)
            sink.write(buffer)
            buffer[:] = b"z" * size
        assert sink.finish() == entry(b"a" * (100 + 2 * MB))


def test_buffers_of_wider_items_are_counted_in_bytes(tmp_path: Path) -> None:
    with Sink(tmp_path / "file") as sink:
        assert sink.write(array("d", [1.0, 2.0])) == 16
        assert sink.finish().size == 16


def test_pickle_writes_to_it(tmp_path: Path) -> None:
    with Sink(tmp_path / "file") as sink:
        pickle.dump({"a": b"x" * MB}, sink)
        sink.finish()
    assert pickle.loads((tmp_path / "file").read_bytes()) == {"a": b"x" * MB}  # noqa: S301


def test_torch_writes_to_it_and_reads_it_back(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = {"weight": torch.arange(500_000.0), "bias": torch.ones(3)}
    with Sink(tmp_path / "file") as sink:
        torch.save(state, sink)
        found = sink.finish()
    data = (tmp_path / "file").read_bytes()
    assert found == entry(data)
    loaded = torch.load(io.BytesIO(data), weights_only=True)
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_the_file_is_private_and_new(tmp_path: Path) -> None:
    with Sink(tmp_path / "file") as sink:
        sink.finish()
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        Sink(tmp_path / "file")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="link"):
        Sink(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


class FullSink(Sink):
    """A sink whose disk is full, for real: what it writes goes to /dev/full."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        fd = os.open(FULL, os.O_WRONLY)
        os.dup2(fd, self._fd)
        os.close(fd)


def test_an_error_names_the_file_and_comes_again(tmp_path: Path) -> None:
    with FullSink(tmp_path / "file") as sink:
        for call in (lambda: sink.write(b"x" * MB), lambda: sink.write(b"x"), sink.flush, sink.finish):
            with pytest.raises(OSError, match=r"No space left on device: .*file") as caught:
                call()
            assert caught.value.errno == errno.ENOSPC


def test_what_was_only_gathered_fails_at_the_end(tmp_path: Path) -> None:
    with FullSink(tmp_path / "file") as sink:
        sink.write(b"x")
        with pytest.raises(OSError, match="No space left"):
            sink.finish()


def test_what_a_library_makes_of_a_full_disk_is_said_plainly(tmp_path: Path) -> None:
    def save(sink: Sink) -> None:
        try:
            sink.write(b"x" * MB)
        except OSError:
            raise RuntimeError("enforce fail at inline_container.cc") from None

    with pytest.raises(OSError, match="No space left"), FullSink(tmp_path / "file") as sink:
        save(sink)


def test_an_error_of_the_caller_comes_through(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Sink(tmp_path / "file"):
        raise KeyError("mine")


def test_text_is_refused(tmp_path: Path) -> None:
    with Sink(tmp_path / "file") as sink, pytest.raises(TypeError):
        sink.write("text")
