"""The whole path: `pytest --alchemy-backend=slurm` on a real cluster, as a user on a login node types it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import alchemy_agent as agent
from tests.support.slurmcluster import SlurmCluster

SCALING = """
import os
import alchemy as al

exp = al.experiment(
    "scaling",
    criteria={"nmi": "> 0.1", "silhouette": "> 0.3"},
    matrix={"ctx_len": [16, 32], "seed": [1, 2, 3]},
)
lr = al.param("lr", default=0.5)

@exp.task(total_steps=4, eval_every=2)
def train(ctx):
    print("training on", os.environ["SLURMD_NODENAME"])
    for step in ctx.steps():
        ctx.log(loss=1.0 / (step + 1))
        if ctx.should_eval():
            ctx.log_eval(nmi=lr, silhouette=ctx.param("ctx_len") / 64)
"""

WAITING = """
import pathlib, time
import alchemy as al

exp = al.experiment("waiting", matrix={"seed": [1, 2]})

@exp.task(total_steps=1)
def train(ctx):
    pathlib.Path(f"started-{ctx.param('seed')}").touch()
    while not pathlib.Path("go").exists():
        time.sleep(0.05)
"""


class Login:
    """A user's project on the login node of the cluster."""

    def __init__(self, path: Path, cluster: SlurmCluster) -> None:
        self.path = path
        self.root = path / "shared"
        self.cluster = cluster
        self.env = {
            **cluster.env,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "COLUMNS": "160",
        }

    def write(self, name: str, source: str) -> None:
        (self.path / name).write_text(textwrap.dedent(source))

    def start(self, *args: str) -> subprocess.Popen[str]:
        options = ["-p", "pytest_alchemy.plugin", "--alchemy-backend=slurm", f"--alchemy-root={self.root}"]
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *args],
            cwd=self.path,
            env=self.env,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, *args: str, timeout: float = 120) -> tuple[int, str]:
        process = self.start(*args)
        output, _ = process.communicate(timeout=timeout)
        print(output)
        return process.returncode, output

    def runs(self) -> list[agent.RunDir]:
        return [agent.RunDir(path) for path in sorted(self.root.glob("jobs/*"))]

    def submissions(self) -> int:
        return len(list(self.root.glob("submissions/*")))

    def wait_for(self, name: str) -> None:
        deadline = time.monotonic() + 60
        while not (self.path / name).exists():
            assert time.monotonic() < deadline, f"{name} did not appear"
            time.sleep(0.02)

    def live_jobs(self) -> list[str]:
        return self.cluster.run(["squeue", "--noheader", "--array", "--format=%i %t"]).stdout.split("\n")[:-1]


@pytest.fixture
def login(tmp_path: Path, cluster: SlurmCluster) -> Iterator[Login]:
    yield Login(tmp_path, cluster)
    (tmp_path / "go").touch()
    cluster.run(["scancel", "--me", "--quiet"])


def test_every_case_becomes_a_job_and_comes_back_judged(login: Login) -> None:
    login.write("scaling.py", SCALING)
    code, output = login.run("scaling.py", "--junitxml=report.xml", "--tb=short")
    assert code == 1
    assert "3 failed, 3 passed" in output
    assert "silhouette 0.25, wanted > 0.3 (short by 0.05); nmi ok" in output
    assert login.submissions() == 1
    for run in login.runs():
        attempt = run.attempt("1-r0")
        records = {
            name: agent.read_record(getattr(attempt, name)) for name in ("start", "exit", "result", "close")
        }
        assert all(records.values()), records
        assert records["close"]["reason"] == "completed"  # type: ignore[index]
        assert "training on node" in Path(attempt.stdout).read_text()
    suite = ET.parse(login.path / "report.xml").getroot().find("testsuite[@name='scaling']")  # noqa: S314
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("6", "3", "0")
    text = suite.findtext("testcase/system-out") or ""
    assert "[[PROPERTY|alchemy.backend=slurm]]" in text
    assert "training on node" in text


def test_a_case_gets_the_same_parameters_and_random_numbers_as_here(login: Login) -> None:
    login.write(
        "same.py",
        """
        import random
        import alchemy as al
        size = al.param("size", default=(0,))
        opt = {"name": "adam", "lr": 1e-3}
        exp = al.experiment(
            "same", matrix={"size": [(1, 2.0)], "opt": [opt], "seed": [5]}, criteria={"draw": "> 2"}
        )
        @exp.task(total_steps=1)
        def train(ctx):
            assert size == ctx.param("size") == (1, 2.0)
            assert ctx.param("opt") == {"name": "adam", "lr": 0.001}
            ctx.log_eval(draw=random.random())
        """,
    )
    _, remote = login.run("same.py")
    _, local = login.run("same.py", "--alchemy-backend=local")
    lines = [next(line for line in text.splitlines() if line.startswith("draw ")) for text in (remote, local)]
    assert lines[0] == lines[1]
    assert len(login.runs()) == 1


