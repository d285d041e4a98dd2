"""A state comes back from its file as it was captured, whatever happened to the original meanwhile."""

from __future__ import annotations

import enum
import errno
import io
import math
import os
import threading
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from alchemy.errors import BrokenCheckpoint, ConfigurationError
from alchemy.state.tensors import Buffers, Unsaveable, check_saveable, load_into, read_state, write_state
from tests.support.statehash import digest


def saved(state: Any, path: Path, buffers: Buffers | None = None) -> str:
    with path.open("wb") as file:
        write_state((buffers or Buffers()).capture(state), file)
    return str(path)


@pytest.fixture(params=[False, True], ids=["in memory", "mapped"])
def through_a_file(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Any]:
    def there_and_back(state: Any) -> Any:
        return read_state(saved(state, tmp_path / "state.pt"), mapped=request.param)

    return there_and_back


class Color(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


class Point(NamedTuple):
    x: int
    y: int


FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128]
FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
SIGNED = [torch.int8, torch.int16, torch.int32, torch.int64]
UNSIGNED = [torch.uint8, torch.uint16, torch.uint32, torch.uint64]
DTYPES = [*FLOATS, torch.complex32, *FLOAT8, torch.float8_e8m0fnu, *SIGNED, *UNSIGNED, torch.bool]


