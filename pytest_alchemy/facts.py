"""What the reports of a case carry: flat text properties, so that they survive pytest-xdist and JUnit.

The names are a format: `junit.py`, `summary.py` and other people's report plugins read them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pytest_alchemy.outcome import tell_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from alchemy.experiment import Task
    from alchemy.matrix import Case
    from alchemy.result import Result
    from pytest_alchemy.judge import CaseVerdict
    from pytest_alchemy.outcome import Outcome

__all__ = [
    "CHANGE",
    "DURATION",
    "EXPERIMENT",
    "LOG",
    "NODE",
    "OF_SUITE",
    "CaseFacts",
    "Property",
    "ToldCheck",
    "describe_case",
    "describe_outcome",
    "describe_run",
    "describe_suite",
    "describe_verdict",
    "is_ours",
]

Property = tuple[str, object]

EXPERIMENT: Final = "alchemy.experiment"
"""On every report of a case and on no other."""
NODE: Final = "alchemy.node"
LOG: Final = "alchemy.log"
"""May come several times."""
CHANGE: Final = "alchemy.param_change"
"""A live parameter that changed; may come several times."""
NOTES: Final = "alchemy.notes"
_BETWEEN = " | "
DURATION: Final = "alchemy.duration_s"
OF_SUITE: Final = "alchemy.suite."
"""Begins what concerns the experiment as a whole."""
_OURS = ("alchemy.", "param.", "metric.", "criterion.")


def is_ours(name: str) -> bool:
    """Tell whether a report property is one of those described here."""
    return name.startswith(_OURS)


def describe_case(
    task: Task, case: Case, node: str, backend: str, shortened_to: int | None
) -> list[Property]:
    """Return what is known before a case runs; reported even for one that is skipped."""
    return [
        (EXPERIMENT, task.experiment.name),
        ("alchemy.task", task.name),
        (NODE, node),
        ("alchemy.case", case.id),
        ("alchemy.backend", backend),
        *((f"param.{name}", str(value)) for name, value in case.params.items()),
        *describe_suite(task),
        *([(f"{OF_SUITE}shortened_to", f"{shortened_to} steps")] if shortened_to else ()),
    ]


def describe_suite(task: Task) -> Iterator[Property]:
    """Yield what concerns the experiment as a whole, as far as this task has to do with it."""
    experiment = task.experiment
    for criterion in task.criteria:
        yield f"{OF_SUITE}criterion.{criterion.metric}", criterion.text
    for axis, values in experiment.matrix.items():
        yield f"{OF_SUITE}matrix.{axis}", _some([str(value) for value in values])
    for tag, value in experiment.tags.items():
        yield f"{OF_SUITE}tag.{tag}", str(value)


def _some(texts: list[str], limit: int = 20) -> str:
    more = f", … ({len(texts)} in all)" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more


def describe_run(run: str, directory: Path) -> Iterator[Property]:
    """Yield where a run's files are, known before it starts."""
    yield "alchemy.run", run
    yield "alchemy.directory", str(directory)


def describe_outcome(outcome: Outcome) -> Iterator[Property]:
    """Yield what the backend reported of a run."""
    yield "alchemy.reason", outcome.reason.value
    if outcome.attempt:
        yield "alchemy.attempt", outcome.attempt
    yield "alchemy.queued_s", f"{outcome.queued_s:.3f}"
    yield DURATION, f"{outcome.duration_s:.3f}"
    for log in outcome.logs:
        yield LOG, str(log)
    if outcome.result:
        yield "alchemy.steps", f"{outcome.result.steps}/{outcome.result.total_steps}"
        evaluation = outcome.result.evaluation
        for name, value in (evaluation.metrics if evaluation else outcome.result.metrics).items():
            yield f"metric.{name}", repr(value) if math.isfinite(value) else str(value)
        yield from _describe_history(outcome.result)


def _describe_history(result: Result) -> Iterator[Property]:
    """Yield what happened to a run on its way, none of it for one that ran through undisturbed."""
    if result.stopped is not None:
        yield "alchemy.stopped_by", result.stopped
    if checkpoint := tell_checkpoint(result):
        yield "alchemy.checkpoint", checkpoint
    if result.resumed_from is not None:
        yield "alchemy.resumed_from", str(result.resumed_from)
    if result.inexact:
        yield "alchemy.exact", f"no: {'; '.join(result.inexact)}"
    for change in result.changes:
        yield CHANGE, f"{_told_change(change)} (command {change.get('id')})"
    notes = [*result.notes, *(f"not bit-exact: {why}" for why in result.inexact)]
    if notes := [*notes, *(f"changed by a command: {_told_change(change)}" for change in result.changes)]:
        yield NOTES, _BETWEEN.join(notes)


def _told_change(change: Mapping[str, Any]) -> str:
    values = ", ".join(f"{name} = {value}" for name, value in (change.get("values") or {}).items())
    return f"step {change.get('step')}: {values}"


def describe_verdict(verdict: CaseVerdict) -> Iterator[Property]:
    """Yield the checks of a case."""
    if verdict.stale_step is not None:
        yield "alchemy.evaluated_after", str(verdict.stale_step)
    for check in verdict.checks:
        told = ToldCheck(check.criterion.text, check.ok, check.shown)
        yield f"criterion.{check.criterion.metric}", str(told)


@dataclass(frozen=True, slots=True)
class ToldCheck:
    """A check as a property tells it: `> 0.3: not met, 0.271`."""

    wanted: str
    is_met: bool
    shown: str

    def __str__(self) -> str:
        return f"{self.wanted}: {'met' if self.is_met else 'not met'}, {self.shown}"

    @classmethod
    def read(cls, text: str) -> ToldCheck:
        """Read what `str` wrote."""
        wanted, _, rest = text.partition(": ")
        word, _, shown = rest.partition(", ")
        return cls(wanted, word == "met", shown)


@dataclass(frozen=True, slots=True)
class CaseFacts:
    """The properties of one report, read back by name."""

    values: Mapping[str, str]

    @classmethod
    def of(cls, properties: Iterable[tuple[str, object]]) -> CaseFacts | None:
        """Read the `user_properties` of a report; None if it is not one of ours."""
        values = {name: str(value) for name, value in properties}
        return cls(values) if EXPERIMENT in values else None

    def get(self, name: str) -> str:
        """Return one `alchemy.` property, empty if the report has none."""
        return self.values.get(f"alchemy.{name}", "")

    def notes(self) -> list[str]:
        """Return what else people should know."""
        text = self.values.get(NOTES, "")
        return text.split(_BETWEEN) if text else []

    def checks(self) -> dict[str, ToldCheck]:
        """Return the checks by metric, in order."""
        return {metric: ToldCheck.read(text) for metric, text in self.group("criterion").items()}

    def group(self, prefix: str) -> dict[str, str]:
        """Return the properties below a prefix such as `criterion`, without it, in order."""
        return {
            name[len(prefix) + 1 :]: value
            for name, value in self.values.items()
            if name.startswith(prefix + ".")
        }