def test_cases_are_reported_as_they_end_while_ordinary_tests_run(login: Login) -> None:
    login.write("waiting.py", WAITING)
    login.write(
        "test_ordinary.py",
        """
        import pathlib, time, pytest
        ups = []
        @pytest.fixture(scope="module")
        def resource():
            ups.append("up")
            yield
            ups.append("down")
        def test_first(resource):
            deadline = time.monotonic() + 60
            while len(list(pathlib.Path().glob("started-*"))) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            pathlib.Path("go").touch()
        @pytest.mark.parametrize("n", range(80))
        def test_more(resource, n):
            time.sleep(0.05)
            assert ups == ["up"]
        """,
    )
    code, output = login.run("waiting.py", "test_ordinary.py", "-v")
    assert code == 0
    lines = [line for line in output.splitlines() if "PASSED" in line]
    cases = [index for index, line in enumerate(lines) if "waiting.py::train" in line]
    assert len(cases) == 2
    assert cases[0] > 0
    assert cases[-1] < len(lines) - 1, "cases were only reported after the last ordinary test"


def test_a_crash_of_user_code_is_a_failure_with_its_own_traceback(login: Login) -> None:
    login.write(
        "crash.py",
        """
        import alchemy as al
        exp = al.experiment("crash")
        @exp.task(total_steps=1)
        def train(ctx):
            print("about to fall")
            helper({})
        def helper(table):
            return table["missing"]
        """,
    )
    code, output = login.run("crash.py")
    assert code == 1
    assert "KeyError: 'missing'" in output
    assert 'crash.py", line 9, in helper' in output
    assert "about to fall" in output
    assert "pytest_alchemy/" not in output
    assert "1 failed" in output


def test_an_interpreter_that_does_not_start_is_an_error(login: Login) -> None:
    login.write("scaling.py", SCALING)
    login.write("pyproject.toml", '[tool.alchemy.clusters.here]\npython = "/nonexistent/python"\n')
    code, output = login.run("scaling.py", "-k", "seed=1", "--alchemy-cluster=here")
    assert code == 20
    assert "2 errors" in output
    assert "environment: " in output
    assert "/nonexistent/python" in output


def test_a_profile_enters_the_environment_and_limits_hold(login: Login) -> None:
    login.write(
        "profile.py",
        """
        import os
        import alchemy as al
        exp = al.experiment("profile", resources={"time": "5", "gpus": 1}, criteria={"ok": "== 1"})
        @exp.task(total_steps=1)
        def train(ctx):
            ctx.log_eval(ok=os.environ["SITE"] == "a b" and os.environ["CUDA_VISIBLE_DEVICES"] == "0")
        """,
    )
    login.write(
        "pyproject.toml",
        """
        [tool.alchemy.clusters.here]
        setup = ["export SITE='a b'"]
        options = ["--nice=10"]
        [tool.alchemy.clusters.here.limits]
        time = "10"
        """,
    )
    assert login.run("profile.py", "--alchemy-cluster=here")[0] == 0
    code, output = login.run("profile.py", "--alchemy-cluster=here", "--alchemy-resource", "time=20")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "time=20" in output
    assert login.submissions() == 1