def of(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    width = dtype.itemsize
    raw = torch.arange(math.prod(shape) * width, dtype=torch.int64).remainder(
        2 if dtype is torch.bool else 251
    )
    return raw.to(torch.uint8).view(dtype).reshape(shape)


# ---------------------------------------------------------------- tensors


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5, 7)], ids=str)
def test_a_tensor_of_any_type_and_shape_comes_back_bit_for_bit(
    through_a_file: Callable[[Any], Any], dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensor = of(dtype, *shape)
    assert digest(through_a_file({"t": tensor})) == digest({"t": tensor})


def test_nan_and_the_sign_of_zero_survive(through_a_file: Callable[[Any], Any]) -> None:
    values = [float("nan"), -0.0, float("inf"), 5e-324]
    state = {"t": torch.tensor(values, dtype=torch.float64), "v": values}
    assert digest(through_a_file(state)) == digest(state)


def test_what_happens_to_the_original_after_the_capture_does_not_reach_the_copy() -> None:
    state: dict[str, Any] = {"t": torch.zeros(5), "list": [1, {"deep": torch.zeros(())}], "a": np.zeros(3)}
    before = digest(state)
    copy = Buffers().capture(state)
    state["t"].add_(1)
    state["list"][1]["deep"].add_(1)
    state["list"].append(2)
    state["a"] += 1
    assert digest(state) != before
    file = io.BytesIO()
    write_state(copy, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert loaded["t"].tolist() == [0] * 5
    assert loaded["list"] == [1, {"deep": torch.zeros(())}]
    assert not loaded["a"]["data"].any()


def test_a_second_capture_copies_into_the_memory_of_the_first() -> None:
    buffers = Buffers()
    state: dict[str, Any] = {
        "a": torch.randn(10, 10),
        "b": torch.randn(10, 10),
        "c": torch.randn(7),
        "n": np.zeros(4),
    }
    addresses = []
    for number in range(3):
        copy = buffers.capture({**state, "a": state["a"] + number})
        addresses.append({copy[name].data_ptr() for name in "abc"} | {copy["n"]["data"].data_ptr()})
        assert torch.equal(copy["a"], state["a"] + number)
    assert addresses[0] == addresses[1] == addresses[2]


def test_a_tensor_of_another_size_gets_memory_anew_and_the_others_keep_theirs() -> None:
    buffers = Buffers()
    same = torch.randn(10)
    first = buffers.capture({"same": same, "other": torch.randn(4)})["same"].data_ptr()
    second = buffers.capture({"new": torch.randn(3), "other": torch.randn(5), "same": same})
    assert second["same"].data_ptr() == first
    assert second["other"].shape == (5,)


def test_memory_that_a_capture_no_longer_needs_is_given_up() -> None:
    buffers = Buffers()
    buffers.capture([torch.zeros(100), torch.zeros(3)])
    buffers.capture([torch.zeros(3)])
    kept = [
        buffer
        for group in (buffers._pool._free, buffers._pool._taken)
        for part in group.values()
        for buffer in part
    ]
    assert [buffer.numel() for buffer in kept] == [3]


def test_buffers_work_on_after_a_state_that_can_not_be_saved() -> None:
    buffers = Buffers()
    with pytest.raises(Unsaveable):
        buffers.capture({"t": torch.ones(3), "f": print})
    assert buffers.capture({"t": torch.ones(3)})["t"].tolist() == [1, 1, 1]


def test_captures_within_and_outside_of_inference_mode_share_their_memory() -> None:
    buffers = Buffers()
    with torch.inference_mode():
        buffers.capture({"t": torch.ones(3)})
    copy = buffers.capture({"t": torch.zeros(3, requires_grad=True)})
    assert copy["t"].tolist() == [0, 0, 0]
    with torch.inference_mode():
        assert buffers.capture({"t": torch.ones(3)})["t"].tolist() == [1, 1, 1]


def test_tied_weights_are_written_once_and_stay_tied(
    through_a_file: Callable[[Any], Any], tmp_path: Path
) -> None:
    weight = torch.randn(100, 100)
    state = {"a": weight, "b": weight, "c": weight.detach(), "t": weight.t()}
    back = through_a_file(state)
    assert digest(back) == digest(state)
    assert len({tensor.untyped_storage().data_ptr() for tensor in back.values()}) == 1
    assert back["a"] is back["b"]
    assert (tmp_path / "state.pt").stat().st_size < 1.2 * weight.nbytes


def test_overlapping_views_share_what_they_shared(
    through_a_file: Callable[[Any], Any], tmp_path: Path
) -> None:
    base = torch.arange(100_000.0)
    state = {"whole": base[10:60], "part": base[50:70], "apart": base[90_000:90_005], "columns": base[4:14:3]}
    back = through_a_file(state)
    assert digest(back) == digest(state)
    back["whole"][40] = -1  # the fiftieth of base
    back["columns"][2] = -2
    assert back["part"][0] == -1
    assert back["whole"][0] == -2
    assert (tmp_path / "state.pt").stat().st_size < 10_000


def test_of_a_large_storage_only_what_is_looked_at_is_written(
    through_a_file: Callable[[Any], Any], tmp_path: Path
) -> None:
    base = torch.arange(1_000_000.0)
    grid = torch.arange(1_000_000.0).reshape(1000, 1000)[::500, ::500]
    state = {"row": base[500:600], "grid": grid, "one": base[7]}
    assert digest(through_a_file(state)) == digest(state)
    assert (tmp_path / "state.pt").stat().st_size < 10_000


def test_views_of_the_same_bytes_as_another_type_are_copied_apart(
    through_a_file: Callable[[Any], Any],
) -> None:
    complex_ = torch.randn(5, dtype=torch.complex64)
    state = {"c": complex_, "r": torch.view_as_real(complex_), "raw": complex_.view(torch.float32)}
    assert digest(through_a_file(state)) == digest(state)


def test_conjugated_and_negated_views_are_saved_by_their_values(through_a_file: Callable[[Any], Any]) -> None:
    tensor = torch.randn(5, dtype=torch.complex64)
    state = {"plain": tensor, "conj": tensor.conj(), "imag": tensor.conj().imag}
    back = through_a_file(state)
    assert digest(back) == digest(state)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(3, 4).t(),
        torch.randn(2, 3, 4).permute(2, 0, 1),
    ],
    ids=["channels last", "transposed", "permuted"],
)
def test_the_order_in_memory_is_kept(through_a_file: Callable[[Any], Any], tensor: torch.Tensor) -> None:
    back = through_a_file({"t": tensor})["t"]
    assert torch.equal(back, tensor)
    assert back.stride() == tensor.stride()


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_large_tensors_are_copied_whole_by_any_number_of_threads(threads: int, tmp_path: Path) -> None:
    numbers = torch.arange(2500 * 2001, dtype=torch.float64).reshape(
        2500, 2001
    )  # 40 MB, no multiple of a page
    complex_ = torch.randn(200_001, dtype=torch.complex64)
    state = {
        "whole": numbers,
        "turned": torch.randn(1500, 1501).t(),
        "channels last": torch.randn(8, 16, 65, 64).to(memory_format=torch.channels_last),
        "every other": torch.arange(3_000_001)[::2],
        "repeated": torch.arange(1000.0).expand(1001, 1000),
        "conjugated": complex_.conj(),
        "bytes": (torch.arange(1_000_003) % 251).to(torch.uint8),
        "array": np.arange(700_001, dtype=np.int16),
    }
    buffers = Buffers()
    for _ in range(2):
        numbers += 1
        path = saved(state, tmp_path / "large.pt", buffers)
        for mapped in (False, True):
            assert digest(read_state(path, mapped=mapped)) == digest(state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_lies_on_a_gpu_is_copied_to_memory_that_it_can_send_to_at_once() -> None:
    state = {"t": torch.arange(1000, device="cuda")}
    buffers = Buffers()
    for _ in range(2):
        state["t"] += 1
        copy = buffers.capture(state)["t"]
        assert copy.is_pinned()
        assert digest(copy) == digest(state["t"])


def test_an_expanded_tensor_is_saved_by_its_values(through_a_file: Callable[[Any], Any]) -> None:
    tensor = torch.tensor([[1.0], [2.0]]).expand(2, 1000)
    assert torch.equal(through_a_file([tensor])[0], tensor)


def test_parameters_stay_parameters_and_gradients_stay_wanted(through_a_file: Callable[[Any], Any]) -> None:
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    state = {
        "p": nn.Parameter(torch.ones(2)),
        "f": frozen,
        "t": torch.ones(2, requires_grad=True),
        "n": torch.ones(2),
    }
    back = through_a_file(state)
    assert [type(each) for each in back.values()] == [nn.Parameter, nn.Parameter, torch.Tensor, torch.Tensor]
    assert [each.requires_grad for each in back.values()] == [True, False, True, False]
    assert all(each.is_leaf for each in back.values())


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_tensors_come_back(through_a_file: Callable[[Any], Any]) -> None:
    dense = torch.eye(4)
    dense[0, 3] = 2
    state = {"coo": dense.to_sparse(), "csr": dense.to_sparse_csr(), "csc": dense.to_sparse_csc()}
    back = through_a_file(state)
    assert [each.layout for each in back.values()] == [each.layout for each in state.values()]
    assert all(torch.equal(each.to_dense(), dense) for each in back.values())


@pytest.mark.filterwarnings("ignore")
def test_quantized_tensors_come_back(through_a_file: Callable[[Any], Any]) -> None:
    tensor = torch.quantize_per_tensor(torch.randn(10), 0.1, 3, torch.qint8)
    back = through_a_file({"q": tensor})["q"]
    assert torch.equal(back.int_repr(), tensor.int_repr())
    assert (back.q_scale(), back.q_zero_point()) == (tensor.q_scale(), tensor.q_zero_point())


# ---------------------------------------------------------------- everything else


PLAIN: dict[str, Any] = {
    "numbers": [0, -1, 2**31, 2**63, -(2**200), True, 0.1, float("inf"), 1 + 2j, None],
    "texts": ["", "ü\ud800", "\x00", b"", b"\x00\xff", bytearray(b""), bytearray(b"ab")],
    "containers": [[], (), {}, set(), frozenset(), ((),), [[[]]], {1, "a", (2, b"c")}, frozenset({3})],
    "keys": {1: "a", "1": "b", (2, "x"): "c", None: "d", 0.5: "e", b"k": "f", True and 7: "g"},
    "ordered": OrderedDict([("b", 1), ("a", torch.ones(1))]),
    "counter": Counter("abracadabra"),
    "defaults": defaultdict(list, {"a": [1]}),
    "no default": defaultdict(None, {"a": 1}),
    "deque": deque([1, torch.ones(2)], maxlen=3),
    "a tag of ours": {"__alchemy__": "frozenset", "items": {"__alchemy__": 1}},
    "torch's": [torch.float32, torch.device("cpu"), torch.Size([1, 2]), torch.ones(())],
    "np scalars": [
        np.float64(0.1),
        np.float32(0.1),
        np.int8(-3),
        np.bool_(True),
        np.complex64(1j),
        np.str_("é"),
    ],
    "np odd": [
        np.str_(""),
        np.bytes_(b"x"),
        np.datetime64("2020-01-01"),
        np.timedelta64(3, "s"),
        np.longdouble(1) / 3,
    ],
    "arrays": [np.arange(6.0).reshape(2, 3), np.zeros(()), np.zeros((0, 4), "i2"), np.array(["a", "bcd"])],
    "big endian": np.arange(4, dtype=">u4"),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "strided": np.arange(10)[::3],
    "np keys": {np.int64(3): "three"},
}


def same(a: Any, b: Any) -> bool:
    """Tell whether two values are alike in type too, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return (
            list(a) == list(b)
            and all(same(a[k], b[k]) for k in a)
            and getattr(a, "default_factory", 0) == getattr(b, "default_factory", 0)
        )
    if isinstance(a, (list, tuple, deque)):
        return (
            len(a) == len(b) and all(map(same, a, b)) and getattr(a, "maxlen", 0) == getattr(b, "maxlen", 0)
        )
    if isinstance(a, torch.Tensor):
        return digest(a) == digest(b)
    if isinstance(a, (np.ndarray, np.generic)):
        return digest(a) == digest(b) and a.flags.fnc == b.flags.fnc
    return bool(a == b)


@pytest.mark.parametrize("what", PLAIN)
def test_plain_data_comes_back_with_its_types(through_a_file: Callable[[Any], Any], what: str) -> None:
    assert same(through_a_file(PLAIN[what]), PLAIN[what])
    assert same(through_a_file({"deep": [(PLAIN[what],)]}), {"deep": [(PLAIN[what],)]})


def test_what_was_one_object_in_two_places_is_one_afterwards(through_a_file: Callable[[Any], Any]) -> None:
    shared: list[int] = [1]
    tagged = defaultdict(int, a=1)
    back = through_a_file({"a": shared, "b": [shared], "c": tagged, "d": (tagged,)})
    assert back["a"] is back["b"][0]
    assert back["c"] is back["d"][0]


def test_arrays_that_come_back_can_be_written_to(through_a_file: Callable[[Any], Any]) -> None:
    array = np.arange(3)
    array.flags.writeable = False
    back = through_a_file([array])[0]
    back += 1
    assert back.tolist() == [1, 2, 3]


def test_the_versions_in_a_modules_state_are_kept(through_a_file: Callable[[Any], Any]) -> None:
    state: Any = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).state_dict()
    back: Any = through_a_file(state)
    assert type(back) is OrderedDict
    assert vars(back)["_metadata"] == vars(state)["_metadata"]
    assert vars(back)["_metadata"]["1"] == {"version": 2}


def loops() -> list[Any]:
    loop: list[Any] = []
    loop.append({"again": loop})
    return loop


REFUSED: dict[str, tuple[Any, str]] = {
    "function": ({"state": {0: {"fn": print}}}, r"optimizer\.state\.0\.fn .*builtin_function_or_method"),
    "lambda in a list": ({"fs": [1, lambda: 0]}, r"optimizer\.fs\.1 .*function"),
    "enum": ({"color": Color.RED}, r"optimizer\.color .*Color"),
    "subclass of str": ([Text("a")], r"optimizer\.0 .*Text"),
    "namedtuple": ({"p": Point(1, 2)}, r"optimizer\.p .*Point"),
    "module": ({"m": nn.Linear(1, 1)}, r"optimizer\.m .*torch\.nn\.modules\.linear\.Linear"),
    "generator": ({"g": torch.Generator()}, r"optimizer\.g .*torch\._C\.Generator"),
    "odd default": (defaultdict(lambda: 0), r"optimizer can't .*defaultdict"),
    "array of objects": ({"a": np.array([{}])}, r"optimizer\.a .*dtype object"),
    "structured array": ({"a": np.zeros(2, "i4,f8")}, r"optimizer\.a .*dtype \["),
    "masked array": ({"a": np.ma.array([1])}, r"optimizer\.a .*MaskedArray"),
    "key": ({"a": {Color.RED: 1}}, r"optimizer\.a .*Color"),
    "element": ({"a": {frozenset()}}, r"optimizer\.a .*frozenset"),
    "itself": (loops(), r"optimizer\.0\.again .*contains itself"),
    "huge int": ({"n": 1 << 5000}, r"optimizer\.n .*5001 bits"),
    "meta": ({"t": torch.ones(2, device="meta")}, r"optimizer\.t .*without data"),
    "uninitialized": ({"t": nn.parameter.UninitializedParameter()}, r"optimizer\.t .*UninitializedParameter"),
    "attribute": (lambda: 0, r"optimizer can't be saved: it is of the type function"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_can_not_be_saved_is_refused_by_its_path(what: str) -> None:
    state, said = REFUSED[what]
    with pytest.raises(Unsaveable, match=said):
        check_saveable(state, "optimizer")
    with pytest.raises(ConfigurationError, match=said):
        Buffers("optimizer").capture(state)


def test_a_state_nested_without_end_is_refused() -> None:
    state: list[Any] = []
    for _ in range(100_000):
        state = [state]
    with pytest.raises(Unsaveable, match="nested too deeply"):
        check_saveable(state)
    while state:  # the interpreter's own way of letting go of it may recurse
        state = state.pop()


# ---------------------------------------------------------------- files


def test_a_file_is_a_plain_torch_file(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    path = saved(model.state_dict(), tmp_path / "model.pt")
    nn.Linear(3, 2).load_state_dict(torch.load(path, weights_only=True))
    assert digest(torch.load(path, weights_only=True, mmap=True)) == digest(model)


def test_the_bytes_depend_on_the_state_alone(tmp_path: Path) -> None:
    state = {"t": torch.arange(5), "n": 1}
    assert (
        Path(saved(state, tmp_path / "a.pt")).read_bytes() == Path(saved(state, tmp_path / "b")).read_bytes()
    )


@pytest.mark.parametrize("wanted", [True, False])
def test_the_users_setting_for_checksums_is_left_as_it_was(tmp_path: Path, wanted: bool) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(wanted)
    try:
        saved({"t": torch.ones(3)}, tmp_path / "x.pt")
        with pytest.raises(OSError, match="full"):
            write_state(Buffers().capture({"t": torch.ones(3)}), FullDisk(10))
        assert torch.serialization.get_crc32_options() is wanted
    finally:
        torch.serialization.set_crc32_options(before)


class FullDisk(io.RawIOBase):
    """Takes a number of bytes, of each piece at most a few, then has no room."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.data = b""

    def write(self, data: Any) -> int:
        if len(self.data) >= self.room:
            raise OSError(errno.ENOSPC, "the disk is full")
        taken = bytes(memoryview(data)[:1000])
        self.data += taken
        return len(taken)


@pytest.mark.parametrize("room", [0, 1, 500, 3000, 50_000, 80_000])
def test_an_error_of_the_disk_is_raised_as_it_was(room: int) -> None:
    state = Buffers().capture({str(i): torch.ones(100) for i in range(200)})
    with pytest.raises(OSError, match="the disk is full") as caught:
        write_state(state, FullDisk(room))
    assert caught.value.errno == errno.ENOSPC


def test_a_sink_may_take_less_than_it_is_given() -> None:
    sink = FullDisk(10**9)
    write_state(Buffers().capture({"t": torch.arange(10_000)}), sink)
    assert torch.equal(torch.load(io.BytesIO(sink.data), weights_only=True)["t"], torch.arange(10_000))


def test_two_threads_can_write_at_once(tmp_path: Path) -> None:
    states = [{"t": torch.full((1000,), float(i))} for i in range(4)]
    threads = [threading.Thread(target=saved, args=(s, tmp_path / f"{i}.pt")) for i, s in enumerate(states)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, state in enumerate(states):
        assert digest(read_state(str(tmp_path / f"{i}.pt"), mapped=False)) == digest(state)


class Canary:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


BROKEN: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no torch file"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "only its head": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "a program": lambda path: torch.save({"t": Canary(str(path) + ".canary")}, path),
    "an old file with a program": lambda path: torch.save(
        {"t": Canary(str(path) + ".canary")}, path, _use_new_zipfile_serialization=False
    ),
    "a module": lambda path: torch.save(nn.Linear(1, 1), path),
    "an unknown tag": lambda path: torch.save({"__alchemy__": "surprise"}, path),
    "a damaged tag": lambda path: torch.save({"__alchemy__": "numpy.ndarray", "dtype": "<f8"}, path),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_file_of_something_else_is_refused_by_its_name(tmp_path: Path, what: str) -> None:
    path = tmp_path / "optimizer.pt"
    saved({"t": torch.ones(1000)}, path)
    BROKEN[what](path)
    for load in (
        lambda: read_state(str(path), mapped=True),
        lambda: read_state(str(path), mapped=False),
        lambda: load_into(nn.Linear(1, 1), str(path)),
    ):
        with pytest.raises(BrokenCheckpoint, match=r"optimizer\.pt can't be loaded as plain data: .+"):
            load()
    assert not Path(str(path) + ".canary").exists()


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_state(str(tmp_path / "none.pt"), mapped=True)


def test_writing_to_mapped_tensors_changes_no_file(tmp_path: Path) -> None:
    path = saved({"t": torch.zeros(1000)}, tmp_path / "x.pt")
    before = Path(path).read_bytes()
    read_state(path, mapped=True)["t"].add_(1)
    assert Path(path).read_bytes() == before


def test_what_is_read_into_memory_survives_the_files_change(tmp_path: Path) -> None:
    path = saved({"t": torch.zeros(1000)}, tmp_path / "x.pt")
    state = read_state(path, mapped=False)
    with Path(path).open("r+b") as file:
        file.write(b"\xff" * Path(path).stat().st_size)
    assert not state["t"].any()


# ---------------------------------------------------------------- what torch's objects hold


def mapped_files() -> list[str]:
    return [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".pt" in line]


class Extra(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(50, 50)
        self.extra = torch.zeros(50)

    def get_extra_state(self) -> dict[str, Any]:
        return {"extra": self.extra}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.extra = state["extra"]


class Keeper(nn.Linear):
    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        self.kept = state_dict[prefix + "weight"]
        super()._load_from_state_dict(state_dict, prefix, *args)


def keep_weight(module: Any, state: dict[str, Any], *_: Any) -> None:
    module.kept = state["weight"]


def hooked() -> nn.Module:
    module: Any = nn.Linear(9, 9)
    module.register_load_state_dict_pre_hook(keep_weight)
    made: nn.Module = module
    return made


class Average:
    """An EMA as people write it: keeps what it is given."""

    def __init__(self) -> None:
        self.shadow = {"w": torch.zeros(100)}

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.shadow = state["shadow"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.LSTM(4, 4)),
        lambda: nn.TransformerEncoderLayer(16, 2),
        lambda: torch.optim.swa_utils.AveragedModel(nn.Linear(3, 3)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
        Extra,
        lambda: Keeper(9, 9),
        hooked,
        Average,
        lambda: torch.amp.GradScaler("cpu"),
    ],
    ids=[
        "network",
        "transformer",
        "averaged",
        "weight norm",
        "extra state",
        "own loading",
        "hooked",
        "EMA",
        "scaler",
    ],
)
def test_a_loaded_object_is_as_the_saved_one_and_keeps_nothing_in_the_file(
    tmp_path: Path, make: Callable[[], Any]
) -> None:
    torch.manual_seed(1)
    value, other = make(), make()
    for tensor in (value.state_dict() if isinstance(value, nn.Module) else {}).values():
        if isinstance(tensor, torch.Tensor):
            tensor.add_(1)
    path = saved(value.state_dict(), tmp_path / "value.pt")
    load_into(other, path)
    assert digest(other) == digest(value)
    assert path not in mapped_files()


def test_a_modules_tensors_stay_the_same_objects(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    identities = [id(p) for p in model.parameters()], [p.data_ptr() for p in model.parameters()]
    load_into(model, saved(nn.Linear(3, 3).state_dict(), tmp_path / "m.pt"))
    assert identities == ([id(p) for p in model.parameters()], [p.data_ptr() for p in model.parameters()])


OPTIMIZERS = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type)
    and issubclass(kind, torch.optim.Optimizer)
    and kind is not torch.optim.Optimizer
}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "SGD": [{}, {"momentum": 0.9, "nesterov": True}],
    "Adam": [{}, {"amsgrad": True}, {"lr": torch.tensor(0.01)}, {"fused": True}, {"foreach": True}],
    "RMSprop": [{}, {"momentum": 0.9, "centered": True}],
    "LBFGS": [{}, {"line_search_fn": "strong_wolfe"}],
}


