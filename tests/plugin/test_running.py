"""Running cases in the pytest process: files, verdicts, isolation, and pytest's own options."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import xmlschema

import alchemy_agent as agent
from tests.plugin.conftest import Project

SCHEMA = Path(__file__).parents[1] / "data" / "junit" / "junit-10.xsd"


def test_a_run_leaves_a_whole_directory_behind(scaling: Project) -> None:
    scaling.run("experiments", "-k", "ctx_len=32 and seed=1").assert_outcomes(passed=1, deselected=5)
    [directory] = scaling.run_dirs()
    run = agent.RunDir(directory)
    spec = agent.read_record(run.run_json)
    assert spec is not None
    assert directory.name == spec["run"]
    assert directory.name.startswith("scaling-train-ctx_len=32-seed=1-")
    assert spec["fingerprint"].startswith(directory.name[-12:])
    assert (spec["params"], spec["seed"]) == ({"ctx_len": 32, "seed": 1}, 1)
    attempt = run.latest()
    assert attempt is not None
    records = {
        name: agent.read_record(getattr(attempt, name)) for name in ("start", "exit", "result", "close")
    }
    assert all(records.values())
    assert records["close"]["reason"] == "completed"  # type: ignore[index]
    assert records["result"]["evaluation"] == {"step": 3, "metrics": {"nmi": 0.5, "silhouette": 0.5}}  # type: ignore[index]
    assert len(Path(attempt.metrics).read_text().splitlines()) == 4
    assert len(Path(attempt.evals).read_text().splitlines()) == 2
    assert all(path.stat().st_mode & 0o077 == 0 for path in directory.rglob("*"))


def test_running_again_makes_a_second_attempt_of_the_same_run(scaling: Project) -> None:
    for _ in range(2):
        scaling.run("experiments", "-k", "seed=1 and ctx_len=16")
    [directory] = scaling.run_dirs()
    assert agent.RunDir(directory).attempt_names() == ["1-r0", "2-r0"]


def test_the_first_line_of_a_failure_says_it_all(scaling: Project) -> None:
    result = scaling.run("experiments", "-k", "ctx_len=16 and seed=1")
    result.stdout.fnmatch_lines(
        [
            "silhouette 0.25, wanted > 0.3 (short by 0.05); nmi ok",
            "*criterion*value*",
            "*ok*nmi > 0.1*0.5*",
            "*NO*silhouette > 0.3*0.25*",
            "*run*/.alchemy/jobs/scaling-train-ctx_len=16-seed=1-*attempt 1-r0*",
            "FAILED *train?ctx_len=16-seed=1? - silhouette 0.25*",
        ]
    )


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("ctx.log_eval(nmi=float('nan'))", "nmi is NaN*"),
        ("ctx.log_eval(nmi=float('inf'))", "nmi is inf*"),
        ("ctx.log_eval(other=1.0)", "nmi was never logged*"),
        ("pass", "nmi was never logged*"),
    ],
)
def test_what_is_no_number_refutes_in_its_own_words(project: Project, statement: str, words: str) -> None:
    project.write("exp.py", one_case(statement, criteria='{"nmi": "> 0.1"}'))
    result = project.run("exp.py")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([words])


def test_an_evaluation_that_predates_the_end_is_named_with_its_step(project: Project) -> None:
    project.write(
        "exp.py",
        """
        import alchemy as al
        exp = al.experiment("x", criteria={"nmi": "> 0.1"})
        @exp.task(total_steps=5)
        def train(ctx):
            for step in ctx.steps():
                if step == 1:
                    ctx.log_eval(nmi=0.0)
        """,
    )
    project.run("exp.py").stdout.fnmatch_lines(
        ["nmi 0, wanted > 0.1 (*evaluated after step 1, not at the end)"]
    )


def test_a_crash_shows_the_users_traceback_and_nothing_of_ours(project: Project) -> None:
    project.write("exp.py", one_case("{}['missing']"))
    result = project.run("exp.py")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([">*{}?'missing'?", "E*KeyError: 'missing'", "exp.py:*: KeyError"])
    assert "pytest_alchemy/" not in result.stdout.str()
    close = agent.read_record(agent.RunDir(project.run_dirs()[0]).attempt("1-r0").close)
    assert close is not None
    assert close["reason"] == "user_error"


def test_only_a_refuted_criterion_is_an_expected_failure(project: Project) -> None:
    project.write(
        "exp.py",
        """
        import alchemy as al, pytest
        exp = al.experiment(
            "x",
            criteria={"m": "> 1"},
            matrix={"how": [pytest.param(how, marks=pytest.mark.xfail) for how in ("low", "crash", "fine")]},
        )
        @exp.task(total_steps=1)
        def train(ctx):
            if ctx.param("how") == "crash":
                raise ValueError
            ctx.log_eval(m=2 if ctx.param("how") == "fine" else 0)
        """,
    )
    project.run("exp.py").assert_outcomes(xfailed=1, failed=1, xpassed=1)


def test_a_root_that_cannot_be_written_is_refused_before_anything_runs(scaling: Project) -> None:
    scaling.write("file", "")
    result = scaling.run("experiments", "--alchemy-root=file/below")
    result.stderr.fnmatch_lines(["ERROR: the run root */file/below can't be written*choose another*"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert scaling.run("experiments", "--alchemy-root=").ret == pytest.ExitCode.USAGE_ERROR


def test_a_disk_that_is_gone_is_an_error_and_does_not_hide_what_the_user_did(project: Project) -> None:
    project.write(
        "exp.py",
        """
        import pathlib, shutil
        import alchemy as al
        exp = al.experiment("x", matrix={"how": ["crash", "return", "late"]})
        @exp.task(total_steps=1)
        def train(ctx):
            shutil.rmtree(".alchemy/jobs")
            pathlib.Path(".alchemy/jobs").touch()
            if ctx.param("how") == "crash":
                raise ZeroDivisionError("my own bug")
        """,
    )
    result = project.run("exp.py", "-k", "how=crash")
    result.stdout.fnmatch_lines(["*ZeroDivisionError: my own bug"])
    (project.path / ".alchemy" / "jobs").unlink()
    result = project.run("exp.py", "-k", "how=return or how=late")
    result.assert_outcomes(errors=2, deselected=1)
    assert result.ret == 20


def test_a_smoke_test_shows_criteria_and_fails_nobody(scaling: Project) -> None:
    result = scaling.run("experiments", "-k", "seed=1", "--alchemy-max-steps=2", "-v")
    result.assert_outcomes(passed=2, deselected=4)
    result.stdout.fnmatch_lines(
        ["ctx_len=16-seed=1*0.25 NO*2/2*", "shortened to 2 steps: 2 cases, criteria shown but not judged"]
    )


def test_the_ini_key_shortens_local_runs_too(scaling: Project) -> None:
    result = scaling.run("experiments", "-o", "alchemy_local_max_steps=1")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(["shortened to 1 steps*"])


def test_cases_do_not_see_each_other(project: Project) -> None:
    project.write(
        "exp.py",
        """
        import os, random
        import alchemy as al
        seen = []
        lr = al.param("lr", default=5.0)
        exp = al.experiment("x", matrix={"lr": [0.1, 0.2], "seed": [3]}, criteria={"ok": "== 1"})
        @exp.task(total_steps=1)
        def train(ctx):
            seen.append(1)
            draws = random.random()
            alone = lr == ctx.param("lr") and seen == [1] and draws == random.Random(3).random()
            named = os.environ["ALCHEMY_TASK_ID"].startswith("x-train-lr=")
            supplied = '"seed": 3' in os.environ["ALCHEMY_PARAMS"]
            ctx.log_eval(ok=alone and named and supplied)
        """,
    )
    project.run("exp.py", "-p", "no:randomly").assert_outcomes(passed=2)


def test_the_process_is_given_back_as_it_was(project: Project) -> None:
    project.write(
        "exp.py",
        """
        import random
        import numpy, torch
        import alchemy as al
        exp = al.experiment("x", matrix={"seed": [7]})
        @exp.task(total_steps=1)
        def train(ctx):
            random.random(), numpy.random.rand(), torch.rand(1)
            torch.set_default_dtype(torch.float64)
            torch.set_num_threads(1)
            torch.use_deterministic_algorithms(True)
        """,
    )
    project.write(
        "conftest.py",
        """
        import random
        import numpy, pytest, torch
        def state():
            generators = random.getstate(), list(numpy.random.get_state()[1]), list(torch.get_rng_state())
            flags = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
            return generators, flags, torch.get_default_dtype()
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_call(item):
            torch.set_num_threads(2)
            before = state()
            yield
            assert state() == before
        """,
    )
    project.run("exp.py").assert_outcomes(passed=1)


def test_captured_output_belongs_to_the_case(project: Project) -> None:
    project.write("exp.py", one_case("print('from the loop'); raise ValueError"))
    project.run("exp.py").stdout.fnmatch_lines(["*Captured stdout call*", "from the loop"])


def test_pytests_own_options_work(scaling: Project) -> None:
    assert scaling.run("experiments", "-x").parseoutcomes() == {"failed": 1}
    assert scaling.run("experiments", "--maxfail=2").parseoutcomes() == {"failed": 2}
    scaling.run("experiments", "--durations=2", "--tb=line", "-q").assert_outcomes(failed=3, passed=3)
    assert scaling.run("experiments", "-p", "no:terminal").ret == pytest.ExitCode.TESTS_FAILED


def test_tb_line_is_one_line_per_case(scaling: Project) -> None:
    result = scaling.run("experiments", "--tb=line", "--no-summary", "-k", "seed=1 and ctx_len=16")
    assert "silhouette > 0.3  0.25\n" not in result.stdout.str().partition("experiment scaling")[0]


def test_pdb_stops_in_the_users_frame(pytester: pytest.Pytester, project: Project) -> None:
    pytest.importorskip("pexpect")
    project.write("exp.py", one_case("value = 41; raise ValueError"))
    child = pytester.spawn_pytest("-p pytest_alchemy.plugin --pdb exp.py")
    child.expect("Pdb")
    child.sendline("p value + 1")
    child.expect("42")
    child.sendline("q")
    child.expect("exp.py")
    child.wait()


def test_parallel_cases_each_get_their_gpu(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    project.write(
        "exp.py",
        """
        import os
        import alchemy as al
        exp = al.experiment("x", matrix={"seed": [1, 2, 3, 4]})
        @exp.task(total_steps=1)
        def train(ctx):
            ctx.log_eval(gpu=int(os.environ["CUDA_VISIBLE_DEVICES"]))
        """,
    )
    project.run("-p", "xdist", "-n2", "exp.py").assert_outcomes(passed=4)
    seen = {
        json.loads(path.read_text())["evaluation"]["metrics"]["gpu"]
        for directory in project.run_dirs()
        for path in directory.glob("attempts/*/result.json")
    }
    assert seen <= {4.0, 7.0}
    assert seen


def test_workers_collect_no_more_than_one_process_would(scaling: Project) -> None:
    scaling.write("test_ordinary.py", "def test_ok(): pass")
    scaling.run("-p", "xdist", "-n2").assert_outcomes(passed=1)
    result = scaling.run("-p", "xdist", "-n2", "experiments")
    result.assert_outcomes(passed=3, failed=3)
    result.stdout.fnmatch_lines(["6 cases: *"])


def test_the_summary_has_a_row_per_case_and_adds_up(scaling: Project) -> None:
    result = scaling.run("experiments", "--tb=no")
    result.stdout.fnmatch_lines(
        [
            "*experiment scaling (local)*",
            "case*nmi > 0.1*silhouette > 0.3*steps*time*verdict",
            "ctx_len=16-seed=1*0.5*0.25 NO*4/4*refuted",
            "ctx_len=32-seed=12*0.5*0.5*4/4*supported",
            "6 cases: 3 refuted, 3 supported",
        ]
    )


def test_nothing_is_printed_where_there_is_no_experiment(project: Project) -> None:
    project.write("test_ordinary.py", "def test_ok(): pass")
    assert "alchemy" not in project.run(".").stdout.str().replace(str(project.path), "").replace(
        "alchemy-0", ""
    )


def one_case(statement: str, criteria: str = "{}") -> str:
    return (
        "import alchemy as al\n"
        f"exp = al.experiment('x', criteria={criteria})\n"
        "@exp.task(total_steps=1)\n"
        "def train(ctx):\n"
        f"    {statement}\n"
    )


def test_a_shortened_run_is_neither_expected_to_fail_nor_to_pass(project: Project) -> None:
    project.write(
        "exp.py",
        """
        import alchemy as al, pytest
        xfail = pytest.mark.xfail
        exp = al.experiment("x", criteria={"m": "> 1"}, matrix={"value": [
            pytest.param(0, marks=xfail), pytest.param(1, marks=xfail(strict=True)),
            pytest.param(2, marks=xfail), pytest.param(3, marks=xfail(run=False))]})
        @exp.task(total_steps=9)
        def train(ctx):
            ctx.log_eval(m=ctx.param("value"))
        """,
    )
    project.run("exp.py", "--alchemy-max-steps=1").assert_outcomes(passed=3, xfailed=1)


def test_a_rerun_runs_the_case_anew(project: Project) -> None:
    project.write(
        "exp.py",
        """
        import pathlib
        import alchemy as al
        exp = al.experiment("x", criteria={"m": "> 1"})
        @exp.task(total_steps=1)
        def train(ctx):
            attempts = len(list(pathlib.Path(".alchemy/jobs").glob("*/attempts/*")))
            ctx.log_eval(m=attempts)
        """,
    )
    project.run("-p", "pytest_rerunfailures", "--reruns=2", "exp.py").assert_outcomes(passed=1)
    assert agent.RunDir(project.run_dirs()[0]).attempt_names() == ["1-r0", "2-r0"]


def test_a_crash_says_where_the_run_is_and_what_was_measured(project: Project) -> None:
    project.write("exp.py", one_case("ctx.log_eval(nmi=0.5); raise ValueError"))
    result = project.run("exp.py", "--junitxml=r.xml")
    result.stdout.fnmatch_lines(["*- run -*", "*/.alchemy/jobs/x-train-* (attempt 1-r0)"])
    assert "[[PROPERTY|metric.nmi=0.5]]" in (project.path / "r.xml").read_text()


def test_leaving_a_task_by_skip_is_no_error(project: Project) -> None:
    project.write("exp.py", one_case("import pytest; pytest.skip('no data')", criteria='{"nmi": "> 0.1"}'))
    result = project.run("exp.py")
    result.assert_outcomes(skipped=1)
    assert result.ret == 0


def test_skipped_cases_belong_to_their_experiment(project: Project) -> None:
    project.write(
        "exp.py",
        """
        import alchemy as al, pytest
        exp = al.experiment("x", matrix={"how": [pytest.param("a", marks=pytest.mark.skip), "b"]})
        @exp.task(total_steps=1)
        def train(ctx): pass
        """,
    )
    result = project.run("exp.py", "--junitxml=r.xml")
    result.stdout.fnmatch_lines(["how=a*skipped", "2 cases: *"])
    assert '<testsuite name="x" tests="2"' in (project.path / "r.xml").read_text()


def test_what_others_put_into_a_report_stays(scaling: Project) -> None:
    scaling.write(
        "conftest.py",
        """
        def pytest_collection_modifyitems(items):
            for item in items:
                item.user_properties.append(("owner", "me"))
        """,
    )
    scaling.run("experiments", "--junitxml=r.xml")
    assert (scaling.path / "r.xml").read_text().count("[[PROPERTY|owner=me]]") == 6


def test_a_worker_that_dies_leaves_a_row_in_the_summary(project: Project) -> None:
    project.write(
        "exp.py",
        """
        import os
        import alchemy as al
        exp = al.experiment("x", matrix={"n": [1, 2, 3]})
        @exp.task(total_steps=1)
        def train(ctx):
            if ctx.param("n") == 2:
                os._exit(9)
        """,
    )
    result = project.run("-p", "xdist", "-n2", "exp.py")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["n=2*failed", "3 cases: *"])


def test_an_unknown_name_in_k_is_named_by_workers_too(scaling: Project) -> None:
    result = scaling.run("-p", "xdist", "-n2", "experiments", "-k", "ctxlen=1")
    result.stdout.fnmatch_lines(
        ["alchemy: -k: no collected case has a parameter 'ctxlen'; there are: ctx_len, seed"]
    )


def test_auto_means_a_worker_per_gpu(scaling: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    scaling.run("-p", "xdist", "-n", "auto", "experiments", "-v").stdout.fnmatch_lines(
        ["created: 3/3 workers"]
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_ends_a_local_session_in_good_order(project: Project, number: signal.Signals) -> None:
    project.write(
        "exp.py",
        """
        import pathlib, time
        import alchemy as al
        exp = al.experiment("x", matrix={"n": [1, 2]})
        @exp.task(total_steps=1)
        def train(ctx):
            if ctx.param("n") == 2:
                pathlib.Path("started").touch()
                time.sleep(60)
        """,
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "pytest_alchemy.plugin", "exp.py", "--junitxml=r.xml"],
        cwd=project.path,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (project.path / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert 'tests="1"' in (project.path / "r.xml").read_text()
    reasons = [
        json.loads(path.read_text())["reason"]
        for path in project.path.glob(".alchemy/jobs/*/attempts/*/close.json")
    ]
    assert sorted(reasons) == ["cancelled", "completed"]


def test_the_file_of_a_real_session_satisfies_the_schema(scaling: Project) -> None:
    scaling.write(
        "experiments/ends.py",
        """
        import alchemy as al, pytest
        xfail, skip = pytest.mark.xfail, pytest.mark.skip(reason="not today")
        exp = al.experiment("ends", criteria={"x": "> 1"}, tags={"paper": "é<&>"}, matrix={
            "how": ["crash", "refuted", "fine",
                    pytest.param("low", marks=xfail), pytest.param("no", marks=skip)]})
        @exp.task(total_steps=1)
        def train(ctx):
            print("\\x1b[31mred\\x00 ]]> <tag>")
            if ctx.param("how") == "crash":
                raise ValueError("\\x00 broken")
            ctx.log_eval(x=2 if ctx.param("how") == "fine" else float("nan"))
        """,
    )
    scaling.write("experiments/test_ordinary.py", "def test_ok(record_testsuite_property): pass")
    scaling.run("experiments", "--junitxml=r.xml").assert_outcomes(passed=5, failed=5, xfailed=1, skipped=1)
    xmlschema.XMLSchema(SCHEMA).validate(scaling.path / "r.xml")
    suites = {suite.get("name"): suite for suite in ET.parse(scaling.path / "r.xml").getroot()}  # noqa: S314
    assert set(suites) == {"pytest", "scaling", "ends"}
    counts = {name: suites["ends"].get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "5", "failures": "2", "errors": "0", "skipped": "2"}


def test_coverage_sees_the_lines_of_a_task(project: Project) -> None:
    project.write("exp.py", one_case("value = 1; ctx.log_eval(x=value)"))
    result = project.run("-p", "pytest_cov", "--cov=exp", "exp.py")
    result.stdout.fnmatch_lines(["exp.py * 0 * 100%"])


def test_a_typing_error_meant_for_the_cluster_is_told_here_too(scaling: Project) -> None:
    for option, words in (
        ("--alchemy-resource=gpu=1", "did you mean 'gpus'?"),
        ("--alchemy-cluster=x", "pyproject.toml"),
    ):
        result = scaling.run("experiments", option)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"ERROR: *{words}*"])


def test_sys_exit_in_a_task_is_answered_with_what_to_do(project: Project) -> None:
    project.write("exp.py", one_case("raise SystemExit(3)"))
    result = project.run("exp.py", "--junitxml=r.xml")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["SystemExit: *return instead"])
    assert "[[PROPERTY|alchemy.verdict=CRASHED]]" in (project.path / "r.xml").read_text()
