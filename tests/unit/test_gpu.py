"""Reading GPUs where there are none: a module with NVML's documented functions stands in for the driver.

The real package and real GPUs are not met here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from alchemy.recording.gpu import Gpu, Gpus
from tests.support.agentlab import python

UUIDS = ["GPU-aaaa-1", "GPU-aabb-2", "GPU-cccc-3"]


class NVMLError(Exception):
    pass


class NotSupported(NVMLError):
    pass


class Driver(ModuleType):
    """NVML as its reference describes it: handles are opaque, every function may raise `NVMLError`."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.NVMLError, self.NVMLError_NotSupported = NVMLError, NotSupported
        self.questions = 0
        self.is_initialised = False
        self.fails_from: float = float("inf")
        self.divided: set[str] = set()

    def _asked(self) -> None:
        self.questions += 1
        if self.questions >= self.fails_from or not self.is_initialised:
            raise NVMLError("GPU is lost")

    def nvmlInit(self) -> None:  # noqa: N802  NVML's own names, here and below
        self.is_initialised = True
        self._asked()

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._asked()
        return len(UUIDS)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[str]:  # noqa: N802
        self._asked()
        if not 0 <= index < len(UUIDS):
            raise NVMLError("Invalid Argument")
        return (UUIDS[index],)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> tuple[str]:  # noqa: N802
        self._asked()
        if uuid not in {*UUIDS, *self.divided}:
            raise NVMLError("Not Found")
        return (uuid,)

    def nvmlDeviceGetUUID(self, handle: tuple[str]) -> str | bytes:  # noqa: N802
        self._asked()
        return handle[0].encode() if handle[0] == UUIDS[2] else handle[0]

    def nvmlDeviceGetName(self, handle: tuple[str]) -> str:  # noqa: N802, ARG002
        self._asked()
        return "NVIDIA H100"

    def nvmlDeviceGetUtilizationRates(self, handle: tuple[str]) -> SimpleNamespace:  # noqa: N802
        self._asked()
        if handle[0] in self.divided:
            raise NotSupported
        return SimpleNamespace(gpu=93, memory=40)

    def nvmlDeviceGetMemoryInfo(self, handle: tuple[str]) -> SimpleNamespace:  # noqa: N802, ARG002
        self._asked()
        return SimpleNamespace(total=80 << 30, free=60 << 30, used=20 << 30)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    return driver


def uuids(gpus: list[Gpu] | None) -> list[object]:
    return [gpu["uuid"] for gpu in gpus or ()]


def test_each_gpu_tells_what_it_does_in_parts_of_one_and_in_bytes(driver: Driver) -> None:
    gpus = Gpus({"CUDA_VISIBLE_DEVICES": "1"}).read()
    assert gpus == [
        {
            "uuid": "GPU-aabb-2",
            "name": "NVIDIA H100",
            "utilization": 0.93,
            "memory_used": 20 << 30,
            "memory_total": 80 << 30,
        }
    ]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, [0, 1, 2]),
        ("2,0", [2, 0]),
        (" 1 , 2 ", [1, 2]),
        ("GPU-cccc-3,0", [2, 0]),
        ("GPU-c", [2]),
        ("GPU-aa,0", []),  # of two that begin so, none is meant
        ("0,7,1", [0]),
        ("0,-1,1", [0]),
        ("7", []),
        ("-1", []),
        ("", []),
        ("NoDevFiles", []),
    ],
)
def test_only_gpus_that_cuda_shows_to_this_process_are_read(
    driver: Driver, chosen: str | None, expected: list[int]
) -> None:
    gpus = Gpus({} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}).read()
    assert uuids(gpus) == [UUIDS[index] for index in expected]
    assert gpus is None or gpus


def test_what_a_part_of_a_gpu_cannot_tell_is_missing(driver: Driver) -> None:
    driver.divided = {"MIG-dddd-4"}
    [gpu] = Gpus({"CUDA_VISIBLE_DEVICES": "MIG-dddd-4"}).read() or []
    assert "utilization" not in gpu
    assert gpu["memory_used"] == 20 << 30


@pytest.mark.parametrize("fails_from", [1, 2, 3, 6, 20])
def test_a_driver_that_fails_is_never_asked_again(driver: Driver, fails_from: int) -> None:
    driver.fails_from = fails_from
    gpus = Gpus({})
    while gpus.read() is not None:
        assert driver.questions < fails_from
    asked = driver.questions
    assert [gpus.read() for _ in range(3)] == [None] * 3
    assert driver.questions == asked == fails_from


def test_gpus_that_are_hidden_ask_for_no_driver(driver: Driver) -> None:
    assert Gpus({"CUDA_VISIBLE_DEVICES": ""}).read() is None
    assert not driver.is_initialised


NOBODY_THERE = """
import builtins, sys
searched = []
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "pynvml":
            searched.append(name)
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Finder())
from alchemy.recording.gpu import read_gpus
assert searched == [], "only who asks for GPUs imports the package"
print(read_gpus(), read_gpus(), searched)
"""


def test_without_the_package_nothing_is_known_and_it_is_looked_for_once() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(python(NOBODY_THERE), capture_output=True, text=True, env=environment)
    assert done.stdout == "None None ['pynvml']\n", done.stderr


BROKEN = "raise RuntimeError('a package of the same name, for another Python')"


def test_a_package_that_cannot_be_imported_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "pynvml.py").write_text(BROKEN)
    source = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from alchemy.recording.gpu import Gpus; "
    done = subprocess.run(python(source + "print(Gpus({}).read())"), capture_output=True, text=True)
    assert done.stdout == "None\n", done.stderr