class Training:
    """A small model, an optimizer and schedulers that go on together."""

    def __init__(
        self, optimizer: str, options: dict[str, Any], schedule: Callable[[Any], Any] | None = None
    ) -> None:
        torch.manual_seed(0)
        self.embedding = nn.Embedding(10, 4, sparse=optimizer == "SparseAdam")
        matrices = optimizer == "Muon"  # which takes nothing else
        layers = [nn.Linear(4, 3, bias=not matrices), nn.Tanh(), nn.Linear(3, 1, bias=not matrices)]
        self.model = nn.Sequential(*layers)
        trained = self.embedding if optimizer == "SparseAdam" else self.model
        options = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        self.optimizer: Any = OPTIMIZERS[optimizer](trained.parameters(), **options)
        self.scheduler = schedule(self.optimizer) if schedule else None

    def go(self, steps: int) -> None:
        data = torch.arange(8) % 10

        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            loss: torch.Tensor = self.model(self.embedding(data)).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        for _ in range(steps):
            loss = self.optimizer.step(closure)
            if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                self.scheduler.step(loss.item())
            elif self.scheduler is not None:
                self.scheduler.step()

    @property
    def parts(self) -> list[Any]:
        return [self.embedding, self.model, self.optimizer, *filter(None, [self.scheduler])]

    def resumed_by(self, other: Training, directory: Path) -> None:
        buffers = [Buffers(str(i)) for i in range(len(self.parts))]
        for _ in range(2):  # the second time from memory that is kept
            captured = [b.capture(part.state_dict()) for b, part in zip(buffers, self.parts, strict=True)]
            for i, state in enumerate(captured):
                with (directory / f"{i}.pt").open("wb") as file:
                    write_state(state, file)
        for i, part in enumerate(other.parts):
            load_into(part, str(directory / f"{i}.pt"))