def test_what_slurm_refuses_is_an_error_in_its_own_words(login: Login) -> None:
    login.write("scaling.py", SCALING)
    code, output = login.run("scaling.py", "-k", "seed=1", "--alchemy-resource", "partition=nowhere")
    assert code == 20
    assert "submit_refused: " in output
    assert "invalid partition" in output.lower()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--alchemy-root=/proc/nowhere"], "choose another with --alchemy-root"),
        (["--alchemy-resource", "gpu=1"], "did you mean 'gpus'?"),
        (["--alchemy-resource", "gpus"], "takes KEY=VALUE"),
        (["--alchemy-cluster=nowhere"], "pyproject.toml is not there"),
        (["--stepwise"], "with a remote backend use --lf"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_settings_are_refused_before_anything_is_submitted(
    login: Login, args: list[str], words: str
) -> None:
    login.write("scaling.py", SCALING)
    code, output = login.run("scaling.py", *args)
    assert code == pytest.ExitCode.USAGE_ERROR
    assert words in output
    assert login.submissions() == 0


def test_sbatch_that_is_not_there_is_said_before_anything_is_written(login: Login) -> None:
    login.write("scaling.py", SCALING)
    login.env["PATH"] = str(login.path)
    code, output = login.run("scaling.py")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "sbatch is not on PATH" in output


def test_skips_and_vetoes_cost_no_job_and_xfail_is_kept(login: Login) -> None:
    login.write(
        "marks.py",
        """
        import alchemy as al, pytest
        p, m = pytest.param, pytest.mark
        exp = al.experiment("marks", criteria={"x": "> 1"}, matrix={"how": [
            p("skip", marks=m.skip(reason="not today")), p("norun", marks=m.xfail(run=False)),
            p("low", marks=m.xfail), p("crash", marks=m.xfail), "fine", "veto"]})
        @exp.task(total_steps=1)
        def train(ctx):
            if ctx.param("how") == "crash":
                raise ValueError("not an expected failure")
            ctx.log_eval(x=2 if ctx.param("how") == "fine" else 0)
        """,
    )
    login.write(
        "conftest.py",
        """
        import pytest
        def pytest_runtest_setup(item):
            if "veto" in item.name:
                pytest.skip("vetoed")
        """,
    )
    code, output = login.run("marks.py")
    assert code == 1
    assert "1 failed, 1 passed, 2 skipped, 2 xfailed" in output
    assert len(login.runs()) == 3


def test_the_number_of_workers_is_ignored_with_a_word(login: Login) -> None:
    login.write("scaling.py", SCALING)
    code, output = login.run("scaling.py", "-p", "xdist", "-n", "2", "-k", "ctx_len=32 and seed=1")
    assert code == 0
    assert "-n 2 ignored: one process dispatches all jobs" in output


def test_maxfail_cancels_what_waits_and_leaves_what_runs(login: Login) -> None:
    login.write("waiting.py", WAITING)
    login.write(
        "crash.py",
        """
        import pathlib, time
        import alchemy as al
        exp = al.experiment("crash")
        @exp.task(total_steps=1)
        def train(ctx):
            while not pathlib.Path("started-1").exists():
                time.sleep(0.05)
            raise ValueError
        """,
    )
    login.write(
        "late.py",
        """
        import alchemy as al
        exp = al.experiment("late", resources={"nodes": 2, "cpus": 32})
        @exp.task(total_steps=1)
        def train(ctx): pass
        """,
    )
    code, output = login.run("waiting.py", "crash.py", "late.py", "-x")
    assert code == 1
    assert "the jobs live on in Slurm" in output
    deadline = time.monotonic() + 30
    while (jobs := login.live_jobs()) and any(job.endswith(" PD") for job in jobs):
        assert time.monotonic() < deadline, jobs
        time.sleep(0.1)
    assert [job.split()[1] for job in jobs] == ["R", "R"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_leaving_detaches_and_the_jobs_live_on(login: Login, number: signal.Signals) -> None:
    login.write("waiting.py", WAITING)
    process = login.start("waiting.py", "--junitxml=report.xml")
    login.wait_for("started-1")
    login.wait_for("started-2")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 21, output
    assert "the jobs live on in Slurm" in output
    assert (login.path / "report.xml").exists()
    assert len(login.live_jobs()) == 2
    (login.path / "go").touch()
    deadline = time.monotonic() + 60
    while not all(os.path.exists(run.attempt("1-r0").result) for run in login.runs()):  # noqa: PTH110
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_second_ctrl_c_cancels(login: Login) -> None:
    login.write("waiting.py", WAITING)
    process = login.start("waiting.py")
    login.wait_for("started-1")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    for line in process.stdout:
        if "press Ctrl-C again" in line:
            break
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert "cancelled 2 jobs" in output
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    deadline = time.monotonic() + 30
    while login.live_jobs():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_job_cancelled_from_outside_is_an_error(login: Login) -> None:
    login.write("waiting.py", WAITING)
    process = login.start("waiting.py", "-k", "seed=1")
    login.wait_for("started-1")
    login.cluster.run(["scancel", "--me"])
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 20, output
    assert "cancelled: " in output
    assert "1 error" in output


def test_collecting_submits_nothing(login: Login) -> None:
    login.write("scaling.py", SCALING)
    assert login.run("scaling.py", "--collect-only", "-q")[0] == 0
    login.write("broken.py", "import alchemy as al\nexp = al.experiment(\n")
    assert login.run("scaling.py", "broken.py")[0] == pytest.ExitCode.INTERRUPTED
    assert login.submissions() == 0
