"""Which files become experiments, and what their items are called."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import EXPERIMENT, Project


def test_node_ids_read_as_task_and_case(scaling: Project) -> None:
    assert scaling.node_ids("experiments") == [
        f"experiments/ctx_scaling.py::train[ctx_len={ctx_len}-seed={seed}]"
        for ctx_len in (16, 32)
        for seed in (1, 2, 12)
    ]


def test_a_bare_pytest_does_not_start_a_training(scaling: Project) -> None:
    scaling.write("test_ordinary.py", "def test_ok(): pass")
    assert scaling.node_ids() == ["test_ordinary.py::test_ok"]


@pytest.mark.parametrize(
    "args",
    [
        ["experiments"],
        ["experiments/ctx_scaling.py"],
        ["."],
        ["-k", "ctx_len=16 or ctx_len=32"],
        ["-m", "alchemy"],
        ["-o", "alchemy_paths=experiments"],
        ["-o", "testpaths=experiments"],
        ["experiments", "experiments/ctx_scaling.py"],
        ["experiments", "-o", "python_files=*.py"],
    ],
    ids=" ".join,
)
def test_a_file_is_collected_once_where_the_user_points(scaling: Project, args: list[str]) -> None:
    assert len(scaling.node_ids(*args)) == 6


def test_a_file_that_matches_python_files_is_collected_once_by_a_bare_pytest(project: Project) -> None:
    project.write("test_scaling.py", EXPERIMENT + "\ndef test_plain(): pass\n")
    ids = project.node_ids()
    assert len(ids) == 7
    assert "test_scaling.py::test_plain" in ids


def test_no_other_file_is_imported(scaling: Project) -> None:
    scaling.write("experiments/script.py", "raise SystemExit('imported')")
    scaling.write(
        "experiments/mentions.py", '"""import alchemy as al; al.experiment()"""\nraise SystemExit("imported")'
    )
    assert len(scaling.node_ids("experiments")) == 6


def test_one_case_can_be_named_and_so_can_all_of_a_task(scaling: Project) -> None:
    one = "experiments/ctx_scaling.py::train[ctx_len=16-seed=12]"
    assert scaling.node_ids(one) == [one]
    assert len(scaling.node_ids("experiments/ctx_scaling.py::train")) == 6


def test_a_syntax_error_is_reported_as_such(scaling: Project) -> None:
    scaling.write("experiments/broken.py", "import alchemy as al\nexp = al.experiment('x'\n")
    result = scaling.run("experiments")
    result.stdout.fnmatch_lines(["*ERROR collecting experiments/broken.py*", "*SyntaxError*"])
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert not scaling.run_dirs()


def test_two_experiments_of_one_name_are_refused_with_both_files(scaling: Project) -> None:
    scaling.write("experiments/second.py", EXPERIMENT)
    result = scaling.run("experiments")
    result.stdout.fnmatch_lines(
        ["*experiment 'scaling' is declared twice, in *ctx_scaling.py too; names must be unique*"]
    )
    assert not scaling.run_dirs()


def test_an_experiment_without_a_task_is_refused_with_the_way_out(project: Project) -> None:
    project.write("exp.py", "import alchemy as al\nexp = al.experiment('empty')\n")
    project.run("exp.py").stdout.fnmatch_lines(
        ["*experiment 'empty' has no task; decorate*@exp.task(total_steps=...)*"]
    )


@pytest.mark.parametrize("order", ["above", "below"])
def test_a_mark_counts_above_the_task_and_below_it(project: Project, order: str) -> None:
    decorators = ["@exp.task(total_steps=1)", "@pytest.mark.skip(reason='not today')"]
    project.write(
        "exp.py",
        "import alchemy as al, pytest\nexp = al.experiment('x')\n"
        + "\n".join(decorators if order == "below" else reversed(decorators))
        + "\ndef train(ctx): pass\n",
    )
    project.run("exp.py").assert_outcomes(skipped=1)


def test_a_task_imported_from_another_file_is_not_collected_twice(scaling: Project) -> None:
    scaling.write(
        "experiments/other.py",
        """
        import alchemy as al
        from ctx_scaling import train
        exp = al.experiment("other")
        @exp.task(total_steps=1)
        def only(ctx): pass
        """,
    )
    ids = scaling.node_ids("experiments")
    assert len(ids) == 7
    assert "experiments/other.py::only" in ids


@pytest.mark.parametrize("mode", ["prepend", "append", "importlib"])
def test_bare_asserts_in_experiment_files_are_rewritten(project: Project, mode: str) -> None:
    project.write(
        "experiments/exp.py",
        """
        import alchemy as al
        exp = al.experiment("x")
        @exp.task(total_steps=1)
        def train(ctx):
            left = [1, 2]
            assert left == [1, 3]
        """,
    )
    result = project.run("experiments", f"--import-mode={mode}")
    result.stdout.fnmatch_lines(["*assert *1, 2* == *1, 3*", "*At index 1 diff: 2 != 3*"])


def test_a_module_level_parameter_without_default_does_not_break_collection(project: Project) -> None:
    project.write(
        "exp.py",
        """
        import alchemy as al
        width = al.param("width") * 2
        exp = al.experiment("x", matrix={"width": [4, 8]}, criteria={"width": "== 16"})
        @exp.task(total_steps=1)
        def train(ctx):
            ctx.log_eval(width=width)
        """,
    )
    result = project.run("exp.py", "-v")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*train?width=4? FAILED*", "*train?width=8? PASSED*"])


def test_tests_beside_the_cases_are_collected_as_usual(scaling: Project) -> None:
    scaling.write("experiments/more.py", EXPERIMENT.replace("scaling", "more") + "\ndef test_plain(): pass\n")
    assert "experiments/more.py::test_plain" in scaling.node_ids("experiments")


def test_a_task_whose_name_was_taken_is_refused_instead_of_vanishing(project: Project) -> None:
    project.write(
        "exp.py",
        """
        import alchemy as al
        for name in ("one", "two"):
            exp = al.experiment(name)
            @exp.task(total_steps=1)
            def train(ctx): pass
        """,
    )
    project.run("exp.py").stdout.fnmatch_lines(["*task 'train' of experiment 'one' can't be reached*"])


def test_two_tasks_of_one_name_are_refused_with_both_experiments(project: Project) -> None:
    project.write(
        "exp.py",
        """
        import alchemy as al
        one, two = al.experiment("one"), al.experiment("two")
        @one.task(total_steps=1)
        def train(ctx): pass
        @two.task(total_steps=1)
        def train(ctx): pass
        """,
    )
    project.run("exp.py").stdout.fnmatch_lines(["*experiments * both have a task 'train'*"])


def test_tasks_made_by_a_factory_are_collected(project: Project) -> None:
    project.write(
        "exp.py",
        """
        import alchemy as al
        def make(name):
            exp = al.experiment(name)
            @exp.task(total_steps=1, name=name)
            def train(ctx): pass
            return exp
        one, two = make("one"), make("two")
        """,
    )
    assert project.node_ids("exp.py") == ["exp.py::one", "exp.py::two"]
    project.run("exp.py").assert_outcomes(passed=2)


@pytest.mark.parametrize("mark", ["usefixtures('tmp_path')", "parametrize('x', [1])"])
def test_a_mark_that_cannot_work_is_refused(project: Project, mark: str) -> None:
    project.write(
        "exp.py",
        f"""
        import alchemy as al, pytest
        exp = al.experiment("x")
        @pytest.mark.{mark}
        @exp.task(total_steps=1)
        def train(ctx): pass
        """,
    )
    project.run("exp.py").stdout.fnmatch_lines(
        [f"*task 'train': pytest.mark.{mark.partition('(')[0]} can't work on it*"]
    )


def test_a_script_that_ends_on_import_is_named(scaling: Project) -> None:
    scaling.write("experiments/script.py", "import alchemy as al\nal.experiment('s')\nraise SystemExit(2)")
    result = scaling.run("experiments")
    result.stdout.fnmatch_lines(["script.py ends the program when it is imported (SystemExit: 2)*"])
    assert result.ret == pytest.ExitCode.INTERRUPTED