def goes_on_alike(make: Callable[[], Training], directory: Path) -> None:
    undisturbed, killed, resumed = make(), make(), make()
    undisturbed.go(11)
    killed.go(6)
    killed.resumed_by(resumed, directory)
    killed.go(3)  # nothing of which may reach the one resumed
    assert not mapped_files()
    resumed.go(5)
    assert digest(*resumed.parts) == digest(*undisturbed.parts)


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, options) for name in OPTIMIZERS for options in OPTIONS.get(name, [{}])],
    ids=str,
)
def test_every_optimizer_of_torch_goes_on_bit_for_bit(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    goes_on_alike(lambda: Training(name, options), tmp_path)


sched = torch.optim.lr_scheduler


class Ramp:
    """A callable with state, of which LambdaLR saves the attributes."""

    def __init__(self) -> None:
        self.slope = 0.1

    def __call__(self, step: int) -> float:
        return 1 + self.slope * step


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: sched.LambdaLR(o, Ramp()),
    "LambdaLR with a function": lambda o: sched.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: sched.MultiplicativeLR(o, lambda _: 0.9),
    "StepLR": lambda o: sched.StepLR(o, 2),
    "MultiStepLR": lambda o: sched.MultiStepLR(o, [2, 4, 4, 8]),
    "ConstantLR": lambda o: sched.ConstantLR(o, total_iters=7),
    "LinearLR": lambda o: sched.LinearLR(o, total_iters=7),
    "ExponentialLR": lambda o: sched.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o: sched.SequentialLR(
        o, [sched.LinearLR(o, total_iters=3), sched.CosineAnnealingLR(o, 10)], milestones=[3]
    ),
    "PolynomialLR": lambda o: sched.PolynomialLR(o, 20),
    "CosineAnnealingLR": lambda o: sched.CosineAnnealingLR(o, 10),
    "ChainedScheduler": lambda o: sched.ChainedScheduler(
        [sched.StepLR(o, 3), sched.ExponentialLR(o, 0.9)], o
    ),
    "ReduceLROnPlateau": lambda o: sched.ReduceLROnPlateau(o, patience=0, threshold=0.9),
    "CyclicLR": lambda o: sched.CyclicLR(o, 0.01, 0.1, step_size_up=3, cycle_momentum=False),
    "CyclicLR with a function": lambda o: sched.CyclicLR(
        o, 0.01, 0.1, step_size_up=3, cycle_momentum=False, scale_fn=lambda x: 0.9**x, scale_mode="iterations"
    ),
    "CosineAnnealingWarmRestarts": lambda o: sched.CosineAnnealingWarmRestarts(o, 4),
    "OneCycleLR": lambda o: sched.OneCycleLR(o, 0.1, total_steps=20),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.05, anneal_epochs=4),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_of_torch_goes_on_bit_for_bit(tmp_path: Path, name: str) -> None:
    goes_on_alike(lambda: Training("SGD", {"lr": 0.1, "momentum": 0.9}, SCHEDULERS[name]), tmp_path)


