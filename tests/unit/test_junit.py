"""How pytest's suite is regrouped; files of real sessions are in tests/plugin/test_junit_file.py."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_alchemy.junit import rewrite
from pytest_alchemy.junit_suites import Printed, escape, excerpt

if TYPE_CHECKING:
    from pathlib import Path

SUITE = (
    '<testsuite name="pytest" errors="0" failures="0" skipped="0" tests="0" time="9.000"'
    ' timestamp="2026-01-02T03:04:05.678+00:00" hostname="here">{}</testsuite>'
)


def case(name: str, *, experiment: str = "", classname: str = "exps.file", inside: str = "") -> str:
    """A testcase as pytest writes it for a case of `experiment`, or for an ordinary test."""
    node = f"exps/file.py::{name}"
    properties = (
        f'<properties><property name="alchemy.experiment" value="{experiment}"/>'
        f'<property name="alchemy.node" value="{node}"/></properties>'
    )
    inside = properties + inside if experiment else inside
    return f'<testcase classname="{classname}" name="{name}" time="1.500">{inside}</testcase>'


def said(experiment: str, *properties: tuple[str, str], out: str = "") -> Printed:
    return Printed((("alchemy.experiment", experiment), *properties), (("Captured stdout call", out),))


def rewritten(path: Path, *cases: str, printed: dict[str, Printed] | None = None) -> ET.Element:
    path.write_text(f'<testsuites name="pytest tests">{SUITE.format("".join(cases))}</testsuites>')
    rewrite(path, printed or {})
    return ET.parse(path).getroot()  # noqa: S314


def system_out(root: ET.Element) -> str:
    (text,) = [element.text or "" for element in root.iter("system-out")]
    return text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "report.xml"


def test_every_experiment_is_a_suite_after_the_ordinary_one(path: Path) -> None:
    root = rewritten(path, case("a", experiment="E"), case("plain"), case("b", experiment="F"))
    names = [(suite.get("name"), [c.get("name") for c in suite.iter("testcase")]) for suite in root]
    assert names == [("pytest", ["plain"]), ("E", ["a"]), ("F", ["b"])]


def test_a_suite_without_ordinary_tests_is_left_out(path: Path) -> None:
    assert [suite.get("name") for suite in rewritten(path, case("a", experiment="E"))] == ["E"]


def test_an_experiment_may_be_called_like_pytests_own_suite(path: Path) -> None:
    root = rewritten(path, case("a", experiment="pytest"), case("plain"))
    assert [suite.get("name") for suite in root] == ["pytest", "pytest"]


def test_counts_are_of_testcases_and_the_root_has_their_sums(path: Path) -> None:
    root = rewritten(
        path,
        case("a", experiment="E", inside='<failure message="x"/><failure message="y"/>'),
        case("b", experiment="E", inside='<error message="x"/>'),
        case("c", experiment="E", inside='<skipped message="x"/>'),
        case("plain", inside='<failure message="x"/>'),
    )
    counts = {s.get("name"): [s.get(k) for k in ("tests", "failures", "errors", "skipped")] for s in root}
    assert counts == {"pytest": ["1", "1", "0", "0"], "E": ["3", "1", "1", "1"]}
    assert root.attrib == {
        "name": "pytest tests",
        "tests": "4",
        "failures": "2",
        "errors": "1",
        "time": "9.0",
    }


def test_a_failure_and_a_broken_teardown_are_one_testcase(path: Path) -> None:
    root = rewritten(
        path,
        case("a", experiment="E", inside='<failure message="x"/>'),
        case("a", experiment="E", inside='<error message="y"/>'),
    )
    (only,) = root.iter("testcase")
    assert [child.tag for child in only] == ["failure", "error", "system-out"]
    assert only.get("time") == "3.0"


def test_a_nameless_testcase_of_an_interrupted_test_is_dropped(path: Path) -> None:
    root = rewritten(path, '<testcase time="0.000" />', case("a", experiment="E"))
    assert [c.get("name") for c in root.iter("testcase")] == ["a"]


@pytest.mark.parametrize(
    ("experiment", "classname"),
    [("file", "exps.file"), ("other", "exps.file.other"), ("v1.2", "exps.file.v1_2")],
)
def test_the_classname_ends_in_the_experiment(path: Path, experiment: str, classname: str) -> None:
    root = rewritten(path, case("a", experiment=experiment))
    assert [c.get("classname") for c in root.iter("testcase")] == [classname]


def test_the_time_is_the_jobs_where_it_is_known(path: Path) -> None:
    printed = {
        "exps/file.py::a": said("E", ("alchemy.duration_s", "3600.25")),
        "exps/file.py::b": said("E", ("alchemy.duration_s", "nan")),
    }
    root = rewritten(path, case("a", experiment="E"), case("b", experiment="E"), printed=printed)
    assert [c.get("time") for c in root.iter("testcase")] == ["3600.25", "1.5"]
    assert root[0].get("time") == "3601.75"


def test_the_last_value_of_a_property_holds_but_every_log_is_kept(path: Path) -> None:
    properties = [("metric.nmi", "0.1"), ("alchemy.log", "/a"), ("alchemy.log", "/b"), ("metric.nmi", "0.2")]
    root = rewritten(
        path, case("a", experiment="E"), printed={"exps/file.py::a": said("E", *properties, out="hello\n")}
    )
    assert system_out(root).splitlines() == [
        "[[PROPERTY|alchemy.experiment=E]]",
        "[[PROPERTY|metric.nmi=0.2]]",
        "[[ATTACHMENT|/a]]",
        "[[ATTACHMENT|/b]]",
        "",
        f"{' Captured stdout call ':-^80}",
        "hello",
    ]
    assert not list(root.iter("properties"))


def test_a_property_stays_on_one_line(path: Path) -> None:
    printed = {"exps/file.py::a": said("E", ("k", "one\ntwo\u2028three\r\x1b"))}
    root = rewritten(path, case("a", experiment="E"), printed=printed)
    assert r"[[PROPERTY|k=one\ntwo\u2028three\r#x1B]]" in system_out(root)


def test_facts_of_the_suite_are_lifted_once_and_differing_ones_all_kept(path: Path) -> None:
    printed = {
        f"exps/file.py::{name}": said("E", ("alchemy.suite.backend", "slurm"), ("alchemy.suite.steps", steps))
        for name, steps in (("a", "10"), ("b", "20"), ("c", "10"))
    }
    root = rewritten(path, *(case(name, experiment="E") for name in "abc"), printed=printed)
    lifted = {p.get("name"): p.get("value") for p in root[0].iterfind("properties/property")}
    assert lifted == {"backend": "slurm", "steps": "10; 20"}
    assert root[0][0].tag == "properties"
    assert "alchemy.suite" not in path.read_text()


@pytest.mark.parametrize("classname", ["exps.file", "ci.exps.file"])
def test_a_case_without_properties_is_found_by_its_address(path: Path, classname: str) -> None:
    lost = case("a[x=1]", classname=classname, inside='<error message="worker died"/>')
    root = rewritten(path, lost, case("a[x=2]"), printed={"exps/file.py::a[x=1]": said("E")})
    assert [(s.get("name"), s.get("errors")) for s in root] == [("pytest", "0"), ("E", "1")]


def test_what_pytest_wrote_of_the_output_is_not_doubled(path: Path) -> None:
    written = "<system-out>theirs</system-out><system-err>errors</system-err>"
    root = rewritten(
        path,
        case("a", experiment="E", inside=written),
        printed={"exps/file.py::a": said("E", out="ours")},
    )
    assert system_out(root) == "[[PROPERTY|alchemy.experiment=E]]\n\ntheirs"
    assert [e.text for e in root.iter("system-err")] == ["errors"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "<testsuites",
        "<html/>",
        "<testsuites/>",
        f"<testsuites>{SUITE.format('')}{SUITE.format('')}</testsuites>",
    ],
)
def test_a_file_that_surprises_us_stays_as_it_is(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises((SyntaxError, ValueError)):
        rewrite(path, {})
    assert path.read_text() == content
    assert os.listdir(path.parent) == ["report.xml"]  # noqa: PTH208


def test_a_missing_file_and_a_pipe_are_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        rewrite(path, {})
    os.mkfifo(path)
    with pytest.raises(ValueError, match="not a regular file"):
        rewrite(path, {})


def test_mode_and_link_survive(path: Path) -> None:
    target = path.with_name("real.xml")
    target.write_text(f"<testsuites>{SUITE.format(case('a', experiment='E'))}</testsuites>")
    target.chmod(0o640)
    path.symlink_to(target)
    rewrite(path, {})
    assert path.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert '<testsuite name="E"' in target.read_text()


@given(st.text())
def test_escaped_text_is_always_xml_and_comes_back(text: str) -> None:
    escaped = escape(text)
    element = ET.Element("a", b=escaped)
    assert ET.fromstring(ET.tostring(element)).get("b") == escaped  # noqa: S314


def test_escaping_is_pytests() -> None:
    assert escape("a\x1b[31mü\x00\ud800\t\n\x7f😀") == "a#x1B[31mü#x00#xD800\t\n#x7F😀"


@given(st.lists(st.text(max_size=300), max_size=4), st.integers(0, 600))
def test_an_excerpt_keeps_to_its_limit(texts: list[str], limit: int) -> None:
    result = excerpt([("t", text) for text in texts], limit)
    overhead = 200 * len(texts)  # title and note
    assert len(result.encode()) <= limit + overhead


def test_a_short_text_is_whole_beside_a_long_one() -> None:
    result = excerpt([("out", "x" * 10_000 + "the end"), ("err", "Traceback\n")], 1000)
    assert "Traceback\n" in result
    assert "the end" in result
    assert "[... left out: the middle of 10,007 characters ...]" in result
    assert 900 < len(result) < 1300


def test_of_a_progress_bar_the_last_state_is_left() -> None:
    assert excerpt([("err", " 1%\r 50%\r100%\r\ndone\r\n")], 1000).splitlines()[1:] == ["100%", "done"]
