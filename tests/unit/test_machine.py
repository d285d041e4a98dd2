"""What decides whether a resumed run is bit-exact is recorded, and differences are named."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from alchemy.loop.machine import differences, facts


def test_build_threads_and_instruction_set_are_recorded() -> None:
    found = facts()
    assert found["torch"] == torch.__version__
    assert found["torch_commit"] == torch.version.git_version
    assert found["threads"] == torch.get_num_threads()
    assert found["cpu_instructions"] == torch.backends.cpu.get_cpu_capability()


def test_what_only_one_side_knows_is_no_difference() -> None:
    """A library that one side hasn't loaded computed nothing there."""
    then = {"threads": 8, "torch": "2.13.0", "gpu": "none"}
    assert differences(then, {"threads": 4, "torch": "2.13.0", "numpy": "2.0"}) == ["threads 8 -> 4"]
    assert differences({"python": "3.11.2"}, {"python": "3.11.2", **then}) == []
    assert differences(then, then) == []


def test_going_from_a_gpu_to_the_cpu_is_a_difference_and_so_is_the_way_back() -> None:
    cpu = facts()
    if cpu["gpu"] != "none":  # a test before has started it
        cpu |= {"gpu": "none", "cuda": "none", "cudnn_deterministic": "none"}
    assert (cpu["gpu"], cpu["cuda"], cpu["cudnn_deterministic"]) == ("none", "none", "none")
    gpu = {**cpu, "gpu": "H100", "cuda": "13.0", "cudnn_deterministic": True}
    there = ["gpu H100 -> none", "cuda 13.0 -> none", "cudnn deterministic True -> none"]
    assert differences(gpu, cpu) == there
    assert differences(cpu, gpu) == [
        "gpu none -> H100",
        "cuda none -> 13.0",
        "cudnn deterministic none -> True",
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_known_once_it_is_in_use_and_not_started_to_be_known() -> None:
    source = (
        "import torch\nfrom alchemy.loop.machine import differences, facts\nthen = facts()\n"
        "assert not torch.cuda.is_initialized()\ntorch.zeros(1, device='cuda')\n"
        "print(differences(then, facts())[0])"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"gpu none -> {torch.cuda.get_device_name()}"


def test_nothing_is_imported_for_it() -> None:
    source = (
        "import sys\nfrom alchemy.loop.machine import facts\nfacts()\n"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
