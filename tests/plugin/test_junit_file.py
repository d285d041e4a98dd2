"""The JUnit file of real sessions, in which ordinary tests carry the properties that our items carry."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import xmlschema
from junitparser import Properties, TestSuite, xunit2

if TYPE_CHECKING:
    from collections.abc import Callable

    Session = Callable[..., pytest.RunResult]

CONFTEST = """
    import pytest
    from pytest_alchemy.junit import JUnit

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(config):
        config.addinivalue_line("markers", "case(experiment, **properties): stands for a case")
        if not hasattr(config, "workerinput"):
            config.pluginmanager.register(JUnit(config))

    def pytest_collection_modifyitems(items):
        for item in items:
            if mark := item.get_closest_marker("case"):
                properties = {"alchemy.experiment": mark.args[0], "alchemy.node": item.nodeid, **mark.kwargs}
                item.user_properties += properties.items()
"""
MIXED = """
    import sys
    import pytest

    scaling = pytest.mark.case(
        "scaling", **{"param.n": "1", "alchemy.duration_s": "86400.5", "alchemy.suite.backend": "slurm"}
    )

    @pytest.fixture
    def broken_setup(): raise OSError("no disk")

    @pytest.fixture
    def broken_teardown():
        yield
        raise OSError("no disk")

    @scaling
    def test_passes(record_property):
        print("to stdout")
        print("to stderr", file=sys.stderr)
        record_property("metric.nmi", "0.412")
    @scaling
    def test_fails(): assert not "hypothesis"
    @scaling
    @pytest.mark.skip(reason="not today")
    def test_is_skipped(): pass
    @scaling
    @pytest.mark.xfail(reason="known")
    def test_is_refuted_as_expected(): assert 0
    @scaling
    def test_errs(broken_setup): pass
    @scaling
    def test_fails_twice(broken_teardown): assert 0
    @pytest.mark.case("other")
    def test_of_another_experiment(): pass

    def test_ordinary(record_testsuite_property): record_testsuite_property("CI", "yes")
    def test_ordinary_failure(): assert 0
"""


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Session:
    """Run a session of a test file with only the named plugins loaded; it writes report.xml."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest(CONFTEST)

    def run(source: str, *args: str) -> pytest.RunResult:
        pytester.makepyfile(source)
        return pytester.runpytest_subprocess("--junitxml=report.xml", *args)

    return run


@pytest.fixture(scope="module")
def schema() -> xmlschema.XMLSchema10:
    """The Jenkins xUnit plugin's junit-10.xsd (tests/data/junit/README.md)."""
    return xmlschema.XMLSchema10(Path(__file__).parents[1] / "data" / "junit" / "junit-10.xsd")


def suites() -> dict[str, TestSuite]:
    """The suites of report.xml by name, which also shows that junitparser reads what we wrote."""
    return {str(suite.name): suite for suite in xunit2.JUnitXml.fromfile("report.xml")}


def properties(suite: TestSuite) -> dict[str, str]:
    return {item.name: item.value for item in suite.child(Properties) or ()}  # type: ignore[no-untyped-call]


def counts(suite: TestSuite) -> tuple[int, int, int, int]:
    return suite.tests, suite.failures, suite.errors, suite.skipped


def outputs(name: str) -> dict[str, str]:
    return {case.name: case.system_out or "" for case in suites()[name]}


def test_outcomes_are_counted_in_the_suite_of_their_experiment(session: Session) -> None:
    session(MIXED)
    report = xunit2.JUnitXml.fromfile("report.xml")
    assert {name: counts(suite) for name, suite in suites().items()} == {
        "pytest": (2, 1, 0, 0),
        "scaling": (6, 2, 2, 2),
        "other": (1, 0, 0, 0),
    }
    assert (report.tests, report.failures, report.errors) == (9, 3, 2)


def test_the_file_obeys_the_schema_of_the_jenkins_xunit_plugin(
    session: Session, schema: xmlschema.XMLSchema10
) -> None:
    session(MIXED)
    schema.validate("report.xml")


