"""An experiment refuses at its declaration whatever can't be meant, and its tasks look like functions."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alchemy as al
from alchemy.matrix import cases_of, parse_axes
from alchemy.params import collecting

ROOT = Path(__file__).parents[2]


def work(ctx: Any) -> Any:
    """Give the context back."""
    return ctx


def declare(**options: Any) -> al.Experiment:
    return al.experiment("demo", **options)


def test_the_origins_declaration_is_read_as_printed() -> None:
    exp = al.experiment(
        "ctx_scaling",
        criteria={"silhouette": "> 0.3", "nmi": "> 0.1"},
        matrix={"ctx_len": [16, 32, 64, 128, 256, 512], "seed": [42, 123, 789]},
    )

    @exp.task(total_steps=500_000, eval_every=10_000)
    def train(ctx: Any) -> None:
        """Train."""

    assert [task.name for task in exp.tasks] == ["train"]
    assert (train.total_steps, train.eval_every, train.seed_rng) == (500_000, 10_000, True)
    assert [str(criterion) for criterion in train.criteria] == ["silhouette > 0.3", "nmi > 0.1"]
    assert len(train.cases) == 18
    assert exp.matrix["seed"] == (42, 123, 789)


def test_a_task_looks_like_its_function() -> None:
    task = declare().task(work, total_steps=1)
    assert (vars(task)["__name__"], task.__doc__, task.__module__) == ("work", work.__doc__, __name__)
    assert task.__wrapped__ is work  # type: ignore[attr-defined]
    assert inspect.signature(task) == inspect.signature(work)


def test_a_task_called_with_a_context_calls_its_function() -> None:
    context: Any = object()
    assert declare().task(work, total_steps=1)(context) is context


def test_marks_hold_above_and_below_the_decorator() -> None:
    exp = declare()

    @pytest.mark.timeout(60)
    @exp.task(total_steps=1)
    @pytest.mark.usefixtures("gpu")
    def train(ctx: Any) -> None: ...

    assert isinstance(train, al.Task)
    assert [mark.name for mark in train.pytestmark] == ["usefixtures", "timeout"]  # type: ignore[attr-defined]


def test_an_attribute_of_the_function_covers_none_of_the_tasks() -> None:
    def train(ctx: Any) -> None: ...

    train.name = "other"  # type: ignore[attr-defined]
    assert declare().task(train, total_steps=1).name == "train"


def test_one_function_can_be_several_tasks_under_names_of_their_own() -> None:
    exp = declare()
    exp.task(work, total_steps=1)
    exp.task(total_steps=2, name="again")(work)
    assert [(task.name, task.total_steps) for task in exp.tasks] == [("work", 1), ("again", 2)]


def test_the_cases_are_those_of_the_matrix() -> None:
    matrix = {"lr": [0.1, pytest.param(0.2, marks=pytest.mark.skip)]}
    assert declare(matrix=matrix).cases == cases_of(parse_axes(matrix))


def test_the_experiments_criteria_belong_to_its_last_task() -> None:
    exp = declare(criteria={"nmi": "> 0.1"})
    first = exp.task(work, total_steps=1, name="first")
    assert [str(each) for each in first.criteria] == ["nmi > 0.1"]
    last = exp.task(work, total_steps=1, name="last")
    assert first.criteria == ()
    assert [str(each) for each in last.criteria] == ["nmi > 0.1"]


def test_a_task_with_criteria_of_its_own_drops_none_of_the_experiments() -> None:
    exp = declare(criteria={"nmi": "> 0.1", "loss": "< 2"})
    first = exp.task(work, total_steps=1, name="first", criteria={"acc": "> 0.5"})
    last = exp.task(work, total_steps=1, name="last", criteria={"loss": "< 1"})
    assert [str(each) for each in first.criteria] == ["acc > 0.5"]
    assert [str(each) for each in last.criteria] == ["nmi > 0.1", "loss < 1"]


def test_a_tasks_resources_go_over_the_experiments() -> None:
    exp = declare(resources={"gpus": 1, "mem": "4G"})
    task = exp.task(work, total_steps=1, resources={"gpus": 0})
    assert task.resources == al.Resources(gpus=0, mem="4G")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matrix": {"lr": []}}, "matrix axis 'lr' is empty"),
        ({"matrix": [1]}, "matrix must be a dict"),
        ({"criteria": {"nmi": "high"}}, "criterion 'nmi': can't read 'high'"),
        ({"criteria": {"nmi": 0.3}}, "criterion 'nmi' must be a str"),
        ({"resources": {"gpu": 1}}, "unknown resource 'gpu'; did you mean 'gpus'?"),
        ({"tags": "baseline"}, "tags must be a dict"),
        ({"tags": {"paper": "a\nb"}}, "tags must be printable"),
        (
            {"matrix": {"lr": [1]}, "replicates": "run"},
            "replicates='run' is not an axis of the matrix (axes: lr)",
        ),
    ],
)
def test_a_declaration_that_cannot_be_meant_is_refused_with_its_place(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(al.ConfigurationError, match=f"^experiment 'demo': .*{re.escape(message)}"):
        declare(**options)


@pytest.mark.parametrize(
    "name", ["", "  ", " a", "a\n", "a/b", "a\tb", ".", "..", "-rf", "x" * 101, None, 3, b"a", ["a"]]
)
def test_a_name_that_cannot_be_a_directory_is_refused(name: Any) -> None:
    with pytest.raises(al.ConfigurationError, match=r"^the name of an experiment must"):
        al.experiment(name)


@pytest.mark.parametrize("name", ["ctx scaling", "größe", "v1.2-rc=3", "x" * 100])
def test_a_readable_name_is_kept(name: str) -> None:
    assert al.experiment(name).name == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 0}, "total_steps must be a positive int, not 0"),
        ({"total_steps": -5}, "total_steps must be a positive int, not -5"),
        ({"total_steps": True}, "total_steps must be a positive int, not bool True"),
        ({"total_steps": 1e6}, "total_steps must be a positive int, not float 1000000.0: write 1000000"),
        ({"total_steps": "10"}, "total_steps must be a positive int, not str '10'"),
        ({"total_steps": None}, "total_steps must be a positive int"),
        ({"eval_every": 0}, "eval_every must be a positive int, not 0"),
        ({"eval_every": False}, "eval_every must be a positive int, not bool False"),
        ({"seed_rng": 1}, "seed_rng must be True or False, not 1"),
        ({"criteria": {"nmi": "high"}}, "criterion 'nmi': can't read 'high'"),
        ({"resources": {"nodes": 0}}, "resource nodes must be a whole number"),
    ],
)
def test_a_task_that_cannot_be_meant_is_refused_with_its_place(options: dict[str, Any], message: str) -> None:
    with pytest.raises(
        al.ConfigurationError, match=f"^experiment 'demo', task 'work': .*{re.escape(message)}"
    ):
        declare().task(work, **{"total_steps": 1, **options})


def test_steps_counted_by_numpy_are_steps() -> None:
    task = declare().task(work, total_steps=np.int64(3))
    assert type(task.total_steps) is int
    assert task.total_steps == 3


def test_steps_that_have_no_value_while_collecting_name_the_parameter() -> None:
    with (
        collecting(),
        pytest.raises(al.ConfigurationError, match="task 'work': parameter 'steps' has no value"),
    ):
        declare().task(work, total_steps=al.param("steps"))


@pytest.mark.parametrize("name", ["", "two words", "a-b", "1st", 3])
def test_a_tasks_name_must_be_an_identifier(name: Any) -> None:
    with pytest.raises(al.ConfigurationError, match="a task's name must be an identifier"):
        declare().task(work, total_steps=1, name=name)


def test_a_second_task_of_the_same_name_is_refused_and_the_first_one_stays() -> None:
    exp = declare()
    first = exp.task(work, total_steps=1)
    with pytest.raises(al.ConfigurationError, match="two tasks named 'work'"):
        exp.task(work, total_steps=1)
    assert exp.tasks == (first,)


def generator(ctx: Any) -> Iterator[int]:
    yield 1


async def coroutine(ctx: Any) -> None: ...


def nullary() -> None: ...


def binary(ctx: Any, other: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (generator, "generator() can't yield"),
        (coroutine, "coroutine() can't be async"),
        (nullary, "nullary() must take one argument, the context"),
        (binary, "binary() must take one argument, the context"),
        (3, "belongs on a function, not on 3"),
        (lambda ctx: ctx, "set it by @exp.task(name=...)"),
    ],
)
def test_a_function_that_could_not_run_as_a_task_is_refused(function: Any, message: str) -> None:
    with pytest.raises(al.ConfigurationError, match=re.escape(message)):
        declare().task(function, total_steps=1)


def test_a_task_is_no_function_to_make_a_task_of() -> None:
    task = declare().task(work, total_steps=1)
    with pytest.raises(al.ConfigurationError, match="is a task already"):
        declare().task(task, total_steps=1)


def test_declaring_loads_neither_pytest_nor_anything_heavy() -> None:
    code = (
        "import sys, alchemy as al; exp = al.experiment('demo', matrix={'lr': [1]}, criteria={'a': '> 1'});"
        "exp.task(lambda ctx: 0, total_steps=1, name='t').cases;"
        "print({'pytest', 'torch', 'numpy', 'paramiko', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_public_name_is_there_and_the_version_is_the_distributions() -> None:
    assert all(hasattr(al, name) for name in al.__all__)
    assert f'\nversion = "{al.__version__}"\n' in (ROOT / "pyproject.toml").read_text()
