"""From a case to a run: names, seeds, and what makes two runs the same."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

from pytest_alchemy.backends import Plan
from pytest_alchemy.planning import Planner, run_id

SOURCE = """
import alchemy as al
exp = al.experiment("x y", matrix={"lr": [0.1, 0.2], "seed": [3, 4]}, resources={"gpus": 1, "time": "10"})
@exp.task(total_steps=100, eval_every=10, resources={"time": "20"})
def train(ctx): pass
"""


@pytest.fixture
def module(tmp_path: Path) -> ModuleType:
    path = tmp_path / "exp.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("exp", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def plans(module: ModuleType, max_steps: int | None = None) -> list[Plan]:
    root = Path(module.__file__ or "").parent
    planner = Planner(root, root, max_steps)
    return [planner.plan(module.train, case, module) for case in module.train.cases]


def test_a_run_is_named_after_its_case_and_its_fingerprint(module: ModuleType) -> None:
    first = plans(module)[0].spec
    assert first.run.startswith("x_y-train-lr=0.1-seed=3-")
    assert first.run.endswith(first.fingerprint[:12])
    assert len({plan.spec.run for plan in plans(module)}) == 4


def test_the_replicate_value_is_the_seed(module: ModuleType) -> None:
    assert [plan.spec.seed for plan in plans(module)] == [3, 4, 3, 4]


def test_without_replicates_cases_are_seeded_apart_and_the_same_each_time(module: ModuleType) -> None:
    object.__setattr__(module.exp, "replicates", "none")
    seeds = [plan.spec.seed for plan in plans(module)]
    assert len(set(seeds)) == 4
    assert seeds == [plan.spec.seed for plan in plans(module)]


def test_a_shortened_run_is_another_run(module: ModuleType) -> None:
    whole, shortened = plans(module), plans(module, max_steps=5)
    assert [plan.spec.total_steps for plan in shortened] == [5] * 4
    assert not {plan.spec.run for plan in whole} & {plan.spec.run for plan in shortened}
    assert plans(module, max_steps=500) == whole


def test_a_task_goes_over_its_experiment_in_resources(module: ModuleType) -> None:
    resources = plans(module)[0].resources
    assert (resources.gpus, resources.time) == (1, "20")


def test_the_code_reference_is_enough_to_import_it_elsewhere(module: ModuleType) -> None:
    code = plans(module)[0].spec.code
    assert (code.path, code.module) == (module.__file__, "exp")
    assert code.sys_path[0] == os.path.dirname(str(module.__file__))  # noqa: PTH120


def test_a_long_case_still_makes_a_file_name() -> None:
    name = run_id("e" * 100, "t", "c" * 1000, "f" * 64)
    assert len(name.encode()) < 200
