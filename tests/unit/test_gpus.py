"""Counting GPUs without CUDA."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_alchemy.gpus import Pool, visible_gpus


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


def test_workers_share_gpus_evenly_and_one_that_is_replaced_gives_its_own_back() -> None:
    pool = Pool(("4", "7"))
    assert [pool.take(worker) for worker in ("gw0", "gw1")] == ["4", "7"]
    pool.give_back("gw1")
    assert [pool.take(worker) for worker in ("gw2", "gw3", "gw4")] == ["7", "4", "7"]
    assert Pool(()).take("gw0") is None