def test_all_schedulers_of_torch_are_tried() -> None:
    here = {name.partition(" ")[0] for name in SCHEDULERS}
    base = {"LRScheduler", "_LRScheduler"}
    assert {name for name in sched.__all__ if isinstance(getattr(sched, name), type)} - base <= here


def test_a_plateau_scheduler_fed_with_arrays_numbers_is_saved(tmp_path: Path) -> None:
    scheduler = sched.ReduceLROnPlateau(Training("SGD", {}).optimizer)
    scheduler.best = np.float64(0.5)
    back = read_state(saved(scheduler.state_dict(), tmp_path / "s.pt"), mapped=False)
    assert type(back["best"]) is np.float64


def test_a_digest_tells_states_apart_that_print_alike() -> None:
    big = torch.zeros(10_000)
    other = big.clone()
    other[5000] = 1e-30
    assert repr(big) == repr(other)
    assert digest({"t": big}) != digest({"t": other})
    assert digest([1.0]) != digest([1])
    assert digest([0.0]) != digest([-0.0])
    assert digest(torch.zeros(2)) != digest(torch.zeros(2, 1))
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest([[1], [2]]) != digest([[1, 2]])
    with pytest.raises(TypeError):
        digest({"o": object()})


def test_nothing_here_warns(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = saved({"t": torch.ones(3), "n": np.float32(2)}, tmp_path / "x.pt")
        read_state(path, mapped=True)
        read_state(path, mapped=False)
