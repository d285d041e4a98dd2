"""Equal seeds give equal numbers, and a case leaves the process as it found it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alchemy.seeding import Seeder, preserved


def draw() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: S311


@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1, 2**32, 2**63, 2**64 - 1, 2**200, -1, -(2**70)])
def test_any_int_seeds_every_library(seed: int) -> None:
    with preserved():
        Seeder(seed).apply()
        first = draw()
        assert draw() != first
        Seeder(seed).apply()
        assert draw() == first


def test_small_seeds_are_what_the_libraries_call_by_that_number() -> None:
    with preserved():
        Seeder(42).apply()
        ours = draw()
        random.seed(42)
        np.random.seed(42)
        torch.manual_seed(42)
        assert draw() == ours


def test_applied_again_only_libraries_loaded_meanwhile_are_seeded() -> None:
    program = """
import random, sys
from alchemy.seeding import Seeder
seeder = Seeder(3)
seeder.apply()
assert "numpy" not in sys.modules
first = random.random()
import numpy
seeder.apply()
late = numpy.random.rand()
numpy.random.seed(3)
assert late == numpy.random.rand()
assert random.random() != first
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_applied_twice_it_does_not_repeat_the_numbers() -> None:
    with preserved():
        seeder = Seeder(5)
        seeder.apply()
        first = draw()
        seeder.apply()
        assert draw() != first


def settings() -> list[Any]:
    cudnn = torch.backends.cudnn
    return [
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_float32_matmul_precision(),
        (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
    ]


def disturb() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.enabled = False
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = True


def test_a_case_leaves_generators_and_settings_as_they_were() -> None:
    with preserved():
        Seeder(1).apply()
        before = settings()
        expected = draw()
        Seeder(1).apply()
        with suppress(KeyError), preserved():
            draw()
            disturb()
            assert all(now != then for now, then in zip(settings(), before, strict=True))
            raise KeyError
        assert settings() == before
        assert draw() == expected


def test_the_working_directory_and_torchs_device_come_back(tmp_path: Path) -> None:
    here = Path.cwd()
    with preserved():
        os.chdir(tmp_path)
        torch.set_default_device("meta")
    assert Path.cwd() == here
    assert torch.rand(1).device.type == "cpu"