def test_ordinary_tests_keep_the_properties_of_pytests_suite(session: Session) -> None:
    session(MIXED)
    found = suites()
    assert properties(found["pytest"]) == {"CI": "yes"}
    assert properties(found["scaling"]) == {"backend": "slurm"}
    assert properties(found["other"]) == {}


def test_a_case_carries_properties_and_output(session: Session) -> None:
    session(MIXED)
    lines = outputs("scaling")["test_passes"].splitlines()
    assert "[[PROPERTY|param.n=1]]" in lines
    assert "[[PROPERTY|metric.nmi=0.412]]" in lines
    node = "test_outcomes.py::test_passes"
    assert any(line.startswith("[[PROPERTY|alchemy.node=") and "::test_passes]]" in line for line in lines), (
        node
    )
    assert lines.index("to stdout") < lines.index("to stderr")


def test_the_time_is_the_jobs(session: Session) -> None:
    session(MIXED)
    times = {case.name: case.time for case in suites()["scaling"]}
    assert times["test_passes"] == 86400.5


def test_a_case_skipped_at_setup_stays_with_its_experiment(session: Session) -> None:
    session(MIXED)
    (case,) = [case for case in suites()["scaling"] if case.name == "test_is_skipped"]
    assert [result.message for result in case.result] == ["not today"]


def test_under_xdist_the_file_says_the_same(session: Session, schema: xmlschema.XMLSchema10) -> None:
    session(MIXED)
    serial = {name: (counts(suite), sorted(outputs(name))) for name, suite in suites().items()}
    session(MIXED, "-p", "xdist.plugin", "-n2")
    schema.validate("report.xml")
    parallel = {name: (counts(suite), sorted(outputs(name))) for name, suite in suites().items()}
    assert parallel == serial
    assert "to stderr" in outputs("scaling")["test_passes"]
    assert "[[PROPERTY|metric.nmi=0.412]]" in outputs("scaling")["test_passes"]


def test_a_case_whose_worker_died_is_an_error_of_its_experiment(session: Session) -> None:
    session(
        """
        import os, signal, pytest

        @pytest.mark.case("scaling", **{"param.n": "1"})
        @pytest.mark.parametrize("n", [1])
        def test_dies(n): os.kill(os.getpid(), signal.SIGKILL)
        """,
        *("-p", "xdist.plugin", "-n1", "--max-worker-restart=0"),
    )
    assert {name: counts(suite) for name, suite in suites().items()} == {"scaling": (1, 0, 1, 0)}
    assert "[[PROPERTY|param.n=1]]" in outputs("scaling")["test_dies[1]"]


def test_a_case_that_was_rerun_is_one_testcase_with_its_last_values(session: Session) -> None:
    session(
        """
        import pytest
        attempts = []

        @pytest.mark.case("scaling")
        def test_passes_at_last(record_property):
            attempts.append(1)
            print("attempt", len(attempts))
            record_property("alchemy.attempt", f"{len(attempts)}-r0")
            assert len(attempts) == 2
        """,
        *("-p", "pytest_rerunfailures", "--reruns=1"),
    )
    assert {name: counts(suite) for name, suite in suites().items()} == {"scaling": (1, 0, 0, 0)}
    (text,) = outputs("scaling").values()
    assert "attempt 2" in text
    assert text.count("[[PROPERTY|alchemy.attempt=") == 1
    assert "[[PROPERTY|alchemy.attempt=2-r0]]" in text


def test_any_output_gives_a_valid_file(session: Session, schema: xmlschema.XMLSchema10) -> None:
    session(
        r"""
        import sys, pytest

        @pytest.mark.case("größe ☃", **{"metric.<&>": "line\nline", "param.s": "\x00]]>"})
        @pytest.mark.parametrize("s", ["ü", "\x07", "a\nb"])
        def test_prints(s):
            sys.stdout.write("\x1b[31mred\x1b[0m ]]> <&> ünï \U0001f600 \x00\x0b\ufffe\n")
            sys.stdout.buffer.write(b"\xff\xfe not utf-8\n")
            assert not s
        """
    )
    schema.validate("report.xml")
    texts = outputs("größe ☃").values()
    assert len(texts) == 3
    for text in texts:
        assert "#x1B[31mred#x1B[0m ]]> <&> ünï 😀 #x00#x0B#xFFFE\n" in text
        assert "not utf-8" in text
        assert r"[[PROPERTY|metric.<&>=line\nline]]" in text
        assert "[[PROPERTY|param.s=#x00]]>]]" in text


