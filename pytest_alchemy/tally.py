"""What the reports of a session add up to, by experiment. Pure: fed with reports, asked for lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from pytest_alchemy.facts import CaseFacts, ToldCheck
from pytest_alchemy.outcome import Reason
from pytest_alchemy.verdict import Verdict

__all__ = ["CaseRow", "ExperimentTally", "Tally"]

_ROWS = 30
"""Cases shown per experiment unless more are asked for."""


@dataclass(frozen=True, slots=True)
class CaseRow:
    """One case as it stands in the summary."""

    facts: CaseFacts
    outcome: str
    """In pytest's words: passed, failed, error, skipped, xfailed, xpassed."""

    @property
    def words(self) -> str:
        """What became of the case, in ours."""
        verdict = self.facts.get("verdict")
        late = self.facts.get("evaluated_after")
        words = self._words(verdict)
        return f"{words} (evaluated after step {late})" if late else words

    def _words(self, verdict: str) -> str:
        if self.outcome == "skipped" or not verdict:
            return self.outcome
        if verdict in {Verdict.CRASHED, Verdict.ERROR}:
            return self.facts.get("reason") or "error"
        if verdict == Verdict.REFUTED and self.outcome == "xfailed":
            return "refuted, as expected"
        if verdict == Verdict.SUPPORTED and self.outcome in {"failed", "xpassed"}:
            return "supported, though expected to fail"
        return verdict.lower()


@dataclass(slots=True)
class ExperimentTally:
    """The cases of one experiment."""

    name: str
    rows: dict[str, CaseRow] = field(default_factory=dict)
    """By node id, in order of arrival; a rerun replaces."""

    def lines(self, *, limit: int | None = _ROWS) -> list[str]:
        """Return the summary: a table of the cases, then the counts."""
        rows = list(self.rows.values())
        counts = Counter(row.words for row in rows)
        shown = rows if limit is None or len(rows) <= limit else _most_telling(rows, limit)
        lines = _table(shown)
        if len(shown) < len(rows):
            lines.append(f"… and {len(rows) - len(shown)} more (all with -v)")
        several = len({row.facts.get("task") for row in rows}) > 1
        for row in shown:
            lines += [f"{_label(row, several_tasks=several)}: {note}" for note in row.facts.notes()]
        lines.append(
            f"{_count(len(rows), 'case')}: "
            + ", ".join(f"{count} {words}" for words, count in counts.most_common())
        )
        return lines


def _most_telling(rows: Sequence[CaseRow], limit: int) -> list[CaseRow]:
    """Return failures first, then the rest, in their order."""
    bad = [row for row in rows if row.outcome not in {"passed", "xfailed", "skipped"}]
    return (bad + [row for row in rows if row not in bad])[:limit] if len(bad) < limit else bad[:limit]


def _table(rows: Sequence[CaseRow]) -> list[str]:
    checks = [row.facts.checks() for row in rows]
    several_tasks = len({row.facts.get("task") for row in rows}) > 1
    wanted = {metric: check.wanted for each in checks for metric, check in each.items()}
    header = ["case", *(f"{metric} {text}" for metric, text in wanted.items()), "steps", "time", "verdict"]
    body = [
        [
            _label(row, several_tasks=several_tasks),
            *(_shown(each.get(metric)) for metric in wanted),
            _steps(row.facts),
            _seconds(row.facts.get("duration_s")),
            row.words,
        ]
        for row, each in zip(rows, checks, strict=True)
    ]
    widths = [max(len(line[column]) for line in [header, *body]) for column in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [header, *body]
    ]


def _label(row: CaseRow, *, several_tasks: bool) -> str:
    task, case = row.facts.get("task"), row.facts.get("case")
    return f"{task}[{case}]" if case and several_tasks else case or task


def _steps(facts: CaseFacts) -> str:
    """Say how far it came and, if it was resumed, after how many steps: `2000/2000 (from 1200)`."""
    resumed_from = facts.get("resumed_from")
    if not resumed_from:
        return facts.get("steps")
    inexact = ", not exact" if facts.get("exact") else ""
    return f"{facts.get('steps')} (from {int(resumed_from) + 1}{inexact})"


def _shown(check: ToldCheck | None) -> str:
    if check is None:
        return ""
    return check.shown if check.is_met else f"{check.shown} NO"


def _seconds(text: str) -> str:
    return f"{float(text):.1f} s" if text else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class Tally:
    """Everything reported so far."""

    def __init__(self) -> None:
        self.experiments: dict[str, ExperimentTally] = {}
        self._facts: dict[str, CaseFacts] = {}
        """What the last report of a case said, by node id."""
        self._outcomes: dict[str, str] = {}

    def take(self, report: pytest.TestReport) -> None:
        """Take in a report, if it is one of a case; the last one of a case completes its row."""
        node = report.nodeid
        facts = CaseFacts.of(report.user_properties)
        if facts is None:
            if node in self._facts and report.failed:  # its pytest-xdist worker died, so no report of its own
                self.add(self._facts[node], node, "failed")
            return
        self._facts[node] = facts
        if report.when == "setup" and not report.passed:
            self._outcomes[node] = "error" if report.failed else _word(report)
        elif report.when == "call":
            self._outcomes[node] = _word(report)
        if report.when == "teardown" and (report.failed or node in self._outcomes):
            self.add(facts, node, "error" if report.failed else self._outcomes[node])

    def add(self, facts: CaseFacts, node: str, outcome: str) -> None:
        """Take in the end of one case."""
        name = facts.get("experiment")
        tally = self.experiments.setdefault(name, ExperimentTally(name))
        tally.rows[node] = CaseRow(facts, outcome)

    def has_lost_runs(self) -> bool:
        """Tell whether the machinery lost a run."""
        return any(
            row.facts.get("verdict") == Verdict.ERROR and Reason(row.facts.get("reason")).is_infrastructure
            for row in self._rows()
        )

    def count_shortened(self) -> str:
        """Return how many cases ended early on the user's wish, such as `2 cases`; empty if none did."""
        number = sum(row.facts.get("verdict") == Verdict.SHORTENED for row in self._rows())
        return _count(number, "case") if number else ""

    def _rows(self) -> Iterator[CaseRow]:
        for tally in self.experiments.values():
            yield from tally.rows.values()


def _word(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.skipped else "xpassed"
    return report.outcome
