"""What decides whether a resumed run is bit-exact is recorded, and differences are named."""

from __future__ import annotations

import subprocess
import sys

import torch

from alchemy.loop.machine import differences, facts


def test_build_threads_and_instruction_set_are_recorded() -> None:
    found = facts()
    assert found["torch"] == torch.__version__
    assert found["torch_commit"] == torch.version.git_version
    assert found["threads"] == torch.get_num_threads()
    assert found["cpu_instructions"] == torch.backends.cpu.get_cpu_capability()


def test_only_what_both_know_is_compared() -> None:
    then = {"threads": 8, "torch": "2.13.0", "gpu": "H100"}
    now = {"threads": 4, "torch": "2.13.0", "numpy": "2.0"}
    assert differences(then, now) == ["threads 8 -> 4"]
    assert differences(then, then) == []


def test_nothing_is_imported_for_it() -> None:
    source = (
        "import sys\nfrom alchemy.loop.machine import facts\nfacts()\n"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
