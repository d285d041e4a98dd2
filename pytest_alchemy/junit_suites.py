"""From pytest's one suite to one suite per experiment; `pytest_alchemy/junit.py` says what stands where."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from junitparser import Attr, JUnitXmlError, SystemErr, SystemOut, xunit2
from junitparser.junitparser import Result

from pytest_alchemy.facts import DURATION, EXPERIMENT, LOG, NODE, OF_SUITE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["Case", "Printed", "Report", "Suite", "escape", "excerpt", "read", "regroup"]

CASE_LIMIT = 64 * 1024
"""Bytes of output kept per case."""
FILE_LIMIT = 16 * 1024 * 1024
"""Bytes of output kept in all: GitLab refuses a report above 30 MB."""

# what XML 1.0 calls Char, less DEL: the same set as pytest's own writer
_INVALID = re.compile("[^\t\n\r\x20-\x7e\x80-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINE_ENDS = str.maketrans(
    {"\n": "\\n", "\r": "\\r", "\x85": "\\x85", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)

Properties: TypeAlias = "Sequence[tuple[str, str]]"
"""Names and values; of a name that comes twice the last value holds, except for `alchemy.log`."""
Sections: TypeAlias = "Sequence[tuple[str, str]]"
"""Title and text of each piece of captured output."""


@dataclass(frozen=True, slots=True)
class Printed:
    """What the newest report of a case said."""

    properties: Properties
    sections: Sections


class Case(xunit2.TestCase):
    """A testcase with the attributes that `junit_family = xunit1` adds."""

    file = Attr()
    line = Attr()
    url = Attr()


class Suite(xunit2.TestSuite):
    """A suite of such cases."""

    testcase = Case

    def __iter__(self) -> Iterator[Case]:
        return cast("Iterator[Case]", super().__iter__())


class Report(xunit2.JUnitXml):
    """The root element: xunit2's, because the schema knows no `skipped` there."""

    testsuite = Suite

    def __iter__(self) -> Iterator[Suite]:
        return cast("Iterator[Suite]", super().__iter__())


@dataclass(slots=True)
class _Node:
    """What pytest wrote about one node: two testcases if it failed and then broke in teardown."""

    said: Printed
    written: list[Case] = field(default_factory=list)


def read(path: Path) -> Report:
    """Parse a JUnit file.

    Raises:
        OSError: It can't be read.
        SyntaxError: It is not XML.
        ValueError: It is not JUnit.
    """
    try:
        return cast("Report", Report.fromfile(str(path)))
    except JUnitXmlError as error:
        raise ValueError(str(error)) from error


