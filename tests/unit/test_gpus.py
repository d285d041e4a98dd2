"""Counting GPUs without CUDA."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_alchemy.gpus import share_of, visible_gpus


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ("0,1", ("0", "1")),
        (" 4 , 7 ", ("4", "7")),
        ("", ()),
        ("-1", ()),
        ("GPU-abc,MIG-def", ("GPU-abc", "MIG-def")),
    ],
)
def test_the_environment_decides(chosen: str, expected: tuple[str, ...], tmp_path: Path) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": chosen}, tmp_path, tmp_path) == expected


def test_without_it_the_driver_is_counted_and_then_device_files(tmp_path: Path) -> None:
    driver, devices = tmp_path / "driver", tmp_path / "dev"
    devices.mkdir()
    assert visible_gpus({}, driver, devices) == ()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (devices / name).touch()
    assert visible_gpus({}, driver, devices) == ("0", "1")
    (driver / "0000:01:00.0").mkdir(parents=True)
    assert visible_gpus({}, driver, devices) == ("0",)


def test_workers_share_gpus_in_turn() -> None:
    assert [share_of(worker, ("4", "7")) for worker in range(3)] == ["4", "7", "4"]
    assert share_of(0, ()) is None
