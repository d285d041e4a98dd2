"""The loop for remote backends, with a third party's backend from a conftest: no cluster needed."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from tests.plugin.conftest import Project

BACKEND = '''
import pathlib, queue, threading, time
import pytest
from alchemy.result import ErrorInfo, Evaluation, Result
from pytest_alchemy.events import Finished, Progressed, Queued, Started
from pytest_alchemy.outcome import Outcome, Reason

class Threads:
    """Every run is a thread that ends after `delay` seconds as its parameter `how` says."""
    root = pathlib.Path("root").absolute()
    def __init__(self): self.queue = queue.SimpleQueue()
    def check(self, plans): pass
    def events(self): return self.queue
    def cancel(self, runs, *, pending_only=False): return True
    def how_to_return(self): return ["threads live on"]
    def close(self): pass
    def submit(self, plans):
        pathlib.Path("submitted").write_text(str(len(plans)))
        for plan in plans:
            threading.Thread(target=self.work, args=(plan.spec,), daemon=True).start()
    def work(self, spec):
        self.queue.put(Queued(spec.run, "job"))
        time.sleep(spec.params.get("delay", 0))
        self.queue.put(Started(spec.run, "1-r0", "host"))
        self.queue.put(Progressed(spec.run, 1, 2, 1.0, 1.0, {"loss": 0.5}))
        how = spec.params.get("how", "good")
        error = ErrorInfo("builtins.ValueError", "oops", "Traceback …") if how == "crash" else None
        result = Result(1, 1, Evaluation(0, {"x": 0.0 if how == "bad" else 2.0}), {}, 1.5, error)
        reason = {"lost": Reason.NODE_FAILURE, "crash": Reason.USER_ERROR}.get(how, Reason.COMPLETED)
        self.queue.put(Finished(spec.run, Outcome(
            reason, spec.run, "1-r0", self.root / "jobs" / spec.run,
            result=None if how == "lost" else result, evidence="said the host",
            queued_s=3.25, duration_s=1.5, stdout="from the job")))

@pytest.hookimpl(optionalhook=True)
def pytest_alchemy_backends(config):
    return {"threads": lambda config: Threads()}
'''


@pytest.fixture
def threads(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    project.write("conftest.py", BACKEND)
    monkeypatch.setenv("PYTEST_ADDOPTS", "--alchemy-backend=threads")
    return project


def cases(project: Project, matrix: str) -> None:
    project.write(
        "exp.py",
        f"""
        import alchemy as al, pytest
        xfail = pytest.mark.xfail
        exp = al.experiment("x", matrix={matrix}, criteria={{"x": "> 1"}})
        @exp.task(total_steps=1)
        def train(ctx): raise AssertionError("must not run here")
        """,
    )


def test_a_third_party_backend_is_found_and_used(threads: Project) -> None:
    cases(threads, '{"how": ["good", "bad", "crash", "lost"]}')
    result = threads.run("exp.py", "-v")
    result.assert_outcomes(passed=1, failed=2, errors=1)
    for line in ("x 0, wanted > 1 (short by 1)", "ValueError: oops", "node_failure: said the host"):
        result.stdout.fnmatch_lines([line])
    assert result.ret == 20


def test_the_message_in_the_junit_file_is_the_first_line(threads: Project) -> None:
    cases(threads, '{"how": ["bad", "crash", "lost"]}')
    threads.run("exp.py", "--junitxml=r.xml")
    root = ET.parse(threads.path / "r.xml").getroot()  # noqa: S314  we wrote it
    assert {element.get("message") for element in [*root.iter("failure"), *root.iter("error")]} == {
        "x 0, wanted > 1 (short by 1)",
        "ValueError: oops",
        "node_failure: said the host",
    }


def test_an_unknown_backend_is_refused_with_the_close_match(threads: Project) -> None:
    result = threads.run("exp.py", "--alchemy-backend=thread")
    result.stderr.fnmatch_lines(
        ["*there is no backend 'thread'; did you mean 'threads'? There are local, slurm, threads"]
    )
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_two_backends_of_one_name_are_refused(threads: Project) -> None:
    threads.write("second.py", "def pytest_alchemy_backends(config): return {'threads': None}")
    result = threads.run("-p", "second", "-p", "no:cacheprovider")
    result.stderr.fnmatch_lines(["*two plugins offer an alchemy backend named 'threads'"])


def test_cases_are_reported_in_the_order_in_which_they_end(threads: Project) -> None:
    cases(threads, '{"delay": [0.9, 0.5, 0.1]}')
    lines = [line for line in threads.run("exp.py", "-v").outlines if "PASSED" in line]
    assert [line.partition("delay=")[2][:3] for line in lines] == ["0.1", "0.5", "0.9"]


def test_durations_are_those_of_the_job_and_its_queue(threads: Project) -> None:
    cases(threads, '{"how": ["good"]}')
    result = threads.run("exp.py", "--durations=0", "--junitxml=r.xml")
    result.stdout.fnmatch_lines(["*3.25s setup *train?how=good?", "*1.50s call *train?how=good?"])
    assert 'time="1.5"' in (threads.path / "r.xml").read_text()


@pytest.mark.parametrize(
    ("option", "expected"),
    [("-x", {"failed": 1}), ("--maxfail=2", {"failed": 2}), ("--exitfirst", {"failed": 1})],
)
def test_stopping_early_reports_no_more_than_asked(
    threads: Project, option: str, expected: dict[str, int]
) -> None:
    cases(threads, '{"how": ["bad"], "delay": [0, 0.4, 0.8, 1.2]}')
    result = threads.run("exp.py", option)
    assert result.parseoutcomes() == expected
    result.stdout.fnmatch_lines(["*threads live on*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_last_failed_and_failed_first(threads: Project) -> None:
    cases(threads, '{"how": ["good", "bad"], "seed": [1, 2]}')
    threads.run("exp.py").assert_outcomes(passed=2, failed=2)
    threads.run("exp.py", "--lf").assert_outcomes(failed=2)
    threads.run("exp.py", "--ff").assert_outcomes(passed=2, failed=2)
    threads.run("exp.py", "--lf", "-k", "seed=1").assert_outcomes(failed=1, deselected=3)


@pytest.mark.parametrize("option", ["--collect-only", "--setup-plan", "--setup-only"])
def test_looking_submits_nothing(threads: Project, option: str) -> None:
    cases(threads, '{"how": ["good"]}')
    threads.run("exp.py", option)
    assert not (threads.path / "submitted").exists()


def test_a_collection_error_submits_nothing(threads: Project) -> None:
    cases(threads, '{"how": ["good"]}')
    threads.write("broken.py", "import alchemy as al\nal.experiment(")
    assert threads.run("exp.py", "broken.py").ret == pytest.ExitCode.INTERRUPTED
    assert not (threads.path / "submitted").exists()
    threads.run("exp.py", "broken.py", "--continue-on-collection-errors").assert_outcomes(passed=1, errors=1)


@pytest.mark.parametrize("style", ["auto", "long", "short", "line", "native", "no"])
def test_every_traceback_style_works(threads: Project, style: str) -> None:
    cases(threads, '{"how": ["bad", "crash", "lost"]}')
    threads.run("exp.py", f"--tb={style}").assert_outcomes(failed=2, errors=1)


@pytest.mark.parametrize(
    "plugins",
    [
        ["-p", "pytest_timeout", "--timeout=0.3"],
        ["-p", "pytest_rerunfailures", "--reruns=1"],
        ["-p", "pytest_randomly"],
        ["-p", "pytest_cov", "--cov=."],
        ["-p", "no:logging", "-p", "no:cacheprovider"],
        ["-s"],
        ["-q"],
        ["-qq"],
        ["-rA"],
    ],
    ids=" ".join,
)
def test_it_gets_along_with_others(threads: Project, plugins: list[str]) -> None:
    cases(threads, '{"how": ["good", "bad", "lost"], "delay": [0.6]}')
    result = threads.run("exp.py", "-W", "error", "--junitxml=r.xml", *plugins)
    assert result.ret == 20
    assert (threads.path / "submitted").read_text() == "3"
    text = (threads.path / "r.xml").read_text()
    assert 'tests="3" failures="1" errors="1"' in text


def test_without_a_terminal_reporter_the_file_and_the_exit_code_still_speak(threads: Project) -> None:
    cases(threads, '{"how": ["good", "bad"]}')
    result = threads.run("exp.py", "-p", "no:terminal", "--junitxml=r.xml")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert 'tests="2" failures="1" errors="0"' in (threads.path / "r.xml").read_text()


def test_marks_and_vetoes_are_asked_before_anything_is_submitted(threads: Project) -> None:
    cases(
        threads,
        '{"how": ["good", pytest.param("bad", marks=xfail), pytest.param("crash", marks=xfail),'
        ' pytest.param("lost", marks=pytest.mark.skip),'
        ' pytest.param("x", marks=pytest.mark.xfail(run=False))]}',
    )
    threads.run("exp.py").assert_outcomes(passed=1, xfailed=2, failed=1, skipped=1)
    assert (threads.path / "submitted").read_text() == "3"


def test_fixtures_of_ordinary_tests_go_up_and_down_once(threads: Project) -> None:
    cases(threads, '{"delay": [0, 0.1, 0.2, 0.3]}')
    threads.write(
        "test_ordinary.py",
        """
        import pytest, time
        log = []
        @pytest.fixture(scope="session", autouse=True)
        def outer():
            log.append("outer up")
            yield
            assert log == ["outer up", "inner up", "inner down"]
        @pytest.fixture(scope="module")
        def inner():
            log.append("inner up")
            yield
            log.append("inner down")
        @pytest.mark.parametrize("n", range(6))
        def test_slow(inner, n):
            time.sleep(0.1)
        """,
    )
    threads.run("exp.py", "test_ordinary.py").assert_outcomes(passed=10)


def test_an_error_of_setup_itself_is_shown(threads: Project) -> None:
    threads.write("package/__init__.py", "def setup_module(): raise RuntimeError('the real trouble')")
    (threads.path / "exp.py").unlink(missing_ok=True)
    cases(threads, '{"how": ["good"]}')
    (threads.path / "exp.py").rename(threads.path / "package" / "exp.py")
    threads.write(
        "conftest.py",
        BACKEND
        + """
def pytest_runtest_setup(item, asked=[]):
    asked.append(item)
    if len(asked) == 1:
        raise RuntimeError("only once")
""",
    )
    result = threads.run("package/exp.py")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*RuntimeError: *"])
    assert not (threads.path / "submitted").exists() or (threads.path / "submitted").read_text() == "0"


def test_what_ended_while_nobody_looked_is_reported_before_leaving(threads: Project) -> None:
    cases(threads, '{"how": ["good"]}')
    threads.write(
        "test_ordinary.py",
        """
        import os, signal, time
        def test_told_to_leave():
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        """,
    )
    result = threads.run("exp.py", "test_ordinary.py", "-v")
    result.stdout.fnmatch_lines(["*train?how=good? PASSED*"])
    assert "live on" not in result.stdout.str()
    assert result.ret == 128 + 15