def regroup(report: Report, printed: Mapping[str, Printed]) -> Report:
    """Return a report with pytest's own suite, which keeps the ordinary tests, then one suite per experiment.

    Args:
        report: As pytest wrote it; parts of it move into the result.
        printed: What cases said, by node id.

    Raises:
        ValueError: There is not exactly one suite.
    """
    found = list(report)
    if len(found) != 1:
        raise ValueError(f"{len(found)} suites where pytest writes one")
    (source,) = found
    ordinary, experiments = _sort(source, printed)
    own = _properties(source)
    suites = [_suite(source, source.name, own, ordinary)] if ordinary or own else []
    limit = min(CASE_LIMIT, FILE_LIMIT // max(1, len(printed)))
    for name, nodes in experiments.items():
        cases = [_case(node, name, limit) for node in nodes]
        suites.append(_suite(source, name, _of_suite(nodes), cases))
    result = Report(report.name)
    result.tests = sum(suite.tests for suite in suites)
    result.failures = sum(suite.failures for suite in suites)
    result.errors = sum(suite.errors for suite in suites)
    if source.time is not None:
        result.time = source.time
    _append(result, suites)
    return result


def _sort(source: Suite, printed: Mapping[str, Printed]) -> tuple[list[Case], dict[str, list[_Node]]]:
    """Split into ordinary testcases, and the nodes of each experiment in the order in which they ended."""
    ids = _Ids(printed)
    ordinary: list[Case] = []
    nodes: dict[str, _Node] = {}
    for case in source:
        if case.name is None:  # pytest leaves one of a test that was interrupted, and does not count it
            continue
        node_id, said = ids.find(case)
        if said is None:
            ordinary.append(case)
        else:
            nodes.setdefault(node_id, _Node(said)).written.append(case)
    experiments: dict[str, list[_Node]] = {}
    for node in nodes.values():
        experiments.setdefault(escape(dict(node.said.properties)[EXPERIMENT]), []).append(node)
    return ordinary, experiments


class _Ids:
    """Finds what the case behind a testcase said.

    By its properties where it has them. A case whose pytest-xdist worker died has none: pytest writes them at
    teardown. But its setup was reported, so it is found by the address that pytest makes of its node id.
    """

    def __init__(self, printed: Mapping[str, Printed]) -> None:
        self._by_id = {escape(node_id): said for node_id, said in printed.items()}
        self._by_name: dict[str, list[tuple[str, str]]] = {}
        for node_id in self._by_id:
            classname, name = _address(node_id)
            self._by_name.setdefault(name, []).append((classname, node_id))

    def find(self, case: Case) -> tuple[str, Printed | None]:
        """Return the node id and what was said, None for an ordinary test."""
        properties = _properties(case)
        as_dict = dict(properties)
        if EXPERIMENT in as_dict:
            node_id = as_dict.get(NODE, f"{case.classname}::{case.name}")
            return node_id, self._by_id.get(node_id, Printed(properties, ()))
        for classname, node_id in self._by_name.get(case.name, ()):
            if f".{case.classname}".endswith(f".{classname}"):  # --junitprefix stands in front
                return node_id, self._by_id[node_id]
        return "", None


def _address(node_id: str) -> tuple[str, str]:
    """Return classname and name as pytest derives them from a node id."""
    names, bracket, params = node_id.partition("[")
    path, *rest = names.split("::")
    *classes, name = [path.removesuffix(".py").replace("/", "."), *rest]
    return ".".join(classes), name + bracket + params


def _case(node: _Node, experiment: str, limit: int) -> Case:
    first = node.written[0]
    case = Case(first.name, _classname(first.classname or "", experiment), _seconds(node))
    case.file, case.line, case.url = first.file, first.line, first.url
    entries = [entry for case in node.written for entry in case]
    for entry in entries:
        if isinstance(entry, Result) and entry.message:
            entry.message = _headline(entry.message, entry.text or "")
    _append(case, [entry for entry in entries if not isinstance(entry, SystemOut)])
    if any(
        isinstance(entry, SystemOut | SystemErr) for entry in entries
    ):  # ini junit_logging asked pytest for it
        output = "\n".join(entry.text or "" for entry in entries if isinstance(entry, SystemOut))
    else:
        output = excerpt(node.said.sections, limit)
    case.system_out = "\n".join([*_lines(node.said.properties), "", output])
    return case


def _headline(message: str, text: str) -> str:
    """Return the one line that dashboards show: pytest writes all of our text into the message."""
    first = text.partition("\n")[0]
    return first if first and first in message else message.partition("\n")[0]


def _classname(pytests: str, experiment: str) -> str:
    last = experiment.replace(".", "_")  # a dot would make packages of it
    return pytests if pytests.rpartition(".")[2] == last else f"{pytests}.{last}"


def _seconds(node: _Node) -> float:
    """Return the seconds the job ran, else those of the reports."""
    try:
        seconds = float(dict(node.said.properties)[DURATION])
    except (KeyError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds):
        seconds = sum(case.time or 0.0 for case in node.written)
    return round(seconds, 3)


def _lines(properties: Properties) -> Iterator[str]:
    """Yield properties and attachments as lines of text, which Testmo, GitLab and Jenkins read in part."""
    for name, value in dict(properties).items():
        if name != LOG and not name.startswith(OF_SUITE):
            yield f"[[PROPERTY|{_one_line(name)}={_one_line(value)}]]"
    for path in dict.fromkeys(value for name, value in properties if name == LOG):
        yield f"[[ATTACHMENT|{_one_line(path)}]]"


def _of_suite(nodes: Iterable[_Node]) -> Properties:
    """Lift what cases say about their suite; where they differ (tasks of one experiment), all is kept."""
    values: dict[str, dict[str, None]] = {}
    for node in nodes:
        for name, value in dict(node.said.properties).items():
            if name.startswith(OF_SUITE):
                values.setdefault(name.removeprefix(OF_SUITE), {})[value] = None
    return [(escape(name), escape("; ".join(distinct))) for name, distinct in values.items()]


def _suite(source: Suite, name: str, properties: Properties, cases: list[Case]) -> Suite:
    """Make a suite, counting each case once even if it has two results of a kind (subtests)."""
    suite = Suite(name)  # type: ignore[no-untyped-call]
    suite.tests = len(cases)
    suite.failures = sum(case.is_failure for case in cases)
    suite.errors = sum(case.is_error for case in cases)
    suite.skipped = sum(case.is_skipped for case in cases)
    suite.time = round(sum(case.time or 0.0 for case in cases), 3)
    suite.timestamp, suite.hostname = source.timestamp, source.hostname
    for key, value in properties:  # the schema's readers want them before the cases
        suite.add_property(key, value)
    _append(suite, cases)
    return suite


def _properties(element: Any) -> Properties:
    return [(item.name, item.value) for item in element.properties()]


def _append(parent: Any, children: Sequence[Any]) -> None:
    """Append all, without the counting that junitparser's own methods repeat for each case."""
    parent.extend(children)


def escape(text: str) -> str:
    """Write characters that XML can't hold visibly, as pytest does: `#x1B` for an escape."""
    return _INVALID.sub(_visible, text)


def _visible(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"#x{code:02X}" if code <= 0xFF else f"#x{code:04X}"


def _one_line(text: str) -> str:
    return escape(text.translate(_LINE_ENDS))


def excerpt(sections: Sections, limit: int) -> str:
    """Return the beginning and the end of what was printed, under the titles pytest uses.

    Args:
        sections: Title and text of each piece.
        limit: Bytes of UTF-8 for all texts together; what short ones leave, longer ones may use.
    """
    texts = {number: _as_shown(text) for number, (_, text) in enumerate(sections)}
    left = limit
    by_length = sorted(texts, key=lambda number: len(texts[number]))
    for remaining, number in zip(range(len(texts), 0, -1), by_length, strict=True):
        texts[number] = _clip(texts[number], left // remaining)
        left = max(0, left - len(texts[number].encode()))
    return "\n".join(
        f"{f' {escape(title)} ':-^80}\n{texts[number]}"
        for number, (title, _) in enumerate(sections)
        if texts[number]
    )


def _as_shown(text: str) -> str:
    """Drop what a carriage return overwrote, as a terminal does: of a progress bar the last state is left."""
    if "\r" not in text:
        return text
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def _clip(text: str, limit: int) -> str:
    """Escape and cut to `limit` bytes and a note; mostly the end is kept, where tracebacks stand."""
    whole = escape(text) if len(text) <= limit else ""
    if len(whole.encode()) <= limit and len(text) <= limit:
        return whole
    begin, end = limit // 4, limit - limit // 4
    # cut before and after escaping: escaping only ever lengthens, and all of a long text would take seconds
    head = escape(text[:begin]).encode()[:begin].decode(errors="ignore")
    tail = escape(text[max(0, len(text) - end) :]).encode()
    return (
        f"{head}\n[... left out: the middle of {len(text):,} characters ...]\n"
        f"{tail[max(0, len(tail) - end) :].decode(errors='ignore')}"
    )