def test_of_a_huge_log_beginning_and_end_are_kept(session: Session) -> None:
    session(
        """
        import pytest

        @pytest.mark.case("scaling")
        def test_prints():
            print("the beginning")
            for _ in range(10 * 1024): print("x" * 1023)
            print("the end")
        """
    )
    text = outputs("scaling")["test_prints"]
    assert "the beginning" in text
    assert "the end" in text
    assert 60_000 < len(text) < 70_000


def test_an_interrupted_session_has_no_nameless_testcase(session: Session) -> None:
    result = session(
        """
        import pytest

        @pytest.mark.case("scaling")
        def test_ends(): pass
        @pytest.mark.case("scaling")
        def test_is_interrupted(): raise KeyboardInterrupt
        """
    )
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert {name: counts(suite) for name, suite in suites().items()} == {"scaling": (1, 0, 0, 0)}
    assert list(outputs("scaling")) == ["test_ends"]


def test_without_experiments_the_file_is_pytests(session: Session) -> None:
    session("def test_ordinary(record_property): record_property('k', 'v')")
    text = Path("report.xml").read_text(encoding="utf-8")
    assert '<properties><property name="k" value="v" /></properties>' in text
    assert text.startswith('<?xml version="1.0" encoding="utf-8"?>')  # ours has single quotes


def test_attributes_and_output_that_ini_settings_ask_for_are_kept(session: Session) -> None:
    session(MIXED, "-o", "junit_family=xunit1", "-o", "junit_logging=all", "--junitprefix=ci")
    text = Path("report.xml").read_text(encoding="utf-8")
    (case,) = [case for case in suites()["scaling"] if case.name == "test_passes"]
    assert case.classname.startswith("ci.")
    assert text.count('file="test_') == 9
    assert (case.system_out or "").count("to stdout") == 1
    assert (case.system_err or "").count("to stderr") == 1


@pytest.mark.parametrize(
    "damage", ["path.unlink()", "path.write_text('<testsuites')", "path.unlink(); path.mkdir()"]
)
def test_a_file_somebody_else_damaged_is_a_warning_not_a_failure(
    pytester: pytest.Pytester, session: Session, damage: str
) -> None:
    pytester.makepyfile(
        damaging=f"""
        import pathlib, pytest

        @pytest.hookimpl(trylast=True)
        def pytest_sessionfinish():
            path = pathlib.Path("report.xml")
            {damage}
        """
    )
    source = "import pytest\n@pytest.mark.case('scaling')\ndef test_passes(): pass"
    result = session(source, "-p", "damaging")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        ["alchemy: */report.xml is as pytest wrote it, without a suite per experiment (*"]
    )


def test_a_session_ended_by_sigterm_that_exits_cleanly_writes_the_file(
    pytester: pytest.Pytester, session: Session
) -> None:
    """The handler that makes an orderly exit of SIGTERM is the dispatcher's; the file must follow from it."""
    pytester.makepyfile(
        """
        import os, signal, pytest

        @pytest.mark.case("scaling")
        def test_ends(): pass
        @pytest.mark.case("scaling")
        def test_is_terminated():
            signal.signal(signal.SIGTERM, lambda *_: pytest.exit("SIGTERM received", returncode=143))
            os.kill(os.getpid(), signal.SIGTERM)
        """
    )
    result = subprocess.run([sys.executable, "-m", "pytest", "--junitxml=report.xml"], check=False)
    assert result.returncode == 128 + signal.SIGTERM
    assert list(outputs("scaling")) == ["test_ends"]
